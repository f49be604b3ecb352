"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels, from four idx files in
CFM_LITE_DATA/mnist/.

x1 = pixel / 127.5 - 1 in [-1, 1]. An idx file holds a magic number, its dimensions (big-endian) and
the pixels. All of it is checked, and so is the MD5 of the unpacked content. Fashion-MNIST has the
same files in CFM_LITE_DATA/fashion_mnist/: of it the numbers of each class are checked.

Reference: LeCun et al. 1998, "Gradient-based learning applied to document recognition"; Xiao et al.
2017 (Fashion-MNIST, arXiv:1708.07747).
"""

import contextlib
import hashlib
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite._internal.files import inside, publish
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.places import AnyPath
from cfm_lite.data import root as files
from cfm_lite.errors import DataError

__all__ = ["MD5", "NAMES", "SPLITS", "available", "download", "load"]

SPLITS = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
MD5 = {  # of the unpacked files: gzip bytes differ from one mirror to the next
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # and what torchvision calls them
SIZES = {"train": 60_000, "test": 10_000}
_MAX_BYTES = 16 + 60_000 * 28 * 28


def _parse_idx(content: bytes, path: Path, name: str) -> np.ndarray:
    """The uint8 array of an image file (n, 28, 28) or of a label file (n,).

    Raises DataError unless magic number, dimensions and length agree.
    """
    shape = (28, 28) if "images" in path.name else ()
    magic = bytes([0, 0, 8, 1 + len(shape)])  # 8: unsigned bytes; then the number of dimensions
    header = 4 * (2 + len(shape))
    if content[:4] != magic:
        raise files.damaged(
            name,
            path,
            f"starts with {content[:4].hex()}; an idx file of this kind starts with {magic.hex()}",
        )
    if len(content) < header:
        raise files.damaged(name, path, f"ends inside its header ({len(content)} bytes)")
    n, *seen = np.frombuffer(content[4:header], dtype=">u4").tolist()
    if tuple(seen) != shape or n == 0:
        raise files.damaged(
            name,
            path,
            f"announces {n} items of shape {tuple(seen)}; at least one of shape {shape} is needed",
        )
    expected = n * math.prod(shape)
    if len(content) - header != expected:
        raise files.damaged(
            name, path, f"announces {expected} bytes and holds {len(content) - header}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(n, *shape)


def _read_idx(path: Path, verify: bool, name: str = "mnist") -> np.ndarray:
    content = files.read_gzip(path, name, _MAX_BYTES)
    array = _parse_idx(content, path, name)
    official = verify and name == "mnist"
    seen = hashlib.md5(content, usedforsecurity=False).hexdigest() if official else MD5[path.name]
    if seen != MD5[path.name]:
        raise files.damaged(
            name, path, f"has the MD5 {seen} (unpacked); the official file has {MD5[path.name]}"
        )
    return array


def _read_pair(folder: Path, split: str, verify: bool, name: str) -> tuple[np.ndarray, np.ndarray]:
    images_path, labels_path = (folder / file for file in SPLITS[split])
    images, labels = (_read_idx(path, verify, name) for path in (images_path, labels_path))
    if len(images) != len(labels):
        raise files.damaged(
            name,
            labels_path,
            f"holds {len(labels)} labels, while {images_path.name} holds {len(images)} images",
        )
    if labels.max() > 9:
        raise files.damaged(name, labels_path, f"holds the label {labels.max()}; labels are 0 to 9")
    if verify and name != "mnist":
        each = SIZES[split] // 10
        if np.bincount(labels, minlength=10).tolist() != [each] * 10:
            raise files.damaged(name, labels_path, f"does not hold {each} items of each class")
    return images, labels


def load(
    split: str = "train",
    *,
    name: str = "mnist",
    limit: int | None = None,
    root: AnyPath | None = None,
    verify: bool = True,
) -> tuple[Tensor, Tensor]:
    """The first `limit` images (n, 1, 28, 28) float32 in [-1, 1] and labels (n,) int64 in [0, 9].

    The order is the official one. `split` is "train" (60,000) or "test" (10,000), and `name` one of
    NAMES. `root` overrides CFM_LITE_DATA. `verify=False` skips only the MD5, or for Fashion-MNIST
    the numbers of each class. Raises ConfigError for an unknown split, name or limit, and DataError
    for a file that is missing or damaged.
    """
    check_choice("split", split, SPLITS)
    check_choice("name", name, NAMES)
    if limit is not None:
        limit = check_count("limit", limit)
    pixels, labels = _read_pair(files.data_root(root) / name, split, verify, name)
    images = (
        torch.from_numpy(pixels[:limit, None].astype(np.float32)).div_(127.5).sub_(1)
    )  # (n, 1, 28, 28)
    return images, torch.from_numpy(labels[:limit].astype(np.int64))


def available(root: AnyPath | None = None, name: str = "mnist") -> bool:
    """True if all four files are under the data root. `load` checks what they contain.

    Raises ConfigError for an unknown name.

    >>> available(root="a folder without files")
    False
    """
    check_choice("name", name, NAMES)
    folder = files.data_root(root) / name
    return all((folder / file).is_file() for file in MD5)


def download(root: AnyPath | None = None, name: str = "mnist") -> Path:
    """Download the missing or damaged files through torchvision, and return the folder.

    Each file is verified first, then it gets its final name in one step. A damaged older file is
    kept as `.bad`. Raises DataError if the download fails or brings wrong files. It leaves no
    half-written file behind.
    """
    check_choice("name", name, NAMES)
    folder = files.data_root(root) / name
    wanted = [file for file in MD5 if not _is_good(folder / file, name)]
    if not wanted:
        return folder
    try:
        with (
            inside(folder),
            tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary,
        ):
            with files.fetching(name, f"{', '.join(MD5)} into {folder} yourself"):
                datasets = optional("torchvision.datasets", "imagenet")
                getattr(datasets, NAMES[name])(temporary, download=True)
            for file in wanted:
                _install(Path(temporary) / NAMES[name] / "raw" / file, folder, name)
    except OSError as error:
        raise DataError(
            f"{name}: cannot write to {folder} ({error.strerror or error}). Set "
            f"{files.VARIABLE} to another folder."
        ) from None
    return folder


def _is_good(path: Path, name: str) -> bool:
    with contextlib.suppress(DataError):
        _read_idx(path, True, name)
        return True
    return False


def _install(source: Path, folder: Path, name: str) -> None:
    _read_idx(source, True, name)
    target = folder / source.name
    if target.exists():
        os.replace(target, folder / f"{source.name}.bad")
    publish(source.read_bytes(), target)
