"""Particles through an exact or a trained field: how steps, solver and training let them drift off
the data.

Drift of a state, in nats: -log p_t(x | y), less what it is on average for exact draws at the same
time. 0 is typical.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap

from cfm_lite import samplers
from cfm_lite.viz import artists
from cfm_lite.viz.style import DATA, MODEL, NOISE, TRUTH, method_style, styled
from cfm_lite.widgets import scenes
from cfm_lite.widgets.explorer import Canvas, Explorer, choice, play_for, slider

__all__ = ["trajectories"]

PARTICLES = 72
DRIFT = LinearSegmentedColormap.from_list(
    "cfm_drift", colormaps["magma_r"](np.linspace(0.16, 0.95, 64))
)  # visible on white from 0 on
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_WORST = 10.0  # nats at which the colours end


class _Run(NamedTuple):
    ts: np.ndarray  # (S,)
    states: np.ndarray  # (S, B, 2)
    drift: np.ndarray  # (S, B) in nats


@functools.lru_cache(maxsize=256)
@torch.no_grad()
def _run(name: str, solver: str, steps: int, label: int) -> _Run:
    x0, y = scenes.start(PARTICLES, label)
    ts = torch.linspace(0, 1, steps + 1)
    moving = scenes.labelled(scenes.field(name), y)
    states = torch.stack(list(samplers.trajectory(moving, x0, ts, scenes.STEPS[solver])))
    return _Run(ts.numpy(), states.double().numpy(), scenes.excess(states.double(), ts.double(), y))


@styled
def trajectories(
    field: str = "fm", solver: str = "euler", steps: int = 8, label: int = 0
) -> Explorer:
    """Explore paths of the two-class toy: the field (exact or trained), solver, number of steps,
    class, and time t with a play button.

    Left: the same 72 particles, coloured by their drift; black contours hold 50 % and 95 % of the
    data. Right: the mean drift along the paths, in nats above typical. The networks were trained
    with λ = 0.35, and the exact fields have that λ.
    """
    data, labels = scenes.two_classes().sample(600, generator=torch.Generator().manual_seed(0))
    limits = (-4.0, 4.0, -4.0, 4.0)
    figure, axes = artists.squares(1, 2, limits, side=3.3, gap=2.3, right=0.3, top=0.62)
    plane, curve = axes[0]
    cloud = artists.points(plane, data, color=DATA, size=4, alpha=0.5, zorder=1)
    rings = {
        value: artists.contours(plane, scenes.density(value, limits), limits)
        for _, value in scenes.LABELS
    }
    lines = artists.paths(plane, np.zeros((2, PARTICLES, 2)), np.zeros(2), high=_WORST, cmap=DRIFT)
    starts = plane.collections[-1]  # the grey points that `paths` drew
    starts.set_offsets(scenes.start(PARTICLES, 0)[0].numpy())
    ends = artists.points(
        plane,
        np.zeros((PARTICLES, 2)),
        color=MODEL,
        size=24,
        edgecolors="white",
        linewidths=0.6,
        zorder=4,
    )
    title = plane.set_title(" ", loc="left", fontsize=10.5, pad=8)
    artists.color_bar(
        figure, lines, plane, "drift, nats above typical", extend="both", ticks=[0, 2, 4, 6, 8, 10]
    )
    curve.set_aspect("auto")
    curve.set(
        xlim=(0, 1),
        xlabel="time $t$",
        ylabel="mean drift, nats above typical",
        yscale="symlog",
        ylim=(-2, 200),
    )
    curve.set_xticks([0, 0.25, 0.5, 0.75, 1])
    curve.set_yticks([-1, 0, 1, 10, 100], ["−1", "0", "1", "10", "100"])
    curve.minorticks_off()
    curve.tick_params(labelleft=True)
    curve.grid(True)
    curve.axhline(0, color=TRUTH, linewidth=1.2)
    curve.text(0.02, -0.15, "0: typical", color=TRUTH, fontsize=9, va="top")
    curve.set_title("How improbable the states are", loc="left", fontsize=10.5, pad=8)
    (line,) = curve.plot([0], [0], color=MODEL, marker="o", markersize=4)
    (now,) = curve.plot([0, 0], [-2, 200], color=NOISE, linewidth=1, linestyle="--")

    def update(field: str, solver: str, steps: int, label: int, t: float) -> str:
        run = _run(field, solver, steps, label)
        shown = _until(run, t)
        segments = np.stack([shown.states[:-1], shown.states[1:]], axis=2)
        lines.set_segments(list(segments.reshape(-1, 2, 2)))
        lines.set_array(((shown.drift[:-1] + shown.drift[1:]) / 2).ravel())
        color = method_style(field.removeprefix("toy_")).color
        ends.set_offsets(shown.states[-1])
        ends.set_facecolor(color)
        line.set_data(run.ts, run.drift.mean(1))
        line.set_color(color)
        now.set_xdata([t, t])
        for value, ring in rings.items():
            ring.set_visible(value == label)
        cloud.set_facecolor(scenes.cloud_colors(label, labels))
        name = dict((value, text) for text, value in scenes.FIELDS)[field]
        calls = samplers.evaluations(solver, steps).nfe
        title.set_text(f"{name}, {solver}, {steps} step{'s' if steps > 1 else ''}, t = {t:.2f}")
        on_data = float((run.drift[-1] < scenes.inside()).mean())
        drift = run.drift[-1].mean()
        return (
            f"{calls} network evaluations per particle. At t = 1, {on_data:.0%} are on the data; "
            f"the mean drift is {drift:.2f} nats."
        )

    time = slider(
        "time t (0 noise, 1 data)", 1.0, 0.0, 1.0, 0.01, tooltip="how far the particles have come"
    )
    controls = {
        "field": choice("field", scenes.FIELDS, field),
        "label": choice("class y", scenes.LABELS, label),
        "solver": choice("solver", list(scenes.STEPS), solver),
        "steps": choice("steps", _STEPS, steps, tooltip="steps of the solver from t = 0 to t = 1"),
        "t": time,
    }
    canvas = Canvas(figure, [cloud, *rings.values(), lines, starts, ends, title, line, now])
    rows = [["t"], ["field", "label"], ["solver", "steps"]]
    return Explorer(
        canvas,
        controls,
        update,
        rows=rows,
        play=play_for(time),
        title="Trajectories and their drift",
    )


def _until(run: _Run, t: float) -> _Run:
    """The run up to time `t`, with its last state interpolated along the step."""
    ts = np.append(run.ts[run.ts < t], t) if t > 0 else np.array([0.0, 0.0])
    flat = np.concatenate([run.states.reshape(len(run.ts), -1), run.drift], axis=1)  # (S, 3 B)
    spot = np.clip(np.searchsorted(run.ts, ts, side="right") - 1, 0, len(run.ts) - 2)
    share = ((ts - run.ts[spot]) / (run.ts[spot + 1] - run.ts[spot]))[:, None]
    mixed = (1 - share) * flat[spot] + share * flat[spot + 1]
    size = run.drift.shape[1]
    return _Run(ts, mixed[:, : 2 * size].reshape(-1, size, 2), mixed[:, 2 * size :])
