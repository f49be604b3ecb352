"""Losses: tensors in, a scalar out, such as L = |v - u|^2 - λ sum_k |v - u_neg_k|^2.

Some attract and repel velocities; others spread or align features.

Convention: a mean over all non-batch dimensions, then over the batch. Arithmetic runs in float32 at
least: half precisions are promoted, float64 stays. Velocity losses send no gradient into their
targets; feature losses send it into every view. Every function raises ConfigError for shapes that
do not fit, for integers, and for an option out of range.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from cfm_lite._internal.checks import (
    check_alike,
    check_choice,
    check_flag,
    check_floating,
    check_keep,
    check_number,
    expand,
    promote,
    repulsion_weight,
    warn_of_gain,
    warn_once,
)
from cfm_lite._internal.kernels import TINY, cosine, gram, inverse_root, root, standardize
from cfm_lite.errors import ConfigError

__all__ = [
    "align",
    "contrastive",
    "contrastive_flow_matching",
    "dispersive",
    "flow_matching",
    "repulsion",
    "squared_error",
    "vecor",
]

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
WITH_TAU = VARIANTS[:2]
DISTANCES = ("sq_l2", "l2")

Batch = Float[Tensor, "batch *dims"]
Scalar = Float[Tensor, ""]
Negative = Batch | Float[Tensor, "k batch *dims"]
Keep = Bool[Tensor, " batch"] | Integer[Tensor, " batch"] | Float[Tensor, " batch"]


def squared_error(a: Batch, b: Batch) -> Float[Tensor, " batch"]:
    """The mean squared difference of each row.

    Raises:
        ConfigError: shapes that differ, or integers.

    >>> squared_error(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([1., 1.])
    """
    a, b = _same(a=a, b=b)
    return F.mse_loss(a, b, reduction="none").reshape(len(a), -1).mean(1)


def flow_matching(v: Batch, u: Batch) -> Scalar:
    """The mean squared distance of the velocity `v` to its target `u`.

    Raises:
        ConfigError: shapes that differ, or integers.

    Reference: Lipman et al. 2023 (arXiv:2210.02747), eq. 14.

    >>> flow_matching(torch.zeros(4, 2), torch.ones(4, 2))
    tensor(1.)
    """
    v, u = _same(v=v, u=u)
    # a target is data, whatever it was computed from
    return F.mse_loss(v, u.detach())


def repulsion(v: Batch, u_neg: Negative, keep: Keep | None = None, rescale: bool = False) -> Scalar:
    """The mean squared distance of `v` to wrong velocities `u_neg`, summed over K; at least 0.

    `keep`, bool or 0/1, leaves out rows where it is False. The mean divides by B, or with `rescale`
    by the number of kept rows, as DeltaFM's code does. No kept row gives 0 and a zero gradient.

    Raises:
        ConfigError: shapes that do not fit, integers, or a `keep` that is neither (B,) nor 0 and 1.

    >>> repulsion(torch.zeros(4, 2), torch.ones(3, 4, 2))
    tensor(3.)
    """
    v, u_neg = _with_negatives(v, u_neg)
    check_flag(rescale=rescale)
    if keep is None:
        # K times the mean, not the mean over K: the bound λK < 1 is on the sum
        return len(u_neg) * F.mse_loss(v.expand_as(u_neg), u_neg)
    shares = _row_shares(keep, v, rescale)
    # a row that is left out may hold anything, and 0 times NaN is NaN
    u_neg = torch.where(expand(shares > 0, v), u_neg, v.detach())
    errors = F.mse_loss(v.expand_as(u_neg), u_neg, reduction="none")  # (K, B, *dims)
    errors = errors.reshape(*u_neg.shape[:2], -1).mean(2).sum(0)  # (B,)
    return (errors * shares).sum()


def contrastive_flow_matching(
    v: Batch,
    u: Batch,
    u_neg: Negative,
    weight: float = 0.05,
    keep: Keep | None = None,
    rescale: bool = False,
) -> Scalar:
    """ΔFM: attract `v` to its target `u`, and repel it from the velocity `u_neg` of another pair.

    The optimum is (E[u] - λ E[u_neg]) / (1 - λ), with λ = `weight`. The loss may be negative.
    `keep` and `rescale` are those of `repulsion`. With `rescale` the weight of the kept rows is
    λ B / kept, so choose a smaller λ. An Objective sums the two functions as terms, with the same
    bits, so that each of them is logged and other terms can be added.

    Raises:
        ConfigError: not 0 <= λK < 1; from 1 on the loss has no minimum.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), eq. 6.

    >>> contrastive_flow_matching(torch.zeros(4, 2), torch.ones(4, 2), 2 * torch.ones(4, 2), 0.1)
    tensor(0.6000)
    """
    v, u = _same(v=v, u=u)
    v, u_neg = _with_negatives(v, u_neg)
    weight = repulsion_weight(weight, len(u_neg))
    warn_of_gain(weight * len(u_neg))
    if weight == 0:  # bit for bit plain flow matching, even beside negatives that are NaN
        return flow_matching(v, u)
    return flow_matching(v, u) - weight * repulsion(v, u_neg, keep, rescale)


def vecor(v: Batch, u: Batch, u_neg: Negative, weight: float = 0.05) -> Scalar:
    """Attract `v` to its target `u`, and repel it from K perturbed velocities `u_neg`.

    The optimum is (E[u] - λ sum_k E[u_neg_k]) / (1 - λK), with λ = `weight`. An Objective runs
    `flow_matching` and `repulsion` as two terms, as for `contrastive_flow_matching`.

    Raises:
        ConfigError: not 0 <= λK < 1.

    Reference: Hong et al. 2025 (arXiv:2511.18942); K = 1, λ = 0.05.

    >>> vecor(torch.zeros(4, 2), torch.ones(4, 2), torch.ones(3, 4, 2), weight=0.1)
    tensor(0.7000)
    """
    return contrastive_flow_matching(v, u, u_neg, weight)


def align(
    projected: Float[Tensor, "batch tokens dim"], target: Float[Tensor, "batch tokens dim"]
) -> Scalar:
    """Minus the mean cosine between `projected` and `target`; between -1 and 1.

    A zero vector counts as cosine 0. For several encoders, average the values.
    Reference: Yu et al. 2024 (arXiv:2410.06940), eq. 8.

    Raises:
        ConfigError: shapes that differ, or integers.

    >>> align(torch.ones(2, 3, 4), 5 * torch.ones(2, 3, 4))
    tensor(-1.)
    """
    projected, target = _same(projected=projected, target=target)
    squared = projected.square().sum(-1)
    # few calls: on a GPU each is a launch
    inverse = squared.masked_fill(squared <= TINY**2, math.inf).rsqrt()
    return -((projected * F.normalize(target.detach(), dim=-1)).sum(-1) * inverse).mean()


def dispersive(
    h: Batch,
    variant: str = "infonce_l2",
    tau: float = 0.5,
    margin: float = 1.0,
    normalize_by_dim: bool = True,
    include_diagonal: bool = True,
    distance: str = "sq_l2",
) -> Scalar:
    """Spread the features `h`, flattened to (B, d), over the batch; no positive pairs are needed.

    infonce_l2: log mean_ij exp(-D_ij / tau), D = |h_i - h_j|^2 / d (undivided without
    `normalize_by_dim`), in (-log B, 0].
    infonce_cosine: the same with D = -cosine.
    hinge: mean_ij max(0, margin - D_ij)^2, D as in infonce_l2 or, with distance="l2", its root.
    covariance: the sum over m != n of the squared correlations of features m and n over the batch;
    a constant feature correlates with none. Nothing divides this sum over d (d - 1) pairs, so it is
    about d^2 / B for unrelated features, where the other forms stay near 1. Its weight must be
    smaller by that factor (`objective.dispersive` divides 0.5 by the number of pairs).

    The pairs i = j count unless `include_diagonal` is False. A batch of one gives 0.
    Reference: Wang and He 2025 (arXiv:2506.09027), table 1.

    Raises:
        ConfigError: an unknown variant or distance, or a tau or margin that is not above 0.

    >>> dispersive(torch.tensor([[0.0], [1.0]]))  # log((1 + exp(-2)) / 2)
    tensor(-0.5662)
    """
    tau, margin = _check_options(variant, distance, tau=tau, margin=margin)
    check_flag(normalize_by_dim=normalize_by_dim, include_diagonal=include_diagonal)
    (z,) = _features(h=h)
    if len(z) == 1:
        return _nothing_to_spread(z)
    if variant == "covariance":
        z = standardize(z)
        # less the diagonal: 1 for each feature that varies
        return gram(z).div(len(z)).square().sum() - z.detach().any(0).sum()
    gap = _dissimilarity(z, variant, normalize_by_dim, distance)
    if not include_diagonal:
        # infinitely far from itself: no weight in the exponential, nothing left of the hinge
        gap = gap.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), math.inf)
    pairs = len(z) * (len(z) if include_diagonal else len(z) - 1)
    if variant == "hinge":
        return (margin - gap).clamp_min(0).square().sum() / pairs
    # the log of a mean of exponentials, without underflow where tau is small
    return torch.logsumexp((-gap / tau).flatten(), 0) - math.log(pairs)


def contrastive(
    h: Batch,
    h_positive: Batch,
    variant: str = "infonce_l2",
    tau: float = 0.5,
    margin: float = 1.0,
    w: float = 1.0,
    normalize_by_dim: bool = True,
    distance: str = "sq_l2",
) -> Scalar:
    """`dispersive` with positive pairs: `h_positive` holds the second view of each row of `h`.

    InfoNCE: mean_i [D(i, i+) / tau + log sum_j exp(-D_ij / tau)], j over the first view with i.
    hinge: mean_i D(i, i+)^2 + mean_ij max(0, margin - D_ij)^2.
    covariance: sum_m (1 - C_mm)^2 + w sum over m != n of C_mn^2, C the correlation of feature m in
    the first view with n in the second.

    D as in `dispersive`. A batch of one gives 0. Reference: Wang and He 2025, table 1.

    Raises:
        ConfigError: shapes that differ, an unknown variant or distance, a tau or margin that is not
            above 0, or a negative `w`.

    >>> contrastive(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    tensor(0.1269)
    """
    tau, margin = _check_options(variant, distance, tau=tau, margin=margin)
    check_flag(normalize_by_dim=normalize_by_dim)
    w = check_number("w", w, 0, math.inf)
    z, other = _features(h=h, h_positive=h_positive)
    if len(z) == 1:
        return _nothing_to_spread(z) + _nothing_to_spread(other)
    if variant == "covariance":
        return _cross_correlation(standardize(z), standardize(other), w)
    gap = _dissimilarity(z, variant, normalize_by_dim, distance)  # (B, B)
    near = _dissimilarity_to(z, other, variant, normalize_by_dim, distance)  # (B,)
    if variant == "hinge":
        return near.square().mean() + (margin - gap).clamp_min(0).square().mean()
    return (near / tau + torch.logsumexp(-gap / tau, 1)).mean()


def _check_batches(least: int, **tensors: Tensor) -> None:
    """The tensors must be alike, have `least` dimensions at least, and not be empty."""
    check_alike(**tensors)
    name, first = next(iter(tensors.items()))
    if first.dim() < least or first.numel() == 0:
        raise ConfigError(
            f"{name} has shape {tuple(first.shape)}; it must be (B, *dims), not empty."
        )


def _same(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The named tensors (B, *dims) in one dtype."""
    _check_batches(1, **tensors)
    return _one_dtype(*tensors.values())


def _features(**views: Tensor) -> tuple[Tensor, ...]:
    """Each view (B, *dims) as (B, d), in its own dtype: `gram` promotes slab by slab."""
    _check_batches(2, **views)
    return tuple(h.reshape(len(h), -1) for h in views.values())


def _one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return tuple(x.to(dtype) for x in tensors)


def _with_negatives(v: Tensor, u_neg: Tensor) -> tuple[Tensor, Tensor]:
    """`v` (B, *dims) and the detached negatives as (K, B, *dims), in one dtype."""
    check_floating(v=v, u_neg=u_neg)
    stack = u_neg if u_neg.dim() > v.dim() else u_neg[None]
    if stack.shape[1:] != v.shape or v.dim() == 0 or stack.numel() == 0:
        raise ConfigError(
            f"u_neg has shape {tuple(u_neg.shape)}, v {tuple(v.shape)}; u_neg must have the shape "
            "of v, (B, *dims), or (K, B, *dims) for K negatives, and not be empty."
        )
    v, stack = _one_dtype(v, stack.detach())
    return v, stack


def _row_shares(keep: Tensor, v: Tensor, rescale: bool) -> Tensor:
    """The weight of each row (B,) in a mean: keep / B, or with `rescale` keep / (kept rows)."""
    check_keep("keep", keep, len(v))
    kept = keep.to(v.dtype)
    return kept / (kept.sum().clamp_min(1) if rescale else len(v))


def _check_options(variant: str, distance: str, **positive: float) -> list[float]:
    check_choice("variant", variant, VARIANTS)
    check_choice("distance", distance, DISTANCES)
    return [
        check_number(name, value, 0, math.inf, open_low=True) for name, value in positive.items()
    ]


def _nothing_to_spread(z: Tensor) -> Tensor:
    """0 with a zero gradient, even where `z` is infinite."""
    warn_once(
        "a batch of one has nothing to spread or contrast with: the loss is 0. Use batches (or "
        "shards) of at least two."
    )
    return promote(z[:, :0]).sum()


def _dissimilarity(z: Tensor, variant: str, normalize_by_dim: bool, distance: str) -> Tensor:
    """D_ij (B, B) between the rows of `z` (B, d), from their Gram matrix."""
    products = gram(z, centre=variant != "infonce_cosine")
    size = products.diagonal()  # squared lengths
    if variant == "infonce_cosine":
        inverse = inverse_root(size)
        return -products * inverse[:, None] * inverse
    scale = z.shape[1] if normalize_by_dim else 1
    # rounding leaves some distances just below 0
    squared = (size[:, None] + size - 2 * products).clamp_min(0) / scale
    if variant == "hinge" and distance == "l2":
        # rounding of large numbers hides distances below this; their roots would be noise with a
        # steep slope
        floor = 4 * torch.finfo(size.dtype).eps * (size[:, None] + size).detach() / scale
        return root(torch.where(squared <= floor, 0, squared))
    return squared


def _dissimilarity_to(
    z: Tensor, other: Tensor, variant: str, normalize_by_dim: bool, distance: str
) -> Tensor:
    """D(z_i, other_i) (B,) between the rows of two views (B, d)."""
    z, other = _one_dtype(z, other)
    if variant == "infonce_cosine":
        return -cosine(z, other)
    squared = squared_error(z, other) * (1 if normalize_by_dim else z.shape[1])
    if variant == "hinge" and distance == "l2":
        return root(squared)
    return squared


def _cross_correlation(z: Tensor, other: Tensor, w: float) -> Tensor:
    """sum_m (1 - C_mm)^2 + w sum_{m != n} C_mn^2 with C = z^T other / B.

    Only (B, B) matrices K and K' are needed: |C|^2 = sum(K * K') / B^2.
    """
    diagonal = (z * other).mean(0)
    everything = (gram(z) * gram(other)).sum() / len(z) ** 2
    return (1 - diagonal).square().sum() + w * (everything - diagonal.square().sum())
