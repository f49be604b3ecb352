"""What every slide figure shares: larger letters, one way to draw squares, and where pictures and
numbers are kept.

A figure is a function decorated with `@figure("name")` that returns a Picture; it becomes
slides/img/name.svg or .png. What it measures goes through `record` and ends as rows in
data/results/slides.json, from where the slides take their numbers.
"""

import functools
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from cfm_lite import samplers, theory, viz
from cfm_lite.data import toy
from cfm_lite.draws import keyed_generator
from cfm_lite.viz import artists
from cfm_lite.viz.style import to_bytes

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data" / "results"
IMAGES = ROOT / "slides" / "img"
# Inches: the width of a slide's text, and of a picture beside text. On both, and up to the heights
# that a slide has room for, 14 points read as 24 pixels of 720: 18 points on a slide of 7.5 inches.
WIDE, HIGH = 9.2, 3.65
HALF = (5.2, 4.2)
BIG = {
    "font.size": 14,
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
    "legend.fontsize": 13.5,
}

TWO = toy.mixture("two_classes")
LIMITS = (-3.5, 3.5, -3.5, 3.5)

FIGURES: dict[str, Callable[[], viz.Picture]] = {}
ROWS: list[dict[str, Any]] = []


def figure(name: str) -> Callable[[Callable[[], viz.Picture]], Callable[[], viz.Picture]]:
    """Register a figure under `name`, and draw it with letters that can be read from the back row."""

    def register(build: Callable[[], viz.Picture]) -> Callable[[], viz.Picture]:
        @functools.wraps(build)
        def inside() -> viz.Picture:
            with style.context(["default", dict(viz.STYLE) | BIG]):
                return build()

        FIGURES[name] = inside
        return inside

    return register


def record(metric: str, method: str, value: float | Tensor, **place: Any) -> float:
    """Keep a number for the slides as a row of data/results/slides.json, and give it back."""
    base = {
        "method": method,
        "dataset": "two_classes",
        "seed": 0,
        "steps": 0,
        "nfe": None,
        "sampler": None,
    }
    ROWS.append({**base, **place, "metric": metric, "value": float(value)})
    return float(value)


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a committed result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def noise(n: int, key: str = "slides") -> Tensor:
    return torch.randn(n, 2, generator=keyed_generator("cpu", 0, key), dtype=torch.float64)


def exact(
    method: str = "fm",
    weight: float = 0.35,
    label: int | None = 0,
    mixture: theory.GaussianMixture = TWO,
) -> viz.Velocity:
    """The closed-form optimum of `method` for one class, or with label None for all data."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        y = None if label is None else torch.full((len(x),), label)
        return theory.optimal_velocity(mixture, x, t, y, method=method, weight=weight)

    return velocity


def run(
    velocity: viz.Velocity, x0: Tensor, steps: int = 64, step: samplers.Step = samplers.heun
) -> np.ndarray:
    """All states (steps + 1, B, 2) from noise to data."""
    ts = torch.linspace(0, 1, steps + 1, dtype=x0.dtype)
    with torch.no_grad():
        return (
            torch.stack([state.detach() for state in samplers.trajectory(velocity, x0, ts, step)])
            .double()
            .numpy()
        )


def log_density(
    label: int | None = 0, t: float = 1.0, mixture: theory.GaussianMixture = TWO
) -> viz.Density:
    def density(x: Tensor) -> Tensor:
        y = None if label is None else torch.full((len(x),), label)
        return mixture.log_prob(x, torch.full((len(x),), t, dtype=x.dtype), y)

    return density


@functools.cache
def level(label: int | None = 0) -> float:
    """The log density whose super-level set holds 95 % of the class."""
    return artists.mass_levels(artists.density_map(log_density(label), LIMITS), [0.95])[0]


def inside(ends: np.ndarray, label: int | None = 0) -> float:
    """The share of points (B, 2) where 95 % of the class lies."""
    return float((log_density(label)(torch.as_tensor(ends)) >= level(label)).double().mean())


def squares(
    titles: Sequence[str],
    limits: viz.Limits = LIMITS,
    *,
    colors: Sequence[str] = (),
    side: float = 0.0,
    right: float = 0.1,
    top: float = 0.42,
) -> tuple[viz.Picture, list[Axes]]:
    """A row of squares as wide as a slide; `right` inches stay free for a legend or a colour bar."""
    gap = 0.28
    side = side or min((WIDE - 0.65 - right - gap * (len(titles) - 1)) / len(titles), 3.45)
    picture, axes = artists.squares(
        1, len(titles), limits, side=side, gap=gap, right=right, top=top, bottom=0.62
    )
    for i, (panel, title) in enumerate(zip(axes[0], titles)):
        color = colors[i] if colors else viz.TRUTH
        panel.set_title(
            title,
            loc="left",
            fontsize=13,
            color=color,
            weight="bold" if colors else "normal",
            pad=7,
        )
        panel.tick_params(labelsize=13)
        panel.xaxis.label.set_size(14)
        panel.yaxis.label.set_size(14)
    return picture, list(axes[0])


def data_behind(panels: Sequence[Axes], label: int | None = 0, n: int = 320) -> None:
    """The data's points and the contours of one class, in every panel."""
    x, y = TWO.sample(n, generator=keyed_generator("cpu", 0, "slides data"))
    lines = artists.density_map(log_density(label), LIMITS)
    for panel in panels:
        mine = np.ones(n, bool) if label is None else (y == label).numpy()
        artists.points(
            panel,
            x[~torch.as_tensor(mine)] if not mine.all() else x[:1],
            color=viz.DATA_OTHER,
            size=6,
            zorder=1,
        )
        artists.points(
            panel, x[torch.as_tensor(mine)], color=viz.DATA, size=6, alpha=0.45, zorder=1
        )
        artists.contours(panel, lines, LIMITS)


def ends(
    panel: Axes, states: np.ndarray, color: str, shown: int = 60, lines: bool = True
) -> LineCollection | None:
    """Paths coloured by time and their ends in `color`."""
    drawn = (
        artists.paths(panel, states[:, :shown], np.linspace(0, 1, len(states))) if lines else None
    )
    artists.points(
        panel,
        states[-1, :shown],
        color=color,
        size=30,
        rim=0.6,
        zorder=4,
    )
    return drawn


def legend(
    picture: viz.Picture, entries: dict[str, Any], x: float, y: float, **kwargs: Any
) -> None:
    """A legend at figure coordinates (x, y), its upper left corner."""
    look = {"frameon": False, "borderaxespad": 0, "labelspacing": 0.7, "handlelength": 1.6} | kwargs
    picture.legend(
        list(entries.values()), list(entries), loc="upper left", bbox_to_anchor=(x, y), **look
    )


def enlarged(picture: viz.Picture, factor: float = 1.25) -> viz.Picture:
    """A figure of the library, made for a page, with letters for the back row."""
    for text in picture.findobj(Text):
        text.set_fontsize(factor * text.get_fontsize())
    picture.set_size_inches(1.12 * picture.get_figwidth(), picture.get_figheight())
    return picture


def heavy(picture: viz.Picture) -> bool:
    """Whether a figure has so many parts, or pixels, that it is smaller as a PNG than as an SVG."""
    lines = [path for artist in picture.findobj(LineCollection) for path in artist.get_paths()]
    corners = sum(len(path.vertices) for path in lines)
    dots = sum(len(artist.get_offsets()) for artist in picture.findobj(PathCollection))
    return len(lines) > 1000 or corners > 8000 or dots > 1100 or bool(picture.findobj(AxesImage))


def png(picture: viz.Picture) -> bytes:
    """The figure in 256 colours: sharp on a wide screen, a third of the size. Photographs need
    fewer pixels than thin lines.
    """
    dpi = 110 if len(picture.findobj(AxesImage)) > 4 else 150
    image = (
        Image.open(io.BytesIO(viz.to_png(picture, dpi=dpi)))
        .convert("RGB")
        .quantize(256, dither=Image.Dither.NONE)
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def svg(picture: viz.Picture) -> str:
    """The figure with coordinates to a hundredth of a point and without line breaks, which nobody
    sees: half the size.
    """
    text = to_bytes(picture, "svg").decode()
    text = re.sub(
        r'(?<= [dxy]=")[^"]+',
        lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]).replace(" \n", "\n"),
        text,
    )
    return re.sub(r">\s+<", "><", text) + "\n"


def write(names: Sequence[str] = ()) -> None:
    """Draw the figures `names` (default: all of them), each as one file, .svg or .png."""
    for name in names or FIGURES:
        picture = FIGURES[name]()
        for old in IMAGES.glob(f"{name}.*"):
            old.unlink()
        if heavy(picture):
            (IMAGES / f"{name}.png").write_bytes(png(picture))
        else:
            (IMAGES / f"{name}.svg").write_text(svg(picture), encoding="utf-8")
