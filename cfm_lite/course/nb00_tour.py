"""What the exercises of notebook 00, the tour, ask for: the linear path, the direction of time, and
what λ does to a speed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise
from cfm_lite.data import toy

__all__ = ["move_by_hand", "what_weight_does", "which_end"]


def _pair(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).flatten()


@exercise("0.1")
def move_by_hand(answer: Any) -> str | None:
    """(place, speed) at t = 0.25 between noise (2, 0) and data (-2, 4): (1, 1) and (-4, 4)."""
    if any(part is ... or part is None for part in answer):
        return (
            "not answered yet. Put two numbers into `place` and two into `speed`, for example "
            "place = [0, 0]."
        )
    place, speed = map(_pair, answer)
    if len(place) != 2 or len(speed) != 2:
        return (
            f"`place` and `speed` need two coordinates each; yours have {len(place)} and "
            f"{len(speed)}. A velocity is a vector."
        )
    if torch.allclose(place, _pair([-1, 3])):
        return (
            "this is the place at t = 0.75: you took x0 for the data. At t = 0.25 three quarters "
            "are still noise."
        )
    if not torch.allclose(place, _pair([1, 1])):
        return (
            "`place` is not right yet: x_t = t x1 + (1 - t) x0, coordinate by coordinate, with t = "
            "0.25."
        )
    if torch.allclose(speed, _pair([4, -4])):
        return (
            "`place` is right; `speed` has the wrong sign. It points from noise to data: x1 - x0."
        )
    if torch.allclose(speed, _pair([-1, 1])):
        return (
            "`place` is right; `speed` is the way covered so far. The velocity is the way per unit "
            "of time; t is not a factor in it."
        )
    if not torch.allclose(speed, _pair([-4, 4])):
        return "`place` is right; `speed` is not: differentiate x_t = t x1 + (1 - t) x0 by t."
    return None


@exercise("0.2")
def which_end(answer: Callable[..., Tensor]) -> str | None:
    """to_ours(theirs, x, t) = -theirs(x, 1 - t)."""
    mixture = toy.mixture("two_classes")
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0.05, 0.9, 64, dtype=torch.float64)
    right = mixture.velocity(x, t)

    def theirs(x: Tensor, t: Tensor) -> Tensor:
        return -mixture.velocity(x, 1 - t)

    mine = answer(theirs, x, t)
    if mine is ... or mine is None:
        return "your function returns ... or None; return a velocity, of the shape of x."
    if torch.allclose(mine, right):
        return None
    if torch.allclose(mine, -right):
        return (
            "the time is right, the sign is not: played backwards, a step to the left becomes a "
            "step to the right."
        )
    if torch.allclose(mine, -theirs(x, t)):
        return "the sign is right, the clock is not: at our t = 0 (noise), which time do they show?"
    if torch.allclose(mine, theirs(x, t)):
        return "this is still their velocity. Change the clock and the direction."
    if torch.allclose(mine, -theirs(-x, 1 - t)) or torch.allclose(mine, theirs(-x, 1 - t)):
        return (
            "leave x alone: both programs speak of the same places. Only time and direction change."
        )
    return (
        "not right yet. Ask `theirs` at the same x, at the time that their clock shows, and turn "
        "the result round."
    )


@exercise("0.3")
def what_weight_does(answer: Callable[[float], float]) -> str | None:
    """speed_up(weight) = 1 / (1 - weight)."""
    weights = (0.0, 0.05, 0.35, 0.5, 0.9)
    mine = [answer(weight) for weight in weights]
    if any(value is ... or value is None for value in mine):
        return "your function returns ... or None; return a number."
    given = torch.tensor([float(value) for value in mine], dtype=torch.float64)
    lam = torch.tensor(weights, dtype=torch.float64)
    if torch.allclose(given, 1 / (1 - lam), rtol=1e-4):
        return None
    if torch.allclose(given, 1 - lam, rtol=1e-4):
        return "upside down: this would make ΔFM slower. Solve (v* - v) - λ v* = 0 for v*."
    if torch.allclose(given, 1 + lam, rtol=1e-4):
        return (
            "nearly right for a small λ, but too little for a large one: the push is λ v*, and "
            "v* itself has grown. Solve (v* - v) - λ v* = 0."
        )
    if torch.allclose(given, lam / (1 - lam), rtol=1e-4):
        return (
            "this is what is added to v. The question is the whole length: v + that, divided by v."
        )
    if abs(given[0] - 1) > 1e-6:
        return "with λ = 0 nothing is repelled, so the factor must be 1 there. Yours is not."
    return "not right yet. With a zero mean negative the optimum is v* = v / (1 - λ); divide by v."
