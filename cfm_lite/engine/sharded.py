"""FSDP2: each rank keeps a slice of parameters, gradients, moments and average.

    bytes per rank = state / ranks + one whole block + activations

A block is gathered only while it is used. Whole tensors are saved, so a checkpoint of FSDP, of DDP
and of one process is the same file. A run resumes under any of them, on any number of ranks.
Nothing is unpickled; the sharded format of torch.distributed.checkpoint would need that for its
index. Reference: PyTorch's `fully_shard` and torch.distributed.checkpoint.state_dict.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
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
    """Shard the parameters of `module` over the ranks, in place, block by block.

    What is not a block is one more unit. All ranks must hold the same values (`World.start_alike`).
    Gradients are means over the ranks, on gloo and nccl (tested, because AdamW would hide a sum).

    With `half` an objective's blocks are gathered in that dtype, which halves the messages and the
    memory, and their gradients are summed in float32. Autocast of that dtype surrounds the network,
    so that the numbers are DDP's. What lies around the blocks (time, labels, patches, the head)
    stays float32, and so does everything that is kept.

    With `read` the module can be called and read between updates, as an average is: what a call has
    gathered is sharded again at its end. Otherwise the outermost part stays whole until the
    backward pass, and would hide an update.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for p in module.parameters():  # it takes rows in order alone; a U-Net's are channels-last
        p.data = p.data.contiguous()
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
    _exchange_all_of(module)
    # now the root is `module`, whichever part is called first
    fully_shard.state(module)._lazy_init()  # pyright: ignore
    return module


# what `_exchange_all_of` uses of FSDP's groups of parameters; torch calls these names private
_PRIVATE = ("post_backward", "reduce_grads", "fsdp_params")


def _exchange_all_of(module: Any) -> None:
    """Let FSDP exchange every gradient of a block: one that this rank lacks is 0, as under DDP.

    Ranks that exchange other gradients would not find each other. torch's own switch for it came
    with 2.13, and fails in half precision with several micro-batches: gradients of earlier ones are
    float32 by then, and all of a block must have one dtype. Where a torch has other private names,
    its switch must do.
    """
    from torch.distributed.fsdp import fully_shard

    units = filter(is_sharded, module.modules())
    states: list[Any] = [fully_shard.state(unit) for unit in units]  # pyright: ignore
    groups = [getattr(state, "_fsdp_param_group", None) for state in states]
    groups = [group for group in groups if group is not None]
    if all(hasattr(group, name) for group in groups for name in _PRIVATE):
        for group in groups:
            _fill_before(group)
    elif hasattr(module, "set_reduce_scatter_unused_params"):
        module.set_reduce_scatter_unused_params(True)


def _fill_before(group: Any) -> None:
    """Fill in the gradients that are missing, right before FSDP exchanges those of `group`."""
    plain = group.post_backward

    def post_backward(*unused: Any) -> Any:
        if group.reduce_grads:
            parts = [p for p in group.fsdp_params if p.sharded_param.requires_grad]
            parts = [p for p in parts if hasattr(p, "_unsharded_param")]
            earlier = any(p.unsharded_accumulated_grad is not None for p in parts)
            for part in parts:
                whole = part._unsharded_param
                if whole.grad is None and part.unsharded_accumulated_grad is None:
                    whole.grad = torch.zeros_like(whole)
                if earlier:
                    part.accumulate_unsharded_grad_if_needed()
                    part.to_accumulated_grad_if_needed()
        return plain(*unused)

    group.post_backward = post_backward


def spread(
    objective: nn.Module,
    averages: list[nn.Module],
    world: World,
    in_parts: bool,
    half: torch.dtype | None,
    compiled: bool,
) -> tuple[nn.Module, Any]:
    """The objective over the ranks, with FSDP if `in_parts` or else DDP, and what runs it.

    FSDP shards the averages as well. Blocks are compiled first, and then wrapped.
    """
    if compiled:
        compile_parts(objective)
    if in_parts:
        device = next(objective.parameters()).device
        for module in averages:
            shard(module, world, device, read=True)
        wrapped: Any = shard(objective, world, device, half)
    else:
        wrapped = world.wrap(objective)
    return wrapped, unsplit(wrapped, objective) if compiled else wrapped


@contextlib.contextmanager
def exchanging(wrapped: Any, parameters: Sequence[Tensor], last: bool) -> Iterator[list[int]]:
    """Around a micro-batch: gradients are exchanged once a batch, with those of the `last` one.

    DDP waits in the last one for a gradient of each of the `parameters`. A parameter that gets none
    there gets zeros, even if an earlier micro-batch gave it a gradient. Under DDP, the list given
    here names at the end the numbers of the parameters that got none in the whole batch.
    """
    idle: list[int] = []
    if is_sharded(wrapped):
        wrapped.set_requires_gradient_sync(last)
    if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
        yield idle
    elif not last:
        with wrapped.no_sync():
            yield idle
    else:
        earlier, again = [p for p in parameters if p.grad is not None], set()
        hooks = [p.register_post_accumulate_grad_hook(again.add) for p in earlier]
        try:
            yield idle
        finally:
            for hook in hooks:
                hook.remove()
        idle += [number for number, p in enumerate(parameters) if p.grad is None]
        missed = [p for p in parameters if p.grad is None] + [p for p in earlier if p not in again]
        if missed:
            torch.autograd.backward(missed, [torch.zeros_like(p) for p in missed])


def _compute_in(model: nn.Module, device: torch.device, half: torch.dtype) -> None:
    """Surround the network's methods with autocast: blocks in `half` do not take float32."""
    for name in ("forward", "forward_features"):
        if hasattr(model, name):
            setattr(model, name, torch.autocast(device.type, dtype=half)(getattr(model, name)))


def _gather_in(module: nn.Module) -> None:
    """Gather the parameters also for the network's other method."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    if hasattr(module, "forward_features"):
        register_fsdp_forward_method(module, "forward_features")


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has sharded a module.

    >>> is_sharded(nn.Linear(2, 2))
    False
    """
    return hasattr(type(module), "set_requires_gradient_sync")  # of the type: a quicker no


def hear(module: nn.Module, used: set[str]) -> None:
    """Let each parameter of a sharded module put its name into `used` when it gets a gradient here.

    FSDP's own parameters hear nothing: the gradient goes to the gathered one, which is made when it
    is first gathered (collective).
    """
    parts = dict(module.named_parameters())
    for unit in filter(is_sharded, module.modules()):
        gathering: Any = unit
        gathering.unshard()
        for name, p in module.named_parameters():
            if p is not parts[name] and p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda _, name=name: used.add(name))
        gathering.reshard()


def order_of(module: nn.Module) -> list[Any]:
    """FSDP's own list of the parts that were run since the last backward pass, in order.

    A hook on a block would be compiled with it.
    """
    from torch.distributed.fsdp import fully_shard

    state: Any = fully_shard.state(module)  # pyright: ignore
    # a torch without this private list checks nothing: it stays empty
    return getattr(getattr(state, "_comm_ctx", None), "post_forward_order", [])


def inside(module: nn.Module) -> list[str]:
    """The names of the blocks that are being run, as seen from another thread."""
    from torch.distributed.fsdp import fully_shard

    names = {part: name for name, part in module.named_modules()}
    states = {names[part]: fully_shard.state(part) for part in blocks_of(module)}  # pyright: ignore
    now = {name: getattr(state, "_training_state", None) for name, state in states.items()}
    return [name for name, doing in now.items() if getattr(doing, "name", "") == "FORWARD"]


def full(x: Any) -> Tensor:
    """A tensor as it is, or a sharded one gathered on every rank (collective).

    >>> full(torch.ones(2))  # a tensor that is whole
    tensor([1., 1.])
    """
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the host of rank 0, and an empty one elsewhere (collective).

    For a plain module it is the state dict.

    >>> list(weights(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    if not is_sharded(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole: Any = get_model_state_dict(
        module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state dict, of which each rank keeps its slices (collective).

    >>> module = nn.Linear(1, 1, bias=False)
    >>> load_weights(module, {"weight": torch.ones(1, 1)})
    >>> module.weight.item()
    1.0
    """
    if not is_sharded(module):
        module.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    # each rank scatters its entries in order, so all must have the same order
    set_model_state_dict(module, ordered(state), options=StateDictOptions(full_state_dict=True))


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors on the host of rank 0 (collective).

    Parameters are named by number.

    >>> module = nn.Linear(1, 1, bias=False)
    >>> sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> optimizer_state(module, sgd)["param_groups"][0]["lr"]
    0.1
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
    """The inverse of `optimizer_state`, from the whole tensors on every rank (collective).

    >>> module = nn.Linear(1, 1, bias=False)
    >>> old, new = (torch.optim.SGD(module.parameters(), lr=lr) for lr in (0.1, 0.2))
    >>> load_optimizer(module, new, optimizer_state(module, old))
    >>> new.param_groups[0]["lr"]
    0.1
    """
    if not is_sharded(module):
        optimizer.load_state_dict(dict(state))
        for p, entry in optimizer.state.items():
            for name, value in entry.items():
                # a file holds rows in order; the fused kernel reads moments and parameters in the
                # order of their memory
                alike = isinstance(value, Tensor) and value.shape == p.shape
                if alike and value.stride() != p.stride():
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
    # a parameter that got no gradient has no state
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(module, optimizer, named, options=options)


def _trained(module: nn.Module) -> list[str]:
    """The names of the parameters in the order in which the optimizer numbers them."""
    return [name for name, p in module.named_parameters() if p.requires_grad]
