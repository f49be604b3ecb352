"""A path joins noise to data:  x_t = alpha(t) x1 + sigma(t) x0,  u_t = d_alpha(t) x1 + d_sigma(t) x0.

Convention, everywhere in cfm_lite: t = 0 is noise x0, t = 1 is data x1 (SiT's). REPA and DeltaFM run time the other way,
v_REPA(x, t) = -v(x, 1 - t); `models.load_official` converts once, at load time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfm_lite.checks import check_floating, check_same_shape, check_time, expand, promote
from cfm_lite.errors import ConfigError

__all__ = ["COSINE", "LINEAR", "PATHS", "VP", "FlowSample", "Path"]

Schedule = Callable[[Tensor], Tensor]


class FlowSample(NamedTuple):
    """One training draw: noise `x0`, data `x1`, position `x_t` and velocity `u_t` (B, *dims), time `t` (B,), labels `y` (B,) or None."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor
    u_t: Tensor
    y: Tensor | None = None


@dataclass(frozen=True, repr=False)
class Path:
    """The two coefficients of a path and their derivatives, each a function of a time tensor of any shape.

    `sigma_d_sigma` is the product of the two; give it only where it stays finite although d_sigma does not (VP at t = 1).
    `train_end` is the latest time of a training draw: 1, or just before it where the velocity is infinite there.

    Reference: Ma et al. 2024 (SiT, arXiv:2401.08740), section 2 and table 1; Lipman et al. 2023 (arXiv:2210.02747), eq. 10.
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

    def half_variance_rate(self, t: Tensor) -> Tensor:
        """Half the derivative of sigma^2, sigma d_sigma, at a time tensor of any shape; finite on all of [0, 1]."""
        return self.sigma_d_sigma(t) if self.sigma_d_sigma else self.sigma(t) * self.d_sigma(t)

    def coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(alpha, sigma, d_alpha, d_sigma) at `t` (B,), each shaped (B, 1, ...) to broadcast over `x` (B, *dims)."""
        check_floating(x=x)
        check_time(t, x)
        t = expand(promote(t).to(promote(x).dtype), x)
        return self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)

    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Position and velocity (x_t, u_t), both (B, *dims), of noise `x0` and data `x1` (B, *dims) at `t` (B,) in [0, 1].

        VP's u_t is infinite at t = 1: SiT draws its times from [0, 1 - 1e-5]. Raises ConfigError for unequal shapes or a
        time outside [0, 1].
        """
        check_same_shape(x0=x0, x1=x1)
        check_floating(x0=x0, x1=x1)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t, x1)
        return alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0

    def endpoints(self, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, x1) implied by position `x` and velocity `v` (B, *dims): one 2x2 solve, exact at t = 0 and t = 1 for LINEAR.

        x1 = (d_sigma x - sigma v) / det and x0 = (alpha v - d_alpha x) / det, with det = alpha d_sigma - d_alpha sigma.
        """
        check_same_shape(x=x, v=v)
        check_floating(x=x, v=v)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t, x)
        det = alpha * d_sigma - d_alpha * sigma
        # for LINEAR det = -1, so nothing is divided away; for VP it is infinite at t = 1, where x0 is not defined
        return (alpha * v - d_alpha * x) / det, (d_sigma * x - sigma * v) / det

    def score(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The score -x0 / sigma (B, *dims) that velocity `v` implies at `x`; infinite at t = 1 unless d_sigma is (VP).

        Reference: Ma et al. 2024, section 2, multiplied out so that alpha = 0 at t = 0 is harmless.
        """
        check_same_shape(x=x, v=v)
        check_floating(x=x, v=v)
        alpha, sigma, d_alpha, _ = self.coefficients(t, x)
        return (alpha * v - d_alpha * x) / (d_alpha * sigma**2 - alpha * self._rate_like(t, alpha))

    def velocity_from_score(self, x: Tensor, score: Tensor, t: Tensor) -> Tensor:
        """The inverse of `score`: v = (d_alpha / alpha) (x + sigma^2 s) - sigma d_sigma s; t > 0 unless alpha(0) > 0."""
        check_same_shape(x=x, score=score)
        check_floating(x=x, score=score)
        alpha, sigma, d_alpha, _ = self.coefficients(t, x)
        return d_alpha / alpha * (x + sigma**2 * score) - self._rate_like(t, alpha) * score

    def _rate_like(self, t: Tensor, like: Tensor) -> Tensor:  # half_variance_rate in the shape and dtype of a coefficient
        return self.half_variance_rate(t.to(like.dtype)).reshape(like.shape)


def check_path(path: Any) -> Path:
    """`path` itself; ConfigError unless it is a Path."""
    if not isinstance(path, Path):
        raise ConfigError(f"path is {path!r:.60}; it must be a Path: LINEAR, COSINE, VP from cfm_lite.paths, or your own.")
    return path


LINEAR = Path(
    "linear",
    alpha=lambda t: t,
    sigma=lambda t: 1 - t,
    d_alpha=torch.ones_like,
    d_sigma=lambda t: -torch.ones_like(t),
)

_Q = math.pi / 2
COSINE = Path(  # SiT's GVP; cos(_Q t) is written as a sine because float32's cos(pi / 2) is a small negative number, not 0
    "cosine",
    alpha=lambda t: torch.sin(_Q * t),
    sigma=lambda t: torch.sin(_Q * (1 - t)),
    d_alpha=lambda t: _Q * torch.sin(_Q * (1 - t)),
    d_sigma=lambda t: -_Q * torch.sin(_Q * t),
)

_LOW, _HIGH = 0.1, 20.0  # SiT's VPCPlan: the noise rate falls linearly from 20 at t = 0 to 0.1 at t = 1


def _vp_log_alpha(t: Tensor) -> Tensor:
    return -0.25 * (1 - t) ** 2 * (_HIGH - _LOW) - 0.5 * (1 - t) * _LOW


def _vp_rate(t: Tensor) -> Tensor:  # derivative of _vp_log_alpha
    return 0.5 * (1 - t) * (_HIGH - _LOW) + 0.5 * _LOW


def _vp_sigma(t: Tensor) -> Tensor:
    return torch.sqrt(-torch.expm1(2 * _vp_log_alpha(t)))


VP = Path(
    "vp",
    alpha=lambda t: torch.exp(_vp_log_alpha(t)),
    sigma=_vp_sigma,
    d_alpha=lambda t: torch.exp(_vp_log_alpha(t)) * _vp_rate(t),
    d_sigma=lambda t: -_vp_rate(t) * torch.exp(2 * _vp_log_alpha(t)) / _vp_sigma(t),
    sigma_d_sigma=lambda t: -_vp_rate(t) * torch.exp(2 * _vp_log_alpha(t)),
    train_end=1 - 1e-5,  # SiT's
)

PATHS = {path.name: path for path in (LINEAR, COSINE, VP)}
