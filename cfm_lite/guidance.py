"""Guidance turns a model and a label into a velocity, and velocities into another velocity.

A `Velocity` is a function (x (B, *dims), t (B,)) -> (B, *dims). Everything here takes velocities
and returns one, so the functions nest: v' = combine(t, v, ...).

ΔFM and VeCoR learn an affine map of FM's velocity. `retarget` is that map for ΔFM, and `debias` is
its inverse. Where VeCoR's perturbation is a random linear map P, such as crop_resize, its optimum
is affine in v too:

    v* = (v - λK E[u_neg | x_t]) / (1 - λK)
    u_neg = P u in velocity space, d_alpha P x1 + d_sigma x0 in latent space

P is independent of everything else, so only its mean M = E[P] matters
(`perturbations.expected_map`). `retarget_linear` is the map and `debias_linear` its inverse. A map
that mixes channels alone may be given as a small matrix (C, C). Reference: Hong et al. 2025
(arXiv:2511.18942), section 3; the minimiser follows by setting the gradient to 0.

Convention: t = 0 is noise, t = 1 is data. Intervals are inclusive, in this t: REPA's [lo, hi] is
[1 - hi, 1 - lo] here. Times on the host are read, so that a step outside the interval costs one
network call. Times on a device are never read: the samplers know their grid, and say in advance
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
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_interval,
    check_number,
    expand,
    full_precision,
    moved,
    on_host,
    promote,
    repulsion_total,
    repulsion_weight,
    seen,
)
from cfm_lite._internal.networks import (
    as_velocity_of,
    asked,
    check_labels_of,
    evaluating,
    needs_labels,
    null_condition,
    null_label,
    takes_captions,
)
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, Path, check_path
from cfm_lite.perturbations import shuffle_share

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
    "rescale_in_time",
    "retarget",
    "retarget_linear",
    "retarget_shuffle",
]

Velocity = Callable[[Tensor, Tensor], Tensor]
MeanVelocity = Tensor | Callable[[Tensor], Tensor]
Interval = tuple[float, float]

EVERYWHERE = (0.0, 1.0)
SPACES = ("velocity", "latent")
_SLACK = 1e-6  # a grid time that equals a bound lies inside, whatever the last bit of either


@dataclass(frozen=True, eq=False)
class Guided:
    """The velocity `combine(t, v, ...)` of `parts` inside `interval`, and the first part outside.

    `joint`, if given, evaluates all parts in one network call.

    >>> double = Guided((lambda x, t: x,), lambda t, v: 2 * v, interval=(0.5, 1.0))
    >>> double(torch.ones(2, 1), torch.tensor([0.0, 1.0]))
    tensor([[1.],
            [2.]])
    """

    parts: tuple[Velocity, ...]
    combine: Callable[..., Tensor]
    interval: Interval = EVERYWHERE
    joint: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = None

    def __call__(
        self, x: Float[Tensor, "batch *dims"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *dims"]:
        inside = _inside(t, self.interval)
        if inside is False:  # for all rows: the other parts need not be called
            return self.parts[0](x, t)
        # one call on 2B rows keeps a device busier than two calls on B
        given = self.joint(x, t) if self.joint else [part(x, t) for part in self.parts]
        # asked here, because broadcasting would take one row for all of them in silence
        velocities = [as_velocity_of(v, x) for v in given]
        guided = self.combine(t, *velocities)
        # where, not an index: rows are chosen without a device read
        return guided if inside is True else torch.where(expand(inside, x), guided, velocities[0])

    def acts_at(self, t: float) -> bool:
        """Whether all parts are evaluated at time `t`."""
        return self.interval[0] - _SLACK <= t <= self.interval[1] + _SLACK

    def restrict(self, low: float, high: float) -> Velocity:
        """The same velocity for times in [low, high].

        Where one answer holds for all these times, it is found now and not at each call.
        """
        parts = tuple(restrict(part, low, high) for part in self.parts)
        # the whole step lies outside, so its other parts are never called
        if high < self.interval[0] - _SLACK or low > self.interval[1] + _SLACK:
            return parts[0]
        # an interval has no gap: with both ends inside, all times between are inside
        within = self.acts_at(low) and self.acts_at(high)
        return replace(self, parts=parts, interval=EVERYWHERE if within else self.interval)


def restrict(velocity: Velocity, low: float, high: float) -> Velocity:
    """`velocity` for times in [low, high]; only a `Guided` changes."""
    return velocity.restrict(low, high) if isinstance(velocity, Guided) else velocity


def _inside(t: Tensor, interval: Interval) -> bool | Tensor:
    """Whether `t` lies inside: one answer for all rows if the host knows it, else one per row."""
    # the usual case: no mask is made, and t is not looked at
    if interval == EVERYWHERE:
        return True
    inside = (t >= interval[0] - _SLACK) & (t <= interval[1] + _SLACK)
    # a mask, not a branch: to read t would wait for the device, and break a compiled graph
    if not on_host(t) or not t.numel():
        return inside
    # rows mostly share one time: then one answer saves the other network calls
    return bool(inside.all()) or (inside if inside.any() else False)


def conditional(model: Callable[..., Tensor], y: Tensor | int | None = None) -> Velocity:
    """The model's velocity for labels `y`.

    A module in training mode is evaluated in eval mode; then its mode is restored. Half-precision
    outputs are promoted to float32.

    Args:
        y: integers (B,), one int for every row, or None for the model's own default.

    Raises:
        ConfigError: labels that are not integers, out of range, or not as many as the rows of x.

    >>> conditional(lambda x, t, y: x + y[:, None], y=3)(torch.zeros(2, 1), torch.zeros(2))
    tensor([[3.],
            [3.]])
    """
    y = check_labels_of(model, y)
    # a model of (x, t) alone must not get a third argument
    given = y is not None or needs_labels(model)
    # functions of this module and partials, not closures, so that a velocity can be pickled
    return functools.partial(_evaluated, model, y, given)


def _evaluated(
    model: Callable[..., Tensor], y: Tensor | int | None, given: bool, x: Tensor, t: Tensor
) -> Tensor:
    # dropout would make v(x, t) random, and a solver's order is that of a function
    with evaluating(model):
        rows = (None if y is None else _rows(y, x),) if given else ()
        output = asked(model, y, functools.partial(model, x, t, *rows))
    # a solver sums many small steps, which half precision would round away
    return promote(as_velocity_of(output, x))


def _rows(y: Tensor | int, x: Tensor, name: str = "y") -> Tensor:
    """`y`, called `name`, as one condition per row of `x`, on its device."""
    if isinstance(y, int):
        return torch.full((x.shape[0],), y, device=x.device)
    if y.dim() > 1 and y.shape[0] == 1:  # one caption for all
        y = y.expand(x.shape[0], *y.shape[1:])
    if y.shape[0] != x.shape[0]:
        what, one = ("label", "one int") if y.dim() == 1 else ("caption", "a batch of one")
        raise ConfigError(
            f"{name} has {y.shape[0]} {what}s for {x.shape[0]} rows of x; give one {what} per row, "
            f"or {one} for all."
        )
    return moved(y, x.device)


def guide(good: Velocity, bad: Velocity, scale: float, interval: Interval = EVERYWHERE) -> Velocity:
    """bad + scale * (good - bad) inside the interval, `good` outside.

    Args:
        scale: above 1 it moves away from `bad`, at 0 it is `bad`; 1 is `good` itself, and never
            calls `bad`.

    Raises:
        ConfigError: a scale that is not finite, or an interval outside [0, 1].

    Reference: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6; Karras et al. 2024 (autoguidance,
    arXiv:2406.02507); Kynkäänniemi et al. 2024 (interval, arXiv:2404.07724).

    >>> guide(lambda x, t: x, lambda x, t: 0 * x, scale=3)(torch.ones(1, 2), torch.zeros(1))
    tensor([[3., 3.]])
    """
    scale, interval = check_number("scale", scale, -math.inf, math.inf), check_interval(interval)
    good, bad = as_velocity(good, "good"), as_velocity(bad, "bad")
    if scale == 1:  # the bits of `good`, which bad + (good - bad) would round
        return good
    # good comes first: outside the interval the first part alone is evaluated
    return Guided((good, bad), functools.partial(_extrapolated, scale, None), interval)


def _extrapolated(
    scale: float, channels: int | None, t: Tensor, v: Tensor, v_bad: Tensor
) -> Tensor:
    # Ho & Salimans write (1 + w) v - w v_bad, so scale = 1 + w
    guided = v_bad + scale * (v - v_bad)
    return guided if channels is None else _leading(guided, v, channels)


def _leading(guided: Tensor, v: Tensor, channels: int) -> Tensor:
    """`channels` channels of `guided`, then those of `v`."""
    if channels > v.shape[1]:
        raise ConfigError(
            f"channels is {channels}; the velocity has {v.shape[1]} in dim 1. Leave it out to "
            "guide all of them."
        )
    # DiT's program guides 3 of its 4 latent channels, and its published numbers keep that
    return torch.cat([guided[:, :channels], v[:, channels:]], 1)


def cfg(
    model: Callable[..., Tensor],
    y: Tensor | int,
    scale: float,
    interval: Interval = EVERYWHERE,
    channels: int | None = None,
    negative: Tensor | int | None = None,
) -> Velocity:
    """Classifier-free guidance, uncond + scale * (cond - uncond), in one call on 2B rows.

    Outside the interval it is one call on B rows. A model without `num_classes` is asked for its
    null velocity by y = None, in a second call.

    Args:
        scale: 1 is `conditional(model, y)`, with any interval, channels and negative, so a sweep
            may contain 1.
        channels: how many leading channels are guided; the others stay conditional. None guides
            all; the official SiT guides 3.
        negative: a condition to move away from, in place of the null condition: another label, or
            another caption (a negative prompt).

    Raises:
        ConfigError: as `guide` and `conditional` do, and for a model without a null label or null
            condition.

    >>> model = lambda x, t, y: x if y is None else 2 * x
    >>> cfg(model, y=0, scale=3)(torch.ones(1, 2), torch.zeros(1))
    tensor([[4., 4.]])
    """
    scale, interval = check_number("scale", scale, -math.inf, math.inf), check_interval(interval)
    if y is None:
        captions = "captions, one per row or one for all", "captions"
        needed, what = captions if takes_captions(model) else ("labels, (B,) or one int", "labels")
        raise ConfigError(
            f"y is None; classifier-free guidance needs {needed}. Without {what} use "
            "conditional(model)."
        )
    cond, labels, other = (
        conditional(model, y),
        check_labels_of(model, y),
        check_labels_of(model, negative, "negative"),
    )
    if takes_captions(model) and other is not None and other.shape[1:] != labels.shape[1:]:
        raise ConfigError(
            f"negative has {seen(other)} and y {seen(labels)}; both are captions, so they must "
            "agree after the first dim. Make both in the same way."
        )
    channels = channels if channels is None else check_count("channels", channels)
    # after every check: a sweep over scales must refuse the same arguments at 1
    if scale == 1:
        return cond
    combine = functools.partial(_extrapolated, scale, channels)
    if takes_captions(model):
        if other is None or getattr(model, "null_condition", None) is not None:
            # asked here: in the first step a message would name the shape of the batch of 2B rows
            null_condition(model, labels)
    elif other is None:
        other = null_label(model)
        if other is None:  # no label to put beside y in one batch, so a second call with y = None
            return Guided((cond, functools.partial(_null_velocity, model)), combine, interval)
    return Guided((cond,), combine, interval, joint=functools.partial(_both, model, labels, other))


def _null_velocity(model: Callable[..., Tensor], x: Tensor, t: Tensor) -> Tensor:
    return _evaluated(model, None, True, x, t)


def _both(
    model: Callable[..., Tensor],
    labels: Tensor | int,
    other: Tensor | int | None,
    x: Tensor,
    t: Tensor,
) -> Sequence[Tensor]:
    """The velocity for the labels, and that for `other` (None: empty captions), from one call on 2B
    rows.
    """
    y = _rows(labels, x)
    y = torch.cat([y, null_condition(model, y) if other is None else _rows(other, x, "negative")])
    return _evaluated(model, y, True, torch.cat([x, x]), torch.cat([t, t])).chunk(2)


def rescale(velocity: Velocity, factor: float | Callable[[Tensor], Tensor]) -> Velocity:
    """`factor` times the velocity, the control "scaled FM".

    Args:
        factor: a finite number, or a function of t (B,) -> (B,).

    Raises:
        ConfigError: a number that is not finite; at the call, a function's result of another shape.

    >>> rescale(lambda x, t: x, 2)(torch.ones(1, 2), torch.zeros(1))
    tensor([[2., 2.]])
    """
    velocity = as_velocity(velocity)
    if callable(factor):
        return Guided((velocity,), functools.partial(_times_of, factor))
    number = check_number("factor", factor, -math.inf, math.inf)
    return Guided((velocity,), functools.partial(_times, number))


def _times(number: float, t: Tensor, v: Tensor) -> Tensor:
    return number * v


def _times_of(factor: Callable[[Tensor], Tensor], t: Tensor, v: Tensor) -> Tensor:
    # in the dtype of v: a float64 factor would turn a float32 state into float64
    given = factor(t)
    try:
        f = torch.as_tensor(given, dtype=v.dtype, device=v.device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(
            f"factor(t) has type {type(given).__name__}; it must be (B,) = {tuple(t.shape)}, one "
            "number per row, or a number."
        ) from None
    if f.dim() and f.shape != t.shape:
        raise ConfigError(
            f"factor(t) has shape {tuple(f.shape)}; it must be (B,) = {tuple(t.shape)}, one number "
            "per row, or a number."
        )
    return expand(f, v) * v


def rescale_in_time(velocity: Velocity, alpha: float, beta: float = 1.0) -> Velocity:
    """(1 + α (1 - t)^β) times the velocity, the control "time-scaled FM".

    It acts most near the noise.

    Args:
        alpha: how much faster it is at t = 0; 0 changes nothing.
        beta: how soon that fades, at least 0.

    Raises:
        ConfigError: a number that is not finite, or a negative `beta`.

    Reference: the velocity deficit, arXiv:2605.14819.

    >>> rescale_in_time(lambda x, t: x, alpha=0.5)(torch.ones(2, 1), torch.tensor([0.0, 1.0]))
    tensor([[1.5000],
            [1.0000]])
    """
    alpha = check_number("alpha", alpha, -math.inf, math.inf)
    beta = check_number("beta", beta, 0, math.inf)
    if alpha == 0:
        return as_velocity(velocity)
    return rescale(velocity, functools.partial(_faster_at_noise, alpha, beta))


def _faster_at_noise(alpha: float, beta: float, t: Tensor) -> Tensor:
    # 1 at the data for beta > 0: the end of the path, which makes details, stays as it was
    return 1 + alpha * (1 - t) ** beta


def retarget(velocity: Velocity, weight: float, mean_velocity: MeanVelocity) -> Velocity:
    """(v - λ E[u_neg]) / (1 - λ): FM's velocity mapped to ΔFM's optimum, "re-targeted FM".

    Args:
        weight: λ, with 0 <= λ < 1.
        mean_velocity: E[u_neg] as a tensor (*dims) or (B, *dims), or a function of t (B,) that
            returns one. With uniform times it is the mean of the data on the linear and cosine
            paths; `negatives.in_batch_mean` gives it for others.

    Raises:
        ConfigError: a weight out of range, or a mean of another shape.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), section 5.4; the minimiser follows by setting
    the gradient to 0.

    >>> retarget(lambda x, t: x, 0.5, torch.zeros(2))(torch.ones(1, 2), torch.zeros(1))
    tensor([[2., 2.]])
    """
    weight, mean = repulsion_weight(weight), _check_mean(mean_velocity)
    return Guided((as_velocity(velocity),), functools.partial(_away, weight, mean))


def _away(weight: float, mean: MeanVelocity, t: Tensor, v: Tensor) -> Tensor:
    # affine in v, because the mean of the negatives does not depend on v: so it has an inverse
    return (v - weight * _mean(mean, t, v)) / (1 - weight)


def debias(
    velocity: Velocity,
    weight: float,
    mean_velocity: MeanVelocity,
    interval: Interval = EVERYWHERE,
) -> Velocity:
    """(1 - λ) v + λ E[u_neg] inside the interval, v outside: the inverse of `retarget`.

    So ΔFM's optimum gives FM's. It may be applied before or after `cfg` of the same interval: both
    are affine with weights that sum to 1. Arguments and errors are those of `retarget`.

    Reference: Stoica et al. 2025, section 5.4, whose vector has the other sign of time.

    >>> debias(lambda x, t: x, 0.5, torch.zeros(2))(torch.ones(1, 2), torch.zeros(1))
    tensor([[0.5000, 0.5000]])
    """
    weight, interval = repulsion_weight(weight), check_interval(interval)
    mean = _check_mean(mean_velocity)
    return Guided((as_velocity(velocity),), functools.partial(_back, weight, mean), interval)


def _back(weight: float, mean: MeanVelocity, t: Tensor, v: Tensor) -> Tensor:
    # it multiplies where `_away` divides by 1 - λ, so it shrinks the errors of v by 1 - λ
    return (1 - weight) * v + weight * _mean(mean, t, v)


def _check_mean(mean: MeanVelocity) -> MeanVelocity:
    if not isinstance(mean, Tensor) and not callable(mean):
        raise ConfigError(
            f"mean_velocity has type {type(mean).__name__}; it must be a tensor (*dims), or a "
            "function of t (B,) that returns one."
        )
    if isinstance(mean, Tensor):
        _check_finite("mean_velocity", mean)
    return mean


def _check_finite(name: str, mean: Tensor) -> None:
    # a NaN here would show as a state that diverged, far from its cause
    if on_host(mean) and not mean.isfinite().all():
        raise ConfigError(
            f"{name} has entries that are not finite; compute it again from finite data."
        )


def _mean(mean: MeanVelocity, t: Tensor, v: Tensor) -> Tensor:
    m = mean if isinstance(mean, Tensor) else mean(t)
    if not isinstance(m, Tensor):
        raise ConfigError(
            f"mean_velocity(t) has type {type(m).__name__}; the function must return a tensor "
            "(*dims), or (B, *dims) with one per row."
        )
    # asked here, because broadcasting would take a mean of another shape in silence
    if tuple(m.shape) not in {tuple(v.shape[1:]), (1, *v.shape[1:]), tuple(v.shape)}:
        raise ConfigError(
            f"mean_velocity has shape {tuple(m.shape)}; it must be {tuple(v.shape[1:])}, or "
            f"{tuple(v.shape)} with one per row."
        )
    return m.to(v)  # it is often on the host, and in float64


def retarget_shuffle(
    velocity: Velocity, weight: float, k: int = 1, exclude_identity: bool = True
) -> Velocity:
    """(v - λk E[Pv]) / (1 - λk): FM's velocity mapped to VeCoR's optimum for channel shuffles P.

    P permutes dim 1, uniformly over the C! - 1 permutations other than the identity, or over all C!
    of them. Either keeps the mean over the channels, and multiplies the deviations from it by one
    gain > 1.

    Raises:
        ConfigError: not 0 <= λk < 1; at the call, a velocity with one channel.

    Reference: Hong et al. 2025 (arXiv:2511.18942).

    >>> pair = torch.tensor([[1.0, 3.0]])
    >>> retarget_shuffle(lambda x, t: x, weight=0.2)(pair, torch.zeros(1))
    tensor([[0.5000, 3.5000]])
    """
    total = repulsion_total(weight, k)
    check_flag(exclude_identity=exclude_identity)
    stretch = functools.partial(_stretched, total, exclude_identity, False)
    return Guided((as_velocity(velocity),), stretch)


def debias_shuffle(
    velocity: Velocity,
    weight: float,
    k: int = 1,
    exclude_identity: bool = True,
    interval: Interval = EVERYWHERE,
) -> Velocity:
    """The inverse of `retarget_shuffle` inside the interval, v outside.

    It is a linear map of v, so nothing has to be stored with the model.

    Raises:
        ConfigError: not 0 <= λk < 1, or an interval outside [0, 1]; at the call, a velocity with
            one channel.

    >>> pair = torch.tensor([[0.5, 3.5]])
    >>> debias_shuffle(lambda x, t: x, weight=0.2)(pair, torch.zeros(1))
    tensor([[1., 3.]])
    """
    total, interval = repulsion_total(weight, k), check_interval(interval)
    check_flag(exclude_identity=exclude_identity)
    stretch = functools.partial(_stretched, total, exclude_identity, True)
    return Guided((as_velocity(velocity),), stretch, interval)


def _stretched(total: float, exclude_identity: bool, back: bool, t: Tensor, v: Tensor) -> Tensor:
    """The mean over the channels plus a gain, or its inverse, times the deviation from it."""
    gain = _gain(v, total, exclude_identity)
    # every shuffle keeps the mean over the channels, so only deviations from it are scaled
    mean = v.mean(1, keepdim=True)
    return mean + (1 / gain if back else gain) * (v - mean)


def _gain(v: Tensor, total: float, exclude_identity: bool) -> float:
    """What VeCoR's optimum (d - λk E[Pd]) / (1 - λk) multiplies a deviation d by."""
    channels = v.shape[1] if v.dim() > 1 else 1
    if channels == 1:
        raise ConfigError(
            f"v has shape {tuple(v.shape)}, one channel in dim 1; shuffling one channel changes "
            "nothing, so there is no bias to map."
        )
    # E[Pd] = s d, with s = -1 / (C! - 1) without the identity and 0 with it.
    # So the gain is above 1: repulsion makes the differences between channels larger.
    return (1 - total * shuffle_share(channels, exclude_identity)) / (1 - total)


def as_velocity(velocity: Velocity, name: str = "velocity") -> Velocity:
    """`velocity` itself, or for a bare module its velocity in eval mode; ConfigError if neither."""
    if not callable(velocity):
        raise ConfigError(
            f"{name} has type {type(velocity).__name__}; it must be a function (x, t) -> velocity, "
            "or a model."
        )
    return conditional(velocity) if isinstance(velocity, nn.Module) else velocity


def retarget_linear(
    velocity: Velocity,
    weight: float,
    expected: Float[Tensor, "size size"],
    *,
    k: int = 1,
    space: str = "latent",
    path: Path = LINEAR,
) -> Velocity:
    """FM's velocity mapped to VeCoR's optimum for perturbations P of mean `expected` = E[P].

    Args:
        expected: (D, D) with D the size of a sample, or (C, C) for a map of channels.

    Raises:
        ConfigError: not 0 <= λk < 1, another space, or an `expected` that is not finite; at the
            call, samples of another size, or for `debias_linear` a map without an inverse.

    >>> v = retarget_linear(lambda x, t: x, 0.5, 0.5 * torch.eye(2), space="velocity")
    >>> v(torch.ones(1, 2), torch.zeros(1))
    tensor([[1.5000, 1.5000]])
    """
    total = _check_linear(weight, expected, k, space, path)
    where = path if space == "latent" else None
    return functools.partial(_retargeted, as_velocity(velocity), total, expected, where)


def _retargeted(
    velocity: Velocity, total: float, mean: Tensor, path: Path | None, x: Tensor, t: Tensor
) -> Tensor:
    """In latent space, which needs the `path`, or without one in velocity space."""
    v = promote(as_velocity_of(velocity(x, t), x))
    # a map P of velocities has E[P u | x_t] = M v; in latent space P leaves the noise alone,
    # so v must first be split into what it says of the data and of the noise
    if path is None:
        negative = _apply(mean, v)
    else:
        x0, x1 = path.parts(promote(x), v, t)
        moved = _apply(mean, x1)
        *_, d_alpha, d_sigma = path.coefficients(t, v)
        negative = d_alpha * moved + d_sigma * x0
        # where d_sigma is infinite the noise is 0, and v holds what is left of their product
        negative = torch.where(d_sigma.isinf(), v + d_alpha * (moved - x1), negative)
    return (v - total * negative) / (1 - total)


def debias_linear(
    velocity: Velocity,
    weight: float,
    expected: Float[Tensor, "size size"],
    *,
    k: int = 1,
    space: str = "latent",
    path: Path = LINEAR,
) -> Velocity:
    """The inverse of `retarget_linear`, by one solve of a (D, D) system per time.

    In latent space the posterior mean x1 of the data solves, with p = λk,

        [sigma d_alpha (I - p M) - (1 - p) alpha d_sigma I] x1 = (1 - p) (sigma v* - d_sigma x)

    and v = v* - p / (1 - p) d_alpha (I - M) x1. No factor here divides by 0 at an end of time.

    Arguments and errors are those of `retarget_linear`.

    >>> v = debias_linear(lambda x, t: x, 0.5, 0.5 * torch.eye(2), space="velocity")
    >>> v(torch.ones(1, 2), torch.zeros(1))
    tensor([[0.6667, 0.6667]])
    """
    total = _check_linear(weight, expected, k, space, path)
    where = path if space == "latent" else None
    return functools.partial(_debiased, as_velocity(velocity), total, expected, where)


def _debiased(
    velocity: Velocity, total: float, mean: Tensor, path: Path | None, x: Tensor, t: Tensor
) -> Tensor:
    v = promote(as_velocity_of(velocity(x, t), x))
    if path is None:  # (I - p M) v = (1 - p) v*
        system = torch.eye(len(mean), dtype=v.dtype, device=v.device) - total * mean.to(v)
        return (1 - total) * _solved(system, v)
    x1, d_alpha = _data(mean, total, path, promote(x), v, t)
    return v - total / (1 - total) * d_alpha * (x1 - _apply(mean, x1))


def _data(
    mean: Tensor, total: float, path: Path, x: Tensor, v: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The posterior mean of the data from VeCoR's velocity `v`, and d_alpha."""
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t, v)
    right = (1 - total) * (sigma * v - d_sigma * x)
    eye, x1 = torch.eye(len(mean), dtype=v.dtype, device=v.device), torch.empty_like(right)
    for time in t.unique():  # rows of one time share a system
        rows = t == time
        a, s, da, ds = (c[rows][0].flatten()[0] for c in (alpha, sigma, d_alpha, d_sigma))
        if da == 0:  # the data have no part in the velocity
            x1[rows] = 0.0
        elif ds.isinf():  # the position is the data alone
            x1[rows] = x[rows].to(x1) / a
        else:
            system = s * da * (eye - total * mean.to(v)) - (1 - total) * a * ds * eye
            x1[rows] = _solved(system, right[rows])
    return x1, d_alpha


def _apply(mean: Tensor, x: Tensor) -> Tensor:
    """M x for every row of `x` (B, *dims)."""
    return _in_rows(lambda rows: rows @ mean.to(rows).mT, len(mean), x)


def _solved(system: Tensor, x: Tensor) -> Tensor:
    """The solution of system @ solution = x for every row of `x` (B, *dims)."""
    try:
        return _in_rows(lambda rows: torch.linalg.solve(system, rows.mT).mT, len(system), x)
    except torch.linalg.LinAlgError:
        raise ConfigError(
            "with this weight and this expected the map has no inverse: its system is singular. "
            "Give the weight and the E[P] of the training, or a slightly smaller weight."
        ) from None


# autocast would take these products in half precision
@full_precision()
def _in_rows(change: Callable[[Tensor], Tensor], size: int, x: Tensor) -> Tensor:
    """`change` of rows (N, size): samples of `x` (B, C, *dims), or the channels of each pixel."""
    # points (B, C) are both samples and channels, and both ways give the same numbers
    if x.flatten(1).shape[1] == size:
        return change(x.flatten(1)).reshape(x.shape)
    if x.shape[1] != size:
        numbers = f"{x.flatten(1).shape[1]} numbers in {x.shape[1]} channels"
        raise ConfigError(
            f"expected is ({size}, {size}) and a sample has {numbers}; give E[P] for samples of "
            "this size."
        )
    # one (C, C) matrix at every pixel: the (D, D) matrix of the sample is never built
    channels = x.movedim(1, -1)
    return change(channels.reshape(-1, size)).reshape(channels.shape).movedim(-1, 1)


def _check_linear(weight: float, expected: Any, k: int, space: str, path: Any) -> float:
    """λk of a linear perturbation, whose mean and space are checked."""
    check_choice("space", space, SPACES)
    total = repulsion_total(weight, k)
    square = isinstance(expected, Tensor) and expected.dim() == 2
    if not square or expected.shape[0] != expected.shape[1]:
        raise ConfigError(
            f"expected is {expected!r:.60}; it must be E[P], a square matrix (D, D), as "
            "perturbations.expected_map gives it."
        )
    check_floating(expected=expected)
    _check_finite("expected", expected)
    check_path(path)
    return total
