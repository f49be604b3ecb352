"""What the exercises of notebook 03, trajectory drift, ask for: where errors come from, what
becomes of them, and the velocity deficit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite import metrics, samplers, theory
from cfm_lite.course import exercise
from cfm_lite.data import toy

__all__ = ["blind_spot", "forgotten", "landing", "shortfall", "split_errors", "two_samplers"]


def _class_0() -> theory.GaussianMixture:
    both = toy.mixture("two_classes")
    return theory.GaussianMixture(both.weights[:2], both.means[:2], 0.35)


def _numbers(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@exercise("3.1")
def landing(answer: Any) -> str | None:
    """One Euler step from noise lands at the mean of the data, (0.4, 1.35)."""
    mine, mixture = _numbers(answer).flatten(), _class_0()
    if len(mine) != 2:
        return (
            f"the landing point has two coordinates; yours has {len(mine)} numbers. All particles "
            "land on one and the same point."
        )
    if torch.allclose(mine, mixture.mean(), atol=5e-3):
        return None
    if torch.allclose(mine, -mixture.mean(), atol=5e-3):
        return (
            "the sign is turned round: the velocity is x1 - x0, so x0 cancels and +E[x1] is left."
        )
    if torch.allclose(mine, mixture.means.sum(0), atol=5e-3):
        return "this is the sum of the two centres; each has the weight 1/2."
    if any(torch.allclose(mine, mean, atol=5e-3) for mean in mixture.means):
        return (
            "this is the centre of one group. At t = 0 no particle knows yet to which group it "
            "belongs: the velocity averages over both."
        )
    if torch.allclose(mine, torch.zeros_like(mine)):
        return (
            "zero is the mean of the noise. x0 + E[x1 - x0 | x0]: the known x0 cancels; the mean "
            "of what is left?"
        )
    return (
        "not yet. Given x0, E[x1 - x0 | x0] = E[x1] - x0, because x1 is independent of x0. Add x0."
    )


@exercise("3.2")
def two_samplers(answer: tuple[Callable[..., Any], Callable[..., Any]]) -> str | None:
    """(my_euler, my_heun): all states on any grid of times, with one and two calls a step."""
    if len(answer) != 2:
        return "give two functions: (my_euler, my_heun)."
    field = toy.mixture("two_classes").velocity
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    forward = torch.tensor([0.0, 0.1, 0.35, 0.4, 0.8, 0.95], dtype=torch.float64)
    for mine, name, calls in zip(answer, ("my_euler", "my_heun"), (1, 2)):
        step = getattr(samplers, name.removeprefix("my_"))
        for ts, what in ((forward, "uneven times"), (forward.flip(0), "times that run backwards")):
            hint = _wrong_sampler(mine, name, calls, step, field, x, ts, what)
            if hint is not None:
                return hint
    return None


def _wrong_sampler(
    mine: Callable[..., Any],
    name: str,
    calls: int,
    step: samplers.Step,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    ts: Tensor,
    what: str,
) -> str | None:
    seen: list[Tensor] = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.as_tensor(t))
        return field(x, t)

    states, kept = mine(counted, x, ts), x.clone()
    right = torch.stack(list(samplers.trajectory(field, x, ts, step)))
    if states is None or states is ...:
        return f"{name} returns None or ...; return all states, a tensor (S, B, D)."
    if isinstance(states, list):
        return f"{name} returns a list; stack the states: torch.stack(states)."
    if not torch.equal(x, kept):
        return f"{name} changed the noise in place. Write x = x + ..., not x += ...."
    if any(t.shape != (len(x),) for t in seen):
        return (
            f"{name} calls the velocity with a time of another shape than (B,): t.expand(len(x))."
        )
    if states.shape != right.shape:
        return (
            f"{name}: for {len(ts)} times the states must have the shape {tuple(right.shape)}, the "
            f"start included; yours have {tuple(states.shape)}."
        )
    if len(seen) != calls * (len(ts) - 1):
        return (
            f"{name} calls the velocity {len(seen)} times in {len(ts) - 1} steps; {calls} per step "
            "are enough."
        )
    if torch.allclose(states, right, atol=1e-9):
        return None
    middle = torch.stack(list(samplers.trajectory(field, x, ts, samplers.midpoint)))
    if name == "my_heun" and torch.allclose(states, middle, atol=1e-9):
        return "my_heun is the midpoint rule: make the trial step to the end of the interval."
    return (
        f"{name}, {what}: wrong by {float((states - right).abs().max()):.3g}. The length of a step "
        "is later - t; Heun's second velocity is asked for at the trial point and the later time."
    )


@exercise("3.3")
def blind_spot(answer: Any) -> str | None:
    """A cloud whose drift is below -0.5 nats."""
    if (
        not isinstance(answer, Tensor)
        or answer.dim() != 2
        or answer.shape[1] != 2
        or len(answer) < 100
    ):
        seen = (
            f"shape {tuple(answer.shape)}"
            if isinstance(answer, Tensor)
            else f"type {type(answer).__name__}"
        )
        return (
            f"`cloud` has {seen}; it must be a tensor (500, 2), a point per row. One point may be "
            "repeated: point.repeat(500, 1)."
        )
    drift = float(
        metrics.drift(answer.double()[None], _class_0(), generator=torch.Generator().manual_seed(0))
    )
    if drift < -0.5:
        return None
    if drift > 0.5:
        return (
            f"its drift is {drift:.2f} nats: these points lie where there are few data. Move them "
            "to where the density is high."
        )
    return (
        f"its drift is {drift:.2f} nats, near that of the data themselves. Move the points closer "
        "to where the density is highest."
    )


@exercise("3.4", ours=lambda t, std: std / (t**2 * std**2 + (1 - t) ** 2) ** 0.5)
def forgotten(answer: Callable[[Tensor, float], Any]) -> str | None:
    """forget(t, std) = std / sqrt(t^2 std^2 + (1 - t)^2)."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for std in (0.35, 0.8, 2.0):
        mine = answer(t, std)
        if mine is ... or mine is None:
            return "your function returns ... or None; return one factor per time in t."
        mine, width = _numbers(mine), (t**2 * std**2 + (1 - t) ** 2).sqrt()
        if mine.shape != t.shape:
            return (
                f"for 11 times your function returns the shape {tuple(mine.shape)}; one factor per "
                "time is asked for."
            )
        if torch.allclose(mine, std / width, rtol=1e-4):
            continue
        if torch.allclose(mine, width / std, rtol=1e-4):
            return (
                "upside down: where the cloud is wide at t and narrow at the end, an error must "
                "shrink."
            )
        if torch.allclose(mine, width, rtol=1e-4):
            return "this is the width at time t. The factor compares it with the width at the end."
        if torch.allclose(mine, std**2 / width**2, rtol=1e-4):
            return (
                "this is a ratio of variances; a distance goes with the standard deviation, its "
                "root."
            )
        if torch.allclose(mine, 1 / width, rtol=1e-4):
            return (
                "nearly: you assumed that the cloud has width 1 at the end. At t = 1 its width is "
                "std."
            )
        if torch.allclose(mine, std / (1 - t + t * std), rtol=1e-4):
            return (
                "standard deviations do not add up; variances of independent parts do: t^2 std^2 + "
                "(1 - t)^2, and then the root."
            )
        return (
            "not yet. At t = 1 nothing is left to happen, so the factor is 1; at t = 0 it is std. "
            "Between: std / width at t."
        )
    return None


@exercise("3.5")
def split_errors(answer: Callable[[Tensor, Tensor, Tensor], Any]) -> str | None:
    """split(few, fine, true) = (mean |few - fine|, mean |fine - true|)."""
    g = torch.Generator().manual_seed(0)
    few, fine, true = (
        torch.randn(50, 2, generator=g, dtype=torch.float64) + k for k in (0.0, 1.0, 5.0)
    )
    mine = answer(few, fine, true)
    if mine is ... or mine is None or any(part is ... or part is None for part in mine):
        return (
            "one of the two is still `...`; put a mean distance into `of_steps` and another into "
            "`of_network`."
        )
    steps, network = (_numbers(part) for part in mine)
    pairs = {"steps": (few, fine), "network": (fine, true), "both": (few, true)}
    right = {name: (a - b).norm(dim=1).mean() for name, (a, b) in pairs.items()}
    if steps.dim() or network.dim():
        return (
            "each of the two must be one number: the mean over the rows of the distance, "
            ".norm(dim=1).mean()."
        )
    if torch.allclose(steps, right["steps"]) and torch.allclose(network, right["network"]):
        return None
    if torch.allclose(steps, right["network"]) and torch.allclose(network, right["steps"]):
        return (
            "the two are exchanged: `few` and `fine` are the same network, so their distance is "
            "due to the steps."
        )
    if torch.allclose(network, right["both"]):
        return (
            "`of_network` compares `few` with `true`, which differ in two things. Which two clouds "
            "differ in the velocity alone?"
        )
    if torch.allclose(steps, right["both"]):
        return (
            "`of_steps` compares `few` with `true`, which differ in two things. Which two clouds "
            "differ in the number of steps alone?"
        )
    if torch.allclose(steps, (few.mean(0) - fine.mean(0)).norm()):
        return (
            "this is the distance of the clouds' centres. The rows are paired: take the distance "
            "row by row, then the mean."
        )
    if torch.allclose(steps, (few - fine).square().mean()):
        return (
            "this is a mean square over coordinates. Take the length of each row's difference, "
            ".norm(dim=1), and then the mean."
        )
    return (
        "not yet. Subtract two clouds, take the length of each row, .norm(dim=1), and the mean "
        "over the rows."
    )


@exercise("3.6")
def shortfall(answer: Callable[[Tensor, float], Any]) -> str | None:
    """deficit_at_start(mean, std) = sqrt((|μ|^2 + D) / (|μ|^2 + D + D std^2))."""
    cases = [
        (torch.tensor(m, dtype=torch.float64), std)
        for m, std in (([3.0, 0.0], 0.5), ([0.0, 1.0, 2.0], 1.0), ([0.4], 2.0))
    ]
    for mean, std in cases:
        given = answer(mean, std)
        if given is ... or given is None:
            return "your function returns ... or None; return one number."
        mine, d, square = _numbers(given), len(mean), mean.square().sum()
        kept = square + d
        if mine.dim():
            return f"your function returns the shape {tuple(mine.shape)}; return one number."
        if torch.allclose(mine, (kept / (kept + d * std**2)).sqrt(), rtol=1e-4):
            continue
        if torch.allclose(mine, kept / (kept + d * std**2), rtol=1e-4):
            return "this is the ratio of the squares; take the root."
        if torch.allclose(mine, ((kept + d * std**2) / kept).sqrt(), rtol=1e-4):
            return "upside down: the velocity is the shorter one, so the ratio lies below 1."
        if torch.allclose(mine, (kept / (kept + std**2)).sqrt(), rtol=1e-4):
            return "the spread of the data adds std^2 in each of the D dimensions, not once."
        if torch.allclose(mine, ((square + 1) / (square + 1 + std**2)).sqrt(), rtol=1e-4):
            return (
                "the variances count once per dimension: the noise adds D, the data D std^2. "
                "len(mean) is D."
            )
        if torch.allclose(mine, (square / (square + d * std**2)).sqrt(), rtol=1e-4):
            return (
                "the noise x0 is missing: it stands in the velocity and in the target alike, and "
                "adds D to both."
            )
        return (
            "not yet. E|μ - x0|^2 = |μ|^2 + D for the velocity; the target has the same plus the "
            "spread of x1, D std^2."
        )
    return None
