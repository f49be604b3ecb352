"""A path joins noise to data: x_t = alpha(t) x1 + sigma(t) x0, u_t = d_alpha(t) x1 + d_sigma(t) x0.

Convention, everywhere in cfm_lite: t = 0 is noise x0, t = 1 is data x1 (SiT's). REPA and DeltaFM
run time the other way, v_REPA(x, t) = -v(x, 1 - t); `models.load_official` converts once, when it
loads.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cfm_lite._internal.checks import (
    check_alike,
    check_floating,
    check_time,
    expand,
    on_host,
    promote,
)
from cfm_lite.errors import ConfigError

__all__ = ["COSINE", "LINEAR", "PATHS", "VP", "FlowSample", "Path"]

Schedule = Callable[[Tensor], Tensor]
Batch = Float[Tensor, "batch *dims"]
Times = Float[Tensor, " batch"]


class FlowSample(NamedTuple):
    """One training draw: noise `x0`, data `x1`, position `x_t` and velocity `u_t`.

    These are (B, *dims), the times `t` are (B,), and the labels `y` are (B,) or None.

    >>> x0, x1, t = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.5])
    >>> FlowSample(x0, x1, t, *LINEAR.interpolate(x0, x1, t)).u_t
    tensor([[1., 1.]])
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor
    u_t: Tensor
    y: Tensor | None = None


@dataclass(frozen=True, repr=False)
class Path:
    """The two coefficients of a path and their derivatives, functions of a time of any shape.

    `sigma_d_sigma` is the product of the two. Give it only where it stays finite although d_sigma
    does not (VP at t = 1). `train_end` is the latest time of a training draw: 1, or just before it
    where the velocity is infinite at 1. A path is pickled by its functions: to reach another
    process they must be functions of a module, not lambdas.

    At the ends of time each method gives its limit.

    Raises:
        ConfigError: no limit exists, and t is on the host. On a device nothing is read back, and
            the rows of such a time are not finite.

    Reference: Ma et al. 2024 (SiT, arXiv:2401.08740), section 2 and table 1; Lipman et al. 2023
    (arXiv:2210.02747), eq. 10.

    >>> slow = Path("slow", torch.square, lambda t: 1 - t**2, lambda t: 2 * t, lambda t: -2 * t)
    >>> slow.interpolate(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.5]))
    (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
    """

    name: str
    alpha: Schedule
    sigma: Schedule
    d_alpha: Schedule
    d_sigma: Schedule
    sigma_d_sigma: Schedule | None = None
    train_end: float = 1.0

    def __repr__(self) -> str:
        return f"Path({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a path of `PATHS` is that path itself; any other is made of its fields."""
        # `interpolate` asks whether a path is LINEAR itself, so a copy must be that object
        if PATHS.get(self.name) == self:
            return _named, (self.name,)
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def half_variance_rate(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Half the derivative of sigma^2, which is sigma d_sigma; finite on all of [0, 1].

        Raises:
            ConfigError: the product is 0 times infinity, and `sigma_d_sigma` is not given.

        >>> LINEAR.half_variance_rate(torch.tensor([0.0, 1.0]))
        tensor([-1., -0.])
        """
        if self.sigma_d_sigma:
            return self.sigma_d_sigma(t)
        # 0 times infinity is NaN: there only the product of the two has a limit
        rate = self.sigma(t) * self.d_sigma(t)
        remedy = "Give the path its sigma_d_sigma, which is finite there"
        check_defined(self, ~rate.isnan(), t, "sigma d_sigma", remedy)
        return rate

    def coefficients(self, t: Times, x: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(alpha, sigma, d_alpha, d_sigma) at `t`, each (B, 1, ...) so that it broadcasts over `x`.

        Raises:
            ConfigError: `x` of integers, or times that are not (B,) in [0, 1].

        >>> LINEAR.coefficients(torch.tensor([0.25]), torch.zeros(1, 2))[1]
        tensor([[0.7500]])
        """
        check_floating(x=x)
        t = _beside(t, x)
        return self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)

    def interpolate(self, x0: Batch, x1: Batch, t: Times) -> tuple[Batch, Batch]:
        """Position and velocity (x_t, u_t) of noise `x0` and data `x1` at times `t` in [0, 1].

        VP's u_t is infinite at t = 1: SiT draws its times from [0, 1 - 1e-5].

        Raises:
            ConfigError: shapes that differ, or a time outside [0, 1].

        >>> LINEAR.interpolate(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
        (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
        """
        check_alike(x0=x0, x1=x1)
        t = _beside(t, x1)
        x_t = self.alpha(t) * x1 + self.sigma(t) * x0
        if self is LINEAR:  # 1 x1 + (-1) x0 has the same bits, and takes five kernels more
            return x_t, promote(x1) - promote(x0)
        return x_t, self.d_alpha(t) * x1 + self.d_sigma(t) * x0

    def endpoints(self, x: Batch, v: Batch, t: Times) -> tuple[Batch, Batch]:
        """(x0, x1) that position `x` and velocity `v` imply: the solution of a 2x2 system.

        x1 = (d_sigma x - sigma v) / det and x0 = (alpha v - d_alpha x) / det, with det = alpha
        d_sigma - d_alpha sigma. For LINEAR it is exact at t = 0 and t = 1. An infinite derivative
        beside a finite `v` means that its end is 0.

        Raises:
            ConfigError: `v` does not determine an end: alpha = d_alpha = 0, or sigma = d_sigma =
                0.

        >>> LINEAR.endpoints(torch.tensor([[1.5]]), torch.tensor([[1.0]]), torch.tensor([0.5]))
        (tensor([[1.]]), tensor([[2.]]))
        """
        return self._ends(x, v, t, idle=False)

    def parts(self, x: Batch, v: Batch, t: Times) -> tuple[Batch, Batch]:
        """`endpoints`, with 0 for an end that is unknown and has no part in the velocity.

        Such an end has the derivative 0.

        Errors are those of `endpoints`, for an end that has a part in the velocity.

        >>> LINEAR.parts(torch.tensor([[1.5]]), torch.tensor([[1.0]]), torch.tensor([0.5]))
        (tensor([[1.]]), tensor([[2.]]))
        """
        return self._ends(x, v, t, idle=True)

    def _ends(self, x: Tensor, v: Tensor, t: Tensor, idle: bool) -> tuple[Tensor, Tensor]:
        alpha, sigma, d_alpha, d_sigma = self._at(t, x=x, v=v)
        det = alpha * d_sigma - d_alpha * sigma  # -1 for LINEAR, so nothing is divided away
        noise, data = (alpha, d_alpha, det), (sigma, d_sigma, det)
        regular = det.isfinite() & (det != 0)
        # inside (0, 1) the formula is enough; the ends of time need their limits
        if not (on_host(regular) and regular.all()):
            one, zero = torch.ones_like(det), torch.zeros_like(det)
            no_data = _alone(sigma, d_sigma, alpha, d_alpha) & ~regular
            no_noise = _alone(alpha, d_alpha, sigma, d_sigma) & ~regular
            nil_noise = (no_noise & d_sigma.isinf()) | (idle & (d_sigma == 0) & ~regular & ~no_data)
            nil_data = (no_data & d_alpha.isinf()) | (idle & (d_alpha == 0) & ~regular & ~no_noise)
            check_defined(self, regular | no_data | nil_noise, t, "x0 from a velocity", STAY_AWAY)
            check_defined(self, regular | no_noise | nil_data, t, "x1 from a velocity", STAY_AWAY)
            # x0 = x / sigma where there is no data, and 0 / 1 where the noise is known to be 0
            limit = (zero, -one, sigma), (zero, zero, nil_noise.to(det.dtype))
            noise = _chosen(regular, noise, _chosen(no_data, *limit))
            limit = (zero, one, alpha), (zero, zero, nil_data.to(det.dtype))
            data = _chosen(regular, data, _chosen(no_noise, *limit))
        return (noise[0] * v - noise[1] * x) / noise[2], (data[1] * x - data[0] * v) / data[2]

    def score(self, x: Batch, v: Batch, t: Times) -> Batch:
        """The score -x0 / sigma that velocity `v` implies at `x`.

        It is infinite at t = 1 unless d_sigma is (VP). Where alpha = d_alpha = 0 the position is
        only noise, and the score is -x / sigma^2.

        Raises:
            ConfigError: `v` does not determine the noise (sigma = d_sigma = 0).

        Reference: Ma et al. 2024, section 2, multiplied out so that alpha = 0 at t = 0 is harmless.

        >>> LINEAR.score(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([0.5]))
        tensor([[-2.]])
        """
        alpha, sigma, d_alpha, d_sigma = self._at(t, x=x, v=v)
        rate = self._rate_like(t, alpha)
        numerator, denominator = (alpha, d_alpha), d_alpha * sigma**2 - alpha * rate
        regular = denominator.isfinite() & (denominator != 0)
        if on_host(regular) and regular.all():
            # x0 / -sigma with the x0 of `endpoints`: -sigma det is the denominator
            return (alpha * v - d_alpha * x) / denominator
        one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
        alone = ~regular & _alone(sigma, rate, alpha, d_alpha)
        endless = (sigma == 0) & (denominator == 0) & (d_sigma != 0)
        check_defined(self, regular | alone | endless, t, "the score", STAY_AWAY)
        *numerator, denominator = _chosen(alone, (zero, one, sigma**2), (*numerator, denominator))
        x0 = numerator[0] * v - numerator[1] * x
        # noise that is exactly 0 has no infinite score
        return torch.where(endless & (x0 == 0), 0, x0 / denominator)

    def velocity_from_score(self, x: Batch, score: Batch, t: Times) -> Batch:
        """The inverse of `score`: v = (d_alpha / alpha) (x + sigma^2 s) - sigma d_sigma s.

        Raises:
            ConfigError: alpha = 0 and d_alpha is not, as at t = 0 of LINEAR: the score of noise
                does not determine the data.

        >>> x, score = torch.tensor([[1.0]]), torch.tensor([[-2.0]])
        >>> LINEAR.velocity_from_score(x, score, torch.tensor([0.5]))
        tensor([[0.]])
        """
        alpha, sigma, d_alpha, _ = self._at(t, x=x, score=score)
        ratio = self._quotient(d_alpha, alpha, t, "the velocity from a score")
        # x1 = (x + sigma^2 s) / alpha, which is Tweedie's formula, and x0 = -sigma s
        return ratio * (x + sigma**2 * score) - self._rate_like(t, alpha) * score

    def velocity_from_data(self, x: Batch, x1: Batch, t: Times) -> Batch:
        """The velocity d_alpha x1 + d_sigma x0 at `x`, of a network that predicts the data `x1`.

        x0 = (x - alpha x1) / sigma, so `endpoints` is the inverse.

        Raises:
            ConfigError: sigma = 0 and d_sigma is not, as at t = 1 of every path here: position and
                data are one, and the noise is not known.

        Reference: Salimans and Ho 2022 (arXiv:2202.00512).

        >>> x, x1 = torch.tensor([[0.25]]), torch.tensor([[1.0]])
        >>> LINEAR.velocity_from_data(x, x1, torch.tensor([0.25]))
        tensor([[1.]])
        """
        alpha, sigma, d_alpha, d_sigma = self._at(t, x=x, x1=x1)
        ratio = self._quotient(d_sigma, sigma, t, "the velocity from data", d_alpha)
        return d_alpha * x1 + ratio * (x - alpha * x1)

    def velocity_from_noise(self, x: Batch, x0: Batch, t: Times) -> Batch:
        """The velocity d_alpha x1 + d_sigma x0 at `x`, of a network that predicts the noise `x0`.

        x1 = (x - sigma x0) / alpha, so `endpoints` is the inverse.

        Raises:
            ConfigError: alpha = 0 and d_alpha is not, as at t = 0 of LINEAR and COSINE, or d_sigma
                is infinite, as at t = 1 of VP.

        Reference: Salimans and Ho 2022 (arXiv:2202.00512).

        >>> x, x0 = torch.tensor([[0.25]]), torch.tensor([[0.0]])
        >>> LINEAR.velocity_from_noise(x, x0, torch.tensor([0.25]))
        tensor([[1.]])
        """
        alpha, sigma, d_alpha, d_sigma = self._at(t, x=x, x0=x0)
        ratio = self._quotient(d_alpha, alpha, t, "the velocity from noise", d_sigma)
        return ratio * (x - sigma * x0) + d_sigma * x0

    def _at(self, t: Tensor, **tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The coefficients at `t`, for tensors of one shape, whose first one is the position."""
        check_alike(**tensors)
        return self.coefficients(t, tensors["x"])

    def _quotient(
        self, rate: Tensor, coefficient: Tensor, t: Tensor, what: str, beside: Tensor | None = None
    ) -> Tensor:
        """rate / coefficient, and 0 where both are 0: that end has no part in the velocity."""
        idle = (coefficient == 0) & (rate == 0)
        good = idle | ((coefficient != 0) & rate.isfinite())
        good = good if beside is None else good & beside.isfinite()
        check_defined(self, good, t, what, STAY_AWAY)
        return rate / torch.where(idle, 1, coefficient)

    def _rate_like(self, t: Tensor, like: Tensor) -> Tensor:
        """`half_variance_rate` in the shape and dtype of a coefficient."""
        return self.half_variance_rate(t.to(like.dtype)).reshape(like.shape)


STAY_AWAY = "Use a time that is a little further inside (0, 1), such as {inside:g}"


def _alone(own: Tensor, own_rate: Tensor, other: Tensor, other_rate: Tensor) -> Tensor:
    """Whether the position depends on one end only.

    The other end has no weight there, or it must be 0 for the velocity to be finite.
    """
    nothing = other_rate.isinf() | ((other == 0) & (other_rate == 0))
    return (own != 0) & own_rate.isfinite() & nothing


def _chosen(where: Tensor, yes: tuple[Tensor, ...], no: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(where, a, b) for a, b in zip(yes, no))


def check_defined(path: Path, good: Tensor, t: Tensor, what: str, remedy: str) -> None:
    """ConfigError for the first time whose entry in `good` is False, if that can be read.

    `t` has as many entries as `good`, in any shape.
    """
    if not on_host(good) or good.all():
        return
    first = int((~good).flatten().nonzero()[0])
    time = float(t.flatten()[first])
    at = torch.tensor([time], dtype=torch.float64)
    values = ", ".join(
        f"{name} = {getattr(path, name)(at).item():.3g}"
        for name in ("alpha", "sigma", "d_alpha", "d_sigma")
    )
    inside = min(max(time, 0.001), 0.999)
    raise ConfigError(
        f"{what} is not defined on path {path.name!r} at t = {time:g}, where {values}. "
        f"{remedy.format(inside=inside)}."
    )


def check_path(path: Any) -> Path:
    """`path` itself; ConfigError unless it is a Path."""
    if not isinstance(path, Path):
        raise ConfigError(
            f"path is {path!r:.60}; it must be a Path: LINEAR, COSINE, VP from cfm_lite.paths, or "
            "your own."
        )
    return path


def given_path(function: Any) -> Any:
    """The path that `function` holds already, as its attribute or in a partial; else None."""
    while isinstance(function, functools.partial):
        if function.keywords.get("path") is not None:
            return function.keywords["path"]
        function = function.func
    path = getattr(function, "path", None)
    return path if isinstance(path, Path) else None


def on_path(function: Callable[..., Any], path: Path, name: str) -> Callable[..., Any]:
    """`function` with its keyword `path` filled in, if it has one.

    So a path is given once, to the objective. Its times and negatives follow that path.
    ConfigError where `function` holds another path already.
    """
    given = given_path(function)
    if given is None:
        return functools.partial(function, path=path) if takes_path(function) else function
    # lognormal_time takes a path by its name, too
    if given not in (path, path.name):
        other = given.name if isinstance(given, Path) else given
        raise ConfigError(
            f"the path of {name} is {other!r:.60} and the objective is on {path.name!r}; leave it "
            "out, and it follows the objective's."
        )
    return function


def takes_path(function: Callable[..., Any]) -> bool:
    """Whether `function` has an argument `path`.

    It is asked before every draw. So the code object is read: a signature would take longer than
    some training steps.
    """
    while isinstance(function, functools.partial):
        function = function.func
    own = hasattr(function, "__code__") or hasattr(function, "__wrapped__")
    code = getattr(inspect.unwrap(function if own else type(function).__call__), "__code__", None)
    if code is None:
        return False
    return "path" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


# functions, not lambdas: a pickle holds a function by its name


def _linear_alpha(t: Tensor) -> Tensor:
    return t


def _linear_sigma(t: Tensor) -> Tensor:
    return 1 - t


def _linear_d_sigma(t: Tensor) -> Tensor:
    return -torch.ones_like(t)


LINEAR = Path("linear", _linear_alpha, _linear_sigma, torch.ones_like, _linear_d_sigma)

_Q = math.pi / 2


def _cosine_alpha(t: Tensor) -> Tensor:
    return torch.sin(_Q * t)


def _cosine_sigma(t: Tensor) -> Tensor:
    # cos(_Q t) as a sine, because float32's cos(pi / 2) is a small negative number, not 0
    return torch.sin(_Q * (1 - t))


def _cosine_d_alpha(t: Tensor) -> Tensor:
    return _Q * torch.sin(_Q * (1 - t))


def _cosine_d_sigma(t: Tensor) -> Tensor:
    return -_Q * torch.sin(_Q * t)


# SiT's GVP
COSINE = Path("cosine", _cosine_alpha, _cosine_sigma, _cosine_d_alpha, _cosine_d_sigma)

# SiT's VPCPlan: the noise rate falls linearly from 20 at t = 0 to 0.1 at t = 1
_LOW, _HIGH = 0.1, 20.0


def _vp_log_alpha(t: Tensor) -> Tensor:
    return -0.25 * (1 - t) ** 2 * (_HIGH - _LOW) - 0.5 * (1 - t) * _LOW


def _vp_rate(t: Tensor) -> Tensor:  # derivative of _vp_log_alpha
    return 0.5 * (1 - t) * (_HIGH - _LOW) + 0.5 * _LOW


def _vp_alpha(t: Tensor) -> Tensor:
    return torch.exp(_vp_log_alpha(t))


def _vp_sigma(t: Tensor) -> Tensor:
    # expm1, because 1 - alpha^2 would lose its digits near t = 1
    return torch.sqrt(-torch.expm1(2 * _vp_log_alpha(t)))


def _vp_d_alpha(t: Tensor) -> Tensor:
    return torch.exp(_vp_log_alpha(t)) * _vp_rate(t)


def _vp_sigma_d_sigma(t: Tensor) -> Tensor:
    return -_vp_rate(t) * torch.exp(2 * _vp_log_alpha(t))


def _vp_d_sigma(t: Tensor) -> Tensor:
    return _vp_sigma_d_sigma(t) / _vp_sigma(t)


# the last number is SiT's latest training time
VP = Path("vp", _vp_alpha, _vp_sigma, _vp_d_alpha, _vp_d_sigma, _vp_sigma_d_sigma, 1 - 1e-5)

PATHS = {path.name: path for path in (LINEAR, COSINE, VP)}


def _beside(t: Tensor, x: Tensor) -> Tensor:
    """The checked times, shaped (B, 1, ...) and in the precision of `x` (B, *dims)."""
    check_time(t, x)
    # in the precision of x: a float64 time would turn float32 data into float64
    return expand(promote(t).to(promote(x).dtype), x)


def _named(name: str) -> Path:
    return PATHS[name]
