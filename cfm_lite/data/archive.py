"""Tar archives of images, unpacked so that nothing can land outside its folder; and the 63 real ImageNet samples.

Only files and folders are unpacked: pictures need no links, and older Pythons can be led out of the folder by them. Python's
`filter="data"` refuses names that leave the folder. The whole archive is unpacked beside its place and moved there in one step:
a folder is complete or absent.
"""

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

from cfm_lite.data.root import VARIABLE, cache_root, data_root
from cfm_lite.errors import DataError

__all__ = ["SAMPLES", "read_to_end", "samples", "unpack", "unpacked"]

SAMPLES = "imagenet-samples"
LIMIT = 50 * 2**30  # bytes; more than any sample archive, less than a disk
MEMBERS = 2_000_000  # ImageNet has 1.3 million; each costs a kilobyte of memory


def unpack(archive: str | os.PathLike[str], folder: str | os.PathLike[str], *, limit: int = LIMIT, members: int = MEMBERS) -> Path:
    """Unpack a tar archive into the new `folder`, and return it; a folder that is there already is left as it is.

    Raises DataError for a file that is missing, no tar, damaged, unpacks to over `limit` bytes or holds over `members` members,
    a link or a device among them, or one that would land outside the folder. Nothing half-unpacked stays behind.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as work:
            _extract(archive, Path(work) / "content", limit, members)
            os.replace(Path(work) / "content", folder)
    except FileNotFoundError:
        raise DataError(f"there is no file {archive}. Give the path of a tar archive on this machine.") from None
    except tarfile.FilterError as error:
        raise DataError(f"{archive} was not unpacked: {error}. Archives with such members are refused; fetch it from its source.") from None
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:  # ValueError: a null byte in a name
        raise DataError(f"{archive} is no whole tar archive ({error}). Fetch it again.") from None
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise DataError(f"{archive} cannot be unpacked into {folder} ({error.strerror or error}). Make room, or choose another.") from None
    return folder


def _extract(archive: Path, content: Path, limit: int, most: int) -> None:
    with tarfile.open(archive) as tar:
        members = _checked(tar, archive, limit, most)
        content.mkdir()
        tar.extractall(content, members, filter="data")
        read_to_end(tar)


def read_to_end(tar: Any) -> None:
    """Read what follows the last member: only at the end of a compressed archive is its checksum compared."""
    while tar.fileobj.read(2**20):
        pass


def _checked(tar: tarfile.TarFile, archive: Path, limit: int, most: int) -> list[tarfile.TarInfo]:
    """The members, read one by one, so that an archive that is too large is left early."""
    members, total = [], 0
    for member in tar:
        members.append(member)
        total += member.size
        if not (member.isreg() or member.isdir()) or member.size < 0:
            raise DataError(f"{archive} was not unpacked: {member.name!r:.200} is no plain file or folder. Fetch it from its source.")
        if total > limit or len(members) > most:
            raise DataError(
                f"{archive} unpacks to over {min(total, limit):,} bytes in {len(members):,} files; the limits are {limit:,} and {most:,}. "
                "Unpack it yourself if you trust it."
            )
    return members


def unpacked(archive: str | os.PathLike[str]) -> Path:
    """The folder in the cache that holds the content of `archive`, unpacked now if it is not there; DataError as in `unpack`."""
    archive = Path(archive)
    try:
        facts = archive.stat()
    except OSError:
        raise DataError(f"there is no file {archive}. Give the path of a tar archive on this machine.") from None
    key = hashlib.sha256(f"{archive.resolve()}:{facts.st_size}:{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = unpack(archive, cache_root() / SAMPLES / f"{archive.stem}-{key}")
    _forget_others(folder, archive.stem)
    return folder


def _forget_others(folder: Path, stem: str) -> None:
    """Remove what older versions of the same archive left in the cache."""
    for other in folder.parent.glob(f"{stem}-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def samples(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the 63 real ImageNet images under the data root, unpacked into the cache; DataError where there are none."""
    folder = data_root(root) / SAMPLES
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        raise DataError(f"there is no archive {folder}/*.tar. Give a folder of class folders with --images, or set {VARIABLE}.")
    return unpacked(archives[0])
