"""What really reaches the canvas of a figure."""

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts_of(picture: Figure) -> list[Text]:
    """The texts that are drawn, tick labels included."""
    seen: dict[int, Text] = {}
    draw = Text.draw

    def record(text: Text, renderer: object) -> None:
        if text.get_visible() and text.get_text().strip():
            seen[id(text)] = text
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        picture.canvas.draw()
    return list(seen.values())
