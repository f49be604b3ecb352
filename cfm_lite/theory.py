"""Exact theory on Gaussian mixtures: density, score, velocity, and the optimum of each objective.

If the data are distributed as sum_k w_k N(mu_k, Sigma_k), every x_t is a mixture too, with means
alpha mu_k and covariances S_k = alpha^2 Sigma_k + sigma^2 I. With the responsibilities r_k of x_t

    E[u_t | x_t] = sum_k r_k [d_alpha mu_k + R_k S_k^-1 (x - alpha mu_k)]
    R_k = d_alpha alpha Sigma_k + d_sigma sigma I

Convention: t = 0 is noise, t = 1 is data. The work is done in float64 (float32 on MPS); the result
has the dtype of x.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cfm_lite._internal.checks import (
    as_numbers,
    check_choice,
    check_count,
    check_floating,
    check_generator,
    check_labels,
    is_whole,
    on_host,
    promote,
    repulsion_total,
    seen,
    widest,
)
from cfm_lite.errors import ConfigError
from cfm_lite.negatives import in_batch_mean
from cfm_lite.paths import LINEAR, STAY_AWAY, Path, check_defined, check_path
from cfm_lite.perturbations import shuffle_share

__all__ = ["EXACT", "GaussianMixture", "mean_negative", "optimal_velocity"]

Points = Float[Tensor, "batch dim"]
Times = Float[Tensor, " batch"]
Labels = Integer[Tensor, " batch"]

# the methods whose optimum is known on a mixture
EXACT: tuple[str, ...] = ("fm", "delta_fm", "vecor")


class _Terms(NamedTuple):
    """What each component contributes at (x, t).

    The last axis is its eigenbasis, of size 1 where all eigenvalues agree.
    """

    log_joint: Tensor  # (B, K) log of w_k N(x; alpha mu_k, S_k)
    offset: Tensor  # (B, K, D) x - alpha mu_k
    spread: Tensor  # (B, K, D or 1) eigenvalues of S_k
    # (B, K, D or 1) eigenvalues of d_alpha alpha Sigma_k + d_sigma sigma I, half of dS_k/dt
    rate: Tensor
    lead: Tensor  # (B, 1) d_alpha


class GaussianMixture:
    """Data with a known density: a weighted sum of Gaussians.

    The tensors are kept on the host in float64 and follow x at each call.

    Args:
        weights: (K,), at least 0, not all 0; they need not sum to 1.
        means: (K, D).
        stds: (K,), at least 0. A std of 0 is a data point: exact wherever sigma(t) > 0.
        covariances: (K, D, D), symmetric and without negative eigenvalues, instead of `stds`.
        labels: (K,) integers, the class of each component; by default component k is class k.

    Raises:
        ConfigError: an argument that is not as said, or both or neither of stds and covariances.

    >>> pair = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.1)
    >>> pair.mean()
    tensor([0., 0.])
    """

    def __init__(
        self,
        weights: Any,
        means: Any,
        stds: Any = None,
        *,
        covariances: Any = None,
        labels: Any = None,
    ) -> None:
        floating = isinstance(means, Tensor) and means.is_floating_point()
        self.dtype = promote(means).dtype if floating else torch.get_default_dtype()
        self.means = _numbers("means", means)
        if self.means.dim() != 2 or 0 in self.means.shape:
            raise ConfigError(
                f"means has shape {tuple(self.means.shape)}; it must be (K, D), one row per "
                "component."
            )
        components, dim = self.means.shape
        weights = _numbers("weights", weights, (components,), low=0)
        if weights.sum() <= 0:
            raise ConfigError("weights are all 0; at least one must be positive.")
        self.weights = weights / weights.sum()
        if (stds is None) == (covariances is None):
            raise ConfigError(
                "give either stds (K,) or covariances (K, D, D), not both or neither; stds of 0 "
                "are data points."
            )
        self.stds = self.covariances = self._basis = None
        if stds is not None:
            self.stds = _numbers("stds", stds, (components,), low=0)
            self._variances = self.stds[:, None] ** 2  # (K, 1)
        else:
            self.covariances = _numbers("covariances", covariances, (components, dim, dim))
            self._variances, self._basis = _eigen(self.covariances)
        self._has_points = bool((self._variances == 0).any())
        self.labels = _check_component_labels(labels, components)

    @property
    def classes(self) -> Tensor:
        """The labels that have a component of positive weight, sorted, int64.

        >>> GaussianMixture([1, 1], [[0.0], [1.0]], 0.1, labels=[7, 3]).classes
        tensor([3, 7])
        """
        return self.labels[self.weights > 0].unique()

    def mean(self, y: Labels | None = None) -> Float[Tensor, "*batch dim"]:
        """E[x1] (D,), or with labels E[x1 | y] (B, D), in the dtype of the given means.

        Raises:
            ConfigError: labels that are no integers (B,), or one without a component.

        >>> GaussianMixture([1, 3], [[0.0], [4.0]], 0.1).mean()
        tensor([3.])
        """
        if y is None:
            return (self.weights @ self.means).to(self.dtype)
        y = check_labels(y, None, int(self.labels.max()))
        weights = self._log_weights(y, y.device).exp()
        return (weights @ self.means.to(weights)).to(self.dtype)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n dim"], Integer[Tensor, " n"]]:
        """`n` data points x1 and their labels y, on the device of the generator.

        Raises:
            ConfigError: `n` below 1, or something else than a generator.

        >>> GaussianMixture([1.0], [[2.0]], stds=0.0).sample(2)
        (tensor([[2.],
                [2.]]), tensor([0, 0]))
        """
        check_generator(generator)
        device = torch.device("cpu") if generator is None else generator.device
        weights, means, variances = (
            a.to(device, widest(device)) for a in (self.weights, self.means, self._variances)
        )
        n = check_count("n", n)
        which = torch.multinomial(weights, n, replacement=True, generator=generator)
        shape = n, means.shape[1]
        noise = torch.randn(shape, generator=generator, device=device, dtype=means.dtype)
        # independent in the eigenbasis of the component, and turned from there
        noise = variances.sqrt()[which] * noise  # (n, D)
        if self._basis is not None:
            noise = torch.einsum("ne,nde->nd", noise, self._basis.to(means)[which])
        return (means[which] + noise).to(self.dtype), self.labels.to(device)[which]

    def log_prob(self, x: Points, t: Times, y: Labels | None = None, path: Path = LINEAR) -> Times:
        """log p_t(x), or log p_t(x | y).

        Labels choose the components, whose weights are renormalised inside the class.

        Raises:
            ConfigError: wrong shapes, times outside [0, 1], a label without component, or a std of
                0 where sigma(t) = 0.

        >>> normal = GaussianMixture([1.0], [[0.0]], stds=1.0)
        >>> normal.log_prob(torch.zeros(1, 1), torch.ones(1))  # -log(2 pi) / 2
        tensor([-0.9189])
        """
        return self._terms(x, t, y, path).log_joint.logsumexp(1).to(promote(x).dtype)

    def responsibilities(
        self, x: Points, t: Times, y: Labels | None = None, path: Path = LINEAR
    ) -> Float[Tensor, "batch components"]:
        """P(component k | x_t = x, y); rows sum to 1. Arguments and errors as in `log_prob`.

        >>> pair = GaussianMixture([1, 1], [[-1.0], [1.0]], stds=0.5)
        >>> pair.responsibilities(torch.zeros(1, 1), torch.ones(1))
        tensor([[0.5000, 0.5000]])
        """
        return self._terms(x, t, y, path).log_joint.softmax(1).to(promote(x).dtype)

    def velocity(self, x: Points, t: Times, y: Labels | None = None, path: Path = LINEAR) -> Points:
        """E[u_t | x_t = x, y], exact: the minimiser of flow matching.

        Arguments and errors are those of `log_prob`.

        Reference: Lipman et al. 2023 (arXiv:2210.02747), eq. 8, with Gaussian data integrated out.

        >>> GaussianMixture([1.0], [[3.0]], stds=1.0).velocity(torch.zeros(1, 1), torch.zeros(1))
        tensor([[3.]])
        """
        terms = self._terms(x, t, y, path)
        shares = terms.log_joint.softmax(1)  # (B, K)
        # sum_k r_k [d_alpha mu_k + R_k S_k^-1 (x - alpha mu_k)]
        flow = terms.lead * (shares @ self.means.to(shares))
        # R_k and S_k share their eigenvectors, so R_k S_k^-1 is a quotient of eigenvalues
        pull = self._collect(shares[..., None] * terms.rate / terms.spread, terms.offset)
        return (flow + pull).to(promote(x).dtype)

    def score(self, x: Points, t: Times, y: Labels | None = None, path: Path = LINEAR) -> Points:
        """The exact gradient of log p_t(x | y) with respect to x.

        Arguments and errors are those of `log_prob`.

        >>> GaussianMixture([1.0], [[3.0]], stds=1.0).score(torch.zeros(1, 1), torch.ones(1))
        tensor([[3.]])
        """
        terms = self._terms(x, t, y, path)
        shares = terms.log_joint.softmax(1)
        return -self._collect(shares[..., None] / terms.spread, terms.offset).to(promote(x).dtype)

    def _terms(self, x: Tensor, t: Tensor, y: Tensor | None, path: Path) -> _Terms:
        _check_position(x, self.means.shape[1], path)
        if y is not None:
            y = check_labels(y, x, int(self.labels.max()))
        place = promote(x).to(widest(x.device))
        means, variances = self.means.to(place), self._variances.to(place)
        alpha, sigma, d_alpha, _ = (c[..., None] for c in path.coefficients(t, place))  # (B, 1, 1)
        # as one product: at t = 1 of VP d_sigma alone is infinite
        rate = path.half_variance_rate(t.to(place.dtype))[:, None, None]
        check_defined(
            path, d_alpha.isfinite() & rate.isfinite(), t, "the velocity of a mixture", STAY_AWAY
        )
        spread = alpha**2 * variances + sigma**2  # the eigenvalues of S_k
        log_weights = self._log_weights(y, x.device)
        if self._has_points:
            # a component that has no weight here needs no density: its share is 0 whatever it is
            unasked = (log_weights == -math.inf)[..., None]
            spread = torch.where(unasked & (spread == 0), 1.0, spread)
        if on_host(spread) and not (spread > 0).all():
            raise ConfigError(
                "a component with std 0 has no density where sigma(t) = 0; keep t below 1, for "
                "example 0.999."
            )
        offset = place[:, None] - alpha * means  # (B, K, D)
        if self._basis is not None:  # in the eigenbasis S_k is diagonal
            offset = torch.einsum("bkd,kde->bke", offset, self._basis.to(place))
        log_normal = -0.5 * (offset**2 / spread + torch.log(2 * math.pi * spread)).sum(-1)
        log_joint = log_weights + log_normal
        return _Terms(
            log_joint, offset, spread, d_alpha * alpha * variances + rate, d_alpha[..., 0]
        )

    def _log_weights(self, y: Tensor | None, device: torch.device) -> Tensor:
        """Log weights (1, K), or (B, K) renormalised inside the class of each row."""
        log_weights = self.weights.to(device, widest(device)).log()[None]
        if y is None:
            return log_weights
        inside = y[:, None].to(device) == self.labels.to(device)  # (B, K)
        log_weights = log_weights.masked_fill(~inside, -math.inf)
        if on_host(y) and not (log_weights > -math.inf).any(1).all():
            known = self.classes.tolist()
            raise ConfigError(
                f"y holds the labels {y.unique().tolist()}; this mixture has components for "
                f"{known} only."
            )
        return log_weights.log_softmax(1)

    def _collect(self, factors: Tensor, offset: Tensor) -> Tensor:
        """The sum over components of factors (B, K, D or 1) times offsets (B, K, D): (B, D)."""
        if self._basis is None:
            return (factors.mT @ offset)[:, 0]
        return torch.einsum("bke,kde->bd", factors * offset, self._basis.to(offset))


def mean_negative(
    mixture: GaussianMixture,
    x: Points,
    t: Times,
    y: Labels | None = None,
    *,
    method: str,
    path: Path = LINEAR,
) -> Points:
    """E[u_neg | x_t = x, y]: the mean of the wrong velocities that a method repels.

    Args:
        method: "delta_fm" repels the velocity of another pair, of any class and with its own
            uniform time, so its mean is (alpha(1) - alpha(0)) E[x1]. "vecor" repels the velocity
            with its D coordinates permuted, uniformly over all permutations but the identity. With
            v the exact velocity and m the mean of its coordinates that is (D! m - v) / (D! - 1).

    Raises:
        ConfigError: another method, or "vecor" with D = 1.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), eq. 6; Hong et al. 2025 (arXiv:2511.18942).

    >>> data = GaussianMixture([1.0], [[3.0, 1.0]], stds=1.0)
    >>> mean_negative(data, torch.zeros(1, 2), torch.zeros(1), method="vecor")
    tensor([[1., 3.]])
    """
    check_choice("method", method, EXACT[1:])
    _check_mixture(mixture)
    return _mean_negative(mixture, mixture.velocity(x, t, y, path), method, path)


def _mean_negative(mixture: GaussianMixture, v: Tensor, method: str, path: Path) -> Tensor:
    if method == "delta_fm":
        return in_batch_mean(mixture.weights @ mixture.means, path).to(v).repeat(len(v), 1)
    if v.shape[1] == 1:
        raise ConfigError(
            "vecor permutes coordinates, and this mixture has D = 1; it needs D of at least 2."
        )
    mean = v.mean(1, keepdim=True)
    return mean + shuffle_share(v.shape[1]) * (v - mean)


def optimal_velocity(
    mixture: GaussianMixture,
    x: Points,
    t: Times,
    y: Labels | None = None,
    *,
    method: str,
    weight: float = 0.05,
    k: int = 1,
    path: Path = LINEAR,
) -> Points:
    """The field that minimises the objective of a method on this mixture.

    For "fm" it is v = E[u_t | x_t, y]. For "delta_fm" and "vecor" it is
    (v - λk E[u_neg | x_t, y]) / (1 - λk), with λ = `weight` and `mean_negative`. It follows by
    setting the gradient of E|f - u|^2 - λ sum_k E|f - u_neg|^2 to zero.

    Raises:
        ConfigError: another method, or λk >= 1, where the loss has no minimum.

    >>> data = GaussianMixture([1.0], [[3.0, 1.0]], stds=1.0)
    >>> optimal_velocity(data, torch.zeros(1, 2), torch.zeros(1), method="vecor", weight=0.5)
    tensor([[ 5., -1.]])
    """
    check_choice("method", method, EXACT)
    _check_mixture(mixture)
    v = mixture.velocity(x, t, y, path)
    if method == "fm":
        return v
    total = repulsion_total(weight, k)
    return (v - total * _mean_negative(mixture, v, method, path)) / (1 - total)


def _numbers(
    name: str, value: Any, shape: tuple[int, ...] | None = None, low: float = -math.inf
) -> Tensor:
    """`value` as finite float64 numbers of at least `low`; a single number fills `shape` (K,)."""
    tensor = as_numbers(name, value, torch.float64).double()
    if shape is not None and tensor.dim() == 0 and len(shape) == 1:
        tensor = tensor.repeat(shape)
    if shape is not None and tensor.shape != shape:
        raise ConfigError(
            f"{name} has shape {tuple(tensor.shape)}; means of (K, D) components need {shape}."
        )
    if not tensor.isfinite().all():
        raise ConfigError(f"{name} holds NaN or infinite values; all must be finite.")
    if (tensor < low).any():
        raise ConfigError(f"{name} goes down to {tensor.min():.4g}; all must be at least {low:g}.")
    return tensor


def _check_component_labels(labels: Any, components: int) -> Tensor:
    if labels is None:
        return torch.arange(components, device="cpu")
    tensor = as_numbers("labels", labels)
    if not is_whole(tensor) or tensor.shape != (components,) or (tensor < 0).any():
        raise ConfigError(
            f"labels is {tensor.dtype} {tuple(tensor.shape)}; it must hold {components} integers "
            "of at least 0."
        )
    return tensor.long()


def _eigen(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, D) and eigenvectors (K, D, D) of each covariance, which serve every time."""
    size = covariances.abs().amax((1, 2), keepdim=True)
    if ((covariances - covariances.mT).abs() > 1e-6 * size).any():
        raise ConfigError(
            "covariances must be symmetric matrices; use (c + c.mT) / 2 if they nearly are."
        )
    values, vectors = torch.linalg.eigh(covariances)
    if (values < -1e-6 * size[..., 0]).any():
        raise ConfigError(
            f"covariances have an eigenvalue of {values.min():.3g}; all must be at least 0."
        )
    return values.clamp(min=0), vectors


def _check_mixture(mixture: Any) -> None:
    if not isinstance(mixture, GaussianMixture):
        raise ConfigError(
            f"mixture has type {type(mixture).__name__}; it must be a GaussianMixture."
        )


def _check_position(x: Tensor, dim: int, path: Path) -> None:
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != dim:
        raise ConfigError(
            f"x has {seen(x)}; it must be a tensor of shape (B, {dim}), the dimension of the "
            "mixture's means."
        )
    check_floating(x=x)
    check_path(path)
