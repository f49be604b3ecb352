"""Images with captions, as MS-COCO and CC3M publish them.

    FILE.json   {"images": [{"id": 9, "file_name": "a.jpg"}, ...],
                 "annotations": [{"image_id": 9, "caption": "a dog on a mat"}, ...]}
    FILE.jsonl  {"file_name": "a.jpg", "text": "a dog on a mat"}, or with the keys "image" and
                "caption", on each line
    FILE.tsv    a caption, a tab and the name of its image file, on each line

An image may have several captions; a training step takes one of them at random. Reference: Chen et
al. 2015 (COCO captions, arXiv:1504.00325).
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cfm_lite._internal.checks import in_one_line, parse_json
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.data import images
from cfm_lite.data.images import ImageFile, ImageFolder
from cfm_lite.data.latents.shards import write
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import CFMError, DataError

__all__ = ["captioned", "one_each", "read_captions"]

LEFT_OUT = "left_out.txt"  # beside the latents
FORMS = (
    "MS-COCO's captions JSON (images, annotations), JSON lines (.jsonl) with the keys file_name or "
    "image and text or caption, or a TSV (.tsv) of caption and file name"
)


def read_captions(file: AnyPath) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """({file name: its captions}, captions of no image) of a captions file, sorted by name.

    A listed image without a caption has an empty tuple. Raises DataError for a file that is
    missing, damaged or of another form.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "c.tsv"
    >>> _ = path.write_text("a dog\\ta.jpg\\na brown dog\\ta.jpg\\n")
    >>> read_captions(path)[0]
    {'a.jpg': ('a dog', 'a brown dog')}
    """
    try:
        path = expanded(file)
        text = path.read_text(encoding="utf-8-sig")
        read = {".tsv": _columns, ".jsonl": _from_json}.get(path.suffix.lower())
        names, said = _by_line(text, read) if read else _coco(text)
        found: dict[str, list[str]] = {name: [] for name in sorted(names.values())}
        lost = []
        for image, caption in said:
            if (words := _writable(" ".join(caption.split()))) and image in names:
                found[names[image]].append(words)
            elif words:
                lost.append(words)
    except (OSError, ValueError, KeyError, CFMError) as error:
        reason = in_one_line(error) if not isinstance(error, KeyError) else f"no {error}"
        raise DataError(
            f"{os.fspath(file)} cannot be read as captions ({reason}). Give {FORMS}."
        ) from None
    if not any(found.values()):
        raise DataError(f"{os.fspath(file)} holds no caption of any image. Give {FORMS}.")
    return {name: tuple(captions) for name, captions in found.items()}, lost


def _writable(text: str) -> str:
    """`text` with half an emoji, which JSON can hold and UTF-8 cannot, as the sign for a character
    that is lost.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


Told = tuple[dict[Any, str], Iterable[tuple[Any, str]]]  # names of images; captions by image


def _coco(text: str) -> Told:
    content = _object(parse_json(text))
    names: dict[Any, str] = {}
    for where, row in _rows(content, "images"):
        with _named(where):
            key, name = _key(row, "id"), _text(row, "file_name")
            if name is None:
                raise ValueError("file_name is None, not a text")
            if names.setdefault(key, name) != name:
                raise ValueError(
                    f"the id {key!r:.60} is {names[key]!r} above, and {name!r} here; give each "
                    "image its own id"
                )
    said = []
    for where, row in _rows(content, "annotations"):
        with _named(where):
            said.append((_key(row, "image_id"), _text(row, "caption") or ""))
    return names, said


def _rows(content: dict[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    """(what it is called, row) of each row of a part of MS-COCO's JSON."""
    rows = content[part]
    if not isinstance(rows, list):
        raise ValueError(f"{part} is {rows!r:.60}, not a list")
    return ((f"row {number} of {part}", row) for number, row in enumerate(rows, 1))


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """An error of one row says which row."""
    try:
        yield
    except (ValueError, KeyError, CFMError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "msg", error)
        raise ValueError(f"{where}: {reason}") from None


def _by_line(text: str, read: Callable[[str], tuple[str | None, str]]) -> Told:
    """What `read` finds in each line: the name of the image's file, if any, and the caption."""
    said = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with _named(f"line {number}"):
                said.append(read(line))
                if said[-1][0] and "://" in said[-1][0]:
                    raise ValueError(f"{said[-1][0]!r} is an address, not the name of a file")
    return {name: name for name, _ in said if name}, said


def _columns(line: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} columns, not 2")
    return columns[1], columns[0]


def _from_json(line: str) -> tuple[str | None, str]:
    row = parse_json(line)
    return _one_of(row, "file_name", "image"), _one_of(row, "caption", "text") or ""


def _one_of(row: Any, *keys: str) -> str | None:
    found = [key for key in keys if key in _object(row)]
    if len(found) != 1:
        raise ValueError(f"{' and '.join(found) or 'none of ' + ', '.join(keys)}; give one")
    return _text(row, found[0])


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{row!r:.60} is not a JSON object")
    return row


def _text(row: Any, key: str) -> str | None:
    value = _object(row)[key]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.60}, not a text")
    return value


def _key(row: Any, key: str) -> int | float | str:
    value = _object(row)[key]
    if not isinstance(value, int | float | str):
        raise ValueError(f"{key} is {value!r:.60}, not a number or a text")
    return value


def captioned(file: AnyPath, root: AnyPath) -> tuple[ImageFolder, dict[str, list[str]]]:
    """The images below `root` that have captions in `file`, and {why: what is left out}.

    Images without a caption, captions whose image is not there, and captions of no image are left
    out. Raises DataError as `read_captions` and `images.flat` do, and if nothing is left.
    """
    named, lost = read_captions(file)
    given = images.opened(root, images.FLAT)
    folder = images.flat(given)
    found: dict[str, tuple[str, ...]] = {}
    for name, captions in named.items():  # two names may be one image
        key = _below(name, folder.root, given)
        found[key] = found.get(key, ()) + captions
    there = {image.key for image in folder.files}
    kept = [
        image._replace(captions=found[image.key]) for image in folder.files if found.get(image.key)
    ]
    if not kept:
        name = next(name for name, said in found.items() if said)
        raise DataError(
            f"none of the {len(found):,} images of {os.fspath(file)} is in {folder.root}, such as "
            f"{name!r}. Give the folder that holds it with --images."
        )
    missing = [name for name, said in found.items() if said and name not in there]
    silent = [image.key for image in folder.files if not found.get(image.key)]
    silent += [name for name, said in found.items() if not said and name not in there]
    without = {
        f"with captions but not in {folder.root}": missing,
        "images without a caption": silent,
        "captions of no listed image": lost,
    }
    absent = tuple(ImageFile(name, folder.root / name, 0, found[name]) for name in missing)
    left_out = {why: some for why, some in without.items() if some}
    return ImageFolder(folder.root, (), tuple(kept), absent), left_out


def keep_left_out(out: Path, left_out: Mapping[str, Sequence[str]]) -> str:
    """One line on what `captioned` left out; all of it is written into LEFT_OUT in `out`."""
    path = out / LEFT_OUT
    if not left_out:
        path.unlink(missing_ok=True)
        return ""
    told = [f"{len(some):,} {why}" for why, some in left_out.items()]
    rows = ["\n".join([f"{head}:", *some, ""]) for head, some in zip(told, left_out.values())]
    write(path, "\n".join(rows).encode(errors="surrogateescape"))
    shown = [
        f"{head} ({', '.join(some[:3])}{', ...' if some[3:] else ''})"
        for head, some in zip(told, left_out.values())
    ]
    return f"left out: {'; '.join(shown)}. All of them are named in {path}"


def _below(name: str, root: Path, given: Path) -> str:
    """The key of an image: ./a.png and a whole path below `root` are a.png. So is train/a.png where
    `root` is the train/ of the folder that was `given`.
    """
    path, above = Path(os.path.normpath(name)), Path(os.path.abspath(root))
    whole = Path(os.path.abspath(given)) / path
    meant = path.is_absolute() or (given != root and not (above / path).exists())
    return (whole.relative_to(above) if meant and whole.is_relative_to(above) else path).as_posix()


def one_each(file: AnyPath, seed: int) -> tuple[str, ...]:
    """One random caption of each image of a captions file, in the order of the files' names."""
    found = [said for said in read_captions(file)[0].values() if said]
    return tuple(pick(found, keyed_generator("cpu", seed, "captions")))


def pick(found: list[tuple[str, ...]], generator: torch.Generator) -> list[str]:
    """One of the captions of each image, at random."""
    drawn = torch.rand(len(found), generator=generator, device="cpu", dtype=torch.float64).tolist()
    return [said[int(x * len(said))] for said, x in zip(found, drawn)]
