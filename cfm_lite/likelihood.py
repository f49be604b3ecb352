"""The likelihood of a point under a flow:  log p1(x1) = log N(x0; 0, I) - integral of div v(x_t, t) dt over [0, 1].

The point is carried back from data (t = 1) to noise (t = 0), and the divergence, the trace of dv/dx, is summed on the way:
exactly, with one backward pass per dimension, or as Hutchinson's average of e . (dv/dx) e over random signs e.
Reference: Chen et al. 2018 (arXiv:1806.07366), theorem 1; Grathwohl et al. 2019 (FFJORD, arXiv:1810.01367), section 3.1.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cfm_lite.checks import check_choice, check_count
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import Velocity, as_velocity
from cfm_lite.steps import Step, check_state, rk4, trajectory

__all__ = ["log_prob"]

EXACT_UP_TO = 16  # dimensions; beyond, the exact trace needs more passes than it is worth
Trace = Callable[[Tensor, Tensor], Tensor]  # (v, x) -> (B,)


def log_prob(
    velocity: Velocity,
    x1: Tensor,
    ts: Tensor | None = None,
    step: Step = rk4,
    trace: str | None = None,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
    probes: Sequence[Tensor] | None = None,
    grad: bool = False,
) -> Tensor:
    """log p(x1) (B,) in nats, for points `x1` (B, *dims) and a velocity whose noise is N(0, I).

    `ts` falls from 1 to 0 (default: 100 equal steps). `trace` is "exact" (the default up to 16 dimensions) or "hutchinson",
    which draws `n_probes` fresh sign vectors from `generator` at every velocity call; `probes` gives them instead, one tensor
    (B, *dims) or (n_probes, B, *dims) per call. Rows must not depend on each other. `grad` keeps the graph, to
    differentiate the result; without it the grad mode outside does not matter. Raises ConfigError for a wrong argument and
    for a velocity that autograd cannot follow.
    """
    velocity, x1 = as_velocity(velocity), check_state(x1)
    ts = torch.linspace(1, 0, 101, dtype=torch.float64) if ts is None else ts
    if isinstance(ts, Tensor) and ts.dim() == 1 and len(ts) > 1 and ts.device.type == "cpu" and ts[0] < ts[-1]:
        raise ConfigError(f"ts rises from {ts[0]:.4g} to {ts[-1]:.4g}; a likelihood walks from data (1) to noise (0): ts.flip(0).")
    measure = _measure(x1, trace, n_probes, generator, probes)
    z = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], 1)  # (B, D + 1): the point, and the integral so far
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        for z in trajectory(_augmented(velocity, measure, x1.shape, grad), z.clone(), ts, step):
            pass
    x0, integral = z[:, :-1], z[:, -1]
    return integral - 0.5 * (x0**2).sum(1) - 0.5 * x0.shape[1] * math.log(2 * math.pi)


def _augmented(velocity: Velocity, measure: Trace, shape: torch.Size, grad: bool) -> Velocity:
    """The velocity of (x, integral of div v), on a state (B, D + 1)."""

    def field(z: Tensor, t: Tensor) -> Tensor:
        x = z[:, :-1].reshape(shape)
        with torch.enable_grad():
            x = x if grad else x.detach().requires_grad_()
            if not x.requires_grad:
                x.requires_grad_()
            v = velocity(x, t.clone())  # a clone because a tensor made in inference mode cannot be saved for a backward pass
            divergence = measure(v, x)
        return torch.cat([v.reshape(len(z), -1), divergence[:, None]], 1)

    return field
