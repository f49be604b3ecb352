"""Paths and flow matching: what a path is, why the mean velocity is learnt, and where it is hard to
learn.
"""

import numpy as np
import torch

from cfm_lite import draws, guidance, paths, pretrained, samplers, viz
from cfm_lite.data import captions
from cfm_lite.draws import keyed_generator
from cfm_lite.metrics import straightness
from cfm_lite.viz import artists
from slides.figures.common import (
    HALF,
    LIMITS,
    TWO,
    WIDE,
    data_behind,
    ends,
    exact,
    figure,
    legend,
    log_density,
    noise,
    record,
    run,
    squares,
)
from slides.figures.part6 import gallery

ENTRY = artists.legend_entry


@figure("noise_to_data")
def noise_to_data() -> viz.Picture:
    states = run(exact(label=None), noise(400), 60)
    times = (0, 0.4, 0.7, 1)
    picture, panels = squares([f"$t$ = {t:g}" for t in times])
    for panel, t in zip(panels, times):
        artists.contours(
            panel, artists.density_map(log_density(None), LIMITS), LIMITS, linewidths=0.8
        )
        artists.points(
            panel,
            states[round(60 * t)],
            color=[viz.NOISE, viz.MODEL, viz.MODEL, viz.MODEL][times.index(t)],
            size=9,
        )
    return picture


@figure("noise_to_picture")
def noise_to_picture() -> viz.Picture:
    """Four sentences, one network: its states at four times."""
    run = pretrained.run_of("words")
    said = ["a large red seven", "a yellow star", "a large cyan two", "a pink cross"]
    start = torch.randn(
        len(said), *run.spec.shape, generator=keyed_generator("cpu", 0, "noise to picture")
    )
    velocity = guidance.cfg(run.model, captions.encode(said), 2.0)
    walk = [*samplers.trajectory(velocity, start, torch.linspace(0, 1, 21))]
    times = (0, 4, 20)
    below = [[""] * len(said), [""] * len(said), said]
    names = [f"t = {k / 20:g}" for k in times]
    rows = [[*run.images(walk[k])] for k in times]
    return gallery(rows, below, side=0.85, gap=1.2, lines=1, names=names)


@figure("convention")
def convention() -> viz.Picture:
    x0, x1, t = np.array([-1.6, -0.9]), np.array([1.7, 1.2]), 0.4
    picture, (panel,) = squares([""], (-2.5, 2.5, -2.5, 2.5), side=3.6, right=0.1)
    x_t, u = x0 + t * (x1 - x0), x1 - x0
    panel.plot(*np.stack([x0, x1]).T, color="#bbbbbb", linewidth=1.5, linestyle="--", zorder=1)
    artists.arrows(panel, [x_t], [u], color=viz.ATTRACT, scale=2.6, width=0.014)
    for place, color, text, shift in (
        (x0, viz.NOISE, "noise $x_0$\n$t$ = 0", (0, -0.75)),
        (x1, viz.DATA, "data $x_1$\n$t$ = 1", (0, 0.5)),
        (x_t, viz.MODEL, "$x_t$", (0.15, -0.5)),
    ):
        artists.points(panel, [place], color=color, size=120, zorder=4)
        panel.text(
            *(place + shift),
            text,
            color=color,
            ha="center",
            va="center",
            fontsize=14,
            weight="bold",
        )
    panel.text(
        0.0, 1.0, "velocity $u_t$", color=viz.ATTRACT, fontsize=14, ha="center", weight="bold"
    )
    return picture


@figure("three_paths")
def three_paths() -> viz.Picture:
    picture, axes = viz.panels(1, 3, width=WIDE, height=3.7, sharey=True)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    for panel, path, name in zip(
        axes[0],
        (paths.LINEAR, paths.COSINE, paths.VP),
        ("linear", "cosine (SiT: GVP)", "variance preserving"),
    ):
        panel.plot(t, path.alpha(t), color=viz.DATA, linewidth=3)
        panel.plot(t, path.sigma(t), color=viz.NOISE, linewidth=3, linestyle="--")
        panel.set_title(name, loc="left")
        panel.set(xlabel="time $t$", ylim=(-0.03, 1.08), xlim=(0, 1), xticks=[0, 0.5, 1])
    axes[0, 0].set_ylabel("share of each end")
    entries = {
        r"$\alpha(t)$: share of the data": _line(viz.DATA, linewidth=3),
        r"$\sigma(t)$: share of the noise": _dashed(viz.NOISE),
    }
    picture.legend(
        list(entries.values()), list(entries), loc="outside upper left", ncols=2, handlelength=2.2
    )
    return picture


@figure("crossing_pairs")
def crossing_pairs() -> viz.Picture:
    x0, x1 = (
        noise(60, "crossing"),
        TWO.sample(60, generator=keyed_generator("cpu", 0, "crossing data"))[0],
    )
    picture, panels = squares(
        ["pairs: straight, they cross", "the flow: bends, never crosses"], right=3.0, side=2.6
    )
    pairs = torch.stack([x0 + s * (x1 - x0) for s in torch.linspace(0, 1, 33)]).numpy()
    for panel, states, color in zip(
        panels, (pairs, run(exact(label=None), x0)), (viz.DATA, viz.MODEL)
    ):
        lines = ends(panel, states, color)
    bar = artists.color_bar(picture, lines, panels[-1], "time $t$", ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=13)
    entries = {
        "noise $x_0$": ENTRY(viz.NOISE),
        "data $x_1$": ENTRY(viz.DATA, markersize=7),
        "where the\nflow ends": ENTRY(viz.MODEL, markersize=7),
    }
    legend(picture, entries, 0.83, 0.86)
    return picture


@figure("mean_of_velocities")
def mean_of_velocities() -> viz.Picture:
    """At one place and time, the velocities of the pairs that come by, and their mean."""
    place, t, n = torch.tensor([0.3, 0.0], dtype=torch.float64), 0.35, 400_000
    generator = keyed_generator("cpu", 0, "mean of velocities")
    x1 = TWO.sample(n, generator=generator)[0]
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x_t, u = paths.LINEAR.interpolate(x0, x1, torch.full((n,), t, dtype=torch.float64))
    near = (x_t - place).norm(dim=1) < 0.05
    truth = TWO.velocity(place[None], torch.tensor([t], dtype=torch.float64))[0]
    picture, (panel,) = squares(
        [f"pairs that pass $x_t$ = (0.3, 0) at $t$ = {t:g}"], (-4, 4, -4, 4), side=3.6, right=3.2
    )
    shown = u[near][:45].numpy()
    artists.arrows(
        panel, place.repeat(len(shown), 1), shown, color="#8fcdb8", scale=1.25, width=0.006
    )
    artists.arrows(
        panel, [place], [u[near].mean(0)], color=viz.ATTRACT, scale=1.25, width=0.02, zorder=5
    )
    artists.arrows(panel, [place], [truth], color=viz.TRUTH, scale=1.25, width=0.006, zorder=6)
    artists.points(panel, [place], color=viz.MODEL, size=90, zorder=7)
    line = {"linewidth": 3}
    entries = {
        "$u_t$ of single pairs": _line("#8fcdb8", **line),
        f"their mean ({int(near.sum())} pairs)": _line(viz.ATTRACT, linewidth=5),
        "exact $E[u_t \\mid x_t]$": _line(viz.TRUTH, **line),
    }
    legend(picture, entries, 0.62, 0.75)
    record("mean_velocity_error", "fm", (u[near].mean(0) - truth).norm() / truth.norm())
    return picture


def _line(color: str, **kwargs: float):
    handle = ENTRY(color, "-")
    handle.set(**kwargs)
    return handle


def _dashed(color: str):
    handle = ENTRY(color, "--")
    handle.set(linewidth=3)
    return handle


@figure("loss_floor")
def loss_floor() -> viz.Picture:
    """The part of the loss that no model can remove: E |u - E[u | x_t]|^2, and what a zero model
    pays.
    """
    n, ts = 20_000, torch.linspace(0, 1, 41, dtype=torch.float64)
    generator = keyed_generator("cpu", 0, "loss floor")
    x1, y = TWO.sample(n, generator=generator)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    network, floor, learnt, zero = pretrained.load("toy_fm"), [], [], []
    for t in ts:
        x_t, u = paths.LINEAR.interpolate(x0, x1, t.expand(n))
        floor.append((u - TWO.velocity(x_t, t.expand(n), y)).square().mean())
        learnt.append((u - network(x_t.float(), t.expand(n).float(), y).double()).square().mean())
        zero.append(u.square().mean())
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    panel.plot(ts, zero, color=viz.NOISE, linestyle=":", linewidth=2.5, label="a model that says 0")
    panel.plot(ts, learnt, color=viz.MODEL, linewidth=3, label="a trained network")
    panel.plot(
        ts, floor, color=viz.TRUTH, linestyle="--", linewidth=2, label="floor: the exact field"
    )
    panel.set(xlabel="time $t$", ylabel="FM loss at $t$", ylim=(0, None), xlim=(0, 1))
    picture.legend(loc="outside upper left", ncols=1, handlelength=1.6)
    for name, values in (("real", floor), ("fm", learnt), ("zero", zero)):
        record(
            "flow_matching_loss",
            name,
            torch.stack(values)[1:-1].mean(),
            steps=2000 if name == "fm" else 0,
        )
    return picture


@figure("exact_field")
def exact_field() -> viz.Picture:
    times = (0.2, 0.5, 0.8)
    x = artists.grid_points(LIMITS, 13)
    fields = [artists.evaluate(exact(label=None), x, t) for t in times]
    scale = artists.arrow_scale(
        [np.concatenate([f[_likely(x, t)] for f, t in zip(fields, times)])], LIMITS, 13, 2.0
    )
    picture, panels = squares([f"$t$ = {t:g}" for t in times])
    for panel, t, field in zip(panels, times, fields):
        keep = _likely(x, t)
        artists.contours(
            panel, artists.density_map(log_density(None, t), LIMITS), LIMITS, linewidths=1.0
        )
        artists.arrows(panel, x[keep], field[keep], color=viz.ATTRACT, scale=scale, width=0.007)
    return picture


def _likely(x: np.ndarray, t: float) -> np.ndarray:
    values = log_density(None, t)(torch.as_tensor(x)).numpy()
    return values >= artists.mass_levels(values, [0.995])[0]


@figure("learnt_field")
def learnt_field() -> viz.Picture:
    network, t = pretrained.load("toy_fm"), 0.55
    learnt = guidance.conditional(network, 0)
    x = artists.grid_points(LIMITS, 15)
    x = x[
        log_density(0, t)(torch.as_tensor(x)).numpy()
        > artists.mass_levels(log_density(0, t)(torch.as_tensor(x)).numpy(), [0.995])[0]
    ]
    fields = [artists.evaluate(learnt, x, t), artists.evaluate(exact(), x, t)]
    picture, panels = squares(
        ["network, 2,000 steps", "exact"], right=3.0, side=2.6, colors=[viz.ATTRACT, viz.TRUTH]
    )
    data_behind(panels)
    scale = artists.arrow_scale(fields, LIMITS, 15)
    for panel, field, color in zip(panels, fields, (viz.ATTRACT, viz.TRUTH)):
        artists.arrows(panel, x, field, color=color, scale=scale, width=0.006)
    record(
        "field_error",
        "fm",
        np.linalg.norm(fields[0] - fields[1]) / np.linalg.norm(fields[1]),
        steps=2000,
        t=t,
    )
    entries = {
        "class 0": ENTRY(viz.DATA),
        "class 1": ENTRY(viz.DATA_OTHER),
        "50 % and 95 %\nof class 0": ENTRY(viz.TRUTH, "-"),
    }
    legend(picture, entries, 0.7, 0.85)
    return picture


@figure("field_error")
def field_error() -> viz.Picture:
    network, times = pretrained.load("toy_fm"), (0.3, 0.6, 0.9)
    x = artists.grid_points(LIMITS, 161)
    picture, panels = squares([f"$t$ = {t:g}" for t in times], right=1.15)
    top, maps = 0.0, []
    for t in times:
        truth, seen = (
            artists.evaluate(exact(), x, t),
            artists.evaluate(guidance.conditional(network, 0), x, t),
        )
        error = ((seen - truth) * truth).sum(1) / np.linalg.norm(truth, axis=1)
        maps.append(error)
        top = max(top, float(np.quantile(np.abs(error[_likely_class(x, t)]), 0.98)))
    look = {
        "origin": "lower",
        "extent": LIMITS,
        "cmap": viz.DIVERGING,
        "vmin": -top,
        "vmax": top,
        "interpolation": "nearest",
    }
    for panel, t, error in zip(panels, times, maps):
        image = panel.imshow(
            np.where(_likely_class(x, t, 0.995), error, np.nan).reshape(161, 161), **look
        )
        artists.contours(panel, artists.density_map(log_density(0, t), LIMITS), LIMITS)
    artists.color_bar(
        picture,
        image,
        panels[-1],
        "too slow $\\leftarrow$ 0 $\\rightarrow$ too fast",
        extend="both",
    )
    return picture


def _likely_class(x: np.ndarray, t: float, mass: float = 0.95) -> np.ndarray:
    values = log_density(0, t)(torch.as_tensor(x)).numpy()
    return values >= artists.mass_levels(values, [mass])[0]


@figure("couplings")
def couplings() -> viz.Picture:
    n = 256
    x0, (x1, y) = (
        noise(n, "couplings"),
        TWO.sample(n, generator=keyed_generator("cpu", 0, "couplings data")),
    )
    pairs = {
        "independent pairs": draws.independent(x0, x1, y)[:2],
        "optimal transport in the batch": draws.minibatch_ot(x0, x1, y)[:2],
    }
    picture, panels = squares(list(pairs), right=3.0, side=2.6)
    for panel, (name, (a, b)) in zip(panels, pairs.items()):
        states = torch.stack([a + s * (b - a) for s in torch.linspace(0, 1, 17)]).numpy()
        lines = ends(panel, states, viz.DATA, 100)
        key = "independent" if name.startswith("independent") else "ot"
        record(f"pair_distance_{key}", "fm", (b - a).square().sum(1).mean().sqrt(), batch=n)
    record(
        "straightness",
        "fm",
        straightness(torch.as_tensor(run(exact(label=None), x0))),
        nfe=128,
        sampler="heun",
    )
    bar = artists.color_bar(picture, lines, panels[-1], "time $t$", ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=13)
    legend(
        picture,
        {"noise $x_0$": ENTRY(viz.NOISE), "data $x_1$": ENTRY(viz.DATA, markersize=7)},
        0.83,
        0.86,
    )
    return picture


@figure("score_and_velocity")
def score_and_velocity() -> viz.Picture:
    t = 0.6
    x = artists.grid_points(LIMITS, 13)
    x = x[_likely(x, t)]
    v = artists.evaluate(exact(label=None), x, t)
    score = TWO.score(torch.as_tensor(x), torch.full((len(x),), t, dtype=torch.float64)).numpy()
    picture, panels = squares(
        ["velocity $v$: where to move", "score $s$: where it is denser"], side=2.6
    )
    for panel, field, color in zip(panels, (v, score), (viz.ATTRACT, viz.TRUTH)):
        artists.contours(
            panel, artists.density_map(log_density(None, t), LIMITS), LIMITS, linewidths=0.9
        )
        artists.arrows(
            panel,
            x,
            field,
            color=color,
            scale=artists.arrow_scale([field], LIMITS, 13, 2.0),
            width=0.007,
        )
    return picture
