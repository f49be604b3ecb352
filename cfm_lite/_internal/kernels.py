"""What the losses are built from: lengths that are safe at zero, and the Gram matrix z z^T.

The gradient of the Gram matrix is written by hand: for a centred one autograd would need several
times the memory and the time.

Convention: rows are samples, (B, d). Arithmetic runs in float32 at least.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cfm_lite._internal.checks import promote, transformed

__all__ = ["TINY", "cosine", "gram", "inverse_root", "root", "standardize"]

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
    """Columns of mean 0 and (biased) variance 1; a constant column becomes 0, without gradient."""
    z = promote(z)
    mean = z.mean(0)
    z = z - mean
    # what rounding leaves of a constant column is not a feature
    floor = 4 * torch.finfo(z.dtype).eps * mean.detach().abs() + TINY
    variance = z.square().mean(0)
    return z * inverse_root(torch.where(variance.detach() <= floor.square(), 0, variance))


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


def _many_at_once(grad: Tensor) -> bool:
    """Whether this backward pass runs for a batch of gradients (is_grads_batched).

    Such a batch is a tensor without a storage.
    """
    if torch.compiler.is_compiling():
        return False
    try:
        grad.untyped_storage()
    except NotImplementedError:
        return True
    return transformed(grad)


# The Gram matrix is summed over slabs of columns. Only one slab at a time is centred and promoted,
# so there is never a second copy of z. Both directions are operators of their own: torch.compile
# then neither unrolls the slabs nor lowers the precision of the backward pass.


def _gram_forward(z: Tensor, centre: bool) -> Tensor:
    out = torch.zeros(len(z), len(z), dtype=promote(z[:0]).dtype, device=z.device)
    # up to four bands: what lies above the diagonal is mirrored
    step = max(64, -(-len(z) // 4)) if z.device.type == "cpu" else len(z)
    for _, slab in _slabs(z, centre, out.dtype):
        for i in range(0, len(z), step):
            # in place, because autocast does not change the precision of that
            out[i : i + step, : i + step].addmm_(slab[i : i + step], slab[: i + step].mT)
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
    """Slabs of columns of z, in one buffer that is used again.

    Small slabs fit a CPU's cache. On a GPU slabs of 64 MB keep the launches few.
    """
    size = max(1024, -(-z.shape[1] // 128) if z.device.type == "cpu" else 2**24 // len(z))
    buffer = torch.empty(len(z), min(size, z.shape[1]), dtype=dtype, device=z.device)
    for start in range(0, z.shape[1], size):
        part = z[:, start : start + size]
        slab = buffer[:, : part.shape[1]]
        slab = torch.sub(part, part.mean(0, dtype=dtype), out=slab) if centre else slab.copy_(part)
        yield slice(start, start + size), slab


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
    # autograd follows a second derivative, or one for each of many `grad`
    if torch.is_grad_enabled() or _many_at_once(grad):
        return (weights @ z.to(weights.dtype)).to(z.dtype), None
    return _gram_gradient(weights, z, ctx.centre), None


_gram.register_autograd(_gram_backward, setup_context=_gram_keep)
