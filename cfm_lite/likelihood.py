"""The likelihood of a point under a flow:  log p1(x1) = log N(x0; 0, I) - integral of div v(x_t, t) dt over [0, 1].

The point is carried back from data (t = 1) to noise (t = 0), and the divergence, the trace of dv/dx, is summed on the way:
exactly, with one backward pass per dimension, or as Hutchinson's average of e . (dv/dx) e over random signs e.
Reference: Chen et al. 2018 (arXiv:1806.07366), theorem 1; Grathwohl et al. 2019 (FFJORD, arXiv:1810.01367), section 3.1.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cfm_lite.checks import check_callable, check_choice, check_count, check_flag, check_generator, check_same_shape, on_host
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

    `ts` is the grid between 1 and 0 (default: 100 equal steps); a rising one is walked from its end. `trace` is "exact" (the
    default up to 16 dimensions) or "hutchinson", which draws `n_probes` fresh sign vectors from `generator` at every velocity
    call; `probes` gives them instead, one tensor (B, *dims) or (n_probes, B, *dims) per call. Rows must not depend on each
    other. `grad` keeps the graph, to differentiate the result; without it the grad mode outside does not matter.
    Raises ConfigError for a wrong argument and for a velocity that autograd cannot follow.
    """
    velocity, x1 = as_velocity(velocity), check_state(x1, "x1")
    check_flag(grad=grad)
    check_callable(step=step)
    check_generator(generator)
    if x1.dim() < 2:
        raise ConfigError(f"x1 has shape {tuple(x1.shape)}; it must be (B, *dims).")
    ts = torch.linspace(1, 0, 101, dtype=torch.float64) if ts is None else ts
    if isinstance(ts, Tensor) and ts.is_floating_point() and ts.dim() == 1 and len(ts) and on_host(ts) and ts[0] < ts[-1]:
        ts = ts.flip(0)
    measure = _measure(x1, trace, n_probes, generator, probes, grad)
    z = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], 1)  # (B, D + 1): the point, and the integral so far
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        z = deque(trajectory(_augmented(velocity, measure, x1.shape), z.clone(), ts, step), maxlen=1).pop()
    x0, integral = z[:, :-1], z[:, -1]
    return integral - 0.5 * (x0**2).sum(1) - 0.5 * x0.shape[1] * math.log(2 * math.pi)


def _augmented(velocity: Velocity, trace: Trace, shape: torch.Size) -> Velocity:
    """The velocity of (x, integral of div v), on a state (B, D + 1)."""

    def field(z: Tensor, t: Tensor) -> Tensor:
        x = z[:, :-1].reshape(shape)
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = velocity(x, t.clone())  # a clone, because a time made in inference mode cannot be saved for a backward pass
            check_same_shape(velocity=v, x=x)
            divergence = trace(v, x)
        return torch.cat([v.flatten(1), divergence[:, None]], 1)

    return field


def _measure(
    x: Tensor, trace: str | None, n_probes: int, generator: torch.Generator | None, probes: Sequence[Tensor] | None, grad: bool
) -> Trace:
    """The function (v, x) -> (B,) that `trace` and its settings describe."""
    dims = x.shape[1:].numel()
    if trace is None:
        trace = "exact" if dims <= EXACT_UP_TO and probes is None else "hutchinson"
    check_choice("trace", trace, ("exact", "hutchinson"))
    n_probes = check_count("n_probes", n_probes)
    if trace == "exact":
        if probes is not None:
            raise ConfigError("probes were given with trace = 'exact', which uses none; leave one of the two out.")
        axes = torch.eye(dims, dtype=x.dtype, device=x.device).reshape(dims, 1, *x.shape[1:]).expand(dims, *x.shape)
        return lambda v, x: _forms(v, x, axes, grad)
    signs = _signs(x, n_probes, generator) if probes is None else _given(x, probes)

    def hutchinson(v: Tensor, x: Tensor) -> Tensor:
        drawn = next(signs)
        return _forms(v, x, drawn, grad) / len(drawn)

    return hutchinson


def _forms(v: Tensor, x: Tensor, vectors: Tensor, grad: bool) -> Tensor:
    """The sum of e . (dv/dx) e over the `vectors` e (K, B, *dims), per row (B,)."""
    if not v.requires_grad:
        raise ConfigError("the velocity is not a function of x that autograd can follow; was it computed under torch.no_grad()?")
    total = v.new_zeros(len(v))
    for e in vectors:
        (pulled,) = torch.autograd.grad(v, x, e, retain_graph=True, create_graph=grad, materialize_grads=True)
        total = total + (pulled * e).flatten(1).sum(1)
    return total


def _signs(x: Tensor, n: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    device = x.device if generator is None else generator.device
    while True:
        bits = torch.randint(0, 2, (n, *x.shape), generator=generator, device=device)
        yield (2 * bits - 1).to(x, non_blocking=True)


def _given(x: Tensor, probes: Sequence[Tensor]) -> Iterator[Tensor]:
    for probe in probes:
        if tuple(probe.shape[-x.dim() :]) != tuple(x.shape) or probe.dim() > x.dim() + 1:
            raise ConfigError(f"a probe has shape {tuple(probe.shape)}; it must be {tuple(x.shape)}, or (n_probes, *{tuple(x.shape)}).")
        yield (probe if probe.dim() > x.dim() else probe[None]).to(x)
    raise ConfigError(f"only {len(probes)} probes were given; every call of the velocity uses one: steps times evaluations per step.")
