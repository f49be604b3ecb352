"""Where data files are, and how they are downloaded and read so that damage is always noticed.

The root is CFM_LITE_DATA, else `data/cache` of the checkout, else the user's cache folder. A file
is read whole and correct, or one DataError names the path, the variable and the command that
downloads it.
"""

import atexit
import contextlib
import functools
import gzip
import io
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from cfm_lite._internal.checks import warn_once
from cfm_lite._internal.files import inside, publish
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.errors import CFMError, ConfigError, DataError

__all__ = [
    "VARIABLE",
    "checkout",
    "damaged",
    "data_root",
    "fetching",
    "impatient",
    "keep",
    "missing",
    "read_file",
    "read_gzip",
    "scratch",
]

VARIABLE = "CFM_LITE_DATA"
PATIENCE = 30.0  # seconds without a byte, after which a download has failed
_GZIP_MAGIC = b"\x1f\x8b"


def checkout() -> Path | None:
    """The repository that this package runs from, or None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    try:
        ours = 'name = "cfm-lite"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    return folder if ours else None


def cache_root() -> Path:
    """The folder for files that can be made again, such as judges.

    It is data/cache in a checkout, else the user's cache folder.
    """
    repository = checkout()
    if repository:
        return repository / "data" / "cache"
    # XDG_CACHE_HOME may begin with ~
    path = Path(os.path.expanduser(platformdirs.user_cache_path("cfm_lite")))
    # without a home folder this is "~/.cache", which would be made in the current folder
    return (
        path
        if path.is_absolute()
        else Path(tempfile.gettempdir())
        / f"cfm_lite-{os.getuid() if hasattr(os, 'getuid') else os.getpid()}"
    )


def keep(content: bytes, path: Path, what: str) -> bool:
    """Write `content` to a file of the cache as `publish` does. False, with one note, if that
    fails.

    The cache only saves time. If it is full or read-only, the next call makes the file again.
    """
    try:
        publish(content, path)
    except (OSError, CFMError) as error:
        reason = getattr(error, "strerror", None) or error
        warn_once(
            f"{what} cannot be kept in {path.parent} ({reason}): nothing is lost, but the next "
            "call makes it again."
        )
        return False
    return True


@contextlib.contextmanager
def scratch(folder: Path, what: str) -> Iterator[Path]:
    """Work in `folder` of the cache, and leave no empty one if the work fails. If it cannot be
    written to: one note, and a folder that lasts until exit.
    """
    with contextlib.ExitStack() as made:
        try:
            made.enter_context(inside(folder))
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            warn_once(
                f"{what} cannot be kept in {folder} ({error.strerror or error}): nothing is lost, "
                "but the next call makes it again."
            )
            folder = _until_exit()
        yield folder


@functools.cache
def _until_exit() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cfm_lite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def data_root(root: AnyPath | None = None) -> Path:
    """The folder of the data sets: `root` if given, else CFM_LITE_DATA, else the default. It need
    not exist.

    Raises DataError for a name that no folder can have.
    """
    chosen = root or os.environ.get(VARIABLE)
    if not chosen:
        return cache_root()
    try:
        return expanded(chosen)
    except ConfigError as error:
        # a wrong place of data is an error of data, not of an argument
        raise DataError(
            f"{error} It is given as the root of the data sets (root=..., or {VARIABLE})."
        ) from None


def _remedy(dataset: str) -> str:
    value = os.environ.get(VARIABLE)
    setting = f"it is {value}" if value else "it is not set"
    return (
        f"`cfm-lite prepare {dataset}` downloads it; {VARIABLE} ({setting}) names the folder that "
        f"holds {dataset}/."
    )


def missing(dataset: str, path: Path) -> DataError:
    """The error for a file that is not there. The caller raises it."""
    return DataError(f"{dataset}: there is no file {path}. {_remedy(dataset)}")


def damaged(dataset: str, path: Path, reason: str) -> DataError:
    """The error for a file with wrong content. The caller raises it."""
    return DataError(f"{dataset}: {path} {reason}. {_remedy(dataset)}")


def read_file(path: Path, dataset: str) -> bytes:
    """All bytes of a file.

    Raises DataError if it is missing, empty, a folder, a loop of links, or unreadable.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(dataset, path) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise damaged(
            dataset, path, f"cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    if not content:
        raise damaged(dataset, path, "is empty (0 bytes)")
    return content


def read_gzip(path: Path, dataset: str, limit: int) -> bytes:
    """The unpacked bytes of a gzip file, at most `limit` of them.

    Raises DataError if it is missing, not gzip (such as an HTML page), truncated, damaged (CRC), or
    unpacks to more.
    """
    packed = read_file(path, dataset)
    if not packed.startswith(_GZIP_MAGIC):
        is_page = packed.lstrip()[:1] == b"<"
        raise damaged(
            dataset, path, "is a web page, not a gzip file" if is_page else "is not a gzip file"
        )
    try:
        with gzip.open(io.BytesIO(packed)) as stream:
            # one byte too many, so that the end is reached and the CRC is checked
            content = stream.read(limit + 1)
    except EOFError:
        raise damaged(dataset, path, "is truncated") from None
    except (OSError, zlib.error) as error:
        raise damaged(dataset, path, f"is damaged ({error})") from None
    if len(content) > limit:
        raise damaged(dataset, path, f"unpacks to more than the {limit} bytes that it should hold")
    return content


@contextlib.contextmanager
def fetching(dataset: str, by_hand: str) -> Iterator[None]:
    """Download inside. If that fails, DataError says what to put where `by_hand`."""
    try:
        with impatient():
            yield
    except CFMError:
        raise
    except Exception as error:
        # torchvision and the network fail in many types; all mean the same to the reader
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{dataset}: the download failed ({reason}). Try again online, or put {by_hand}."
        ) from None


@contextlib.contextmanager
def impatient(seconds: float = PATIENCE) -> Iterator[None]:
    """Connections opened in this block fail after `seconds` without a byte, instead of waiting for
    ever.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
