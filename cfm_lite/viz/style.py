"""One visual language: who has which colour, how a figure is made, and how it leaves as bytes or as
a file.

Noise is grey, data blue, what attracts green, what repels vermilion, the model purple, the exact
truth black; time runs through viridis, signed values through a diverging map centred at zero.
Figures are built with matplotlib's objects, never with pyplot: no global state is read or changed,
and nothing leaks.
"""

import functools
import io
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from torch import Tensor

from cfm_lite._internal.checks import check_choice, check_number
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import ConfigError
from cfm_lite.methods import Arm, arms

__all__ = [
    "ATTRACT",
    "DATA",
    "DATA_OTHER",
    "DIVERGING",
    "DPI",
    "METHOD_COLORS",
    "METHOD_LABELS",
    "METHOD_STYLES",
    "MODEL",
    "NOISE",
    "PAGE",
    "REPEL",
    "STYLE",
    "TIME_MAP",
    "TRUTH",
    "Picture",
    "as_array",
    "as_tensor",
    "frame",
    "method_color",
    "method_style",
    "method_title",
    "named",
    "new_figure",
    "panels",
    "plain",
    "save",
    "styled",
    "text_width",
    "to_png",
]

# Data and model, noise and attraction come close for the colour-blind: draw them as different
# marks, never as colour alone.
NOISE = "#7f7f7f"
DATA = "#0072B2"
ATTRACT = "#009E73"
REPEL = "#D55E00"
MODEL = "#7B3FA0"
TRUTH = "#000000"
DATA_OTHER = "#a9cde3"  # data of the classes that are not in question: the same blue, paler
TIME_MAP = "viridis"
DIVERGING = LinearSegmentedColormap.from_list(
    "cfm_diverging", [DATA, "#8fc1e0", "#f7f7f7", "#f0b48c", REPEL]
)
DPI = 110
PAGE = 8.7  # inches: a column of text. On a wider figure 9 points would look smaller than that

STYLE: Mapping[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.edgecolor": "#4d4d4d",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "lines.linewidth": 1.8,
    "svg.hashsalt": "cfm_lite",  # the same figure gives the same file
}


_ARMS = arms()
# how each method looks wherever it appears: an arm's label, colour, marker and line
METHOD_STYLES: Mapping[str, Arm] = {
    "real": Arm("real", "Real data", colour=TRUTH, line="--"),
    **{name: arm for name, arm in _ARMS.items() if arm.colour},
}
METHOD_COLORS = {name: look.colour for name, look in METHOD_STYLES.items()}
METHOD_LABELS = {"real": "Real data"} | {name: arm.label for name, arm in _ARMS.items()}
_PRESETS = {"sit": "SiT (FM)", "dispersive_torch": "Dispersive (PyTorch code's)"}
_OTHER = (
    ("#5D6D7E", "#8E6C5A", "#3D5A80", "#7A7A2E"),
    "<>dH8",
    ("-", "--", "-."),
)  # colours, markers, lines of unregistered names

P = ParamSpec("P")
R = TypeVar("R")


def method_style(name: str) -> Arm:
    """The look of method `name`; a name that is not in METHOD_STYLES gets a muted look that depends
    on nothing but the name.

    Raises ConfigError for a name that is no text, or empty.

    >>> method_style("vecor").label, method_style("my method") == method_style("my method")
    ('VeCoR', True)
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"method is {name!r}; it must be a non-empty string such as "
            f"{', '.join(map(repr, METHOD_STYLES))}."
        )
    if name in METHOD_STYLES:
        return METHOD_STYLES[name]
    key = zlib.crc32(name.encode())
    colour, marker, line = (
        options[(key >> 8 * i) % len(options)] for i, options in enumerate(_OTHER)
    )
    both = ["repa", name.removeprefix("repa_")] if name.startswith("repa_") else name.split("+")
    parts = [METHOD_LABELS.get(part, part) for part in both]  # a method and a second one
    label = METHOD_LABELS.get(name) or _PRESETS.get(name) or " and ".join(parts)
    return Arm(name, label, colour=colour, marker=marker, line=line)


def method_title(name: str) -> str:
    """`name` as a reader should see it: a method's label, or the name with a capital letter.

    >>> method_title("vecor"), method_title("my method")
    ('VeCoR', 'My method')
    """
    if method_style(name).label != name:
        return method_style(name).label
    return name[:1].upper() + name[1:] if name[:1].isascii() else name  # λ is not Λ


def method_color(name: str, other: str = MODEL) -> str:
    """The colour of method `name`, black for "truth", `other` for any other name.

    >>> method_color("truth"), method_color("my method") == MODEL
    ('#000000', True)
    """
    if name == "truth":
        return TRUTH
    return METHOD_STYLES[name].colour if name in METHOD_STYLES else other


def styled(build: Callable[P, R]) -> Callable[P, R]:
    """Run `build` under matplotlib's defaults plus STYLE, whatever the user's own settings are, and
    restore those afterwards.

    >>> import matplotlib
    >>> styled(lambda: matplotlib.rcParams["xtick.labelsize"])()
    9.0
    """

    @functools.wraps(build)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with style.context(["default", dict(STYLE)]):
            return build(*args, **kwargs)

    return inside


class Picture(Figure):
    """A matplotlib Figure that a notebook shows as the last value of a cell, without pyplot and
    without choosing a backend.

    >>> new_figure(3, 2)._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        return to_png(self)


@styled
def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Picture:
    """An empty white figure, `width` x `height` inches; the constrained layout keeps titles, labels
    and legends inside the canvas.

    >>> new_figure(3, 2).get_size_inches()
    array([3., 2.])
    """
    figure = Picture(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panels(
    rows: int, columns: int, *, width: float, height: float, **kwargs: Any
) -> tuple[Picture, np.ndarray]:
    """A figure of `width` x `height` inches and its axes as an array (rows, columns); keywords as
    in `Figure.subplots`.

    >>> figure, axes = panels(2, 3, width=6, height=4)
    >>> axes.shape
    (2, 3)
    """
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def text_width(texts: Iterable[str], size: float = 10) -> float:
    """The width in inches of the longest of `texts` at `size` points.

    >>> bool(text_width(["a", "a longer text"]) > text_width(["a"]))
    True
    """
    return (
        max(
            TextPath((0, 0), text, size=size).get_extents().width if text.strip() else 0.0
            for text in texts
        )
        / 72
    )


def named(name: str, mapping: Any, example: str) -> Mapping[str, Any]:
    """`mapping`; ConfigError unless it is a mapping with entries, such as `example`.

    >>> named("fields", {"fm": 1}, "{'fm': velocity}")
    {'fm': 1}
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise ConfigError(
            f"{name} is {type(mapping).__name__} without entries or names; pass a dict such as "
            f"{example}."
        )
    return mapping


def plain(value: float, _: Any = None) -> str:
    """`value` as a tick's label: no needless zeros, and a minus that is one.

    >>> plain(0.50), plain(-2.0)
    ('0.5', '−2')
    """
    return f"{value:g}".replace("-", "−")


def as_array(name: str, x: Any, *shape: int | None) -> np.ndarray:
    """`x` (tensor, array or nested list) as a float64 array; ConfigError unless it is finite, not
    empty, and fits `shape`.

    `shape` has one entry per dimension, None where any length will do; without entries every shape
    is accepted.

    >>> as_array("x", torch.ones(2, 2), None, 2)
    array([[1., 1.],
           [1., 1.]])
    """
    try:
        values = np.asarray(
            x.detach().cpu().double() if isinstance(x, Tensor) else x, dtype=np.float64
        )
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise ConfigError(
            f"{name} is a {type(x).__name__} that holds no plain numbers ({error}); pass a tensor "
            "or an array."
        ) from None
    fits = len(shape) == values.ndim and all(
        want in (None, have) for want, have in zip(shape, values.shape)
    )
    if shape and not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ConfigError(f"{name} has shape {values.shape}; it must be ({wanted}).")
    if values.size == 0:
        raise ConfigError(
            f"{name} is empty, shape {values.shape}; there is nothing to draw. Pass at least one "
            "row."
        )
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ConfigError(
            f"{name} holds {bad} values of {values.size} that are NaN or infinite; drop or repair "
            "them before drawing."
        )
    return values


def as_tensor(values: np.ndarray) -> Tensor:
    """`values` as a tensor of the default dtype: what a velocity or density callable is given.

    >>> as_tensor(np.ones(2)).dtype
    torch.float32
    """
    return torch.as_tensor(values, dtype=torch.get_default_dtype())


def frame(axes: Axes) -> None:
    """Close the box around `axes`: a plane or a matrix has four sides, a curve two.

    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> frame(axes)
    >>> all(spine.get_visible() for spine in axes.spines.values())
    True
    """
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#4d4d4d", linewidth=0.8)


@styled
def to_bytes(figure: Figure, kind: str, dpi: float = DPI, about: str = "") -> bytes:
    """`figure` as the bytes of a "png", "svg" or "pdf" file; the same figure gives the same bytes,
    whatever the date. A png keeps the text `about` as its Description.

    Raises ConfigError for another kind, and a dpi outside [10, 1200].
    """
    if not isinstance(figure, Figure):
        raise ConfigError(
            f"figure has type {type(figure).__name__}; it must be a figure of matplotlib, such as "
            "viz.trajectories returns."
        )
    check_choice("kind", kind, _METADATA)
    buffer, kept = io.BytesIO(), _METADATA[kind]
    kept = kept | {"Description": about} if about and kind == "png" else kept
    figure.savefig(buffer, format=kind, dpi=check_number("dpi", dpi, 10, 1200), metadata=kept)
    return buffer.getvalue()


_METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def to_png(figure: Figure, dpi: float = DPI) -> bytes:
    """`figure` as the bytes of a PNG file.

    >>> to_png(new_figure(3, 2))[1:4]
    b'PNG'
    """
    return to_bytes(figure, "png", dpi)


def save(figure: Figure, path: AnyPath, dpi: float = DPI, about: str = "") -> Path:
    """Write `figure` to `path` (.png, .svg or .pdf), whole or not at all, and return the path;
    folders are made. A png keeps the text `about` as its Description.

    Raises ConfigError for another ending, and what `write_bytes` raises.

    >>> import tempfile
    >>> save(new_figure(3, 2), Path(tempfile.mkdtemp()) / "empty.png").name
    'empty.png'
    """
    path = expanded(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _METADATA:
        raise ConfigError(
            f"{path.name} ends in {path.suffix!r}; a figure is saved as .png, .svg or .pdf."
        )
    write_bytes(path, to_bytes(figure, kind, dpi, about))
    return path
