"""How far samples are from the data, each number a 0-dimensional float64 tensor.

A distribution is known by features of its rows. The pattern is the Fréchet distance of two
Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

Convention: real data come before generated data. Rows are (N, *dims) and are flattened. All work is
done in float64, so that small differences of large numbers stay right. Every function raises
ConfigError for rows that are too few, not finite, or of another width.
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
    check_alike,
    check_count,
    check_floating,
    check_generator,
    check_labels,
    check_number,
    check_rows,
    check_same_shape,
    check_same_width,
    check_tensor,
    check_unit_interval,
    full_precision,
    on_host,
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

Number = Float[Tensor, ""]
Rows = Float[Tensor, "n *dims"]
MoreRows = Float[Tensor, "m *dims"]
Trajectory = Tensor | Iterable[Tensor]  # (S, B, *dims), or the S states one after the other

_CHUNK = 1024  # rows of a distance matrix that are held at once


def _rows(name: str, x: Tensor, at_least: int = 1) -> Tensor:
    return check_rows(name, x, at_least).double()


def _sets(at_least: int = 1, **sets: Tensor) -> list[Tensor]:
    """The named sets as rows (N, d) of one width."""
    rows = {name: _rows(name, x, at_least) for name, x in sets.items()}
    check_same_width(**rows)
    return list(rows.values())


def frechet_distance(
    mean1: Float[Tensor, " d"],
    cov1: Float[Tensor, "d d"],
    mean2: Float[Tensor, " d"],
    cov2: Float[Tensor, "d d"],
) -> Number:
    """The squared Fréchet distance (2-Wasserstein) of two Gaussians; covariances may be singular.

    Only eigenvalues of symmetric matrices are taken, so nothing complex can appear.

    Raises:
        ConfigError: shapes that do not fit, NaN, or a matrix that is not a covariance.

    Reference: Dowson and Landau 1982; Heusel et al. 2017 (arXiv:1706.08500), eq. 6.

    >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
    tensor(4., dtype=torch.float64)
    """
    mean1, mean2 = _mean("mean1", mean1), _mean("mean2", mean2)
    cov1 = check_covariance("cov1", cov1, len(mean1))
    cov2 = check_covariance("cov2", cov2, len(mean2))
    check_same_shape(mean1=mean1, mean2=mean2)
    return _frechet_distance(mean1, cov1, mean2, cov2)


def _mean(name: str, mean: Tensor) -> Tensor:
    rows = _rows(name, mean)
    if mean.dim() != 1:
        raise ConfigError(
            f"{name} has shape {tuple(mean.shape)}; a mean is (d,), one number per feature. Give "
            "the mean of one set, such as features.mean(0)."
        )
    return rows[:, 0]


def _frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    root = _root(cov1)
    overlap = _trace_of_root(root @ cov2 @ root)
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)  # rounding leaves some just below 0
    return (vectors * values.sqrt()) @ vectors.mT


def _trace_of_root(product: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()


def check_covariance(name: str, covariance: Float[Tensor, "d d"], d: int) -> Float[Tensor, "d d"]:
    """`covariance` in float64, if it is one of `d` features.

    Raises:
        ConfigError: it is not finite, not symmetric, or has an eigenvalue below 0, up to rounding.

    >>> check_covariance("cov", torch.eye(2), 2).dtype
    torch.float64
    """
    floating = isinstance(covariance, Tensor) and covariance.is_floating_point()
    rounding = torch.finfo(covariance.dtype).eps if floating else 0.0
    covariance = _rows(name, covariance)
    if covariance.shape != (d, d):
        raise ConfigError(
            f"{name} has shape {tuple(covariance.shape)}; with a mean of length {d} it must be "
            f"({d}, {d})."
        )
    if not on_host(covariance):
        return covariance
    rtol = max(1e-6, 4 * rounding)
    atol = rtol * float(covariance.abs().max())
    if not torch.allclose(covariance, covariance.mT, rtol=rtol, atol=atol):
        raise ConfigError(
            f"{name} is not symmetric; a covariance must be symmetric. Was it transposed or "
            "overwritten?"
        )
    slack = max(1e-5, 64 * rounding)
    # a Cholesky factor proves the same sooner; where there is none, the eigenvalues decide
    most = slack * float(covariance.diagonal().max())
    diagonal = most * torch.eye(d, dtype=torch.float64, device=covariance.device)
    if not torch.linalg.cholesky_ex(covariance + diagonal).info:
        return covariance
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -slack * values.abs().max():
        raise ConfigError(
            f"{name} has the eigenvalue {values[0]:.3g}; a covariance has none below 0. Was it "
            "scaled or overwritten?"
        )
    return covariance


def frechet(features_a: Rows, features_b: MoreRows) -> Number:
    """The Fréchet distance of two sets of features, at least two rows each.

    It depends on the network that makes the features and on N. So compare equal N, and show a
    real-against-real value beside it.

    Raises:
        ConfigError: fewer than two rows, rows that are not finite, or of another width.

    >>> frechet(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
    tensor(1., dtype=torch.float64)
    """
    a, b = _sets(2, features_a=features_a, features_b=features_b)
    if max(len(a), len(b)) < a.shape[1]:
        return _frechet_of_few(a, b)
    return _frechet_distance(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def _frechet_of_few(a: Tensor, b: Tensor) -> Tensor:
    """The same from fewer rows than features, without a (d, d) matrix.

    With A'A and B'B the covariances, tr (S1 S2)^1/2 is the sum of the singular values of A B'.
    """
    centred_a, centred_b = _scaled(a), _scaled(b)
    overlap = torch.linalg.svdvals(centred_a @ centred_b.mT).sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return gap + centred_a.square().sum() + centred_b.square().sum() - 2 * overlap


def frechet_to(
    features: Rows, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]
) -> Number:
    """The Fréchet distance of features (N, d) to a distribution of known mean and covariance.

    With fewer rows than features no root of a (d, d) matrix is taken.

    Raises:
        ConfigError: shapes that do not fit, NaN, a matrix that is not a covariance, or fewer than
            two rows.

    >>> frechet_to(torch.tensor([[0.0], [2.0]]), torch.ones(1), 2 * torch.eye(1)).round()
    tensor(0., dtype=torch.float64)
    """
    rows, mean = _rows("features", features, 2), _mean("mean", mean)
    check_tensor(covariance=covariance)
    d = len(mean)
    if rows.shape[1] != d or covariance.shape != (d, d):
        seen = f"features {tuple(rows.shape)}, mean ({d},) and covariance {tuple(covariance.shape)}"
        raise ConfigError(f"shapes differ: {seen}; (N, d), (d,) and (d, d) are needed.")
    covariance = check_covariance("covariance", covariance, d)
    if len(rows) > d:
        return _frechet_distance(rows.mean(0), _covariance(rows), mean, covariance)
    centred = _scaled(rows)
    # (N, N), with the eigenvalues that A'A C has beside zeros
    overlap = _trace_of_root(centred @ covariance @ centred.mT)
    gap = (rows.mean(0) - mean).square().sum()
    return gap + centred.square().sum() + covariance.trace() - 2 * overlap


def moments(features: Rows) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """The mean and the covariance (divided by N - 1) of at least two rows.

    Raises:
        ConfigError: fewer than two rows, or rows that are not finite.

    >>> moments(torch.tensor([[0.0], [2.0]]))
    (tensor([1.], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """
    rows = _rows("features", features, at_least=2)
    return rows.mean(0), _covariance(rows)


def _scaled(rows: Tensor) -> Tensor:
    """A, with A'A the covariance of the rows."""
    return (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.mT @ centred / (len(rows) - 1)  # (d, d), also for d = 1


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # the matmul shortcut |a|^2 + |b|^2 - 2ab loses the digits that decide who is nearest
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_radii(x: Rows, k: int = 3, *, progress: bool = False) -> Float[Tensor, " n"]:
    """The distance from each row to its k-th nearest other row; `progress` shows a bar.

    Raises:
        ConfigError: not more than k rows.

    >>> neighbour_radii(torch.tensor([[0.0], [1.0], [3.0]]), k=1)
    tensor([1., 1., 2.], dtype=torch.float64)
    """
    rows = check_rows("x", x, check_count("k", k) + 1)
    return _radii(_Rounded.of(rows)[0], k, progress)


class _Rounded(NamedTuple):
    """Rows (N, d) beside float32 copies, centred and scaled to norms of at most 1.

    Products of the copies are cheap. A squared distance that is found from one has an error of at
    most `slack` times the sum of both squared norms:

        d u   the sum of d products in any order, by the standard bound (Higham 2002, section 3.1),
              and 2 |a| |b| <= |a|^2 + |b|^2
        4 u   both rows are rounded to float32, each by u times its norm
        8 u   |a|^2 and |b|^2 are rounded and added to the product, and so are thresholds

    with u = 2^-24 the unit roundoff. Pairs that this cannot decide are measured again in float64.
    """

    rows: Tensor  # (N, d) as given, float32 or float64
    low: Tensor  # (N, d) float32
    squares: Tensor  # (N,) float64, the squared norms of `low`
    scale: float  # a power of two: distances of `low` are those of `rows` divided by it

    @classmethod
    def of(cls, *sets: Tensor) -> "list[_Rounded]":
        """The sets with one centre and one scale, so that their rows can be compared."""
        # far from the origin all digits would go into the norms; and a mean, unlike the median,
        # would follow a single far row
        centre = torch.cat([x[:_CHUNK] for x in sets]).double().median(dim=0).values
        norms = [torch.cat([(part - centre).norm(dim=1) for part in x.split(_CHUNK)]) for x in sets]
        largest = float(max(norm.max() for norm in norms))
        scale = 2.0 ** math.ceil(math.log2(largest)) if 0 < largest < math.inf else 1.0
        found = []
        for x in sets:
            low = torch.cat([((part - centre) / scale).float() for part in x.split(_CHUNK)])
            squares = torch.cat([part.double().square().sum(1) for part in low.split(_CHUNK)])
            found.append(cls(x, low, squares, scale))
        return found

    @property
    def slack(self) -> float:
        share = (self.rows.shape[1] + 16) * 2.0**-24
        # beyond one half, everything is measured again
        return 1.01 * share / (1 - share) if share < 0.5 else 1e6

    def parts(self, other: "_Rounded") -> Sequence[Tensor]:
        """Runs of row numbers (n,): the products of a run with `other` stay within 128 MB."""
        size = max(1, min(_CHUNK, _BLOCK // len(other.rows)))
        return torch.arange(len(self.rows), device=self.rows.device).split(size)


_BLOCK = 2**25  # float32 numbers of a block of products
_FEW = 64  # rows that are compared with all others in float64 at once
_SPARE = 8  # candidates beyond the k nearest, among which rounding may have mixed them up
_TINY = 1e-30  # what may be lost where float32 ends, in units of the scale


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 with all digits: the bound above holds for neither TF32 nor bfloat16."""
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
    """The exact k-th distances (N,): float64 decides among the rows that may be the k nearest."""
    n = len(x.rows)
    kept = min(n, k + 1 + _SPARE)  # k + 1: the row itself is at distance 0 and comes first
    least = (x.squares * (1 - x.slack)).float()  # plus -2ab: a lower bound on a squared distance
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
    """`_distances` (n, m) of the rows a[rows] (n,) to the rows b[columns] (n, m)."""
    each = max(1, 2**23 // (columns.shape[1] * a.shape[1]))  # 64 MB of float64
    pairs = zip(rows.split(each), columns.split(each))
    return torch.cat([_distances(a[i, None], b[j])[:, 0] for i, j in pairs])


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
            # plus |a|^2: the squared distance less the squared radius
            torch.sub(offset, gap, alpha=2, out=gap)
            own = points.squares[part]
            sure = (gap + doubt).amin(dim=1).double() + own * (1 + points.slack) + _TINY <= 0
            inside[part] = sure
            unsure, limit = part[~sure], _TINY - own[~sure] * (1 - points.slack)
            maybe = (gap[~sure] - doubt).double() <= limit[:, None]
            inside[unsure] = _any_within(points.rows, unsure, centres.rows, radii, maybe)
    return inside.double().mean()


def _any_within(a: Tensor, rows: Tensor, b: Tensor, radii: Tensor, maybe: Tensor) -> Tensor:
    """Whether each row of a[rows] (n,) is, in float64, within the radius of a row of `b` (M, d).

    Only the pairs in `maybe` (n, M) can be.
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
    real: Rows, fake: MoreRows, k: int = 3, *, progress: bool = False
) -> tuple[Number, Number]:
    """(precision, recall) in [0, 1]: the share of fakes near real rows, and of reals near fakes.

    Near a row means: at a distance <= that from the row to its k-th neighbour, itself excluded
    (prdc takes <, so on exact ties it counts fewer). Products in float32 find the pairs that
    matter. Where rounding could decide, distances are measured in float64, so the result is that of
    float64 throughout. Memory stays within that of the rows and a few hundred MB. `progress` shows
    a bar.

    Raises:
        ConfigError: a set of not more than k rows.

    Reference: Kynkäänniemi et al. 2019 (arXiv:1904.06991), eq. 1, 2.

    >>> precision_recall(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [9.0]]), k=1)
    (tensor(0.5000, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    k = check_count("k", k)
    real, fake = check_rows("real", real, k + 1), check_rows("fake", fake, k + 1)
    check_same_width(real=real, fake=fake)
    a, b = _Rounded.of(real, fake)
    near_real = _radii(a, k, progress, "neighbours of real rows")
    precision = _covered(b, a, near_real, progress, "precision")
    near_fake = _radii(b, k, progress, "neighbours of samples")
    return precision, _covered(a, b, near_fake, progress, "recall")


def nearest_distances(x: Rows, reference: MoreRows) -> Float[Tensor, " n"]:
    """The Euclidean distance from each row of `x` to the nearest row of `reference`.

    Raises:
        ConfigError: rows that are not finite, or of another width.

    >>> nearest_distances(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([1., 2.], dtype=torch.float64)
    """
    return _nearest(*_sets(x=x, reference=reference))


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([_distances(part, b).amin(dim=1) for part in a.split(_CHUNK)])


def nearest_ratio(fake: Rows, train: MoreRows, real: Float[Tensor, "k *dims"]) -> Number:
    """Mean distance from a fake to the nearest training row, over that of held-out `real` rows.

    1 means: samples are as far from the training rows as new data. Below about 0.9 means
    memorising.

    Raises:
        ConfigError: every row of `real` is a row of `train`.

    >>> nearest_ratio(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    tensor(0.5000, dtype=torch.float64)
    """
    fake, train, real = _sets(fake=fake, train=train, real=real)
    own = _nearest(real, train).mean()
    if on_host(own) and own == 0:
        raise ConfigError("every row of real is also a row of train; real must be held out.")
    return _nearest(fake, train).mean() / own


def accuracy(logits: Float[Tensor, "n classes"], y: Integer[Tensor, " n"]) -> Number:
    """The share of rows whose largest logit is the label, in [0, 1].

    Raises:
        ConfigError: labels that are not (N,) integers below the number of classes.

    >>> accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor(0.5000, dtype=torch.float64)
    """
    rows = _rows("logits", logits)
    y = check_labels(y, rows, rows.shape[1] - 1)
    return (rows.argmax(dim=1) == y).double().mean()


def inception_score(logits: Float[Tensor, "n classes"], splits: int = 10) -> tuple[Number, Number]:
    """(mean, standard deviation) of exp E KL(p(y|x) || p(y)) over contiguous splits of the rows.

    It lies between 1 and the number of classes. The variance is divided by `splits`, not by
    splits - 1.

    Raises:
        ConfigError: fewer rows than splits.

    Reference: Salimans et al. 2016 (arXiv:1606.03498), section 4.

    >>> inception_score(torch.zeros(4, 2), splits=2)
    (tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
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
    a: Rows, b: MoreRows, n_projections: int = 256, *, generator: Generator | None = None
) -> Number:
    """The sliced 2-Wasserstein distance of two sets of rows, for N != M too.

    It is the root mean square, over random directions, of the exact distance of the projections. A
    shift by s gives about |s| / sqrt(d).

    Raises:
        ConfigError: rows of another width, or fewer than one projection.

    Reference: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".

    >>> sliced_wasserstein(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    tensor(3., dtype=torch.float64)
    """
    a, b = _sets(a=a, b=b)
    check_generator(generator)
    device = a.device if generator is None else generator.device
    shape = a.shape[1], check_count("n_projections", n_projections)
    directions = torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(a)
    directions = directions / directions.norm(dim=0)
    # without names: their memory serves again below, which saves a tenth of the time
    quantiles_a, quantiles_b, mass = _coupled(
        *((x @ directions).sort(dim=0).values for x in (a, b))
    )
    return (mass[:, None] * (quantiles_a - quantiles_b).square()).sum(dim=0).mean().sqrt()


def _coupled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted columns (N, P) and (M, P) on the steps of both quantile functions, and their masses.

    It is exact for N != M.
    """
    n, m = len(a), len(b)
    # in units of 1 / (N M) every step falls on an integer, so none is lost to rounding
    ends = [
        m * torch.arange(1, n + 1, device=a.device),
        n * torch.arange(1, m + 1, device=a.device),
    ]
    ends = torch.cat(ends).unique()
    mass = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    return a[(ends - 1) // m], b[(ends - 1) // n], mass


def mmd(a: Rows, b: MoreRows, bandwidths: float | Iterable[float] | None = None) -> Number:
    """The squared maximum mean discrepancy, unbiased: about 0, of either sign, for equal sets.

    Args:
        bandwidths: h > 0 of the kernel exp(-|x - y|^2 / 2 h^2), or several, over which it is
            averaged; by default 0.5, 1 and 2 times the median distance between the first 500 rows
            of each set.

    Raises:
        ConfigError: fewer than two rows, or no bandwidth above 0.

    Reference: Gretton et al. 2012 (JMLR 13), eq. 3.

    >>> mmd(torch.tensor([[0.0], [0.0]]), torch.tensor([[9.0], [9.0]]), bandwidths=1.0)
    tensor(2., dtype=torch.float64)
    """
    a, b = _sets(2, a=a, b=b)
    scales = _median_scales(a, b) if bandwidths is None else a.new_tensor(_checked(bandwidths))
    within_a, within_b, between = (_kernel_sum(x, y, scales) for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)  # the diagonals hold the kernel of a row with itself: 1
    return (within_a - n) / (n * (n - 1)) + (within_b - m) / (m * (m - 1)) - 2 * between / (n * m)


def _median_scales(a: Tensor, b: Tensor) -> Tensor:
    median = _distances(a[:500], b[:500]).median()
    least = torch.finfo(median.dtype).tiny ** 0.25  # its square must not vanish
    return torch.stack([0.5 * median, median, 2 * median]).clamp(min=least)


def _checked(bandwidths: Any) -> list[float]:
    single = isinstance(bandwidths, str | bytes | Mapping) or not isinstance(bandwidths, Iterable)
    given = [bandwidths] if single else _listed(bandwidths)
    if not given:
        raise ConfigError(
            "bandwidths is empty; give at least one, or None for the median distance."
        )
    return [check_number("bandwidth", h, 0, math.inf, open_low=True) for h in given]


def _kernel_sum(a: Tensor, b: Tensor, scales: Tensor) -> Tensor:
    total = a.new_zeros(())
    for part in a.split(_CHUNK):
        squared = _distances(part, b).square()
        total = total + sum((squared / (-2 * h**2)).exp().sum() for h in scales) / len(scales)
    return total


def _states(trajectory: Trajectory, at_least: int) -> Tensor:
    """A trajectory as (S, B, d) float64."""
    parts = [trajectory] if isinstance(trajectory, Tensor) else _listed(trajectory)
    for i, part in enumerate(parts):
        name = f"trajectory, state {i}," if len(parts) > 1 else "trajectory"
        check_tensor(**{name: part})
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
    """What `items` yields; a tensor without dimensions, or what yields nothing, is one item."""
    if isinstance(items, Iterable) and not (isinstance(items, Tensor) and not items.dim()):
        return list(items)
    return [items]


def straightness(trajectory: Trajectory) -> Number:
    """Chord over length, |x_last - x_first| / sum |x_(s+1) - x_s|, averaged over the batch.

    It lies in [0, 1], and is 1 where every path is straight. A point that never moves counts as 1.
    It has no unit and does not see speed. Liu et al. 2023 (arXiv:2209.03003) take
    E int |x1 - x0 - v|^2 dt instead, which is 0 for straight paths of constant speed.

    Args:
        trajectory: (S, B, *dims), or what yields its states; at least two.

    Raises:
        ConfigError: fewer than two states, or states that are not finite.

    >>> straightness(torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.0, 4.0]]]))
    tensor(0.7143, dtype=torch.float64)
    """
    states = _states(trajectory, at_least=2)
    chord = (states[-1] - states[0]).norm(dim=-1)  # (B,)
    length = states.diff(dim=0).norm(dim=-1).sum(dim=0)
    return torch.where(length > 0, chord / length, 1.0).clamp(max=1).mean()


def drift_by_time(
    trajectory: Trajectory,
    mixture_or_data: GaussianMixture | Tensor,
    ts: Float[Tensor, " states"] | None = None,
    path: Path = LINEAR,
    *,
    n_reference: int = 4096,
    generator: Generator | None = None,
) -> Float[Tensor, " states"]:
    """How far the states of a trajectory (S, B, *dims) are from where they should be.

    Against a GaussianMixture, in nats: the mean of -log p_t over the states, less its mean over
    `n_reference` draws of the exact p_t. So it is 0 for the exact distribution, large where states
    leave it, and below 0 where they crowd at its modes. Against data (N, *dims): the mean distance
    to the nearest row, which is meant for the samples, the last state.

    Args:
        ts: the times of the states, even on [0, 1] by default; against data no time matters.

    Raises:
        ConfigError: states of another width than the mixture or the data, or times outside [0, 1].

    >>> drift_by_time(torch.tensor([[[0.0]], [[2.0]]]), torch.tensor([[1.0], [5.0]]))
    tensor([1., 1.], dtype=torch.float64)
    """
    states = _states(trajectory, at_least=1)
    check_path(path)
    check_generator(generator)
    n_reference, times = check_count("n_reference", n_reference), _times(ts, states)
    if isinstance(mixture_or_data, Tensor):
        points, rows = _sets(states=states.flatten(0, 1), mixture_or_data=mixture_or_data)
        return _nearest(points, rows).unflatten(0, states.shape[:2]).mean(dim=1)
    mixture = _fitting(mixture_or_data, states)
    x1, _ = mixture.sample(n_reference, generator=generator)
    x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype).to(states)
    excess = []
    for x, time in zip(states, times):
        exact, _ = path.interpolate(x0, x1.to(states), time.expand(n_reference))
        surprise, least = (_surprise(mixture, at, time, path) for at in (x, exact))
        excess.append(surprise - least)
    return torch.stack(excess)


def _surprise(mixture: GaussianMixture, x: Tensor, time: Tensor, path: Path) -> Tensor:
    return -mixture.log_prob(x, time.expand(len(x)), path=path).mean()


def _fitting(mixture: Any, states: Tensor) -> GaussianMixture:
    if not isinstance(mixture, GaussianMixture):
        raise ConfigError(
            f"mixture_or_data has type {type(mixture).__name__}; it must be a GaussianMixture or a "
            "tensor (N, *dims)."
        )
    if states.shape[2] != mixture.means.shape[1]:
        raise ConfigError(
            f"states have {states.shape[2]} numbers and mixture_or_data has "
            f"{mixture.means.shape[1]}; both must be equal."
        )
    return mixture


def _times(ts: Tensor | None, states: Tensor) -> Tensor:
    if ts is None:
        if len(states) == 1:
            return states.new_ones(1)
        return torch.linspace(0, 1, len(states), dtype=states.dtype, device=states.device)
    check_floating(ts=ts)
    if ts.shape != (len(states),):
        raise ConfigError(
            f"ts has shape {tuple(ts.shape)}; one time for each of the trajectory's {len(states)} "
            "states is needed."
        )
    check_unit_interval(ts=ts)
    return ts.to(states)


def drift(
    trajectory: Trajectory,
    mixture_or_data: GaussianMixture | Tensor,
    ts: Float[Tensor, " states"] | None = None,
    **settings: Any,
) -> Number:
    """`drift_by_time` in one number: its mean against a mixture, its last value against data.

    Arguments and errors are those of `drift_by_time`.

    >>> drift(torch.tensor([[[0.0]], [[3.0]]]), torch.tensor([[1.0], [5.0]]))
    tensor(2., dtype=torch.float64)
    """
    states = _states(trajectory, at_least=1)
    if isinstance(mixture_or_data, Tensor):
        last = _times(ts, states)[-1:]
        return drift_by_time(states[-1:], mixture_or_data, last, **settings)[0]
    return drift_by_time(states, mixture_or_data, ts, **settings).mean()


def velocity_deficit(v: Float[Tensor, "batch *dims"], u: Float[Tensor, "batch *dims"]) -> Number:
    """E|v| / E|u|, the mean length of the model's velocities over that of the targets.

    It is below 1 for a conditional mean: by Jensen |E[u | x_t]| <= E[|u| | x_t]. Repulsion of
    weight λ lengthens deviations by 1 / (1 - λ). Reference: arXiv:2605.14819.

    Raises:
        ConfigError: shapes that differ, or integers.

    >>> velocity_deficit(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    tensor(0.5000, dtype=torch.float64)
    """
    check_alike(v=v, u=u)
    return _rows("v", v).norm(dim=1).mean() / _rows("u", u).norm(dim=1).mean()


def effective_rank(h: Float[Tensor, "batch *dims"]) -> Number:
    """exp of the entropy of the normalised singular values of the centred features `h`.

    It lies between 1 and min(B - 1, d), for B of at least 2. Equal rows have rank 1 by convention.
    Reference: Roy and Vetterli 2007, "The effective rank".

    Raises:
        ConfigError: fewer than two rows, or rows that are not finite.

    >>> effective_rank(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))
    tensor(2., dtype=torch.float64)
    """
    rows = _rows("h", h, at_least=2)
    values = torch.linalg.svdvals(rows - rows.mean(0))
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(p).sum().exp()
