"""A run as a folder: which one a path means, what it holds, and where a new one may be kept."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfm_lite._internal.checks import parse_json
from cfm_lite._internal.places import OWN, AnyPath, check_folder, expanded
from cfm_lite.data.latents.shards import parse_npy
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.runs.recipe import Recipe, from_dict

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "MEAN",
    "Located",
    "check_kind",
    "home_for",
    "is_file_of_weights",
    "located",
    "make_folder",
    "read_config",
    "read_mean",
    "samples_of",
    "saved_recipe",
]

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
MEAN = "latent_mean.npy"  # E[x1] of the latents that a run was trained on
_SETTINGS = 2**24  # bytes of the settings in a file of samples, at most
_KINDS = {  # what a folder may hold, and the files that tell it
    "a run": (CONFIG, CHECKPOINTS),
    "latents or features": ("plan.json", "index.json"),
    "samples": ("settings.json",),
}


class Located(NamedTuple):
    """A run's `folder`, which holds config.json, and the checkpoint that was named; None for the
    newest.

    >>> Located(Path("run"), Path("run/checkpoints/step-00000500")).checkpoint.name
    'step-00000500'
    """

    folder: Path
    step: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that was named, or the newest whole one. CheckpointError if there is
        none.
        """
        if self.step is not None:
            return self.step
        inner = self.folder / CHECKPOINTS
        return checkpoint.latest(inner if inner.is_dir() else self.folder)


def located(path: AnyPath) -> Located:
    """The run that `path` means: its folder, its checkpoints/, one of its step-* folders, or a file
    in any of these.

    `path` may be relative, hold `~`, `.` and `..`, end in a slash, or be a link. Only names are
    read. A path that is not a run is returned as it is, and the caller refuses it.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> size = (run / CONFIG).write_text("{}")
    >>> located(run / "checkpoints" / "step-00000500").folder.name == run.name
    True
    """
    given = expanded(path)
    for view in (
        Path(os.path.abspath(given)),
        Path(os.path.realpath(given)),
    ):  # the checkpoints of a run may be a link to another disk
        ours = (
            view.parent / checkpoint.MANIFEST
        ).exists() or view.name in OWN  # an exported file may lie in the run's folder too
        place = view.parent if ours and view.is_file() else view
        step = place if _is_step(place) else None
        home = place.parent if step else place
        home = home.parent if home.name == CHECKPOINTS and not (home / CONFIG).exists() else home
        if (home / CONFIG).exists():
            return Located(home, step)
    return Located(given, given if _is_step(given) else None)


def samples_of(path: AnyPath) -> Path:
    """The samples.npz that `path` means: a file, one in a folder, or one of a run (see `located`).

    Any other path is returned as it is: the caller reads it as a folder of images, or refuses it.
    Raises ConfigError for a checkpoint whose run has samples of another step, and DataError if
    what these say of themselves is damaged.

    >>> samples_of("a folder of images").name  # no run: the caller reads it
    'a folder of images'
    """
    given, (home, step) = expanded(path), located(path)
    if given.is_file() and given.suffix == ".npz":
        return given
    places = [given, *([home, home / "samples"] if (home / CONFIG).exists() else [])]
    found = next(
        (place / "samples.npz" for place in places if (place / "samples.npz").is_file()), given
    )
    drawn = _drawn_at(found) if step and found != given else None
    if step and drawn is not None and drawn != int(step.name.split("-")[1]):
        out = "FILE.npz" if found.parent == home else "DIR"
        raise ConfigError(
            f"{found} was drawn at step {drawn}, not at {step.name}; give {home}, or draw others: "
            f"cfm-lite sample --checkpoint {given} --num N --out {out}."
        )
    return found


def _drawn_at(file: Path) -> Any:
    """The step at which the samples in `file` were drawn: of settings.json beside it, else of the
    settings in it. None if there are none.
    """
    settings = file.parent / "settings.json"
    if settings.is_file():
        try:
            return parse_json(settings.read_bytes())["step"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{settings} is damaged ({error}). Remove it, or draw the samples again."
            ) from None
    try:
        with zipfile.ZipFile(file) as archive:
            inside = archive.getinfo("settings.npy")
            if inside.file_size > _SETTINGS:
                return None
            return parse_json(str(parse_npy(archive.read(inside), file)))["step"]
    except Exception:  # of another program, or damaged in any way: whoever reads it says so
        return None


def home_for(out: AnyPath, resume: bool | str = False, *, inputs: Iterable[Path] = ()) -> Path:
    """The folder where a run may be kept or resumed. Nothing is made.

    Raises ConfigError for a place inside another run, for a folder of latents or samples, for one
    of `inputs` and for the name of a file. Raises DataError if nothing can be written there.

    >>> import tempfile
    >>> home_for(Path(tempfile.mkdtemp()) / "new").name
    'new'
    """
    place, path = located(out), expanded(out)
    if (place.folder / CONFIG).exists() and place.folder != Path(os.path.abspath(path)):
        newest = Located(place.folder).checkpoint if resume and place.step else None
        if not resume or (newest and not newest.samefile(place.step or newest)):
            raise ConfigError(
                f"--out is {path}, which lies inside the run {place.folder}; give that folder, or "
                "another."
            )
        path = place.folder
    check_kind(path, "a run", inputs=inputs)
    if (path / CONFIG).exists() and not _is_config_of_run(path / CONFIG):
        raise ConfigError(
            f"{path / CONFIG} does not belong to a run. It would be overwritten; choose another "
            "--out."
        )
    return path


def check_kind(path: Path, kind: str, *, inputs: Iterable[Path] = ()) -> Path:
    """`path`, a folder where one of _KINDS may be kept: it holds none of the others. Nothing is
    made. Raises ConfigError, and as `check_folder` does.

    >>> check_kind(Path("new"), "samples").name
    'new'
    """
    for other, names in _KINDS.items():
        found = next((name for name in names if (path / name).exists()), None)
        if found and other != kind and (found != CONFIG or _is_config_of_run(path / found)):
            raise ConfigError(
                f"{path} holds {other} (there is {found}); choose another --out for {kind}."
            )
    return check_folder(path, inputs=inputs)


def _is_config_of_run(file: Path) -> bool:
    try:
        return "recipe" in json.loads(file.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        # a damaged config.json counts as a run's: opening the run then explains the damage
        return True


def _is_step(folder: Path) -> bool:
    return (folder / checkpoint.MANIFEST).exists() or (
        re.fullmatch(r"step-\d+(-r\d+)?", folder.name) is not None
    )


def read_config(path: AnyPath) -> dict[str, Any]:
    """The config.json of a run (see `located`), checked to hold a recipe. CheckpointError if there
    is none.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> size = (run / CONFIG).write_text(json.dumps({"recipe": {"dataset": "moons"}}))
    >>> read_config(run)["recipe"]
    {'dataset': 'moons'}
    """
    file = located(path).folder / CONFIG
    try:
        config = parse_json(file.read_bytes())
        from_dict(config["recipe"])
        return dict(config)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is not a run: {file} is missing. Give the folder that cfm-lite train wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Give the folder that cfm-lite train wrote."
        ) from error


def saved_recipe(path: AnyPath) -> Recipe:
    """The recipe in the config.json of a run (see `located`); CheckpointError if there is none.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> size = (run / CONFIG).write_text(json.dumps({"recipe": {"dataset": "moons"}}))
    >>> saved_recipe(run).dataset
    'moons'
    """
    return from_dict(read_config(path)["recipe"])


def is_file_of_weights(path: Path) -> bool:
    """True for the name of a single file of weights, as the official programs write. False for a
    file in a run.

    >>> is_file_of_weights(Path("SiT-XL-2.pt")), is_file_of_weights(Path("run"))
    (True, False)
    """
    return (
        path.suffix in (".pt", ".pth", ".safetensors")
        and not path.is_dir()
        and not (path.parent / checkpoint.MANIFEST).exists()
    )


def read_mean(file: Path, digest: str) -> Tensor:
    """The mean (C, h, w) in a file. DataError unless its SHA-256 is `digest`."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{file} is damaged: its SHA-256 differs from config.json's. Copy mean.npy of the "
            "latents there."
        )
    return torch.from_numpy(parse_npy(content, file))


def make_folder(folder: str | Path) -> Path:
    """The folder, made if it is missing. DataError, before any work, if it cannot be made or
    written to.

    >>> import tempfile
    >>> make_folder(Path(tempfile.mkdtemp()) / "runs" / "new").is_dir()
    True
    """
    folder = expanded(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except (OSError, CheckpointError) as error:
        raise DataError(
            f"cannot make or write {folder}: {getattr(error, 'strerror', None) or error}. Choose "
            "another --out."
        ) from error
    return folder
