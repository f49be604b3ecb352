"""A path joins noise to data:  x_t = alpha(t) x1 + sigma(t) x0,  u_t = d_alpha(t) x1 + d_sigma(t) x0.

Convention, everywhere in cfm_lite: t = 0 is noise x0, t = 1 is data x1 (SiT's). REPA and DeltaFM
run time the other way, v_REPA(x, t) = -v(x, 1 - t); `models.load_official` converts once, at load
time.
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
    check_floating,
    check_same_shape,
    check_time,
    expand,
    on_host,
    promote,
)
from cfm_lite.errors import ConfigError

__all__ = ["COSINE", "LINEAR", "PATHS", "VP", "FlowSample", "Path"]

Schedule = Callable[[Tensor], Tensor]


class FlowSample(NamedTuple):
    """One training draw: noise `x0`, data `x1`, position `x_t` and velocity `u_t` (B, *dims), time
    `t` (B,), labels `y` (B,) or None.
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor
    u_t: Tensor
    y: Tensor | None = None


@dataclass(frozen=True, repr=False)
class Path:
    """The two coefficients of a path and their derivatives, each a function of a time tensor of any
    shape.

    `sigma_d_sigma` is the product of the two; give it only where it stays finite although d_sigma
    does not (VP at t = 1). `train_end` is the latest time of a training draw: 1, or just before it
    where the velocity is infinite there. A path is pickled by its functions: give functions of a
    module, not lambdas, if it has to reach another process.

    At the ends of time a conversion gives its limit. Where there is none, it raises a ConfigError
    that names the path and the time, if t is on the host; on a device nothing is read back, and the
    rows of such a time are not finite.

    Reference: Ma et al. 2024 (SiT, arXiv:2401.08740), section 2 and table 1; Lipman et al. 2023
    (arXiv:2210.02747), eq. 10.
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
        """A path of `PATHS` comes back from a pickle or a copy as itself, any other by its fields."""
        if PATHS.get(self.name) == self:
            return _named, (self.name,)
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def half_variance_rate(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Half the derivative of sigma^2, sigma d_sigma, at a time tensor of any shape; finite on
        all of [0, 1].

        Raises ConfigError where the product of the two is 0 times infinity and `sigma_d_sigma` is
        not given.
        """
        if self.sigma_d_sigma:
            return self.sigma_d_sigma(t)
        rate = self.sigma(t) * self.d_sigma(t)
        check_defined(
            self,
            ~rate.isnan(),
            t,
            "sigma d_sigma",
            "Give the path its sigma_d_sigma, which is finite there",
        )
        return rate

    def coefficients(
        self, t: Float[Tensor, " batch"], x: Float[Tensor, "batch *dims"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(alpha, sigma, d_alpha, d_sigma) at `t` (B,), each shaped (B, 1, ...) to broadcast over
        `x` (B, *dims).
        """
        check_floating(x=x)
        t = _beside(t, x)
        return self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)

    def interpolate(
        self,
        x0: Float[Tensor, "batch *dims"],
        x1: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, "batch *dims"]]:
        """Position and velocity (x_t, u_t), both (B, *dims), of noise `x0` and data `x1` (B, *dims)
        at `t` (B,) in [0, 1].

        VP's u_t is infinite at t = 1: SiT draws its times from [0, 1 - 1e-5]. Raises ConfigError
        for unequal shapes or a time outside [0, 1].
        """
        check_same_shape(x0=x0, x1=x1)
        check_floating(x0=x0, x1=x1)
        t = _beside(t, x1)
        x_t = self.alpha(t) * x1 + self.sigma(t) * x0
        if self is LINEAR:  # 1 x1 + (-1) x0 has the same bits and takes five kernels more
            return x_t, promote(x1) - promote(x0)
        return x_t, self.d_alpha(t) * x1 + self.d_sigma(t) * x0

    def endpoints(
        self,
        x: Float[Tensor, "batch *dims"],
        v: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, "batch *dims"]]:
        """(x0, x1) implied by position `x` and velocity `v` (B, *dims): one 2x2 solve, exact at t =
        0 and t = 1 for LINEAR.

        x1 = (d_sigma x - sigma v) / det and x0 = (alpha v - d_alpha x) / det, with det = alpha
        d_sigma - d_alpha sigma. An infinite derivative beside a finite `v` means that its end is 0.
        Raises ConfigError where `v` says nothing of an end: of x1 where alpha = d_alpha = 0, of x0
        where sigma = d_sigma = 0.
        """
        return self._ends(x, v, t, idle=False)

    def parts(
        self,
        x: Float[Tensor, "batch *dims"],
        v: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, "batch *dims"]]:
        """`endpoints`, but an end that is not known and has no part in the velocity, its derivative
        being 0, is given as 0.
        """
        return self._ends(x, v, t, idle=True)

    def _ends(self, x: Tensor, v: Tensor, t: Tensor, idle: bool) -> tuple[Tensor, Tensor]:
        check_same_shape(x=x, v=v)
        check_floating(x=x, v=v)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t, x)
        det = alpha * d_sigma - d_alpha * sigma  # -1 for LINEAR, so nothing is divided away
        noise, data = (alpha, d_alpha, det), (sigma, d_sigma, det)
        regular = det.isfinite() & (det != 0)
        if not (on_host(regular) and regular.all()):
            one, zero = torch.ones_like(det), torch.zeros_like(det)
            # an end alone makes the position where the other one has no weight, or must be 0 for
            # the velocity to be finite
            no_data = (
                (sigma != 0)
                & d_sigma.isfinite()
                & (d_alpha.isinf() | ((alpha == 0) & (d_alpha == 0)))
            )
            no_noise = (
                (alpha != 0)
                & d_alpha.isfinite()
                & (d_sigma.isinf() | ((sigma == 0) & (d_sigma == 0)))
            )
            no_data, no_noise = no_data & ~regular, no_noise & ~regular
            nil_noise = (no_noise & d_sigma.isinf()) | (idle & (d_sigma == 0) & ~regular & ~no_data)
            nil_data = (no_data & d_alpha.isinf()) | (idle & (d_alpha == 0) & ~regular & ~no_noise)
            check_defined(self, regular | no_data | nil_noise, t, "x0 from a velocity", STAY_AWAY)
            check_defined(self, regular | no_noise | nil_data, t, "x1 from a velocity", STAY_AWAY)
            noise = _chosen(
                regular,
                noise,
                _chosen(no_data, (zero, -one, sigma), (zero, zero, nil_noise.to(det.dtype))),
            )
            data = _chosen(
                regular,
                data,
                _chosen(no_noise, (zero, one, alpha), (zero, zero, nil_data.to(det.dtype))),
            )
        return (noise[0] * v - noise[1] * x) / noise[2], (data[1] * x - data[0] * v) / data[2]

    def score(
        self,
        x: Float[Tensor, "batch *dims"],
        v: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch *dims"]:
        """The score -x0 / sigma (B, *dims) that velocity `v` implies at `x`; infinite at t = 1
        unless d_sigma is (VP).

        Where alpha = d_alpha = 0 the position is noise alone: -x / sigma^2. Raises ConfigError
        where `v` says nothing of the noise: where sigma = d_sigma = 0. Reference: Ma et al. 2024,
        section 2, multiplied out so that alpha = 0 at t = 0 is harmless.
        """
        check_same_shape(x=x, v=v)
        check_floating(x=x, v=v)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t, x)
        rate = self._rate_like(t, alpha)
        numerator, denominator = (alpha, d_alpha), d_alpha * sigma**2 - alpha * rate
        regular = denominator.isfinite() & (denominator != 0)
        if on_host(regular) and regular.all():
            return (alpha * v - d_alpha * x) / denominator
        one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
        alone = (
            ~regular
            & (sigma != 0)
            & rate.isfinite()
            & (d_alpha.isinf() | ((alpha == 0) & (d_alpha == 0)))
        )
        endless = (sigma == 0) & (denominator == 0) & (d_sigma != 0)
        check_defined(self, regular | alone | endless, t, "the score", STAY_AWAY)
        *numerator, denominator = _chosen(alone, (zero, one, sigma**2), (*numerator, denominator))
        x0 = numerator[0] * v - numerator[1] * x
        return torch.where(
            endless & (x0 == 0), 0, x0 / denominator
        )  # noise of 0 has no score at all

    def velocity_from_score(
        self,
        x: Float[Tensor, "batch *dims"],
        score: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch *dims"]:
        """The inverse of `score`: v = (d_alpha / alpha) (x + sigma^2 s) - sigma d_sigma s.

        Raises ConfigError where alpha = 0 and d_alpha is not, as at t = 0 of LINEAR: the score of
        noise does not know the data.
        """
        check_same_shape(x=x, score=score)
        check_floating(x=x, score=score)
        alpha, sigma, d_alpha, _ = self.coefficients(t, x)
        ratio = self._quotient(d_alpha, alpha, t, "the velocity from a score")
        return ratio * (x + sigma**2 * score) - self._rate_like(t, alpha) * score

    def velocity_from_data(
        self,
        x: Float[Tensor, "batch *dims"],
        x1: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch *dims"]:
        """The velocity (B, *dims) at `x` of a network that predicts the data `x1` (B, *dims):
        d_alpha x1 + d_sigma x0.

        x0 = (x - alpha x1) / sigma, so `endpoints` is the inverse. Raises ConfigError where sigma =
        0 and d_sigma is not, as at t = 1 of every path here: position and data are one, and the
        noise is not known. Reference: Salimans and Ho 2022 (arXiv:2202.00512).
        """
        check_same_shape(x=x, x1=x1)
        check_floating(x=x, x1=x1)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t, x)
        return d_alpha * x1 + self._quotient(
            d_sigma, sigma, t, "the velocity from data", d_alpha
        ) * (x - alpha * x1)

    def velocity_from_noise(
        self,
        x: Float[Tensor, "batch *dims"],
        x0: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch *dims"]:
        """The velocity (B, *dims) at `x` of a network that predicts the noise `x0` (B, *dims):
        d_alpha x1 + d_sigma x0.

        x1 = (x - sigma x0) / alpha, so `endpoints` is the inverse. Raises ConfigError where alpha =
        0 and d_alpha is not, as at t = 0 of LINEAR and COSINE, and where d_sigma is infinite, as at
        t = 1 of VP. Reference: Salimans and Ho 2022 (arXiv:2202.00512).
        """
        check_same_shape(x=x, x0=x0)
        check_floating(x=x, x0=x0)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t, x)
        return (
            self._quotient(d_alpha, alpha, t, "the velocity from noise", d_sigma) * (x - sigma * x0)
            + d_sigma * x0
        )

    def _quotient(
        self, rate: Tensor, coefficient: Tensor, t: Tensor, what: str, beside: Tensor | None = None
    ) -> Tensor:
        """rate / coefficient, and 0 where both are 0: that end has no part in the velocity there."""
        idle = (coefficient == 0) & (rate == 0)
        good = idle | ((coefficient != 0) & rate.isfinite())
        check_defined(
            self, good if beside is None else good & beside.isfinite(), t, what, STAY_AWAY
        )
        return rate / torch.where(idle, 1, coefficient)

    def _rate_like(
        self, t: Tensor, like: Tensor
    ) -> Tensor:  # half_variance_rate in the shape and dtype of a coefficient
        return self.half_variance_rate(t.to(like.dtype)).reshape(like.shape)


STAY_AWAY = "Use a time that is a little further inside (0, 1), such as {inside:g}"


def _chosen(where: Tensor, yes: tuple[Tensor, ...], no: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(where, a, b) for a, b in zip(yes, no))


def check_defined(path: Path, good: Tensor, t: Tensor, what: str, remedy: str) -> None:
    """Raise ConfigError that names the path and the first time (of `t`, any shape) whose entry in
    `good` is False, if t is on the host.
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
    """The path that was given to `function` already, as its attribute or in a partial; else None."""
    while isinstance(function, functools.partial):
        if function.keywords.get("path") is not None:
            return function.keywords["path"]
        function = function.func
    path = getattr(function, "path", None)
    return path if isinstance(path, Path) else None


def on_path(function: Callable[..., Any], path: Path, name: str) -> Callable[..., Any]:
    """`function` with its keyword `path` filled in, if it has one; ConfigError where it was given
    another path already.

    So a path is given once, to the objective. What it draws (times, negatives) follows that path.
    """
    given = given_path(function)
    if given is None:
        return functools.partial(function, path=path) if takes_path(function) else function
    if given not in (path, path.name):
        other = given.name if isinstance(given, Path) else given
        raise ConfigError(
            f"the path of {name} is {other!r:.60} and the objective is on {path.name!r}; leave it "
            "out, and it follows the objective's."
        )
    return function


def takes_path(function: Callable[..., Any]) -> bool:
    """Whether `function` has an argument `path`; asked before every draw, so by its code: a
    signature would take longer than some steps.
    """
    while isinstance(function, functools.partial):
        function = function.func
    own = hasattr(function, "__code__") or hasattr(function, "__wrapped__")
    code = getattr(inspect.unwrap(function if own else type(function).__call__), "__code__", None)
    return (
        code is not None and "path" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    )


# functions, not lambdas: a pickle holds a function by its name


def _linear_alpha(t: Tensor) -> Tensor:
    return t


def _linear_sigma(t: Tensor) -> Tensor:
    return 1 - t


def _linear_d_sigma(t: Tensor) -> Tensor:
    return -torch.ones_like(t)


LINEAR = Path(
    "linear",
    alpha=_linear_alpha,
    sigma=_linear_sigma,
    d_alpha=torch.ones_like,
    d_sigma=_linear_d_sigma,
)

_Q = math.pi / 2


def _cosine_alpha(t: Tensor) -> Tensor:
    return torch.sin(_Q * t)


def _cosine_sigma(
    t: Tensor,
) -> Tensor:  # cos(_Q t) as a sine, because float32's cos(pi / 2) is a small negative number, not 0
    return torch.sin(_Q * (1 - t))


def _cosine_d_alpha(t: Tensor) -> Tensor:
    return _Q * torch.sin(_Q * (1 - t))


def _cosine_d_sigma(t: Tensor) -> Tensor:
    return -_Q * torch.sin(_Q * t)


COSINE = Path(
    "cosine",
    alpha=_cosine_alpha,
    sigma=_cosine_sigma,
    d_alpha=_cosine_d_alpha,
    d_sigma=_cosine_d_sigma,
)  # SiT's GVP

_LOW, _HIGH = (
    0.1,
    20.0,
)  # SiT's VPCPlan: the noise rate falls linearly from 20 at t = 0 to 0.1 at t = 1


def _vp_log_alpha(t: Tensor) -> Tensor:
    return -0.25 * (1 - t) ** 2 * (_HIGH - _LOW) - 0.5 * (1 - t) * _LOW


def _vp_rate(t: Tensor) -> Tensor:  # derivative of _vp_log_alpha
    return 0.5 * (1 - t) * (_HIGH - _LOW) + 0.5 * _LOW


def _vp_alpha(t: Tensor) -> Tensor:
    return torch.exp(_vp_log_alpha(t))


def _vp_sigma(t: Tensor) -> Tensor:
    return torch.sqrt(-torch.expm1(2 * _vp_log_alpha(t)))


def _vp_d_alpha(t: Tensor) -> Tensor:
    return torch.exp(_vp_log_alpha(t)) * _vp_rate(t)


def _vp_sigma_d_sigma(t: Tensor) -> Tensor:
    return -_vp_rate(t) * torch.exp(2 * _vp_log_alpha(t))


def _vp_d_sigma(t: Tensor) -> Tensor:
    return _vp_sigma_d_sigma(t) / _vp_sigma(t)


VP = Path(
    "vp",
    alpha=_vp_alpha,
    sigma=_vp_sigma,
    d_alpha=_vp_d_alpha,
    d_sigma=_vp_d_sigma,
    sigma_d_sigma=_vp_sigma_d_sigma,
    train_end=1 - 1e-5,  # SiT's
)

PATHS = {path.name: path for path in (LINEAR, COSINE, VP)}


def _beside(t: Tensor, x: Tensor) -> Tensor:
    """The times (B,) shaped (B, 1, ...), checked, in the precision of `x` (B, *dims)."""
    check_time(t, x)
    return expand(promote(t).to(promote(x).dtype), x)


def _named(name: str) -> Path:
    return PATHS[name]
