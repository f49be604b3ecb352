"""What samples are compared with: images, the statistics of a whole set, or both in one file.

    ADM            arr_0 (10,000 images), mu, sigma, mu_s, sigma_s (statistics of all 1.28 million)
    pytorch-fid    mu, sigma                       EDM, clean-fid: the same two

A Fréchet distance is taken to the statistics, if there are any. Precision and recall need images. A
distance to images is named after their number, such as fid_to_10000_images: it is 1 to 5 larger
than the distance to the whole set, so it has another name. Nothing is unpickled.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfm_lite import metrics
from cfm_lite.errors import ConfigError, DataError, UntrustedFileError
from cfm_lite.evaluate.inception import Extractor, Features

__all__ = ["IMAGES", "STATISTICS", "Reference", "Statistics", "names_in", "statistics_of"]

IMAGES = "arr_0"
STATISTICS = {
    "fid": ("mu", "sigma"),
    "sfid": ("mu_s", "sigma_s"),
}  # of the pooled features, and of the spatial ones
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
LIMIT = 2**29  # bytes of one array: 8,192 x 8,192 in float64


class Statistics(NamedTuple):
    """The mean (d,) in float64, and the covariance (d, d) as saved: its digits bound its errors.

    >>> Statistics(torch.zeros(2), torch.eye(2)).mean.shape
    torch.Size([2])
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Reference:
    """A reference that was read: statistics by metric, features of its images, or both.

    >>> known = {"fid": Statistics(torch.zeros(2).double(), torch.eye(2).double())}
    >>> Reference("statistics.npz", "ab12", known).holds.split(",")[0]
    'fid from mu and sigma'
    """

    path: str
    digest: str
    statistics: dict[str, Statistics] = field(default_factory=dict)
    features: Features | None = None

    @property
    def images(self) -> int:
        """The number of images."""
        return 0 if self.features is None else len(self.features.pool)

    def distance(self, metric: str, rows: Tensor) -> tuple[str, Tensor] | None:
        """(name, Fréchet distance) of the rows (N, d) of samples, for "fid" or "sfid".

        None if the reference has neither statistics nor images.
        """
        if metric in self.statistics:
            return metric, metrics.frechet_to(rows, *self.statistics[metric])
        if self.features is None:
            return None
        own = self.features.pool if metric == "fid" else self.features.spatial
        return f"{metric}_to_{self.images}_images", metrics.frechet(rows, own)

    @property
    def holds(self) -> str:
        """What the reference holds, in words."""
        known = " and ".join(
            f"{metric} from {' and '.join(STATISTICS[metric])}" for metric in self.statistics
        )
        stated = f"{known}, statistics of an unknown number of images" if known else ""
        has = (
            f"{self.images:,} images{', for precision and recall' if known else ''}"
            if self.images
            else "no images: no precision and recall"
        )
        return "; ".join(part for part in (stated, has) if part)


def refuse_pickles(path: Path) -> None:
    """Raise UntrustedFileError for a file that can only be read by running code in it."""
    with open(path, "rb") as file:
        start = file.read(2)
    pickled = start[:1] == b"\x80" or path.suffix.lower() in PICKLES
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickled |= any(name.endswith(".pkl") for name in archive.namelist())
    if pickled:
        raise UntrustedFileError(
            f"{path} was not loaded: it is a pickle, which may run code. If you trust it, open it "
            "elsewhere and save its arrays with np.savez('reference.npz', mu=mu, sigma=sigma)."
        )


def names_in(path: Path) -> list[str]:
    """The names of the arrays in an npz. DataError if there is no npz, UntrustedFileError for a
    pickle.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "statistics.npz"
    >>> np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    >>> names_in(path)
    ['mu', 'sigma']
    """
    try:
        refuse_pickles(path)
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise DataError(
            f"there is no reference {path}. Give an npz such as ADM's or pytorch-fid's, or a "
            "folder of images."
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not an npz ({error}). Give one such as ADM's or pytorch-fid's, or a folder "
            "of images."
        ) from None


def statistics_of(path: Path, extractor: Extractor) -> dict[str, Statistics]:
    """The statistics in an npz by metric; empty if there are none.

    Raises DataError for one of a pair, for another number of features than the extractor's, for
    numbers that are not finite, and for a matrix that is not a covariance. Raises
    UntrustedFileError for objects in place of numbers.

    >>> import tempfile
    >>> from cfm_lite.evaluate.inception import StandIn
    >>> path = Path(tempfile.mkdtemp()) / "statistics.npz"
    >>> np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    >>> list(statistics_of(path, StandIn()))
    ['fid']
    """
    names, found = names_in(path), {}
    for metric, pair in STATISTICS.items():
        held = [name for name in pair if name in names]
        if len(held) == 1:
            raise DataError(
                f"{path} holds {held[0]} without {next(iter(set(pair) - set(held)))} "
                f"({_listed(names)}); both are needed. Fetch it again."
            )
        if held:
            found[metric] = _checked(path, pair, extractor.name, extractor.widths[metric])
    if not found and IMAGES not in names:
        raise DataError(
            f"{path} holds {_listed(names)}; a reference holds arr_0 (images), mu and sigma "
            "(statistics), or both."
        )
    return found


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:6])}{' ...' if len(names) > 6 else ''}" if names else "nothing"


def _checked(path: Path, names: tuple[str, str], network: str, width: int) -> Statistics:
    mean, covariance = (_array(path, name) for name in names)
    d = mean.shape[0] if mean.dim() == 1 else None
    if d is None or covariance.shape != (d, d):
        seen = " and ".join(
            f"{name} {tuple(x.shape)}" for name, x in zip(names, (mean, covariance))
        )
        raise DataError(
            f"{path} holds {seen}; the shapes must be (d,) and (d, d). Compute the statistics "
            "again."
        )
    if d != width:
        raise DataError(
            f"{path} holds statistics of {d:,} features, and {network} has {width:,}: they "
            "are those of another network. "
            "Use statistics of this one, or a reference of images."
        )
    try:
        metrics.check_covariance(names[1], covariance, d)
    except ConfigError as error:
        raise DataError(f"{path}: {error} Fetch it, or compute it, again.") from None
    return Statistics(mean.double(), covariance)


def _array(path: Path, name: str) -> Tensor:
    """One array of finite real numbers, in the precision in which it was saved."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{name}.npy").file_size
            if size > LIMIT:
                raise DataError(
                    f"{name} of {path} has {size:,} bytes; the limit is {LIMIT:,}. It does not "
                    "hold statistics of features."
                )
            with archive.open(f"{name}.npy") as member:
                values: Any = np.lib.format.read_array(member, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:
        # a damaged archive or header fails in every way that zlib and Python's own parser can
        if "allow_pickle" in str(error):
            raise UntrustedFileError(
                f"{name} of {path} was not loaded: it holds objects, which may run code. Save "
                "plain numbers."
            ) from None
        raise DataError(f"{name} of {path} cannot be read ({error}). Fetch it again.") from None
    if values.dtype.kind != "f":
        raise DataError(
            f"{name} of {path} has dtype {values.dtype}; real floating-point numbers are needed. "
            "Compute it again."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{name} of {path} holds NaN or infinite numbers. Compute it again, from finite "
            "features."
        )
    # long doubles, for example, become float64
    kept = values if values.dtype in (np.float16, np.float32) else values.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(kept.astype(kept.dtype.newbyteorder("="))))
