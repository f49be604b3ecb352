"""Prepared latents as training data: a picture's or its mirror image's.

    z = (mean + std * noise - shift) * scale

The order of the rows depends on (seed, position). Noise and mirrors are keyed by (seed, step, shard
of the batch), as all draws of a run are. So any number of ranks sees the same rows with the same
noise. Moments stay on disk, memory-mapped; only labels are read at the start.
"""

import contextlib
import json
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite._internal.places import expanded
from cfm_lite.data import images as image_files
from cfm_lite.data.batches import fitting, row_numbers
from cfm_lite.data.latents import shards
from cfm_lite.data.latents.captions import pick
from cfm_lite.data.latents.codec import Scaling
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import ConfigError, DataError

__all__ = ["Latents", "prefetch"]

# bytes; larger sets are hashed on request: 42 GB of ImageNet would take minutes
CHECKED_AT_ONCE = 2**30
T = TypeVar("T")


class Encoder(Protocol):
    """What makes features (B, L, D) of captions, as `models.text.ClipText` does."""

    length: int
    dim: int

    def __call__(self, captions: Sequence[str], /) -> Tensor: ...


class Latents(shards.Mapped):
    """The latents in a folder that `cfm-lite scale prepare` wrote.

    `shape` is (C, h, w) of one latent. `labels` (N,) int64 are in [0, num_classes - 1], and
    `classes` are their names. A set with captions has no classes; `text`, once it is set, makes
    features of captions. `mean` (C, h, w) is E[x1]. `scaling` is the codec's, and `index` holds the
    rest. `check="sizes"` or "hashes" chooses what is checked at once; the default checks
    hashes if the set is below 1 GiB. Raises DataError for latents that are unfinished, damaged or
    missing.
    """

    def __init__(self, folder: str | Path, *, check: str = "auto") -> None:
        check_choice("check", check, ("auto", "sizes", "hashes"))
        place = expanded(folder)
        index = shards.read_index(place)
        self.shape: tuple[int, int, int] = tuple(index["shape"])
        self.classes: tuple[str, ...] = tuple(index["classes"])
        self.num_classes, self.size = len(self.classes), int(index["size"])
        self.condition = "captions" if shards.CAPTIONS in index["files"] else "labels"
        self.text: Encoder | None = None
        self.scaling = Scaling(index["scale"], index["shift"])
        super().__init__(place, index, (2, 2, *self.shape), f"{shards.AGAIN} {place}")
        self.labels = torch.from_numpy(self._small("labels.npy").astype(np.int64))
        self.mean = torch.from_numpy(self._small("mean.npy"))
        if len(self.labels) != len(self) or (
            len(self)
            and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < max(1, self.num_classes)
        ):
            raise DataError(
                f"{self.folder / 'labels.npy'} does not fit the {len(self)} latents of "
                f"{self.num_classes} classes. Prepare again."
            )
        if check == "hashes" or (
            check == "auto" and sum(part.nbytes for part in self._maps) < CHECKED_AT_ONCE
        ):
            self.verify()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> str:
        """The hash of the index, and so of every byte of the set."""
        return str(self.index["self"])

    @cached_property
    def keys(self) -> list[str]:
        """The key of each row: the image's path below the image folder. It is read on first use."""
        path = self.folder / "keys.txt"
        shards.check_hash(path, self.index["files"][path.name])
        keys = path.read_text(encoding="utf-8").split("\n")
        if len(keys) != len(self) or any(map(_leads_out, keys)):
            raise DataError(
                f"{path} does not name {len(self)} images below their folder. Prepare again."
            )
        return keys

    @property
    def text_shape(self) -> tuple[int, ...]:
        """(L, D) of a caption's features; () without a text encoder."""
        return () if self.text is None else (self.text.length, self.text.dim)

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """The captions of each row. They are read on first use."""
        path = self.folder / shards.CAPTIONS
        shards.check_hash(path, self.index["files"][path.name])
        told = [tuple(json.loads(line)) for line in path.read_text("utf-8").split("\n")]
        if len(told) != len(self) or not all(told):
            raise DataError(f"{path} does not fit the {len(self)} latents. Prepare again.")
        return told

    def conditions(self, rows: Tensor, seed: int, step: int, shard: int) -> Tensor:
        """What the rows (B,) of one shard of a batch show: labels (B,), or the features (B, L, D)
        of one random caption each, keyed by (seed, step, shard).
        """
        if self.condition == "labels":
            return self.labels[rows]
        if self.text is None:
            raise ConfigError(
                f"the latents in {self.folder} have captions, and there is no text encoder for "
                "them; set `text`, such as ClipText()."
            )
        said = [self.captions[row] for row in rows.tolist()]
        return self.text(pick(said, keyed_generator("cpu", seed, step, shard, "captions")))

    def folder_of(self, images: str | Path) -> Path:
        """The folder below which the keys lie: `images`, or what a tar or train/ in it holds."""
        return image_files.layout(images) if self.classes else image_files.flat(images).root

    def _small(self, name: str) -> np.ndarray:
        shards.check_hash(self.folder / name, self.index["files"][name])
        return shards.parse_npy((self.folder / name).read_bytes(), self.folder / name)

    def moments(self, rows: Tensor, mirrored: Tensor) -> Tensor:
        """Moments (B, 2, C, h, w) float32 of the rows (B,); of the mirror image where `mirrored`
        (B,) is True.

        Raises DataError if a shard is missing or has changed since the set was opened.
        """
        out = np.empty((len(rows), 2, *self.shape), np.float16)
        mirrors = [int(mirror) for mirror in mirrored.tolist()]
        places = [(*place, mirror) for place, mirror in zip(self.places(rows), mirrors)]
        for number, row, mirror in places:
            shards.ask_for(self._maps[number], row, mirror)
        for i, (number, row, mirror) in enumerate(places):
            out[i] = self._maps[number][row, mirror]
        moments = torch.from_numpy(out).float()
        # a float32 sum of float16 numbers does not overflow, and costs a twentieth of isfinite
        if not math.isfinite(moments.sum().item()):
            bad = int((~torch.isfinite(moments.flatten(1)).all(1)).nonzero()[0])
            raise DataError(
                f"the latent of {self.keys[int(rows[bad])]!r} holds NaN or infinity: its shard "
                "changed. Prepare again."
            )
        return moments

    def draw(
        self, rows: Tensor, seed: int, step: int, shard: int, *, mirror: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) float32 of the rows (B,) of one shard of a batch, and which are
        mirrored (B,).

        Keyed by (seed, step, shard).
        """
        generator = keyed_generator("cpu", seed, step, shard, "latents")
        mirrored = torch.rand(len(rows), generator=generator, device="cpu", dtype=torch.float32) < (
            0.5 if mirror else 0.0
        )
        noise = torch.randn(
            len(rows), *self.shape, generator=generator, device="cpu", dtype=torch.float32
        )
        return self.scaling.draw(self.moments(rows, mirrored), noise), mirrored

    def batches(
        self,
        *,
        size: int,
        seed: int = 0,
        start: int = 0,
        shard: int = 32,
        rank: int = 0,
        world: int = 1,
        mirror: bool = True,
        images: str | Path | None = None,
        features: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Endless (x1, y) of this rank's part of global batches of `size` rows, from batch number
        `start` on; y is what `conditions` gives.

        Rank r of `world` holds the r-th part of each batch, in whole shards. A third tensor follows
        in two cases. `images` is the folder that the latents were made of: it holds their pixels
        (B, 3, size, size) uint8, mirrored alike. `features` is a function of rows (B,) and mirrored
        (B,): it holds the result. Raises ConfigError if a batch cannot be split so, and if it is
        larger than the set.
        """
        local = part_of(size, world, shard, len(self))
        if not 0 <= rank < world:
            raise ConfigError(f"rank is {rank}; it must lie in [0, {world - 1}].")
        third = features or (None if images is None else Pictures(self, Path(images)))
        for step, numbers in enumerate(
            row_numbers(len(self), size=size, seed=seed, start=start), start
        ):
            mine = numbers[rank * local : (rank + 1) * local]
            first = rank * local // shard
            z, mirrored, y = zip(
                *[
                    (
                        *self.draw(rows, seed, step, first + i, mirror=mirror),
                        # shard by shard, because rounding depends on how many are encoded at once
                        self.conditions(rows, seed, step, first + i),
                    )
                    for i, rows in enumerate(mine.split(shard))
                ]
            )
            batch = (torch.cat(z), torch.cat(y))
            yield batch if third is None else (*batch, third(mine, torch.cat(mirrored)))


class Pictures:
    """The images that latents were made of, found by key. A teacher needs them."""

    def __init__(self, latents: Latents, folder: Path, workers: int = 4) -> None:
        # absolute: the current folder may change between two batches
        self.latents, self.root = latents, latents.folder_of(folder).absolute()
        self.pool = ThreadPoolExecutor(workers)

    def __call__(self, rows: Tensor, mirrored: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) uint8. DataError names a missing image."""
        keys = self.latents.keys
        paths = [self.root / keys[row] for row in rows.tolist()]
        pixels = torch.stack(list(self.pool.map(self._load, paths)))
        return torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)

    def _load(self, path: Path) -> Tensor:
        made = self.latents.folder
        try:
            with shards.held(made):
                return image_files.load(path, self.latents.size)
        except DataError:
            if os.path.lexists(path):
                raise
        raise DataError(
            f"{path} is not there, and the latents in {made} were made of it. Give the folder that "
            "they were made of with --images, or fetch the image again."
        )


def _leads_out(key: str) -> bool:
    """Whether a key names something outside of its folder. A class may be called "cats.."."""
    return key.startswith("/") or (".." in key and ".." in key.split("/"))


def part_of(size: int, world: int, shard: int, most: int | None = None) -> int:
    """The number of rows of a global batch of `size` on one of `world` ranks.

    Raises ConfigError unless they are whole shards, and if the batch is larger than `most` rows.
    """
    size, shard = check_count("batch", size), check_count("shard", shard)
    if most is not None and size > most:
        why = f"the batch of {size} is larger than the data, which holds {most} images"
    elif world > 1 and size % (world * shard):
        why = (
            f"a batch of {size} cannot be dealt to {world} ranks in whole shards of {shard}: it "
            f"must be a multiple of {world * shard}"
        )
    else:
        return size // world
    hints = fitting(size, shard, ranks=world, most=most)
    hints += ["more images"] if most is not None else []
    raise ConfigError(f"{why}. Use {', or '.join(hints or ['fewer ranks'])}.")


def prefetch(items: Callable[[], Iterator[T]]) -> Iterator[T]:
    """The items of `items()`, made by a thread that stays up to two ahead. Its error is raised
    here.
    """
    ready: queue.Queue[Any] = queue.Queue(2)
    stopped = threading.Event()

    def hand_over(entry: tuple[Any, BaseException | None]) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(entry, timeout=0.1)

    def work() -> None:
        try:
            for item in items():
                hand_over((item, None))
                if stopped.is_set():
                    return
        except BaseException as error:  # handed over, not swallowed
            hand_over((None, error))

    thread = threading.Thread(target=work, daemon=True, name="latents")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()  # a process that ends while a thread of it computes is aborted
