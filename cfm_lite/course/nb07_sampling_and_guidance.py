"""What the exercises of notebook 07, sampling and guidance, ask for: the last step, an interval,
guidance itself, and what repulsion does to it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise

__all__ = [
    "control_share",
    "guided_by_hand",
    "last_step_factor",
    "mirrored_interval",
    "repelled_scale",
]

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
            "not yet. Put s = -x / S with S = (1 - h)^2 std^2 + h^2 into x + h eta s and take out "
            "x."
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


class _Counted:
    """A small conditional network that counts the rows of each call."""

    num_classes = 3

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.rows.append(len(x))
        return torch.sin(x + y.to(x.dtype)[:, None] ** 2) + t[:, None]


@exercise("7.3")
def guided_by_hand(my_cfg: Callable[..., Any]) -> str | None:
    """my_cfg(model, y, scale, interval) agrees with guidance.cfg and computes no row in vain."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, one = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([2])
    cases = [
        (labels, 3.0, (0.0, 1.0), 0.4, 12, "guidance over the whole time"),
        (labels, 3.0, (0.3, 0.7), 0.3, 12, "the lower end of the interval belongs to it"),
        (labels, 3.0, (0.3, 0.7), 0.7, 12, "the upper end of the interval belongs to it"),
        (labels, 3.0, (0.3, 0.7), 0.71, 6, "outside the interval B rows are enough"),
        (labels, 1.0, (0.0, 1.0), 0.4, 6, "scale 1 is the conditional velocity, from B rows"),
        (labels, 0.0, (0.0, 1.0), 0.4, 12, "scale 0 is the velocity of all data"),
        (one, 2.0, (0.0, 1.0), 0.4, 12, "one label counts for all rows"),
    ]
    for y, scale, interval, time, rows, what in cases:
        model, t = _Counted(), torch.full((6,), time, dtype=torch.float64)
        velocity = my_cfg(model, y, scale, interval)
        if not callable(velocity):
            return "my_cfg must return a function of x and t."
        mine = velocity(x, t)
        if _empty(mine) or not isinstance(mine, Tensor):
            return "your velocity returns ... or None; return a tensor of the shape of x."
        label = y.expand(6)
        of_class, of_all = _Counted()(x, t, label), _Counted()(x, t, torch.full_like(label, 3))
        inside = interval[0] <= time <= interval[1]
        right = of_all + scale * (of_class - of_all) if inside else of_class
        if mine.shape != x.shape:
            return f"{what}: the shape must be {tuple(x.shape)}; yours is {tuple(mine.shape)}."
        if torch.allclose(mine, of_class + scale * (of_class - of_all)) and scale not in (0, 1):
            return "here w = 1 means no guidance: start at the velocity of all data."
        if not torch.allclose(mine, right):
            return f"{what}: the velocity is not right yet."
        if model.rows != [rows] and not (scale == 0 and model.rows == [6]):
            return f"{what}: one call on {rows} rows is enough; yours made calls on {model.rows}."
    return None


@exercise("7.4")
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
                "the other way round: repulsion makes the velocity longer, so the difference of "
                "the two velocities counts more."
            )
        if _close(mine, (w - weight) / (1 - weight)):
            return "the -λμ of T is a constant; it does not stand before the difference."
        if _close(mine, w + weight) or _close(mine, w + weight / (1 - weight)):
            return (
                "repulsion does not add to the scale, it multiplies it: T divides the whole guided "
                "velocity by one number."
            )
        if _close(mine, 1 / (1 - weight)):
            return "this is for w = 1. The guidance scale multiplies the difference, too."
        return (
            "not yet. Apply T to the guided velocity, and collect what multiplies the difference."
        )
    return None


def _share(base: Tensor, control: Tensor, target: Tensor) -> Tensor:
    return 1 - (control - target).norm(dim=1).mean() / (base - target).norm(dim=1).mean()


@exercise("7.5", ours=_share)
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
