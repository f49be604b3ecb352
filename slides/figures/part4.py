"""Sampling: how many steps, which solver, how far paths drift, and how guidance and repulsion meet."""

from typing import Any

import numpy as np
import torch

from cfm_lite import guidance, metrics, paths, pretrained, samplers, viz
from cfm_lite import lab as experiments
from cfm_lite.draws import keyed_generator
from cfm_lite.viz import artists
from slides.figures.common import (
    HALF,
    TWO,
    WIDE,
    data_behind,
    ends,
    enlarged,
    exact,
    figure,
    inside,
    legend,
    noise,
    record,
    rows,
    run,
    squares,
)

ENTRY = artists.legend_entry
WEIGHT = 0.35


@figure("euler_steps")
def euler_steps() -> viz.Picture:
    x0, counts = noise(2000, "euler"), (2, 4, 8, 64)
    states = {n: run(exact(), x0, n, samplers.euler) for n in counts}
    shares = {
        n: record("inside", "fm", inside(s[-1]), nfe=n, sampler="euler") for n, s in states.items()
    }
    picture, panels = squares([f"{n} steps: {share:.0%}" for n, share in shares.items()])
    data_behind(panels)
    for panel, s in zip(panels, states.values()):
        ends(panel, s, viz.ATTRACT, 40)
    return picture


@figure("solver_order")
def solver_order() -> viz.Picture:
    solvers = {
        "Euler": (samplers.euler, 1, "o"),
        "midpoint": (samplers.midpoint, 2, "v"),
        "Heun": (samplers.heun, 2, "s"),
        "RK4": (samplers.rk4, 4, "D"),
    }
    colors = ("#3b3b8f", "#2a788e", "#35b779", "#b8a200")
    x0 = noise(256, "order")
    truth = run(exact(), x0, 400, samplers.rk4)[-1]
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    for (name, (step, calls, mark)), color in zip(solvers.items(), colors):
        counts = [n for n in (4, 8, 16, 32, 64, 128) if n * calls <= 256]
        errors = [
            np.sqrt(((run(exact(), x0, n, step)[-1] - truth) ** 2).sum(1).mean()) for n in counts
        ]
        order = -np.polyfit(np.log(counts[-3:]), np.log(errors[-3:]), 1)[0]
        record("solver_order", "fm", order, sampler=name.lower())
        panel.plot(
            [n * calls for n in counts],
            errors,
            color=color,
            marker=mark,
            markersize=8,
            linewidth=2.6,
            label=f"{name}: order {order:.1f}",
        )
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="network evaluations per sample",
        ylabel="error of the end point",
    )
    panel.set_xticks([4, 8, 16, 32, 64, 128, 256], ["4", "8", "16", "32", "64", "128", "256"])
    panel.minorticks_off()
    picture.legend(loc="outside upper left", ncols=2)
    return picture


@figure("drift")
def drift() -> viz.Picture:
    x0 = noise(2000, "drift")
    y = torch.arange(len(x0)) % 2
    network = guidance.conditional(pretrained.load("toy_fm"), y)
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    shades = {4: "#c9b3dc", 8: "#9f75c4", 50: viz.MODEL}
    for count, color in shades.items():
        states = run(network, x0.float(), count, samplers.euler)
        ts = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        values = metrics.drift_by_time(
            torch.as_tensor(states), TWO, ts, generator=keyed_generator("cpu", 0, "drift")
        )
        panel.plot(
            ts,
            values,
            color=color,
            marker="o",
            markersize=5 if count < 50 else 0,
            linewidth=3,
            label=f"{count} Euler steps",
        )
        record("drift", "fm", values.mean(), nfe=count, sampler="euler", steps=2000)
    states = run(exact_both(y), x0, 50)
    values = metrics.drift_by_time(
        torch.as_tensor(states), TWO, generator=keyed_generator("cpu", 0, "drift")
    )
    panel.plot(
        np.linspace(0, 1, 51),
        values,
        color=viz.TRUTH,
        linestyle="--",
        linewidth=2,
        label="exact, 50 Heun steps",
    )
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.set(xlabel="time $t$", ylabel="drift, nats", xlim=(0, 1))
    picture.legend(loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.2)
    return picture


def exact_both(y: torch.Tensor) -> viz.Velocity:
    return lambda x, t: TWO.velocity(x, t, y)


@figure("deficit")
def deficit() -> viz.Picture:
    """E|v| / E|u| over time: FM's mean velocity is shorter than what it averages; repulsion
    stretches it.
    """
    n, ts = 20_000, torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    generator = keyed_generator("cpu", 0, "deficit")
    x1, y = TWO.sample(n, generator=generator)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    for method, weight in (("fm", 0.0), ("delta_fm", 0.05), ("delta_fm", WEIGHT)):
        ratios = []
        for t in ts:
            x_t, u = paths.LINEAR.interpolate(x0, x1, t.expand(n))
            field = TWO.velocity(x_t, t.expand(n), y)
            field = (field - weight * TWO.means.mean(0)) / (1 - weight)
            ratios.append(float(metrics.velocity_deficit(field, u)))
        record("velocity_ratio", method, np.mean(ratios), weight=weight)
        label = "FM" if method == "fm" else f"ΔFM, λ = {weight:g}"
        color = {0.0: viz.ATTRACT, 0.05: "#a06cc8", WEIGHT: viz.MODEL}[weight]
        panel.plot(
            ts,
            ratios,
            color=color,
            linewidth=3,
            linestyle="--" if weight == 0.05 else "-",
            label=label,
        )
    panel.axhline(1, color=viz.TRUTH, linewidth=1.5, linestyle=":")
    panel.text(0.98, 1.03, "as long as the targets", fontsize=14, ha="right")
    panel.set(xlabel="time $t$", ylabel="E|$v$| / E|$u_t$|", xlim=(0, 1), ylim=(0, None))
    picture.legend(loc="outside upper left", ncols=2)
    return picture


@figure("ode_and_sde")
def ode_and_sde() -> viz.Picture:
    n, steps = 2000, 250
    x0 = noise(n, "ode and sde")
    ode = run(exact(), x0, steps)
    generator = keyed_generator("cpu", 0, "sde")
    draws = torch.randn(steps, n, 2, generator=generator, dtype=torch.float64)
    ts = torch.linspace(0, 0.96, steps + 1, dtype=torch.float64)
    end = samplers.sample_sde(exact(), x0, ts, noise=draws).numpy()
    record("inside", "fm", inside(ode[-1]), nfe=2 * steps, sampler="heun", setting="ode")
    record("inside", "fm", inside(end), nfe=steps + 1, sampler="sde", setting="sde")
    walks = _walk(x0, ts, draws, end)
    picture, panels = squares(
        ["ODE: smooth paths", "SDE: noisy paths, same cloud"], right=2.6, side=2.6
    )
    data_behind(panels)
    for panel, states, color in zip(panels, (ode, walks), (viz.ATTRACT, viz.ATTRACT)):
        lines = ends(panel, states[:, :24], color, 24)
    bar = artists.color_bar(picture, lines, panels[-1], "time $t$", ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=13)
    legend(
        picture, {"noise": ENTRY(viz.NOISE), "ends": ENTRY(viz.ATTRACT, markersize=7)}, 0.87, 0.86
    )
    return picture


def _walk(x0: torch.Tensor, ts: torch.Tensor, draws: torch.Tensor, end: np.ndarray) -> np.ndarray:
    """The states of 24 of the SDE's walks: the sampler gives the end only, so it is run to every
    tenth time.
    """
    few, kept = x0[:24], [x0[:24].numpy()]
    for k in range(10, len(ts), 10):
        state = (
            samplers.sample_sde(exact(), few, ts[: k + 1], noise=draws[:k, :24], last_step=None)
            if k < len(ts) - 1
            else None
        )
        kept.append(end[:24] if state is None else state.numpy())
    return np.stack(kept)


def _guided(
    scale: float, method: str = "fm", interval: tuple[float, float] = (0, 1), fix: bool = False
) -> viz.Velocity:
    field = guidance.guide(
        exact(method, WEIGHT), exact(method, WEIGHT, label=None), scale, interval
    )
    return guidance.debias(field, WEIGHT, TWO.means.mean(0)) if fix else field


def _ends_of(fields: dict[str, tuple[viz.Velocity, str]], key: str) -> viz.Picture:
    """A panel per field: the paths of class 0, and the share that ends on the data."""
    x0 = noise(2000, "guidance")
    states = {name: run(field, x0) for name, (field, _) in fields.items()}
    shares = {name: inside(s[-1]) for name, s in states.items()}
    for (name, (_, method)), share in zip(fields.items(), shares.values()):
        place = {
            "nfe": 128,
            "sampler": "heun",
            "setting": f"{key} {name}".replace("$", "").replace(",", "").replace(" ", "_"),
        }
        record("inside", method, share, **place)
        record(
            "left_share", method, (states[name][-1][:, 0] < 0.4).mean(), **place
        )  # the class has two halves, one on each side
    right = 1.2 if len(fields) < 4 else 0.1
    picture, panels = squares(
        [f"{name}: {share:.0%}" for name, share in shares.items()], right=right
    )
    data_behind(panels)
    for panel, (name, s) in zip(panels, states.items()):
        lines = ends(panel, s, viz.METHOD_COLORS[fields[name][1]], 50)
    if right > 1:
        bar = artists.color_bar(picture, lines, panels[-1], "time $t$", ticks=[0, 0.5, 1])
        bar.ax.tick_params(labelsize=13)
    return picture


@figure("guidance_scales")
def guidance_scales() -> viz.Picture:
    return _ends_of({f"scale {w:g}": (_guided(w), "fm") for w in (1, 1.5, 3)}, "guidance")


@figure("guidance_interval")
def guidance_interval() -> viz.Picture:
    spans = {"[0, 1]": (0.0, 1.0), "[0, 0.5]": (0.0, 0.5), "[0.5, 1]": (0.5, 1.0)}
    return _ends_of(
        {f"$t$ in {name}": (_guided(3, interval=span), "fm") for name, span in spans.items()},
        "interval",
    )


@figure("interference")
def interference() -> viz.Picture:
    fields = {
        "FM": (_guided(1.5), "fm"),
        "ΔFM": (_guided(1.5, "delta_fm"), "delta_fm"),
        "ΔFM, debiased": (_guided(1.5, "delta_fm", fix=True), "delta_fm_debiased"),
    }
    return _ends_of(fields, "interference")


@figure("digits_controls")
def digits_controls() -> viz.Picture:
    """Each repelled method under its controls, which were never repelled: what FM gains by them,
    too, is no repulsion.
    """
    return _controls("Digits, 50 Euler steps", rows("digits"))


@figure("digits_narrow")
def digits_narrow() -> viz.Picture:
    """The same in networks a quarter as wide, where the gains are large."""
    return _controls(
        "Digits, width 64",
        [row for row in rows("digits.size") if row["variant"] == "hidden_size=64"],
    )


def _controls(title: str, some: list[dict[str, Any]]) -> viz.Picture:
    shown = ("fm_scaled", "fm_retargeted", "delta_fm", "fm_retargeted_latent", "vecor_latent")
    found = {d.method: d for d in experiments.differences(some, "frechet", 50)}
    panel = viz.Panel(title, "Fréchet distance minus FM's, same seed")
    return enlarged(
        viz.difference_rows(
            {panel: [(viz.method_style(name).label, found[name]) for name in shown]}
        )
    )


@figure("digits_quality")
def digits_quality() -> viz.Picture:
    """Plain FM, its controls and the methods: the mean over the seeds, and the lowest and highest."""
    shown = ("fm", "fm_scaled", "fm_retargeted", "delta_fm", "vecor_latent", "dispersive")
    chosen = [
        row
        for row in rows("digits")
        if row["method"] in shown and row["metric"] in ("frechet", "frechet_real")
    ]
    return enlarged(viz.quality_vs_steps(chosen, ("frechet",)))


@figure("same_form")
def same_form() -> viz.Picture:
    """Guidance and repulsion as one construction: start at what is avoided, go through what is
    wanted, and beyond.
    """
    picture, axes = viz.panels(1, 2, width=WIDE, height=3.4)
    away, want = np.array([0.0, 0.0]), np.array([2.0, 1.0])
    rows_of = (
        (r"avoided: $v(x, \varnothing)$", "wanted: $v(x, y)$", "guided", "guidance: scale $w$"),
        (r"avoided: $E[u_-]$", "wanted: $v$", "$v^*$", r"ΔFM: $w$ = 1 / (1 − λ)"),
    )
    for panel, (a, b, c, title) in zip(axes[0], rows_of):
        beyond = away + 1.54 * (want - away)
        panel.plot(
            *np.stack([away, beyond]).T, color="#bbbbbb", linewidth=2, linestyle="--", zorder=1
        )
        for place, color, text, shift in (
            (away, viz.REPEL, a, (0.15, -0.32)),
            (want, viz.ATTRACT, b, (0.1, -0.38)),
            (beyond, viz.MODEL, c, (-0.1, 0.32)),
        ):
            artists.points(panel, [place], color=color, size=150, zorder=3)
            panel.text(
                *(place + shift),
                text,
                color=color,
                fontsize=14,
                weight="bold",
                ha="left" if color != viz.MODEL else "right",
                va="center",
            )
        artists.arrows(
            panel, [want], [0.9 * (beyond - want)], color=viz.MODEL, scale=1.0, width=0.012
        )
        panel.set(xlim=(-0.6, 4.6), ylim=(-0.7, 2.1), xticks=[], yticks=[])
        panel.set_title(title, loc="left", weight="bold")
        panel.grid(False)
    return picture
