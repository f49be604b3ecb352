"""What VeCoR's optimum does to FM's velocity when the perturbation is a random linear map P, such as crop_resize.

    v* = (v - lambda K E[u_neg | x_t]) / (1 - lambda K),   u_neg = P u (velocity space)  or  d_alpha P x1 + d_sigma x0 (latent space)

A map that mixes channels alone, such as channel_shuffle, may be given as a small matrix (C, C) that acts on them.
P is independent of everything else, so only its mean M = E[P] matters, and both are affine in v: the control "re-targeted FM"
needs no training, and its inverse takes the bias out of a trained VeCoR. `perturbations.expected_map` computes M.
Reference: Hong et al. 2025 (arXiv:2511.18942), section 3; the minimiser follows by setting the gradient to 0.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from cfm_lite.checks import check_choice, check_count, check_floating, check_number, full_precision, promote
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import Velocity, as_velocity
from cfm_lite.paths import LINEAR, Path, check_path

__all__ = ["debias_linear", "retarget_linear"]

SPACES = ("velocity", "latent")


def retarget_linear(
    velocity: Velocity, weight: float, expected: Tensor, *, k: int = 1, space: str = "latent", path: Path = LINEAR
) -> Velocity:
    """FM's velocity mapped to VeCoR's optimum for perturbations of mean `expected` = E[P] (D, D), D the size of a sample, or (C, C).

    Raises ConfigError unless 0 <= weight * k < 1, and, when called, for samples of another size.
    """
    product, inner, mean = _checked(velocity, weight, expected, k, space)
    check_path(path)
    return functools.partial(_retargeted, inner, product, mean, path if space == "latent" else None)


def _retargeted(velocity: Velocity, product: float, mean: Tensor, path: Path | None, x: Tensor, t: Tensor) -> Tensor:
    """In latent space, which needs the `path`, or without one in velocity space."""
    v = promote(velocity(x, t))
    if path is None:
        negative = _apply(mean, v)
    else:
        x0, x1 = path.parts(promote(x), v, t)
        moved = _apply(mean, x1)
        *_, d_alpha, d_sigma = path.coefficients(t, v)
        # where d_sigma is infinite the noise is 0, and v holds what is left of their product
        negative = torch.where(d_sigma.isinf(), v + d_alpha * (moved - x1), d_alpha * moved + d_sigma * x0)
    return (v - product * negative) / (1 - product)


def debias_linear(
    velocity: Velocity, weight: float, expected: Tensor, *, k: int = 1, space: str = "latent", path: Path = LINEAR
) -> Velocity:
    """The inverse of `retarget_linear`: VeCoR's optimum gives FM's velocity back. One solve of a (D, D) system per time.

    In latent space the posterior mean x1 of the data solves

        [sigma d_alpha (I - p M) - (1 - p) alpha d_sigma I] x1 = (1 - p) (sigma v* - d_sigma x),   p = weight * k,

    and v = v* - p / (1 - p) d_alpha (I - M) x1, which divides by nothing that is 0 at an end of time.
    """
    product, inner, mean = _checked(velocity, weight, expected, k, space)
    check_path(path)
    return functools.partial(_debiased, inner, product, mean, path if space == "latent" else None)


def _debiased(velocity: Velocity, product: float, mean: Tensor, path: Path | None, x: Tensor, t: Tensor) -> Tensor:
    v = promote(velocity(x, t))
    if path is None:
        system = torch.eye(len(mean), dtype=v.dtype, device=v.device) - product * mean.to(v)
        return (1 - product) * _solved(system, v)
    x1, d_alpha = _data(mean, product, path, promote(x), v, t)
    return v - product / (1 - product) * d_alpha * (x1 - _apply(mean, x1))


def _data(mean: Tensor, product: float, path: Path, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior mean of the data, from VeCoR's velocity `v`, and d_alpha; rows of one time share a system."""
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t, v)
    right = (1 - product) * (sigma * v - d_sigma * x)
    eye, x1 = torch.eye(len(mean), dtype=v.dtype, device=v.device), torch.empty_like(right)
    for time in t.unique():
        rows = t == time
        a, s, da, ds = (c[rows][0].flatten()[0] for c in (alpha, sigma, d_alpha, d_sigma))
        if da == 0 or ds.isinf():  # the data have no part in the velocity, or are the position itself
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
    """`change` of rows (N, size): the samples of `x` (B, C, *dims), or the channels of each pixel where there are `size` of them."""
    if x.flatten(1).shape[1] == size:
        return change(x.flatten(1)).reshape(x.shape)
    if x.shape[1] != size:
        numbers = f"{x.flatten(1).shape[1]} numbers in {x.shape[1]} channels"
        raise ConfigError(f"expected is ({size}, {size}) and a sample has {numbers}; give E[P] for samples of this size.")
    channels = x.movedim(1, -1)
    return change(channels.reshape(-1, size)).reshape(channels.shape).movedim(-1, 1)


def _checked(velocity: Velocity, weight: float, expected: Tensor, k: int, space: str) -> tuple[float, Velocity, Tensor]:
    check_choice("space", space, SPACES)
    product = check_number("weight", weight, 0.0, 1.0, open_high=True) * check_count("k", k)
    if product >= 1:
        raise ConfigError(f"weight {weight:g} times k = {k} is {product:g}; it must lie below 1, where the loss loses its minimum.")
    if not isinstance(expected, Tensor) or expected.dim() != 2 or expected.shape[0] != expected.shape[1]:
        raise ConfigError(f"expected is {expected!r:.60}; it must be E[P], a square matrix (D, D), as perturbations.expected_map gives it.")
    check_floating(expected=expected)
    return product, as_velocity(velocity), expected
