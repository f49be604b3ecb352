"""FID, sFID, inception score, precision and recall of samples against a reference, with the library's own metrics.

Samples and reference are an npz with arr_0 (N, H, W, 3) uint8, a folder that holds samples.npz, or a folder of images, which is
cropped to the samples' size. The reference's features are kept in the cache under the hash of its content and of the network.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfm_lite import checkpoint, metrics, runs
from cfm_lite.checks import warn_once
from cfm_lite.data import images as image_files
from cfm_lite.data.root import cache_root
from cfm_lite.data.shards import digest_file
from cfm_lite.errors import DataError
from cfm_lite.scale.features import Extractor, Features
from cfm_lite.scale.sample import SAMPLES

__all__ = ["evaluate_samples", "features_of", "image_batches"]

Row = dict[str, Any]


def evaluate_samples(
    samples: str | Path,
    reference: str | Path,
    extractor: Extractor,
    *,
    out: str | Path | None = None,
    batch: int = 64,
    progress: bool = True,
) -> tuple[list[Row], Path]:
    """Measure `samples` against `reference`; returns flat rows and the metrics.json that they were written to.

    Raises DataError for files that are missing, damaged, hold no images, or too few of them (at least 4 on each side).
    """
    source = _npz_of(Path(samples))
    size = next(image_batches(source, 1)).shape[-1]
    fake = features_of(source, extractor, batch=batch, progress=progress)
    real = _reference(Path(reference), extractor, size, batch, progress)
    if min(len(fake.pool), len(real.pool)) < 4:
        raise DataError(f"there are {len(fake.pool)} samples and {len(real.pool)} reference images; each side needs at least 4.")
    if min(len(fake.pool), len(real.pool)) <= fake.pool.shape[1]:
        warn_once(
            f"{len(fake.pool)} samples against {len(real.pool)}: Fréchet distances need more images than the {fake.pool.shape[1]} features "
            "and are biased upwards here; published ones use 50,000."
        )
    base = _base(source, extractor, reference, len(fake.pool), len(real.pool))
    rows = [{**base, "metric": extractor.prefix + name, "value": value} for name, value in measure(fake, real).items()]
    target = Path(out) if out else (source if source.is_dir() else source.parent) / "metrics.json"
    return rows, runs.write_json(target, rows)


def measure(fake: Features, real: Features) -> dict[str, float]:
    """{metric: value}: fid, sfid, inception_score and its deviation over ten splits, precision, recall."""
    precision, recall = metrics.precision_recall(real.pool, fake.pool)
    score, deviation = metrics.inception_score(fake.logits, splits=min(10, len(fake.logits)))
    values = {
        "fid": metrics.frechet(fake.pool, real.pool),
        "sfid": metrics.frechet(fake.spatial, real.spatial),
        "inception_score": score,
        "inception_score_std": deviation,
        "precision": precision,
        "recall": recall,
    }
    return {name: float(value) for name, value in values.items()}


def _npz_of(path: Path) -> Path:
    return path / SAMPLES if (path / SAMPLES).exists() else path


def _base(source: Path, extractor: Extractor, reference: str | Path, n: int, n_real: int) -> Row:
    """What a row says of its origin; the run's settings where cfm-lite sample left them beside the samples."""
    base: Row = {"features": extractor.name, "reference": str(reference), "samples": n, "reference_images": n_real, "dataset": "imagenet"}
    file = source.parent / "settings.json"
    if not file.exists():
        return base
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        recipe = settings["recipe"]
        evaluations = settings["steps"] * {"midpoint": 2, "heun": 2, "rk4": 4}.get(settings["solver"], 1)
        name = f"repa_{recipe['method']}" if recipe["align"] else recipe["method"]
        told = {"method": name + ("_debiased" if settings["debias"] else ""), "network": recipe["network"], "seed": settings["seed"]}
        told |= {"steps": settings["step"], "nfe": evaluations, "sampler": settings["solver"], "guidance": settings["guidance"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file} is damaged ({error}). Remove it, or draw the samples again.") from None
    return {**told, **base}


def features_of(source: Path, extractor: Extractor, *, size: int = 256, batch: int = 64, progress: bool = True) -> Features:
    """Features of every image of an npz, or of a folder of images cropped to `size`."""
    parts = [extractor(part) for part in tqdm(image_batches(source, batch, size), desc="features", unit="batch", disable=not progress)]
    return Features(*(torch.cat(column) for column in zip(*parts)))


def image_batches(source: Path, batch: int, size: int = 256) -> Iterator[Tensor]:
    """uint8 images (B, 3, H, W) of an npz, read in pieces, or of a folder; DataError for anything else."""
    if source.is_dir():
        files = image_files.find(source).files
        for i in range(0, len(files), batch):
            yield torch.stack([image_files.load(file.path, size) for file in files[i : i + batch]])
        return
    try:
        with zipfile.ZipFile(source) as archive, archive.open("arr_0.npy") as member:
            yield from _rows(member, source, batch)
    except FileNotFoundError:
        raise DataError(f"there is no {source}. Run cfm-lite sample first, or give an npz with arr_0 or a folder of images.") from None
    except DataError:
        raise
    except Exception as error:  # a damaged archive or header fails in every way that zlib and Python's own parser can
        raise DataError(f"{source} holds no images ({error}); arr_0 (N, H, W, 3) uint8 in an npz is expected. Make it again.") from None


def _rows(member: Any, source: Path, batch: int) -> Iterator[Tensor]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or not shape[0]:
        raise DataError(f"arr_0 of {source} is {dtype} {shape}; uint8 (N, H, W, 3) with at least one image is expected.")
    bytes_each = math.prod(shape[1:])
    if bytes_each > 3 * image_files.PIXELS:
        raise DataError(f"arr_0 of {source} announces images of {shape[1]} x {shape[2]} pixels; the limit is {image_files.PIXELS:,}.")
    for first in range(0, shape[0], batch):
        n = min(batch, shape[0] - first)
        content = member.read(n * bytes_each)
        if len(content) != n * bytes_each:
            raise EOFError("it ends early")
        yield torch.from_numpy(np.frombuffer(content, np.uint8).reshape(n, *shape[1:]).copy()).permute(0, 3, 1, 2)


def _reference(path: Path, extractor: Extractor, size: int, batch: int, progress: bool) -> Features:
    """Features of the reference, from the cache where its content and the network are the same."""
    source = _npz_of(path)
    cached = cache_root() / "reference" / f"{_content(source, size)}-{extractor.fingerprint[:16]}.npz"
    found = _cached(cached)
    if found is None:
        found = features_of(source, extractor, size=size, batch=batch, progress=progress)
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value.numpy() for name, value in found._asdict().items()})
        checkpoint.write_bytes(cached, buffer.getvalue())
    return found


def _cached(path: Path) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Features(*(torch.from_numpy(file[name]) for name in Features._fields))
    except Exception:  # not there, or damaged in any way: it is computed again
        return None


def _content(source: Path, size: int) -> str:
    """A hash of the images: of the file, or of the folder's names, sizes and times."""
    if source.is_dir():
        files = image_files.find(source).files
        facts = [(file.key, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.path.stat()]]
        return hashlib.sha256(json.dumps([size, facts]).encode()).hexdigest()[:16]
    if not source.is_file():
        raise DataError(f"there is no reference {source}. Give an npz with arr_0, such as ADM's, or a folder of images.")
    return digest_file(source)[:16]
