"""Paths as a user gives them: `~` is expanded here, and unusable paths are refused before any work.

Some files are never overwritten: those of a run, those of latents, and what a command itself reads.
"""

import fnmatch
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cfm_lite.errors import CFMError, ConfigError, DataError

__all__ = [
    "AnyPath",
    "check_file",
    "check_folder",
    "expanded",
    "inside",
    "listed",
    "unlisted",
]

AnyPath = str | os.PathLike[str]
OWN = (  # the files of runs, checkpoints, samples and latents
    "config.json", "log.jsonl", "latent_mean.npy", "settings.json", "MANIFEST.json", "state.json",
    "weights.safetensors", "optimizer.safetensors", "index.json", "plan.json", "labels.npy",
    "mean.npy", "keys.txt",
)  # fmt: skip
_FILES = (  # a new folder with such a name was meant to be a file
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".npz", ".npy", ".json", ".jsonl",
    ".csv", ".txt", ".md", ".pkl", ".pt", ".pth", ".ckpt", ".safetensors", ".tar", ".tgz", ".gz",
    ".xz", ".zip",
)  # fmt: skip


def expanded(path: AnyPath) -> Path:
    """`path` with `~` and `~user` expanded; ConfigError for what is no path, or cannot be one."""
    if not isinstance(path, str | os.PathLike) or isinstance(text := os.fspath(path), bytes):
        raise ConfigError(
            f"a path is {path!r:.60}; it must be a text or a pathlib.Path, such as 'runs/mine'."
        )
    if "\0" in text:
        raise ConfigError(
            f"the path {text!r:.100} holds a null byte, which no name can; give another one."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{text!r:.100} names a home folder that is not there; write the whole path, from / on."
        ) from None


def check_file(path: Path, suffixes: Iterable[str], *, inputs: Iterable[Path] = ()) -> Path:
    """`path`, a file that may be written or replaced; nothing is made.

    Raises ConfigError for another suffix, for one of `inputs` and for a file of a run, a
    checkpoint, samples or latents. Raises DataError if it is a folder or cannot be written.
    """
    _check_suffix(path, suffixes)
    _check_not_read(path, inputs)
    if os.path.lexists(path) and {path.name, os.path.basename(os.path.realpath(path))} & set(OWN):
        raise ConfigError(
            f"--out is {path}, which belongs to a run, to samples or to latents. It would be "
            "overwritten; choose another --out."
        )
    if path.is_dir():
        raise DataError(
            f"--out is {path}, which is a folder; give a file in it, such as "
            f"{path / ('out' + path.suffix)}."
        )
    _check_writable(path.parent)
    return path


def check_folder(path: Path, *, inputs: Iterable[Path] = ()) -> Path:
    """`path`, a folder that exists or can be made, and can be written to; nothing is made.

    Raises ConfigError for the name of a file and for one of `inputs`. Raises DataError if it is a
    file or cannot be written.
    """
    _check_not_read(path, inputs)
    if not path.is_dir() and path.suffix.lower() in _FILES:
        kind = "is a file" if path.exists() else "has the name of a file"
        raise ConfigError(
            f"--out is {path}, which {kind}; a folder is wanted, such as {path.with_suffix('')}."
        )
    _check_writable(path)
    return path


def inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies below it, whatever links lead there."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def listed(folder: Path, pattern: str, kind: type[CFMError] = DataError) -> list[Path]:
    """What in `folder` has a name of the `pattern`: nothing if there is no such folder.

    An error of the `kind` if it cannot be listed: `Path.glob` would find nothing in it.
    """
    try:
        names = os.listdir(os.path.join(folder, "."))  # the dot: only what can be entered too
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unlisted(folder, error, kind) from None
    return [folder / name for name in fnmatch.filter(names, pattern)]


def unlisted(folder: Path, error: OSError, kind: type[CFMError] = DataError) -> CFMError:
    """The error of a `folder` that cannot be listed."""
    return kind(
        f"{folder} cannot be listed ({error.strerror or error}). Make it readable, or give another "
        "folder."
    )


def _check_suffix(path: Path, suffixes: Iterable[str]) -> None:
    """`path` must end in one of `suffixes`; the ConfigError names a path that would do."""
    allowed = list(suffixes)
    if path.suffix not in allowed:
        first = allowed[0]
        better = path.with_name(f"{path.stem}{first}") if path.name else path / f"out{first}"
        raise ConfigError(
            f"--out is {path}; it must end in {' or '.join(allowed)}, such as {better}."
        )


def _check_not_read(path: Path, inputs: Iterable[Path]) -> None:
    if any(_same(path, other) for other in inputs):
        raise ConfigError(f"--out is {path}, which this command reads; choose another --out.")


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)  # hard and symbolic links too
    except OSError:  # one is not there
        return os.path.realpath(path) == os.path.realpath(other)


def _check_writable(folder: Path) -> None:
    """DataError unless a file can be made in `folder`, or in the nearest existing one above it."""
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not place.is_dir():
            raise DataError(
                f"cannot make or write {folder}: {place} is not a folder. Choose another --out."
            )
        # to try it is the only reliable test: root may do what the mode forbids, a mount may not
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise DataError(
            f"cannot make or write {folder}: {error.strerror or error}. Choose another --out."
        ) from None
