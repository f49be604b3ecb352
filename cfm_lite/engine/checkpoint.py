"""Checkpoints that are whole or absent: a directory per step, hashed, written aside and renamed.

    run/checkpoints/step-00000500/
        weights.safetensors  optimizer.safetensors  state.json  MANIFEST.json

MANIFEST.json holds the SHA-256 of every other file and of itself, and is written last. The newest
whole checkpoint is found by reading and hashing; names, sizes and links are not trusted. Nothing is
unpickled. A save hashes each tensor while it writes it: nothing is read back, and no second copy is
held.
"""

import contextlib
import errno
import hashlib
import json
import os
import queue
import re
import shutil
import struct
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cfm_lite._internal.checks import check_count
from cfm_lite._internal.files import FULL, publish
from cfm_lite._internal.places import expanded, listed
from cfm_lite.errors import CheckpointCorruptError, CheckpointError, ConfigError, DiskFullError

__all__ = [
    "Checkpoint",
    "check_storable",
    "exists",
    "latest",
    "load",
    "once",
    "ordered",
    "save",
    "write_bytes",
]

FORMAT = 1
MANIFEST = "MANIFEST.json"
LARGE = 1 << 20  # bytes from which a second thread is worth its start
PIECE = 1 << 26  # bytes that are written and hashed at a time
Item = TypeVar("Item")
# how a .safetensors file calls the kinds of numbers
_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What one directory holds: tensors by name, those of the optimizer, and plain JSON values.

    >>> Checkpoint(Path("run/step-00000500"), 500, {"w": torch.zeros(2)}, {}, {}).step
    500
    """

    path: Path
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save(
    directory: str | Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 3,
) -> Path:
    """Write `directory`/step-N whole or not at all; its path.

    All but the newest `keep` valid checkpoints are removed. Raises DiskFullError (with the bytes
    needed and free) or CheckpointError; a failure leaves older checkpoints as they are.

    >>> import tempfile
    >>> path = save(tempfile.mkdtemp(), 500, {"w": torch.ones(2)}, {}, {"seed": 0})
    >>> path.name, sorted(file.name for file in path.iterdir())[:2]
    ('step-00000500', ['MANIFEST.json', 'optimizer.safetensors'])
    """
    keep = check_count("keep", keep)
    directory, every = expanded(directory), (*weights.values(), *optimizer.values())
    needed = sum(x.numel() * x.element_size() for x in every) + 1_000_000
    weights, tied = once(weights)
    state = {**state, "tied": tied} if tied else state
    final = _unused(directory, step)
    work = directory / f".tmp-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean(directory)
        if shutil.disk_usage(directory).free < needed:
            raise OSError(errno.ENOSPC, "no space left")
        work.mkdir(mode=0o700)
        _write_files(work, weights, optimizer, {**state, "step": step})
        # private while half made, then as open as the folder around it
        work.chmod(directory.stat().st_mode & 0o777)
        os.replace(work, final)
        _fsync(directory)
        _remember(final)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise explained(error, directory, needed) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _clean(directory)
    _prune(directory, keep)
    return final


def load(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read and verify one checkpoint directory.

    Raises CheckpointError if there is none, and CheckpointCorruptError that names the file in which
    a byte differs.

    >>> import tempfile
    >>> saved = load(save(tempfile.mkdtemp(), 500, {"w": torch.ones(2)}, {}, {"seed": 0}))
    >>> saved.weights, saved.state["seed"]
    ({'w': tensor([1., 1.])}, 0)
    """
    path = expanded(path)
    manifest = _read_manifest(path)
    blobs = {
        name: _read_verified(path / name, digest) for name, digest in manifest["files"].items()
    }
    try:
        weights = safetensors.torch.load(blobs["weights.safetensors"])
        optimizer = safetensors.torch.load(blobs["optimizer.safetensors"])
        state = json.loads(blobs["state.json"])
        step = int(state["step"])
        weights |= {name: weights[first] for name, first in state.get("tied", {}).items()}
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointCorruptError(
            f"{path} is not a whole checkpoint: {error!r}. Use an older one, or train again."
        ) from error
    _remember(path)
    weights, optimizer = (
        {k: v.to(device) for k, v in ordered(tensors).items()} for tensors in (weights, optimizer)
    )
    return Checkpoint(path, step, weights, optimizer, state)


def latest(directory: str | Path) -> Path:
    """The newest whole checkpoint under `directory`; a warning names newer ones that are damaged.

    Raises CheckpointError that lists what was found, and why none can be used.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> paths = [save(folder, step, {"w": torch.ones(2)}, {}, {}) for step in (500, 1000)]
    >>> latest(folder).name
    'step-00001000'
    """
    directory = expanded(directory)
    reasons: list[str] = []
    for path in _candidates(directory):
        try:
            verify(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(
                f"using {path}; newer ones are damaged: {'; '.join(reasons)}",
                UserWarning,
                stacklevel=2,
            )
        return path
    found = "; ".join(reasons) if reasons else "it holds no step-* directory"
    raise CheckpointError(
        f"no valid checkpoint under {directory}: {found}. Give another directory, or start a new "
        "run."
    )


def exists(directory: str | Path) -> bool:
    """Whether `directory` holds a checkpoint that was saved whole, even if it was damaged later.

    Raises CheckpointError if it cannot be listed.

    >>> import tempfile
    >>> exists(tempfile.mkdtemp())
    False
    """
    return next(_candidates(expanded(directory)), None) is not None


def verify(path: Path) -> None:
    """Every byte of `path` must be as its manifest says; else CheckpointCorruptError."""
    for name, digest in _read_manifest(path)["files"].items():
        _read_verified(path / name, digest)
    _remember(path)


def ordered(tensors: Mapping[str, Item]) -> dict[str, Item]:
    """The same entries by name: the one order in which tensors are saved, loaded and sharded.

    A file gives its entries in another order to each process, and ranks that exchange tensors need
    the same order.

    >>> ordered({"weight": 1, "bias": 2})
    {'bias': 2, 'weight': 1}
    """
    return {name: tensors[name] for name in sorted(tensors)}


def once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(each tensor under the first of its names, {another name: that one}).

    So a tied weight is stored once and read under both names.

    >>> w = torch.ones(2)
    >>> once({"head.weight": w, "embedding.weight": w})
    ({'embedding.weight': tensor([1., 1.])}, {'head.weight': 'embedding.weight'})
    """
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[Any, str] = {}
    for name, x in ordered(tensors).items():
        memory = x.device, x.untyped_storage().data_ptr(), x.storage_offset()
        place = (*memory, x.dtype, x.shape, x.stride()) if x.numel() else name
        if place in names:
            tied[name] = names[place]
        else:
            kept[name], names[place] = x, name
    return kept, tied


def check_storable(tensors: Mapping[str, Any]) -> None:
    """A checkpoint must be able to hold every entry of a state dict; else ConfigError.

    >>> check_storable({"w": torch.ones(2)})  # nothing to say
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ConfigError(
                f"the state dict holds {name}, a {type(x).__name__}; a checkpoint holds only "
                "tensors. Make it a buffer, or leave it out of the state dict."
            )
        if x.dtype not in _KINDS:
            raise ConfigError(
                f"{name} has dtype {x.dtype}, which a checkpoint cannot hold. Cast it, or register "
                "it with persistent=False."
            )


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old file or the new one, never half of it.

    Raises DiskFullError or CheckpointError if it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> write_bytes(path, b"whole")
    >>> path.read_bytes()
    b'whole'
    """
    try:
        publish(data, path)
        _fsync(path.parent)
    except OSError as error:
        raise explained(error, path.parent, len(data)) from error


def _write_files(
    work: Path,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    parts = {
        "weights.safetensors": _safetensors(weights),
        "optimizer.safetensors": _safetensors(optimizer),
        "state.json": [json.dumps(state, indent=1, sort_keys=True).encode()],
    }
    files = {name: _write(work / name, part) for name, part in parts.items()}
    body = {"format": FORMAT, "files": ordered(files)}
    text = json.dumps({**body, "self": _digest(_canonical(body))}, indent=1)
    _write(work / MANIFEST, [text.encode()])
    _fsync(work)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a .safetensors file: the header, then each tensor, one at a time on the host."""
    # wide numbers first, so that all are aligned
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in names:
        kind = _KINDS.get(tensors[name].dtype)
        if kind is None:
            raise CheckpointError(
                f"the tensor {name} has dtype {tensors[name].dtype}, which a checkpoint cannot "
                "hold. Convert it first."
            )
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write the parts into a new file, down to the disk; their SHA-256.

    A second thread hashes them meanwhile: with two cores it takes only the time of the slower one.
    """
    with open(path, "xb") as file, _hashing() as (hear, digest):
        for part in parts:
            for start in range(0, len(part), PIECE):
                piece = part[start : start + PIECE]
                hear(piece)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


@contextlib.contextmanager
def _hashing() -> Iterator[tuple[Callable[[bytes | memoryview], None], Any]]:
    """(a function that takes the next bytes, their SHA-256, which is complete after the block).

    Short pieces are hashed at once, long ones in a thread. Its queue is short, because a piece that
    waits is a copy in memory.
    """
    digest, pieces = hashlib.sha256(), queue.Queue[Any](maxsize=4)
    thread = threading.Thread(
        target=lambda: [digest.update(piece) for piece in iter(pieces.get, None)], daemon=True
    )

    def hear(piece: bytes | memoryview) -> None:
        if thread.ident is None:
            if len(piece) < LARGE:
                digest.update(piece)
                return
            thread.start()
        pieces.put(piece)

    try:
        yield hear, digest
    finally:
        if thread.ident is not None:
            pieces.put(None)
            thread.join()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explained(error: Exception, directory: Path, needed: int) -> CheckpointError | DiskFullError:
    """The error to raise for one of the system while a file is written."""
    said = "no space left", "file too large", "quota exceeded"
    full = getattr(error, "errno", None) in FULL or any(w in str(error).lower() for w in said)
    if full:
        free = shutil.disk_usage(directory).free if directory.exists() else 0
        return DiskFullError(
            f"{directory} needs {needed:,} bytes and has {free:,} free; nothing older was lost. "
            "Make room and resume."
        )
    return CheckpointError(
        f"cannot write under {directory}: {error}; nothing older was lost. Check the folder's "
        "permissions."
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
        body = {key: manifest[key] for key in ("format", "files")}
        whole = manifest["self"] == _digest(_canonical(body)) and isinstance(body["files"], dict)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {MANIFEST}. Give a step-* directory."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointCorruptError(
            f"{file} is damaged ({type(error).__name__}). Use an older checkpoint."
        ) from error
    if not whole:
        raise CheckpointCorruptError(
            f"{file} is damaged: its own hash differs. Use an older checkpoint."
        )
    outside = [name for name in body["files"] if "\0" in name or os.path.basename(name) != name]
    if outside:
        raise CheckpointCorruptError(
            f"{file} names {outside[0]!r:.200}, which is outside its checkpoint; it was not read."
        )
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {body['format']}; this cfm_lite reads format {FORMAT}. Use the "
            "release that wrote it."
        )
    return body


def _read_verified(file: Path, digest: str) -> bytes:
    if file.is_symlink():
        raise CheckpointCorruptError(f"{file} points outside its checkpoint; it was not read.")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointCorruptError(
            f"{file} cannot be read ({error.strerror}). Use an older checkpoint."
        ) from error
    if _digest(data) != digest:
        raise CheckpointCorruptError(
            f"{file} is damaged: its SHA-256 differs from the manifest's. Use an older checkpoint."
        )
    return data


def _order(path: Path) -> tuple[int, int] | None:
    """(step, repeat) of a checkpoint's name, as numbers; None for any other name."""
    match = re.fullmatch(r"step-(\d+)(?:-r(\d+))?", path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _candidates(directory: Path) -> Iterator[Path]:
    """The checkpoint directories, newest first; CheckpointError if they cannot be listed."""
    steps = listed(directory, "step-*", CheckpointError)
    found = [path for path in steps if path.is_dir() and _order(path)]
    yield from sorted(found, key=lambda path: _order(path) or (0, 0), reverse=True)


def _unused(directory: Path, step: int) -> Path:
    """step-N, or step-N-r1, ... if that step was saved before.

    So the old one stays until the new one is whole.
    """
    final, repeat = directory / f"step-{step:08d}", 0
    while final.exists():
        repeat += 1
        final = directory / f"step-{step:08d}-r{repeat}"
    return final


def _clean(directory: Path) -> None:
    for stale in directory.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
        if stale.is_file():
            stale.unlink(missing_ok=True)


# {checkpoint: stamps of its files} of those that this process wrote or verified: they need not be
# read again before older ones are removed
_KNOWN: dict[Path, dict[str, tuple[int, int, int]]] = {}


def _stamps(path: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and number of each file of a checkpoint: they change when a file does."""
    facts = ((file.name, file.stat()) for file in path.iterdir())
    return {name: (fact.st_size, fact.st_mtime_ns, fact.st_ino) for name, fact in facts}


def _remember(path: Path) -> None:
    with contextlib.suppress(OSError):
        _KNOWN[path.resolve()] = _stamps(path)


def _is_known(path: Path) -> bool:
    """Whether this process wrote or verified the checkpoint, and no file of it changed since."""
    with contextlib.suppress(OSError):
        return _KNOWN.get(path.resolve()) == _stamps(path)
    return False


def _prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` valid checkpoints; a failed removal is only a warning."""
    candidates, valid = list(_candidates(directory)), 0
    if len(candidates) <= keep:
        return
    for path in candidates:
        if valid >= keep:
            _KNOWN.pop(path.resolve(), None)
            try:
                shutil.rmtree(path)
            except OSError as error:
                warnings.warn(
                    f"cannot remove the old checkpoint {path}: {error}", UserWarning, stacklevel=2
                )
            continue
        try:
            if not _is_known(path):
                verify(path)
            valid += 1
        except CheckpointError:
            continue
