"""Tar archives of images, unpacked so that nothing lands outside its folder; and the 63 real
ImageNet samples.

Only files and folders are unpacked. Pictures need no links, and links can lead older Pythons out of
the folder. Python's `filter="data"` refuses names that leave the folder.

A tar inside the archive becomes a folder of the same name, under the same rules. ImageNet's train
set is packed so: a tar with one tar a class.

Everything is unpacked in a folder beside its place and moved there in one step, so a folder is
complete or absent. If a process is killed, the next one keeps the inner tars that were finished.
"""

import contextlib
import glob
import hashlib
import json
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from cfm_lite._internal.files import FULL
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.data.root import VARIABLE, cache_root, data_root, scratch
from cfm_lite.data.shared import in_turn
from cfm_lite.errors import DataError, DiskFullError

__all__ = ["SAMPLES", "is_archive", "is_hidden", "read_to_end", "samples", "unpack", "unpacked"]

SAMPLES = "imagenet-samples"
# bytes, or twice the archive's size if that is more: images hardly compress, bombs a thousandfold
LIMIT = 50 * 2**30
MEMBERS = 2_000_000  # ImageNet has 1.3 million
# names that Synology, macOS, Windows, QNAP and Linux add to folders by themselves
UNSEEN = frozenset(
    {"@eadir", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information"}
    | {"@recycle", "@recently-snapshot", "lost+found"}
)
# how archives of other kinds begin
OTHERS = {b"PK\x03\x04": "zip", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf'\x1c": "7z", b"Rar!": "rar"}
# what reading a damaged archive raises; ValueError: a null byte in a name
DAMAGED = (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.xz|txz|tar\.bz2|tbz2?)$", re.IGNORECASE)


def is_hidden(name: str) -> bool:
    """True for the name of a file or folder that is skipped, in folders of images and in tars.

    >>> is_hidden(".DS_Store"), is_hidden("@eaDir"), is_hidden("cat.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in UNSEEN


def is_archive(path: AnyPath) -> bool:
    """True for a file with the name of a tar archive.

    >>> is_archive("there is no such file.tar")
    False
    """
    return _TAR.search(Path(path).name) is not None and os.path.isfile(path)


def unpack(
    archive: AnyPath,
    folder: AnyPath,
    *,
    limit: int | None = None,
    members: int = MEMBERS,
) -> Path:
    """Unpack a tar archive into the new `folder`, and return it. An existing folder is left as it
    is.

    A tar inside is unpacked into a folder of its name, without a copy on disk. Raises DataError if
    the file is missing, damaged or no tar; if it holds a link, a device, or a name outside the
    folder; if it unpacks to more than `limit` bytes (LIMIT) or holds more than `members` members.
    Raises DiskFullError first if there is less room than the archive's size. Nothing half-unpacked
    stays behind.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp())
    >>> with tarfile.open(place / "photos.tar", "w") as tar:
    ...     tar.addfile(tarfile.TarInfo("cat.jpg"))
    >>> os.listdir(unpack(place / "photos.tar", place / "photos"))
    ['cat.jpg']
    """
    archive, folder = expanded(archive), expanded(folder)
    if folder.is_dir():
        return folder
    with _told(archive, folder):
        facts = os.stat(archive)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(folder.parent / f".tmp-{folder.name}.lock"):
            if not folder.is_dir():  # else another process was faster
                identity = f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}"
                limit = max(LIMIT, 2 * facts.st_size) if limit is None else limit
                _Work(archive, folder, identity).fill(facts.st_size, limit, members)
    return folder


@contextlib.contextmanager
def _told(archive: Path, folder: Path) -> Iterator[None]:
    """An archive that cannot be unpacked is one of our errors, which says why."""
    try:
        yield
    except FileNotFoundError:
        raise _absent(archive) from None
    except tarfile.FilterError as error:
        raise DataError(
            f"{archive} was not unpacked: {error}. Archives with such members are refused; fetch "
            "it from its source."
        ) from None
    except (*DAMAGED, OSError) as error:
        if _is_of_disk(error):
            kind = DiskFullError if error.errno in FULL else DataError
            raise kind(
                f"{archive} cannot be unpacked into {folder} ({error.strerror or error}). Make "
                "room, or choose another."
            ) from None
        with open(archive, "rb") as file:
            head = file.read(6)
        for start, kind in OTHERS.items():
            if head.startswith(start):
                raise DataError(
                    f"{archive} is a {kind} archive; a tar is read, plain or compressed with gzip, "
                    "bzip2 or xz. Unpack it, and give the folder."
                ) from None
        raise DataError(
            f"{archive} is not a whole tar archive ({error}). Fetch it again."
        ) from None


def _is_of_disk(error: Exception) -> TypeGuard[OSError]:
    """True for an error of the system. gzip and bzip2 raise an OSError without a number for damaged
    bytes.
    """
    return isinstance(error, OSError) and error.errno is not None


def _absent(archive: Path) -> DataError:
    return DataError(f"there is no file {archive}. Give the path of a tar archive on this machine.")


@dataclass
class _Budget:
    """What may still be unpacked, counted over the archive and all tars inside it."""

    archive: Path
    limit: int
    most: int
    total: int = 0
    count: int = 0

    def spend(self, member: tarfile.TarInfo, size: int) -> None:
        """Count one member that unpacks to `size` bytes. DataError for a refused one, before it is
        written.
        """
        self.total += size
        self.count += 1
        if not (member.isreg() or member.isdir()) or member.size < 0 or member.issparse():
            raise DataError(
                f"{self.archive} was not unpacked: {member.name!r:.200} is not a plain file or "
                "folder. Fetch it from its source."
            )
        if self.total > self.limit or self.count > self.most:
            raise DataError(
                f"{self.archive} unpacks to over {min(self.total, self.limit):,} bytes in "
                f"{self.count:,} files; the limits are "
                f"{self.limit:,} and {self.most:,}. Unpack it yourself if you trust it, and give "
                "the folder."
            )


class _Work:
    """An archive that is being unpacked beside `folder`. `done` holds the finished inner tars and
    their sizes.
    """

    def __init__(self, archive: Path, folder: Path, identity: str) -> None:
        self.archive, self.folder, self.identity = archive, folder, identity
        self.place = folder.parent / f".tmp-{folder.name}"
        self.content, self.part, self.log = (
            self.place / "content",
            self.place / "part",
            self.place / "done",
        )
        self.done: dict[str, int] = {}

    def fill(self, size: int, limit: int, members: int) -> None:
        """Unpack everything and move it into place.

        After an error nothing stays. After a stop the finished inner tars stay.
        """
        try:
            self._take_on()
            self._check_room(size)
            with tarfile.open(self.archive) as tar:
                self._extract(tar, self.content, _Budget(self.archive, limit, members), outer=True)
            os.replace(self.content, self.folder)
            shutil.rmtree(self.place)
        except Exception:
            shutil.rmtree(self.place, ignore_errors=True)
            raise
        except BaseException:  # stopped: the next process continues
            if not self.done:
                shutil.rmtree(self.place, ignore_errors=True)
            raise

    def _take_on(self) -> None:
        """Keep what an earlier process finished of the same archive, and remove everything else."""
        # the last line may be half-written
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1] if self.log.is_file() else []
        if lines[:1] == [json.dumps(self.identity)]:
            self.done = {
                name: size
                for name, size in map(json.loads, lines[1:])
                if (self.content / _TAR.sub("", name)).is_dir()
            }
            shutil.rmtree(self.part, ignore_errors=True)
        else:
            shutil.rmtree(self.place, ignore_errors=True)
            self.content.mkdir(parents=True)
            self.log.write_text(json.dumps(self.identity) + "\n", encoding="utf-8")

    def _check_room(self, size: int) -> None:
        free, needed = shutil.disk_usage(self.place).free, size - sum(self.done.values())
        if free < needed:
            raise DiskFullError(
                f"{self.archive} needs about {needed:,} bytes in {self.folder.parent} and {free:,} "
                "are free. Make room, or unpack it "
                "elsewhere, each inner tar into a folder of its name, and give that folder."
            )

    def _extract(self, tar: tarfile.TarFile, folder: Path, budget: _Budget, *, outer: bool) -> None:
        """Look at each member before it is written: a bad archive is refused early, and a large one
        is read once.
        """
        folder.mkdir(exist_ok=True)
        while (member := tar.next()) is not None:
            forget: Any = tar
            forget.members.clear()  # a kilobyte each
            inner = outer and member.isreg() and _is_tar(member.name)
            budget.spend(member, 0 if inner else member.size)
            if inner:
                self._extract_inner(tar, member, budget)
                continue
            if outer and {str(parent) for parent in Path(member.name).parents} & {
                _TAR.sub("", name) for name in self.done
            }:
                raise self._twice(member.name)
            tar.extract(member, folder, filter="data")
        read_to_end(tar)

    def _extract_inner(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, budget: _Budget
    ) -> None:
        name = os.path.normpath(tarfile.data_filter(member, str(self.content)).name)
        if name in self.done:
            budget.total += self.done[name]
            return
        folder = self.content / _TAR.sub("", name)
        if folder.exists():
            raise self._twice(name)
        before = budget.total
        try:
            with tarfile.open(fileobj=tar.extractfile(member)) as inner:
                self._extract(inner, self.part, budget, outer=False)
        except tarfile.FilterError:
            raise
        except (*DAMAGED, OSError) as error:
            if _is_of_disk(error):
                raise
            raise tarfile.ReadError(f"{member.name}: {error}") from None
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.part, folder)
        self.done[name] = budget.total - before
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, self.done[name]]) + "\n")

    def _twice(self, name: str) -> DataError:
        return DataError(
            f"{self.archive} was not unpacked: {name!r} is in it as a tar and once more. Fetch it "
            "from its source."
        )


def _is_tar(name: str) -> bool:
    return _TAR.search(name) is not None and not any(is_hidden(part) for part in Path(name).parts)


def read_to_end(tar: Any) -> None:
    """Read what follows the last member. tarfile.ReadError unless it is zeros.

    A damaged header looks like the end of the archive, and all images after it would be lost
    silently. A compressed archive compares its checksum only at its end.
    """
    tar.fileobj.seek(tar.offset)
    seen = 0
    while part := tar.fileobj.read(2**20):
        if part.strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {tar.offset:,} is damaged")
        seen += len(part)
    if seen < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {tar.offset:,} without the mark of an end")


def unpacked(archive: AnyPath) -> Path:
    """The folder in the cache with the content of `archive`, unpacked now if needed. DataError as
    in `unpack`.
    """
    archive = Path(archive)
    try:
        facts = archive.stat()
    except OSError:
        raise _absent(archive) from None
    path, version = (
        _short_hash(text)
        for text in (str(archive.resolve()), f"{facts.st_size}:{facts.st_mtime_ns}")
    )
    own = f"{_TAR.sub('', archive.name)}-{path}-"
    folder = cache_root() / SAMPLES / f"{own}{version}"
    if not folder.is_dir():  # a cache that may only be read is one all the same
        with scratch(folder.parent, f"what {archive.name} holds") as place:
            folder = unpack(archive, place / folder.name)
    for start in ("", ".tmp-"):  # what older versions of the same archive left
        for other in folder.parent.glob(f"{start}{glob.escape(own)}*"):
            if other != folder and not other.name.endswith(".lock"):
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def samples(root: AnyPath | None = None) -> Path:
    """The folder of the 63 real ImageNet images under the data root, unpacked into the cache.

    DataError if they are not there.
    """
    folder = data_root(root) / SAMPLES
    try:
        archives = sorted(
            folder / name
            for name in os.listdir(folder)
            if name.endswith(".tar") and not is_hidden(name)
        )
    except (FileNotFoundError, NotADirectoryError):
        archives = []
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror or error}). Make it readable, or set "
            f"{VARIABLE}."
        ) from None
    if not archives:
        raise DataError(
            f"there is no archive {folder}/*.tar. Give a folder of class folders with --images, or "
            f"set {VARIABLE}."
        )
    return unpacked(archives[0])
