"""The samples of a run and their numbers: one evaluator for every run, and for any folder of
images.

Without a reference, samples of cfm-lite sample are compared with the held-out rows of their data
set. With a reference, images are compared with images or statistics.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfm_lite import runs
from cfm_lite._internal.checks import parse_json
from cfm_lite._internal.files import fingerprint
from cfm_lite.data import archive, captions, images
from cfm_lite.data.datasets import codec_for, dataset
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import DataError
from cfm_lite.evaluate.card import Row, card_of, told
from cfm_lite.evaluate.images import evaluate_samples, npz_of, rows_file
from cfm_lite.evaluate.inception import open_extractor
from cfm_lite.evaluate.measures import judge_of, measure, reference_rows
from cfm_lite.evaluate.reader import reader_for, score_table, scores
from cfm_lite.runs.recipe import from_dict

__all__ = ["evaluate", "evaluate_file", "load_samples", "save_samples"]

LIMIT = 2**32  # bytes of samples in one file


def evaluate(
    samples: Path,
    reference: Path | None,
    inception: str | None,
    out: Path | None,
    device: str,
    clip: str | None = None,
) -> str:
    """Measure samples, against `reference` if there is one. Returns the card and the table to
    print. `clip` is the place of another CLIP for the score than the one that read the captions.
    """
    if reference is None:
        (rows, path), note, width = evaluate_file(samples, out), [], 16
    else:
        called = str(reference)
        file = samples.name if archive.is_archive(samples) else None
        if file:
            out = rows_file(samples, out, inputs=[samples])
            samples = images.opened(samples)
        if archive.is_archive(reference):
            reference = images.opened(reference)
        extractor = open_extractor(inception, runs.pick_device(device))
        rows, path = evaluate_samples(
            samples, reference, extractor, out=out, called=called, clip=clip, file=file
        )
        random = "a random network stands in for Inception: these numbers mean nothing"
        note, width = [random] if extractor.prefix else [], 30
    table = [f"{row['metric']:<{width}} {row['value']:.4f}" for row in rows]
    table = score_table(rows) if "prompts" in rows[0] else table
    return "\n".join([*note, *told(rows[0]), *table, f"rows in {path}"])


def save_samples(path: Path, x: Tensor, y: Tensor, settings: Mapping[str, Any]) -> None:
    """Write samples (N, *dims), labels (N,) and their settings as one npz.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "samples.npz"
    >>> save_samples(path, torch.zeros(4, 2), torch.zeros(4), {"recipe": {"dataset": "moons"}})
    >>> load_samples(path)[0].shape
    torch.Size([4, 2])
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=x.numpy(), y=y.numpy(), settings=np.array(json.dumps(settings)))
    write_bytes(path, buffer.getvalue())


def load_samples(path: str | Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(x, y, settings) of a file that `save_samples` wrote, or of the samples.npz in a folder.

    settings["recipe"] is the recipe. Raises DataError for a file that is missing, damaged or of
    another kind.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "samples.npz"
    >>> save_samples(path, torch.zeros(4, 2), torch.arange(4), {"recipe": {"dataset": "moons"}})
    >>> x, y, settings = load_samples(path)
    >>> y, settings["recipe"]
    (tensor([0, 1, 2, 3]), {'dataset': 'moons'})
    """
    path = npz_of(path)
    if path.is_dir():
        raise DataError(
            f"{path} is a folder without a samples.npz. Give one that cfm-lite sample wrote. For "
            "images, give --reference too."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LIMIT:
            raise DataError(f"it unpacks to {size:,} bytes, the limit is {LIMIT:,}")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if "arr_0" in file:
                raise DataError(
                    "it holds images, arr_0, which need a reference: give one with --reference"
                )
            x, y, settings = (
                torch.from_numpy(file["x"]),
                torch.from_numpy(file["y"]),
                parse_json(str(file["settings"])),
            )
        from_dict(settings["recipe"])
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing. Run cfm-lite sample first, or give the right file."
        ) from None
    except Exception as error:
        # a damaged archive or header fails in every way that zlib and Python's own parser can
        raise DataError(
            f"{path} holds no samples of cfm-lite sample ({error}). Draw them again."
        ) from None
    if len(x) != len(y) or not torch.isfinite(x).all():
        raise DataError(
            f"{path} holds {len(x)} samples and {len(y)} labels, or values that are not finite. "
            "Draw them again."
        )
    return x, y, settings


def evaluate_file(path: str | Path, out: str | Path | None = None) -> tuple[list[Row], Path]:
    """Measure the samples in an npz. Returns flat rows, each with its card, and their
    metrics.json.

    Raises what `load_samples` and `rows_file` do, and DataError if `out` cannot be written and for
    fewer than 4 samples of images, or 2 of points.
    """
    x, y, settings = load_samples(path)
    source = npz_of(path)
    target = rows_file(source, out)
    if y.dim() == 2:
        rows = [{**row, "file": source.name} for row in _scored(x, y, settings)]
        return rows, runs.write_json(target, rows)
    name = from_dict(settings["recipe"]).dataset
    data, judge = dataset(name), judge_of(name)
    least = 2 if judge is None else 4  # of MMD; of precision and recall, for 3 neighbours
    if len(x) < least:
        raise DataError(
            f"{source} holds {len(x)} samples of {data.name}; at least {least} are needed. Draw "
            "more with cfm-lite sample --num N."
        )
    values = measure(x, y, data, judge)
    by = (
        {"features": "coordinates", "features_hash": None}
        if judge is None
        else {"features": f"judge of {judge.dataset}", "features_hash": judge.fingerprint}
    )
    card = card_of(settings, samples=len(x), reference=f"held-out rows of {data.name}", **by)
    held = reference_rows(len(x), data, judge)
    card |= {
        "codec": type(data.codec).__name__ if data.codec else None,
        "file": source.name,
        "reference_kind": "rows",
        "reference_images": len(held),
        "reference_hash": fingerprint({"": held}, shapes=False),  # of the numbers alone
        "reference_holds": f"{len(held):,} of {len(data.held_x1):,}",
    }
    rows = [{**card, "metric": name, "value": value} for name, value in values.items()]
    return rows, runs.write_json(target, rows)


def _scored(x: Tensor, y: Tensor, settings: Mapping[str, Any]) -> list[Row]:
    """The rows of pictures `x` for captions `y`, read back by the shipped reader."""
    reader, codec = reader_for(), codec_for(from_dict(settings["recipe"]).dataset)
    card = card_of(
        settings,
        samples=len(x),
        features="reader of words",
        features_hash=reader.fingerprint,
        reference="what the captions say",
    )
    card["codec"] = type(codec).__name__ if codec else None
    pictures = x if codec is None else codec.decode(x)
    return [{**card, **row} for row in scores(reader, pictures, captions.decode(y))]
