"""What a network must hold to be trained, averaged and guarded: dense, real, finite numbers."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cfm_lite.errors import ConfigError

__all__ = ["check_trainable", "copied"]


def check_trainable(module: nn.Module, parts: bool = False) -> None:
    """`module` must be one that can be trained, averaged and guarded; ConfigError names the part.

    Tied weights, frozen parts, parametrisations and parameters in any order of memory are fine.
    With `parts` FSDP must be able to deal it to ranks. `checkpoint.check_storable` says what a file
    can hold.

    >>> check_trainable(nn.Linear(2, 2))  # nothing to say
    """
    for name, part in module.named_modules(remove_duplicate=True):
        if getattr(part, "sparse", False) is True and isinstance(
            part, nn.Embedding | nn.EmbeddingBag
        ):
            raise ConfigError(
                f"{name} gives sparse gradients, which can be neither clipped nor averaged; build "
                "it with sparse=False."
            )
    named = [*module.named_parameters(), *module.named_buffers()]
    for name, x in named:
        _check_stored(name, x)
    if parts:
        _check_parts(dict(module.named_parameters()))
    places = {str(p.device): name for name, p in module.named_parameters()}
    if len(places) > 1:
        seen = ", ".join(f"{name} on {place}" for place, name in places.items())
        raise ConfigError(
            f"the parameters are on several devices: {seen}. Move the model to one with "
            ".to(device)."
        )
    bad = [
        name
        for name, p in module.named_parameters()
        if p.is_floating_point() and not torch.isfinite(_readable(p)).all()
    ]
    if bad:
        raise ConfigError(f"the parameters {bad[:3]} hold NaN or infinity; start from finite ones.")


def copied(module: nn.Module) -> nn.Module:
    """A deep copy for the average; ConfigError names what cannot be copied.

    >>> module = nn.Linear(2, 2)
    >>> copied(module).weight is module.weight
    False
    """
    try:
        with torch.no_grad():  # else a scripted or traced part is copied by a computation
            return copy.deepcopy(module)
    except Exception as error:  # whatever a part holds: locks, open files, results of a graph
        results = [
            f"{place}.{name}".lstrip(".")
            for place, part in module.named_modules()
            for name, value in vars(part).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        why = (
            f"{results[0]} is the result of a computation"
            if results
            else " ".join(str(error).split())[:200]
        )
        raise ConfigError(
            f"{type(module).__name__} cannot be copied for its average: {why}. Keep such a value "
            "out of the module's attributes, or detach it (and use "
            "torch.nn.utils.parametrizations in place of torch.nn.utils.weight_norm)."
        ) from error


def _check_stored(name: str, x: Tensor) -> None:
    if isinstance(x, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise ConfigError(
            f"{name} has no shape yet, as in a lazy layer; run one batch through the model first."
        )
    if x.is_meta:
        raise ConfigError(
            f"{name} is on the meta device and holds no numbers; load its weights first, or use "
            ".to_empty and initialise it."
        )
    if x.is_inference():
        raise ConfigError(
            f"{name} was made in inference mode and cannot be trained; build the model outside "
            "torch.inference_mode()."
        )
    if x.layout != torch.strided:
        raise ConfigError(f"{name} has the layout {x.layout}; it must be dense. Call .to_dense().")
    if isinstance(x, nn.Parameter) and x.is_complex():
        raise ConfigError(
            f"{name} is complex; the gradient norm, the guard and the average are for real "
            "numbers. Keep torch.view_as_real of it."
        )
    if x.requires_grad and x.itemsize == 1:
        raise ConfigError(
            f"{name} has dtype {x.dtype}, in which nothing can be trained; make it float32, or "
            "freeze it with requires_grad_(False)."
        )
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride())):
        raise ConfigError(
            f"{name} was expanded: several of its entries are one number in memory, so it cannot "
            "be changed. Call .clone() first."
        )


# what gloo can gather
_GATHERED = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def _check_parts(named: Mapping[str, Tensor]) -> None:
    for name, p in named.items():
        if p.dim() == 0:
            raise ConfigError(
                f"{name} has no dimension, so parallel='fsdp' cannot shard it over the ranks; give "
                "it the shape (1,), or use 'ddp'."
            )
        if p.dtype not in _GATHERED:
            raise ConfigError(
                f"{name} has dtype {p.dtype}, which parallel='fsdp' cannot gather; keep it as a "
                "buffer, or use 'ddp'."
            )
    trained = {p.dtype: name for name, p in named.items() if p.requires_grad}
    if len(trained) > 1:
        seen = ", ".join(f"{name} has {dtype}" for dtype, name in trained.items())
        raise ConfigError(
            f"the trained parameters have several dtypes: {seen}; parallel='fsdp' takes one. Call "
            "model.float(), or use 'ddp'."
        )


def _readable(p: Tensor) -> Tensor:
    return p.float() if p.itemsize == 1 else p  # torch knows no isfinite of 8 bits
