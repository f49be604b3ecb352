"""What the explorers of the plane share: velocities by name, particles with their labels, and how
improbable a state is.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cfm_lite import guidance, pretrained, samplers, theory
from cfm_lite.data import toy
from cfm_lite.methods import METHODS
from cfm_lite.viz import artists
from cfm_lite.viz.style import DATA

__all__ = [
    "FIELDS",
    "LABELS",
    "REPELLED",
    "STEPS",
    "Field",
    "exact",
    "excess",
    "field",
    "labelled",
    "start",
    "two_classes",
    "typical",
]

Field = Callable[
    [Tensor, Tensor, Tensor | None], Tensor
]  # (x (B, 2), t (B,), y (B,) or None) -> (B, 2)

WEIGHT = 0.35  # of the shipped networks
REPELLED = tuple((METHODS[name].label, name) for name in theory.EXACT[1:])
FIELDS = tuple(
    (f"{METHODS[name].label}, {how}", f"{prefix}{name}")
    for how, prefix in (("exact", ""), ("trained", "toy_"))
    for name in theory.EXACT
)
LABELS = (("both classes", -1), ("class 0", 0), ("class 1", 1))
STEPS = {
    step.__name__: step for step in (samplers.euler, samplers.midpoint, samplers.heun, samplers.rk4)
}


@functools.cache
def two_classes() -> theory.GaussianMixture:
    """The mixture that the shipped 2D networks learned."""
    return toy.mixture("two_classes")


def exact(mixture: theory.GaussianMixture, method: str, weight: float) -> Field:
    """The closed-form optimum of `method` on a mixture."""
    return lambda x, t, y: theory.optimal_velocity(mixture, x, t, y, method=method, weight=weight)


def field(name: str, weight: float = WEIGHT) -> Field:
    """A field of FIELDS: exact on the two-class mixture, or a shipped network."""
    return pretrained.load(name) if name.startswith("toy_") else exact(two_classes(), name, weight)


def start(n: int, label: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise x0 (n, 2) and labels y (n,): the same noise for every call, all of class `label`, or
    both classes in turn for -1.
    """
    x0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return x0, torch.arange(n) % 2 if label < 0 else torch.full((n,), label)


def labelled(moving: Field, y: Tensor) -> guidance.Velocity:
    """`moving` with its labels fixed."""
    return lambda x, t: moving(x, t, y)


@functools.cache
def typical(points: int = 65, n: int = 512) -> np.ndarray:
    """E[-log p_t(x | y)] (points,) of exact draws at evenly spaced times: what an unsurprising
    state scores, in nats.
    """
    mixture, g = two_classes(), torch.Generator().manual_seed(1)
    x1, y = mixture.sample(n, generator=g)
    x0 = torch.randn(x1.shape, generator=g, dtype=x1.dtype)
    ts = torch.linspace(0, 1, points, dtype=x1.dtype)
    t = ts.repeat_interleave(n)
    x = t[:, None] * x1.repeat(points, 1) + (1 - t[:, None]) * x0.repeat(points, 1)
    return -mixture.log_prob(x, t, y.repeat(points)).reshape(points, n).mean(1).numpy()


def excess(states: Tensor, ts: Tensor, y: Tensor) -> np.ndarray:
    """How improbable states (S, B, 2) at times (S,) are, in nats above the typical state of their
    class at that time: (S, B).
    """
    count, rows = states.shape[:2]
    surprise = -two_classes().log_prob(
        states.reshape(-1, 2), ts.repeat_interleave(rows).to(states), y.repeat(count)
    )
    known = typical()
    return (
        surprise.reshape(count, rows).numpy()
        - np.interp(ts.numpy(), np.linspace(0, 1, len(known)), known)[:, None]
    )


@functools.cache
def inside() -> float:
    """The excess, in nats, below which 95 % of the exact data lie."""
    x1, y = two_classes().sample(4000, generator=torch.Generator().manual_seed(2))
    return float(np.quantile(excess(x1[None], torch.ones(1, dtype=x1.dtype), y), 0.95))


@functools.cache
def density(label: int, limits: artists.Limits) -> np.ndarray:
    """The log density map of the data of one class, or for -1 of all, over `limits`."""
    mixture = two_classes()

    def log_density(x: Tensor) -> Tensor:
        return mixture.log_prob(
            x,
            torch.ones(len(x), dtype=x.dtype),
            None if label < 0 else torch.full((len(x),), label),
        )

    return artists.density_map(log_density, limits)


def cloud_colors(label: int, labels: Tensor) -> list[str]:
    """A colour for each point: data blue for those of class `label` (all for -1), a pale one for
    the others.
    """
    return [DATA if label in (-1, y) else "#d6e6f2" for y in labels.tolist()]
