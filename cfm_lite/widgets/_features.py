"""What a dispersive loss sees in a batch of features, and where it pushes them: real digits,
shipped networks, all four variants.

The gradient of the loss by the features alone is followed for some steps; the network stays as it
is.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from torch import Tensor

from cfm_lite import losses, metrics, pretrained
from cfm_lite.data import digits
from cfm_lite.methods import FIRST, METHODS
from cfm_lite.viz.style import DIVERGING, REPEL, frame, panels, styled
from cfm_lite.widgets.explorer import Canvas, Explorer, choice, play_for, slider

__all__ = ["features"]

_NETWORKS = tuple((METHODS[name].label, f"digits_{name}") for name in FIRST)
_VARIANTS = (
    ("InfoNCE, ℓ2", "infonce_l2"),
    ("InfoNCE, cosine", "infonce_cosine"),
    ("hinge", "hinge"),
    ("covariance", "covariance"),
)
_BATCH, _STEPS, _TIME = 40, 40, 0.7
_TAB = [colormaps["tab10"](k) for k in range(10)]


class _Descent(NamedTuple):
    """Features (steps + 1, B, d) along gradient descent on the loss, the loss at each, and a plane
    (d, 2) to show them in.
    """

    features: Tensor
    loss: list[float]
    plane: Tensor


@functools.cache
def _batch() -> tuple[Tensor, Tensor]:
    x, y = digits.load("train")
    rows = torch.cat([(y == c).nonzero()[: _BATCH // 10, 0] for c in range(10)])
    return x[rows], y[rows]


@functools.lru_cache(maxsize=64)
@torch.no_grad()
def _features(network: str, block: int) -> Tensor:
    x1, y = _batch()
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((len(x1),), _TIME)
    model = pretrained.load(network)
    return model.forward_features(_TIME * x1 + (1 - _TIME) * x0, t, y, blocks=(block,))[1][block]  # pyright: ignore[reportCallIssue]


@functools.lru_cache(maxsize=64)
def _descend(network: str, block: int, variant: str, tau: float) -> _Descent:
    h = _features(network, block)
    centred = h - h.mean(0)
    plane = torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    size = centred.norm(dim=1).mean()
    states, values = [h], []
    for _ in range(_STEPS + 1):
        here = states[-1].clone().requires_grad_()
        loss = losses.dispersive(here, variant, tau)
        values.append(float(loss.detach()))
        (slope,) = torch.autograd.grad(loss, here)
        step = (
            slope / slope.norm(dim=1).mean().clamp_min(1e-12) * 0.04 * size
        )  # every variant moves equally far: directions compare
        states.append((here - step).detach() if slope.norm() > 1e-9 else here.detach())
    return _Descent(torch.stack(states[:-1]), values, plane)


@styled
def features(
    network: str = "digits_fm", block: int = 1, variant: str = "infonce_l2", tau: float = 0.5
) -> Explorer:
    """Explore the features of 40 real digits at t = 0.7: the network, its block, the variant, τ,
    and steps along the loss's gradient.

    Left: cosine similarity of the centred features, sorted by class. Middle: the features in the
    plane of their first two principal components, coloured by class; grey lines show how far the
    loss has pushed each. Right: the loss along the way.
    """
    _, y = _batch()
    figure, axes = panels(
        1, 3, width=11.2, height=3.9, gridspec_kw={"width_ratios": [1, 1, 0.75], "wspace": 0.06}
    )
    heat, plane, curve = axes[0]
    image = heat.imshow(np.zeros((_BATCH, _BATCH)), cmap=DIVERGING, vmin=-1, vmax=1)
    middles = np.arange(10) * (_BATCH // 10) + (_BATCH // 10 - 1) / 2
    heat.set_xticks(middles, range(10))
    heat.set_yticks(middles, range(10))
    heat.set(xlabel="class of digit $j$", ylabel="class of digit $i$")
    frame(heat)
    names = [panel.set_title(" ", loc="left", fontsize=10.5) for panel in axes[0]]
    figure.colorbar(image, ax=heat, label="cosine similarity", shrink=0.8, location="left")
    trails = LineCollection([], colors="#b0b0b0", linewidths=0.8, zorder=1)
    plane.add_collection(trails)
    dots = plane.scatter(
        np.zeros(_BATCH),
        np.zeros(_BATCH),
        s=30,
        c=[_TAB[int(c)] for c in y],
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
    )
    for c in range(10):
        plane.scatter([], [], s=30, color=_TAB[c], label=str(c))
    plane.legend(
        title="class",
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        handletextpad=0.1,
        fontsize=9,
        title_fontsize=9,
    )
    plane.set(
        xlim=(-3, 3),
        ylim=(-3, 3),
        xlabel="first component, relative",
        ylabel="second component, relative",
    )
    plane.set_aspect("equal")
    curve.set(
        xlim=(0, _STEPS), xlabel="step along the gradient", ylabel="loss, relative to its start"
    )
    (line,) = curve.plot([0], [0], color=REPEL)
    (now,) = curve.plot([0], [0], "o", color=REPEL, markersize=8, markeredgecolor="white")
    curve.set_ylim(-0.05, 1.08)

    def update(network: str, block: int, variant: str, tau: float, step: int) -> str:
        run = _descend(network, block, variant, tau)
        h, first = run.features[step], run.features[0]
        centred = torch.nn.functional.normalize(h - h.mean(0), dim=1)
        image.set_data((centred @ centred.T).numpy())
        unit = ((first - first.mean(0)) @ run.plane).abs().max() / 1.5
        shown = (
            (run.features[: step + 1] - first.mean(0)) @ run.plane / unit
        ).numpy()  # (step + 1, B, 2)
        dots.set_offsets(shown[-1])
        trails.set_segments(list(shown.transpose(1, 0, 2)) if step else [])
        values = np.array(run.loss)
        spread = np.ptp(values) or 1.0
        relative = (values - values.min()) / spread
        line.set_data(np.arange(len(values)), relative)
        now.set_data([step], [relative[step]])
        names[0].set_text(f"Block {block}, {dict((v, k) for k, v in _NETWORKS)[network]}")
        names[1].set_text(f"Pushed apart: step {step}")
        names[2].set_text(f"Loss {values[step]:.3f}")
        rank, norm = float(metrics.effective_rank(h)), float(h.norm(dim=1).mean())
        floor = f" Its floor is −log B = {-np.log(_BATCH):.2f}." if variant == "infonce_l2" else ""
        return (
            f"Loss {values[step]:.3f}.{floor} Effective rank {rank:.1f} of at most {_BATCH - 1}; "
            f"mean feature norm {norm:.1f}."
        )

    controls = {
        "step": slider(
            "steps along the gradient",
            0,
            0,
            _STEPS,
            1,
            tooltip="gradient descent on the features alone",
        ),
        "network": choice("network", _NETWORKS, network),
        "block": choice("block (from 1)", (1, 2, 3), block),
        "variant": choice("variant", _VARIANTS, variant),
        "tau": choice("temperature τ", (0.1, 0.25, 0.5, 1.0, 2.0), tau, tooltip="InfoNCE only"),
    }
    canvas = Canvas(figure, [image, trails, dots, *names, line, now, *heat.spines.values()])
    rows = [["step", "network"], ["block", "variant", "tau"]]
    play = play_for(controls["step"], frames=_STEPS)
    return Explorer(
        canvas,
        controls,
        update,
        rows=rows,
        play=play,
        title="Features and what a dispersive loss does to them",
    )
