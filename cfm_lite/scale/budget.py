"""How a global batch is computed: ranks x accumulation x micro-batch, and what that needs.

    bytes = 20 per parameter (value, gradient, two moments, average, all float32) + micro-batch x activations

Activations are about 34 numbers per token, channel and block, which a dry run replaces by a measurement.
"""

import os
from dataclasses import dataclass

import torch

from cfm_lite.checks import check_count
from cfm_lite.data.latents import part_of
from cfm_lite.errors import ConfigError
from cfm_lite.recipes.imagenet import ImageNet

__all__ = ["Split", "activation_bytes", "free_memory", "split_batch", "state_bytes"]

_NUMBERS = 34  # per token, channel and block that a block keeps for its backward pass
_MARGIN = 0.8  # of the free memory, left for kernels' work space and fragments


@dataclass(frozen=True)
class Split:
    """`ranks` x `accumulate` x `micro` = the global batch."""

    ranks: int
    accumulate: int
    micro: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks x {self.accumulate} micro-batches x {self.micro} images = {self.ranks * self.accumulate * self.micro}"


def state_bytes(parameters: int) -> int:
    """What a number of parameters needs while it is trained."""
    return 20 * parameters


def activation_bytes(recipe: ImageNet, side: int) -> int:
    """What one image of `side` x `side` latent positions leaves for the backward pass, an estimate."""
    tokens = (side // recipe.patch_size) ** 2
    return _NUMBERS * tokens * recipe.hidden_size * recipe.depth * (2 if recipe.precision == "bf16" else 4)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or half of what is free in main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def split_batch(recipe: ImageNet, side: int, parameters: int, free: int, ranks: int = 1, micro: int | None = None) -> Split:
    """The largest micro-batch of whole shards that fits into `free` bytes, at least one shard; or `micro`, checked.

    Raises ConfigError where the batch cannot be dealt to the ranks, or a rank's part not into micro-batches, in whole shards.
    """
    local = part_of(recipe.batch, ranks, recipe.shard)
    shards = local // recipe.shard
    if micro is not None:
        check_count("micro_batch", micro)
        if micro % recipe.shard or local % micro:
            allowed = [recipe.shard * n for n in range(1, shards + 1) if shards % n == 0]
            raise ConfigError(f"micro_batch is {micro}; a rank's {local} images in whole shards of {recipe.shard} allow {allowed}.")
        return Split(ranks, local // micro, micro)
    room = _MARGIN * (free - state_bytes(parameters)) / (recipe.shard * activation_bytes(recipe, side))
    fits = [n for n in range(1, shards + 1) if shards % n == 0 and n <= room]
    best = max(fits, default=1)
    return Split(ranks, shards // best, best * recipe.shard)
