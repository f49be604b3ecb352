"""What the exercises of notebook 04 ask for: ΔFM's best velocity, its lowest loss, the gap of
figure 3, other negatives, the way back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise
from cfm_lite.data import toy

__all__ = ["best_velocity", "gap_factor", "lowest_loss", "mean_of_other_class", "undo"]


def _draw(rows: int = 50) -> tuple[Tensor, Tensor]:
    """Right and wrong velocities (rows, 3), neither centred."""
    g = torch.Generator().manual_seed(4)
    u, u_neg = torch.randn(2, rows, 3, generator=g, dtype=torch.float64)
    return u + 1.5, 2 * u_neg - 0.5


def _as_double(value: Any) -> Tensor:
    if value is None or value is ...:
        raise TypeError("NoneType")  # what `course.check` takes for a stub
    return torch.as_tensor(value).detach().double()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@exercise("4.1")
def best_velocity(answer: Callable[..., Any]) -> str | None:
    """best(u, u_neg, weight) = (u - weight u_neg) / (1 - weight)."""
    u, u_neg = _draw()
    for weight in (0.35, 0.05, 0.9, 0.0):
        mine, right = _as_double(answer(u, u_neg, weight)), (u - weight * u_neg) / (1 - weight)
        if mine.shape != right.shape:
            return (
                f"best(...) has shape {tuple(mine.shape)} for u of shape {tuple(u.shape)}; it is "
                "one velocity per pair, of the same shape."
            )
        if _same(mine, right):
            continue
        if _same(mine, u - weight * u_neg):
            return (
                "the factor 1/(1 - λ) is missing: collect the two terms with f before you divide."
            )
        if _same(mine, (u + weight * u_neg) / (1 - weight)):
            return (
                "the sign of u_neg is wrong: this moves towards the wrong velocity. The second "
                "term of the loss is subtracted."
            )
        if _same(mine, (u - weight * u_neg) / (1 + weight)):
            return (
                "1/(1 + λ) belongs to a loss that adds the second term; here it is subtracted: f - "
                "λ f = (1 - λ) f."
            )
        return f"not right at λ = {weight:g}. Solve (f - u) - λ (f - u_neg) = 0 for f."
    return None


@exercise("4.2")
def lowest_loss(answer: Callable[..., Any]) -> str | None:
    """floor(u, u_neg, weight): the loss at its minimum over one velocity f for all rows."""
    u, u_neg = _draw()
    for weight in (0.35, 0.8, 0.0):
        f = (u.mean(0) - weight * u_neg.mean(0)) / (1 - weight)
        attract, repel = (((f - target) ** 2).mean() for target in (u, u_neg))
        mine, right = _as_double(answer(u, u_neg, weight)), attract - weight * repel
        if mine.numel() != 1:
            return (
                f"floor(...) has {mine.numel()} values; the lowest loss is one number. Take the "
                "mean over rows and coordinates."
            )
        mine = mine.reshape(())
        if _same(mine, right):
            continue
        if _same(mine, 3 * right):
            return (
                "a factor of the dimension: the library takes the mean over the coordinates, not "
                "the sum."
            )
        if _same(mine, attract):
            return "this is the attracting term alone; subtract λ times the mean distance to u_neg."
        each = (u - weight * u_neg) / (1 - weight)
        rowwise = ((u - each) ** 2).mean() - weight * ((each - u_neg) ** 2).mean()
        if _same(mine, rowwise):
            return (
                "you let every pair have a velocity of its own. At one (x, t, y) the network gives "
                "one f for all pairs: use the means."
            )
        if mine >= 0 > right:
            return (
                "the lowest loss is negative here. Put f* = (mean u - λ mean u_neg) / (1 - λ) into "
                "the loss."
            )
        return (
            f"not right at λ = {weight:g}. Put f* = (mean u - λ mean u_neg) / (1 - λ) into mean |f "
            "- u|² - λ mean |f - u_neg|²."
        )
    return None


def _factor(weight: float, n: int = 20_001) -> float:
    """1 + weight / (1 - weight) times the integral of S^(-1 / (2 (1 - weight))), by the trapezoidal
    rule.
    """
    t = torch.linspace(0, 1, n, dtype=torch.float64)
    spread = t**2 + (1 - t) ** 2
    return float(
        1 + weight / (1 - weight) * torch.trapezoid(spread ** (-1 / (2 * (1 - weight))), t)
    )


@exercise("4.3")
def gap_factor(answer: Callable[..., Any]) -> str | None:
    """factor(weight): the gap at t = 1 over the gap of the data."""
    for weight in (0.3, 0.05, 0.5, 0.7, 0.0):
        mine, right = float(answer(weight)), _factor(weight)
        if abs(mine - right) <= 5e-3 * right:
            continue
        if weight == 0:
            return f"at λ = 0 nothing is repelled and the factor must be 1; yours is {mine:.3f}."
        if abs(mine - 1 / (1 - weight)) < 1e-2:
            return (
                "1/(1 - λ) is the gap of the mean target. A particle off its class's line is "
                "carried further: integrate d."
            )
        if abs(mine - (right - 1)) < 5e-3 * right:
            return (
                "this is d(1), what the gap has more than the data's; the gap itself is Δ + d(1), "
                "so add 1."
            )
        fixed = _factor(0.5)
        if abs(mine - fixed) < 1e-2:
            return (
                "this is the value for λ = 0.5; the exponent of S and the factor in front both "
                "depend on λ."
            )
        return (
            f"not right at λ = {weight:g}: yours is {mine:.3f}. The exponent of S is -1/(2(1 - "
            "λ)), the factor in front is λ/(1 - λ)."
        )
    return None


@exercise("4.4")
def mean_of_other_class(answer: Any) -> str | None:
    """The mean negative (2, 2) of classes 0 and 1 of two_classes with other_class: each is the mean
    of the other class.
    """
    mine = _as_double(answer)
    if mine.shape != (2, 2):
        return (
            f"the answer has shape {tuple(mine.shape)}; it must be (2, 2): a row for class 0, then "
            "a row for class 1."
        )
    own = toy.mixture("two_classes").mean(torch.arange(2))
    if torch.allclose(mine, own.flip(0), atol=0.05):
        return None
    if torch.allclose(mine, own, atol=0.05):
        return (
            "these are the means of the classes themselves; the negatives of class 0 come from "
            "class 1."
        )
    if torch.allclose(mine, own.mean(0).expand(2, 2), atol=0.05):
        return (
            "this is the mean of all data, which in_batch has; other_class never draws from the "
            "row's own class."
        )
    if torch.allclose(mine, -own.flip(0), atol=0.05):
        return "the sign is wrong: E[u_neg] = E[x1 - x0] = + E[x1], for the noise has mean 0."
    return (
        "not right: E[u_neg | y] = E[x1 | y' ≠ y], since x0 has mean 0. `mixture.mean(labels)` "
        "gives the means of classes."
    )


@exercise("4.5")
def undo(answer: Callable[..., Any]) -> str | None:
    """undo(v, mean, weight) = (1 - weight) v + weight mean."""
    v, mean = _draw()
    for weight in (0.05, 0.35, 0.8):
        biased = (v - weight * mean) / (1 - weight)
        mine = _as_double(answer(biased, mean, weight))
        if _same(mine, v):
            continue
        if _same(mine, (1 + weight) * biased - weight * mean):
            return (
                "this is the line with the mistake: it moves further away. Solve v* = (v - λ m)/(1 "
                "- λ) for v."
            )
        if _same(mine, (1 - weight) * biased - weight * mean):
            return (
                "the scale is undone, the shift has the wrong sign: λ m was subtracted, so it "
                "comes back with +."
            )
        if _same(mine, (1 - weight) * biased):
            return "this undoes the scale but not the shift: add λ m."
        return (
            f"not right at λ = {weight:g}: multiply v* = (v - λ m)/(1 - λ) by (1 - λ), then bring "
            "λ m to the other side."
        )
    return None
