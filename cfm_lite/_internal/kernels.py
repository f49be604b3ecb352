"""What the losses are built from: lengths that are safe at zero, and two sums whose gradients are
written by hand.

gram: G = z z^T, centred or not.   attract_repel: mean_i |v_i - u_i|^2 - sum_i pull_i sum_k |v_i - u_neg_ki|^2.
Autograd alone would need several times the memory and the time for these two.

Convention: rows are samples, (B, d). Arithmetic runs in float32 at least.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cfm_lite._internal.checks import promote, transformed

__all__ = ["TINY", "attract_repel", "cosine", "gram", "inverse_root", "root", "standardize"]

# a vector that is no longer than this counts as zero; its inverse cubed still fits float32
TINY = 1e-12


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
    """A scalar with a gradient in `v` only; `v`, `u` (B, n), `u_neg` (K, B, n), `pull` (B,), |.|^2
    a mean over n.
    """
    return _AttractRepel.apply(v, u, u_neg, pull)  # pyright: ignore[reportReturnType]


def gram(z: Tensor, centre: bool = False) -> Tensor:
    """The inner products (B, B) of the rows of `z` (B, d), in float32 or float64; with `centre` of
    z minus its batch mean.

    Distances from an uncentred Gram matrix lose every digit to a common offset of 1000 standard
    deviations.
    """
    if transformed(z):
        return _plain_gram(promote(z), centre)
    return _gram(z, centre)


def _plain_gram(z: Tensor, centre: bool) -> Tensor:
    z = z - z.mean(0) if centre else z
    with torch.autocast(z.device.type, enabled=False):
        return z @ z.mT


class _AttractRepel(torch.autograd.Function):
    """Blocks of rows that fit the cache pass once forward and once backward, so no memory is needed
    but the gradient.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, u_neg: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(v, u, u_neg, pull)
        near, far = (
            v.new_empty(len(v)),
            v.new_empty(len(u_neg), len(v)),
        )  # lengths of the differences
        for rows, x, buffer in _row_blocks(v):
            torch.linalg.vector_norm(torch.sub(x, u[rows], out=buffer), dim=1, out=near[rows])
            for k, wrong in enumerate(u_neg):
                torch.linalg.vector_norm(
                    torch.sub(x, wrong[rows], out=buffer), dim=1, out=far[k, rows]
                )
        return (near.square().mean() - (far.square() * pull).sum()) / v.shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, u, u_neg, pull = ctx.saved_tensors
        scale = grad * (2 / v.shape[1])
        push = (pull * scale)[:, None]
        if torch.is_grad_enabled() or _many_at_once(
            grad
        ):  # a second derivative, or one for each of many `grad`: leave it to autograd
            return scale / len(v) * (v - u) - (push * (v - u_neg)).sum(0), None, None, None
        out = torch.empty_like(v)
        for rows, x, buffer in _row_blocks(v):
            part = torch.sub(x, u[rows], out=out[rows]).mul_(scale / len(v))
            for wrong in u_neg:
                part.addcmul_(torch.sub(x, wrong[rows], out=buffer), push[rows], value=-1)
        return out, None, None, None


def _many_at_once(grad: Tensor) -> bool:
    """Whether autograd runs this backward pass for a batch of gradients (is_grads_batched), which
    is a tensor without a storage.
    """
    if torch.compiler.is_compiling():
        return False
    try:
        grad.untyped_storage()
    except NotImplementedError:
        return True
    return transformed(grad)


def _row_blocks(v: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Pieces of `v` (B, n) of some 65,536 numbers on the CPU, else the whole; each with a buffer of
    its shape.
    """
    size = max(1, 65_536 // v.shape[1]) if v.device.type == "cpu" else len(v)
    buffer = torch.empty_like(v[:size])
    for start in range(0, len(v), size):
        x = v[start : start + size]
        yield slice(start, start + len(x)), x, buffer[: len(x)]


# The Gram matrix runs over slabs of columns, and only the slab at hand is centred and promoted:
# there is never a second copy of z.
# Both directions are operators of their own, so that torch.compile neither unrolls the slabs nor
# lowers the backward's precision.


def _gram_forward(z: Tensor, centre: bool) -> Tensor:
    out = torch.zeros(len(z), len(z), dtype=promote(z[:0]).dtype, device=z.device)
    step = (
        max(64, -(-len(z) // 4)) if z.device.type == "cpu" else len(z)
    )  # up to four bands: what lies above the diagonal is mirrored
    for _, slab in _slabs(z, centre, out.dtype):
        for i in range(0, len(z), step):
            out[i : i + step, : i + step].addmm_(
                slab[i : i + step], slab[: i + step].mT
            )  # in place: autocast leaves its precision
    return out.tril() + out.tril(-1).mT


def _gram_product(weights: Tensor, z: Tensor, centre: bool) -> Tensor:
    """weights @ z, or with `centre` weights @ (z - mean), in the dtype of z."""
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    for columns, slab in _slabs(z, centre, weights.dtype):
        if out.dtype == slab.dtype:
            out[:, columns].addmm_(weights, slab, beta=0)
        else:
            out[:, columns] = torch.zeros_like(slab).addmm_(weights, slab)
    return out


def _slabs(z: Tensor, centre: bool, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Columns of z, in one buffer that is used again: small slabs suit a CPU's cache, slabs of 64
    MB keep a GPU's launches few.
    """
    size = max(1024, -(-z.shape[1] // 128) if z.device.type == "cpu" else 2**24 // len(z))
    buffer = torch.empty(len(z), min(size, z.shape[1]), dtype=dtype, device=z.device)
    for start in range(0, z.shape[1], size):
        part = z[:, start : start + size]
        slab = buffer[:, : part.shape[1]]
        yield (
            slice(start, start + size),
            torch.sub(part, part.mean(0, dtype=dtype), out=slab) if centre else slab.copy_(part),
        )


_gram = torch.library.custom_op("cfm_lite::gram", _gram_forward, mutates_args=())
_gram_gradient = torch.library.custom_op("cfm_lite::gram_gradient", _gram_product, mutates_args=())


@_gram.register_fake
def _(z: Tensor, centre: bool) -> Tensor:
    return z.new_empty(len(z), len(z), dtype=promote(z[:0]).dtype)


@_gram_gradient.register_fake
def _(weights: Tensor, z: Tensor, centre: bool) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _gram_keep(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.centre = inputs[1]


def _gram_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    """With Z = C z, where C takes out the mean of the rows, dz = C (dG + dG^T) C z."""
    (z,) = ctx.saved_tensors
    weights = grad + grad.mT
    if ctx.centre:
        weights = weights - weights.mean(0)
        weights = weights - weights.mean(1, keepdim=True)
    if torch.is_grad_enabled() or _many_at_once(grad):  # as above
        return (weights @ z.to(weights.dtype)).to(z.dtype), None
    return _gram_gradient(weights, z, ctx.centre), None


_gram.register_autograd(_gram_backward, setup_context=_gram_keep)
