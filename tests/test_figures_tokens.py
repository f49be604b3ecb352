"""Figures of tokens: every patch and every number stands in its place, on one scale, under its
name.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from cfm_lite import viz
from cfm_lite.course import figures
from cfm_lite.errors import ConfigError
from cfm_lite.models.embed import sincos_2d
from tests.drawn import texts_of


def image(side: int = 8) -> torch.Tensor:
    return torch.rand(1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def weights(n: int = 16) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(n)).softmax(0)


MAPS = {f"head {k}": weights() for k in range(1, 5)}
BUILDERS: dict[str, Callable[[], viz.Picture]] = {
    "patches": lambda: figures.patches(image(), 2),
    "patches, four": lambda: figures.patches(image(28), 14),
    "table_map": lambda: figures.table_map(
        sincos_2d(96, 4),
        xlabel="number in the vector",
        ylabel="token",
        parts=["column: sin, cos", "row: sin, cos"],
    ),
    "table_map, times": lambda: figures.table_map(
        torch.randn(41, 6),
        xlabel="feature",
        ylabel="time t",
        yticks={0: "0 (noise)", 40: "1 (data)"},
    ),
    "token_maps": lambda: figures.token_maps(MAPS, queries=5, image=image()),
    "token_maps, three": lambda: figures.token_maps(
        {f"token {q}": weights(256) for q in (0, 136, 245)},
        queries=[0, 136, 245],
        label="cosine",
        zero=False,
    ),
}
every_figure = pytest.mark.parametrize("name", list(BUILDERS))


@functools.cache
def figure(name: str) -> viz.Picture:
    picture = BUILDERS[name]()
    picture.canvas.draw()
    return picture


@functools.cache
def texts(name: str) -> list[Text]:
    """The texts that really reach the canvas, tick labels included."""
    return texts_of(figure(name))


@every_figure
def test_text_is_readable_apart_and_inside_the_canvas(name: str) -> None:
    width, height = figure(name).bbox.size
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in texts(name)
        if text.get_rotation() in (0, 90)
    ]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1, (
            f"{one!r} covers {other!r}"
        )
    assert min(text.get_fontsize() for text in texts(name)) >= 9
    assert figure(name).get_figwidth() <= 11


def test_patches_stand_in_the_order_of_their_tokens() -> None:
    whole, *small = figure("patches").findobj(lambda artist: type(artist).__name__ == "AxesImage")
    pixels = np.asarray(whole.get_array())
    assert len(small) == 16
    for k, patch in enumerate(small):
        row, column = divmod(k, 4)
        assert np.array_equal(
            np.asarray(patch.get_array()),
            pixels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2],
        )
    assert {image.get_clim() for image in (whole, *small)} == {(-1, 1)}


def test_a_table_is_centred_at_zero_and_names_its_parts() -> None:
    picture = figure("table_map")
    panel = picture.axes[0]
    low, high = panel.images[0].get_clim()
    assert low == -high
    assert np.allclose(panel.images[0].get_array(), sincos_2d(96, 4))
    assert {"column: sin, cos", "row: sin, cos"} <= {text.get_text() for text in texts("table_map")}
    assert [line.get_xdata()[0] for line in panel.lines] == [47.5]
    assert [label.get_text() for label in figure("table_map, times").axes[0].get_yticklabels()] == [
        "0 (noise)",
        "1 (data)",
    ]


def test_maps_share_one_scale_and_frame_the_query() -> None:
    picture = figure("token_maps")
    first, *maps = picture.axes[:5]
    assert len({panel.images[0].get_clim() for panel in maps}) == 1
    assert maps[0].images[0].get_clim()[0] == 0
    for panel, values in zip(maps, MAPS.values()):
        assert np.allclose(panel.images[0].get_array(), values.reshape(4, 4))
    for panel, cell in ((first, 2.0), (maps[0], 1.0)):
        (framed,) = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
        assert framed.get_xy() == (
            1 * cell - 0.5,
            1 * cell - 0.5,
        )  # token 5 of 4 x 4: row 1, column 1
        assert framed.get_edgecolor() == to_rgba(viz.REPEL)
    assert figure("token_maps, three").axes[0].images[0].get_clim()[0] > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: figures.patches(image(), 3), "multiple"),
        (lambda: figures.patches(image(), 0), "patch_size"),
        (lambda: figures.patches(torch.zeros(3, 8, 8), 2), "one channel"),
        (lambda: figures.patches(torch.full((1, 8, 8), math.nan), 2), "NaN"),
        (lambda: figures.table_map(torch.zeros(3), xlabel="x", ylabel="y"), "shape"),
        (
            lambda: figures.table_map(torch.zeros(3, 5), xlabel="x", ylabel="y", parts=["a", "b"]),
            "equal parts",
        ),
        (lambda: figures.token_maps({}), "without entries"),
        (lambda: figures.token_maps({"head": torch.zeros(15)}), "square number"),
        (
            lambda: figures.token_maps({"head": torch.zeros(16), "other": torch.zeros(9)}),
            "square number",
        ),
        (lambda: figures.token_maps({"head": torch.zeros(16)}, queries=16), "queries"),
        (lambda: figures.token_maps(MAPS, queries=[1, 2]), "queries"),
        (lambda: figures.token_maps({"head": torch.full((16,), math.inf)}), "NaN or infinite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(build: Callable[[], viz.Picture], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
