"""REPA's targets on disk: the frozen teacher's features of the images of a set of latents.

    FEATURES/  plan.json   shard-00000.npy  shard-00000.json  ...   index.json

They are computed once for all steps and runs. A shard is float16 (rows, mirrors, T, dim). Its rows
are those of the latents' shard with the same number, and its facts repeat their keys. 256 tokens of
DINOv2-B are 393 kB an image, so 504 GB for ImageNet. Mirror images take as much again; REPA does
not use them. Reference: Yu et al. 2024 (REPA, arXiv:2410.06940), which computes the features at
every step.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfm_lite._internal.checks import check_count
from cfm_lite._internal.files import fingerprint, hash_of_file, hash_of_json
from cfm_lite._internal.places import expanded
from cfm_lite.data.latents import Latents, Pictures, shards
from cfm_lite.data.shared import alone, forget_halves
from cfm_lite.errors import ConfigError, DataError

__all__ = ["TeacherFeatures", "encode_features"]

KIND, AGAIN = "teacher features", "Remove it and encode again."
SAME = "Give the folder that it was made of with --images."


def encode_features(
    latents: Latents,
    images: str | Path,
    teacher: Any,
    name: str,
    out: str | Path,
    *,
    mirrors: int = 1,
    rank: int = 0,
    world: int = 1,
    batch: int = 32,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Write this rank's missing shards of `out`. Returns the index, or None while other ranks still
    work.

    `images` is the folder that the latents were made of, `teacher` an `Encoder` called `name`. With
    `mirrors` 2 the mirror images are encoded too. The process may be killed at any time and started
    again. Raises DataError if `out` holds other features, if an image is missing or is not the one
    that the latents were made of (`shards.check_sources` says what is compared), ConfigError for a
    wrong argument, and DiskFullError.
    """
    batch = check_count("batch", batch)
    if check_count("mirrors", mirrors) > 2:
        raise ConfigError(f"mirrors is {mirrors}; it is 1, or 2 for the mirror images too.")
    out, plan = expanded(out), _plan(latents, teacher, name, mirrors)
    see = Pictures(latents, Path(images))
    for number in range(len(latents.index["shards"])):
        facts = shards.read_facts(latents.folder, number)
        shards.check_sources(facts, see.root, latents.folder, SAME)
    key = shards.open_plan(out, plan, KIND)
    mine = range(rank, len(latents.index["shards"]), world)
    with tqdm(
        total=sum(len(latents.rows_of(i)) for i in mine),
        desc="teacher",
        unit="image",
        disable=not progress,
    ) as bar:
        for number in mine:
            with alone(out, number):
                if not _is_done(out, number, key):
                    _write_shard(
                        out,
                        number,
                        key,
                        _tokens(see, teacher, latents.rows_of(number), mirrors, batch),
                        latents,
                    )
            bar.update(len(latents.rows_of(number)))
    if all(shards.facts_path(out, i).exists() for i in range(len(latents.index["shards"]))):
        return _write_index(out, plan, latents)
    return None


def _plan(latents: Latents, teacher: Any, name: str, mirrors: int) -> dict[str, Any]:
    return {
        "kind": KIND,
        "latents": latents.fingerprint,
        "teacher": name,
        "weights": fingerprint(teacher.state_dict()),
        "grid": teacher.grid,
        "dim": teacher.dim,
        "mirrors": mirrors,
    }


def _tokens(
    see: Pictures, teacher: Callable[[Tensor], Tensor], rows: range, mirrors: int, batch: int
) -> np.ndarray:
    """(n, mirrors, T, dim) float16 of the given rows; an empty shard has no rows."""
    parts = []
    for part in torch.tensor(list(rows), dtype=torch.long, device="cpu").split(batch):
        pixels = see(part, torch.zeros_like(part, dtype=torch.bool)).float() / 255
        views = [pixels, pixels.flip(-1)][:mirrors]
        device = next((p.device for p in getattr(teacher, "parameters", list)()), "cpu")
        parts.append(
            torch.stack([teacher(view.to(device)).cpu() for view in views], 1)
            .numpy()
            .astype(np.float16)
        )
    return np.concatenate(parts) if parts else np.empty((0, mirrors, 0, 0), np.float16)


def _is_done(out: Path, number: int, key: str) -> bool:
    try:
        facts = shards.read_json(shards.facts_path(out, number), out)
        return facts.get("plan") == key and hash_of_file(
            shards.shard_path(out, number)
        ) == facts.get("sha256")
    except (DataError, OSError):
        return False


def _write_shard(out: Path, number: int, key: str, tokens: np.ndarray, latents: Latents) -> None:
    if not np.isfinite(tokens).all():
        raise DataError(
            f"the teacher gives NaN, or numbers beyond float16, for images of shard {number}. Use "
            "another teacher."
        )
    forget_halves(out, shards.shard_path(out, number).name, shards.facts_path(out, number).name)
    content, rows = shards.npy(tokens), latents.rows_of(number)
    shards.write(shards.shard_path(out, number), content)
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "plan": key,
        "keys": latents.keys[rows.start : rows.stop],
    }
    shards.write(shards.facts_path(out, number), json.dumps(facts).encode())


def _write_index(out: Path, plan: dict[str, Any], latents: Latents) -> dict[str, Any]:
    """Verify every shard and its keys, then write the index."""
    entries = []
    for number in range(len(latents.index["shards"])):
        rows, facts = latents.rows_of(number), shards.read_json(shards.facts_path(out, number), out)
        if (
            facts.get("plan") != hash_of_json(plan)
            or facts.get("keys") != latents.keys[rows.start : rows.stop]
        ):
            raise DataError(f"{shards.facts_path(out, number)} belongs to other features. {AGAIN}")
        shards.check_hash(shards.shard_path(out, number), str(facts.get("sha256")))
        entries.append(shards.entry(out, number, len(rows), facts["sha256"]))
    index = {**plan, "shards": entries}
    shards.write_sealed(out / shards.INDEX, index, indent=1)
    return index


class TeacherFeatures(shards.Mapped):
    """The features in a folder that `encode_features` wrote for `latents`.

    `dim`, `grid` and `teacher` are those of the teacher; T = grid * grid. Sizes are checked at
    once, hashes by `verify`. Raises DataError if the features are unfinished, damaged, or made for
    other latents.
    """

    def __init__(self, folder: str | Path, latents: Latents) -> None:
        place = expanded(folder)
        index = shards.read_json(place / shards.INDEX, place)
        if index.get("kind") != KIND:
            raise DataError(f"{place / shards.INDEX} is not an index of teacher features. {AGAIN}")
        shards.check_sealed(place / shards.INDEX, index, AGAIN)
        if index["latents"] != latents.fingerprint:
            raise DataError(
                f"{place} holds the features of other latents ({index['latents'][:12]}) than "
                f"{latents.folder} ({latents.fingerprint[:12]}). Encode them for these."
            )
        self.dim, self.grid, self.mirrors, self.teacher = (
            int(index["dim"]),
            int(index["grid"]),
            int(index["mirrors"]),
            index["teacher"],
        )
        super().__init__(place, index, (self.mirrors, self.grid**2, self.dim), AGAIN)

    def __call__(self, rows: Tensor, mirrored: Tensor) -> Tensor:
        """Tokens (B, T, dim) float16 of the rows (B,); of the mirror image where `mirrored` (B,) is
        True.

        Raises DataError if a shard is missing or has changed since the folder was opened.
        """
        if self.mirrors == 1 and bool(mirrored.any()):
            raise ConfigError(
                f"{self.folder} holds no mirror images; encode with --mirrors 2, or train with "
                "--set mirror=False."
            )
        out = np.empty((len(rows), self.grid**2, self.dim), np.float16)
        for i, ((number, row), mirror) in enumerate(zip(self.places(rows), mirrored.tolist())):
            out[i] = self._maps[number][row, int(mirror)]
        return torch.from_numpy(out)
