"""Scale: the same code from points to ImageNet, the transformer's parts, what is measured and how
fast it runs.
"""

import textwrap
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cfm_lite import guidance, pretrained, samplers, viz
from cfm_lite.data import cifar10
from cfm_lite.data.datasets import dataset
from cfm_lite.demo import shipped_pictures
from cfm_lite.draws import keyed_generator
from cfm_lite.models import SIT_CONFIGS, SiT
from slides.figures.common import HALF, HIGH, RESULTS, WIDE, figure, record, rows
from slides.figures.part3 import SPREAD, box, canvas, link
from tools.pictures import COLOUR, SEEN, stored_tiles

GREY = "#4d4d4d"


@figure("ladder")
def ladder() -> viz.Picture:
    sizes = {
        "points in the plane": 2,
        "digits, 8 × 8": 64,
        "MNIST, 28 × 28": 784,
        "CIFAR-10, 32 × 32 × 3": 3072,
        "ImageNet latents, 32 × 32 × 4": 4096,
        "ImageNet pixels, 256 × 256 × 3": 196_608,
    }
    picture, ((panel,),) = viz.panels(1, 1, width=WIDE, height=3.9)
    colors = [viz.DATA] * 5 + [viz.DATA_OTHER]
    panel.barh(list(sizes), list(sizes.values()), color=colors, height=0.62)
    for i, size in enumerate(sizes.values()):
        panel.text(size * 1.15, i, f"{size:,}", va="center", fontsize=14)
    panel.set(xscale="log", xlabel="numbers per sample", xlim=(1, 9e5))
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    return picture


@figure("digits_samples")
def digits_samples() -> viz.Picture:
    """Ten digits of each shipped network from the same noise, beside real ones."""
    data, y = dataset("digits"), torch.arange(10)
    x0 = torch.randn(10, *data.shape, generator=keyed_generator("cpu", 2, "digits samples"))
    images = {"real": torch.stack([data.held_x1[data.held_y == c][0] for c in range(10)])}
    for method in ("fm", "delta_fm", "vecor_latent", "dispersive"):
        velocity = guidance.conditional(pretrained.load(f"digits_{method}"), y)
        images[method] = samplers.sample(velocity, x0, torch.linspace(0, 1, 51), samplers.euler)
    return viz.image_grid(images, cell=0.6)


@figure("mnist_samples")
def mnist_samples() -> viz.Picture:
    """Ten digits of the shipped U-Net of MNIST, without guidance and with it, beside real ones."""
    return viz.image_grid(shipped_pictures(torch.arange(10), 50), cell=0.6)


@figure("colour_samples")
def colour_samples() -> viz.Picture:
    """The first picture of each class, as `tools.pictures` has stored them: real and drawn."""
    tiles = stored_tiles(RESULTS / f"pictures{COLOUR}.tiles.png", 3, SEEN * len(cifar10.CLASSES))
    rows = dict(zip(("real", "FM", "guidance 2"), tiles))
    return viz.image_grid({name: x[::SEEN] for name, x in rows.items()}, cifar10.CLASSES, cell=0.75)


@figure("patches")
def patches() -> viz.Picture:
    """An image of 8 x 8, its 16 patches of 2 x 2, and the row of tokens that a transformer reads."""
    data = dataset("digits")
    image = data.x1[data.y == 3][3][0].numpy()
    picture, panel = canvas(height=3.9)
    cell = 0.95
    _grid(panel, image, 0.5, 1.0, cell)
    for k in range(5):
        for line in (
            ([0.5 + 2 * k * cell] * 2, [1.0, 1.0 + 8 * cell]),
            ([0.5, 0.5 + 8 * cell], [1.0 + 2 * k * cell] * 2),
        ):
            panel.plot(*line, color=viz.REPEL, linewidth=2, zorder=4)
    panel.text(4.3, 0.3, "8 × 8 pixels, patches of 2 × 2", ha="center", va="center", fontsize=14)
    link(panel, (8.5, 4.8), (10.0, 4.8))
    small = 0.5
    for k in range(16):
        row, column = divmod(k, 4)
        patch = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        _grid(panel, patch, 10.4 + (k % 8) * 1.55, 5.6 - (k // 8) * 2.4, small)
        panel.text(
            10.4 + (k % 8) * 1.55 + small,
            5.25 - (k // 8) * 2.4,
            str(k + 1),
            ha="center",
            va="center",
            fontsize=14,
            color=GREY,
        )
    panel.text(16.5, 7.6, "16 tokens, read row by row", ha="center", va="center", fontsize=14)
    panel.text(
        16.5,
        1.6,
        "each: a linear layer, plus a fixed code of its place",
        ha="center",
        va="center",
        fontsize=14,
        color=viz.MODEL,
    )
    return picture


def _grid(panel: Axes, image: np.ndarray, x: float, y: float, cell: float) -> None:
    """Grey squares, the top row first."""
    for (row, column), value in np.ndenumerate(image):
        corner = x + column * cell, y + (len(image) - 1 - row) * cell
        panel.add_patch(
            Rectangle(
                corner,
                cell,
                cell,
                facecolor=str(float((value + 1) / 2)),
                edgecolor="#888888",
                linewidth=0.4,
                zorder=2,
            )
        )


@figure("block")
def block() -> viz.Picture:
    picture, panel = canvas(height=4.1)
    row, top = 3.9, 8.4
    box(panel, 1.6, row, "tokens", width=2.6)
    stages = {5.6: "norm", 8.8: "× (1 + scale)\n+ shift", 12.6: "attention\nor MLP", 16.2: "× gate"}
    for x, text in stages.items():
        gate = text == "× gate"
        color = viz.REPEL if gate else viz.MODEL if "scale" in text else GREY
        box(panel, x, row, text, color=color, width=2.2 if x < 8 or gate else 3.2, height=2.0)
    for a, b in ((2.9, 4.5), (6.7, 7.2), (10.4, 11.0), (14.2, 15.1), (17.3, 18.9)):
        link(panel, (a, row), (b, row))
    panel.plot(
        19.4,
        row,
        "o",
        markersize=24,
        markerfacecolor="white",
        markeredgecolor=GREY,
        markeredgewidth=2,
    )
    panel.text(19.4, row, "+", fontsize=20, ha="center", va="center")
    link(panel, (19.9, row), (22.3, row))
    panel.plot([1.6, 1.6, 19.4], [row - 0.9, 1.5, 1.5], color=viz.ATTRACT, linewidth=2)
    link(panel, (19.4, 1.5), (19.4, row - 0.65), viz.ATTRACT)
    panel.text(
        10.5,
        0.75,
        "the token itself, unchanged",
        ha="center",
        va="center",
        color=viz.ATTRACT,
        fontsize=14,
        weight="bold",
    )
    box(panel, 4.2, top, "time $t$ + class $y$", width=4.6, height=1.5)
    box(panel, 12.0, top, "SiLU, linear: starts at 0", color=viz.MODEL, width=6.2, height=1.5)
    link(panel, (6.5, top), (8.9, top))
    link(panel, (10.2, top - 0.75), (8.8, row + 1.0), viz.MODEL)
    link(panel, (14.4, top - 0.75), (16.2, row + 1.0), viz.REPEL)
    panel.text(
        17.0,
        top - 1.4,
        "gate = 0 at the start:\nthe block does nothing",
        color=viz.REPEL,
        fontsize=14,
        weight="bold",
        va="center",
    )
    return picture


@figure("sit_sizes")
def sit_sizes() -> viz.Picture:
    counts = {}
    for name in ("SiT-S/2", "SiT-B/2", "SiT-L/2", "SiT-XL/2"):
        with torch.device("meta"):
            model = SiT(**SIT_CONFIGS[name], learn_sigma=True)
        counts[name] = sum(p.numel() for p in model.parameters())
        record("parameters", name, counts[name], dataset="imagenet")
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    panel.barh(list(counts), [c / 1e6 for c in counts.values()], color=viz.MODEL, height=0.62)
    for i, (name, count) in enumerate(counts.items()):
        inside = count > 3e8
        text = f"{count / 1e6:.0f} M: {SIT_CONFIGS[name]['depth']} blocks"
        panel.text(
            count / 1e6 - 12 if inside else count / 1e6 + 10,
            i,
            text,
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
        )
    panel.set(xlabel="parameters, millions")
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    return picture


@figure("shards")
def shards() -> viz.Picture:
    """The same eight shards of a batch on one process, on two, and in two micro-batches."""
    picture, panel = canvas(height=3.9)
    colors = ("#d9c9e6", "#cfe3f1", "#c9e8de", "#f3d9c4") * 2
    layouts = {
        "1 GPU": ((range(8),),),
        "2 GPUs": ((range(4),), (range(4, 8),)),
        "1 GPU, 2 micro-batches": ((range(4), range(4, 8)),),
    }
    for i, (name, processes) in enumerate(layouts.items()):
        y = 7.6 - 3.0 * i
        panel.text(0.2, y + 0.55, name, fontsize=14, va="center", weight="bold")
        x = 8.3
        for parts in processes:
            start = x
            for part in parts:
                for k in part:
                    panel.add_patch(
                        Rectangle((x, y), 1.45, 1.1, facecolor=colors[k], edgecolor=GREY)
                    )
                    panel.text(
                        x + 0.72, y + 0.55, str(k + 1), ha="center", va="center", fontsize=14
                    )
                    x += 1.55
                x += 0.0 if part == parts[-1] else 0.6
            panel.add_patch(
                Rectangle(
                    (start - 0.18, y - 0.2),
                    x - start + 0.26,
                    1.5,
                    fill=False,
                    edgecolor=viz.MODEL,
                    linewidth=2.2,
                )
            )
            x += 0.7
    panel.text(
        8.3,
        0.25,
        "a shard's draws depend on (seed, step, shard) alone",
        fontsize=14,
        color=viz.MODEL,
        va="center",
    )
    return picture


@figure("speed")
def speed() -> viz.Picture:
    """Ratios of times beside their goals: all that missed, and those that met theirs most narrowly,
    one of each file of results; four in all if fewer missed, for a name needs two large lines.
    """
    missed, met = [], []
    for path in sorted((RESULTS / "bench").glob("*.json")):
        ratios = [r for r in rows(f"bench/{path.stem}") if (r["unit"], r["sense"]) == ("x", ">=")]
        ratios = sorted((r for r in ratios if r["goal"]), key=_closeness)
        missed += [r for r in ratios if not r["met"]]
        met += [r for r in ratios if r["met"]][:1]
    shown = missed + sorted(met, key=_closeness)[: max(1, 4 - len(missed))]
    picture, ((panel,),) = viz.panels(1, 1, width=WIDE, height=HIGH)
    for i, row in enumerate(shown):
        color = viz.ATTRACT if row["met"] else viz.REPEL
        panel.barh(i, row["ratio"], color=color, height=0.6, left=0)
        panel.plot([row["goal"]] * 2, [i - 0.42, i + 0.42], color=viz.TRUTH, linewidth=2.2)
        panel.text(
            max(row["ratio"], row["goal"]) * 1.12,
            i,
            f"{row['ratio']:,.{0 if row['ratio'] > 100 else 2}f}×",
            va="center",
            fontsize=20,
        )
    panel.set_yticks(range(len(shown)), [_broken(row["name"]) for row in shown], fontsize=18)
    panel.set(xscale="log", xlim=(0.7, 30))
    panel.set_xlabel("times as fast; black: the goal", fontsize=18)
    panel.tick_params(axis="x", labelsize=18)
    panel.axvline(1, color="#888888", linewidth=1)
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    return picture


def _closeness(row: dict[str, Any]) -> float:
    return row["ratio"] / row["goal"]


def _broken(name: str) -> str:
    """A long name on two lines."""
    return "\n".join(textwrap.wrap(name, 34)[:2])


@figure("loss_at_start")
def loss_at_start() -> viz.Picture:
    """A network that says 0 pays E|u|^2, which the data alone decide: formula and measurement on
    digits.
    """
    data = dataset("digits")
    x1 = data.x1.double().flatten(1)
    predicted = float(x1.square().mean()) + 1
    x0 = torch.randn(
        x1.shape, generator=keyed_generator("cpu", 0, "loss at start"), dtype=torch.float64
    )
    measured = float((x1 - x0).square().mean())
    record("loss_at_start_predicted", "fm", predicted, dataset="digits")
    record("loss_at_start", "fm", measured, dataset="digits", samples=len(x1))
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    weights = np.linspace(0, 1, 50)
    panel.plot(
        weights, predicted * (1 - weights), color=viz.MODEL, linewidth=3, label="(1 − λ) E|$u$|²"
    )
    for weight in (0.0, 0.05, 0.5):
        negative = (
            (
                x1[torch.randperm(len(x1), generator=keyed_generator("cpu", 0, "roll"))]
                - x0.roll(1, 0)
            )
            .square()
            .mean()
        )
        value = measured - weight * float(negative)
        panel.plot(
            weight,
            value,
            "o",
            color=SPREAD,
            markersize=11,
            label="measured on digits" if weight == 0 else None,
        )
    panel.set(
        xlabel="weight λ of the repulsion",
        ylabel="loss before step 1",
        ylim=(0, None),
        xlim=(-0.03, 1),
    )
    picture.legend(loc="outside upper left", ncols=2)
    return picture
