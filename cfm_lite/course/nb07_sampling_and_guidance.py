"""What the exercises of notebook 07, sampling and guidance, ask for: the last step, an interval,
and what repulsion does to guidance.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise

__all__ = ["control_share", "last_step_factor", "mirrored_interval", "repelled_scale", "sign_trap"]

_EMPTY = "your function returns ... or None; return "


def _empty(value: Any) -> bool:
    return value is ... or value is None


def _number(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _close(a: Tensor, b: Any) -> bool:
    return a.shape == _number(b).shape and torch.allclose(a, _number(b), rtol=1e-4, atol=1e-6)


@exercise("7.1")
def last_step_factor(answer: Callable[[float, float, float], Any]) -> str | None:
    """shrink(c, h, std) = 1 - h c / ((1 - h)^2 std^2 + h^2)."""
    for c, h, std in ((1.0, 0.04, 0.35), (0.5, 0.1, 0.8), (0.02, 0.02, 0.3)):
        given = answer(c, h, std)
        if _empty(given):
            return _EMPTY + "the factor on x."
        mine, variance = _number(given), (1 - h) ** 2 * std**2 + h**2
        if _close(mine, 1 - h * c / variance):
            continue
        if _close(mine, 1 + h * c / variance):
            return (
                "the sign: the score points to the centre, s = -x / S, so the group becomes "
                "narrower, not wider."
            )
        if _close(mine, h * c / variance):
            return "this is how much is taken away. What is left of x? x - (h c / S) x."
        if _close(mine, 1 - h * c / variance**0.5):
            return (
                "you divided by the standard deviation; the score of a Gaussian divides by the "
                "variance S."
            )
        if _close(mine, 1 - h * c / std**2):
            return (
                "nearly: at t = 1 - h the group does not have its final variance yet. S = (1 - "
                "h)^2 std^2 + h^2."
            )
        if _close(mine, 1 - c / variance):
            return "the step has the length h: the term is h times c times s."
        return (
            "not yet. Put s = -x / S with S = (1 - h)^2 std^2 + h^2 into x + h c s and take out x."
        )
    return None


@exercise("7.2")
def mirrored_interval(answer: Callable[[float, float], Any]) -> str | None:
    """ours(low, high) = (1 - high, 1 - low)."""
    for low, high in ((0.0, 0.7), (0.2, 0.65), (0.0, 1.0), (0.5, 0.9)):
        given = answer(low, high)
        if _empty(given) or any(_empty(part) for part in given):
            return _EMPTY + "two numbers, the lower one first."
        mine = _number([float(part) for part in given])
        if len(mine) != 2:
            return f"your function returns {len(mine)} numbers; an interval has two ends."
        if _close(mine, [1 - high, 1 - low]):
            continue
        if _close(mine, [1 - low, 1 - high]):
            return (
                "both ends are right, but the interval runs backwards: the lower one comes first."
            )
        if _close(mine, [low, high]):
            return "this is still their interval. Their 0 is data, ours is noise: mirror both ends."
        if _close(mine, [-high, -low]):
            return "time does not become negative: their t is our 1 - t."
        return "not yet. Their t is our 1 - t; mirror both ends, and put the lower one first."
    return None


@exercise("7.3")
def repelled_scale(answer: Callable[[float, float], Any]) -> str | None:
    """felt(w, weight) = w / (1 - weight)."""
    for w, weight in ((1.85, 0.05), (3.0, 0.35), (1.0, 0.5), (2.0, 0.0)):
        given = answer(w, weight)
        if _empty(given):
            return _EMPTY + "one number."
        mine = _number(given)
        if _close(mine, w / (1 - weight)):
            continue
        if _close(mine, w * (1 - weight)):
            return (
                "the other way round: repulsion makes the velocity longer, so the difference c - u "
                "counts more."
            )
        if _close(mine, (w - weight) / (1 - weight)):
            return "the -λμ in the formula is a constant; it does not stand before c - u."
        if _close(mine, w + weight) or _close(mine, w + weight / (1 - weight)):
            return (
                "repulsion does not add to the scale, it multiplies it: all of u + w (c - u) is "
                "divided by the same number."
            )
        if _close(mine, 1 / (1 - weight)):
            return "this is for w = 1. The guidance scale multiplies c - u too."
        return "not yet. In (u + w (c - u) - λμ) / (1 - λ), collect what multiplies (c - u)."
    return None


@exercise("7.4")
def sign_trap(answer: Callable[[Tensor, float, Tensor], Any]) -> str | None:
    """put_back(v, weight, mean) = (1 - weight) v + weight mean."""
    g = torch.Generator().manual_seed(0)
    v, mean = torch.randn(20, 2, generator=g), torch.tensor([1.5, -0.5])
    for weight in (0.05, 0.35):
        given = answer((v - weight * mean) / (1 - weight), weight, mean)
        if _empty(given):
            return _EMPTY + "a velocity, of the shape of v."
        mine = torch.as_tensor(given)
        moved = (v - weight * mean) / (1 - weight)
        if mine.shape != v.shape:
            return (
                f"your function returns the shape {tuple(mine.shape)} for a velocity "
                f"{tuple(v.shape)}."
            )
        if torch.allclose(mine, v, atol=1e-5):
            continue
        if torch.allclose(mine, (1 - weight) * moved - weight * mean, atol=1e-5):
            return (
                "the copied line takes the mean away once more. In our time v changes its sign, "
                "the mean of the data does not."
            )
        if torch.allclose(mine, (moved - weight * mean) / (1 - weight), atol=1e-5):
            return (
                "this re-targets a second time, away from the mean. The inverse is asked for: from "
                "ΔFM's optimum back to v."
            )
        if torch.allclose(mine, -v, atol=1e-5):
            return "this gives their velocity. Ours has the other sign."
        if torch.allclose(mine, (1 - weight) * moved, atol=1e-5):
            return (
                "the length is right, the shift is missing: what has to be added so that -λμ goes "
                "away?"
            )
        return "not yet. Solve w = (v - λμ) / (1 - λ) for v."
    return None


@exercise("7.5")
def control_share(answer: Callable[[Tensor, Tensor, Tensor], Any]) -> str | None:
    """share(base, control, target) = 1 - E|control - target| / E|base - target|."""
    g = torch.Generator().manual_seed(0)
    target = torch.randn(40, 3, generator=g, dtype=torch.float64)
    base = target + 2 * torch.randn(40, 3, generator=g, dtype=torch.float64) + 0.5
    control = target + torch.rand(40, 1, generator=g, dtype=torch.float64) * torch.randn(
        40, 3, generator=g, dtype=torch.float64
    )
    given = answer(base, control, target)
    if _empty(given):
        return _EMPTY + "one number."
    mine = _number(given)
    if mine.dim():
        return (
            f"your function returns the shape {tuple(mine.shape)}; take the means over the rows "
            "and return one number."
        )
    far, near = ((x - target).norm(dim=1) for x in (base, control))
    if _close(mine, 1 - near.mean() / far.mean()):
        return None
    if _close(mine, near.mean() / far.mean()):
        return "this is the share that is missing; one minus it is the share that is explained."
    if _close(mine, 1 - far.mean() / near.mean()):
        return "upside down: the distance of the control belongs above, that of the base below."
    if _close(mine, 1 - near.square().mean() / far.square().mean()):
        return (
            "these are squared distances; the few rows that are far away then decide alone. Take "
            ".norm(dim=1) without a square."
        )
    if _close(mine, (1 - near / far).mean()):
        return (
            "you divided row by row. Take both means first, then divide; else one row with a small "
            "denominator decides."
        )
    if _close(mine, 1 - (control - base).norm(dim=1).mean() / far.mean()):
        return "the distances are those to the target, for the control and for the base."
    return (
        "not yet. Two mean distances to the target: that of the control, divided by that of the "
        "base, taken from 1."
    )
