"""REPA's targets on disk: the frozen teacher's features of the images of a set of latents.

    FEATURES/  plan.json   shard-00000.npy  shard-00000.json  ...   index.json

They are computed once for all steps and runs. A shard is float16 (rows, mirrors, T, dim). Its rows
are those of the latents' shard with the same number, and its facts repeat their keys. 256 tokens of
DINOv2-B are 393 kB an image, so 504 GB for ImageNet. Mirror images take as much again; REPA does
not use them. Reference: Yu et al. 2024 (REPA, arXiv:2410.06940), which computes the features at
every step.
"""

import bisect
import hashlib
import io
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfm_lite._internal.checks import check_count
from cfm_lite._internal.files import fingerprint, hash_of_file
from cfm_lite.data.latents import Latents, Pictures, shards
from cfm_lite.data.shared import Watch, alone, forget_halves
from cfm_lite.errors import ConfigError, DataError

__all__ = ["TeacherFeatures", "encode_features"]

KIND = "teacher features"


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
    again. Raises DataError if `out` holds other features or an image is missing, ConfigError for a
    wrong argument, and DiskFullError.
    """
    batch = check_count("batch", batch)
    if check_count("mirrors", mirrors) > 2:
        raise ConfigError(f"mirrors is {mirrors}; it is 1, or 2 for the mirror images too.")
    out, plan = Path(out), _plan(latents, teacher, name, mirrors)
    _open_plan(out, plan)
    see, key = Pictures(latents, Path(images)), shards.hash_of(plan)
    mine = range(rank, len(latents.index["shards"]), world)
    with tqdm(
        total=sum(len(_rows(latents, i)) for i in mine),
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
                        _tokens(see, teacher, _rows(latents, number), mirrors, batch),
                        latents,
                    )
            bar.update(len(_rows(latents, number)))
    if all(_facts(out, i).exists() for i in range(len(latents.index["shards"]))):
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


def _open_plan(out: Path, plan: dict[str, Any]) -> None:
    path = out / "plan.json"
    with alone(out, "plan"):
        if not path.exists():
            shards.write(path, json.dumps(plan, indent=1).encode())
        theirs = shards.read_json(path, out)
    differs = [name for name in plan if theirs.get(name) != plan[name]]
    if differs:
        raise DataError(
            f"{out} holds other features ({', '.join(differs)} differ). Choose another --out, or "
            "remove the folder."
        )


def _rows(latents: Latents, number: int) -> range:
    ends = list(accumulate(int(shard["rows"]) for shard in latents.index["shards"]))
    return range(ends[number] - int(latents.index["shards"][number]["rows"]), ends[number])


def _tokens(
    see: Pictures, teacher: Callable[[Tensor], Tensor], rows: range, mirrors: int, batch: int
) -> np.ndarray:
    """(n, mirrors, T, dim) float16 of the given rows; an empty shard has no rows."""
    parts = []
    for part in torch.tensor(list(rows), dtype=torch.long).split(batch):
        pixels = see(part, torch.zeros(len(part), dtype=torch.bool)).float() / 255
        views = [pixels, pixels.flip(-1)][:mirrors]
        device = next((p.device for p in getattr(teacher, "parameters", list)()), "cpu")
        parts.append(
            torch.stack([teacher(view.to(device)).cpu() for view in views], 1)
            .numpy()
            .astype(np.float16)
        )
    return np.concatenate(parts) if parts else np.empty((0, mirrors, 0, 0), np.float16)


def _path(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}.npy"


def _facts(out: Path, number: int) -> Path:
    return _path(out, number).with_suffix(".json")


def _is_done(out: Path, number: int, key: str) -> bool:
    try:
        facts = shards.read_json(_facts(out, number), out)
        return facts.get("plan") == key and hash_of_file(_path(out, number)) == facts.get("sha256")
    except (DataError, OSError):
        return False


def _write_shard(out: Path, number: int, key: str, tokens: np.ndarray, latents: Latents) -> None:
    if not np.isfinite(tokens).all():
        raise DataError(
            f"the teacher gives NaN, or numbers beyond float16, for images of shard {number}. Use "
            "another teacher."
        )
    forget_halves(out, _path(out, number).name, _facts(out, number).name)
    buffer = io.BytesIO()
    np.save(buffer, tokens, allow_pickle=False)
    content, rows = buffer.getvalue(), _rows(latents, number)
    shards.write(_path(out, number), content)
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "plan": key,
        "keys": latents.keys[rows.start : rows.stop],
    }
    shards.write(_facts(out, number), json.dumps(facts).encode())


def _write_index(out: Path, plan: dict[str, Any], latents: Latents) -> dict[str, Any]:
    """Verify every shard and its keys, then write the index."""
    entries = []
    for number in range(len(latents.index["shards"])):
        rows, facts = _rows(latents, number), shards.read_json(_facts(out, number), out)
        if (
            facts.get("plan") != shards.hash_of(plan)
            or facts.get("keys") != latents.keys[rows.start : rows.stop]
        ):
            raise DataError(
                f"{_facts(out, number)} belongs to other features. Remove it and encode again."
            )
        shards.check_hash(_path(out, number), str(facts.get("sha256")))
        entries.append(
            {"file": _path(out, number).name, "rows": len(rows), "sha256": facts["sha256"]}
        )
    index = {**plan, "shards": entries}
    shards.write(
        out / shards.INDEX, json.dumps({**index, "self": shards.hash_of(index)}, indent=1).encode()
    )
    return index


class TeacherFeatures:
    """The features in a folder that `encode_features` wrote for `latents`.

    `dim`, `grid` and `teacher` are those of the teacher; T = grid * grid. Sizes are checked at
    once, hashes by `verify`. Raises DataError if the features are unfinished, damaged, or made for
    other latents.
    """

    def __init__(self, folder: str | Path, latents: Latents) -> None:
        self.folder = Path(folder).expanduser()
        self.index = index = shards.read_json(self.folder / shards.INDEX, self.folder)
        if index.get("kind") != KIND or index.get("self") != shards.hash_of(
            {k: v for k, v in index.items() if k != "self"}
        ):
            raise DataError(
                f"{self.folder / shards.INDEX} is damaged, or no index of teacher features. Encode "
                "them again."
            )
        if [shard["file"] for shard in index["shards"]] != [
            _path(self.folder, i).name for i in range(len(index["shards"]))
        ]:
            raise DataError(
                f"{self.folder / shards.INDEX} names files that are not its shards; nothing else "
                "is read. Encode them again."
            )
        if index["latents"] != latents.fingerprint:
            raise DataError(
                f"{self.folder} holds the features of other latents ({index['latents'][:12]}) than "
                f"{latents.folder} "
                f"({latents.fingerprint[:12]}). Encode them for these."
            )
        self.dim, self.grid, self.mirrors, self.teacher = (
            int(index["dim"]),
            int(index["grid"]),
            int(index["mirrors"]),
            index["teacher"],
        )
        self._ends = list(accumulate(int(shard["rows"]) for shard in index["shards"]))
        self._watch = Watch(
            [self.folder / shard["file"] for shard in index["shards"]], self._verify
        )
        self._maps = [self._open(shard) for shard in index["shards"]]

    def _open(self, shard: dict[str, Any]) -> np.ndarray:
        path, shape = (
            self.folder / shard["file"],
            (shard["rows"], self.mirrors, self.grid**2, self.dim),
        )
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            # a damaged header fails in every way that Python's own parser can
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}). Remove it and encode again."
            ) from None
        if shard["rows"] and (array.dtype != np.float16 or array.shape != shape):
            raise DataError(
                f"{path} holds {array.dtype} {array.shape}; float16 {shape} was written. Remove it "
                "and encode again."
            )
        return array

    def verify(self) -> None:
        """Hash every shard; DataError names the first that differs."""
        for number in range(len(self.index["shards"])):
            self._verify(number)

    def _verify(self, number: int) -> None:
        shard = self.index["shards"][number]
        shards.check_hash(self.folder / shard["file"], shard["sha256"])

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
        numbers = [bisect.bisect_right(self._ends, row) for row in rows.tolist()]
        self._watch.check(set(numbers))
        for i, (row, mirror, number) in enumerate(zip(rows.tolist(), mirrored.tolist(), numbers)):
            out[i] = self._maps[number][row - self._ends[number], int(mirror)]
        return torch.from_numpy(out)
