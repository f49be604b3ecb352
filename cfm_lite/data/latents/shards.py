"""Latents on disk: hashed, memory-mapped shards of moments, and an index that is written last.

    LATENTS/  plan.json   shard-00000.npy  shard-00000.json  ...
              labels.npy  keys.txt  mean.npy  index.json
              and with captions captions.jsonl, left_out.txt

A shard is float16 (rows, 2 mirrors, 2 moments, C, h, w): per image the moments of the picture and
of its mirror image. Its .json holds keys, labels, what the images' files were, skipped images and
two SHA-256: of the .npy and of itself. The .json is written after the .npy, so a shard is whole or
absent. The plan says what the set will be, so no process can add shards of other keys, labels or of
another VAE; `check_sources` tells other files of the same names. A lock on each number keeps two
processes from making the same shard.
"""

import bisect
import contextlib
import hashlib
import io
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfm_lite._internal.files import FULL, hash_of_file, hash_of_json, publish
from cfm_lite.data.images import REMEDY, named
from cfm_lite.data.shared import Watch, alone, forget_halves
from cfm_lite.errors import CFMError, DataError, DiskFullError

__all__ = [
    "INDEX",
    "Mapped",
    "Plan",
    "ShardFacts",
    "ask_for",
    "check_hash",
    "check_sources",
    "facts_of",
    "facts_path",
    "is_done",
    "is_planned",
    "left_out",
    "map_shard",
    "npy",
    "open_plan",
    "parse_npy",
    "read_facts",
    "read_index",
    "read_json",
    "write",
    "write_index",
    "write_shard",
]

FORMAT = 1
INDEX = "index.json"
OTHER = "Choose another --out, or remove the folder."
CAPTIONS = "captions.jsonl"  # a line for each row: a list of its captions
PLAN = "plan.json"
AGAIN = "Make it again: cfm-lite scale prepare --images DIR --out"


@dataclass(frozen=True)
class Plan:
    """What a set of latents is made of. Processes with different plans never write into one
    folder.
    """

    images: str  # SHA-256 of keys and labels
    count: int
    classes: tuple[str, ...]
    size: int  # pixels a side
    shape: tuple[int, int, int]  # of one latent
    vae: str
    fingerprint: str
    scale: float
    shift: float
    rows: int = 1024  # images per shard
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.rows)

    @property
    def bearable(self) -> int:
        """How many images may be left out."""
        return max(3, self.count // 100)


@dataclass(frozen=True)
class ShardFacts:
    """What shard-N.json says of shard-N.npy."""

    sha256: str
    plan: str
    keys: list[str]
    labels: list[int]
    skipped: list[tuple[str, str]]  # key and reason
    # of the files that `keys` name; older facts hold neither
    sizes: list[int] = field(default_factory=list)  # in bytes
    first: str = ""  # SHA-256 of the first


def open_plan(folder: Path, plan: Mapping[str, Any], what: str = "latents") -> str:
    """Write plan.json, or check that the existing one is the same. Returns its hash.

    DataError lists what differs.
    """
    path = folder / PLAN
    mine = json.loads(json.dumps(plan))
    with alone(folder, "plan"):
        if not path.exists():
            write(path, json.dumps(mine, indent=1).encode())
        theirs = read_json(path, folder)
    differs = [
        f"{name}: there {_short(theirs.get(name))}, now {_short(mine[name])}"
        for name in mine
        if theirs.get(name) != mine[name]
    ]
    if differs:
        raise DataError(f"{folder} holds other {what} ({'; '.join(differs)}). {OTHER}")
    return hash_of_json(mine)


def is_planned(folder: Path, plan: Mapping[str, Any]) -> bool:
    """True if plan.json is there and says the same."""
    try:
        return read_json(folder / PLAN, folder) == json.loads(json.dumps(plan))
    except CFMError:
        return False


def write_sealed(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Write JSON that ends with its own hash, "self"."""
    body = json.loads(json.dumps(content))
    write(path, json.dumps({**body, "self": hash_of_json(body)}, indent=indent).encode())


def check_sealed(path: Path, content: Mapping[str, Any], again: str) -> None:
    """DataError unless the JSON in `path` is as `write_sealed` wrote it."""
    body = {name: value for name, value in content.items() if name != "self"}
    if content.get("self") != hash_of_json(body):
        raise DataError(f"{path} is damaged: its own hash differs. {again}")


class Mapped:
    """The hashed shards that an index names, memory-mapped; `dims` are those of a row.

    `again` says in an error how they are made again.
    """

    def __init__(
        self, folder: Path, index: dict[str, Any], dims: tuple[int, ...], again: str
    ) -> None:
        # absolute: the current folder may change between two batches
        folder = folder.absolute()
        self.folder, self.index = folder, index
        self._ends = list(accumulate(int(shard["rows"]) for shard in index["shards"]))
        files = [folder / shard["file"] for shard in index["shards"]]
        if files != [shard_path(folder, i) for i in range(len(files))]:
            raise DataError(
                f"{folder / INDEX} names files that are not its shards; nothing else is read. "
                f"{again}"
            )
        self._watch = Watch(files, self._verify)
        self._maps = [
            map_shard(path, dims, again, int(shard["rows"]))
            for path, shard in zip(files, index["shards"])
        ]

    def verify(self) -> None:
        """Hash every shard. DataError names the first that differs."""
        for number in range(len(self._maps)):
            self._verify(number)

    def _verify(self, number: int) -> None:
        shard = self.index["shards"][number]
        check_hash(self.folder / shard["file"], shard["sha256"])

    def rows_of(self, number: int) -> range:
        """The numbers of the rows in one shard."""
        return range(self._ends[number] - len(self._maps[number]), self._ends[number])

    def places(self, rows: Tensor) -> list[tuple[int, int]]:
        """(number of its shard, number in it) of each row. DataError for a shard that changed."""
        numbers = [bisect.bisect_right(self._ends, row) for row in rows.tolist()]
        self._watch.check(set(numbers))
        return [(n, row - self.rows_of(n).start) for n, row in zip(numbers, rows.tolist())]


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 40 else f"{str(value)[:16]}..."


def shard_path(folder: Path, number: int) -> Path:
    """The array of shard `number`. Its facts are beside it as .json."""
    return folder / f"shard-{number:05d}.npy"


def facts_path(folder: Path, number: int) -> Path:
    """The facts of shard `number`."""
    return shard_path(folder, number).with_suffix(".json")


def write_shard(
    folder: Path,
    number: int,
    moments: np.ndarray,
    keys: list[str],
    labels: list[int],
    skipped: list[tuple[str, str]],
    plan: str,
    sizes: list[int],
    first: Path | None,
) -> ShardFacts:
    """Write moments (n, 2, 2, C, h, w), then the facts about them; `sizes` are those of the images'
    files in bytes, and `first` is the first file.

    Raises DataError for NaN, infinity or a standard deviation of 0, and DiskFullError.
    """
    path = shard_path(folder, number)
    forget_halves(folder, path.name, facts_path(folder, number).name)
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        stored = moments.astype(np.float16)
    wrong = ~np.isfinite(stored).all(axis=(1, 2, 3, 4, 5)) | (moments[:, :, 1] <= 0).any(
        axis=(1, 2, 3, 4)
    )
    if wrong.any():
        raise DataError(
            "the VAE gives NaN, numbers beyond float16, or a std of 0 for "
            f"{keys[int(wrong.argmax())]!r}. Use another VAE."
        )
    content = npy(stored)
    sha256 = hashlib.sha256(content).hexdigest()
    begin = "" if first is None else _hash_of_source(first)
    facts = ShardFacts(sha256, plan, keys, labels, skipped, sizes, begin)
    write(path, content)
    write_sealed(facts_path(folder, number), asdict(facts))
    return facts


def is_done(folder: Path, number: int, plan: str) -> bool:
    """True if shard `number` of this plan is whole: its facts exist, and its bytes have their
    hash.
    """
    facts = facts_of(folder, number, plan)
    try:
        return facts is not None and hash_of_file(shard_path(folder, number)) == facts.sha256
    except OSError:
        return False


def facts_of(folder: Path, number: int, plan: str) -> ShardFacts | None:
    """The facts of shard `number` of this plan; None if they are missing or damaged."""
    try:
        facts = read_facts(folder, number)
    except CFMError:
        return None
    return facts if facts.plan == plan else None


def left_out(folder: Path) -> list[str]:
    """The keys of the images that the latents in `folder`, finished or not, left out."""
    found: list[tuple[str, str]] = []
    for path in sorted(folder.glob("shard-*.json")):
        with contextlib.suppress(CFMError):  # what is damaged is made again
            found += _facts_in(path).skipped
    with contextlib.suppress(CFMError):  # a shard that is being made again has no facts
        found += read_index(folder)["skipped"]
    return sorted({key for key, _ in found})


def check_sources(facts: ShardFacts, root: Path, made: Path, remedy: str) -> None:
    """DataError unless the images below `root` are those that a shard of the latents `made` was
    made of, as far as sizes tell.

    Compared are the size of every file, and the bytes of the shard's first one. So another image of
    the same size is found where the whole folder is another, and not where it is one of many. Times
    are not compared, because a copy has new ones. Facts without sizes pass.
    """
    with held(made):
        for key, size in zip(facts.keys, facts.sizes):
            path = os.path.join(root, key)  # a third of the time of Path's
            with named(path):
                found = os.stat(path).st_size
            if found != size:
                raise DataError(
                    f"{path} has {found:,} bytes; {made} was made of a file of {size:,}. {remedy}"
                )
        if facts.first and (sha256 := _hash_of_source(root / facts.keys[0])) != facts.first:
            raise DataError(
                f"{root / facts.keys[0]} has the SHA-256 {sha256[:16]}; {made} was made of a file "
                f"of as many bytes with {facts.first[:16]}. {remedy}"
            )


@contextlib.contextmanager
def held(made: Path) -> Iterator[None]:
    """Say what helps where an image that the latents `made` hold cannot be read.

    To remove it is half a remedy: without it the folder is that of another set.
    """
    try:
        yield
    except DataError as error:
        if not (told := str(error)).endswith(REMEDY):
            raise
        raise DataError(
            f"{told.removesuffix(REMEDY)}{made} holds it: fetch the same file again, or remove it "
            "and prepare latents with another --out."
        ) from None


def _hash_of_source(path: Path) -> str:
    with named(path):
        return hash_of_file(path)


def read_facts(folder: Path, number: int) -> ShardFacts:
    """The facts of one shard. DataError if they are missing or damaged."""
    return _facts_in(facts_path(folder, number))


def _facts_in(path: Path) -> ShardFacts:
    body = read_json(path, path.parent)
    check_sealed(path, body, f"{AGAIN} {path.parent}")
    return ShardFacts(**{name: value for name, value in body.items() if name != "self"})


def map_shard(path: Path, dims: tuple[int, ...], again: str, rows: int | None = None) -> np.ndarray:
    """A shard as a read-only memory map; DataError unless it is float16 (rows, *dims)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header fails in every way that Python's own parser can
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read ({reason}). {again}") from None
    count = len(array) if array.ndim and rows is None else rows
    # an empty shard of features does not know its dims
    if (
        array.dtype != np.float16
        or array.shape[:1] != (count,)
        or (count and array.shape[1:] != dims)
    ):
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}; float16 {(count, *dims)} was written. "
            f"{again}"
        )
    if hasattr(mmap, "MADV_RANDOM") and isinstance(array.base, mmap.mmap):
        # without it the system reads neighbouring pages too: 40 times as many bytes
        array.base.madvise(mmap.MADV_RANDOM)
    return array


def parse_npy(content: bytes, path: Path) -> np.ndarray:
    """The array in the bytes of a .npy file. DataError names `path` if they are damaged."""
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header fails in every way that Python's own parser can
        raise DataError(
            f"{path} holds no array of numbers ({type(error).__name__}). Make it again."
        ) from None


def ask_for(array: np.ndarray, row: int, mirror: int) -> None:
    """Tell the system that this row will be read soon. The reads of a batch then overlap."""
    if not hasattr(mmap, "MADV_WILLNEED") or not isinstance(array.base, mmap.mmap):
        return
    size = array.strides[1]
    offset: Any = getattr(array, "offset")  # noqa: B009 (a memmap's, which pyright does not know)
    start = offset % mmap.ALLOCATIONGRANULARITY + (2 * row + mirror) * size
    page = start - start % mmap.PAGESIZE
    array.base.madvise(mmap.MADV_WILLNEED, page, start + size - page)


def write_index(
    folder: Path, plan: Plan, captions: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """Check every shard, then write labels, keys and mean, and the index last. Returns the index.

    `captions` are those of each key, for a set that has captions in place of classes.
    Raises DataError for a shard that is missing or damaged. Raises DataError, with examples, if
    more than 1 % of the images (and more than three) could not be read.
    """
    with alone(folder, "index"):
        return _write_index(folder, plan, captions or {})


def _write_index(folder: Path, plan: Plan, captions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    key = hash_of_json(json.loads(json.dumps(asdict(plan))))
    facts = [read_facts(folder, number) for number in range(plan.shards)]
    skipped = [entry for shard in facts for entry in shard.skipped]
    if len(skipped) > plan.bearable:
        # to remove one here makes another set
        some = "; ".join(
            f"{name}: {reason.removesuffix(REMEDY).rstrip(' .')}" for name, reason in skipped[:3]
        )
        raise DataError(
            f"{len(skipped)} of {plan.count} images cannot be read, which is too many to leave "
            f"out: {some}. Fetch them again."
        )
    mean, square, rows = _statistics(folder, plan, facts, key)
    channels = mean.mean((1, 2))
    spread = (square.mean((1, 2)) - channels.square()).clamp(min=0).sqrt()
    labels = np.array([label for shard in facts for label in shard.labels], np.int32)
    parts = {
        "labels.npy": npy(labels),
        "keys.txt": "\n".join(name for shard in facts for name in shard.keys).encode(),
        "mean.npy": npy(mean.float().numpy()),
    }
    if captions:
        told = [json.dumps(captions[name]) for shard in facts for name in shard.keys]
        parts[CAPTIONS] = "\n".join(told).encode()
    forget_halves(folder, PLAN, INDEX, *parts)
    for name, content in parts.items():
        write(folder / name, content)
    index = {
        **asdict(plan),
        "rows_total": rows,
        "channel_mean": channels.tolist(),
        "channel_std": spread.tolist(),
        "skipped": skipped,
        "shards": [
            entry(folder, i, len(shard.labels), shard.sha256) for i, shard in enumerate(facts)
        ],
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
    }
    write_sealed(folder / INDEX, index, indent=1)
    return read_index(folder)


def entry(folder: Path, number: int, rows: int, sha256: str) -> dict[str, Any]:
    """What an index says of one shard."""
    return {"file": shard_path(folder, number).name, "rows": rows, "sha256": sha256}


def _statistics(
    folder: Path, plan: Plan, facts: list[ShardFacts], key: str
) -> tuple[Tensor, Tensor, int]:
    """Mean and mean square (C, h, w) of the scaled latents over images and mirrors, and the number
    of images.

    E[z^2] counts the variance of the drawn noise. The hash of every shard is checked on the way.
    """
    total, square, rows = (
        torch.zeros(plan.shape, dtype=torch.float64, device="cpu"),
        torch.zeros(plan.shape, dtype=torch.float64, device="cpu"),
        0,
    )
    for number, shard in enumerate(facts):
        path = shard_path(folder, number)
        if shard.plan != key:
            raise DataError(f"{path} belongs to other latents. Remove it and prepare again.")
        check_hash(path, shard.sha256)
        # (n, 2, 2, C, h, w)
        moments = torch.from_numpy(
            np.array(map_shard(path, (2, 2, *plan.shape), f"{AGAIN} {folder}"))
        ).double()
        mean = (moments[:, :, 0] - plan.shift) * plan.scale
        total += mean.sum((0, 1))
        square += (mean.square() + (moments[:, :, 1] * plan.scale).square()).sum((0, 1))
        rows += len(moments)
    if not rows:
        raise DataError(f"{folder} would hold no image at all: none could be read. Check --images.")
    return total / (2 * rows), square / (2 * rows), rows


def check_hash(path: Path, sha256: str) -> None:
    """Raise DataError, with both hashes, unless the file has that SHA-256."""
    try:
        found = hash_of_file(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). {AGAIN} {path.parent}"
        ) from None
    if found != sha256:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {found[:16]}, {sha256[:16]} was written. Remove it "
            "and prepare again."
        )


def read_index(folder: Path) -> dict[str, Any]:
    """index.json, checked against its own hash. DataError if the set is unfinished, damaged or of
    another format.
    """
    index = read_json(folder / INDEX, folder)
    if index.get("format") != FORMAT:
        raise DataError(
            f"{folder} has format {index.get('format')!r}; this cfm_lite reads {FORMAT}. {AGAIN} "
            f"{folder}"
        )
    check_sealed(folder / INDEX, index, f"{AGAIN} {folder}")
    if not {*Plan.__annotations__, "shards", "files"} <= index.keys():
        raise DataError(
            f"{folder / INDEX} is damaged: it does not say all that it should. {AGAIN} {folder}"
        )
    return index


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """The object in a JSON file of a set of latents. DataError if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if (folder / PLAN).exists():
            raise DataError(
                f"{path} is not there: the latents in {folder} are not finished. Run the same "
                "cfm-lite scale prepare again."
            ) from None
        raise DataError(
            f"{folder} holds no latents: there is no {path.name}. {AGAIN} {folder}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}). {_remedy(path, folder)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no object. {_remedy(path, folder)}")
    return content


def _remedy(path: Path, folder: Path) -> str:
    if path.name == PLAN:  # shards of the same plan are kept
        return "Remove it, and run the same cfm-lite scale prepare again."
    return f"{AGAIN} {folder}"


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file in one step. Raises DiskFullError or DataError; the older file stays then."""
    try:
        publish(content, path)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(
                f"no room for {len(content):,} bytes of {path}; what was written stays. Make room "
                "and run again."
            ) from None
        raise DataError(
            f"cannot write {path} ({error.strerror or error}). Choose another --out."
        ) from None
