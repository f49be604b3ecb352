"""Files that are whole or not there, and hashes that name what a file or a network holds."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = [
    "FULL",
    "fingerprint",
    "hash_of_file",
    "hash_of_json",
    "inside",
    "publish",
    "replacing",
]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what the system says where there is no room


def publish(content: bytes, path: Path) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, never half of either.

    Raises OSError, and leaves nothing behind then.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`publish` for what is written piece by piece: a file that takes the place of `path` at the
    end.
    """
    with inside(path.parent):
        # a name that nobody can guess; "x" opens none that is there, and follows no link
        work = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
        file = open(work, "xb")  # noqa: SIM115  before the try: one that is there is not ours
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(work, path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in `folder`, which is made with its parents. If the work fails, those that were made go
    again, unless something lies in them.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "new"
    >>> with suppress(ValueError), inside(place / "deep"):
    ...     raise ValueError("no room")
    >>> place.exists()
    False
    """
    made = list(takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # it is not empty, or was never made
            for place in made:
                place.rmdir()
        raise


def hash_of_file(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """The SHA-256 of `value` as JSON in which keys are sorted; `default` is json.dumps'."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor], start: str = "", *, shapes: bool = True) -> str:
    """The SHA-256 of named tensors, after the text `start`.

    `shapes` False leaves out each shape and dtype, as files of before them did.
    """
    digest = hashlib.sha256(start.encode())
    for name, x in sorted(tensors.items()):
        digest.update((f"{name} {tuple(x.shape)} {x.dtype}" if shapes else name).encode())
        # as bytes, because NumPy has no bfloat16
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
