"""What the exercises of notebook 08, images, ask for: a Fréchet distance, what each number can see,
and claims that the evidence allows.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cfm_lite import metrics
from cfm_lite.course import exercise, number, results

__all__ = ["copies", "few_steps", "frechet_by_hand", "sign_flips", "three_verdicts"]


def _features(seed: int, n: int, d: int = 5) -> Tensor:
    """Correlated features (n, d) that are not centred."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=g, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mixing + torch.randn(
        d, generator=g, dtype=torch.float64
    )


@exercise("8.1", ours=metrics.frechet)
def frechet_by_hand(answer: Callable[[Tensor, Tensor], Any]) -> str | None:
    """my_frechet(a, b) is the Fréchet distance of two sets of features, whatever their size."""
    if not callable(answer):
        return (
            f"`my_frechet` is a {type(answer).__name__}; it must be a function of two sets of "
            "features."
        )
    cases = {
        "two sets of correlated features": (_features(1, 300), _features(11, 200)),
        "another two": (_features(2, 300), _features(12, 200)),
        "float32 features": (_features(3, 300).float(), _features(13, 200).float()),
        "fewer images than features": (_features(4, 4, 12), _features(14, 6, 12)),
    }
    for what, (a, b) in cases.items():
        mine, right = number(answer(a, b)), float(metrics.frechet(a, b))
        if math.isnan(mine):
            return f"{what}: NaN, the root of a negative number. Clamp eigenvalues at 0."
        if not math.isclose(mine, right, rel_tol=1e-3, abs_tol=1e-3):
            return f"{what}: " + _wrong_gap(mine, right, a.double(), b.double())
    a = _features(3, 250)
    if abs(number(answer(a, a.clone()))) > 1e-2:
        return "two equal sets must have the distance 0; yours is not 0."
    if not math.isclose(number(answer(a, a + 2)), 20, rel_tol=1e-3):
        return "a set that is only shifted, by 2 in each of 5 features, has the distance 5 · 2²."
    try:
        answer(a[:1], a)
    except ValueError:
        return None
    return "one row has no covariance: raise a ValueError."


def _wrong_gap(mine: float, right: float, a: Tensor, b: Tensor) -> str:
    s1, s2 = torch.cov(a.T), torch.cov(b.T)
    means = float((a.mean(0) - b.mean(0)).square().sum())
    overlap = (float(s1.trace() + s2.trace()) + means - right) / 2
    entrywise = float(means + (s1 + s2 - 2 * (s1 * s2).clamp(min=0).sqrt()).trace())
    biased = [z.mean(0) + (z - z.mean(0)) * (1 - 1 / len(z)) ** 0.5 for z in (a, b)]
    known = {
        float(metrics.frechet(*biased)): "divide the covariances by N − 1, not by N.",
        entrywise: "this is the root of every single entry. It sees only the diagonals. The "
        "formula takes the root of a matrix.",
        math.sqrt(max(right, 0.0)): "this is the root of the right value; the formula is squared.",
        right - means: "the term of the two means is missing.",
        right + overlap: "the overlap must be subtracted twice; the factor 2 is missing.",
        right + 2 * overlap: "the overlap of the two covariances is missing.",
    }
    for value, hint in known.items():
        if math.isclose(mine, value, rel_tol=1e-3, abs_tol=1e-3):
            return hint
    return f"{mine:.3f} instead of {right:.3f}. The trace of a root is the sum of the roots."


_BLIND = {
    "accuracy": "the copies show exactly the digits that were asked for, so the accuracy is high.",
    "frechet": "the copies have the mean and the covariance of the training images, so the "
    "Fréchet distance is about that of real data.",
    "precision": "every copy lies where real images lie, so the precision is high.",
    "recall": "the copies cover every kind of digit of the training images, so the recall is high.",
}


@exercise("8.2")
def copies(answer: Any) -> str | None:
    """Only the nearest ratio looks at the training images."""
    if not isinstance(answer, str):
        kind = type(answer).__name__
        return f'`answer` is a {kind}; write one of the five names as a string, such as "recall".'
    name = answer.strip().lower().replace(" ", "_").replace("-", "_")
    if name == "nearest_ratio":
        return None
    if name in _BLIND:
        return (
            f"{_BLIND[name]} It compares samples with held-out images only. Which number looks at "
            "the training images themselves?"
        )
    return (
        f"{answer!r} is not one of the five: accuracy, frechet, precision, recall, nearest_ratio."
    )


def _best(metric: str, largest: bool) -> int:
    """The number of evaluations at which plain FM's mean over the seeds is best."""
    values: dict[int, list[float]] = {}
    for row in results("digits"):
        if row["method"] == "fm" and row["metric"] == metric and row["value"] is not None:
            values.setdefault(row["nfe"], []).append(row["value"])
    mean = {nfe: sum(v) / len(v) for nfe, v in values.items()}
    return (max if largest else min)(mean, key=lambda nfe: mean[nfe])


@exercise("8.3")
def few_steps(answer: Any) -> str | None:
    """Accuracy is best with the fewest steps, the Fréchet distance with the most."""
    mine = (
        [int(part) for part in answer]
        if isinstance(answer, tuple | list) or torch.is_tensor(answer)
        else []
    )
    if len(mine) != 2:
        return (
            "give a pair of numbers: (evaluations for the best accuracy, evaluations for the best "
            "Fréchet distance)."
        )
    right = [_best("accuracy", largest=True), _best("frechet", largest=False)]
    if mine == right:
        return None
    if mine == right[::-1]:
        return (
            "the two are swapped: the first number is for the accuracy, the second for the Fréchet "
            "distance."
        )
    if mine[0] != right[0]:
        return (
            "the accuracy has its best value elsewhere. With very few steps all samples of a class "
            "come near to the class's average image: "
            "what does a classifier say of an average three?"
        )
    return (
        "the Fréchet distance compares whole distributions. Which samples are most like real ones "
        "in their variety?"
    )


def _flip_p(d: Tensor, *, absolute: bool = True, strict: bool = False) -> float:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * len(d))
    means, seen = (signs * d.double()).mean(1), d.double().mean()
    if absolute:
        means, seen = means.abs(), seen.abs()
    return float((means > seen + 1e-9 if strict else means >= seen - 1e-9).double().mean())


@exercise("8.4", ours=_flip_p)
def sign_flips(answer: Callable[[Tensor], Any]) -> str | None:
    """flip_p(d) is the share of sign patterns whose mean is at least as far from 0."""
    if not callable(answer):
        return f"`flip_p` is a {type(answer).__name__}; it must be a function of a tensor (n,)."
    g = torch.Generator().manual_seed(0)
    cases = [
        torch.tensor([0.3, 0.1, 0.2, 0.4, 0.5]),
        -torch.tensor([0.3, 0.1, 0.2, 0.4]),
        torch.randn(7, generator=g),
        torch.randn(6, generator=g),
    ]
    for d in cases:
        mine, right = number(answer(d)), _flip_p(d)
        if not math.isclose(mine, right, abs_tol=1e-6):
            return _wrong_p(mine, right, d)
    return None


def _wrong_p(mine: float, right: float, d: Tensor) -> str:
    if not 0 <= mine <= 1:
        return f"it gives {mine:.3g}; a p-value is a share, between 0 and 1."
    if math.isclose(mine, _flip_p(d, strict=True), abs_tol=1e-6):
        return (
            "patterns whose mean is exactly as far as the observed one must count, too, itself "
            "among them. Use >= and a tiny slack."
        )
    if math.isclose(mine, _flip_p(d, absolute=False), abs_tol=1e-6) or math.isclose(
        mine, right / 2, abs_tol=1e-6
    ):
        return (
            "this counts one direction only. A method that does nothing could have come out far on "
            "either side: compare absolute values."
        )
    if math.isclose(mine, 1 - right, abs_tol=1e-6):
        return (
            "this is the share of patterns that are nearer to 0; count those that are at least as "
            "far."
        )
    return (
        f"for {len(d)} differences it gives {mine:.4f}; the right share is {right:.4f}, a multiple "
        f"of 1/{2 ** len(d)}. "
        "Are all 2^n patterns there?"
    )


_WORDS = ("better", "worse", "no clear difference")


def _verdict(d: Any, lower_is_better: bool) -> str:
    return _WORDS[2] if not d.clear else _WORDS[0 if (d.mean < 0) == lower_is_better else 1]


@exercise("8.5", ours=_verdict)
def three_verdicts(answer: Callable[[Any, bool], Any]) -> str | None:
    """verdict(d, lower_is_better) follows the rule of the two intervals."""
    if not callable(answer):
        return (
            f"`verdict` is a {type(answer).__name__}; it must be a function of a difference and of "
            "whether lower is better."
        )
    for (low, high), (t_low, t_high), lower, right, why in _verdicts():
        mean, seeds = (-0.2 if high <= 0.1 else 0.2), 1 if math.isnan(low) else 5
        clear = (low > 0 and t_low > 0) or (high < 0 and t_high < 0)
        d = SimpleNamespace(
            mean=mean, low=low, high=high, t_low=t_low, t_high=t_high, clear=clear, seeds=seeds
        )
        mine = answer(d, lower)
        if mine not in _WORDS:
            return f"it returns {mine!r}; it must return one of {', '.join(map(repr, _WORDS))}."
        if mine != right:
            return (
                f"{why}: mean {mean:+.1f}, bootstrap interval [{low:+.1f}, {high:+.1f}], Student's "
                f"[{t_low:+.1f}, {t_high:+.1f}] must "
                f"give {right!r}; yours gives {mine!r}."
            )
    return None


def _verdicts() -> list[tuple[tuple[float, float], tuple[float, float], bool, str, str]]:
    """Cases: bootstrap interval, Student's, whether lower is better, the right word, and why."""
    nan, none = float("nan"), _WORDS[2]
    return [
        (
            (-0.3, -0.1),
            (-0.35, -0.05),
            True,
            "better",
            "both intervals lie below zero and lower is better",
        ),
        (
            (0.1, 0.3),
            (0.05, 0.35),
            True,
            "worse",
            "both intervals lie above zero and lower is better",
        ),
        (
            (0.1, 0.3),
            (0.05, 0.35),
            False,
            "better",
            "both intervals lie above zero and higher is better, as for the accuracy",
        ),
        (
            (-0.3, -0.1),
            (-0.35, -0.05),
            False,
            "worse",
            "both intervals lie below zero and higher is better",
        ),
        (
            (-0.5, 0.1),
            (-0.6, 0.2),
            True,
            none,
            "its mean is below zero, but both intervals contain zero",
        ),
        (
            (-0.1, 0.5),
            (-0.2, 0.6),
            False,
            none,
            "its mean is above zero, but both intervals contain zero",
        ),
        (
            (-0.3, -0.1),
            (-0.5, 0.1),
            True,
            none,
            "the bootstrap interval misses zero, but Student's contains it",
        ),
        (
            (0.1, 0.3),
            (-0.1, 0.5),
            False,
            none,
            "the bootstrap interval misses zero, but Student's contains it",
        ),
        (
            (-0.5, 0.1),
            (-0.3, -0.1),
            True,
            none,
            "Student's interval misses zero, but the bootstrap's contains it",
        ),
        ((nan, nan), (nan, nan), True, none, "one seed has no interval (its bounds are NaN)"),
        ((-0.4, 0.0), (-0.5, -0.1), True, none, "an interval that ends at zero contains it"),
    ]
