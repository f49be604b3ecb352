"""Folders of images: root/class/*.jpg in, one uint8 tensor (3, size, size) per image out.

Classes are the sorted names of the class folders, and labels are their numbers. Every image is
decoded to RGB: grey, palette, alpha over white, CMYK, 16 bit.

The centre crop is ADM's. The image is halved by a box filter while it is at least twice too large.
Then a bicubic filter brings the short side to `size`, and the middle is cut out. Orientation tags
are ignored, as in all published ImageNet numbers. Reference: Dhariwal and Nichol 2021 (ADM,
arXiv:2105.05233).
"""

import contextlib
import io
import itertools
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cfm_lite._internal.checks import check_count
from cfm_lite._internal.places import AnyPath, expanded, unlisted
from cfm_lite.data import archive
from cfm_lite.errors import CFMError, DataError

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ImageFile",
    "ImageFolder",
    "centre_crop",
    "decode",
    "find",
    "flat",
    "layout",
    "load",
    "named",
    "opened",
    "read",
]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
)
# no other decoder of Pillow's forty is used
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PIXELS = 178_956_970  # where Pillow begins to warn of a decompression bomb: 0.5 GB of RGB
LONGEST = 1_000_000  # pixels of a side: each row costs memory of its own
RESIZED = 2**24  # pixels that may be made on the way to a crop: 64 MB
FLAT = "a folder of images"  # where there are no classes
REMEDY = "Fetch it again, or remove it."  # `shards.held`: it does not help where latents hold it
TRAIN = frozenset({"train", "training", "trainset"})
HELD = frozenset(
    {"val", "valid", "validation", "valset", "test", "testing", "testset", "dev", "eval"}
    | {"evaluation", "validate", "holdout", "heldout"}
)
# what else the name of a part may hold, beside figures: train2017, training_set, seg_train; and
# what two parts share: train_blurred and val_blurred
BESIDE = frozenset({"set", "data", "split", "seg", "img", "image", "images", "ilsvrc", "imagenet"})


class ImageFile(NamedTuple):
    """One image. `key` is its path below the root, with forward slashes; latents, labels and
    captions are found by it.

    >>> ImageFile("cat/a.png", Path("photos/cat/a.png"), label=0).captions
    ()
    """

    key: str
    path: Path
    label: int
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders: `classes` sorted by name, `files` sorted by key.

    `absent` are files with captions that are not there.

    >>> file = ImageFile("cat/a.png", Path("photos/cat/a.png"), label=0)
    >>> ImageFolder(Path("photos"), ("cat",), (file,)).classes[file.label]
    'cat'
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    absent: tuple[ImageFile, ...] = ()


def find(root: AnyPath, gone: Iterable[str] = ()) -> ImageFolder:
    """The images of the class folders in `layout(root)`, at any depth below them.

    Links are followed, loops are not. Hidden files and folders (`archive.is_hidden`) are skipped at
    every level. `gone` are keys of images that were there before: their classes still count, though
    they are empty now. Raises DataError as `layout` does, for any other class folder without an
    image, and for a name with a line break or with bytes that are not UTF-8.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "cat"
    >>> folder.mkdir()
    >>> Image.new("L", (4, 3)).save(folder / "a.png")
    >>> find(folder.parent).classes
    ('cat',)
    """
    root = layout(root)
    before = {key.partition("/")[0]: [] for key in gone if "/" in key}
    found = {folder.name: list(_images_below(folder)) for folder in _listed(root)[0]}
    found = dict(sorted({**before, **found}.items()))
    empty = [name for name, paths in found.items() if not paths and name not in before]
    if empty:
        inside = [folder for folder in _listed(root)[0] if _part(folder) in TRAIN and _full(folder)]
        instead = f", or give {inside[0]}" if inside else ""
        raise DataError(
            f"{len(empty)} class folders of {root} hold no image, such as {empty[0]!r}; labels "
            "count the folders. "
            f"Fill them, move them away{instead}."
        )
    files = [
        ImageFile(_key(path, root), path, label)
        for label, name in enumerate(found)
        for path in found[name]
    ]
    return ImageFolder(root, tuple(found), tuple(sorted(files)))


def flat(root: AnyPath) -> ImageFolder:
    """Every image below `root`, at any depth, without classes: every label is 0.

    The parts of a set are never mixed. If `root` holds only train/ and val/ or test/, train/ is
    taken. Raises DataError if there is no image, if parts would be mixed, and if a folder cannot be
    listed.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("L", (4, 3)).save(folder / "a.png")
    >>> [(file.key, file.label) for file in flat(folder).files]
    [('a.png', 0)]
    """
    root = opened(root, FLAT)
    full = _full(root)
    while len(full) > 1 and _are_parts(full) and (train := _train(root)):
        root, full = train, _full(train)
    if len(full) > 1 and _are_parts(full):
        raise DataError(
            f"{root} holds {_spoken(full)}, which are parts of a set. Give one of them, such as "
            f"{(_full(root, TRAIN) or full)[0]}."
        )
    _refuse_mixtures(root, full)
    files = sorted(ImageFile(_key(path, root), path, 0) for path in _images_below(root))
    if not files:
        raise DataError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))}). Give {FLAT}.")
    return ImageFolder(root, (), tuple(files))


def layout(root: AnyPath) -> Path:
    """The folder whose subfolders are the classes. It is `root`, or train/ in it.

        1. Every subfolder that is not hidden is a class, and may have subfolders.
        2. If all subfolders with images are parts of one set (train, val, test; train2017,
           training_set) and train/ has class folders, train/ is meant.
        3. A single class that holds only folders is refused. So is a class that mixes train and
           val or test, and train/ beside val/ with the same folders. They are sets, not classes.

    Raises DataError that names the right folder in case 3. Raises DataError if there is no such
    folder, no class folder, or a folder that cannot be listed.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for folder in (root / "train" / "cat", root / "val" / "cat"):
    ...     folder.mkdir(parents=True)
    ...     Image.new("L", (4, 3)).save(folder / "a.png")
    >>> layout(root).name
    'train'
    """
    root = opened(root)
    full = _full(root)
    if not full:
        one = (
            f" For a single class, move its images into {root / 'all'}." if _listed(root)[1] else ""
        )
        raise DataError(
            f"{root} holds no class folder with images ({', '.join(sorted(SUFFIXES))}). The layout "
            f"is {root}/CLASS/NAME.jpg.{one}"
        )
    if _are_parts(full):
        train, alone = _train(root), len(full) == 1
        if train and _full(train) and not (alone and not _are_parts(_listed(root)[0])):
            return layout(train)
        if not alone:
            chosen = (_full(root, TRAIN) or full)[0]
            all_of_it = chosen / "all"
            move = f" It needs class folders: for one class, move its images into {all_of_it}."
            raise DataError(
                f"{root} holds {_spoken(full)}, which are parts of a set and not classes. Give "
                f"{chosen}.{'' if _full(chosen) else move}"
            )
    if len(full) == 1 and (nested := _full(full[0])):
        raise DataError(
            f"{root} holds one class, {full[0].name!r}, with folders of images in it "
            f"({_spoken(nested)}). For a single class, move "
            f"the images into {full[0]} itself. Where those folders are the classes: "
            f"{_advice(full[0])}"
        )
    _refuse_mixtures(root, full)
    return root


def opened(
    source: AnyPath, wanted: str = "a folder of class folders, such as ImageNet's train/"
) -> Path:
    """The folder of images that `source` means: itself, or what is in a tar archive.

    A tar is unpacked into the cache once. If it holds one outer folder, that folder is entered.
    Raises DataError for anything else, which tells what is `wanted`, and as `archive.unpack` does.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> opened(folder) == Path(folder)
    True
    """
    source = expanded(source)
    try:
        kind = stat.S_IFMT(os.stat(source).st_mode)
    except PermissionError as error:
        raise unlisted(source, error) from None
    except (OSError, ValueError):  # ValueError: a null byte in the name
        kind = 0
    if kind == stat.S_IFDIR:
        return source
    if kind != stat.S_IFREG:
        raise DataError(f"there is no folder {source}, and no tar archive. Give {wanted}.")
    folder = archive.unpacked(source)
    while (
        len(full := _full(folder)) == 1
        and not _are_parts(full)
        and _holds_no_image_itself(folder)
        and _holds_no_image_itself(full[0])
    ):
        folder = full[0]
    return folder


def _holds_no_image_itself(folder: Path) -> bool:
    return not _listed(folder)[1]


def _refuse_mixtures(root: Path, full: list[Path]) -> None:
    """DataError for a folder that would make one class of training and held-out images, and where
    classes stand twice: in a part to train on and in one that is held out.
    """
    for train, held in itertools.product(full, full):
        if _part(train) in TRAIN and _part(held) in HELD and _classes(train) & _classes(held):
            raise DataError(
                f"{root} holds {_spoken([train, held])}, parts of a set with the same classes, "
                f"beside other folders. Give {train}."
            )
    for folder in full:
        inner, nested = folder, _full(folder)
        while len(nested) == 1:
            inner, nested = nested[0], _full(nested[0])
        parts = [part for part in nested if _part(part)]
        if len(parts) > 1:
            raise DataError(
                f"{inner} holds {_spoken(parts)}, parts of a set, which one class of {root} would "
                f"mix. {_advice(inner)}"
            )


def _advice(folder: Path) -> str:
    """Which folder to give in place of one above `folder`, or the error that this would give."""
    full = _full(folder)
    while len(full) == 1 and _full(full[0]):
        folder, full = full[0], _full(full[0])
    try:
        return f"Give {layout(folder)}."
    except DataError as error:
        return str(error)


def _are_parts(folders: list[Path]) -> bool:
    return all(_part(folder) for folder in folders)


def _part(folder: Path) -> str | None:
    """The word of TRAIN or HELD that is all a folder's name says, or all but what it shares with
    the name of a folder beside it: train_blurred and val_blurred, trainA and testA.
    """
    part, rest = _words(folder.name)
    if part and rest:
        others = (_words(other.name) for other in _listed(folder.parent)[0])
        if not any(
            word and beside == rest and (word in TRAIN) != (part in TRAIN)
            for word, beside in others
        ):
            return None
    return part


def _words(name: str) -> tuple[str | None, list[str]]:
    """The one word of TRAIN or HELD in `name`, and the words beside it that say something."""
    found = re.findall("[^\\W\\d_]+?(?=(?<=[a-z])[A-Z]|[\\W\\d_]|$)", name)
    words = [word for word in map(str.lower, found) if word not in BESIDE]
    parts = [word for word in words if word in TRAIN | HELD]
    if len(parts) != 1:
        return None, words
    return parts[0], sorted(word for word in words if word != parts[0])


def _classes(part: Path) -> set[str]:
    return {folder.name for folder in _listed(part)[0]}


def _train(root: Path) -> Path | None:
    """The part to train on; None if there is none, or more than one: train.X1 and train.X2."""
    found = _full(root, TRAIN)
    return found[0] if len(found) == 1 else None


def _spoken(folders: list[Path]) -> str:
    names = [f"{folder.name}/" for folder in folders]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _full(folder: Path, parts: frozenset[str] | None = None) -> list[Path]:
    """The subfolders with at least one image below them, without loops; with `parts` only those
    parts of a set.
    """
    wanted = [inner for inner in _listed(folder)[0] if parts is None or _part(inner) in parts]
    return [
        inner
        for inner in wanted
        if not _leads_back(inner) and next(_images_below(inner), None) is not None
    ]


def _leads_back(folder: Path) -> bool:
    """True for a link to a folder that holds it."""
    return folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(
        os.path.realpath(folder)
    )


def _listed(folder: Path) -> tuple[list[Path], list[str]]:
    """The subfolders and the names of the images in `folder`, sorted, without hidden ones.

    All looks into a folder of images go through here. Raises DataError if it cannot be listed, and
    for a broken link that could have been a folder.
    """
    folders, names = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if archive.is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    names.append(entry.name)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise DataError(
                        f"{entry.path} is a link that leads nowhere. Put back what it pointed to, "
                        "or remove it."
                    )
    except OSError as error:
        raise unlisted(folder, error) from None
    return [folder / name for name in sorted(folders)], sorted(names)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _key(path: Path, root: Path) -> str:
    """The path below the root; DataError for a name that no list of keys could hold."""
    key = path.relative_to(root).as_posix()
    try:
        lines = key.encode().splitlines()
    except UnicodeEncodeError:  # bytes that the file system keeps and Python carries along
        lines = []
    if len(lines) != 1:
        raise DataError(
            f"the name {key!r} holds a line break or is not UTF-8, so no list could name it. "
            "Rename the file."
        )
    return key


def _images_below(folder: Path) -> Iterator[Path]:
    """Every file below `folder` with the name of an image. Each real folder is visited once, and no
    link that leads back above it.
    """
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        folders, names = _listed(here)
        yield from (here / name for name in names)
        waiting += [inner for inner in reversed(folders) if not _leads_back(inner)]


def read(path: AnyPath) -> Image.Image:
    """An image file as RGB, whole; of an animation the first frame.

    Raises DataError with the file and the reason: missing, empty, none of FORMATS, truncated, over
    179 million pixels, a loop of links, pixels of unknown range (floats, signed or 32-bit
    integers), or any error of a decoder.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.png"
    >>> Image.new("L", (4, 3)).save(path)
    >>> read(path).size, read(path).mode
    ((4, 3), 'RGB')
    """
    with named(path):
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            raise _bad(path, "is not a file")
        return decode(path, str(path))


def decode(source: AnyPath | bytes, name: str) -> Image.Image:
    """The image in a file or in bytes as RGB. DataError as in `read`; it calls the image `name`.

    >>> buffer = io.BytesIO()
    >>> Image.new("L", (4, 3), 255).save(buffer, "PNG")
    >>> decode(buffer.getvalue(), "a white image").getpixel((0, 0))
    (255, 255, 255)
    """
    with (
        named(name),
        _Quiet(),
        Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as image,
    ):
        if image.width * image.height > PIXELS:
            raise _bad(
                name, f"holds {image.width * image.height:,} pixels; the limit is {PIXELS:,}"
            )
        if max(image.size) > LONGEST:
            raise _bad(
                name, f"is {image.width:,} x {image.height:,} pixels; a side may have {LONGEST:,}"
            )
        top, back = _top(image, name), _way_back(image)
        _scale_transparency(image)
        image.load()
        rgb = _rgb(image, top)
        return rgb if back is None else rgb.transpose(back)


@contextlib.contextmanager
def named(name: AnyPath) -> Iterator[None]:
    """Turn any error of a decoder or of the system into a DataError that names the file.

    >>> try:
    ...     with named("a.png"):
    ...         raise ValueError("bad marker")
    ... except DataError as error:
    ...     print(error)
    a.png cannot be decoded (bad marker). Fetch it again, or remove it.
    """
    try:
        yield
    except CFMError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _bad(name, f"holds more than {PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        empty = os.path.isfile(name) and os.path.getsize(name) == 0
        raise _bad(
            name,
            "is empty (0 bytes)" if empty else f"cannot be read as any of {', '.join(FORMATS)}",
        ) from None
    except Exception as error:
        # decoders and their libraries raise anything, also MemoryError and RecursionError
        if not os.path.lexists(name) and isinstance(error, FileNotFoundError):
            raise DataError(f"{os.fspath(name)} is not there. Fetch it again.") from None
        if isinstance(error, PermissionError):
            raise DataError(
                f"{os.fspath(name)} cannot be read ({error.strerror}). Make it readable."
            ) from None
        reason = (
            getattr(error, "strerror", None)
            or " ".join(str(error).split())[:200]
            or type(error).__name__
        )
        raise _bad(name, f"cannot be decoded ({reason})") from None


def _bad(name: AnyPath, reason: str) -> DataError:
    return DataError(f"{os.fspath(name)} {reason}. {REMEDY}")


class _Quiet:
    """Hides Pillow's warnings on metadata, palettes and sizes, also where warnings are errors.

    Filters belong to the process, and several threads decode. So the first thread sets them, and
    the last one restores the old ones.
    """

    lock: ClassVar[threading.Lock] = threading.Lock()
    inside: ClassVar[int] = 0
    kept: ClassVar[Any] = None

    def __enter__(self) -> None:
        with self.lock:
            if not _Quiet.inside:
                _Quiet.kept = warnings.catch_warnings()
                _Quiet.kept.__enter__()
                warnings.filterwarnings("ignore", module="PIL")
            _Quiet.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            _Quiet.inside -= 1
            if not _Quiet.inside:
                _Quiet.kept.__exit__(None, None, None)


def _top(image: Image.Image, name: str) -> int:
    """The level of white in an integer image of more than 8 bits: the largest that its file can
    hold.
    """
    tags: Any = getattr(image, "tag_v2", {})
    signed = 2 in tags.get(339, ()) if isinstance(tags.get(339, ()), tuple) else tags.get(339) == 2
    bits = tags.get(258, (16,))
    bits = bits[0] if isinstance(bits, tuple) else bits
    if image.mode == "F":
        raise _bad(name, "holds 32-bit floats, whose range is unknown")
    if signed or bits > 16:
        raise _bad(
            name, f"holds {'signed' if signed else f'{bits}-bit'} integers, whose range is unknown"
        )
    return 2**bits - 1


def _way_back(image: Image.Image) -> Image.Transpose | None:
    """What undoes the turn that Pillow gives a TIFF with an orientation tag, and no other image,
    while it loads it.
    """
    turn = Image.Transpose
    undo = {
        **{2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM},
        **{5: turn.TRANSPOSE, 6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270},
    }
    told: Any = image.getexif().get(0x0112) if image.format == "TIFF" else None
    return undo.get(told)


def _scale_transparency(image: Image.Image) -> None:
    """Bring the transparent level of a PNG from the file's own depth to 8 bits, as its pixels
    are.
    """
    clear = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", ())
    kind = tiles[0][3] if image.format == "PNG" and tiles else None
    if isinstance(clear, int) and kind in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if kind == "L;2" else 17)
    elif isinstance(clear, tuple) and kind == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in clear)


def _rgb(image: Image.Image, top: int) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow itself would clip at 255
        levels: Any = np.asarray(image).astype(np.uint32)
        grey = (levels * 255 // top).astype(np.uint8)
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0:  # 0 is white
            grey = 255 - grey
        if isinstance(image.info.get("transparency"), int):
            grey[levels == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` of an RGB image whose short side was brought to `size`.

    Smaller images are enlarged. A very long image would grow beyond RESIZED pixels on the way. Then
    only the part that the crop shows is resized, with the same filter at the same places; a few
    levels round differently.

    Raises ConfigError for a size below 1.

    >>> centre_crop(Image.new("RGB", (40, 30)), 16).size
    (16, 16)
    """
    size = check_count("size", size)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    x, y = image.width / width, image.height / height
    if width * height > RESIZED:
        return _resized_part(image, (left * x, top * y, (left + size) * x, (top + size) * y), size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _resized_part(
    image: Image.Image, box: tuple[float, float, float, float], size: int
) -> Image.Image:
    """What the `box` of an image becomes as `size` x `size`. Columns come first, as in Pillow.

    Only the box and its neighbours are read.
    """
    reach = 5  # a bicubic filter that shrinks to a half sees four pixels beyond
    left, top = max(0, int(box[0]) - reach), max(0, int(box[1]) - reach)
    image = image.crop(
        (left, top, min(image.width, int(box[2]) + reach), min(image.height, int(box[3]) + reach))
    )
    image = image.resize(
        (size, image.height),
        Image.Resampling.BICUBIC,
        (box[0] - left, 0, box[2] - left, image.height),
    )
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, (0, box[1] - top, size, box[3] - top)
    )


def load(path: AnyPath, size: int) -> Tensor:
    """One image (3, size, size) uint8, decoded and cropped; DataError as in `read`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.png"
    >>> Image.new("L", (40, 30)).save(path)
    >>> load(path, 16).shape
    torch.Size([3, 16, 16])
    """
    image = read(path)
    with named(path):
        pixels: Any = np.array(centre_crop(image, size))  # (size, size, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
