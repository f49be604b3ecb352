"""Attract and repel: what a wrong velocity does to the field, where it helps, where it overshoots,
and how the bias is undone.
"""

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle

from cfm_lite import guidance, negatives, paths, perturbations, pretrained, viz
from cfm_lite.data import toy, words
from cfm_lite.data.datasets import dataset
from cfm_lite.draws import keyed_generator
from cfm_lite.paths import FlowSample
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
    inside,
    legend,
    log_density,
    noise,
    record,
    run,
    squares,
)
from tools import figures as readme

ENTRY = artists.legend_entry
WEIGHT = 0.35
CLASS_0, CLASS_1 = viz.DATA, "#56B4E9"


def _close_classes(method: str, n: int = 48) -> dict[int, np.ndarray]:
    x0 = noise(n, "close classes")
    return {label: run(readme.velocity(method, torch.full((n,), label)), x0) for label in (0, 1)}


def _draw_close(panel, runs: dict[int, np.ndarray], upto: int) -> None:
    artists.points(panel, runs[0][0], color=viz.NOISE, size=7, alpha=0.6, zorder=1)
    for label, color, mark in ((0, CLASS_0, "o"), (1, CLASS_1, "^")):
        panel.add_collection(
            LineCollection(
                list(runs[label][: upto + 1 : 4].swapaxes(0, 1)),
                colors=color,
                linewidths=0.7,
                alpha=0.4,
                zorder=2,
            )
        )
        artists.points(
            panel,
            runs[label][upto],
            color=color,
            size=26,
            marker=mark,
            rim=0.4,
            zorder=3,
        )
        artists.contours(
            panel,
            artists.density_map(readme.density(label), readme.LIMITS),
            readme.LIMITS,
            masses=(0.95,),
            linewidths=1.2,
        )


CLASS_ENTRIES = {
    "class 0": ENTRY(CLASS_0, markersize=7),
    "class 1": ENTRY(CLASS_1, "^", markersize=7),
    "noise": ENTRY(viz.NOISE),
    "95 % of\na class": ENTRY(viz.TRUTH, "-"),
}


@figure("one_path")
def one_path() -> viz.Picture:
    runs = _close_classes("fm")
    picture, panels = squares(
        ["FM, $t$ = 0.4", "FM, $t$ = 0.7", "FM, $t$ = 1"], readme.LIMITS, right=1.65
    )
    for panel, t in zip(panels, (0.4, 0.7, 1.0)):
        _draw_close(panel, runs, round(64 * t))
    legend(picture, CLASS_ENTRIES, 0.845, 0.87)
    return picture


@figure("parted")
def parted() -> viz.Picture:
    runs = {method: _close_classes(method) for method in ("fm", "delta_fm")}
    titles = ["FM, $t$ = 0.7", "ΔFM, $t$ = 0.7", "ΔFM, $t$ = 1"]
    picture, panels = squares(
        titles, readme.LIMITS, right=1.65, colors=[viz.ATTRACT, viz.MODEL, viz.MODEL]
    )
    for panel, method, t in zip(panels, ("fm", "delta_fm", "delta_fm"), (0.7, 0.7, 1.0)):
        _draw_close(panel, runs[method], round(64 * t))
    legend(picture, CLASS_ENTRIES, 0.845, 0.87)
    return picture


def _sum_of_fields(method: str, titles: list[str]) -> viz.Picture:
    t = 0.55
    x = artists.grid_points(LIMITS, 15)
    values = log_density(0, t)(torch.as_tensor(x)).numpy()
    x = x[values >= artists.mass_levels(values, [0.995])[0]]
    attract, result = (artists.evaluate(exact(name, WEIGHT), x, t) for name in ("fm", method))
    fields, colors = (
        [attract, result - attract, result],
        [viz.ATTRACT, viz.REPEL, viz.METHOD_COLORS[method]],
    )
    picture, panels = squares(titles, colors=colors)
    data_behind(panels)
    scale = artists.arrow_scale(fields, LIMITS, 15)
    for panel, field, color, sign in zip(panels, fields, colors, ("", "+", "=")):
        artists.arrows(panel, x, field, color=color, scale=scale, width=0.007)
        panel.text(
            -0.055,
            0.5,
            sign,
            transform=panel.transAxes,
            fontsize=20,
            ha="center",
            va="center",
            weight="bold",
        )
    if method == "delta_fm":
        mean = TWO.means.mean(0).tolist()
        panels[1].plot(
            *mean, "X", color=viz.REPEL, markeredgecolor="white", markersize=13, zorder=6
        )
        panels[1].text(
            mean[0],
            mean[1] - 1.75,
            "away from\nthe mean X",
            color=viz.REPEL,
            ha="center",
            va="center",
            fontsize=14,
            weight="bold",
        )
    else:
        panels[1].axline((0, 0), slope=1, color=viz.REPEL, linestyle="--", linewidth=1.5)
        panels[1].text(
            0.1,
            -2.6,
            f"mirror {artists.DIAGONAL}",
            color=viz.REPEL,
            fontsize=14,
            weight="bold",
            va="center",
        )
    return picture


@figure("attract_plus_repel")
def attract_plus_repel() -> viz.Picture:
    return _sum_of_fields("delta_fm", ["where to go", "where not to go", "ΔFM: both together"])


@figure("vecor_fields")
def vecor_fields() -> viz.Picture:
    return _sum_of_fields("vecor", ["where to go", "away from the swap", "VeCoR: both together"])


@figure("figure3_paths")
def figure3_paths() -> viz.Picture:
    """The paper's figure 3 in its own coordinates, exact fields of FM and ΔFM."""
    mixture, n = toy.mixture("figure3"), 50
    picture, axes = viz.panels(2, 1, width=6.8, height=4.5, sharex=True, sharey=True)
    for panel, method, title in zip(axes[:, 0], ("fm", "delta_fm"), ("FM", "ΔFM, λ = 0.5")):
        for label, color, mark in ((0, CLASS_0, "o"), (1, CLASS_1, "^")):
            states = run(exact(method, 0.5, label, mixture), noise(n, "figure 3 paths"), 100)
            states = toy.to_figure3(torch.as_tensor(states)).numpy()
            panel.add_collection(
                LineCollection(
                    list(states[::5].swapaxes(0, 1)), colors=color, linewidths=0.7, alpha=0.45
                )
            )
            artists.points(
                panel,
                states[-1],
                color=color,
                size=24,
                marker=mark,
                rim=0.4,
                zorder=3,
            )
        for centre in toy.to_figure3(torch.as_tensor(mixture.means)).tolist():
            panel.add_patch(_circle(centre, 0.5 * 2.4477))  # 95 % of a Gaussian in the plane
        artists.name_axes(panel, outer=(True, False))
        panel.set(aspect="equal", ylim=(-3.2, 4.3), xlim=(-17.5, 8))
        panel.grid(False)
        panel.text(
            0.012,
            0.93,
            title,
            transform=panel.transAxes,
            fontsize=14,
            weight="bold",
            va="top",
            color=viz.METHOD_COLORS[method],
        )
    axes[1, 0].set_xlabel("$a$ (the paper's coordinates)")
    return picture


def _circle(centre: list[float], radius: float) -> Circle:
    return Circle(centre, radius, fill=False, edgecolor=viz.TRUTH, linewidth=1.3, zorder=4)


@figure("no_minimum")
def no_minimum() -> viz.Picture:
    picture, axes = viz.panels(1, 2, width=WIDE, height=3.8)
    c = np.linspace(-6, 9, 200)
    for weight, color, line in (
        (0.05, viz.ATTRACT, "-"),
        (0.5, viz.MODEL, "-"),
        (0.95, "#a06cc8", "-"),
        (1.05, viz.REPEL, "--"),
    ):
        axes[0, 0].plot(
            c,
            (c - 1) ** 2 - weight * (c + 1) ** 2,
            color=color,
            linestyle=line,
            linewidth=2.6,
            label=f"λ = {weight:g}",
        )
    axes[0, 0].set(
        xlabel="model's velocity $v$, for $u$ = 1 and $u_-$ = −1",
        ylabel="loss",
        ylim=(-25, 62),
        xlim=(-6, 9),
    )
    axes[0, 0].set_title("from λ = 1 on there is no minimum", loc="left")
    axes[0, 0].legend(frameon=False, loc="upper center", ncols=2)
    weights = np.linspace(0, 0.93, 200)
    axes[0, 1].plot(weights, 1 / (1 - weights), color=viz.MODEL, linewidth=3)
    for weight in (0.05, 0.5, 0.9):
        axes[0, 1].plot(weight, 1 / (1 - weight), "o", color=viz.MODEL, markersize=8)
        text = f"λ = {weight:g}: {1 / (1 - weight):.2f}×"
        axes[0, 1].annotate(
            text,
            (weight, 1 / (1 - weight)),
            {0.05: (-6, 14), 0.5: (8, -12), 0.9: (-6, 9)}[weight],
            textcoords="offset points",
            ha="right" if weight == 0.9 else "left",
        )
    axes[0, 1].axvline(1, color=viz.REPEL, linestyle="--", linewidth=2)
    axes[0, 1].set(xlabel="λ (times K)", ylabel="times as long", xlim=(-0.02, 1.04), ylim=(0, 14))
    axes[0, 1].set_title("the field grows by 1 / (1 − λ)", loc="left")
    return picture


@figure("overshoot")
def overshoot() -> viz.Picture:
    """The share of paths that end where 95 % of the class lies, against the weight."""
    weights = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
    x0 = noise(2000, "overshoot")
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    for method in ("delta_fm", "vecor"):
        look = viz.method_style(method)
        shares = [
            record(
                "inside",
                method,
                inside(run(exact(method, w), x0, 40)[-1]),
                weight=w,
                nfe=80,
                sampler="heun",
            )
            for w in weights
        ]
        panel.plot(
            weights,
            [100 * s for s in shares],
            color=look.colour,
            marker=look.marker,
            markersize=9,
            linewidth=3,
            label=look.label,
        )
    panel.axhline(95, color=viz.TRUTH, linestyle="--", linewidth=1.8, label="the data")
    panel.axvline(0.05, color="#888888", linestyle=":", linewidth=2)
    panel.text(0.06, 12, "λ = 0.05,\nthe papers' value", color="#555555")
    panel.set(xlabel="weight λ", ylabel="ends on the data, %", ylim=(0, 103), xlim=(-0.01, 0.51))
    picture.legend(loc="outside upper left", ncols=3)
    return picture


@figure("debias")
def debias() -> viz.Picture:
    x0, mean = noise(2000, "debias"), TWO.means.mean(0)
    field = exact("delta_fm", WEIGHT)
    states = {
        "fm": run(exact(), x0),
        "delta_fm": run(field, x0),
        "delta_fm_debiased": run(guidance.debias(field, WEIGHT, mean), x0),
    }
    shares = {name: inside(s[-1]) for name, s in states.items()}
    picture, panels = squares(
        [f"{viz.METHOD_LABELS[name]}: {share:.0%}" for name, share in shares.items()], right=1.2
    )
    data_behind(panels)
    for panel, (name, s) in zip(panels, states.items()):
        lines = ends(panel, s, viz.METHOD_COLORS[name])
    gap = record(
        "debias_error",
        "delta_fm_debiased",
        float(np.abs(states["delta_fm_debiased"] - states["fm"]).max()),
        weight=WEIGHT,
        nfe=128,
    )
    assert gap < 1e-9
    bar = artists.color_bar(picture, lines, panels[-1], "time $t$", ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=13)
    return picture


@figure("wrong_pictures")
def wrong_pictures() -> viz.Picture:
    """What each perturbation makes of pictures in colour: the data end of a wrong velocity in
    latent space.
    """
    shown = words.load("seen", 60)
    one = [k for k, scene in enumerate(shown.scenes) if len(scene.things) == 1]
    x = shown.x1[one[:4]]
    generator = keyed_generator("cpu", 0, "wrong pictures")
    looks = {
        "channel\nshuffle": perturbations.channel_shuffle(x, generator=generator),
        "crop": perturbations.crop_resize(x, generator=generator),
        "cutmix": perturbations.cutmix(x, generator=generator),
        "blur": perturbations.gaussian_blur(x, generator=generator),
    }
    return viz.perturbation_gallery(x, looks, cell=0.82)


@figure("three_spaces")
def three_spaces() -> viz.Picture:
    """A right velocity of a digit and the wrong ones that a crop makes of it in latent and in
    velocity space.
    """
    data = dataset("digits")
    x1 = torch.stack([data.x1[data.y == c][3] for c in (0, 2, 3, 5)])
    x0 = torch.randn(x1.shape, generator=keyed_generator("cpu", 0, "three spaces"))
    t = torch.full((4,), 0.5)
    x_t, u = paths.LINEAR.interpolate(x0, x1, t)
    sample = FlowSample(x0, x1, t, x_t, u, torch.arange(4))
    wrong = {}
    for space, name in (
        ("latent", "wrong image,\nsame noise"),
        ("velocity", "wrong image,\nwrong noise"),
    ):
        generator = keyed_generator("cpu", 1, "three spaces")
        found = negatives.perturbed(perturbations.crop_resize, space=space)(
            sample, generator=generator
        )
        found = found[0] if isinstance(found, tuple) else found
        wrong[name] = found.reshape(u.shape)
        record(
            f"negative_distance_{space}",
            "vecor_latent",
            (wrong[name] - u).square().mean(),
            dataset="digits",
        )
    return viz.perturbation_gallery(u, wrong, signed=True, cell=1.05)


@figure("controls")
def controls() -> viz.Picture:
    """FM, and the two fields that need no training: scaled and re-targeted."""
    x0, mean = noise(2000, "controls"), TWO.means.mean(0)
    fields = {
        "fm": exact(),
        "fm_scaled": guidance.rescale(exact(), 1 / (1 - WEIGHT)),
        "fm_retargeted": guidance.retarget(exact(), WEIGHT, mean),
        "delta_fm": exact("delta_fm", WEIGHT),
    }
    states = {name: run(field, x0) for name, field in fields.items()}
    shares = {
        name: record(
            "inside",
            name,
            inside(s[-1]),
            weight=WEIGHT,
            nfe=128,
            sampler="heun",
            setting="controls",
        )
        for name, s in states.items()
    }
    picture, panels = squares(
        [f"{viz.METHOD_LABELS[name]}: {share:.0%}" for name, share in shares.items()]
    )
    data_behind(panels)
    for panel, (name, s) in zip(panels, states.items()):
        ends(panel, s, viz.METHOD_COLORS[name])
        panel.title.set_fontsize(12)
    return picture


@figure("trained_against_exact")
def trained_against_exact() -> viz.Picture:
    """Trained networks of three methods beside the closed form: where their paths end."""
    x0 = noise(2000, "trained").float()
    states = {}
    for method in ("fm", "delta_fm", "vecor"):
        states[method] = run(guidance.conditional(pretrained.load(f"toy_{method}"), 0), x0)
        record(
            "inside",
            method,
            inside(states[method][-1]),
            weight=WEIGHT,
            steps=2000,
            nfe=128,
            sampler="heun",
            setting="trained",
        )
    picture, panels = squares(
        [f"{viz.METHOD_LABELS[name]}: {inside(s[-1]):.0%}" for name, s in states.items()],
        right=1.95,
    )
    data_behind(panels)
    for panel, (name, s) in zip(panels, states.items()):
        ends(panel, s, viz.METHOD_COLORS[name], 40, lines=False)
        truth = run(exact(name, WEIGHT), x0.double())[-1, :40]
        panel.plot(
            *truth.T,
            "o",
            markerfacecolor="none",
            markeredgecolor=viz.TRUTH,
            markersize=8,
            markeredgewidth=0.9,
            zorder=5,
        )
    hollow = ENTRY(viz.TRUTH, "o", markersize=8, markerfacecolor="none", markeredgecolor=viz.TRUTH)
    legend(
        picture,
        {"trained": ENTRY(viz.MODEL, markersize=7), "exact,\nsame noise": hollow},
        0.805,
        0.85,
    )
    return picture
