"""A moving picture: the same noise carried to the data by several velocities at once, with arrows
for what acts on a few of the points.

A `Film` holds one velocity's paths as arrays, dx = (attract + repel) dt. `frames` draws several of
them side by side, on one clock, and `save_animation` writes the pictures as one file. Nothing is
random: the same films give the same bytes.
Convention: t = 0 is noise, t = 1 is data.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from PIL import Image
from scipy.spatial import KDTree
from torch import Tensor

from cfm_lite import samplers
from cfm_lite._internal.checks import check_choice, check_count, check_number
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Density, Limits, Velocity
from cfm_lite.viz.style import (
    ATTRACT,
    DATA,
    NOISE,
    REPEL,
    TIME_MAP,
    TRUTH,
    Picture,
    as_array,
    styled,
)

__all__ = ["Film", "film", "frames", "save_animation"]

CLASS_LOOKS = (
    # two shades of the data's blue, and two marks for readers who cannot tell the shades apart
    (DATA, "o"),
    ("#56B4E9", "^"),
)
_TRAIL = 0.22  # of the time behind a point that its tail shows


@dataclass(frozen=True)
class Film:
    """One velocity at work: `states` (S, B, 2), and at the points `marked` (H,) the arrows
    `attract` and `repel` (S, H, 2).
    """

    title: str
    states: np.ndarray
    attract: np.ndarray
    repel: np.ndarray | None = None
    marked: Sequence[int] = ()
    color: str = TRUTH
    note: str = ""  # stands in the panel while the last picture is held


@torch.no_grad()
def film(
    title: str,
    attract: Velocity,
    x0: Tensor,
    ts: Tensor,
    *,
    repel: Velocity | None = None,
    marked: Sequence[int] = (),
    **look: Any,
) -> Film:
    """Carry `x0` (B, 2) along attract + repel with Heun steps on the grid `ts` (S,), and keep both
    at the points `marked`.

    `look` is `color` and `note` of the Film. Raises ConfigError for an index in `marked` that x0
    does not have.
    """
    for index in marked:
        check_number("an index in marked", index, 0, len(x0) - 1)
    velocity = attract if repel is None else lambda x, t: attract(x, t) + repel(x, t)
    states = list(samplers.trajectory(velocity, x0, ts))
    rows = list(marked)

    def arrows(part: Velocity) -> np.ndarray:
        return np.stack(
            [
                as_array("velocity", part(x, t.expand(len(x))), len(x0), 2)[rows]
                for x, t in zip(states, ts)
            ]
        )

    return Film(
        title,
        as_array("states", torch.stack(states)),
        arrows(attract),
        repel and arrows(repel),
        rows,
        **look,
    )


@dataclass
class _Panel:
    """The artists of one film that move."""

    film: Film
    dots: list[Any]
    tails: list[LineCollection]
    pushes: list[
        tuple[Any, np.ndarray, np.ndarray]
    ]  # arrows, where they start (S, H, 2), how long they are (S, H, 2)
    note: Artist


def _check_films(films: Sequence[Film], ts: Any, classes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times (S,) and classes (B,) of all `films`; ConfigError unless all have the same numbers of
    times and points.
    """
    if not films:
        raise ConfigError("films is empty; pass at least one Film.")
    times = as_array("ts", ts, None)
    shapes = {film.states.shape for film in films}
    if len(shapes) != 1 or next(iter(shapes))[0] != len(times):
        raise ConfigError(
            f"films have states of shape {sorted(shapes)} for {len(times)} times; all must be (S, "
            "B, 2) with the same S and B."
        )
    points = films[0].states.shape[1]
    labels = np.zeros(points) if classes is None else as_array("classes", classes, points)
    if set(labels.tolist()) - set(range(len(CLASS_LOOKS))):
        raise ConfigError(
            f"classes are {sorted(set(labels.tolist()))}; a moving picture shows at most "
            f"{len(CLASS_LOOKS)} classes, 0 and 1."
        )
    return times, labels.astype(int)


@styled
def _draw_panel(
    panel: Axes,
    film: Film,
    labels: np.ndarray,
    densities: Sequence[np.ndarray],
    limits: Limits,
    scale: float,
) -> _Panel:
    panel.set_title(film.title, color=film.color, loc="left", weight="bold", fontsize=13, pad=8)
    for log_density in densities:
        artists.contours(panel, log_density, limits, masses=(0.95,), linewidths=1.4)
    artists.points(panel, film.states[0], color=NOISE, size=7, alpha=0.55, zorder=1.2)
    dots, tails = [], []
    for label, (color, mark) in enumerate(CLASS_LOOKS[: labels.max() + 1]):
        tails.append(
            panel.add_collection(
                LineCollection([], colors=color, linewidths=0.8, alpha=0.45, zorder=2),
                autolim=False,
            )
        )
        sizes = np.where(np.isin(np.flatnonzero(labels == label), film.marked), 90.0, 27.0)
        look = {"marker": mark, "edgecolors": "white", "linewidths": 0.5, "zorder": 5.5}
        dots.append(
            artists.points(panel, film.states[0][labels == label], color=color, **look, s=sizes)
        )
    pushes, foot = [], np.zeros_like(film.attract)
    for values, color in ((film.attract, ATTRACT), (film.repel, REPEL)):
        if values is not None and len(film.marked):
            # the second arrow starts where the first one ends: they add up
            feet = film.states[:, film.marked] + foot / scale
            arrows = artists.arrows(
                panel,
                feet[0],
                values[0],
                color=color,
                scale=scale,
                width=0.0085,
                zorder=5,
                headwidth=3.4,
            )
            arrows.set_path_effects([Stroke(linewidth=1.6, foreground="white"), Normal()])
            pushes.append((arrows, feet, values))
            foot = foot + values
    halo = [Stroke(linewidth=4, foreground="white"), Normal()]
    note = panel.text(
        0.03,
        0.03,
        film.note,
        transform=panel.transAxes,
        fontsize=11.5,
        linespacing=1.35,
        path_effects=halo,
        zorder=6,
    )
    return _Panel(film, dots, tails, pushes, note)


def _advance(panel: _Panel, step: int, labels: np.ndarray, trail: int, last: bool) -> None:
    states = panel.film.states
    for label, (dots, tails) in enumerate(zip(panel.dots, panel.tails)):
        mine = labels == label
        dots.set_offsets(states[step, mine])
        tails.set_segments(
            list(states[max(0, step - trail) : step + 1, mine].swapaxes(0, 1)) if step else []
        )
    for arrows, feet, values in panel.pushes:
        arrows.set_offsets(feet[step])
        arrows.set_UVC(*values[step].T)
        arrows.set_visible(not last)  # at t = 1 nothing moves any more
    panel.note.set_visible(last)


@styled
def _clock(figure: Picture, left: float, right: float) -> tuple[Axes, Any]:
    """A bar that time fills from noise to data, across the foot of `figure`."""
    height = figure.get_figheight()
    bar = figure.add_axes((left, 0.6 / height, right - left, 0.13 / height))
    bar.set(xlim=(0, 1), ylim=(0, 1), yticks=[], xticks=[0, 1])
    bar.set_xticklabels(["noise, $t$ = 0", "data, $t$ = 1"])
    bar.tick_params(length=0, labelsize=10.5, pad=3)
    bar.get_xticklabels()[0].set_horizontalalignment("left")
    bar.get_xticklabels()[1].set_horizontalalignment("right")
    bar.grid(False)
    return bar, bar.text(0.5, -0.6, "", fontsize=11.5, ha="center", va="top", weight="bold")


def _legend(
    figure: Picture, films: Sequence[Film], classes: int, contours: bool, left: float
) -> None:
    entries: dict[str, Any] = {}
    for label, (color, mark) in enumerate(CLASS_LOOKS[:classes]):
        entries["points" if classes == 1 else f"class {label}"] = artists.legend_entry(
            color, mark, markersize=6.5
        )
    if contours:
        entries["95 % of the data" if classes == 1 else "95 % of a class"] = artists.legend_entry(
            TRUTH, "-"
        )
    arrow = {
        "marker": r"$\rightarrow$",
        "markersize": 15,
        "linestyle": "none",
        "markeredgewidth": 0.6,
    }
    if any(len(film.marked) for film in films):
        entries["where to go"] = Line2D([], [], color=ATTRACT, **arrow)
    if any(film.repel is not None and len(film.marked) for film in films):
        entries["the push away from where not to go"] = Line2D([], [], color=REPEL, **arrow)
    place = {"loc": "lower left", "bbox_to_anchor": (left, 0.02), "ncols": len(entries)}
    look = {"fontsize": 11, "handlelength": 1.4, "handletextpad": 0.4, "columnspacing": 1.3}
    figure.legend(
        list(entries.values()), list(entries), frameon=False, borderaxespad=0, **place, **look
    )


@styled
def frames(
    films: Sequence[Film],
    ts: Any,
    limits: Limits,
    *,
    classes: Any = None,
    densities: Sequence[Density] = (),
    arrow: float = 0.33,
    width: int = 1080,
) -> Iterator[np.ndarray]:
    """The pictures (H, W, 3) uint8 of `films` at the times `ts` (S,), side by side over `limits`,
    `width` pixels wide.

    `classes` (B,), 0 or 1, chooses mark and shade; `densities` are log densities of each class at t
    = 1, drawn as contours. The longest arrow is `arrow` of a panel's side. The last picture shows
    the films' notes and no arrows. Raises ConfigError for films whose shapes differ, for NaN and
    for limits that are not a square.
    """
    times, labels = _check_films(films, ts, classes)
    side, gap = (8.1 - 0.35 * (len(films) - 1)) / len(films), 0.35
    figure, axes = artists.squares(
        1, len(films), limits, side=side, gap=gap, right=0.25, top=0.45, bottom=1.36
    )
    maps = [artists.density_map(density, limits) for density in densities]
    vectors = [
        values.reshape(-1, 2)
        for film in films
        for values in (film.attract, film.repel)
        if values is not None and values.size
    ]
    scale = artists.arrow_scale(vectors, limits, 1, arrow) if vectors else 1.0
    panels = [
        _draw_panel(panel, film, labels, maps, limits, scale) for panel, film in zip(axes[0], films)
    ]
    left, right = axes[0, 0].get_position().x0, axes[0, -1].get_position().x1
    bar, clock = _clock(figure, left, right)
    _legend(figure, films, int(labels.max()) + 1, bool(maps), left)
    figure.set_dpi(check_count("width", width, 200) / figure.get_figwidth())
    shades = np.linspace(0, 1, 256)[None]
    filled = bar.imshow(
        shades, cmap=TIME_MAP, vmin=0, vmax=1, aspect="auto", extent=(0, 0.001, 0, 1)
    )
    trail = max(1, round(_TRAIL * (len(times) - 1)))
    for step, t in enumerate(times):
        for panel in panels:
            _advance(panel, step, labels, trail, step == len(times) - 1)
        filled.set(extent=(0, max(t, 0.001), 0, 1), clim=(0, 1), array=shades * t)
        bar.set_xlim(0, 1)
        clock.set_text(f"$t$ = {t:.2f}")
        yield _pixels(figure)


def _pixels(figure: Picture) -> np.ndarray:
    canvas: Any = figure.canvas  # an Agg canvas: new_figure made it
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save_animation(
    pictures: Iterable[np.ndarray],
    path: str | os.PathLike[str],
    *,
    fps: float = 25,
    hold: tuple[float, float] = (1.0, 1.5),
) -> Path:
    """Write `pictures` (H, W, 3) uint8 to `path`, a .webp or .gif that loops, whole or not at all;
    returns the path.

    `fps` pictures a second; the first and the last stay for `hold` seconds. A .webp has no loss, so
    nothing flickers; a .gif has 256 colours, chosen once for all pictures. Raises ConfigError for
    another ending, for no pictures, and for pictures of unequal size.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    check_choice("the ending of an animation", kind, _WRITERS)
    each = round(1000 / check_number("fps", fps, 0, 100, open_low=True))
    first, last = (round(1000 * check_number("hold", seconds, 0, 60)) for seconds in hold)
    images = [Image.fromarray(_check_picture(picture)) for picture in pictures]
    if len({image.size for image in images}) != 1:
        raise ConfigError(
            f"there are {len(images)} pictures of sizes "
            f"{sorted({image.size for image in images})}; one size is needed."
        )
    durations = [each] * len(images)
    durations[0], durations[-1] = max(each, first), max(each, last)
    write_bytes(path, _WRITERS[kind](images, durations))
    return path


def _check_picture(picture: Any) -> np.ndarray:
    if (
        not isinstance(picture, np.ndarray)
        or picture.dtype != np.uint8
        or picture.ndim != 3
        or picture.shape[2] != 3
    ):
        seen = (
            f"{picture.dtype} {picture.shape}"
            if isinstance(picture, np.ndarray)
            else type(picture).__name__
        )
        raise ConfigError(
            f"a picture is {seen}; it must be a uint8 array (H, W, 3), as `frames` yields."
        )
    return picture


def _webp(images: Sequence[Image.Image], durations: list[int]) -> bytes:
    return _encoded(
        images, "WEBP", {"duration": durations, "lossless": True, "quality": 90, "method": 4}
    )


def _gif(images: Sequence[Image.Image], durations: list[int]) -> bytes:
    palette = _palette([images[0], images[len(images) // 2], images[-1]])
    return _encoded(
        [_indexed(image, palette) for image in images],
        "GIF",
        {"duration": durations, "optimize": False, "disposal": 1},
    )


def _palette(images: Sequence[Image.Image]) -> np.ndarray:
    """The 256 most frequent colours (256, 3), as they are: mixing similar ones would turn white
    into grey and dull an arrow.
    """
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images])
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    return colors[np.argsort(-counts, kind="stable")[:256]]


def _indexed(image: Image.Image, palette: np.ndarray) -> Image.Image:
    """The image with each colour replaced by the nearest of the palette; Pillow's own search is not
    exact.
    """
    pixels = np.asarray(image)
    colors, place = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    nearest = np.asarray(
        KDTree(palette.astype(float)).query(colors.astype(float))[1], dtype=np.uint8
    )
    flat = Image.fromarray(nearest[place.ravel()].reshape(pixels.shape[:2]))
    flat.putpalette(palette.tobytes())
    return flat


def _encoded(images: Sequence[Image.Image], kind: str, settings: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], loop=0, **settings)
    return buffer.getvalue()


_WRITERS = {"webp": _webp, "gif": _gif}
