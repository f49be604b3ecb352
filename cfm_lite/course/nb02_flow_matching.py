"""What the exercises of notebook 02, flow matching, ask for: mean and median, a floor by hand, a
training loop, lengths of pairs, OT inside each class.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite import draws
from cfm_lite._internal.networks import seeded
from cfm_lite.course import exercise
from cfm_lite.models import MLP

__all__ = ["floor_by_hand", "how_long", "mean_or_median", "repaired_coupling", "training_loop"]


@exercise("2.1")
def mean_or_median(answer: tuple[Any, Any]) -> str | None:
    """(squared, absolute) = (1, 0): the mean and the median of 0, 0, 0, 4."""
    if any(part is ... or part is None for part in answer):
        return "not answered yet. Put a number into `squared` and one into `absolute`."
    squared, absolute = (float(torch.as_tensor(part)) for part in answer)
    if (squared, absolute) == (0, 1):
        return "exchanged: the mean belongs to the squares, the median to the absolute values."
    if math.isclose(squared, 2):
        return (
            "`squared`: 2 is the middle between the smallest and the largest. Three of the four "
            "targets are 0; weigh them."
        )
    if not math.isclose(squared, 1, abs_tol=1e-3):
        return (
            "`squared`: set the derivative of the mean of (f - u)^2 to zero; f is the mean of the "
            "four targets."
        )
    if math.isclose(absolute, 1, abs_tol=1e-3):
        return (
            "`absolute`: at f = 1 a small step down makes three errors smaller and one larger, so "
            "1 is not the lowest point."
        )
    if not math.isclose(absolute, 0, abs_tol=1e-3):
        return (
            "`squared` is right. `absolute`: the lowest point is where as many targets lie above "
            "as below: the median."
        )
    return None


@exercise("2.2", ours=lambda s: s * math.pi / 2)
def floor_by_hand(normal_floor: Callable[[float], Any]) -> str | None:
    """normal_floor(s) = s pi / 2."""
    widths = (0.25, 0.5, 1.0, 2.0)
    mine = [normal_floor(s) for s in widths]
    if any(value is ... or value is None for value in mine):
        return "your function returns ... or None; return a number."
    nothing = float(normal_floor(0.0))
    if math.isnan(nothing):
        return (
            "for s = 0 it gives NaN: at t = 1 the fraction is 0 / 0. Take the times in the middle "
            "of n equal pieces, (k + 1/2) / n."
        )
    if abs(nothing) > 1e-6:
        return f"for s = 0 all data are one point, so the floor is 0; yours is {nothing:.3g}."
    given = torch.tensor([float(value) for value in mine], dtype=torch.float64)
    s = torch.tensor(widths, dtype=torch.float64)
    if torch.allclose(given, s * math.pi / 2, rtol=0.02):
        return None
    if torch.allclose(given, 1 + s**2, rtol=0.02):
        return (
            "this is the size of the targets, E[u^2], the loss of a network that says 0. The floor "
            "is what is left when x_t is known."
        )
    if torch.allclose(given, s**2 / (0.25 * s**2 + 0.25), rtol=0.02):
        return "this is the variance at t = 1/2 only. Average over all times from 0 to 1."
    if torch.allclose(given, (s * math.pi / 2).sqrt(), rtol=0.02):
        return "this is the root of the floor. The loss is a mean of squares."
    if abs(given[2] - math.pi / 2) < 0.03:
        return (
            "right for s = 1, but not for other widths: the numerator and the first term of the "
            "denominator both hold s^2."
        )
    return (
        "not right yet. Average s^2 / (t^2 s^2 + (1 - t)^2) over a fine grid of t in [0, 1]; for s "
        "= 1 it is pi / 2."
    )


@exercise("2.3")
def training_loop(my_loop: Callable[..., Any]) -> str | None:
    """my_loop(model, x1, steps, seed) -> (average, losses): draws, target, step and average."""
    start, x1, steps = _small_network(), _points(), 60
    trained, again = copy.deepcopy(start), copy.deepcopy(start)
    times: list[Any] = []
    hook = trained.register_forward_pre_hook(
        lambda _, given, named: times.append([*given, *named.values()][1:]), with_kwargs=True
    )
    answer = my_loop(trained, x1, steps, 0)
    hook.remove()
    if not (isinstance(answer, tuple) and len(answer) == 2):
        return "return two things: the averaged copy of the model, and the list of losses."
    average, seen = answer
    if average is ... or average is None:
        return "not answered yet: return the averaged copy of the model, and the list of losses."
    if not isinstance(average, torch.nn.Module):
        return (
            f"the first thing is of the type {type(average).__name__}; return the averaged copy, a "
            "network."
        )
    seen = [float(torch.as_tensor(value).detach()) for value in seen]
    if len(seen) != steps:
        return f"{steps} steps gave {len(seen)} losses; write down one number in every step."
    if all(map(torch.equal, trained.parameters(), start.parameters())):
        return "the weights of the model did not change: backward(), then a step of Adam."
    if len({round(value, 6) for value in seen}) < steps / 2:
        return "the losses repeat themselves. Draw fresh noise, times and rows in every step."
    if len(times) > 1 and all(map(torch.equal, times[0], times[1])):
        return "steps 0 and 1 drew the same times. Make the generator once, before the loop."
    if average is trained or all(map(torch.equal, average.parameters(), trained.parameters())):
        return "the average is the model itself. Make a copy with copy.deepcopy before the loop."
    right, wanted = _reference_loop(again, x1, steps)
    if _left(trained) > 10 * _left(again):
        return "the gradients of all steps add up. Call zero_grad() in every step."
    low, high = sum(wanted[-20:]) / 20 * 0.8, sum(wanted[-20:]) / 20 * 1.25
    if not low < sum(seen[-20:]) / 20 < high:
        return _wrong_loop(seen, wanted)
    other, _ = my_loop(copy.deepcopy(start), x1, steps, 0)
    if not all(map(torch.equal, other.parameters(), average.parameters())):
        return (
            "two runs with one seed differ. Draw everything from one torch.Generator, seeded with "
            "`seed`."
        )
    return _wrong_average(start, trained, average, right, again)


def _points() -> Tensor:
    """Two groups of points (600, 2), far from the origin, so that a sign matters."""
    g = torch.Generator().manual_seed(2)
    return 0.3 * torch.randn(600, 2, generator=g) + torch.tensor([3.0, -1.0])


def _small_network() -> torch.nn.Module:
    with seeded(0):
        return MLP(2, 16, 1)


def _reference_loop(
    model: torch.nn.Module, x1: Tensor, steps: int
) -> tuple[torch.nn.Module, list[float]]:
    g, adam = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), lr=2e-3)
    average, seen = copy.deepcopy(model), []
    for k in range(steps):
        data = x1[torch.randint(len(x1), (256,), generator=g)]
        noise, t = torch.randn(data.shape, generator=g), torch.rand(256, generator=g)
        loss = (model(torch.lerp(noise, data, t[:, None]), t) - (data - noise)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        seen.append(loss.item())
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters()):
                mean.lerp_(weight, 1 - min(0.99, (1 + k) / (10 + k)))
    return average, seen


def _wrong_loop(seen: list[float], wanted: list[float]) -> str:
    if not 0.8 < sum(seen[:3]) / sum(wanted[:3]) < 1.25:
        return (
            f"the first loss is {seen[0]:.2f}, and a network that says 0 has about "
            f"{wanted[0]:.2f} here. The target is data minus noise, and the loss is a mean over "
            "rows and coordinates."
        )
    return (
        f"your loss ends at {sum(seen[-20:]) / 20:.2f}, and should end near "
        f"{sum(wanted[-20:]) / 20:.2f}. Is the position t data + (1 - t) noise, and is the "
        "learning rate 2e-3?"
    )


def _left(model: torch.nn.Module) -> float:
    """The length of the gradient that a loop leaves behind."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return float(sum(grad.square().sum() for grad in grads)) ** 0.5


def _gap(a: torch.nn.Module, b: torch.nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters())
    return float(sum((x - y).detach().square().sum() for x, y in pairs)) ** 0.5


def _wrong_average(
    start: torch.nn.Module,
    trained: torch.nn.Module,
    average: torch.nn.Module,
    right: torch.nn.Module,
    reference: torch.nn.Module,
) -> str | None:
    """The average lags behind the model; how far is known from a run of our own."""
    lag, usual = _gap(average, trained) / _gap(start, trained), _gap(right, reference)
    usual /= _gap(start, reference)
    if lag > 0.9:
        return "the average is still the random start. Update it in every step, with lerp_."
    if 0.5 * usual < lag < 2 * usual:
        return None
    return (
        f"the average is {lag:.2f} of the way back to the start, and should be about {usual:.2f}. "
        "In step k the decay is min(0.99, (1 + k) / (10 + k))."
    )


@exercise("2.4")
def how_long(lengths_of: Callable[[float], Any]) -> str | None:
    """lengths_of(s) = (1 + s^2, (s - 1)^2)."""
    widths = (0.0, 0.5, 1.0, 3.0)
    mine = [lengths_of(s) for s in widths]
    if any(pair is ... or pair is None for pair in mine):
        return "your function returns ... or None; return two numbers: independent, optimal."
    given = torch.tensor([[float(value) for value in pair] for pair in mine], dtype=torch.float64)
    s = torch.tensor(widths, dtype=torch.float64)
    independent, optimal = 1 + s**2, (s - 1) ** 2
    if torch.allclose(given, torch.stack([optimal, independent], 1)):
        return "both are there, in the other order: independent first, then optimal."
    if not torch.allclose(given[:, 0], independent):
        return (
            "the first number: the variance of a difference of two independent numbers is the sum "
            "of their variances."
        )
    if torch.allclose(given[:, 1], (1 - s**2).abs()) or torch.allclose(given[:, 1], s**2 - 1):
        return (
            "the second number: the difference of the variances is not the variance of the "
            "difference. Put x1 = s x0 into (x1 - x0)^2."
        )
    if torch.allclose(given[:, 1], (s - 1).abs()):
        return "the second number is a mean of squares; yours is not squared."
    if torch.allclose(given[:, 1], (s + 1) ** 2):
        return (
            "the second number: this pairs the largest noise with the smallest data, the worst "
            "choice. Keep the order: x1 = s x0."
        )
    if not torch.allclose(given[:, 1], optimal):
        return (
            "the first number is right. The second: keep the order, x1 = s x0, and take the mean "
            "of (s x0 - x0)^2."
        )
    return None


def _cost(x0: Tensor, x1: Tensor) -> float:
    return float((x1 - x0).square().sum())


@exercise("2.5")
def repaired_coupling(ot_per_class: Callable[[Tensor, Tensor, Tensor], Any]) -> str | None:
    """The noise of each class permuted inside it, at the least cost; x1 and y as they were."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(60, 2, generator=generator), torch.randn(60, 2, generator=generator)
    y = torch.randint(3, (60,), generator=generator)
    x1 = x1 + 3 * torch.stack([(y == 0).float(), (y == 1).float()], 1)
    answer = ot_per_class(x0.clone(), x1.clone(), y.clone())
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        return "return three tensors, (x0, x1, y), as draws.minibatch_ot does."
    paired, data, labels = answer
    if not (torch.equal(data, x1) and torch.equal(labels, y)):
        return (
            "x1 and y must come back in the order in which they came in; only the noise is "
            "reordered."
        )
    if torch.equal(paired, x0):
        return "the noise is still in its old order; nothing was paired."
    if torch.equal(paired, draws.minibatch_ot(x0, x1)[0]):
        return (
            "this is OT over the whole batch: the noise of one class goes to others. Pair the rows "
            "of each class among themselves."
        )
    for label in y.unique():
        rows = y == label
        mine, own = paired[rows], x0[rows]
        if not torch.equal(mine.sort(0).values, own.sort(0).values):
            return (
                f"class {int(label)} does not have its own noise any more: its rows may only "
                "exchange among themselves."
            )
        best = _cost(draws.minibatch_ot(own, x1[rows])[0], x1[rows])
        if _cost(mine, x1[rows]) > best * (1 + 1e-4):
            return (
                f"the noise stays inside class {int(label)}, but there is a shorter pairing: use "
                "minibatch_ot on the rows of this class."
            )
    return None
