"""How a global batch is computed: ranks x accumulation x micro-batch, and the memory it needs.

    bytes = 16 per parameter (value, two moments, average) + 4 (gradient) + 2 (its copy in bf16)
            + micro-batch x activations

A second average takes 4 more. Activations are what a block keeps for its backward pass, per token
and channel. With checkpointing a block keeps only its input, and one block at a time is computed
again. The numbers were counted tensor by tensor on whole training steps
(tests/scale/test_memory.py).
"""

import os
from dataclasses import dataclass

import torch

from cfm_lite._internal.checks import check_count
from cfm_lite.data.latents import part_of
from cfm_lite.errors import ConfigError
from cfm_lite.runs.imagenet import ImageNet

__all__ = ["Split", "activation_bytes", "free_memory", "peak_bytes", "split_batch", "state_bytes"]

# bytes per token, channel and block, by (precision, compiled): the compiler computes some of them
# again
_KEPT = {("float32", False): 81, ("bf16", False): 54, ("float32", True): 73, ("bf16", True): 41}
_INPUT = 4  # what remains of a block with checkpointing: the sum of all before it stays float32
_TEXT = 77  # tokens of a caption, which a MMDiT keeps beside those of the image
_MARGIN = 0.8  # of the free memory, left for kernels' work space and fragments


@dataclass(frozen=True)
class Split:
    """`ranks` x `accumulate` x `micro` = the global batch."""

    ranks: int
    accumulate: int
    micro: int

    def __str__(self) -> str:
        return (
            f"{self.ranks} ranks x {self.accumulate} micro-batches x {self.micro} images = "
            f"{self.ranks * self.accumulate * self.micro}"
        )


def state_bytes(parameters: int, averages: int = 1) -> int:
    """The bytes of so many trained parameters, with one average or two."""
    return (16 + 4 * averages) * parameters


def activation_bytes(
    recipe: ImageNet, side: int, *, compile: bool = False, checkpointing: bool = False
) -> int:
    """The bytes that one image of `side` x `side` latent positions keeps for the backward pass."""
    one, depth = _block_bytes(recipe, side, compile), recipe.depth
    return one + _INPUT * _numbers(recipe, side) * depth if checkpointing else one * depth


def peak_bytes(
    recipe: ImageNet,
    side: int,
    parameters: int,
    split: "Split",
    *,
    compile: bool = False,
    checkpointing: bool = False,
    fsdp: bool = False,
) -> int:
    """The most bytes that a training step holds: at the start of its backward pass, or at its end
    with all gradients.

    With `fsdp` a rank keeps its share of the state of all `parameters`, and what is whole while in
    use.
    """
    averages, summed = averages_of(recipe), 4 * parameters if split.accumulate > 1 else 0
    kept, block = (
        (12 + 4 * averages) * parameters,
        split.micro * _block_bytes(recipe, side, compile),
    )
    images = split.micro * activation_bytes(
        recipe, side, compile=compile, checkpointing=checkpointing
    )
    if fsdp:
        return _dealt_bytes(
            recipe, parameters, split.ranks, kept // split.ranks, summed, images, block
        )
    copies = 2 * parameters if recipe.precision == "bf16" and not checkpointing else 0
    return max(kept + copies + summed + images, state_bytes(parameters, averages) + block)


def _dealt_bytes(
    recipe: ImageNet, parameters: int, ranks: int, kept: int, summed: int, images: int, block: int
) -> int:
    """The most bytes that a rank holds under FSDP: the largest of four moments of a step.

    Beside its share (`kept`) a rank has whole: all layers around the blocks, the block in use, and
    the next block, twice while it is unpacked from its message. Gradients leave as float32
    messages, block by block. If a batch is accumulated, that happens only in its last micro-batch.
    Until then the gradients (`summed`, float32) are whole.
    """
    width, half = recipe.hidden_size, recipe.precision == "bf16"
    # of a block: queries, keys, values, projection; the MLP; the modulation
    one = (18 * width**2 + 15 * width) * (2 if recipe.model == "mmdit" else 1)
    around, head = max(0, parameters - recipe.depth * one), 2 * width**2
    size, grads = 2 if half else 4, 4 * parameters // ranks
    begins = kept + summed
    return max(
        # the forward pass begins: the layers around the blocks, and their message
        begins + 8 * around + 3 * size * one,
        # the backward pass begins: the head's gradients come before those of the blocks
        begins + 4 * (around + head) + (3 * size + (2 if half and summed else 0)) * one + images,
        # it is among the blocks
        kept
        + grads
        - 4 * (around + one) // ranks
        + 4 * (around + head)
        + (12 if half else 16) * one
        + block,
        # it ends: the gradients around the blocks, and their message
        kept + grads + 8 * around + block,
    )


def averages_of(recipe: ImageNet) -> int:
    """The number of averages that a run keeps."""
    return 2 if recipe.ema2 else 1


def _block_bytes(recipe: ImageNet, side: int, compile: bool) -> int:
    return _KEPT[recipe.precision, compile] * _numbers(recipe, side)


def _numbers(recipe: ImageNet, side: int) -> int:
    text = _TEXT if recipe.model == "mmdit" else 0
    return ((side // recipe.patch_size) ** 2 + text) * recipe.hidden_size


def free_memory(device: torch.device) -> int:
    """Free bytes on a GPU, or half of the free main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def split_batch(
    recipe: ImageNet,
    side: int,
    parameters: int,
    free: int,
    ranks: int = 1,
    micro: int | None = None,
    *,
    compile: bool = False,
    checkpointing: bool = False,
    fsdp: bool = False,
) -> Split:
    """The largest micro-batch of whole shards that fits into `free` bytes, at least one shard; or
    `micro`, checked.

    Raises ConfigError if the batch cannot be split into whole shards on each rank and in each
    micro-batch.
    """
    local = part_of(recipe.batch, ranks, recipe.shard)
    shards = local // recipe.shard
    if micro is not None:
        check_count("micro_batch", micro)
        if micro % recipe.shard or local % micro:
            allowed = [recipe.shard * n for n in range(1, shards + 1) if shards % n == 0]
            near = min(allowed, key=lambda size: abs(size - micro))
            raise ConfigError(
                f"micro_batch is {micro}; a rank's {local} images in whole shards of "
                f"{recipe.shard} allow {allowed}. Use --micro-batch "
                f"{near}."
            )
        return Split(ranks, local // micro, micro)
    splits = [
        Split(ranks, shards // n, n * recipe.shard) for n in range(shards, 0, -1) if shards % n == 0
    ]
    how = {"compile": compile, "checkpointing": checkpointing, "fsdp": fsdp}
    return next(
        (
            split
            for split in splits
            if peak_bytes(recipe, side, parameters, split, **how) <= _MARGIN * free
        ),
        splits[-1],
    )
