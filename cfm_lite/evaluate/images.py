"""FID, sFID, inception score, precision and recall of samples against a reference.

Samples are an npz with arr_0 (N, H, W, 3) uint8, a folder with samples.npz, or a folder of images,
flat or not. A reference is any of these, cropped to the samples' size, or the statistics of a whole
set (see reference.py). Features of reference images are cached, under the hashes of their content
and of the network.
"""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from cfm_lite import metrics, runs
from cfm_lite._internal.checks import check_count, parse_json, warn_once
from cfm_lite._internal.files import fingerprint, hash_of_file, hash_of_json
from cfm_lite._internal.places import AnyPath, check_file, expanded
from cfm_lite.data import images as image_files
from cfm_lite.data.root import cache_root, keep
from cfm_lite.errors import CFMError, ConfigError, DataError
from cfm_lite.evaluate.card import Row, card_of
from cfm_lite.evaluate.clip import ClipScore
from cfm_lite.evaluate.inception import Extractor, Features
from cfm_lite.evaluate.reference import IMAGES, Reference, names_in, refuse_pickles, statistics_of
from cfm_lite.runs.sampling import SAMPLES, SETTINGS

__all__ = ["evaluate_samples", "features_of", "image_batches", "npz_of", "opened"]

FEWEST = 4  # images on each side


def evaluate_samples(
    samples: str | Path,
    reference: str | Path,
    extractor: Extractor,
    *,
    out: str | Path | None = None,
    batch: int = 64,
    progress: bool = True,
    called: str | None = None,
    clip: str | None = None,
    file: str | None = None,
) -> tuple[list[Row], Path]:
    """Measure `samples` against `reference`. Returns flat rows, each with its card, and their
    metrics.json.

    fid and sfid are distances to the statistics of a whole set; fid_to_N_images and
    sfid_to_N_images are distances to N images. If the reference was unpacked, the card names it as
    it was `called`; unpacked samples are named `file`. Samples of captions that a text encoder read
    also get a CLIP score, by that CLIP or the one at `clip`. Raises DataError, before anything is
    computed, for files that are missing or damaged, for fewer than 4 images on a side, and if
    nothing can be written. Raises UntrustedFileError for pickles, ConfigError if `clip` would do
    nothing, and as `rows_file` does.
    """
    source, held = npz_of(samples), npz_of(reference)
    target = rows_file(source, out, inputs=[source, held])
    size, called = _size_of(source), called or str(reference)
    statistics = {} if held.is_dir() else statistics_of(held, extractor)
    # another program's npz may lie beside them
    ours = source.is_file() and source.name == SAMPLES
    settings = _settings(source.parent / SETTINGS) if ours else None
    card = card_of(
        settings,
        samples=0,
        features=extractor.name,
        features_hash=extractor.fingerprint,
        reference=called,
    )
    device = getattr(extractor, "device", "cpu")
    judge = _clip_of(settings, clip, device)
    read: dict[str, Any] = {"size": size, "batch": batch, "progress": progress}
    has_images = held.is_dir() or IMAGES in names_in(held)
    digest, images = _content(held, size), _count(held) if has_images else None
    _check_numbers(_count(source), images, extractor.widths["fid"], "fid" in statistics)
    fake = features_of(source, extractor, **read)
    real = _features_of_reference(held, digest, extractor, **read) if has_images else None
    against = Reference(called, digest, statistics, real)
    card |= {
        "samples": len(fake.pool),
        "reference_hash": against.digest,
        "reference_holds": against.holds,
    }
    card.setdefault("dataset", "imagenet")
    if file or source.is_file():
        card["file"] = file or source.name
    rows = [
        {**card, **facts, "metric": extractor.prefix + name, "value": value}
        for name, value, facts in measure(fake, against, device=device, progress=progress)
    ]
    if judge is not None and settings is not None:
        rows.append({**card, **_clip_score(source, settings["prompts"], judge, batch)})
    return rows, runs.write_json(target, rows)


def _clip_of(
    settings: Mapping[str, Any] | None, clip: str | None, device: torch.device | str
) -> ClipScore | None:
    """The CLIP that scores samples, if their captions are known; ConfigError if `clip` is idle."""
    if settings is not None and settings.get("text"):
        return ClipScore(clip or settings["text"]).to(device)
    if clip is not None:
        raise ConfigError(
            "--clip is for the score of samples that have captions, and these have none; leave it "
            "out."
        )
    return None


def _clip_score(source: Path, said: Sequence[str], judge: ClipScore, batch: int) -> Row:
    """The mean CLIP score of the images of an npz, whose arr_1 numbers the captions `said`."""
    scores, first = [], 0
    with np.load(source, allow_pickle=False) as file:
        numbers = file["arr_1"].tolist()
    for images in image_batches(source, batch):
        texts = [said[number] for number in numbers[first : first + len(images)]]
        scores.append(judge(images.to(judge.mean.device) / 255, texts).cpu())
        first += len(images)
    return {
        "metric": "clip_score",
        "value": float(torch.cat(scores).double().mean()),
        "features": f"CLIP {judge.place}",
        "features_hash": fingerprint(judge.clip.state_dict()),
        "reference_kind": None,
        "reference_images": None,
    }


def _count(source: Path) -> int:
    """The number of images in an npz or in a folder. DataError for anything else."""
    if source.is_dir():
        return len(image_files.flat(source).files)
    next(image_batches(source, 1))  # its error says what is wrong
    with opened(source) as (_, shape):
        return shape[0]


def _check_numbers(samples: int, images: int | None, width: int, whole: bool) -> None:
    """DataError for too few images on a side. A note if there are so few that a Fréchet distance is
    biased.

    `images` are those of the reference, and `whole` says whether it has the statistics of a whole
    set, of `width` features.
    """
    sides = [samples] if images is None else [samples, images]
    if min(sides) < FEWEST:
        has = "" if images is None else f" and {images} reference images"
        raise DataError(f"there are {samples} samples{has}; each side needs at least {FEWEST}.")
    if min(sides[:1] if whole else sides) <= width:
        other = "the statistics" if whole else images
        warn_once(
            f"{samples} samples against {other}: Fréchet distances need more images than the "
            f"{width} features "
            "and are biased upwards here; published ones use 50,000."
        )


def measure(
    fake: Features,
    reference: Reference,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[tuple[str, float, Mapping[str, Any]]]:
    """(metric, value, what it was compared with) of each metric.

    These are the Fréchet distances, the inception score and its deviation over ten splits. If the
    reference has images, precision and recall follow, computed on `device`.
    """
    found: list[tuple[str, Any, Mapping[str, Any]]] = []
    to_images = {"reference_kind": "images", "reference_images": reference.images}
    to_statistics = {"reference_kind": "statistics", "reference_images": None}
    for metric, rows in (("fid", fake.pool), ("sfid", fake.spatial)):
        distance = reference.distance(metric, rows)
        if distance is not None:
            found.append(
                (*distance, to_statistics if metric in reference.statistics else to_images)
            )
    score, deviation = metrics.inception_score(fake.logits, splits=min(10, len(fake.logits)))
    alone = {"reference_kind": None, "reference_images": None}
    found += [("inception_score", score, alone), ("inception_score_std", deviation, alone)]
    if reference.features is not None:
        pools = (reference.features.pool.to(device), fake.pool.to(device))
        precision, recall = metrics.precision_recall(*pools, progress=progress)
        found += [("precision", precision, to_images), ("recall", recall, to_images)]
    return [(name, float(value), facts) for name, value, facts in found]


def npz_of(path: AnyPath) -> Path:
    """The npz itself, or the samples.npz in a folder.

    >>> npz_of("samples.npz").name
    'samples.npz'
    """
    path = expanded(path)
    return path / SAMPLES if (path / SAMPLES).exists() else path


def rows_file(source: Path, out: AnyPath | None, inputs: Iterable[Path] = ()) -> Path:
    """Where the rows of the samples `source` go: `out`, or metrics.json beside them.

    Where metrics.json holds the rows of other samples, it is NAME-metrics.json. Raises ConfigError
    for a file that holds no rows of `evaluate`: it would be lost.
    """
    beside = source if source.is_dir() else source.parent
    target = expanded(out) if out else beside / "metrics.json"
    check_file(target, (".json",), inputs=inputs)
    # rows of a comparison have no features; the first edition's have none beside samples
    files = _files_in(target, {"metric", "value"} | ({"features"} if out else set()))
    if not out and any(name and (beside / name).exists() for name in files - {source.name}):
        return rows_file(source, beside / f"{source.stem}-metrics.json", inputs)
    return target


def _files_in(target: Path, needed: set[str]) -> set[str | None]:
    """Of which files of samples `target` holds rows, if it is there; ConfigError without rows."""
    if not target.exists() or not target.stat().st_size:
        return set()
    try:
        found = [row for row in parse_json(target.read_bytes()) if needed <= row.keys()]
    except (OSError, TypeError, ValueError, AttributeError):
        found = []
    if not found:
        raise ConfigError(
            f"{target} holds no rows of cfm-lite evaluate. It would be overwritten; move it, or "
            "choose another --out."
        )
    return {row.get("file") for row in found}


def _settings(file: Path) -> dict[str, Any] | None:
    """What cfm-lite sample saved with the samples; None for samples of other programs."""
    if not file.exists():
        return None
    try:
        return dict(parse_json(file.read_bytes()))
    except (OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is damaged ({error}). Remove it, or draw the samples again."
        ) from None


def _size_of(source: Path) -> int:
    """The side at which samples are measured: that of an npz, or the commonest in a folder."""
    if not source.is_dir():
        height, width = next(image_batches(source, 1)).shape[-2:]
        if height != width:
            _say_cropped(source, (width, height), min(height, width))
        return min(height, width)
    sizes: Counter[tuple[int, int]] = Counter()
    for file in image_files.flat(source).files:
        try:
            with Image.open(file.path, formats=image_files.FORMATS) as image:
                sizes[image.size] += 1
        except Exception:  # its own error comes when it is read
            continue
    if not sizes:
        return 256
    (width, height), _ = sizes.most_common(1)[0]
    side = min(width, height)
    if len(sizes) > 1:
        others = sum(sizes.values()) - sizes[width, height]
        warn_once(
            f"{source} holds images of {len(sizes)} sizes: {others:,} of {sum(sizes.values()):,} "
            f"are not {width} x {height}. "
            f"All are cropped to {side} x {side} before they are measured."
        )
    elif width != height:
        _say_cropped(source, (width, height), side)
    return side


def _say_cropped(source: Path, of: tuple[int, int], side: int) -> None:
    warn_once(
        f"{source} holds images of {of[0]} x {of[1]}; they are cropped to {side} x {side} before "
        "they are measured."
    )


def features_of(
    source: Path,
    extractor: Extractor,
    *,
    size: int | None = None,
    batch: int = 64,
    progress: bool = True,
) -> Features:
    """Features of every image of an npz or of a folder, cropped to `size` (see `image_batches`).

    >>> import tempfile
    >>> from cfm_lite.evaluate.inception import StandIn
    >>> path = Path(tempfile.mkdtemp()) / "images.npz"
    >>> np.savez(path, arr_0=np.zeros((5, 8, 8, 3), np.uint8))
    >>> features_of(path, StandIn(), progress=False).pool.shape
    torch.Size([5, 64])
    """
    parts = [
        extractor(part)
        for part in tqdm(
            image_batches(source, batch, size), desc="features", unit="batch", disable=not progress
        )
    ]
    return Features(*(torch.cat(column) for column in zip(*parts)))


def image_batches(source: Path, batch: int, size: int | None = None) -> Iterator[Tensor]:
    """uint8 images (B, 3, H, W) of an npz, read in pieces, or of a folder, cropped to `size`.

    Without `size` an npz is read as it is, and a folder at 256 pixels. DataError for anything else,
    and ConfigError for a batch below 1.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "images.npz"
    >>> np.savez(path, arr_0=np.zeros((5, 8, 8, 3), np.uint8))
    >>> [tuple(images.shape) for images in image_batches(path, 4)]
    [(4, 3, 8, 8), (1, 3, 8, 8)]
    """
    batch = check_count("batch", batch)
    if source.is_dir():
        files = image_files.flat(source).files
        for i in range(0, len(files), batch):
            part = torch.stack(
                [image_files.load(file.path, size or 256) for file in files[i : i + batch]]
            )
            # the memory layout of an npz: a network's rounding depends on it
            yield part.contiguous(memory_format=torch.channels_last)
        return
    try:
        refuse_pickles(source)
        with opened(source) as (member, shape):
            cropped = size if size and shape[1:3] != (size, size) else 0
            for first in range(0, shape[0], batch):
                rows = (min(batch, shape[0] - first), *shape[1:])
                content = member.read(math.prod(rows))
                if len(content) != math.prod(rows):
                    raise EOFError("it ends early")
                images = np.frombuffer(content, np.uint8).reshape(rows).copy()
                if cropped:
                    crops = (
                        image_files.centre_crop(Image.fromarray(image), cropped) for image in images
                    )
                    images = np.stack([np.asarray(crop) for crop in crops])
                yield torch.from_numpy(images).permute(0, 3, 1, 2)
    except FileNotFoundError:
        raise DataError(
            f"there is no {source}. Run cfm-lite sample first, or give an npz with arr_0 or a "
            "folder of images."
        ) from None
    except CFMError:
        raise
    except Exception as error:
        # a damaged archive or header fails in every way that zlib and Python's own parser can
        raise DataError(
            f"{source} holds no images ({error}); arr_0 (N, H, W, 3) uint8 in an npz is expected. "
            "Make it again."
        ) from None


@contextmanager
def opened(source: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The images of an npz as a stream, and their shape (N, H, W, 3); DataError for other arrays.

    A damaged file raises what zipfile and NumPy raise.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "images.npz"
    >>> np.savez(path, arr_0=np.zeros((5, 8, 8, 3), np.uint8))
    >>> with opened(path) as (stream, shape):
    ...     shape
    (5, 8, 8, 3)
    """
    with zipfile.ZipFile(source) as archive, archive.open("arr_0.npy") as member:
        form: Any = np.lib.format
        old = form.read_magic(member) == (1, 0)
        read = form.read_array_header_1_0 if old else form.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
            raise DataError(
                f"arr_0 of {source} is {dtype} {shape}; uint8 (N, H, W, 3) with at least one image "
                "is expected."
            )
        if fortran:
            raise DataError(
                f"arr_0 of {source} lies in Fortran's order, in which no image is in one piece. "
                "Save np.ascontiguousarray(arr_0)."
            )
        if math.prod(shape[1:]) > 3 * image_files.PIXELS:
            raise DataError(
                f"arr_0 of {source} announces images of {shape[1]} x {shape[2]} pixels; the limit "
                f"is {image_files.PIXELS:,}."
            )
        yield member, shape


def _features_of_reference(
    source: Path, digest: str, extractor: Extractor, size: int, **read: Any
) -> Features:
    """Features of the reference's images: from the cache if content, size and network are the same,
    else `read` (see `features_of`).
    """
    name = f"{digest[:16]}-{size}-{extractor.fingerprint[:16]}.npz"
    cached = cache_root() / "reference" / name
    found = _cached(cached)
    if found is None:
        found = features_of(source, extractor, size=size, **read)
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value.numpy() for name, value in found._asdict().items()})
        keep(buffer.getvalue(), cached, "the reference's features")
    return found


def _cached(path: Path) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Features(*(torch.from_numpy(file[name]) for name in Features._fields))
            return found if len({len(part) for part in found}) == 1 else None
    except Exception:  # not there, or damaged in any way: it is computed again
        return None


def _content(source: Path, size: int) -> str:
    """A hash of the images: of the file, or of what the system knows of a folder's files.

    Times of writing may be kept by a copy; inode and time of change are another file's.
    """
    if source.is_dir():
        files = image_files.flat(source).files
        facts = [
            (file.key, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            for file in files
            for stat in [file.path.stat()]
        ]
        return hash_of_json([size, facts])
    if not source.is_file():
        raise DataError(
            f"there is no reference {source}. Give an npz with arr_0, such as ADM's, or a folder "
            "of images."
        )
    return hash_of_file(source)
