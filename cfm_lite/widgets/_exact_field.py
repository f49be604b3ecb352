"""The exact field of a mixture: what attracts, what repels and their sum, at any time, for any
class and any weight; nothing is trained.

v* = (v - weight u_neg) / (1 - weight) = v + weight / (1 - weight) (v - u_neg),   v = E[u_t | x_t, y] of FM
"""

from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap

from cfm_lite import theory
from cfm_lite.data import toy
from cfm_lite.methods import METHODS
from cfm_lite.viz import artists
from cfm_lite.viz.exact import SAYS
from cfm_lite.viz.style import ATTRACT, DATA, DATA_OTHER, MODEL, REPEL, styled
from cfm_lite.widgets.explorer import Canvas, Explorer, choice, play_for, slider
from cfm_lite.widgets.scenes import REPELLED

__all__ = ["exact_field"]

DENSITY = LinearSegmentedColormap.from_list(
    "cfm_density", ["#5aa5d200", "#5aa5d299"]
)  # laid over the points, so partly clear
EVERY = -1  # the class "all": no condition
_METHODS = tuple((f"{label}: {SAYS[name]}", name) for label, name in REPELLED)
_CELLS = 64  # of the density map


@styled
def exact_field(
    mixture: theory.GaussianMixture | None = None,
    *,
    n: int = 17,
    t: float = 0.5,
    weight: float = 0.35,
) -> Explorer:
    """Explore the closed-form field of a 2D `mixture` (default: the two-class toy): time, class,
    method and weight λ.

    Three planes on one scale of arrows: FM's velocity (green), the push away from the negatives
    (vermilion), and their sum (purple), where 99.5 % of the class is at time t. Blue shade: the
    exact density at t; dots: the data, at t = 1.
    """
    mixture = mixture or toy.mixture("two_classes")
    limits = _limits(mixture)
    figure, axes = artists.squares(1, 3, limits, side=2.4, gap=0.36, right=2.0, top=0.62)
    x = artists.grid_points(limits, n)
    fine = torch.as_tensor(artists.grid_points(limits, _CELLS))
    data, labels = mixture.sample(500, generator=torch.Generator().manual_seed(0))
    # one scale for every position of every slider, so that lengths compare: FM's longest arrow at t
    # = 0.5 spans 1.4 cells
    scale = artists.arrow_scale([_field(mixture, x, 0.5, EVERY, "fm", 0.0)], limits, n, longest=1.4)
    shades, quivers, titles, clouds = [], [], [], []
    for panel, color, title in zip(
        axes[0], (ATTRACT, REPEL, MODEL), ("Where to go: $v$", "Where not to go: the push", " ")
    ):
        look = {"origin": "lower", "extent": limits, "interpolation": "bilinear", "zorder": 1.2}
        shades.append(panel.imshow(np.zeros((_CELLS, _CELLS, 4), np.uint8), **look))
        clouds.append(artists.points(panel, data, color=DATA_OTHER, size=4, zorder=1))
        quivers.append(artists.arrows(panel, x, np.ones_like(x), color=color, scale=scale))
        titles.append(panel.set_title(title, loc="left", color=color, fontsize=10.5, pad=8))
    for panel, sign in zip(axes[0, :2], "+="):
        panel.text(
            1.065, 0.5, sign, transform=panel.transAxes, fontsize=20, ha="center", va="center"
        )
    artists.arrow_key(axes[0, -1], scale, 1.4 * scale * (limits[1] - limits[0]) / n, y=0.95)
    mean = np.asarray(mixture.mean())
    marks = [
        panel.plot(*mean, "X", color=REPEL, markeredgecolor="white", markersize=10, zorder=4)[0]
        for panel in axes[0, 1:]
    ]
    swaps = [
        panel.axline((0, 0), slope=1, color=REPEL, linestyle="--", linewidth=1.2, zorder=1.5)
        for panel in axes[0, 1:]
    ]
    entries = {
        "data, $t$ = 1": artists.legend_entry(DATA),
        "density at $t$": artists.legend_entry("#8fc1e0", "s", markersize=8),
        "mean of\nall data": artists.legend_entry(REPEL, "X", markersize=8),
        artists.DIAGONAL: artists.legend_entry(REPEL, "--"),
    }
    artists.side_legend(axes[0, -1], entries, top=0.8)

    colors = {
        label: [DATA if label in (EVERY, y) else DATA_OTHER for y in labels.tolist()]
        for label in (EVERY, *mixture.classes.tolist())
    }

    def update(t: float, weight: float, label: int, method: str) -> str:
        log_density = mixture.log_prob(
            fine, torch.full((len(fine),), t, dtype=fine.dtype), _labels(fine, label)
        ).numpy()
        shade_colors = DENSITY(
            np.exp(log_density - log_density.max()).reshape(_CELLS, _CELLS), bytes=True
        )
        at = mixture.log_prob(
            torch.as_tensor(x), torch.full((len(x),), t, dtype=torch.float64), _labels(x, label)
        ).numpy()
        inside = at >= artists.mass_levels(log_density, [0.995])[0]
        attract = _field(mixture, x, t, label, "fm", 0.0)
        result = _field(mixture, x, t, label, method, weight)
        fields = (attract, result - attract, result)
        for quiver, field in zip(quivers, fields):
            shown = np.where(inside[:, None], field, np.nan)
            quiver.set_UVC(shown[:, 0], shown[:, 1])
        for shade in shades:
            shade.set_data(shade_colors)
        if label != shown_label[0]:
            shown_label[0] = label
            for cloud in clouds:
                cloud.set_facecolor(colors[label])
            canvas.refresh()  # the points do not move: they are part of the background
        for (_, repelled), signs in zip(_METHODS, (marks, swaps)):
            for sign in signs:
                sign.set_visible(method == repelled)
        name = METHODS[method].label
        # one plain text: letters take as long to draw as the arrows, formulas several times that
        titles[2].set_text(f"{name}, λ = {weight:.2f}, t = {t:.2f}: both")
        lengths = [
            float(np.linalg.norm(field[inside], axis=1).mean()) for field in (attract, result)
        ]
        return (
            f"Mean speed where the class is: FM {lengths[0]:.2f}, {name} {lengths[1]:.2f} units of "
            "x per unit of t."
        )

    time = slider("time t (0 noise, 1 data)", t, 0.0, 0.99, 0.01, tooltip="0 is noise, 1 is data")
    names = [
        ("all classes", EVERY),
        *((f"class {label}", label) for label in mixture.classes.tolist()),
    ]
    controls = {
        "t": time,
        "weight": slider(
            "weight λ (0 is FM)",
            weight,
            0.0,
            0.6,
            0.01,
            tooltip="how strongly the field repels; at 1 the optimum is lost",
        ),
        "label": choice("class y", names, 0 if 0 in mixture.classes.tolist() else EVERY),
        "method": choice("method", _METHODS, _METHODS[0][1], width="430px"),
    }
    frames = [spine for panel in axes[0] for spine in panel.spines.values()]
    shown_label: list[int | None] = [None]
    canvas = Canvas(figure, [*shades, *quivers, titles[2], *marks, *swaps, *frames])
    rows = [["t", "weight"], ["label", "method"]]
    return Explorer(
        canvas,
        controls,
        update,
        rows=rows,
        play=play_for(time),
        title="Exact field: attraction, repulsion and their sum",
    )


def _limits(mixture: theory.GaussianMixture) -> artists.Limits:
    data, _ = mixture.sample(2000, generator=torch.Generator().manual_seed(0))
    return artists.square_limits(data, [[-2.0, -2.0], [2.0, 2.0]], margin=0.02)


def _labels(x: Any, label: int) -> torch.Tensor | None:
    return None if label == EVERY else torch.full((len(x),), label)


def _field(
    mixture: theory.GaussianMixture, x: np.ndarray, t: float, label: int, method: str, weight: float
) -> np.ndarray:
    place = torch.as_tensor(x)
    times = torch.full((len(x),), float(t), dtype=place.dtype)
    return theory.optimal_velocity(
        mixture, place, times, _labels(x, label), method=method, weight=weight
    ).numpy()
