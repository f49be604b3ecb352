"""Guidance turns a model and a label into a velocity, and velocities into another velocity:  v' = combine(t, v, ...).

A `Velocity` is a function (x (B, *dims), t (B,)) -> (B, *dims): everything here takes and returns
one, so the functions nest. ΔFM and VeCoR learn an affine image of FM's velocity; `retarget` is that
map, `debias` its inverse.

Where VeCoR's perturbation is a random linear map P, such as crop_resize, its optimum is affine in v
too:

    v* = (v - lambda K E[u_neg | x_t]) / (1 - lambda K),   u_neg = P u (velocity space)  or  d_alpha P x1 + d_sigma x0 (latent space)

P is independent of everything else, so only its mean M = E[P] matters
(`perturbations.expected_map`): `retarget_linear` is the map, `debias_linear` its inverse. A map
that mixes channels alone may be given as a small matrix (C, C). Reference: Hong et al. 2025
(arXiv:2511.18942), section 3; the minimiser follows by setting the gradient to 0.

Convention: t = 0 is noise, t = 1 is data. Intervals are inclusive, in this t: REPA's [lo, hi] is [1
- hi, 1 - lo] here. Times on the host are read, so that a step outside the interval costs one
network call; times on a device never are. There the samplers, who know their grid, say in advance
where a step lies (`Guided.restrict`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cfm_lite._internal.checks import (
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_labels,
    check_number,
    expand,
    full_precision,
    on_host,
    plain,
    promote,
    repulsion_weight,
)
from cfm_lite._internal.networks import as_velocity_of, evaluating, needs_labels, takes_labels
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, Path, check_path

__all__ = [
    "Guided",
    "Velocity",
    "cfg",
    "conditional",
    "debias",
    "debias_linear",
    "debias_shuffle",
    "guide",
    "rescale",
    "retarget",
    "retarget_linear",
    "retarget_shuffle",
]

Velocity = Callable[[Tensor, Tensor], Tensor]
MeanVelocity = Tensor | Callable[[Tensor], Tensor]

EVERYWHERE = (0.0, 1.0)
_SLACK = 1e-6  # a grid time that equals a bound lies inside, whatever the last bit of either


@dataclass(frozen=True, eq=False)
class Guided:
    """`combine(t, v, ...)` of the velocities in `parts` while low <= t <= high, and the first of
    them alone elsewhere.

    `joint`, if given, evaluates all parts in one network call.
    """

    parts: tuple[Velocity, ...]
    combine: Callable[..., Tensor]
    interval: tuple[float, float] = EVERYWHERE
    joint: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = None

    def __call__(
        self, x: Float[Tensor, "batch *dims"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *dims"]:
        inside = _inside(t, self.interval)
        if inside is False:
            return self.parts[0](x, t)
        velocities = self.joint(x, t) if self.joint else [part(x, t) for part in self.parts]
        guided = self.combine(t, *velocities)
        return guided if inside is True else torch.where(expand(inside, x), guided, velocities[0])

    def acts_at(self, t: float) -> bool:
        """Whether all parts are evaluated at time `t`."""
        return self.interval[0] - _SLACK <= t <= self.interval[1] + _SLACK

    def restrict(self, low: float, high: float) -> Velocity:
        """The same velocity for times that all lie in [low, high]: decided here and now where the
        answer does not vary.
        """
        parts = tuple(restrict(part, low, high) for part in self.parts)
        if high < self.interval[0] - _SLACK or low > self.interval[1] + _SLACK:
            return parts[0]
        within = self.interval[0] - _SLACK <= low and high <= self.interval[1] + _SLACK
        return replace(self, parts=parts, interval=EVERYWHERE if within else self.interval)


def restrict(velocity: Velocity, low: float, high: float) -> Velocity:
    """`velocity` for times in [low, high]; any other function than a `Guided` is left as it is."""
    return velocity.restrict(low, high) if isinstance(velocity, Guided) else velocity


def conditional(model: Callable[..., Tensor], y: Tensor | int | None = None) -> Velocity:
    """The model's velocity for labels `y`: (B,) integers, one int for every row, or None for the
    model's own default.

    A module in training mode is evaluated in eval mode and put back. Half-precision outputs are
    promoted to float32. Raises ConfigError for labels that are no integers, out of range, or not as
    many as the rows of x.
    """
    y = _check_label(model, y)
    given = y is not None or needs_labels(model)
    # functions of this module and partials, not closures, so that a velocity can be pickled
    return functools.partial(_evaluated, model, y, given)


def _evaluated(
    model: Callable[..., Tensor], y: Tensor | int | None, given: bool, x: Tensor, t: Tensor
) -> Tensor:
    with evaluating(model):
        output = model(x, t, None if y is None else _rows(y, x)) if given else model(x, t)
    return promote(as_velocity_of(output, x))


def guide(
    good: Velocity, bad: Velocity, scale: float, interval: tuple[float, float] = EVERYWHERE
) -> Velocity:
    """bad + scale * (good - bad) inside the interval, `good` outside; scale 1 is `good` itself and
    never calls `bad`.

    `scale` is any finite number: above 1 it moves away from `bad`, at 0 it is `bad`. Raises
    ConfigError for a scale that is not finite or an interval outside [0, 1]. Reference: Ho &
    Salimans 2022 (arXiv:2207.12598), eq. 6; Karras et al. 2024 (autoguidance, arXiv:2406.02507);
    Kynkäänniemi et al. 2024 (interval, arXiv:2404.07724).
    """
    scale, interval = check_number("scale", scale, -math.inf, math.inf), check_interval(interval)
    good, bad = as_velocity(good, "good"), as_velocity(bad, "bad")
    return (
        good
        if scale == 1
        else Guided((good, bad), functools.partial(_extrapolated, scale, None), interval)
    )


def _extrapolated(
    scale: float, channels: int | None, t: Tensor, v: Tensor, v_bad: Tensor
) -> Tensor:
    guided = v_bad + scale * (v - v_bad)
    return guided if channels is None else _leading(guided, v, channels)


def cfg(
    model: Callable[..., Tensor],
    y: Tensor | int,
    scale: float,
    interval: tuple[float, float] = EVERYWHERE,
    channels: int | None = None,
) -> Velocity:
    """Classifier-free guidance, uncond + scale * (cond - uncond), in one call on 2B rows; one call
    on B rows outside.

    `channels` guides only that many leading channels and leaves the others conditional: 3 is the
    official SiT's habit. A scale of 1 is `conditional(model, y)`. A model without `num_classes` is
    asked for its null velocity by y = None, in a second call. Raises ConfigError as `guide` and
    `conditional` do, and for a model without a null label.
    """
    scale, interval = check_number("scale", scale, -math.inf, math.inf), check_interval(interval)
    if y is None:
        raise ConfigError(
            "y is None; classifier-free guidance needs labels, (B,) or one int. Without labels use "
            "conditional(model)."
        )
    cond, labels = conditional(model, y), _check_label(model, y)
    if channels is not None:
        channels = check_count("channels", channels)
    if scale == 1:
        return cond
    combine, null = functools.partial(_extrapolated, scale, channels), _null_label(model)
    if null is None:
        return Guided((cond, functools.partial(_null_velocity, model)), combine, interval)
    return Guided((cond,), combine, interval, joint=functools.partial(_both, model, labels, null))


def rescale(velocity: Velocity, factor: float | Callable[[Tensor], Tensor]) -> Velocity:
    """`factor` times the velocity, the control "scaled FM"; `factor` is a number or a function of t
    (B,) -> (B,).

    Raises ConfigError for a number that is not finite, and, when called, for a function's result of
    another shape.
    """
    if not callable(factor):
        number = check_number("factor", factor, -math.inf, math.inf)
        return Guided((as_velocity(velocity),), functools.partial(_times, number))
    return Guided((as_velocity(velocity),), functools.partial(_times_of, factor))


def _times(number: float, t: Tensor, v: Tensor) -> Tensor:
    return number * v


def _times_of(factor: Callable[[Tensor], Tensor], t: Tensor, v: Tensor) -> Tensor:
    f = torch.as_tensor(factor(t), dtype=v.dtype, device=v.device)
    if f.dim() and f.shape != t.shape:
        raise ConfigError(
            f"factor(t) has shape {tuple(f.shape)}; it must be (B,) = {tuple(t.shape)}, one number "
            "per row, or a number."
        )
    return expand(f, v) * v


def retarget(velocity: Velocity, weight: float, mean_velocity: MeanVelocity) -> Velocity:
    """(v - weight * E[u_neg]) / (1 - weight): FM's velocity mapped to ΔFM's optimum, the control
    "re-targeted FM".

    `mean_velocity` is E[u_neg] as a tensor (*dims) or (B, *dims), or a function of t (B,) that
    returns one; on the linear and cosine paths, with noise of mean 0, it is the mean of the data.
    Raises ConfigError unless 0 <= weight < 1. Reference: Stoica et al. 2025 (arXiv:2506.05350),
    section 5.4; the minimiser follows by setting the gradient to 0.
    """
    weight = repulsion_weight(weight)
    mean = _check_mean(mean_velocity)
    return Guided((as_velocity(velocity),), functools.partial(_away, weight, mean))


def _away(weight: float, mean: MeanVelocity, t: Tensor, v: Tensor) -> Tensor:
    return (v - weight * _mean(mean, t, v)) / (1 - weight)


def retarget_shuffle(
    velocity: Velocity, weight: float, k: int = 1, exclude_identity: bool = True
) -> Velocity:
    """(v - weight * k * E[Pv]) / (1 - weight * k): FM's velocity mapped to VeCoR's optimum for `k`
    channel shuffles P of dim 1.

    P is uniform over the C! - 1 permutations other than the identity, or over all C! of them.
    Either leaves the mean over the channels as it is and multiplies the deviations from it by one
    gain > 1. Raises ConfigError unless 0 <= weight * k < 1, and, when called, for one channel.
    Reference: Hong et al. 2025 (arXiv:2511.18942).
    """
    product = repulsion_weight(weight, k) * int(k)
    check_flag(exclude_identity=exclude_identity)
    return Guided(
        (as_velocity(velocity),), functools.partial(_stretched, product, exclude_identity, False)
    )


def _stretched(product: float, exclude_identity: bool, back: bool, t: Tensor, v: Tensor) -> Tensor:
    gain = _gain(v, product, exclude_identity)
    return _stretch(v, 1 / gain if back else gain)


def debias(
    velocity: Velocity,
    weight: float,
    mean_velocity: MeanVelocity,
    interval: tuple[float, float] = EVERYWHERE,
) -> Velocity:
    """(1 - weight) v + weight * E[u_neg] inside the interval, v outside: the inverse of `retarget`,
    so ΔFM's optimum gives FM's.

    It may be applied before or after `cfg` of the same interval: both are affine with weights that
    sum to 1. Arguments and errors as in `retarget`. Reference: Stoica et al. 2025, section 5.4,
    whose vector has the other sign of time.
    """
    weight, interval = repulsion_weight(weight), check_interval(interval)
    mean = _check_mean(mean_velocity)
    return Guided((as_velocity(velocity),), functools.partial(_back, weight, mean), interval)


def _back(weight: float, mean: MeanVelocity, t: Tensor, v: Tensor) -> Tensor:
    return (1 - weight) * v + weight * _mean(mean, t, v)


def debias_shuffle(
    velocity: Velocity,
    weight: float,
    k: int = 1,
    exclude_identity: bool = True,
    interval: tuple[float, float] = EVERYWHERE,
) -> Velocity:
    """The inverse of `retarget_shuffle` inside the interval, v outside; a linear map of v, so
    nothing has to be stored.
    """
    product, interval = repulsion_weight(weight, k) * int(k), check_interval(interval)
    check_flag(exclude_identity=exclude_identity)
    return Guided(
        (as_velocity(velocity),),
        functools.partial(_stretched, product, exclude_identity, True),
        interval,
    )


def as_velocity(velocity: Velocity, name: str = "velocity") -> Velocity:
    """`velocity` itself, or for a bare module its velocity in eval mode; ConfigError for what
    cannot be called.
    """
    if not callable(velocity):
        raise ConfigError(
            f"{name} has type {type(velocity).__name__}; it must be a function (x, t) -> velocity, "
            "or a model."
        )
    return conditional(velocity) if isinstance(velocity, nn.Module) else velocity


def _inside(t: Tensor, interval: tuple[float, float]) -> bool | Tensor:
    """True or False where the answer is one for all rows and known without a device read; else one
    answer per row (B,).
    """
    if interval == EVERYWHERE:
        return True
    inside = (t >= interval[0] - _SLACK) & (t <= interval[1] + _SLACK)
    if not on_host(t) or not t.numel():
        return inside
    return bool(inside.all()) or (inside if inside.any() else False)


def check_interval(interval: Any) -> tuple[float, float]:
    """`interval` as two floats; ConfigError unless 0 <= low <= high <= 1."""
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise ConfigError(
            f"interval is {interval!r}; it must be two numbers (low, high) with 0 <= low <= high "
            "<= 1."
        ) from None
    low, high = (
        check_number("interval's low end", low, 0, 1),
        check_number("interval's high end", high, 0, 1),
    )
    if low > high:
        raise ConfigError(
            f"interval is ({low:g}, {high:g}), with low above high; t runs from 0 (noise) to 1 "
            f"(data), so give ({high:g}, {low:g})."
        )
    return low, high


def _unwrapped(model: Any) -> Any:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _check_label(model: Any, y: Any) -> Any:
    """`y` as int64 labels (B,), as one int for every row, or None."""
    check_callable(model=model)
    y, highest = (
        y if isinstance(y, Tensor) else plain(y),
        plain(getattr(_unwrapped(model), "num_classes", None)),
    )
    if y is None:
        return None
    if not takes_labels(model):
        raise ConfigError(
            f"labels were given and {type(model).__name__} takes only (x, t); give y=None, or a "
            "model that takes y."
        )
    highest = highest if isinstance(highest, int) else 2**62
    if not isinstance(y, int) or isinstance(y, bool):
        return check_labels(y, None, highest)
    if abs(y) >= 2**62:
        raise ConfigError(f"y is {hex(y):.20}...; labels span [0, {highest}].")
    check_labels(torch.tensor([y], device="cpu"), None, highest)
    return y


def _rows(y: Tensor | int, x: Tensor) -> Tensor:
    """`y` as one label per row of `x`, on its device."""
    if isinstance(y, int):
        return torch.full((x.shape[0],), y, device=x.device)
    if y.shape[0] != x.shape[0]:
        raise ConfigError(
            f"y has {y.shape[0]} labels for {x.shape[0]} rows of x; give one label per row, or one "
            "int for all."
        )
    return y.to(x.device, non_blocking=True)


def _null_label(model: Any) -> int | None:
    """The label of the null row; None where the model names no number of classes. ConfigError where
    there is no such row.
    """
    model = _unwrapped(model)
    if not hasattr(model, "num_classes"):
        return None
    null = model.num_classes
    owner = model if hasattr(model, "has_null") else getattr(model, "y_embedder", None)
    if not null or not getattr(owner, "has_null", True):
        raise ConfigError(
            f"the model has num_classes = {null} and no null label, which guidance needs as its "
            "second opinion. "
            "Train one with class_dropout_prob > 0, or use a scale of 1."
        )
    return null


def _null_velocity(model: Callable[..., Tensor], x: Tensor, t: Tensor) -> Tensor:
    with evaluating(model):
        return promote(as_velocity_of(model(x, t, None), x))


def _both(
    model: Callable[..., Tensor], labels: Tensor | int, null: int, x: Tensor, t: Tensor
) -> Sequence[Tensor]:
    """Conditional and unconditional velocity, from one call on 2B rows."""
    y, both = _rows(labels, x), torch.cat([x, x])
    with evaluating(model):
        return promote(
            as_velocity_of(
                model(both, torch.cat([t, t]), torch.cat([y, torch.full_like(y, null)])), both
            )
        ).chunk(2)


def _leading(guided: Tensor, v: Tensor, channels: int) -> Tensor:
    """`channels` channels of `guided`, then those of `v`."""
    if channels > v.shape[1]:
        raise ConfigError(
            f"channels is {channels}; the velocity has {v.shape[1]} in dim 1. Leave it out to "
            "guide all of them."
        )
    return torch.cat([guided[:, :channels], v[:, channels:]], 1)


def _check_mean(mean: MeanVelocity) -> MeanVelocity:
    if not isinstance(mean, Tensor) and not callable(mean):
        raise ConfigError(
            f"mean_velocity has type {type(mean).__name__}; it must be a tensor (*dims), or a "
            "function of t (B,) that returns one."
        )
    if isinstance(mean, Tensor) and on_host(mean) and not mean.isfinite().all():
        raise ConfigError(
            "mean_velocity has entries that are not finite; compute it again from finite data."
        )
    return mean


def _mean(mean: MeanVelocity, t: Tensor, v: Tensor) -> Tensor:
    m = mean if isinstance(mean, Tensor) else mean(t)
    if tuple(m.shape) not in {tuple(v.shape[1:]), (1, *v.shape[1:]), tuple(v.shape)}:
        raise ConfigError(
            f"mean_velocity has shape {tuple(m.shape)}; it must be {tuple(v.shape[1:])}, or "
            f"{tuple(v.shape)} with one per row."
        )
    return m.to(v)


def _stretch(v: Tensor, gain: float) -> Tensor:
    """The mean over the channels plus `gain` times the deviation from it."""
    mean = v.mean(1, keepdim=True)
    return mean + gain * (v - mean)


def _gain(v: Tensor, product: float, exclude_identity: bool) -> float:
    """What VeCoR's optimum does to deviations: a shuffle's mean turns d into 0, or into -d / (C! -
    1) without the identity.
    """
    channels = v.shape[1] if v.dim() > 1 else 1
    if channels == 1:
        raise ConfigError(
            f"v has shape {tuple(v.shape)}, one channel in dim 1; shuffling one channel changes "
            "nothing, so there is no bias to map."
        )
    others = math.factorial(min(channels, 20)) - 1  # beyond 20 channels the term is below 1e-18
    return (1 + product / others * exclude_identity) / (1 - product)


SPACES = ("velocity", "latent")


def retarget_linear(
    velocity: Velocity,
    weight: float,
    expected: Float[Tensor, "size size"],
    *,
    k: int = 1,
    space: str = "latent",
    path: Path = LINEAR,
) -> Velocity:
    """FM's velocity mapped to VeCoR's optimum for perturbations of mean `expected` = E[P] (D, D), D
    the size of a sample, or (C, C).

    Raises ConfigError unless 0 <= weight * k < 1, and, when called, for samples of another size.
    """
    product, inner, mean = _checked(velocity, weight, expected, k, space)
    check_path(path)
    return functools.partial(_retargeted, inner, product, mean, path if space == "latent" else None)


def _retargeted(
    velocity: Velocity, product: float, mean: Tensor, path: Path | None, x: Tensor, t: Tensor
) -> Tensor:
    """In latent space, which needs the `path`, or without one in velocity space."""
    v = promote(velocity(x, t))
    if path is None:
        negative = _apply(mean, v)
    else:
        x0, x1 = path.parts(promote(x), v, t)
        moved = _apply(mean, x1)
        *_, d_alpha, d_sigma = path.coefficients(t, v)
        # where d_sigma is infinite the noise is 0, and v holds what is left of their product
        negative = torch.where(
            d_sigma.isinf(), v + d_alpha * (moved - x1), d_alpha * moved + d_sigma * x0
        )
    return (v - product * negative) / (1 - product)


def debias_linear(
    velocity: Velocity,
    weight: float,
    expected: Float[Tensor, "size size"],
    *,
    k: int = 1,
    space: str = "latent",
    path: Path = LINEAR,
) -> Velocity:
    """The inverse of `retarget_linear`: VeCoR's optimum gives FM's velocity back. One solve of a
    (D, D) system per time.

    In latent space the posterior mean x1 of the data solves

        [sigma d_alpha (I - p M) - (1 - p) alpha d_sigma I] x1 = (1 - p) (sigma v* - d_sigma x),   p = weight * k,

    and v = v* - p / (1 - p) d_alpha (I - M) x1, which divides by nothing that is 0 at an end of
    time.
    """
    product, inner, mean = _checked(velocity, weight, expected, k, space)
    check_path(path)
    return functools.partial(_debiased, inner, product, mean, path if space == "latent" else None)


def _debiased(
    velocity: Velocity, product: float, mean: Tensor, path: Path | None, x: Tensor, t: Tensor
) -> Tensor:
    v = promote(velocity(x, t))
    if path is None:
        system = torch.eye(len(mean), dtype=v.dtype, device=v.device) - product * mean.to(v)
        return (1 - product) * _solved(system, v)
    x1, d_alpha = _data(mean, product, path, promote(x), v, t)
    return v - product / (1 - product) * d_alpha * (x1 - _apply(mean, x1))


def _data(
    mean: Tensor, product: float, path: Path, x: Tensor, v: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The posterior mean of the data, from VeCoR's velocity `v`, and d_alpha; rows of one time
    share a system.
    """
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t, v)
    right = (1 - product) * (sigma * v - d_sigma * x)
    eye, x1 = torch.eye(len(mean), dtype=v.dtype, device=v.device), torch.empty_like(right)
    for time in t.unique():
        rows = t == time
        a, s, da, ds = (c[rows][0].flatten()[0] for c in (alpha, sigma, d_alpha, d_sigma))
        if (
            da == 0 or ds.isinf()
        ):  # the data have no part in the velocity, or are the position itself
            x1[rows] = 0.0 if da == 0 else x[rows].to(x1) / a
            continue
        system = s * da * (eye - product * mean.to(v)) - (1 - product) * a * ds * eye
        x1[rows] = _solved(system, right[rows])
    return x1, d_alpha


def _apply(mean: Tensor, x: Tensor) -> Tensor:
    """M x for every row of `x` (B, *dims)."""
    return _in_rows(lambda rows: rows @ mean.to(rows).mT, len(mean), x)


def _solved(system: Tensor, x: Tensor) -> Tensor:
    """The solution of system @ solution = x for every row of `x` (B, *dims)."""
    return _in_rows(lambda rows: torch.linalg.solve(system, rows.mT).mT, len(system), x)


@full_precision()
def _in_rows(change: Callable[[Tensor], Tensor], size: int, x: Tensor) -> Tensor:
    """`change` of rows (N, size): the samples of `x` (B, C, *dims), or the channels of each pixel
    where there are `size` of them.
    """
    if x.flatten(1).shape[1] == size:
        return change(x.flatten(1)).reshape(x.shape)
    if x.shape[1] != size:
        numbers = f"{x.flatten(1).shape[1]} numbers in {x.shape[1]} channels"
        raise ConfigError(
            f"expected is ({size}, {size}) and a sample has {numbers}; give E[P] for samples of "
            "this size."
        )
    channels = x.movedim(1, -1)
    return change(channels.reshape(-1, size)).reshape(channels.shape).movedim(-1, 1)


def _checked(
    velocity: Velocity, weight: float, expected: Tensor, k: int, space: str
) -> tuple[float, Velocity, Tensor]:
    check_choice("space", space, SPACES)
    product = repulsion_weight(weight, k) * int(k)
    if (
        not isinstance(expected, Tensor)
        or expected.dim() != 2
        or expected.shape[0] != expected.shape[1]
    ):
        raise ConfigError(
            f"expected is {expected!r:.60}; it must be E[P], a square matrix (D, D), as "
            "perturbations.expected_map gives it."
        )
    check_floating(expected=expected)
    return product, as_velocity(velocity), expected
