"""From a folder of images to latents on disk: decode, crop, encode both mirrors, shard by shard.

Rank r of n makes the shards r, r + n, ... Any process may be killed at any time and started again.
If two processes want the same shard, the second one waits. The process that writes the last shard
writes the index. Both mirrors are encoded, because the VAE of a flipped image is not the flipped
VAE of the image.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfm_lite._internal.checks import check_count
from cfm_lite._internal.places import expanded
from cfm_lite.data.images import ImageFile, ImageFolder, find, load, named
from cfm_lite.data.latents import shards
from cfm_lite.data.latents.codec import Codec
from cfm_lite.data.latents.shards import Plan
from cfm_lite.data.shared import alone
from cfm_lite.errors import ConfigError, DataError

__all__ = ["plan_of", "prepare"]

Kept = list[tuple[ImageFile, int]]  # with the size in bytes
Skipped = list[tuple[str, str]]


def plan_of(images: ImageFolder, codec: Codec, size: int, rows: int = 1024) -> Plan:
    """What the latents of these images will be. ConfigError for a size that the codec's factor does
    not divide.
    """
    size = check_count("size", size)
    rows = check_count("rows", rows)
    if size % codec.factor:
        near = max(1, round(size / codec.factor)) * codec.factor
        raise ConfigError(
            f"size is {size}; it must be a multiple of {codec.factor}, such as {near}."
        )
    told = ("\t".join([f"{file.label} {file.key}", *file.captions]) for file in images.files)
    side, scaling = size // codec.factor, codec.scaling
    return Plan(
        hashlib.sha256("\n".join(told).encode()).hexdigest(),
        len(images.files),
        images.classes,
        size,
        (codec.channels, side, side),
        codec.source,
        codec.fingerprint,
        scaling.scale,
        scaling.shift,
        rows,
    )


def prepare(
    images: ImageFolder,
    out: str | Path,
    codec: Codec,
    *,
    size: int = 256,
    rank: int = 0,
    world: int = 1,
    rows: int = 1024,
    batch: int = 32,
    workers: int = 4,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Write this rank's missing shards of `out`. Returns the index, or None while other ranks still
    work.

    `rows` images make a shard. Up to 1 % of the images may be unreadable: they are left out, and
    the index lists them. The next call tries them again, and makes a shard again if one of its own
    can be read then; one that was removed stays left out. Raises DataError if `out` holds other
    latents, if its images changed (`shards.check_sources` says what is compared), or if too many
    images cannot be read. Raises ConfigError for a wrong argument, and DiskFullError.
    """
    batch = check_count("batch", batch)
    workers = check_count("workers", workers)
    if not 0 <= rank < check_count("world", world):
        raise ConfigError(f"rank is {rank} of {world}; it must lie in [0, {world - 1}].")
    out = expanded(out)
    images, plan = _planned(images, out, lambda found: plan_of(found, codec, size, rows))
    key = shards.open_plan(out, asdict(plan))
    for number in range(plan.shards):
        _look_again(out, number, key, images.root, size)
    mine = list(range(rank, plan.shards, world))
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(
            total=sum(len(_files(images, plan, i)) for i in mine),
            desc="encode",
            unit="image",
            disable=not progress,
        ) as bar,
    ):
        for number in mine:
            files = _files(images, plan, number)
            with alone(out, number):
                if shards.is_done(out, number, key):
                    bar.update(len(files))
                else:
                    _write(out, number, key, *_encode(files, codec, plan, batch, pool, bar))
    if all(shards.facts_path(out, i).exists() for i in range(plan.shards)):
        for number in range(plan.shards):  # another process may have seen another folder
            shards.check_sources(shards.read_facts(out, number), images.root, out, shards.OTHER)
        said = {file.key: file.captions for file in images.files if file.captions}
        return shards.write_index(out, plan, said)
    return None


def _planned(
    images: ImageFolder, out: Path, plan: Callable[[ImageFolder], Plan]
) -> tuple[ImageFolder, Plan]:
    """The images and their plan. An image that `out` left out and that was removed since counts as
    there, and unreadable, where nothing else differs.
    """
    left, there = shards.left_out(out), {file.key for file in images.files}
    gone = [file for key in left if key not in there for file in _removed(key, images)]
    whole = replace(images, files=tuple(sorted((*images.files, *gone))))
    planned = plan(whole)
    if not gone or (len(left) <= planned.bearable and shards.is_planned(out, asdict(planned))):
        return whole, planned
    if len({file.label for file in images.files}) < len(images.classes):
        images = find(images.root)  # a class that is empty now counts for no other set
    return images, plan(images)


def _removed(key: str, images: ImageFolder) -> list[ImageFile]:
    """What an image that is not there any more was, if that can be told."""
    name = key.partition("/")[0]
    if name in images.classes:
        return [ImageFile(key, images.root / key, images.classes.index(name))]
    return [file for file in images.absent if file.key == key]


def _look_again(out: Path, number: int, key: str, root: Path, size: int) -> None:
    """DataError if a shard was made of other files. If it left out an image that can be read now,
    its facts are removed: whoever comes to that shard makes it again.
    """
    facts = shards.facts_of(out, number, key)
    if facts is None:
        return
    shards.check_sources(facts, root, out, shards.OTHER)
    if any(not isinstance(_load(root / name, size), DataError) for name, _ in facts.skipped):
        with alone(out, number):
            if shards.facts_of(out, number, key) == facts:  # no other process was faster
                shards.facts_path(out, number).unlink()


def _files(images: ImageFolder, plan: Plan, number: int) -> Sequence[ImageFile]:
    return images.files[number * plan.rows : (number + 1) * plan.rows]


def _write(
    out: Path, number: int, key: str, moments: np.ndarray, kept: Kept, skipped: Skipped
) -> None:
    """Write a shard of what `_encode` gave."""
    shards.write_shard(
        out,
        number,
        moments,
        [file.key for file, _ in kept],
        [file.label for file, _ in kept],
        skipped,
        key,
        [size for _, size in kept],
        kept[0][0].path if kept else None,
    )


def _encode(
    files: Sequence[ImageFile],
    codec: Codec,
    plan: Plan,
    batch: int,
    pool: ThreadPoolExecutor,
    bar: Any,
) -> tuple[np.ndarray, Kept, Skipped]:
    """Moments (n, 2, 2, C, h, w) float32 of the readable files, those files, and the others with
    the reason.
    """
    moments, kept, skipped = [np.empty((0, 2, 2, *plan.shape), np.float32)], [], []
    for part, loaded in _decoded(files, plan.size, batch, pool):
        good = []
        for file, found in zip(part, loaded):
            if isinstance(found, DataError):
                skipped.append((file.key, str(found)))
            else:
                kept.append((file, found[0]))
                good.append(found[1])
        if good:
            moments.append(both_mirrors(codec, torch.stack(good)).cpu().numpy())
        bar.update(len(part))
    return np.concatenate(moments), kept, skipped


def _decoded(
    files: Sequence[ImageFile], size: int, batch: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[Any, list[Any]]]:
    """(files, what `_load` gives of each), part by part. The next part is decoded in the
    background.
    """
    parts = [files[i : i + batch] for i in range(0, len(files), batch)]
    waiting = [pool.submit(_load, file.path, size) for file in parts[0]]
    for part, after in zip(parts, [*parts[1:], ()]):
        current, waiting = waiting, [pool.submit(_load, file.path, size) for file in after]
        yield part, [future.result() for future in current]


def _load(path: Path, size: int) -> tuple[int, Tensor] | DataError:
    """The size of the file in bytes and its pixels, or the error."""
    try:
        with named(path):
            return path.stat().st_size, load(path, size)
    except DataError as error:
        return error


def both_mirrors(codec: Codec, images: Tensor) -> Tensor:
    """Moments (B, 2 mirrors, 2, C, h, w) of uint8 images (B, 3, H, W): the image, then its mirror
    image.
    """
    return torch.stack([codec.moments(images), codec.moments(images.flip(-1))], 1)
