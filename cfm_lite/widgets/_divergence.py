"""What the weight λ does to the loss, to training and to samples as λK goes to 1, and what is lost
from there on.

Along the line from the mean negative (s = 0) through FM's velocity (s = 1) the loss is  |s - 1|^2 - λK s^2  in units of their
squared distance: a parabola with its minimum at s = 1 / (1 - λK), no minimum at λK = 1, and a hill beyond.
"""

import numpy as np
import torch

from cfm_lite import samplers
from cfm_lite.viz import artists
from cfm_lite.viz.style import ATTRACT, DATA, MODEL, REPEL, TRUTH, styled
from cfm_lite.widgets import scenes
from cfm_lite.widgets.explorer import Canvas, Explorer, choice, play_for, slider

__all__ = ["divergence"]

_S = np.linspace(-1, 9, 201)
_DESCENT = 200  # steps of gradient descent
_RATE = 0.05
_TOP = 100.0  # where the training panel ends


@styled
def divergence(weight: float = 0.05, k: int = 1, method: str = scenes.REPELLED[0][1]) -> Explorer:
    """Explore λ up to and beyond the bound λK = 1: the loss along a line, gradient descent on it,
    and the samples at the optimum.

    Left: the loss against the position s of the velocity; s = 0 is the mean negative, s = 1 is FM's
    velocity. Middle: s during gradient descent from 0. Right: where the exact paths of the
    two-class toy end.
    """
    limits = (-8.0, 8.0, -8.0, 8.0)
    figure, axes = artists.squares(1, 3, limits, side=2.6, gap=0.95, right=0.2, top=0.62)
    loss, descent, plane = axes[0]
    for panel, ylabel in (
        (loss, "loss, in units of $|v - \\bar{u}_{-}|^2$"),
        (descent, "position $s$"),
        (plane, "$b$"),
    ):
        panel.set(ylabel=ylabel)
        panel.tick_params(labelleft=True)
    for panel in (loss, descent):
        panel.set_aspect("auto")
        panel.grid(True)
    descent.set_title(r"Descent (dashed: $1/(1-\lambda K)$)", loc="left", fontsize=10.5, pad=8)
    loss.set(xlim=(-1, 9), ylim=(-12, 12), xlabel="position $s$ of the velocity")
    loss.set_xticks([0, 1, 3, 5, 7, 9])
    loss.plot(_S, (_S - 1) ** 2, color=ATTRACT, linewidth=1.3, linestyle="--")
    for s, color, text in ((0, REPEL, "$\\bar{u}_{-}$"), (1, ATTRACT, "$v$")):
        loss.plot([s], [-12], "^", color=color, markersize=9, clip_on=False, zorder=5)
        loss.annotate(
            text,
            (s, -12),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            color=color,
        )
    (curve,) = loss.plot(_S, _S, color=MODEL)
    (best,) = loss.plot([1], [0], "o", color=MODEL, markersize=8, markeredgecolor="white", zorder=5)
    verdict = loss.set_title("The loss", loc="left", fontsize=10.5, pad=8)
    descent.set(xlim=(0, _DESCENT), ylim=(0.01, _TOP), yscale="log", xlabel="gradient step")
    descent.set_xticks([0, 100, 200])
    (path,) = descent.plot([0], [1], color=MODEL)
    (level,) = descent.plot([0, _DESCENT], [1, 1], color=TRUTH, linestyle="--", linewidth=1.2)
    data, _ = scenes.two_classes().sample(600, generator=torch.Generator().manual_seed(0))
    artists.points(plane, data, color=DATA, size=4, alpha=0.6, zorder=1)
    x0, y = scenes.start(96, -1)
    ends = artists.points(
        plane, x0, color=MODEL, size=18, edgecolors="white", linewidths=0.5, zorder=4
    )
    plane.set_title("Where exact paths end", loc="left", fontsize=10.5, pad=8)
    lost = plane.text(
        0.5,
        0.93,
        "λK ≥ 1: no optimum",
        transform=plane.transAxes,
        ha="center",
        va="top",
        color=REPEL,
        fontsize=12,
    )

    def update(weight: float, k: int, method: str) -> str:
        total = weight * k
        curve.set_ydata((_S - 1) ** 2 - total * _S**2)
        optimum = 1 / (1 - total) if total < 1 else np.inf
        best.set_data([optimum], [-total / (1 - total) if total < 1 else 0])
        best.set_visible(optimum <= 9)
        verdict.set_text(f"The loss at λK = {total:.2f} (dashed: FM)")
        steps = _descend(total)
        path.set_data(np.arange(len(steps)), steps)
        level.set_ydata([optimum, optimum])
        level.set_visible(bool(np.isfinite(optimum)))
        lost.set_visible(total >= 1)
        ends.set_visible(total < 1)
        if total >= 1:
            return (
                f"λK = {total:.2f}: moving away from the negative always pays, the loss falls "
                "without end. The library refuses this weight."
            )
        moving = scenes.labelled(scenes.exact(scenes.two_classes(), method, total), y)
        states = samplers.sample(moving, x0, torch.linspace(0, 1, 33), samplers.euler)
        ends.set_offsets(states.numpy())
        away = _outside(states, limits)
        tail = f" {away} of {len(states)} particles end outside this picture." if away else ""
        return (
            f"λK = {total:.2f}: the optimum is stretched {optimum:.2f}-fold away from the "
            f"negative.{tail}"
        )

    controls = {
        "weight": slider(
            "weight λ",
            weight,
            0.0,
            1.2,
            0.01,
            tooltip="the weight of the repulsion; the papers use 0.05",
        ),
        "k": choice("negatives K per row", (1, 2, 4), k),
        "method": choice("method (right panel)", scenes.REPELLED, method),
    }
    canvas = Canvas(figure, [curve, best, verdict, path, level, ends, lost])
    rows = [["weight"], ["k", "method"]]
    return Explorer(
        canvas,
        controls,
        update,
        rows=rows,
        play=play_for(controls["weight"], frames=60),
        title="λ and divergence",
    )


def _descend(total: float) -> np.ndarray:
    """s during gradient descent on (s - 1)^2 - total s^2 from s = 0; it stops where the picture
    ends.
    """
    found, s = [0.0], 0.0
    for _ in range(_DESCENT):
        s -= _RATE * 2 * ((s - 1) - total * s)
        found.append(s)
        if s > _TOP:
            break
    return np.array(found)


def _outside(states: torch.Tensor, limits: artists.Limits) -> int:
    return int((states.abs() > limits[1]).any(1).sum())
