"""What the losses are built from: lengths that are safe at zero, and two sums whose gradients are written by hand.

gram: G = z z^T, centred or not.   attract_repel: mean_i |v_i - u_i|^2 - sum_i pull_i sum_k |v_i - u_neg_ki|^2.
Autograd alone would need several times the memory and the time for these two.

Convention: rows are samples, (B, d). Arithmetic runs in float32 at least.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cfm_lite.checks import promote

__all__ = ["attract_repel", "cosine", "gram", "inverse_root", "root", "standardize"]

TINY = 1e-12  # a vector that is no longer than this counts as zero; its inverse cubed still fits float32


def inverse_root(squared: Tensor) -> Tensor:
    """1 / sqrt, and 0 (with no gradient) for what is no longer than TINY."""
    zero = squared <= TINY**2
    return torch.where(zero, 0, torch.where(zero, 1, squared).rsqrt())


def root(squared: Tensor) -> Tensor:
    """sqrt, with no gradient at 0."""
    return squared * inverse_root(squared)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine along the last dimension, 0 for a zero vector."""
    lengths = inverse_root(a.square().sum(-1)) * inverse_root(b.square().sum(-1))
    return (a * b).sum(-1) * lengths


def standardize(z: Tensor) -> Tensor:
    """Columns of mean 0 and (biased) variance 1; a constant column becomes 0 and gets no gradient."""
    z = promote(z)
    mean = z.mean(0)
    z = z - mean
    # what rounding leaves of a constant column is not a feature
    floor = 4 * torch.finfo(z.dtype).eps * mean.detach().abs() + TINY
    variance = z.square().mean(0)
    return z * inverse_root(torch.where(variance.detach() <= floor.square(), 0, variance))


def attract_repel(v: Tensor, u: Tensor, u_neg: Tensor, pull: Tensor) -> Tensor:
    """A scalar with a gradient in `v` only; `v`, `u` (B, n), `u_neg` (K, B, n), `pull` (B,), |.|^2 a mean over n."""
    return _AttractRepel.apply(v, u, u_neg, pull)  # pyright: ignore[reportReturnType]


def gram(z: Tensor, centre: bool = False) -> Tensor:
    """The inner products (B, B) of the rows of `z` (B, d), in float32 or float64; with `centre` of z minus its batch mean.

    Distances from an uncentred Gram matrix lose every digit to a common offset of 1000 standard deviations.
    """
    return _gram(z, centre)[0]


class _AttractRepel(torch.autograd.Function):
    """Blocks of rows that fit the cache pass once forward and once backward, so no memory is needed but the gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, u_neg: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(v, u, u_neg, pull)
        near, far = v.new_empty(len(v)), v.new_empty(len(u_neg), len(v))  # lengths of the differences
        for rows, x, buffer in _row_blocks(v):
            torch.linalg.vector_norm(torch.sub(x, u[rows], out=buffer), dim=1, out=near[rows])
            for k, wrong in enumerate(u_neg):
                torch.linalg.vector_norm(torch.sub(x, wrong[rows], out=buffer), dim=1, out=far[k, rows])
        return (near.square().mean() - (far.square() * pull).sum()) / v.shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, u, u_neg, pull = ctx.saved_tensors
        scale = grad * (2 / v.shape[1])
        push = (pull * scale)[:, None]
        if torch.is_grad_enabled():  # a second derivative is wanted: leave it to autograd
            return scale / len(v) * (v - u) - (push * (v - u_neg)).sum(0), None, None, None
        out = torch.empty_like(v)
        for rows, x, buffer in _row_blocks(v):
            part = torch.sub(x, u[rows], out=out[rows]).mul_(scale / len(v))
            for wrong in u_neg:
                part.addcmul_(torch.sub(x, wrong[rows], out=buffer), push[rows], value=-1)
        return out, None, None, None


def _row_blocks(v: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Pieces of `v` (B, n) of some 65,536 numbers on the CPU, else the whole; each with a buffer of its shape."""
    size = max(1, 65_536 // v.shape[1]) if v.device.type == "cpu" else len(v)
    buffer = torch.empty_like(v[:size])
    for start in range(0, len(v), size):
        x = v[start : start + size]
        yield slice(start, start + len(x)), x, buffer[: len(x)]


# The Gram matrix runs over slabs of columns, and only the slab at hand is centred and promoted: there is never a second copy of z.
# Both directions are operators of their own, so that torch.compile neither unrolls the slabs nor lowers the backward's precision.


def _gram_forward(z: Tensor, centre: bool) -> tuple[Tensor, Tensor]:
    """(Z Z^T, the mean that was taken out of z to make Z)."""
    dtype = promote(z[:0]).dtype
    mean = z.mean(0, dtype=dtype) if centre else torch.empty(0, dtype=dtype, device=z.device)
    out = torch.zeros(len(z), len(z), dtype=dtype, device=z.device)
    for _, slab in _slabs(z, mean):
        out.addmm_(slab, slab.mT)  # in place: autocast leaves it in full precision
    return out, mean


def _gram_product(weights: Tensor, z: Tensor, mean: Tensor) -> Tensor:
    """weights @ Z in the dtype of z."""
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    for columns, slab in _slabs(z, mean):
        if out.dtype == slab.dtype:
            out[:, columns].addmm_(weights, slab, beta=0)
        else:
            out[:, columns] = torch.zeros_like(slab).addmm_(weights, slab)
    return out


_gram = torch.library.custom_op("cfm_lite::gram", _gram_forward, mutates_args=())
_gram_gradient = torch.library.custom_op("cfm_lite::gram_gradient", _gram_product, mutates_args=())


@_gram.register_fake
def _(z: Tensor, centre: bool) -> tuple[Tensor, Tensor]:
    dtype = promote(z[:0]).dtype
    return z.new_empty(len(z), len(z), dtype=dtype), z.new_empty(z.shape[1] if centre else 0, dtype=dtype)


@_gram_gradient.register_fake
def _(weights: Tensor, z: Tensor, mean: Tensor) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _gram_keep(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], output[1])
    ctx.centre = inputs[1]


def _gram_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
    """With Z = C z, where C takes out the mean of the rows, dz = C (dG + dG^T) C z."""
    if grad is None:
        return None, None
    z, mean = ctx.saved_tensors
    weights = grad + grad.mT
    if ctx.centre:
        weights = weights - weights.mean(0)
        weights = weights - weights.mean(1, keepdim=True)
    if torch.is_grad_enabled():  # a second derivative is wanted: leave it to autograd
        return (weights @ z.to(weights.dtype)).to(z.dtype), None
    return _gram_gradient(weights, z, mean), None


_gram.register_autograd(_gram_backward, setup_context=_gram_keep)


def _slabs(z: Tensor, mean: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of z - mean (or of z, for an empty mean), in one buffer: 64 small slabs suit a CPU's cache, 24 a GPU's launches."""
    size = max(1024, -(-z.shape[1] // (64 if z.device.type == "cpu" else 24)))
    buffer = torch.empty(len(z), min(size, z.shape[1]), dtype=mean.dtype, device=z.device)
    for start in range(0, z.shape[1], size):
        columns = slice(start, start + size)
        part = z[:, columns]
        slab = buffer[:, : part.shape[1]]
        yield columns, torch.sub(part, mean[columns], out=slab) if len(mean) else slab.copy_(part)
