"""Batches in an order that depends on (seed, position) alone, so a run can be resumed at any
step.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cfm_lite._internal.checks import as_labels, check_count, check_tensor, plain
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import ConfigError

__all__ = ["batches", "fitting", "row_numbers"]


def row_numbers(count: int, *, size: int, seed: int = 0, start: int = 0) -> Iterator[Tensor]:
    """Endless batches of `size` row numbers (size,) int64 below `count`, from batch number `start`
    on.

    Fresh permutations follow each other without a gap. So every batch is full, and an epoch shows
    every row once.

    Raises ConfigError for counts below 1, a start below 0, or a seed that is no whole number.

    >>> numbers = row_numbers(4, size=2)
    >>> torch.cat([next(numbers), next(numbers)]).sort().values  # an epoch shows every row once
    tensor([0, 1, 2, 3])
    """
    count, size, start = (
        check_count("count", count),
        check_count("size", size),
        check_count("start", start, low=0),
    )
    seed = plain(seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"seed is {seed!r:.60}; it must be a whole number.")
    position, epoch, order = start * size, -1, torch.empty(0, dtype=torch.long, device="cpu")
    while True:
        picked = []
        left = size
        while left:
            if position // count != epoch:
                epoch = position // count
                g = keyed_generator("cpu", seed, "epoch", epoch)
                order = torch.randperm(count, generator=g, device="cpu")
            first = position % count
            rows = order[first : first + left]
            picked.append(rows)
            position, left = position + len(rows), left - len(rows)
        yield picked[0] if len(picked) == 1 else torch.cat(picked)


def batches(
    x1: Tensor, y: Tensor | None = None, *, size: int, seed: int = 0, start: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless (x1, y) batches of `size` rows, from batch number `start` on.

    `x1` (N, *dims) is the data and `y` (N,) its labels. Rows come in the order of `row_numbers`.
    Raises ConfigError for an empty set or another number of labels.

    >>> x, y = next(batches(torch.randn(10, 2), torch.arange(10), size=4))
    >>> x.shape, y.shape
    (torch.Size([4, 2]), torch.Size([4]))
    """
    y = as_labels(y)
    check_tensor(x1=x1, **({} if y is None else {"y": y}))
    if not x1.dim() or (y is not None and not y.dim()):
        raise ConfigError(
            f"x1 has shape {tuple(x1.shape)} and y {None if y is None else tuple(y.shape)}; (N, "
            "*dims) and (N,) are needed."
        )
    if not len(x1) or (y is not None and len(y) != len(x1)):
        raise ConfigError(
            f"x1 has {len(x1)} rows and y {'none' if y is None else len(y)}; both need the same "
            "count, at least one."
        )
    for numbers in row_numbers(len(x1), size=size, seed=seed, start=start):
        rows = numbers.to(x1.device)
        yield x1[rows], None if y is None else y[rows]


def fitting(size: int, shard: int, *, ranks: int = 1, most: int | None = None) -> list[str]:
    """Command-line options that make a batch of `size` fit `ranks` in whole shards. Each works
    alone.

    The nearest batch comes first, then a smaller shard for this batch. With at most `most` rows a
    batch may need both at once. The list is empty if there are fewer rows than ranks.

    >>> fitting(100, shard=32)
    ['--batch 96', '--set shard=25']
    """
    unit, found = ranks * shard, []
    if most is None or most >= unit:
        near = max(1, round(size / unit)) * unit
        found.append(f"--batch {near if most is None else min(near, most // unit * unit)}")
    elif most >= ranks:
        found.append(f"--batch {most // ranks * ranks} --set shard={most // ranks}")
    if size % ranks == 0 and (most is None or size <= most):
        # a shard of one holds no negative
        smaller = next((part for part in range(shard, 1, -1) if size // ranks % part == 0), None)
        found += [f"--set shard={smaller}"] if smaller is not None else []
    return found
