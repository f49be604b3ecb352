"""Figures of images: samples of every method side by side, and what a perturbation does to an image
or a velocity.

Images are (n, C, H, W) in [-1, 1], C = 1 (grey) or 3 (colour). Small images are enlarged smoothly,
so that a digit of 8 x 8 pixels looks like a digit. Velocities have no range: they are drawn signed,
in a diverging map centred at zero.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite.errors import ConfigError
from cfm_lite.viz.artists import color_bar
from cfm_lite.viz.style import (
    ATTRACT,
    DIVERGING,
    REPEL,
    TRUTH,
    Picture,
    as_array,
    method_color,
    method_title,
    named,
    new_figure,
    styled,
    text_width,
)

__all__ = ["captioned", "image_grid", "perturbation_gallery"]

_GAP = 0.07  # of an image's side, between two images


def _images(name: str, x: Any, limit: float) -> np.ndarray:
    """`x` (n, C, H, W) in [-limit, limit] as (n, H, W) or (n, H, W, 3), clipped."""
    images = _floats(name, x, None, None, None, None)
    if images.shape[1] not in (1, 3):
        raise ConfigError(
            f"{name} has {images.shape[1]} channels, shape {images.shape}; images have 1 or 3, "
            "velocities one plane per picture."
        )
    images = np.clip(images / limit, -1, 1)
    return images[:, 0] if images.shape[1] == 1 else (np.moveaxis(images, 1, -1) + 1) / 2


def _floats(name: str, x: Any, *shape: int | None) -> np.ndarray:
    """`as_array`, without whole numbers: bytes would all be drawn white."""
    if "int" in str(getattr(x, "dtype", "")):
        raise ConfigError(
            f"{name} holds whole numbers of {x.dtype}; images are floats in [-1, 1]. Give x / "
            "127.5 - 1."
        )
    return as_array(name, x, *shape)


def _show(axes: Axes, image: np.ndarray, row: int, column: int, *, cmap: Any) -> AxesImage:
    left, top, side = column + _GAP / 2, row + _GAP / 2, 1 - _GAP
    extent = (left, left + side, top + side, top)
    return axes.imshow(image, extent=extent, cmap=cmap, vmin=-1, vmax=1, interpolation="nearest")


def _canvas(
    rows: int, columns: int, cell: float, left: float, *, top: float = 0.6, right: float = 0.1
) -> tuple[Picture, Axes]:
    """A figure whose one axes counts images: the image in row r and column c covers [c, c + 1] x
    [r, r + 1], from the top left.
    """
    width, height = left + columns * cell + right, top + rows * cell + 0.1
    figure = new_figure(width, height, layout=None)
    box = (left / width, 0.1 / height, columns * cell / width, rows * cell / height)
    return figure, figure.add_axes(box)


def _label(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names at the left of the rows and above the columns, one for neighbours of the same name;
    imshow moves the limits, so this comes last.
    """
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), aspect="equal")
    spans = [(label, len(list(same))) for label, same in itertools.groupby(columns)]
    widths = np.array([width for _, width in spans])
    axes.set_xticks(np.cumsum(widths) - widths / 2, [label for label, _ in spans])
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False, pad=5)
    axes.xaxis.set_label_position("top")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def image_grid(
    rows: Mapping[str, Any],
    column_labels: Sequence[Any] | None = None,
    *,
    column_title: str = "class",
    cell: float = 0.72,
    ink: str = "white",
) -> Picture:
    """A row of images per method, the real ones first: `rows[name]` (n, C, H, W) in [-1, 1], the
    same n in each row.

    `column_labels` (n,) stand above the columns (default: the numbers from 0); neighbours with the
    same label share it. `cell` is an image's side in inches, `ink` says whether a grey value of 1
    is "white" or "black". Raises ConfigError for NaN, for other shapes and for rows of unequal
    length.

    >>> figure = image_grid({"real": np.zeros((3, 1, 4, 4)), "fm": np.zeros((3, 1, 4, 4))})
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['Real data', 'FM']
    """
    check_choice("ink", ink, ("white", "black"))
    items = named("rows", rows, "{'fm': images}").items()
    images = {
        name: _images(f"rows[{name!r}]", x, 1.0)
        for name, x in sorted(items, key=lambda row: row[0] != "real")
    }
    counts = {name: len(x) for name, x in images.items()}
    known = range(max(counts.values())) if column_labels is None else column_labels
    labels = [str(label) for label in known]
    if set(counts.values()) != {len(labels)}:
        raise ConfigError(
            f"rows hold {counts} images for {len(labels)} column labels; every row needs one image "
            "per column."
        )
    titles = [method_title(name) for name in images]
    top = 0.6 if column_title else 0.4
    left = 0.4 + text_width(titles)
    figure, axes = _canvas(len(images), len(labels), cell, left, top=top)
    for row, (name, stack) in enumerate(images.items()):
        for column, image in enumerate(stack):
            _show(axes, image, row, column, cmap="gray" if ink == "white" else "gray_r")
        look = {"color": method_color(name, TRUTH), "clip_on": False}
        axes.add_patch(Rectangle((-0.09, row + _GAP), 0.06, 1 - 2 * _GAP, **look))
    _label(axes, titles, labels)
    axes.tick_params(axis="y", pad=11)
    axes.set_xlabel(column_title, labelpad=4)
    return figure


@styled
def captioned(
    images: Any, captions: Sequence[str], *, columns: int = 0, cell: float = 1.5
) -> Picture:
    """Pictures (n, C, H, W) in [-1, 1] in a grid, each over its caption.

    `columns` is that of the grid (default: at most 5), `cell` a picture's side in inches. Raises
    ConfigError for NaN, and unless there is a caption for each picture.

    >>> figure = captioned(np.zeros((2, 3, 8, 8)), ["a red seven", "a blue one"])
    >>> len(figure.axes)
    2
    """
    stack = _images("images", images, 1.0)
    if len(stack) != len(captions):
        raise ConfigError(
            f"there are {len(stack)} pictures and {len(captions)} captions; give one for each."
        )
    columns = check_count("columns", columns or min(5, len(stack)))
    rows = -(-len(stack) // columns)
    told = [textwrap.fill(caption, int(cell * 13)) for caption in captions]
    text = 0.05 + max(lines.count("\n") + 1 for lines in told) / 6  # inches under each picture
    figure = new_figure(columns * cell, rows * (cell + text), layout=None)
    for number, (image, lines) in enumerate(zip(stack, told)):
        axes = figure.add_axes((
            number % columns / columns + 0.03 / columns,
            1 - (number // columns * (cell + text) + cell) / (rows * (cell + text)),
            0.94 / columns,
            0.94 * cell / (rows * (cell + text)),
        ))  # fmt: skip
        axes.imshow(image, interpolation="nearest", cmap="gray", vmin=-1, vmax=1)
        axes.set_axis_off()
        axes.text(0.5, -0.04, lines, ha="center", va="top", transform=axes.transAxes)
    return figure


@styled
def perturbation_gallery(
    original: Any, wrong: Mapping[str, Any], *, signed: bool = False, cell: float = 0.95
) -> Picture:
    """Rows of `original` (n, C, H, W), framed green, beside each of `wrong[name]` (n, C, H, W),
    framed vermilion.

    Images lie in [-1, 1]. With `signed`, the arrays are velocities of one channel: all share one
    diverging map centred at zero, beyond whose ends 1 % of the values may lie. Raises ConfigError
    for NaN and for shapes that differ from the original's.

    >>> x = np.zeros((2, 3, 4, 4))
    >>> figure = perturbation_gallery(x, {"cutmix": x})
    >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
    ['original', 'cutmix']
    """
    base = _floats("original", original, None, 1 if signed else None, None, None)
    everything = {"original": base} | {
        name: _floats(f"wrong[{name!r}]", x, *base.shape) for name, x in wrong.items()
    }
    if len(everything) < 2:
        raise ConfigError("wrong is empty; pass a dict such as {'cutmix': cutmix(x)}.")
    limit = float(np.quantile(np.abs(np.stack(list(everything.values()))), 0.99)) or 1.0
    figure, axes = _canvas(
        len(base), len(everything), cell, left=0.65, right=1.0 if signed else 0.15, top=0.85
    )
    colors = [ATTRACT, *[REPEL] * len(wrong)]
    for column, (color, (name, stack)) in enumerate(zip(colors, everything.items())):
        for row, image in enumerate(_images(name, stack, limit if signed else 1.0)):
            shown = _show(axes, image, row, column, cmap=DIVERGING if signed else "gray")
            corner, side = (column + _GAP / 2, row + _GAP / 2), 1 - _GAP
            rim = {"fill": False, "linewidth": 2, "edgecolor": color}
            axes.add_patch(Rectangle(corner, side, side, **rim))
    names = [name.replace("_", "\n", 1) for name in everything]
    _label(axes, [str(i + 1) for i in range(len(base))], names)
    for color, text in zip(colors, axes.get_xticklabels()):
        text.set_color(color)
    axes.set(xlabel="right, and wrong on purpose", ylabel="example")
    if signed:
        ticks = [-1, -0.5, 0, 0.5, 1]
        label = "velocity, per unit of $t$"
        bar = color_bar(figure, shown, axes, label, ticks=ticks, extend="both")
        bar.set_ticklabels([f"{tick * limit:.2g}".replace("-", "−") for tick in ticks])
    return figure
