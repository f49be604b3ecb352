"""Dispersive loss and REPA: what happens to hidden features, and what the loss does to points that
one can see.
"""

import itertools
import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from cfm_lite import losses, pretrained, viz
from cfm_lite.data.datasets import dataset
from cfm_lite.draws import keyed_generator
from cfm_lite.metrics import effective_rank
from cfm_lite.viz import artists
from slides.figures.common import HALF, WIDE, enlarged, figure, record, rows, squares

SPREAD = "#2f8fc4"  # the dispersive method's blue, dark enough for text


def canvas(
    width: float = WIDE, height: float = 3.6, right: float = 23.0
) -> tuple[viz.Picture, Axes]:
    """An empty stage for boxes and arrows, in units of 0.4 inches."""
    picture, ((panel,),) = viz.panels(1, 1, width=width, height=height)
    panel.set(xlim=(0, right), ylim=(0, right * height / width))
    panel.axis("off")
    return picture, panel


def box(
    panel: Axes,
    x: float,
    y: float,
    text: str,
    *,
    color: str = "#4d4d4d",
    width: float = 2.6,
    height: float = 1.8,
    size: float = 13,
) -> None:
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.25",
        zorder=2,
    )
    shape.set(facecolor="white", edgecolor=color, linewidth=2)
    panel.add_patch(shape)
    panel.text(x, y, text, ha="center", va="center", color=color, fontsize=size, zorder=3)


def link(
    panel: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = "#4d4d4d",
    **kwargs: object,
) -> None:
    look = {
        "arrowstyle": "-|>",
        "mutation_scale": 18,
        "linewidth": 2,
        "color": color,
        "shrinkA": 0,
        "shrinkB": 0,
    } | kwargs
    panel.add_patch(FancyArrowPatch(start, end, **look))


@figure("where_losses_look")
def where_losses_look() -> viz.Picture:
    picture, panel = canvas(height=3.7)
    row = 4.7
    places = {
        1.7: "$x_t$, $t$, $y$",
        5.8: "block 1",
        9.6: "block 2",
        13.4: "…",
        17.2: "block $L$",
        21.2: "$v$",
    }
    for x, text in places.items():
        box(
            panel,
            x,
            row,
            text,
            color=viz.MODEL if text.startswith("block") else "#4d4d4d",
            width=3.0 if x < 2 else 2.6,
        )
    spots = list(places)
    for a, b in itertools.pairwise(spots):
        link(panel, (a + (1.5 if a < 2 else 1.3), row), (b - 1.3, row))
    link(panel, (21.2, row - 0.9), (21.2, 2.2), viz.ATTRACT)
    panel.text(
        21.3,
        1.3,
        "FM loss:\nattract $v$ to $u_t$",
        color=viz.ATTRACT,
        ha="center",
        va="center",
        fontsize=14,
        weight="bold",
    )
    link(panel, (9.6, row + 0.9), (9.6, 7.2), viz.REPEL)
    panel.text(
        9.6,
        8.0,
        "dispersive: push the features of a batch apart",
        color=viz.REPEL,
        ha="center",
        va="center",
        fontsize=14,
        weight="bold",
    )
    link(panel, (9.6, row - 0.9), (9.6, 2.2), viz.ATTRACT)
    panel.text(
        9.6,
        1.3,
        "REPA: pull each feature\nto a frozen encoder's",
        color=viz.ATTRACT,
        ha="center",
        va="center",
        fontsize=14,
        weight="bold",
    )
    return picture


@figure("repa")
def repa() -> viz.Picture:
    picture, panel = canvas(height=3.2)
    upper, lower = 6.2, 1.9
    box(panel, 2.0, upper, "clean image", color=viz.DATA, width=3.6)
    box(panel, 8.3, upper, "frozen encoder\n(DINOv2)", width=4.4, height=2.2)
    box(panel, 13.6, upper, "$e_n$", color=viz.ATTRACT, width=2.0)
    box(panel, 2.0, lower, "noisy $x_t$", width=3.6)
    box(panel, 7.0, lower, "blocks 1–8", color=viz.MODEL, width=3.4)
    box(panel, 11.2, lower, "projector", width=2.9, height=2.2)
    box(panel, 15.6, lower, "$\\mathrm{proj}(h_n)$", color=viz.ATTRACT, width=2.9)
    box(panel, 20.6, lower, "blocks 9–28", color=viz.MODEL, width=3.6)
    for a, b, y in (
        (3.8, 6.1, upper),
        (10.5, 12.6, upper),
        (3.8, 5.3, lower),
        (8.7, 9.75, lower),
        (12.65, 14.15, lower),
    ):
        link(panel, (a, y), (b, y))
    panel.plot([7.0, 7.0, 20.6], [lower - 0.9, 0.35, 0.35], color=viz.MODEL, linewidth=2)
    link(panel, (20.6, 0.35), (20.6, lower - 0.9), viz.MODEL)
    link(panel, (15.2, lower + 0.9), (14.0, upper - 0.9), viz.ATTRACT, arrowstyle="<|-|>")
    panel.text(
        15.1,
        4.1,
        "pulled together: cosine",
        color=viz.ATTRACT,
        fontsize=14,
        weight="bold",
        va="center",
    )
    return picture


@torch.no_grad()
def features(name: str, block: int = 2, per_class: int = 4) -> Tensor:
    """Features (40, d) of a shipped network on held-out digits, sorted by class, at t = 0.5 with
    noise that all networks share.
    """
    data = dataset("digits")
    x1 = torch.cat([data.held_x1[data.held_y == c][:per_class] for c in range(10)])
    y = torch.arange(10).repeat_interleave(per_class)
    x0 = torch.randn(x1.shape, generator=keyed_generator("cpu", 0, "features"))
    _, found = pretrained.load(name).forward_features(
        0.5 * (x0 + x1), torch.full((len(x1),), 0.5), y, blocks=(block,)
    )
    return found[block].flatten(1)


@figure("similarity")
def similarity() -> viz.Picture:
    titles = {"digits_fm": "FM", "digits_dispersive": "FM + dispersive"}
    picture, axes = viz.panels(1, 2, width=WIDE, height=4.1)
    for panel, (name, title) in zip(axes[0], titles.items()):
        h = features(name, block=1)
        unit = torch.nn.functional.normalize(h, dim=1)
        cosine = unit @ unit.T
        method = name.removeprefix("digits_")
        off = ~torch.eye(len(h), dtype=torch.bool)
        place = {"dataset": "digits", "steps": 1300, "block": 1}
        mean = record("mean_cosine", method, cosine[off].mean(), **place)
        rank = record("effective_rank", method, effective_rank(h), **place)
        record("feature_norm", method, h.norm(dim=1).mean(), **place)
        image = panel.imshow(cosine, cmap=viz.DIVERGING, vmin=-1, vmax=1)
        panel.set_title(f"{title}: mean {mean:.2f}, rank {rank:.1f}", loc="left")
        panel.set_xticks(np.arange(10) * 4 + 1.5, range(10))
        panel.set_yticks(np.arange(10) * 4 + 1.5, range(10))
        panel.set(xlabel="class", ylabel="class")
        panel.grid(False)
    bar = picture.colorbar(image, ax=axes[0].tolist(), shrink=0.9)
    bar.set_label("cosine similarity")
    return picture


@figure("kernel")
def kernel() -> viz.Picture:
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    distance = np.linspace(0, 4, 300)
    for tau, color, line in (
        (0.25, "#0b4f75", "-"),
        (0.5, SPREAD, "-"),
        (1.0, "#56B4E9", "--"),
        (2.0, "#a9cde3", "-."),
    ):
        panel.plot(
            distance,
            np.exp(-distance / tau),
            color=color,
            linestyle=line,
            linewidth=3,
            label=f"τ = {tau:g}",
        )
    panel.set(
        xlabel="$D_{ij}$: squared distance per dimension",
        ylabel="push, relative",
        xlim=(0, 4),
        ylim=(0, 1.02),
    )
    picture.legend(loc="outside upper left", ncols=2, handlelength=1.6)
    return picture


@figure("floor")
def floor() -> viz.Picture:
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    scales = torch.logspace(-1.5, 1.5, 60, dtype=torch.float64)
    for count, color in ((16, "#56B4E9"), (64, SPREAD), (256, "#0b4f75")):
        h = torch.randn(
            count, 64, generator=keyed_generator("cpu", 0, "floor"), dtype=torch.float64
        )
        panel.plot(
            scales,
            [losses.dispersive(c * h) for c in scales],
            color=color,
            linewidth=3,
            label=f"B = {count}",
        )
        panel.axhline(-math.log(count), color=color, linestyle=":", linewidth=2)
        panel.text(
            0.035,
            -math.log(count) + 0.12,
            f"−log {count} = {-math.log(count):.2f}".replace("= -", "= −"),
            color=color,
        )
        record("dispersive_floor", "dispersive", -math.log(count), dataset="noise", batch=count)
    panel.set(
        xscale="log", xlabel="size of the features", ylabel="dispersive loss", ylim=(-6.1, 0.3)
    )
    picture.legend(loc="outside upper left", ncols=3)
    return picture


VARIANTS = {
    "infonce_l2": "InfoNCE, ℓ2",
    "infonce_cosine": "InfoNCE, cosine",
    "hinge": "hinge",
    "covariance": "covariance",
}


@figure("variants")
def variants() -> viz.Picture:
    """What each variant pays for features that are small or large, and crowded or spread."""
    picture, axes = viz.panels(1, 4, width=WIDE, height=3.3)
    generator = keyed_generator("cpu", 0, "variants")
    spread = torch.randn(64, 16, generator=generator, dtype=torch.float64)
    crowded = (
        0.15 * spread
        + torch.randn(64, 1, generator=generator, dtype=torch.float64) * torch.ones(16)
        + 2
    )
    scales = torch.logspace(-1, 1, 40, dtype=torch.float64)
    for panel, (variant, name) in zip(axes[0], VARIANTS.items()):
        for h, color, line, label in (
            (crowded, viz.REPEL, "--", "crowded in one direction"),
            (spread, viz.ATTRACT, "-", "spread in all directions"),
        ):
            unit = h / h.std()
            panel.plot(
                scales,
                [losses.dispersive(c * unit, variant) for c in scales],
                color=color,
                linestyle=line,
                linewidth=3,
                label=label,
            )
        panel.set(xscale="log")
        panel.set_title(name, loc="left")
    axes[0, 0].set_ylabel("loss")
    picture.supxlabel("size of the features", fontsize=14)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside upper left", ncols=2)
    return picture


def spread_out(h: Tensor, variant: str, steps: int = 120, rate: float = 0.02) -> np.ndarray:
    """All states of points that follow the loss downhill."""
    states = [h.clone()]
    for _ in range(steps):
        h = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad(losses.dispersive(h, variant) * len(h), h)
        h = h - rate * slope
        states.append(h.detach().clone())
    return torch.stack(states).numpy()


@figure("pushed_apart")
def pushed_apart() -> viz.Picture:
    generator = keyed_generator("cpu", 0, "pushed apart")
    start = 0.35 * torch.randn(48, 2, generator=generator, dtype=torch.float64) + torch.tensor(
        [0.9, 0.5], dtype=torch.float64
    )
    limits = (-3, 3, -3, 3)
    picture, panels = squares(
        ["before", "InfoNCE, ℓ2", "InfoNCE, cosine", "hinge, margin 1"], limits
    )
    artists.points(panels[0], start, color=viz.MODEL, size=22)
    for panel, variant in zip(panels[1:], ("infonce_l2", "infonce_cosine", "hinge")):
        states = spread_out(start, variant)
        for path in states[::5].swapaxes(0, 1):
            panel.plot(*path.T, color=viz.REPEL, linewidth=0.6, alpha=0.5)
        artists.points(panel, states[-1], color=viz.MODEL, size=22, zorder=3)
    for panel in panels:
        panel.plot(0, 0, "+", color=viz.TRUTH, markersize=9)
        panel.set_xticks([-2, 0, 2])
    return picture


@figure("digits_frechet")
def digits_frechet() -> viz.Picture:
    """A bar for the mean of each method, a dot for each seed."""
    shown = ("fm", "delta_fm", "vecor_latent", "dispersive")
    chosen = [
        row
        for row in rows("digits")
        if row["method"] in shown and row["metric"] in ("frechet", "frechet_real")
    ]
    return enlarged(viz.method_bars(chosen, "frechet", nfe=50))
