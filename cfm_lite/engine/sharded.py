"""FSDP2: parameters, gradients, moments and average are dealt to the ranks; a block is put together
only while it is used.

    bytes per rank = state / ranks + one whole block + activations

A rank keeps a slice of every tensor (a DTensor). What is saved is put together again, so that a
checkpoint of FSDP, of DDP and of one process is the same file: a run goes on under any of them, on
any number of ranks, and nothing has to be unpickled, as the sharded format of
torch.distributed.checkpoint would need for its index. Reference: PyTorch's `fully_shard` and
torch.distributed.checkpoint.state_dict.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite.engine.checkpoint import ordered
from cfm_lite.engine.compiled import blocks_of, compile_parts, unsplit
from cfm_lite.engine.parallel import World

__all__ = [
    "exchanging",
    "full",
    "is_sharded",
    "load_optimizer",
    "load_weights",
    "optimizer_state",
    "shard",
    "spread",
    "weights",
]

# torch.distributed's tensors and checkpoints take a second to import, and only the functions below
# need them


def shard(
    module: nn.Module,
    world: World,
    device: torch.device,
    half: torch.dtype | None = None,
    read: bool = False,
) -> nn.Module:
    """Deal the parameters of `module` to the ranks, in place: every transformer block apart, and
    what is left together.

    With `half` an objective's blocks are put together in that dtype, which halves the messages and
    what is whole, and their gradients are summed in float32. Autocast of that dtype, whose casts
    this spares, surrounds the network, so that the numbers are DDP's. What lies around the blocks
    (time, labels, patches, the head) stays float32, and so does all that is kept. With `read` the
    module can be called and looked at between updates from outside, as an average is: what a call
    has put together is dealt out again at its end. Else the outermost part stays whole until the
    backward pass, and would hide what is updated. All ranks must hold the same values
    (`World.start_alike`). Gradients are means over the ranks, on gloo and nccl (tested, for AdamW
    would hide a sum).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    policy = (
        MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        if half
        else MixedPrecisionPolicy()
    )
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    model = getattr(module, "model", None)
    if isinstance(
        model, nn.Module
    ):  # of an objective, so that its network can be called alone, as in validation
        if half:
            _compute_in(model, device, half)
        fully_shard(model, mesh=mesh)
        _gather_in(model)
    fully_shard(module, mesh=mesh, reshard_after_forward=True if read else None)
    _gather_in(module)
    # now the root is `module`, whichever part is called first
    fully_shard.state(module)._lazy_init()  # pyright: ignore
    return module


def spread(
    objective: nn.Module,
    averages: list[nn.Module],
    world: World,
    parallel: str,
    half: torch.dtype | None,
    compiled: bool,
) -> tuple[nn.Module, Any]:
    """The objective over the ranks, as "ddp" or "fsdp", and what runs it; FSDP deals out the
    averages as well.

    What is compiled is compiled first, and then wrapped.
    """
    if compiled:
        compile_parts(objective)
    if parallel == "fsdp" and world.size > 1:
        device = next(objective.parameters()).device
        for module in averages:
            shard(module, world, device, read=True)
        wrapped: Any = shard(objective, world, device, half)
    else:
        wrapped = world.wrap(objective)
    return wrapped, unsplit(wrapped, objective) if compiled else wrapped


def exchanging(wrapped: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Around a micro-batch: gradients are exchanged once a batch, with those of the `last` one."""
    if is_sharded(wrapped):
        wrapped.set_requires_gradient_sync(last)
    elif isinstance(wrapped, nn.parallel.DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return contextlib.nullcontext()


def _compute_in(model: nn.Module, device: torch.device, half: torch.dtype) -> None:
    """Surround the network's methods with autocast: blocks in `half` would not take float32, also
    where it is called alone.
    """
    for name in ("forward", "forward_features"):
        if hasattr(model, name):
            setattr(model, name, torch.autocast(device.type, dtype=half)(getattr(model, name)))


def _gather_in(module: nn.Module) -> None:
    """Put the parameters together for the other method by which a network is called, too."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    if hasattr(module, "forward_features"):
        register_fsdp_forward_method(module, "forward_features")


def is_sharded(module: nn.Module) -> bool:
    """True for a module that `shard` has dealt out."""
    return hasattr(type(module), "set_requires_gradient_sync")  # of the type: quicker to deny


def full(x: Any) -> Tensor:
    """A tensor as it is, or a dealt one put together on every rank (collective)."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the host of rank 0, and an empty one elsewhere (collective); of a
    plain module its state dict.
    """
    if not is_sharded(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole: Any = get_model_state_dict(
        module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take over a whole state dict, of which each rank keeps its slices (collective)."""
    if not is_sharded(module):
        module.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    # every rank scatters what it meets first, so the order decides which tensors meet
    set_model_state_dict(module, ordered(state), options=StateDictOptions(full_state_dict=True))


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()`, parameters by number, with whole tensors on the host of rank 0
    (collective).
    """
    if not is_sharded(module):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    groups = optimizer.state_dict()["param_groups"]
    whole: Any = get_optimizer_state_dict(
        module, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    numbers = {name: i for i, name in enumerate(_trained(module))}
    return {
        "state": {numbers[name]: entry for name, entry in whole.get("state", {}).items()},
        "param_groups": groups,
    }


def load_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """The inverse of `optimizer_state`, from the whole tensors on every rank (collective)."""
    if not is_sharded(module):
        optimizer.load_state_dict(dict(state))
        for p, entry in optimizer.state.items():
            for name, value in entry.items():
                # a file holds rows in order; the fused kernel walks moments and parameters in the
                # order of their memory
                if (
                    isinstance(value, Tensor)
                    and value.shape == p.shape
                    and value.stride() != p.stride()
                ):
                    entry[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    names = _trained(module)
    groups = [
        {**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]
    ]
    named = {
        "state": ordered({names[i]: ordered(entry) for i, entry in state["state"].items()}),
        "param_groups": groups,
    }
    set_optimizer_state_dict(
        module, optimizer, named, options=StateDictOptions(full_state_dict=True)
    )


def _trained(module: nn.Module) -> list[str]:
    """The names of the parameters in the order in which the optimizer numbers them."""
    return [name for name, p in module.named_parameters() if p.requires_grad]
