"""How far samples are from the data, each number a 0-dimensional float64 tensor.

The Fréchet distance of two Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), is the
pattern: a distribution is known by features of its rows. Convention: real data before generated data; rows
are (N, *dims) and are flattened; all work is done in float64, so that small differences of large
numbers stay right.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor
from tqdm.auto import tqdm

from cfm_lite._internal.checks import (
    check_count,
    check_floating,
    check_generator,
    check_labels,
    check_number,
    check_same_shape,
    check_tensor,
    full_precision,
    on_host,
    promote,
)
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, Path, check_path
from cfm_lite.theory import GaussianMixture

__all__ = [
    "accuracy",
    "check_covariance",
    "drift",
    "drift_by_time",
    "effective_rank",
    "frechet",
    "frechet_distance",
    "frechet_to",
    "inception_score",
    "mmd",
    "moments",
    "nearest_distances",
    "nearest_ratio",
    "neighbour_radii",
    "precision_recall",
    "sliced_wasserstein",
    "straightness",
    "velocity_deficit",
]

_CHUNK = 1024  # rows of a distance matrix that are held at once


def _rows(name: str, x: Tensor, at_least: int = 1) -> Tensor:
    """`x` (N, *dims) as (N, d) float64; ConfigError unless it is a finite tensor of at least
    `at_least` rows.
    """
    return _plain_rows(name, x, at_least).double()


def _plain_rows(name: str, x: Tensor, at_least: int = 1) -> Tensor:
    """The same in float32 or float64, whichever holds `x` without rounding: a copy of many rows
    costs memory.
    """
    if not isinstance(x, Tensor) or x.dim() < 1 or len(x) < at_least:
        seen = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ConfigError(
            f"{name} has {seen}; a tensor (N, *dims) of at least {at_least} rows is needed."
        )
    check_floating(**{name: x})
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()  # MPS has no float64
    flat = promote(x).reshape(len(x), -1)
    if flat.shape[1] == 0:
        raise ConfigError(f"{name} has shape {tuple(x.shape)}; its rows are empty.")
    if on_host(flat) and not flat.isfinite().all():
        bad = int((~flat.isfinite()).any(dim=1).sum())
        raise ConfigError(
            f"{name} holds NaN or infinite numbers in {bad} of {len(flat)} rows; remove them, or "
            "find where they come from."
        )
    return flat


def _same_width(**rows: Tensor) -> None:
    widths = {name: x.shape[1] for name, x in rows.items()}
    if len(set(widths.values())) > 1:
        seen = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(f"rows differ in width: {seen}. All must come from the same features.")


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (
        vectors * values.clamp(min=0).sqrt()
    ) @ vectors.mT  # (d, d) rounding leaves eigenvalues just below 0


def frechet_distance(
    mean1: Float[Tensor, " d"],
    cov1: Float[Tensor, "d d"],
    mean2: Float[Tensor, " d"],
    cov2: Float[Tensor, "d d"],
) -> Float[Tensor, ""]:
    """The squared Fréchet distance (2-Wasserstein) of two Gaussians with means (d,) and covariances
    (d, d); singular ones are allowed.

    Symmetric eigenvalues only, so nothing complex can appear. Raises ConfigError for shapes that do
    not fit, NaN, and what is no covariance. Reference: Dowson and Landau 1982; Heusel et al. 2017
    (arXiv:1706.08500), eq. 6.
    """
    mean1, mean2 = (_rows(name, mean)[:, 0] for name, mean in (("mean1", mean1), ("mean2", mean2)))
    cov1, cov2 = (
        check_covariance("cov1", cov1, len(mean1)),
        check_covariance("cov2", cov2, len(mean2)),
    )
    check_same_shape(mean1=mean1, mean2=mean2)
    return _frechet_distance(mean1, cov1, mean2, cov2)


def _frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    root = _root(cov1)
    product = root @ cov2 @ root
    overlap = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap


def check_covariance(name: str, covariance: Float[Tensor, "d d"], d: int) -> Float[Tensor, "d d"]:
    """`covariance` (d, d) in float64; ConfigError unless it is finite, symmetric, and has no
    negative eigenvalue, up to rounding.
    """
    rounding = (
        torch.finfo(covariance.dtype).eps
        if isinstance(covariance, Tensor) and covariance.is_floating_point()
        else 0.0
    )
    covariance = _rows(name, covariance)
    if covariance.shape != (d, d):
        raise ConfigError(
            f"{name} has shape {tuple(covariance.shape)}; with a mean of length {d} it must be "
            f"({d}, {d})."
        )
    if not on_host(covariance):
        return covariance
    tolerance = max(1e-6, 4 * rounding)
    if not torch.allclose(
        covariance, covariance.mT, rtol=tolerance, atol=tolerance * float(covariance.abs().max())
    ):
        raise ConfigError(
            f"{name} is not symmetric; a covariance is. Was it transposed or overwritten?"
        )
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -max(1e-5, 64 * rounding) * values.abs().max():
        raise ConfigError(
            f"{name} has the eigenvalue {values[0]:.3g}; a covariance has none below 0. Was it "
            "scaled or overwritten?"
        )
    return covariance


def frechet(
    features_a: Float[Tensor, "n *dims"], features_b: Float[Tensor, "m *dims"]
) -> Float[Tensor, ""]:
    """The Fréchet distance of features (N, d) and (M, d): means and covariances (divided by N - 1)
    of both, at least two rows each.

    It depends on the network that makes the features and on N: compare equal N, and a
    real-against-real value beside it.
    """
    a, b = _rows("features_a", features_a, at_least=2), _rows("features_b", features_b, at_least=2)
    _same_width(features_a=a, features_b=b)
    if max(len(a), len(b)) < a.shape[1]:
        return _frechet_of_few(a, b)
    return _frechet_distance(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def frechet_to(
    features: Float[Tensor, "n *dims"], mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]
) -> Float[Tensor, ""]:
    """The Fréchet distance of features (N, d), N > 1, to a distribution of which only the
    mean (d,) and the covariance (d, d) are kept.

    That `covariance` is one is for `check_covariance` to say, once, when it is read: it takes as
    long as the distance. Raises ConfigError for shapes that do not fit and NaN. With fewer rows
    than features no root of a (d, d) matrix is taken.
    """
    rows, mean, covariance = (
        _rows("features", features, at_least=2),
        _rows("mean", mean)[:, 0],
        _rows("covariance", covariance),
    )
    d = len(mean)
    if rows.shape[1] != d or covariance.shape != (d, d):
        seen = f"features {tuple(rows.shape)}, mean ({d},) and covariance {tuple(covariance.shape)}"
        raise ConfigError(f"shapes differ: {seen}; (N, d), (d,) and (d, d) are needed.")
    if len(rows) > d:
        return _frechet_distance(rows.mean(0), _covariance(rows), mean, covariance)
    centred = (rows - rows.mean(0)) / (
        len(rows) - 1
    ) ** 0.5  # A, with A'A the covariance of the rows
    product = (
        centred @ covariance @ centred.mT
    )  # (N, N), with the eigenvalues that A'A C has beside zeros
    overlap = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()
    return (
        (rows.mean(0) - mean).square().sum()
        + centred.square().sum()
        + covariance.trace()
        - 2 * overlap
    )


def moments(features: Float[Tensor, "n *dims"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """The mean (d,) and the covariance (d, d), divided by N - 1, of at least two rows (N, d), in
    float64.
    """
    rows = _rows("features", features, at_least=2)
    return rows.mean(0), _covariance(rows)


def _frechet_of_few(a: Tensor, b: Tensor) -> Tensor:
    """The same from fewer rows than features, without a (d, d) matrix: tr (S1 S2)^1/2 is the sum of
    singular values of A B'.

    A and B are the centred rows over the root of N - 1.
    """
    centred_a, centred_b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (a, b))
    overlap = torch.linalg.svdvals(centred_a @ centred_b.mT).sum()
    return (
        (a.mean(0) - b.mean(0)).square().sum()
        + centred_a.square().sum()
        + centred_b.square().sum()
        - 2 * overlap
    )


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.mT @ centred / (len(rows) - 1)  # (d, d), also for d = 1


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # the matmul shortcut |a|^2 + |b|^2 - 2ab loses the digits that decide who is nearest
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_radii(
    x: Float[Tensor, "n *dims"], k: int = 3, *, progress: bool = False
) -> Float[Tensor, " n"]:
    """The distance (N,) from each row of `x` (N, *dims) to its k-th nearest other row; N > k.
    `progress` shows a bar.
    """
    rows = _plain_rows("x", x, at_least=check_count("k", k) + 1)
    return _radii(_Rounded.of(rows)[0], k, progress)


class _Rounded(NamedTuple):
    """Rows (N, d) beside float32 copies of them, centred and scaled to norms of at most 1, whose
    products are cheap.

    What a product says of a squared distance is off by at most `slack` times the sum of both
    squared norms:

        d u   the sum of d products in any order, by the standard bound (Higham 2002, section 3.1), and 2 |a| |b| <= |a|^2 + |b|^2
        4 u   both rows are rounded to float32, each by u times its norm
        8 u   |a|^2 and |b|^2 are rounded and added to the product, and so are thresholds

    with u = 2^-24 the unit roundoff. Only pairs that this cannot decide are measured again, in
    float64.
    """

    rows: Tensor  # (N, d) as given, float32 or float64
    low: Tensor  # (N, d) float32
    squares: Tensor  # (N,) float64, the squared norms of `low`
    scale: float  # a power of two: distances of `low` are those of `rows` divided by it

    @classmethod
    def of(cls, *sets: Tensor) -> "list[_Rounded]":
        """The sets with one centre and one scale, so that rows of one can be held against those of
        another.
        """
        # far from the origin all digits would go into the norms; a mean would follow one row that
        # is far away
        centre = torch.cat([x[:_CHUNK] for x in sets]).double().median(dim=0).values
        norms = [torch.cat([(part - centre).norm(dim=1) for part in x.split(_CHUNK)]) for x in sets]
        largest = float(max(norm.max() for norm in norms))
        scale = 2.0 ** math.ceil(math.log2(largest)) if 0 < largest < math.inf else 1.0
        found = []
        for x in sets:
            low = torch.cat([((part - centre) / scale).float() for part in x.split(_CHUNK)])
            found.append(
                cls(
                    x,
                    low,
                    torch.cat([part.double().square().sum(1) for part in low.split(_CHUNK)]),
                    scale,
                )
            )
        return found

    @property
    def slack(self) -> float:
        share = (self.rows.shape[1] + 16) * 2.0**-24
        return (
            1.01 * share / (1 - share) if share < 0.5 else 1e6
        )  # beyond, everything is measured again

    def parts(self, other: "_Rounded") -> Sequence[Tensor]:
        """Runs of row numbers (n,), so many that a block of their products with the rows of `other`
        stays within 128 MB.
        """
        return torch.arange(len(self.rows), device=self.rows.device).split(
            max(1, min(_CHUNK, _BLOCK // len(other.rows)))
        )


_BLOCK = 2**25  # float32 numbers of a block of products
_FEW = 64  # rows that are held against all others in float64 at once
_SPARE = 8  # candidates beyond the k nearest, among which rounding may have mixed them up
_TINY = 1e-30  # what may be lost where float32 ends, in units of the scale


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 with all of its digits: neither TF32 nor bfloat16, which the bound above
    does not hold for.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with full_precision():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _bar(parts: Iterable[Tensor], total: int, what: str, progress: bool) -> Iterator[Tensor]:
    with tqdm(total=total, desc=what, unit="row", disable=not progress) as bar:
        for part in parts:
            yield part
            bar.update(len(part))


def _radii(x: _Rounded, k: int, progress: bool, what: str = "neighbours") -> Tensor:
    """The exact k-th distances (N,): of the rows that may be among the k nearest, each distance is
    taken in float64.
    """
    n, kept = (
        len(x.rows),
        min(len(x.rows), k + 1 + _SPARE),
    )  # the row itself is at distance 0 and comes first, hence k + 1
    least = (x.squares * (1 - x.slack)).float()  # with -2ab: what a squared distance is at least
    radii = torch.empty(n, dtype=torch.float64, device=x.rows.device)
    with _full_float32():
        for part in _bar(x.parts(x), n, what, progress):
            bounds = x.low[part] @ x.low.mT  # (n, N)
            torch.sub(least, bounds, alpha=2, out=bounds)
            near = bounds.topk(kept, dim=1, largest=False)
            radii[part] = _exact(x.rows, part, x.rows, near.indices).kthvalue(k + 1, dim=1).values
            if kept < n:  # every row that is left out is at least this far away
                beyond = near.values[:, -1].double() + x.squares[part] * (1 - x.slack) - _TINY
                again = part[beyond <= (radii[part] / x.scale).square() * (1 + 1e-9)]
                for some in again.split(_FEW):  # rare, except where many distances are equal
                    radii[some] = _to_all(x.rows[some], x.rows).kthvalue(k + 1, dim=1).values
    return radii


def _to_all(few: Tensor, b: Tensor) -> Tensor:
    """Distances (n, M) of a few rows to all of `b`, without a float64 copy of it."""
    return torch.cat([_distances(few, part) for part in b.split(4 * _CHUNK)], dim=1)


def _exact(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """Distances (n, m) of the rows a[rows] (n,) to the rows b[columns] (n, m), as `_distances`
    takes them.
    """
    each = max(1, 2**23 // (columns.shape[1] * a.shape[1]))  # 64 MB of float64
    pieces = [
        _distances(a[i, None], b[j])[:, 0] for i, j in zip(rows.split(each), columns.split(each))
    ]
    return torch.cat(pieces)


def _covered(
    points: _Rounded, centres: _Rounded, radii: Tensor, progress: bool, what: str = "coverage"
) -> Tensor:
    """The share of `points` that lie within the radius (M,) of at least one centre."""
    reach = (radii / centres.scale).square()
    offset = (centres.squares - reach).float()
    doubt = (centres.slack * (centres.squares + reach)).float() * 1.01 + _TINY
    inside = torch.zeros(len(points.rows), dtype=torch.bool, device=radii.device)
    with _full_float32():
        for part in _bar(points.parts(centres), len(inside), what, progress):
            gap = points.low[part] @ centres.low.mT  # (n, M)
            torch.sub(
                offset, gap, alpha=2, out=gap
            )  # plus |a|^2: the squared distance less the squared radius
            own = points.squares[part]
            sure = (gap + doubt).amin(dim=1).double() + own * (1 + points.slack) + _TINY <= 0
            inside[part] = sure
            unsure, limit = part[~sure], _TINY - own[~sure] * (1 - points.slack)
            maybe = (gap[~sure] - doubt).double() <= limit[:, None]
            inside[unsure] = _any_within(points.rows, unsure, centres.rows, radii, maybe)
    return inside.double().mean()


def _any_within(a: Tensor, rows: Tensor, b: Tensor, radii: Tensor, maybe: Tensor) -> Tensor:
    """Whether one of the pairs `maybe` (n, M) of rows a[rows] (n,) and b (M, d) is within the
    radius of b, in float64.
    """
    found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    pairs = maybe.nonzero()
    if len(pairs) > maybe.numel() // 8:  # on a lattice: taking all is cheaper than picking them
        return torch.cat([(_to_all(a[some], b) <= radii).any(dim=1) for some in rows.split(_FEW)])
    for some in pairs.split(max(1, 2**22 // a.shape[1])):
        hit = _exact(a, rows[some[:, 0]], b, some[:, 1:])[:, 0] <= radii[some[:, 1]]
        found[some[hit, 0]] = True
    return found


def precision_recall(
    real: Float[Tensor, "n *dims"],
    fake: Float[Tensor, "m *dims"],
    k: int = 3,
    *,
    progress: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(precision, recall) in [0, 1] of features (N, d) and (M, d): the share of fakes near real
    rows, and of real rows near fakes.

    Near a row: at a distance <= that from the row to its k-th neighbour, itself excluded (prdc
    takes <, so on exact ties it counts fewer). Products in float32 find the pairs that matter; what
    their rounding could decide is measured in float64, so the result is that of float64 throughout.
    Memory stays within that of the rows and a few hundred MB. `progress` shows a bar. Raises
    ConfigError unless both sets have more than k rows. Reference: Kynkäänniemi et al. 2019
    (arXiv:1904.06991), eq. 1, 2.
    """
    k = check_count("k", k)
    real, fake = (
        _plain_rows("real", real, at_least=k + 1),
        _plain_rows("fake", fake, at_least=k + 1),
    )
    _same_width(real=real, fake=fake)
    a, b = _Rounded.of(real, fake)
    precision = _covered(
        b, a, _radii(a, k, progress, "neighbours of real rows"), progress, "precision"
    )
    return precision, _covered(
        a, b, _radii(b, k, progress, "neighbours of samples"), progress, "recall"
    )


def nearest_distances(
    x: Float[Tensor, "n *dims"], reference: Float[Tensor, "m *dims"]
) -> Float[Tensor, " n"]:
    """The Euclidean distance (N,) from each row of `x` (N, *dims) to the nearest row of `reference`
    (M, *dims).
    """
    a, b = _rows("x", x), _rows("reference", reference)
    _same_width(x=a, reference=b)
    return _nearest(a, b)


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([_distances(part, b).amin(dim=1) for part in a.split(_CHUNK)])


def nearest_ratio(
    fake: Float[Tensor, "n *dims"], train: Float[Tensor, "m *dims"], real: Float[Tensor, "k *dims"]
) -> Float[Tensor, ""]:
    """Mean distance from a fake to the nearest training row, divided by that from a held-out `real`
    row.

    All are (N, *dims), each with its own N. 1: as far from the training rows as fresh data are;
    below about 0.9: memorising. Raises ConfigError where every row of `real` is a row of `train`.
    """
    fake, train, real = _rows("fake", fake), _rows("train", train), _rows("real", real)
    _same_width(fake=fake, train=train, real=real)
    own = _nearest(real, train).mean()
    if on_host(own) and own == 0:
        raise ConfigError("every row of real is also a row of train; real must be held out.")
    return _nearest(fake, train).mean() / own


def accuracy(logits: Float[Tensor, "n classes"], y: Integer[Tensor, " n"]) -> Float[Tensor, ""]:
    """The share of rows whose largest logit (N, classes) is the label y (N,), in [0, 1]."""
    rows = _rows("logits", logits)
    y = check_labels(y, rows, rows.shape[1] - 1)
    return (rows.argmax(dim=1) == y).double().mean()


def inception_score(
    logits: Float[Tensor, "n classes"], splits: int = 10
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean, standard deviation) over contiguous splits of exp E KL(p(y|x) || p(y)), from logits
    (N, classes) in the order given.

    Between 1 and the number of classes. The variance is divided by `splits`, not splits - 1. Raises
    ConfigError unless N >= splits. Reference: Salimans et al. 2016 (arXiv:1606.03498), section 4.
    """
    rows = _rows("logits", logits, at_least=check_count("splits", splits))
    log_p = rows.log_softmax(dim=1)
    bounds = [len(rows) * i // splits for i in range(splits + 1)]
    scores = torch.stack([_inception_score(log_p[low:high]) for low, high in pairwise(bounds)])
    return scores.mean(), scores.std(correction=0)


def _inception_score(log_p: Tensor) -> Tensor:
    log_marginal = log_p.logsumexp(dim=0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp()


def sliced_wasserstein(
    a: Float[Tensor, "n *dims"],
    b: Float[Tensor, "m *dims"],
    n_projections: int = 256,
    *,
    generator: Generator | None = None,
) -> Float[Tensor, ""]:
    """The sliced 2-Wasserstein distance of rows (N, *dims) and (M, *dims).

    It is the root mean square, over random directions, of the exact distance of the projections,
    for N != M too. A shift by s gives about |s| / sqrt(d). Reference: Bonneel et al. 2015, "Sliced
    and Radon Wasserstein barycenters of measures".
    """
    a, b = _rows("a", a), _rows("b", b)
    _same_width(a=a, b=b)
    check_generator(generator)
    device = a.device if generator is None else generator.device
    directions = torch.randn(
        a.shape[1],
        check_count("n_projections", n_projections),
        generator=generator,
        device=device,
        dtype=torch.float32,
    ).to(a)
    directions = directions / directions.norm(dim=0)
    quantiles_a, quantiles_b, mass = _coupled(
        *((x @ directions).sort(dim=0).values for x in (a, b))
    )
    return (mass[:, None] * (quantiles_a - quantiles_b).square()).sum(dim=0).mean().sqrt()


def _coupled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted columns a (N, P) and b (M, P) on the steps of both quantile functions, and the mass of
    each step; exact for N != M.
    """
    n, m = len(a), len(b)
    # in units of 1 / (N M) every step falls on an integer, so none is lost to rounding
    ends = torch.cat(
        [m * torch.arange(1, n + 1, device=a.device), n * torch.arange(1, m + 1, device=a.device)]
    ).unique()
    mass = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    return a[(ends - 1) // m], b[(ends - 1) // n], mass


def mmd(
    a: Float[Tensor, "n *dims"],
    b: Float[Tensor, "m *dims"],
    bandwidths: float | Iterable[float] | None = None,
) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy, unbiased, of rows (N, *dims) and (M, *dims): about 0,
    of either sign, for equal distributions.

    The kernel exp(-|x - y|^2 / 2 h^2) is averaged over the `bandwidths` h; by default 0.5, 1 and 2
    times the median distance between the first 500 rows of each. At least two rows each. Reference:
    Gretton et al. 2012 (JMLR 13), eq. 3.
    """
    a, b = _rows("a", a, at_least=2), _rows("b", b, at_least=2)
    _same_width(a=a, b=b)
    if bandwidths is None:
        median = _distances(a[:500], b[:500]).median()
        scales = torch.stack([0.5 * median, median, 2 * median]).clamp(
            min=torch.finfo(median.dtype).tiny ** 0.25
        )
    else:
        single = isinstance(bandwidths, str | bytes | Mapping) or not isinstance(
            bandwidths, Iterable
        )
        values = [bandwidths] if single else _listed(bandwidths)
        scales = a.new_tensor(
            [check_number("bandwidth", h, 0, float("inf"), open_low=True) for h in values]
        )
    if len(scales) == 0:
        raise ConfigError(
            "bandwidths is empty; give at least one, or None for the median distance."
        )
    within_a, within_b, between = (_kernel_sum(x, y, scales) for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)  # the diagonals hold the kernel of a row with itself: 1
    return (within_a - n) / (n * (n - 1)) + (within_b - m) / (m * (m - 1)) - 2 * between / (n * m)


def _kernel_sum(a: Tensor, b: Tensor, scales: Tensor) -> Tensor:
    total = a.new_zeros(())
    for part in a.split(_CHUNK):
        squared = _distances(part, b).square()
        total = total + sum((squared / (-2 * h**2)).exp().sum() for h in scales) / len(scales)
    return total


def _states(trajectory: Tensor | Iterable[Tensor], at_least: int) -> Tensor:
    """A trajectory as (S, B, d) float64: a tensor (S, B, *dims), or the states one after the other."""
    parts = [trajectory] if isinstance(trajectory, Tensor) else _listed(trajectory)
    check_tensor(
        **{
            f"trajectory, state {i}," if len(parts) > 1 else "trajectory": part
            for i, part in enumerate(parts)
        }
    )
    parts = parts if isinstance(trajectory, Tensor) else [state[None] for state in parts]
    if len({part.shape[1:] for part in parts}) != 1:
        raise ConfigError(
            "trajectory is empty or its states differ in shape; states (B, *dims) of one shape are "
            "needed."
        )
    states = torch.cat(parts) if parts[0].dim() else parts[0]
    if states.dim() < 3 or len(states) < at_least:
        raise ConfigError(
            f"trajectory has shape {tuple(states.shape)}; (S, B, *dims) with at least {at_least} "
            "states is needed."
        )
    return _rows("trajectory", states.flatten(0, 1)).unflatten(0, states.shape[:2])


def _listed(items: Any) -> list[Any]:
    """What `items` yields; a tensor of no dimension, or what yields nothing, is one item."""
    if isinstance(items, Iterable) and not (isinstance(items, Tensor) and not items.dim()):
        return list(items)
    return [items]


def straightness(trajectory: Tensor | Iterable[Tensor]) -> Float[Tensor, ""]:
    """Chord over length, |x_last - x_first| / sum |x_(s+1) - x_s|, averaged over the batch: in [0,
    1], 1 where every path is straight.

    `trajectory` is (S, B, *dims) or yields its states, at least two; a point that never moves
    counts as 1. It has no unit and does not see speed: Liu et al. 2023 (arXiv:2209.03003) take E
    int |x1 - x0 - v|^2 dt, 0 for straight paths of constant speed.
    """
    states = _states(trajectory, at_least=2)
    chord = (states[-1] - states[0]).norm(dim=-1)  # (B,)
    length = states.diff(dim=0).norm(dim=-1).sum(dim=0)
    return torch.where(length > 0, chord / length, 1.0).clamp(max=1).mean()


def drift_by_time(
    trajectory: Tensor | Iterable[Tensor],
    mixture_or_data: GaussianMixture | Tensor,
    ts: Float[Tensor, " states"] | None = None,
    path: Path = LINEAR,
    *,
    n_reference: int = 4096,
    generator: Generator | None = None,
) -> Float[Tensor, " states"]:
    """How far the states are, at each time `ts` (S,), from where they should be: (S,) for a
    trajectory (S, B, *dims).

    Against a GaussianMixture, in nats: the mean of -log p_t over the states less its mean over
    `n_reference` draws of the exact p_t, so 0 for the exact distribution,
    large where states stray from it, below 0 where they crowd at its modes. `ts` is even on [0, 1] by default. Against data (N,
    *dims): the mean distance to the nearest row, which is meant for the samples, the last state.
    """
    states = _states(trajectory, at_least=1)
    check_path(path)
    check_generator(generator)
    n_reference = check_count("n_reference", n_reference)
    if isinstance(mixture_or_data, Tensor):
        rows = _rows("mixture_or_data", mixture_or_data)
        _same_width(states=states.flatten(0, 1), mixture_or_data=rows)
        return _nearest(states.flatten(0, 1), rows).unflatten(0, states.shape[:2]).mean(dim=1)
    if not isinstance(mixture_or_data, GaussianMixture):
        raise ConfigError(
            f"mixture_or_data has type {type(mixture_or_data).__name__}; it must be a "
            "GaussianMixture or a tensor (N, *dims)."
        )
    if states.shape[2] != mixture_or_data.means.shape[1]:
        raise ConfigError(
            f"trajectory has states of {states.shape[2]} numbers, mixture_or_data "
            f"{mixture_or_data.means.shape[1]}."
        )
    times = _check_times(ts, states)
    x1, _ = mixture_or_data.sample(n_reference, generator=generator)
    x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype).to(states)
    excess = []
    for x, time in zip(states, times):
        reference, _ = path.interpolate(x0, x1.to(states), time.expand(n_reference))
        excess.append(
            _surprise(mixture_or_data, x, time, path)
            - _surprise(mixture_or_data, reference, time, path)
        )
    return torch.stack(excess)


def _surprise(mixture: GaussianMixture, x: Tensor, time: Tensor, path: Path) -> Tensor:
    return -mixture.log_prob(x, time.expand(len(x)), path=path).mean()


def _check_times(ts: Tensor | None, states: Tensor) -> Tensor:
    if ts is None:
        return (
            torch.linspace(0, 1, len(states), dtype=states.dtype, device=states.device)
            if len(states) > 1
            else states.new_ones(1)
        )
    check_floating(ts=ts)
    if ts.shape != (len(states),):
        raise ConfigError(
            f"ts has shape {tuple(ts.shape)}; one time for each of the trajectory's {len(states)} "
            "states is needed."
        )
    if on_host(ts) and not ((ts >= 0) & (ts <= 1)).all():
        raise ConfigError(
            f"ts spans [{ts.min():.4g}, {ts.max():.4g}]; times lie in [0, 1], 0 noise and 1 data."
        )
    return ts.to(states)


def drift(
    trajectory: Tensor | Iterable[Tensor],
    mixture_or_data: GaussianMixture | Tensor,
    ts: Float[Tensor, " states"] | None = None,
    **settings: Any,
) -> Float[Tensor, ""]:
    """`drift_by_time` in one number: its mean over the times against a mixture, its last value (the
    samples) against data.
    """
    states = _states(trajectory, at_least=1)
    if isinstance(mixture_or_data, Tensor):
        return drift_by_time(states[-1:], mixture_or_data, **settings)[0]
    return drift_by_time(states, mixture_or_data, ts, **settings).mean()


def velocity_deficit(
    v: Float[Tensor, "batch *dims"], u: Float[Tensor, "batch *dims"]
) -> Float[Tensor, ""]:
    """Mean length of the model's velocities over that of the targets, both (B, *dims): E|v| / E|u|,
    below 1 for a conditional mean.

    By Jensen |E[u | x_t]| <= E[|u| | x_t]; repulsion of weight w lengthens deviations by 1 / (1 -
    w). Reference: arXiv:2605.14819.
    """
    check_same_shape(v=v, u=u)
    return _rows("v", v).norm(dim=1).mean() / _rows("u", u).norm(dim=1).mean()


def effective_rank(h: Float[Tensor, "batch *dims"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values of centred features h (B, *dims), B >=
    2: from 1 to min(B - 1, d).

    Equal rows have rank 1 by convention. Reference: Roy and Vetterli 2007, "The effective rank".
    """
    rows = _rows("h", h, at_least=2)
    values = torch.linalg.svdvals(rows - rows.mean(0))
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(p).sum().exp()
