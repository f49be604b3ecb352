"""Batches of a training: what may be one, how it is cut, and a warning for an unused run."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from cfm_lite.errors import ConfigError, DataError

__all__ = ["Batch", "Running", "as_batch", "micro_batches", "shards_in", "stream"]

Batch = tuple[Any, ...]
_PARTS = ("x1", "y", "context")


class Running(Iterator[dict[str, Tensor]]):
    """The steps of a run, each done when it is asked for; it warns if nobody asks for the first.

    >>> run = Running(iter([{"loss": 0.5}]))
    >>> next(run)
    {'loss': 0.5}
    """

    def __init__(self, steps: Iterator[dict[str, Tensor]]) -> None:
        self._steps, self._begun = steps, False

    def __next__(self) -> dict[str, Tensor]:
        self._begun = True
        return next(self._steps)

    def __del__(self) -> None:
        if not getattr(self, "_begun", True):
            warnings.warn(
                "a run was made and never iterated, so nothing was trained. Write `for log in "
                "trainer.run(...): ...`.",
                UserWarning,
                stacklevel=2,
            )


def stream(batches: Any, steps: int) -> Iterator[tuple[Batch, bool]]:
    """`steps` batches, each with whether it is the last one.

    Raises ConfigError at once if `batches` gives none, and DataError for a batch of another kind or
    too few.

    >>> import torch
    >>> [last for _, last in stream([torch.zeros(4, 2)] * 3, steps=2)]
    [False, True]
    """
    try:
        source = iter(batches)
    except TypeError:
        raise ConfigError(
            f"batches has type {type(batches).__name__}; it must be an iterable of batches, such "
            "as data.batches."
        ) from None
    return _stream(source, steps)


def _stream(source: Iterator[Any], steps: int) -> Iterator[tuple[Batch, bool]]:
    for i in range(steps):
        try:
            batch = next(source)
        except StopIteration:
            raise DataError(
                f"the batches ended after {i} of {steps} steps; give an endless iterator, such as "
                "data.batches."
            ) from None
        yield as_batch(batch), i == steps - 1


def as_batch(batch: Any) -> Batch:
    """(x1, ...) of a tensor, of one to three of them, or of a dict of x1, y and context.

    Raises DataError for anything else, and for a batch without rows.

    >>> import torch
    >>> x1, y = as_batch({"x1": torch.zeros(4, 2), "y": torch.arange(4)})
    >>> x1.shape, y.shape
    (torch.Size([4, 2]), torch.Size([4]))
    """
    if isinstance(batch, Mapping) and "x1" in batch and set(batch) <= set(_PARTS):
        count = 3 if batch.get("context") is not None else 2
        batch = tuple(batch.get(name) for name in _PARTS[:count])
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if 1 <= len(parts) <= 3 and isinstance(parts[0], Tensor) and parts[0].dim():
        if not len(parts[0]):
            raise DataError(
                f"a batch has no rows: x1 has shape {tuple(parts[0].shape)}, and it must be (B, "
                "*dims) with B at least 1. Leave such batches out."
            )
        return parts
    seen, keys = "no more", ["image", "label"]
    if isinstance(batch, Mapping):
        seen = f"keys {list(batch)[:6]}"
        # the data have more dimensions than their labels
        keys = sorted(batch, key=lambda key: -getattr(batch[key], "ndim", 0)) or keys
    elif isinstance(batch, tuple | list) and batch:
        kinds = ", ".join(type(x).__name__ for x in parts[:4])
        seen = f"{len(parts)} entries ({kinds}{', ...' if parts[4:] else ''})"
    of_numpy = any(isinstance(x, np.ndarray) for x in parts)
    pairs = ", ".join(f'"{part}": b["{key}"]' for part, key in zip(_PARTS[:2], keys))
    named = f"({{{pairs}}} for b in batches)"
    how = "torch.as_tensor(x1)" if of_numpy else named
    raise DataError(
        f"a batch has type {type(batch).__name__}, with {seen}; it must be a "
        "tensor x1, (x1, y), (x1, y, context), or a dict with these names, where x1 is a tensor "
        f"(B, *dims). Convert each one, such as {how}."
    )


def shards_in(rows: int, shard: int | None) -> int:
    """How many shards, of `shard` rows or of all (None), hold so many rows.

    >>> shards_in(100, shard=32), shards_in(100, shard=None)
    (4, 1)
    """
    return -(-rows // (shard or rows))


def micro_batches(batch: Batch, count: int, shard: int | None) -> list[Batch]:
    """`batch` in `count` parts of whole shards; the ConfigError names a size that can be cut.

    >>> import torch
    >>> [len(x1) for x1, in micro_batches((torch.zeros(64, 2),), count=2, shard=16)]
    [32, 32]
    """
    if count == 1:
        return [batch]
    rows = len(batch[0])
    size = -(-rows // count)
    if not shard or rows % count or size % shard:
        unit = count * (shard or 1)
        near = max(1, round(rows / unit)) * unit
        both = f"give the objective a shard of {near // count} and a batch of {near}"
        how = f"choose a batch of {near}" if shard else both
        raise ConfigError(
            f"a batch of {rows} cannot be cut into {count} micro-batches of whole shards (shard = "
            f"{shard}); {how}, or any multiple of {unit}."
        )
    starts = range(0, rows, size)
    return [tuple(None if x is None else x[i : i + size] for x in batch) for i in starts]
