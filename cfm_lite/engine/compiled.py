"""How training is compiled: each transformer block, and nothing else.

    graphs of a run = kinds of block, not blocks: the 28 blocks of SiT-XL share one

The same blocks are the unit for one process, under DDP and under FSDP. So nothing between them
(messages, losses, draws) breaks a graph. A network without such blocks becomes one graph together
with its losses. Reference: PyTorch's recipe for regional compilation; torchtitan
compiles its blocks in the same way.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cfm_lite._internal.checks import check_flag
from cfm_lite.errors import ConfigError

__all__ = ["blocks_of", "compile_parts", "is_compiled", "unsplit"]

BACKEND: Any = "inductor"  # tests put a quick one here, or one that counts


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The members of every list of `module` that is called `blocks`, in order.

    FSDP shards and gathers them one by one. Blocks inside a block belong to it, and are not listed.

    >>> from cfm_lite.models import SiT
    >>> len(blocks_of(SiT(input_size=4, in_channels=1, hidden_size=8, depth=3, num_heads=2)))
    3
    """
    lists: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in lists)
        if name.split(".")[-1] == "blocks" and isinstance(part, _LISTS) and not inner:
            lists[name] = part
    return [block for part in lists.values() for block in _called(part)]


_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _called(part: nn.Module) -> Iterator[nn.Module]:
    """The children with a forward pass of their own; a list of modules has none."""
    for child in part.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _called(child)
        else:
            yield child


def is_compiled(chosen: bool | None, module: nn.Module, device: torch.device) -> bool:
    """Whether the training of `module` on `device` is compiled.

    `chosen` decides. With None, it is compiled on CUDA if there are transformer blocks, but not
    where torch's compiler cannot work: without Triton, a C compiler or capability 7. Raises
    ConfigError for True on a machine without a compiler.

    >>> is_compiled(None, nn.Linear(2, 2), torch.device("cpu"))  # None: on CUDA alone
    False
    """
    lacking = _lacking(device) if BACKEND == "inductor" else ""
    if chosen is None:
        return device.type == "cuda" and bool(_transformer_blocks(module)) and not lacking
    check_flag(compile=chosen)
    if chosen and lacking:
        raise ConfigError(
            f"compile is True and this machine has no {lacking}, which torch.compile needs. "
            "Install it, or use compile=False."
        )
    return chosen


def compile_parts(module: nn.Module) -> None:
    """Compile every transformer block of `module` in place, or `module` itself if it has none.

    Names and copies stay plain. Each size of batch has a graph of its own. Call it before DDP or
    FSDP wrap the module.
    """
    for part in _transformer_blocks(module) or [module]:
        part.compile(dynamic=False, backend=BACKEND)


def unsplit(forward: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """`forward`, with every graph of `module` whole and compiled.

    DDP would split each graph where its buckets of gradients end. This gains nothing if a block is
    the graph. And torch stops compiling a function after eight graphs. Blocks of different widths,
    or with different numbers in them, soon reach this limit.
    """
    from torch._dynamo import config

    limit = max(config.recompile_limit, 8 + len(_transformer_blocks(module)))
    # made once: to enter it takes a tenth of the time
    settings = config.patch(optimize_ddp=False, recompile_limit=limit)

    def run(*args: Any) -> Any:
        with settings:
            return forward(*args)

    return run


def _transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that are worth a graph: they have parts (attention, an MLP) with layers in them.

    The blocks of an MLP are single layers.
    """

    def nested(block: nn.Module) -> bool:
        return any(True for part in block.children() for _ in part.children())

    return list(filter(nested, blocks_of(module)))


def _lacking(device: torch.device) -> str:
    """What torch.compile lacks on this machine for this device, in words; "" where nothing."""
    if device.type != "cuda":
        return "" if _program("CXX", "g++", "clang++", "cl") else "C++ compiler (such as g++)"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "GPU of capability 7.0"
    if importlib.util.find_spec("triton") is None:
        return "package triton"
    return "" if _program("CC", "gcc", "clang", "cl") else "C compiler (such as gcc)"


def _program(variable: str, *names: str) -> str | None:
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
