"""A checkpoint on disk: its time as a ratio to one plain write of the same bytes, and what it reads
and holds.

A plain write is `write` and `fsync` of one buffer that is in memory already. A save writes the same
bytes as tensors, hashes them, syncs each file and its folder, and removes the oldest of its
checkpoints, as the plain side removes its older file. The files lie in the system's temporary
folder, or in the one that CFM_LITE_BENCH_TMP names: it should be on a disk.
"""

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from cfm_lite.engine import checkpoint
from tools.benchmarks.harness import Clock, Row, count, elsewhere, takes

TENSORS, LENGTH = 30, 1 << 20  # 0.5 GB: weights, average, and two moments


def made() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights with their average, and both moments: random numbers."""
    both = [torch.randn(LENGTH) for _ in range(TENSORS)]
    weights = {
        f"{kind}.blocks.{i}.weight": x for kind in ("objective", "ema") for i, x in enumerate(both)
    }
    return weights, {
        f"{i}.{name}": x for i, x in enumerate(both) for name in ("exp_avg", "exp_avg_sq")
    }


def rows(clock: Clock) -> Iterator[Row]:
    """The goal of a save that reads nothing back: half as much again as the plain write."""
    weights, optimizer = made()
    size = sum(4 * x.numel() for x in (*weights.values(), *optimizer.values()))
    buffer = memoryview(bytearray(size))
    buffer[:] = os.urandom(1 << 20) * (size >> 20)
    with tempfile.TemporaryDirectory(dir=os.environ.get("CFM_LITE_BENCH_TMP")) as home:
        folder, plain, steps = Path(home) / "checkpoints", Path(home) / "plain", iter(range(10**6))

        def write() -> None:
            plain.unlink(missing_ok=True)
            with open(plain, "xb") as file:
                file.write(buffer)
                os.fsync(file.fileno())

        def save() -> None:
            checkpoint.save(folder, next(steps), weights, optimizer, {}, keep=1)

        times = clock({"save": save, "write": write}, repeats=7, block=0.1)
        note = f"{size / 1e9:.2f} GB, hashed while it is written"
        yield takes(
            "save, against one plain write of the same bytes",
            times,
            "save",
            "write",
            goal=1.5,
            note=note,
        )
    read, held = elsewhere("save", "reads_and_holds()")
    yield count(
        "save, bytes read back",
        read / size,
        goal=0.01,
        unit=" of what was written",
        note="several saves, with pruning",
    )
    yield count(
        "save, memory beyond the tensors", held / size, goal=0.1, unit=" of what was written"
    )


def reads_and_holds() -> tuple[int, int]:
    """(bytes that three saves read, bytes by which the process grew meanwhile)."""
    weights, optimizer = made()
    with tempfile.TemporaryDirectory(dir=os.environ.get("CFM_LITE_BENCH_TMP")) as home:
        checkpoint.save(home, 0, {}, {}, {}, keep=1)
        before, grown = _read(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for step in (1, 2, 3):
            checkpoint.save(home, step, weights, optimizer, {}, keep=1)
        return _read() - before, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024


def _read() -> int:
    table = Path("/proc/self/io")
    return int(table.read_text().split()[1]) if table.exists() else 0
