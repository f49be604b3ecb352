"""Latents from disk: images a second with everything that a training step needs done to them, the
start of a full set, its memory.

Two made sets. One of a million and more images stands for ImageNet's: index, labels and keys in
full size, arrays as files with holes; it is opened. A smaller one of random numbers is read, at
random rows as training does: warm, and cold, its pages dropped from memory before every round
(posix_fadvise after fsync). What a GPU is given is copied once more here, in memory. The sets lie
in the system's temporary folder, or in the one that CFM_LITE_BENCH_TMP names: it should be on a
disk.
"""

import functools
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from cfm_lite.data.latents import Latents, prefetch, shards
from tools.benchmarks.harness import CannotRun, Clock, Row, count, elsewhere
from tools.benchmarks.harness import Times as Seconds

IMAGES, CLASSES, ROWS, SHAPE, BATCH = 1_281_167, 1000, 1024, (4, 32, 32), 256
READ = 24 * ROWS  # of the set that is read: 0.8 GB
GOAL = 6200.0
MEMORY = "torch included, pages of files that the system may take back at any time left out"


def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    if not hasattr(os, "posix_fadvise"):
        raise CannotRun("needs posix_fadvise to drop files from memory")
    with tempfile.TemporaryDirectory(dir=os.environ.get("CFM_LITE_BENCH_TMP")) as folder:
        whole, read = Path(folder) / "whole", Path(folder) / "read"
        made_set(whole, IMAGES, holes=True)
        times = Seconds(
            {"start": [elsewhere("loader", f"start({str(whole)!r})")[0] for _ in range(3)]}
        )
        least, middle = times.minima("start")["start"], times.medians("start")["start"]
        yield Row(
            f"loader, start with {IMAGES:,} images", middle, least, "<=", 2.0, unit=" s", repeats=3
        )
        memory = elsewhere("loader", f"start({str(whole)!r})")[1]
        yield count(
            "loader, resident memory after a hundred batches",
            memory / 1e9,
            goal=1.0,
            unit=" GB",
            note=MEMORY,
        )
        made_set(read, READ)
        for name in ("warm", "cold"):
            yield _rates(name, read, 3 if clock.quick else 7, 8 if clock.quick else 24)


def _rates(name: str, folder: Path, repeats: int, batches: int) -> Row:
    found = []
    for _ in range(repeats + (name == "warm")):
        if name == "cold":
            drop(folder)
        found.append(rate(folder, batches))
    rates, disk = zip(*found[-repeats:])  # the first warm round warms
    each = sum(disk) / repeats / batches / BATCH / 1e3
    note = (
        f"batch {BATCH}, one thread reads ahead, another copies; {each:.1f} kB an image from disk"
    )
    return Row(
        f"loader, {name}: images a second",
        median(rates),
        max(rates),
        ">=",
        GOAL,
        unit=" images/s",
        repeats=repeats,
        note=note,
    )


def rate(folder: Path, batches: int) -> tuple[float, int]:
    """(images a second of some batches, each copied as it would be to a device; bytes that came
    from the disk).
    """
    latents, before = (
        Latents(folder, check="sizes"),
        _from_disk(),
    )  # opened anew: pages that are mapped cannot be dropped
    source = prefetch(functools.partial(latents.batches, size=BATCH, seed=time.monotonic_ns()))
    since = time.perf_counter()
    for _ in range(batches):
        for x in next(source):
            x.clone()
    took, read = time.perf_counter() - since, _from_disk() - before
    source.close()  # pyright: ignore[reportAttributeAccessIssue]
    return batches * BATCH / took, read


def _from_disk() -> int:
    """Bytes that this process has read from a disk; 0 where the system does not say."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    (line,) = (line for line in counters.read_text().splitlines() if line.startswith("read_bytes"))
    return int(line.split()[1])


def start(folder: str) -> tuple[float, int]:
    """(seconds to open a set and have its first batch, bytes of this process in memory after a
    hundred).
    """
    since = time.perf_counter()
    source = Latents(folder).batches(size=BATCH)
    next(source)
    took = time.perf_counter() - since
    for _ in range(99):
        next(source)
    return took, _resident()


def _resident() -> int:
    """Bytes in memory now, less the pages of files that the system may take back at any time."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def drop(folder: Path) -> None:
    """Take the files' pages out of memory, so that the next read comes from the disk."""
    for path in folder.glob("*.npy"):
        with _opened(path) as number:
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDWR)
    try:
        yield number
    finally:
        os.close(number)


def made_set(folder: Path, images: int, holes: bool = False) -> None:
    """A finished set of latents of `images` images, its arrays random or, with `holes`, files that
    take no room.
    """
    folder.mkdir()
    generator, listed = np.random.default_rng(0), []
    block = generator.normal(size=(64, 2, 2, *SHAPE)).astype(np.float16)
    for number, first in enumerate(range(0, images, ROWS)):
        n, path = min(ROWS, images - first), shards.shard_path(folder, number)
        if holes:
            np.lib.format.open_memmap(path, "w+", np.float16, (n, 2, 2, *SHAPE))
        else:
            np.save(path, np.tile(np.roll(block, number, axis=0), (n // 64 + 1, 1, 1, 1, 1, 1))[:n])
        listed.append(
            {"file": path.name, "rows": n, "sha256": hashlib.sha256(path.name.encode()).hexdigest()}
        )
    parts = {
        "labels.npy": _npy(np.arange(images, dtype=np.int32) % CLASSES),
        "mean.npy": _npy(np.zeros(SHAPE, np.float32)),
        "keys.txt": "\n".join(
            f"n{i % CLASSES:08d}/n{i % CLASSES:08d}_{i}.JPEG" for i in range(images)
        ).encode(),
    }
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    classes = tuple(f"n{i:08d}" for i in range(CLASSES))
    plan = shards.Plan(
        "made", images, classes, 8 * SHAPE[1], SHAPE, "made", "made", 0.18215, 0.0, ROWS
    )
    index = {
        **plan.__dict__,
        "shards": listed,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
    }
    index = json.loads(json.dumps(index))
    shards.write(
        folder / shards.INDEX, json.dumps({**index, "self": shards._plan_hash(index)}).encode()
    )


def _npy(array: np.ndarray) -> bytes:
    return shards._npy(array)
