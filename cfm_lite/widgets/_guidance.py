"""Guidance on repelled fields: how classifier-free guidance and ΔFM or VeCoR add up, and what the
correction undoes.

guided = u + scale (c - u),   c the velocity of a class, u that of all data; the correction maps c and u back to FM's first
"""

from typing import Any

import ipywidgets
import torch
from torch import Tensor

from cfm_lite import guidance as guiding
from cfm_lite import samplers
from cfm_lite.viz import artists
from cfm_lite.viz.style import DATA, method_style, styled
from cfm_lite.widgets import scenes
from cfm_lite.widgets.explorer import Canvas, Explorer, choice, play_for, slider

__all__ = ["guidance"]

PARTICLES = 64
STEPS = 20
_REPELLED = tuple((text, name) for text, name in scenes.FIELDS if name.removeprefix("toy_") != "fm")


@styled
def guidance(
    scale: float = 2.0, method: str = _REPELLED[0][1], label: int = 0, correct: bool = False
) -> Explorer:
    """Explore guidance: its scale, the interval of t in which it acts, the field, the class, and
    the correction on or off.

    Left FM, right the repelled field (λ = 0.35), both with the same guidance and from the same
    noise (20 Euler steps); black contours hold 50 % and 95 % of the class. With the correction, the
    exact repelled field gives FM's paths again inside the interval.
    """
    limits = (-4.0, 4.0, -4.0, 4.0)
    figure, axes = artists.squares(1, 2, limits, side=3.4, gap=0.4, right=1.1, top=0.62)
    data, labels = scenes.two_classes().sample(500, generator=torch.Generator().manual_seed(0))
    moving, rings, lines, ends, titles = [], [], [], [], []
    start = scenes.start(PARTICLES, 0)[0].double()
    for panel in axes[0]:
        moving.append(artists.points(panel, data, color=DATA, size=4, zorder=1))
        rings.append(
            [artists.contours(panel, scenes.density(value, limits), limits) for value in (0, 1)]
        )
        lines.append(artists.paths(panel, torch.stack([start, start]), [0.0, 1.0]))
        moving.append(panel.collections[-1])
        ends.append(
            artists.points(panel, start, size=24, edgecolors="white", linewidths=0.6, zorder=4)
        )
        titles.append(panel.set_title(" ", loc="left", fontsize=10.5, pad=8))
    ends[0].set_facecolor(method_style("fm").color)
    artists.color_bar(
        figure, lines[1], axes[0, 1], "time $t$ along a path", ticks=[0, 0.25, 0.5, 0.75, 1]
    )
    ts = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)

    def update(
        scale: float, interval: tuple[float, float], method: str, label: int, correct: bool
    ) -> str:
        y = torch.full((PARTICLES,), label)
        runs = {}
        for place, name in enumerate(("fm", method)):
            velocity = _guided(name, y, scale, interval, correct and name == method)
            x0 = start.float() if name.startswith("toy_") else start
            states = torch.stack(
                list(samplers.trajectory(velocity, x0, ts.to(x0), samplers.euler))
            ).double()
            runs[name] = float((scenes.excess(states[-1:], ts[-1:], y)[0] < scenes.inside()).mean())
            segments = torch.stack([states[:-1], states[1:]], dim=2).reshape(-1, 2, 2).numpy()
            lines[place].set_segments(segments)
            lines[place].set_array(((ts[:-1] + ts[1:]) / 2).repeat_interleave(PARTICLES).numpy())
            ends[place].set_offsets(states[-1].numpy())
        ends[1].set_facecolor(method_style(method.removeprefix("toy_")).color)
        for cloud in moving[::2]:
            cloud.set_facecolor(scenes.cloud_colors(label, labels))
        for pair in rings:
            for value, ring in enumerate(pair):
                ring.set_visible(value == label)
        name = dict((value, text) for text, value in _REPELLED)[method]
        titles[0].set_text(f"FM, exact, guidance {scale:.1f}")
        titles[1].set_text(f"{name}, guidance {scale:.1f}" + (", corrected" if correct else ""))
        told = f"On the data of class {label}: FM {runs['fm']:.0%}, {name}{' corrected' if correct else ''} {runs[method]:.0%}."
        return told + (" A scale of 1 is no guidance." if scale == 1 else "")

    look: dict[str, Any] = {
        "style": {"description_width": "150px"},
        "layout": {"width": "390px"},
        "description": "acts for t in",
    }
    tooltip = "guidance and correction act inside this interval of t"
    interval = ipywidgets.FloatRangeSlider(
        value=(0.0, 1.0), min=0.0, max=1.0, step=0.05, tooltip=tooltip, **look
    )
    tick = ipywidgets.Checkbox(
        value=correct, description="correct the interference (debias)", indent=False
    )
    tick.tooltip = "maps the field back to FM's inside the interval"
    controls = {
        "scale": slider(
            "scale (1 is none)",
            scale,
            0.0,
            6.0,
            0.1,
            fmt=".1f",
            tooltip="0 is no class at all, 1 is no guidance",
        ),
        "interval": interval,
        "method": choice("field (right)", _REPELLED, method),
        "label": choice("class y", scenes.LABELS[1:], label),
        "correct": tick,
    }
    canvas = Canvas(
        figure, [*moving, *(ring for pair in rings for ring in pair), *lines, *ends, *titles]
    )
    rows = [["scale", "interval"], ["method", "label", "correct"]]
    return Explorer(
        canvas,
        controls,
        update,
        rows=rows,
        play=play_for(controls["scale"]),
        title="Guidance and repulsion",
    )


def _guided(
    name: str, y: Tensor, scale: float, interval: tuple[float, float], correct: bool
) -> guiding.Velocity:
    field = scenes.field(name)
    velocity = guiding.guide(
        scenes.labelled(field, y), lambda x, t: field(x, t, None), scale, interval
    )
    if not correct:
        return velocity
    if name.endswith("vecor"):
        return guiding.debias_shuffle(velocity, scenes.WEIGHT, interval=interval)
    mean = scenes.two_classes().mean()
    return guiding.debias(
        velocity, scenes.WEIGHT, mean.float() if name.startswith("toy_") else mean, interval
    )
