"""CIFAR-10: 50,000 + 10,000 colour photographs of 32x32 pixels in ten classes, under two names.

"cifar10" is the original. "cifar10-jpeg75" holds the same pictures as JPEG of quality 75, in a tar
of class folders. The two are never mixed: results name the one that they were made with. With "-16"
at the end of the name, pictures have 16x16 pixels, each the mean of 2x2. x1 = pixel / 127.5 - 1 in
[-1, 1]. Rows come in one fixed order that mixes the classes. The official archive is read in its
binary form, because the Python form is a pickle. Reference: Krizhevsky 2009, "Learning multiple
layers of features from tiny images".
"""

import functools
import hashlib
import os
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite._internal.files import inside
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.places import AnyPath
from cfm_lite.data import images
from cfm_lite.data import root as files
from cfm_lite.data.archive import is_hidden, read_to_end
from cfm_lite.errors import DataError

__all__ = ["CLASSES", "NAMES", "available", "download", "load"]

HALF = "-16"  # the end of a name whose pictures have half the side
NAMES = ("cifar10", "cifar10-jpeg75", f"cifar10{HALF}", f"cifar10-jpeg75{HALF}")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {"train": 50_000, "test": 10_000}
ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar10-jpeg75": "cifar10-imagefolder.tar.gz"}
URL, MD5 = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
)
_RECORD = 1 + 3 * 32 * 32
_MEMBERS, _LIMIT = 70_000, 2**30


def load(
    split: str = "train",
    *,
    name: str = "cifar10",
    limit: int | None = None,
    root: AnyPath | None = None,
) -> tuple[Tensor, Tensor]:
    """The first `limit` images (n, 3, 32, 32) float32 in [-1, 1] and labels (n,) int64 in [0, 9].

    Under a name that ends in "-16" the images are (n, 3, 16, 16).
    `split` is "train" or "test", `name` one of NAMES. `root` overrides CFM_LITE_DATA. Raises
    ConfigError for an unknown split, name or limit, and DataError for an archive that is missing or
    damaged, or that holds anything but the pictures.
    """
    check_choice("split", split, SPLITS)
    check_choice("name", name, NAMES)
    if limit is not None:
        limit = check_count("limit", limit)
    path, source = _path(name, root), name.removesuffix(HALF)
    pixels, labels = _read(source, path, split, *_stamp(source, path))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0), device="cpu")[
        :limit
    ].numpy()
    x = torch.from_numpy(pixels[order].astype(np.float32)).div_(127.5).sub_(1)
    x = F.avg_pool2d(x, 2) if name.endswith(HALF) else x
    return x, torch.from_numpy(labels[order].astype(np.int64))


def available(name: str = "cifar10", root: AnyPath | None = None) -> bool:
    """True if the archive of `name` is under the data root. `load` checks what it contains.

    >>> available(root="a folder without files")
    False
    """
    return _path(name, root).is_file()


def download(root: AnyPath | None = None) -> Path:
    """Download the original archive through torchvision, check its MD5, and return its path.

    Raises DataError if the download fails or brings another file. It leaves no half-written file
    behind.
    """
    path = _path("cifar10", root)
    if path.is_file() and _md5(path) == MD5:
        return path
    with (
        files.fetching("cifar10", f"{path.name} into {path.parent}"),
        inside(path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-") as work,
    ):
        fetch = optional("torchvision.datasets.utils", "imagenet").download_url
        fetch(URL, work, path.name, MD5)
        os.replace(Path(work) / path.name, path)
    return path


def _path(name: str, root: AnyPath | None) -> Path:
    return files.data_root(root) / "cifar10" / ARCHIVES[name.removesuffix(HALF)]


def _stamp(name: str, path: Path) -> tuple[int, int]:
    """Size and time of the archive, so that another file under the same path is read again."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        if name == "cifar10":
            raise files.missing("cifar10", path) from None
        raise DataError(
            f"{name}: there is no file {path}, and nothing downloads it. Put it there, set "
            f"{files.VARIABLE} to the folder that holds "
            "cifar10/, or take the original pictures, called cifar10."
        ) from None
    except OSError as error:
        raise files.damaged("cifar10", path, f"cannot be read ({error.strerror})") from None
    return facts.st_size, facts.st_mtime_ns


@functools.lru_cache(maxsize=2)
def _read(
    name: str, path: Path, split: str, size: int, changed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The uint8 pictures (n, 3, 32, 32) and labels (n,) of one split.

    Raises DataError unless the archive is whole.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            pixels, labels = (
                _read_binary(tar, path, split)
                if name == "cifar10"
                else _read_folders(tar, path, split)
            )
            read_to_end(tar)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise files.damaged(
            "cifar10", path, f"is not a whole archive ({error or type(error).__name__})"
        ) from None
    counts = np.bincount(labels, minlength=10)
    if len(labels) != SPLITS[split] or counts.tolist() != [SPLITS[split] // 10] * 10:
        raise files.damaged(
            "cifar10",
            path,
            f"holds {len(labels)} pictures of {split} ({counts.tolist()} by class), not "
            f"{SPLITS[split]}",
        )
    return pixels, labels


def _read_binary(tar: tarfile.TarFile, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A record is the label in one byte, then the red, green and blue planes in 3,072 bytes."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    found = {
        PurePosixPath(member.name).name: _content(tar, member, path)
        for member in _members(tar, path)
        if member.name.endswith(".bin")
    }
    missing = [name for name in names if name not in found]
    if missing:
        raise files.damaged("cifar10", path, f"has no {missing[0]}")
    records = np.frombuffer(b"".join(found[name] for name in names), np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), np.minimum(records[:, 0], 10)


def _read_folders(tar: tarfile.TarFile, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures SPLIT/CLASS/*.jpg in the order of their names."""
    pictures: dict[str, np.ndarray] = {}
    for member in _members(tar, path):
        parts = PurePosixPath(member.name).parts[-3:]
        if (
            member.isfile()
            and len(parts) == 3
            and parts[0] == split
            and not any(map(is_hidden, PurePosixPath(member.name).parts))
        ):
            if parts[1] not in CLASSES:
                raise files.damaged(
                    "cifar10",
                    path,
                    f"has a class called {parts[1]!r}; the classes are {', '.join(CLASSES)}",
                )
            pictures["/".join(parts)] = _decode(_content(tar, member, path), member.name, path)
    names = sorted(pictures)
    labels = np.array([CLASSES.index(name.split("/")[1]) for name in names], np.uint8)
    return np.stack([pictures[name] for name in names]) if names else np.empty(
        (0, 3, 32, 32), np.uint8
    ), labels


def _members(tar: tarfile.TarFile, path: Path) -> list[tarfile.TarInfo]:
    """The members, never unpacked to disk. Too many or too large ones are refused by their
    headers.
    """
    members, total = [], 0
    for member in tar:
        members.append(member)
        total += member.size
        if len(members) > _MEMBERS or total > _LIMIT:
            raise files.damaged("cifar10", path, "holds far more than CIFAR-10")
    return members


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None:
        raise files.damaged("cifar10", path, f"holds {member.name!r}, which is not a file")
    return file.read()


def _decode(content: bytes, name: str, path: Path) -> np.ndarray:
    try:
        image = images.decode(content, name)
    except DataError as error:
        raise files.damaged(
            "cifar10", path, f"holds {name!r}, which is not a picture ({error})"
        ) from None
    if image.size != (32, 32):
        raise files.damaged("cifar10", path, f"holds {name!r} of {image.size} pixels, not 32 x 32")
    return np.asarray(image).transpose(2, 0, 1)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
