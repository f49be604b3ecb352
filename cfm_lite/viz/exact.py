"""The picture that the project is about: where to go, where not to go, and what comes of the two.
No training, closed forms only.

On a Gaussian mixture the optimum is

    v* = (v - weight u_neg) / (1 - weight) = v + weight / (1 - weight) (v - u_neg)

The first three panels add the two fields up at one time. The last one follows the sum from noise to
the data, and shows where FM ends from the same noise.
"""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from cfm_lite import samplers, theory
from cfm_lite._internal.checks import check_choice, check_count, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, Path
from cfm_lite.viz import artists
from cfm_lite.viz.style import (
    ATTRACT,
    DATA,
    DATA_OTHER,
    MODEL,
    REPEL,
    TRUTH,
    Picture,
    as_array,
    method_style,
    styled,
)

__all__ = ["fields_figure"]

ENDS = theory.EXACT[:2]  # FM and ΔFM


@dataclass(frozen=True)
class _Case:
    """One class of a mixture, and the objective's settings."""

    mixture: theory.GaussianMixture
    label: int
    weight: float
    path: Path

    def labels(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.label)

    def log_prob(self, x: Tensor, t: float = 1.0) -> Tensor:
        return self.mixture.log_prob(
            x, torch.full((len(x),), t, dtype=x.dtype), self.labels(x), self.path
        )

    def velocity(self, method: str) -> artists.Velocity:
        settings = {"method": method, "weight": self.weight, "path": self.path}
        return lambda x, t: theory.optimal_velocity(self.mixture, x, t, self.labels(x), **settings)


@dataclass(frozen=True)
class _Scene:
    """All that is drawn, as arrays that were computed once."""

    case: _Case
    data: np.ndarray  # (N, 2)
    mine: np.ndarray  # (N,) bool: of the class in question
    states: dict[str, np.ndarray]  # method -> (S, B, 2)
    limits: artists.Limits
    log_density: np.ndarray  # (n, n) of the class at t = 1, on a grid over the limits


def _check_mixture(mixture: theory.GaussianMixture, label: int) -> None:
    dim = mixture.means.shape[1] if isinstance(mixture, theory.GaussianMixture) else None
    if dim != 2:
        seen = type(mixture).__name__ if dim is None else f"a mixture in {dim} dimensions"
        raise ConfigError(
            f"mixture is {seen}; this figure draws a theory.GaussianMixture in 2 dimensions."
        )
    check_choice("label", str(label), map(str, sorted(set(mixture.labels.tolist()))))


@torch.no_grad()
def _compute(case: _Case, paths: int, shown: int, steps: int, seed: int) -> _Scene:
    generator = torch.Generator().manual_seed(seed)
    data, labels = case.mixture.sample(1400, generator=generator)
    x0 = torch.randn(paths, 2, generator=generator, dtype=torch.float32).to(data)
    ts = torch.linspace(0, 1, steps + 1, dtype=data.dtype)
    states = {
        m: as_array(m, torch.stack(list(samplers.trajectory(case.velocity(m), x0, ts))))
        for m in ENDS
    }
    limits = artists.square_limits(
        data, *(s[[0, -1], :shown] for s in states.values()), margin=0.02
    )
    return _Scene(
        case,
        as_array("data", data),
        labels.numpy() == case.label,
        states,
        limits,
        artists.density_map(case.log_prob, limits),
    )


@styled
def fields_figure(
    mixture: theory.GaussianMixture,
    *,
    label: int = 0,
    weight: float = 0.35,
    t: float = 0.55,
    n: int = 18,
    paths: int = 512,
    shown: int = 60,
    steps: int = 64,
    seed: int = 0,
    path: Path = LINEAR,
) -> Picture:
    """FM, what repels and their sum ΔFM as arrows at time `t`, and where the paths of ΔFM end, for
    one class `label` of a 2D `mixture`.

    `weight` in [0, 1) is the objective's λ, `n` the arrows per side, drawn where 99.5 % of the
    class is at `t` in (0, 1). Of `paths` Heun paths of `steps` steps, which give the percentages,
    `shown` are drawn. Raises ConfigError for values outside these ranges, for a mixture that is not
    2D and for a label that it does not have.

    >>> from cfm_lite.data.toy import mixture
    >>> figure = fields_figure(mixture("two_classes"), n=6, paths=8, shown=8, steps=4)
    >>> [axes.get_title(loc="left") for axes in figure.axes][:2]
    ['Where to go', '+ where not to go']
    """
    _check_mixture(mixture, label)
    check_number("weight", weight, 0, 1, open_high=True)
    check_number("t", t, 0, 1, open_low=True, open_high=True)
    check_count("n", n, 2)
    shown = min(check_count("shown", shown), check_count("paths", paths))
    scene = _compute(
        _Case(mixture, label, weight, path),
        paths,
        shown,
        check_count("steps", steps),
        check_count("seed", seed, 0),
    )
    figure, axes = artists.squares(
        2, 2, scene.limits, side=_SIDE, gap=0.42, rise=_SIDE + 0.9, right=2.0, top=0.95
    )
    _draw_fields(axes.flat[:3], scene, t, n)
    lines = _draw_paths(axes[1, 1], scene, shown)
    _legend(axes[0, 1], label)
    artists.color_bar(
        figure, lines, axes[1, 1], "time $t$ along a path", ticks=[0, 0.25, 0.5, 0.75, 1]
    )
    title = f"The exact optimum for class {label}, λ = {weight:g}"
    figure.suptitle(title, x=axes[0, 0].get_position().x0, y=0.985, ha="left")
    return figure


def _draw_fields(panels: np.ndarray, scene: _Scene, t: float, n: int) -> None:
    case, x = scene.case, _where_the_class_is(scene, t, n)
    attract, result = (artists.evaluate(case.velocity(m), x, t) for m in ENDS)
    push = result - attract  # weight / (1 - weight) (v - u_neg)
    scale = artists.arrow_scale([attract, push, result], scene.limits, n)
    away = r"away from the mean: $\lambda\,(v - \bar{u}_{-})\,/\,(1-\lambda)$"
    both = r"ΔFM: $v^* = (v - \lambda\,\bar{u}_{-})\,/\,(1-\lambda)$"
    rows = (
        (attract, ATTRACT, "Where to go", f"FM's velocity $v$ at $t$ = {t:g}"),
        (push, REPEL, "+ where not to go", away),
        (result, MODEL, "= both together", both),
    )
    for panel, (field, color, title, formula) in zip(panels, rows):
        _draw_stage(panel, scene, title, formula, color)
        artists.arrows(panel, x, field, color=color, scale=scale)
    artists.arrow_key(panels[1], scale, float(np.linalg.norm(result, axis=1).max()))


def _where_the_class_is(scene: _Scene, t: float, n: int) -> np.ndarray:
    """The grid points that hold 99.5 % of the class at time t: elsewhere no path ever asks for a
    velocity.
    """
    x = artists.grid_points(scene.limits, n)
    return x[artists.likely(as_array("log density", scene.case.log_prob(torch.as_tensor(x), t)))]


def _draw_stage(panel: Axes, scene: _Scene, title: str, subtitle: str, color: str = TRUTH) -> None:
    """The data, the exact density and the mean."""
    panel.set_title(title, color=color, loc="left", weight="bold", pad=21, fontsize=12)
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 10}
    panel.annotate(subtitle, (0, 1), (0, 6), color=color, **above)
    artists.points(panel, scene.data[~scene.mine], color=DATA_OTHER, size=5, zorder=1)
    artists.points(panel, scene.data[scene.mine], color=DATA, size=5, alpha=0.45, zorder=1)
    panel.plot(*scene.data.mean(0), color=REPEL, **_CROSS, zorder=5)
    artists.contours(panel, scene.log_density, scene.limits)


def _draw_paths(panel: Axes, scene: _Scene, shown: int) -> LineCollection:
    lowest = artists.mass_levels(scene.log_density, [0.95])[0]  # the outer contour's
    ends = {m: states[-1] for m, states in scene.states.items()}
    inside = {
        m: float((scene.case.log_prob(torch.as_tensor(x)) >= lowest).double().mean())
        for m, x in ends.items()
    }
    landed = ", ".join(f"{method_style(m).label}: {100 * inside[m]:.0f} %" for m in ENDS)
    _draw_stage(panel, scene, "Where its paths end", f"on the data, {landed}")
    for m in ENDS:
        artists.points(
            panel, ends[m][:shown], color=method_style(m).colour, size=26, rim=0.6, zorder=4
        )
    states = scene.states[ENDS[1]]
    return artists.paths(panel, states[:, :shown], np.linspace(0, 1, len(states)))


_SIDE = 2.75  # inches
_CROSS = {"marker": "X", "markeredgecolor": "white", "markersize": 11, "linestyle": "none"}


def _legend(panel: Axes, label: int) -> None:
    entry = artists.legend_entry
    entries = {
        f"data of class {label}\n(pale: the others)": entry(DATA),
        "50 % and 95 % of\nthe class lie inside": entry(TRUTH, "-"),
        "mean of all data,\nΔFM's negative $\\bar{u}_{-}$": entry(REPEL, **_CROSS),
        "ends of paths:\nFM, ΔFM": entry([method_style(m).colour for m in ENDS]),
    }
    artists.side_legend(panel, entries, top=0.85)
