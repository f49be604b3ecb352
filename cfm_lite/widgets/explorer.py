"""An explorer: controls beside one persistent picture, which is redrawn where its moving parts
changed and nowhere else.

A matplotlib Figure is built once; what never moves is drawn once and kept as pixels; each change of
a control moves artists, draws them over those pixels, and puts the PNG into an `ipywidgets.Image`
of fixed size, so the page never jumps. A saved notebook and an HTML export show the PNG where the
widget was.
"""

import base64
import html
import io
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets
import numpy as np
import torch
import traitlets
from matplotlib.artist import Artist
from PIL import Image

from cfm_lite._internal.checks import check_choice
from cfm_lite.viz.style import Picture

__all__ = ["Canvas", "Explorer", "choice", "play_for", "slider"]

DPI = 96  # one point is 4/3 pixels, as in a browser
_LABEL_WIDTH = "150px"


class Canvas:
    """A figure whose `moving` artists are drawn over a background that is drawn once; a new
    background with `refresh`.
    """

    def __init__(self, figure: Picture, moving: Iterable[Artist]) -> None:
        self.figure, self.moving = figure, sorted(moving, key=lambda artist: artist.get_zorder())
        figure.set_dpi(DPI)
        for artist in self.moving:
            artist.set_animated(True)  # left out of the background
        figure.canvas.draw()  # places everything once
        figure.set_layout_engine("none")
        self.refresh()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return self.figure.canvas.get_width_height()

    def refresh(self) -> None:
        """Draw the background anew, after a change of what does not move."""
        self.figure.canvas.draw()
        self._background = self.figure.canvas.copy_from_bbox(self.figure.bbox)  # pyright: ignore[reportAttributeAccessIssue]

    def png(self) -> bytes:
        """The picture as it is now."""
        canvas: Any = self.figure.canvas
        canvas.restore_region(self._background)
        for artist in self.moving:
            if artist.get_visible():
                self.figure.draw_artist(artist)
        buffer = io.BytesIO()
        # a widget sends many pictures over a local socket: speed of packing counts more than size
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(
            buffer, "png", compress_level=1
        )
        return buffer.getvalue()


class Explorer:
    """Controls and a picture: `update(**values)` moves the artists of `canvas` and returns one line
    that says what is to be seen.

    `controls` maps names to ipywidgets with a `value`; `rows` lists the names that stand side by
    side. What `update` raises is shown in the status line, and the last picture stays. The time of
    the last call stands behind the status.
    """

    def __init__(
        self,
        canvas: Canvas,
        controls: Mapping[str, ipywidgets.ValueWidget],
        update: Callable[..., str],
        *,
        rows: Iterable[Iterable[str]] | None = None,
        play: ipywidgets.Play | None = None,
        title: str = "",
    ) -> None:
        self.canvas, self.controls, self.update, self.play = canvas, dict(controls), update, play
        width, height = canvas.size
        # of one size from the start, so that nothing below ever moves; on a narrow page the picture
        # shrinks inside its place
        place = {
            "width": f"{width}px",
            "height": f"{height}px",
            "max_width": "100%",
            "object_fit": "contain",
            "flex": "0 0 auto",
        }
        self.image = ipywidgets.Image(format="png", layout=place)
        self.status = ipywidgets.HTML(layout={"height": "46px", "margin": "0 0 0 4px"})
        self.error: Exception | None = None
        self.redraw()
        for control in self.controls.values():
            control.observe(self._changed, "value")
        lines = [
            [self.controls[name] for name in row]
            for row in (rows or [[name] for name in self.controls])
        ]
        if play is not None:
            lines[0].insert(0, play)
        boxes = [
            ipywidgets.HBox(line, layout={"flex_flow": "row wrap", "align_items": "center"})
            for line in lines
        ]
        self.title = ipywidgets.HTML(
            f"<b>{html.escape(title)}</b>", layout={"margin": "0 0 0 4px"}
        )  # an Image's own tooltip breaks its view in JupyterLab 4
        self.box = ipywidgets.VBox(
            [self.title, *boxes, self.image, self.status], layout={"overflow": "hidden"}
        )

    @property
    def values(self) -> dict[str, Any]:
        """The value of every control."""
        return {name: control.value for name, control in self.controls.items()}  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def png(self) -> bytes:
        """The picture that is shown."""
        return self.image.value  # pyright: ignore[reportReturnType]

    def set(self, **values: Any) -> "Explorer":
        """Set controls by name, as a hand would; ConfigError for an unknown name."""
        for name, value in values.items():
            check_choice("control", name, self.controls)
            self.controls[name].value = value  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def redraw(self) -> None:
        """Bring the picture up to date with the controls."""
        began = time.perf_counter()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # tensors this small only wait for a second thread
        try:
            told = self.update(**self.values)
            called = time.perf_counter()
            self.image.value = self.canvas.png()
            self.error = None
            drawn = time.perf_counter()
            self.status.value = _line(
                told,
                f"computed in {1e3 * (called - began):.0f} ms, drawn in "
                f"{1e3 * (drawn - called):.0f} ms",
            )
        except Exception as error:  # shown to the reader; a kernel log is read by nobody
            self.error = error
            told = f'<span role="alert" style="color:#B00020">{type(error).__name__}: {html.escape(str(error))}</span>'
            self.status.value = _line(told, "the picture is the last good one")
        finally:
            torch.set_num_threads(threads)

    def _changed(self, change: Any) -> None:
        self.redraw()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The live widget, and for whoever has no kernel the picture itself."""
        bundle: Any = self.box._repr_mimebundle_(**kwargs)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        data.pop("text/plain", None)
        return data | {
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": f"Explorer({', '.join(self.controls)})",
        }

    def close(self) -> None:
        """Release the widgets; the picture stays in the notebook's output."""
        for widget in (
            *self.controls.values(),
            self.title,
            self.image,
            self.status,
            self.box,
            *([self.play] if self.play else []),
        ):
            widget.close()


def _line(told: str, timing: str) -> str:
    return f'<div style="line-height:1.35">{told} <span style="color:#767676;font-size:85%">({timing})</span></div>'


def slider(
    description: str,
    value: float,
    low: float,
    high: float,
    step: float,
    *,
    tooltip: str = "",
    fmt: str = ".2f",
    live: bool = True,
) -> Any:
    """A slider for numbers; a whole `value` gives a slider for whole numbers. `live=False` waits
    for the release: for slow calls.
    """
    look: dict[str, Any] = {
        "description": description,
        "tooltip": tooltip or description,
        "continuous_update": live,
        "style": {"description_width": _LABEL_WIDTH},
        "layout": {"width": "390px"},
    }
    if isinstance(value, int) and isinstance(step, int):
        return _IntSlider(value, min=int(low), max=int(high), step=step, **look)
    return _FloatSlider(value, min=low, max=high, step=step, readout_format=fmt, **look)


class _IntSlider(ipywidgets.IntSlider):
    """A slider that does not send a value back to the page that it came from: one message less for
    every picture.
    """

    value = traitlets.CInt(0).tag(sync=True, echo_update=False)


class _FloatSlider(ipywidgets.FloatSlider):
    """The same for fractions."""

    value = traitlets.CFloat(0.0).tag(sync=True, echo_update=False)


def choice(
    description: str, options: Iterable[Any], value: Any, *, tooltip: str = "", width: str = "320px"
) -> Any:
    """A drop-down list of `options`: values, or (label, value) pairs."""
    look = {"style": {"description_width": _LABEL_WIDTH}, "layout": {"width": width}}
    return ipywidgets.Dropdown(
        options=list(options),
        value=value,
        description=description,
        tooltip=tooltip or description,
        **look,
    )


def play_for(control: Any, *, frames: int = 60, interval: int = 80) -> Any:
    """A play button that runs through `control`, a slider, in `frames` pictures of `interval`
    milliseconds.

    The two are linked in the browser where both count in whole steps; a slider of fractions is
    moved from the kernel.
    """
    low, high = control.min, control.max
    play = ipywidgets.Play(
        value=0, min=0, max=frames, interval=interval, description="play", show_repeat=False
    )

    def move(change: Any) -> None:
        value = low + (high - low) * change["new"] / frames
        control.value = round(value) if isinstance(control, ipywidgets.IntSlider) else value

    play.observe(move, "value")
    return play
