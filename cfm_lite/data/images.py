"""Folders of images: root/class/*.jpg in, one uint8 tensor (3, size, size) per image out.

Classes are the sorted names of the class folders, labels their numbers. An image is decoded to RGB whatever it was (grey,
palette, alpha over white, CMYK, 16 bit) and centre-cropped as in ADM: halved by a box filter while it is at least twice too
large, resized by a bicubic filter so that the short side is `size`, and cut in the middle. Orientation tags are ignored, as
everybody's ImageNet numbers ignore them. Reference: Dhariwal and Nichol 2021 (ADM, arXiv:2105.05233).
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cfm_lite.checks import check_count
from cfm_lite.errors import DataError

__all__ = ["SUFFIXES", "ImageFile", "ImageFolder", "centre_crop", "find", "load", "read"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})
PIXELS = 178_956_970  # where Pillow begins to warn of a decompression bomb: 0.5 GB of RGB


class ImageFile(NamedTuple):
    """One image: `key` is its path below the root, with forward slashes, and pairs it with its latents and its label."""

    key: str
    path: Path
    label: int


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders: `classes` sorted by name, `files` sorted by key."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]


def find(root: str | os.PathLike[str]) -> ImageFolder:
    """The images below `root`/class/, or `root`/train/class/ where there is a folder train/; links are followed, loops are not.

    Raises DataError where there is no such folder, no class folder, a class folder without an image, or a name with a line
    break or bytes that are no UTF-8.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}. Give a folder of class folders, such as ImageNet's train/.")
    if (root / "train").is_dir():
        root = root / "train"
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    found = {name: _images_below(root / name) for name in classes}
    if not any(found.values()):
        raise DataError(
            f"{root} holds no class folder with images ({', '.join(sorted(SUFFIXES))}). The layout is {root}/CLASS/NAME.jpg; for a "
            "single class put all of them into one folder."
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise DataError(
            f"{len(empty)} class folders of {root} hold no image, such as {empty[0]!r}; labels count the folders. "
            "Fill them, or move them away."
        )
    files = [ImageFile(_key(path, root), path, label) for label, name in enumerate(classes) for path in found[name]]
    return ImageFolder(root, classes, tuple(sorted(files)))


def _key(path: Path, root: Path) -> str:
    """The path below the root; DataError for a name that no list of keys could hold."""
    key = path.relative_to(root).as_posix()
    try:
        lines = key.encode().splitlines()
    except UnicodeEncodeError:  # bytes that the file system keeps and Python carries along
        lines = []
    if len(lines) != 1:
        raise DataError(f"the name {key!r} holds a line break or is not UTF-8, so no list could name it. Rename the file.")
    return key


def _images_below(folder: Path) -> list[Path]:
    """Everything below `folder` that is called an image, each real folder visited once."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        paths = (Path(here) / name for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(found)


def read(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as RGB, whole.

    Raises DataError that names the file and the reason: missing, empty, no image, truncated, over 179 million pixels, a loop
    of links, or a kind of pixel that has no colour (32-bit floats).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")  # remarks on metadata and palettes
            return _decode(path)
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _bad(path, f"holds more than {PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise _bad(path, "is empty (0 bytes)" if path.stat().st_size == 0 else "is no image that Pillow knows") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:  # Pillow's decoders fail in all of these
        raise _bad(path, f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from None


def _bad(path: Path, reason: str) -> DataError:
    return DataError(f"{path} {reason}. Fetch it again, or remove it.")


def _decode(path: Path) -> Image.Image:
    with Image.open(path) as image:
        if image.width * image.height > PIXELS:
            raise _bad(path, f"holds {image.width * image.height:,} pixels; the limit is {PIXELS:,}")
        image.load()
        return _rgb(image, path)


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit: Pillow itself would clip at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise _bad(path, f"holds integers from {grey.min()} to {grey.max()}; at most 16 bits are read")
        return Image.fromarray((grey // 257 if grey.max() > 255 else grey).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise _bad(path, "holds 32-bit floats, whose range is unknown")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` of an RGB image whose short side was brought to `size`; smaller images are enlarged."""
    check_count("size", size)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def load(path: str | os.PathLike[str], size: int) -> Tensor:
    """One image (3, size, size) uint8, decoded and cropped; DataError as in `read`."""
    pixels: Any = np.array(centre_crop(read(path), size))  # (size, size, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
