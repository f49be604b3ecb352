"""What the exercises of notebook 04 ask for: ΔFM's best velocity, its lowest loss, the whole
loss, the gap of figure 3, other negatives, the way back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise
from cfm_lite.data import toy

__all__ = [
    "best_velocity",
    "gap_factor",
    "lowest_loss",
    "mean_of_other_class",
    "undo",
    "whole_loss",
]


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
    """lowest(u, u_neg, place, weight): the loss at its minimum over one velocity per place."""
    u, u_neg = _draw(60)
    place = torch.arange(60) % 7 * 10  # the numbers of the places have gaps
    u = u + place[:, None] / 10
    for weight in (0.35, 0.8, 0.0):
        attract, repel = (_after(u, u_neg, place, weight, target) for target in (u, u_neg))
        right = attract - weight * repel
        mine = _as_double(answer(u.clone(), u_neg.clone(), place, weight))
        if mine.numel() != 1:
            return (
                f"lowest(...) has {mine.numel()} values; the lowest loss is one number. Take the "
                "mean over rows and coordinates."
            )
        mine = mine.reshape(())
        if _same(mine, right):
            continue
        one = _after(u, u_neg, place * 0, weight, u) - weight * _after(
            u, u_neg, place * 0, weight, u_neg
        )
        each = (u - weight * u_neg) / (1 - weight)
        rowwise = ((u - each) ** 2).mean() - weight * ((each - u_neg) ** 2).mean()
        known = {
            "a factor of the dimension: the library takes the mean over the coordinates, not the "
            "sum.": 3 * right,
            "this is the attracting term alone; subtract λ times the mean distance to "
            "u_neg.": attract,
            "you take one velocity for all places. Each place has a velocity of its own.": one,
            "you let every pair have a velocity of its own. At one place the network gives one f "
            "for all pairs: use the means.": rowwise,
        }
        for hint, value in known.items():
            if _same(mine, value):
                return hint
        return (
            f"not right at λ = {weight:g}. In each place the minimum lies where exercise 4.1 says, "
            "with the means of that place; then take mean |f - u|² - λ mean |f - u_neg|²."
        )
    return None


def _after(u: Tensor, u_neg: Tensor, place: Tensor, weight: float, target: Tensor) -> Tensor:
    """The mean squared distance of the best velocity of each place from `target`."""
    f = torch.zeros_like(u)
    for p in place.unique():
        here = place == p
        f[here] = (u[here].mean(0) - weight * u_neg[here].mean(0)) / (1 - weight)
    return ((f - target) ** 2).mean()


class _Recorder:
    """A network that keeps what it was called with: v = 0.3 x + t, plus the label."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Any]] = []
        self.outputs: list[Tensor] = []
        self.slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor, t: Tensor, y: Any = None) -> Tensor:
        self.calls.append((x, t, y))
        column = t.reshape(-1, *[1] * (x.dim() - 1))
        self.outputs.append(self.slope * x + column + y.reshape(column.shape))
        return self.outputs[-1]


@exercise("4.3")
def whole_loss(my_loss: Callable[..., Any]) -> str | None:
    """my_loss(model, x1, y, weight, generator) -> (loss, {"attract", "repel"})."""
    x1 = torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y, weight, model = torch.arange(40) % 3, 0.35, _Recorder()
    answer = my_loss(model, x1 + 2, y, weight, torch.Generator().manual_seed(0))
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
        return 'return two things: the loss, and a dictionary with "attract" and "repel".'
    loss, terms = answer
    if loss is ... or loss is None:
        return 'not answered yet: return the loss, and a dictionary with "attract" and "repel".'
    if set(terms) != {"attract", "repel"}:
        return f'the terms are called "attract" and "repel"; yours are {sorted(terms)}.'
    if len(model.calls) != 1:
        return f"the model was called {len(model.calls)} times; once is enough for both terms."
    x_t, t, labels = model.calls[0]
    if x_t.shape != x1.shape or t.shape != (40,) or labels is not y:
        return "call the model once, as model(x_t, t, y): x_t like x1, and t of shape (B,)."
    if len(t.unique()) < 40 or not 0 <= float(t.min()) <= float(t.max()) <= 1:
        return "each row has a time of its own, uniform between 0 and 1."
    again, _ = my_loss(_Recorder(), x1 + 2, y, weight, torch.Generator().manual_seed(0))
    if not _same(_as_double(again), _as_double(loss)):
        return (
            "two calls with one seed differ. Draw everything from `generator`, the negatives too."
        )
    for seed in range(10, 18):  # one draw of 40 rows can miss each row itself by luck
        model, generator = _Recorder(), torch.Generator().manual_seed(seed)
        loss, terms = my_loss(model, x1 + 2, y, weight, generator)
        if wrong := _wrong_terms(loss, terms, model, x1 + 2, weight):
            return wrong
    return None


def _wrong_terms(
    loss: Tensor, terms: dict[str, Tensor], model: _Recorder, x1: Tensor, weight: float
) -> str | None:
    x_t, t, y = model.calls[0]
    share = t[:, None, None]
    x0 = (x_t - share * x1) / (1 - share)  # the noise that the answer must have drawn
    if abs(float(x0.mean())) > 0.5 or not 0.7 < float(x0.std()) < 1.3:
        return "x_t is not t x1 + (1 - t) x0 with standard normal noise x0."
    u, v = x1 - x0, model.slope.detach() * x_t + share + y[:, None, None]
    attract, repel = (_as_double(terms[name]) for name in ("attract", "repel"))
    if attract.dim() or repel.dim() or _as_double(loss).dim():
        return "the loss and its terms are single numbers: means over rows and coordinates."
    if not _same(attract, (v - u).square().mean()):
        return "`attract` is the mean of (v - u_t)², with u_t = x1 - x0."
    if not _same(_as_double(loss), attract - weight * repel):
        return "the loss is attract - weight * repel; the terms are kept without their weight."
    return _wrong_partners(u, loss, model, weight)


def _wrong_partners(u: Tensor, loss: Tensor, model: _Recorder, weight: float) -> str | None:
    """Each row's negative is read off the gradient with respect to the model's output."""
    (v,) = model.outputs
    slope = torch.autograd.grad(loss, v, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None:
        return "no gradient reaches the model."
    negative = v.detach() - ((v.detach() - u) - slope * v.numel() / 2) / weight
    gaps = (negative[:, None] - u[None]).flatten(2).norm(dim=2)  # (B, B): to every target
    if float(gaps.min(1).values.max()) > 1e-3:
        return "`repel` is the mean of (v - u_neg)², with the target of another row as u_neg."
    rows, partner = torch.arange(len(u)), gaps.argmin(1)
    if torch.equal(partner, rows):
        return "every row is its own negative. Take the target of another row."
    if (partner == rows).any():
        return "some rows are their own negatives. Draw from the other rows alone."
    if len(((partner - rows) % len(u)).unique()) == 1:
        return "all rows take the partner at one and the same distance; draw it per row."
    if len(partner.unique()) == len(u):
        return "no two rows have the same partner: each row must draw on its own."
    return None


def _factor(weight: float) -> float:
    """1 + weight / (1 - weight) times the integral of S^(-1 / (2 (1 - weight))), by the trapezoidal
    rule.
    """
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    spread = t**2 + (1 - t) ** 2
    return float(
        1 + weight / (1 - weight) * torch.trapezoid(spread ** (-1 / (2 * (1 - weight))), t)
    )


@exercise("4.4")
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
            return "this is the value for λ = 0.5; the push and the feedback both depend on λ."
        return (
            f"not right at λ = {weight:g}: yours is {mine:.3f}. Follow d' = λ/(1 - λ) + "
            "r d/(1 - λ) from d(0) = 0 in small steps; the answer is 1 + d(1)."
        )
    return None


@exercise("4.5")
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


@exercise("4.6")
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
