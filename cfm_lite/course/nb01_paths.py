"""What the exercises of notebook 01, paths, ask for: a path of one's own, the ends of the field,
the order of paths, and the score.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise
from cfm_lite.data import toy
from cfm_lite.paths import Path

__all__ = ["find_the_bug", "slow_start", "two_ends", "who_goes_down"]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4)


@exercise("1.1")
def slow_start(path: Path) -> str | None:
    """A Path with alpha = t^2, sigma = 1 - t^2 and their derivatives."""
    if not isinstance(path, Path):
        return (
            f"`slow_start` is a {type(path).__name__}; make it with Path('slow start', alpha=…, "
            "sigma=…, d_alpha=…, d_sigma=…)."
        )
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    if not _close(path.alpha(t), t**2):
        return "alpha is not t**2 yet."
    if not _close(path.sigma(t), 1 - t**2):
        return (
            "sigma is not 1 - t**2 yet: at t = 0 all is noise (1), at t = 1 nothing of it is left "
            "(0)."
        )
    if not _close(path.d_alpha(t), 2 * t):
        return (
            "alpha and sigma are right. d_alpha is the derivative of t**2 with respect to t, as a "
            "tensor of the shape of t."
        )
    if _close(path.d_sigma(t), 2 * t):
        return "only a sign is missing: sigma falls, so d_sigma is negative."
    if not _close(path.d_sigma(t), -2 * t):
        return (
            "alpha, sigma and d_alpha are right. d_sigma is the derivative of 1 - t**2 with "
            "respect to t."
        )
    return None


@exercise("1.2")
def two_ends(
    answer: tuple[Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor], Any]],
) -> str | None:
    """(at_start, at_end): mean - x and x."""
    at_start, at_end = answer
    mixture = toy.mixture("two_classes")
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = mixture.mean()
    start, end = at_start(x, mean), at_end(x, mean)
    if any(value is ... or value is None for value in (start, end)):
        return "not answered yet: both functions must return a velocity of the shape of x."
    start, end = (
        torch.as_tensor(value, dtype=torch.float64).broadcast_to(x.shape) for value in (start, end)
    )
    zero = torch.zeros(len(x), dtype=torch.float64)
    if _close(start, mean.expand(32, 2)):
        return "at_start: E[x1] is right, but the velocity is x1 - x0, and x0 = x is known there."
    if _close(start, x - mean):
        return "at_start has the wrong sign: velocities point from noise to data."
    if _close(start, -x):
        return "at_start: the data have a mean, and at t = 0 it is the best guess of x1 from x."
    if not _close(start, mixture.velocity(x, zero)):
        return (
            "at_start: take the mean of x1 - x0 when x0 = x is known and x1 is independent of it."
        )
    if _close(end, x - mean):
        return (
            "at_end: x1 = x is right. The other term is the mean of the noise, not that of the "
            "data."
        )
    if _close(end, -x) or _close(end, mean - x):
        return "at_end: at t = 1 you stand on the data, x = x1. What is unknown is x0, with mean 0."
    if not _close(end, mixture.velocity(x, zero + 1)):
        return (
            "at_start is right. at_end: take the mean of x1 - x0 when x1 = x is known and x0 is "
            "independent of it."
        )
    return None


@exercise("1.3")
def who_goes_down(answer: Any) -> str | None:
    """The standard normal's quantile of 30 %, about -0.524."""
    value = float(torch.as_tensor(answer, dtype=torch.float64))
    right = torch.special.ndtri(torch.tensor(0.3, dtype=torch.float64)).item()
    if abs(value - right) < 0.02:
        return None
    if abs(value + right) < 0.02:
        return "this border has 30 % of the noise above it. The lower group takes the lowest 30 %."
    if abs(value) < 1e-6:
        return "0 would send half of the noise down, but only 30 % of the data are there."
    if abs(value - 0.3) < 1e-6:
        return (
            "0.3 is the share, not the place. Which value of a standard normal has 30 % of the "
            "mass below it?"
        )
    if abs(value + 0.25) < 0.02:
        return (
            "this is the middle between the two groups, a place of the data. The question is about "
            "the noise, whose order is kept."
        )
    return (
        "not right yet. The share of noise below the border must equal the share of data in the "
        "lower group: ndtri(torch.tensor(0.3))."
    )


@exercise("1.4")
def find_the_bug(score_from: Callable[[Tensor, Tensor, Any], Any]) -> str | None:
    """score_from(x, v, t) = -(x - t v) / (1 - t)."""
    mixture = toy.mixture("two_classes")
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.2, 0.7, 0.95):
        time = torch.full((32,), t, dtype=torch.float64)
        v, right = mixture.velocity(x, time), mixture.score(x, time)
        mine = score_from(x, v, t)
        if mine is ... or mine is None:
            return "your function returns ... or None; return the score, of the shape of x."
        if _close(mine, right):
            continue
        if _close(mine, right * (1 - t)):
            return (
                "this is still minus the guess of the noise. The density gets steeper near the "
                "data: which factor is missing?"
            )
        if _close(mine, -right):
            return (
                "the size is right, the sign is not: the density rises towards the data, against "
                "the noise."
            )
        if _close(mine, right / (1 - t)):
            return "divided once too often: -(x - αx1)/σ² is -x0/σ, for x - αx1 = σ x0."
        return (
            f"at t = {t} it does not agree with the exact score yet. s = -E[x0 | x_t] / sigma(t), "
            "with sigma = 1 - t."
        )
    return None
