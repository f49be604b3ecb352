"""Theory: the exact mixture against autograd, Monte Carlo and its own flow; the optimum of each
objective; wrong arguments.
"""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap
from torch.testing import assert_close

from cfm_lite.errors import ConfigError
from cfm_lite.paths import COSINE, LINEAR, VP, Path
from cfm_lite.theory import GaussianMixture, mean_negative, optimal_velocity

EVERY = pytest.mark.parametrize("path", [LINEAR, COSINE, VP], ids=lambda path: path.name)
REPELLING = pytest.mark.parametrize("method", ["delta_fm", "vecor"])
WEIGHTS = [0.5, 0.2, 0.3]
MEANS = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 1.5, 0.0], [0.5, -2.0, -1.0]], dtype=torch.float64)
LABELS = [4, 1, 4]


def isotropic() -> GaussianMixture:
    return GaussianMixture(WEIGHTS, MEANS, [0.4, 0.9, 0.6], labels=LABELS)


def full() -> GaussianMixture:
    root = torch.tensor([[[1.0, 0.2, 0.0], [0.5, 0.6, 0.1], [-0.3, 0.4, 0.8]]], dtype=torch.float64)
    return GaussianMixture(
        WEIGHTS,
        MEANS,
        covariances=torch.tensor([0.3, 0.7, 1.1]).view(3, 1, 1) * (root @ root.mT),
        labels=LABELS,
    )


KINDS = pytest.mark.parametrize("mixture", [isotropic(), full()], ids=["isotropic", "full"])
CONDITIONS = pytest.mark.parametrize(
    "y", [None, torch.tensor([4, 1] * 4)], ids=["marginal", "by_class"]
)


def points(n: int = 8) -> tuple[Tensor, Tensor]:
    return 1.5 * torch.randn(n, 3, dtype=torch.float64), torch.linspace(
        0.03, 0.97, n, dtype=torch.float64
    )


def rk4(
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    start: float = 0.0,
    end: float = 1.0,
    steps: int = 20,
) -> Tensor:
    h = (end - start) / steps
    for i in range(steps):
        t = x.new_full((len(x),), start + i * h)
        k1 = field(x, t)
        k2 = field(x + h / 2 * k1, t + h / 2)
        k3 = field(x + h / 2 * k2, t + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(x + h * k3, (t + h).clamp(max=1)))
    return x


def divergence(field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The trace of the Jacobian of a field whose rows do not mix."""
    return torch.einsum("bibi->b", jacrev(field)(x))


def posterior_of_points(
    data: Tensor, weights: Tensor, x: Tensor, t: Tensor, path: Path
) -> tuple[Tensor, Tensor]:
    """P(x1 = data_k | x_t = x) (B, K) and the velocity u_k (B, K, D) that each such pair has,
    straight from Bayes' rule.
    """
    alpha, sigma, d_alpha, d_sigma = (c[..., None] for c in path.coefficients(t, x))
    noise = (x[:, None] - alpha * data) / sigma
    return (weights.log() - noise.square().sum(-1) / 2).softmax(1), d_alpha * data + d_sigma * noise


# --- density, score, velocity


@EVERY
@KINDS
def test_log_prob_is_that_of_the_mixture_of_gaussians(mixture: GaussianMixture, path: Path) -> None:
    x, t = points()
    covariances = (
        mixture.covariances
        if mixture.stds is None
        else mixture.stds.view(3, 1, 1) ** 2 * torch.eye(3)
    )
    eye = torch.eye(3, dtype=torch.float64)
    wide = (
        path.alpha(t).view(-1, 1, 1, 1) ** 2 * covariances
        + path.sigma(t).view(-1, 1, 1, 1) ** 2 * eye
    )
    normal = torch.distributions.MultivariateNormal(path.alpha(t).view(-1, 1, 1) * MEANS, wide)
    joint = normal.log_prob(x[:, None]) + torch.tensor(WEIGHTS, dtype=torch.float64).log()
    assert_close(mixture.log_prob(x, t, path=path), joint.logsumexp(1), atol=1e-11, rtol=1e-11)
    assert_close(
        mixture.responsibilities(x, t, path=path), joint.softmax(1), atol=1e-11, rtol=1e-11
    )


@EVERY
@KINDS
@CONDITIONS
def test_score_is_the_gradient_of_log_prob(
    mixture: GaussianMixture, y: Tensor | None, path: Path
) -> None:
    x, t = points()
    gradient = torch.func.grad(lambda x: mixture.log_prob(x, t, y, path).sum())(x)
    assert_close(mixture.score(x, t, y, path), gradient, atol=1e-10, rtol=1e-10)


@EVERY
@KINDS
@CONDITIONS
def test_velocity_and_score_are_related_by_the_path(
    mixture: GaussianMixture, y: Tensor | None, path: Path
) -> None:
    x, t = points()
    v, s = mixture.velocity(x, t, y, path), mixture.score(x, t, y, path)
    assert_close(path.score(x, v, t), s, atol=1e-9, rtol=1e-9)
    assert_close(path.velocity_from_score(x, s, t), v, atol=1e-9, rtol=1e-9)


@EVERY
@KINDS
@CONDITIONS
def test_density_and_velocity_obey_the_continuity_equation(
    mixture: GaussianMixture, y: Tensor | None, path: Path
) -> None:
    x, t = points()
    _, change = jvp(lambda t: mixture.log_prob(x, t, y, path), (t,), (torch.ones_like(t),))
    spread = divergence(lambda x: mixture.velocity(x, t, y, path), x)
    flow = (mixture.velocity(x, t, y, path) * mixture.score(x, t, y, path)).sum(1)
    assert_close(change, -spread - flow, atol=1e-9, rtol=1e-9)


@EVERY
@KINDS
def test_adding_noise_along_the_score_keeps_the_marginals(
    mixture: GaussianMixture, path: Path
) -> None:
    """An SDE with drift v + c s and noise sqrt(2c) has the ODE's marginals because div(p s) equals
    the Laplacian of p.
    """
    x, t = points()

    def density(x: Tensor) -> Tensor:
        return mixture.log_prob(x, t, path=path).exp()

    flux = divergence(lambda x: density(x)[:, None] * mixture.score(x, t, path=path), x)
    laplacian = divergence(lambda x: torch.func.grad(lambda x: density(x).sum())(x), x)
    assert_close(flux, laplacian, atol=1e-12, rtol=1e-9)


@EVERY
@KINDS
def test_velocity_is_the_mean_of_the_pair_velocities_through_a_point(
    mixture: GaussianMixture, path: Path
) -> None:
    x1, _ = mixture.sample(100_000, generator=torch.Generator().manual_seed(0))
    x, t = mixture.means[1:2] * 0.5, torch.tensor([0.4], dtype=torch.float64)
    alpha, sigma, d_alpha, d_sigma = (c.item() for c in path.coefficients(t, x))
    noise = (x - alpha * x1) / sigma
    shares = (-noise.square().sum(1) / 2).softmax(
        0
    )  # importance weights of a pair that passes through x
    u = d_alpha * x1 + d_sigma * noise
    mean = shares @ u
    error = (shares.square() @ (u - mean).square()).sqrt()
    v = mixture.velocity(x, t, path=path)[0]
    assert ((v - mean).abs() < 4.5 * error).all()
    assert error.max() < 0.05


@EVERY
def test_velocity_of_data_points_follows_from_bayes_rule(path: Path) -> None:
    x, t = points()
    shares, u = posterior_of_points(MEANS, torch.tensor(WEIGHTS, dtype=torch.float64), x, t, path)
    for mixture in (
        GaussianMixture(WEIGHTS, MEANS, 0.0),
        GaussianMixture(WEIGHTS, MEANS, covariances=torch.zeros(3, 3, 3)),
    ):
        assert_close(
            mixture.velocity(x, t, path=path),
            torch.einsum("bk,bkd->bd", shares, u),
            atol=1e-11,
            rtol=1e-11,
        )
        assert_close(mixture.responsibilities(x, t, path=path), shares, atol=1e-11, rtol=1e-11)


@EVERY
@pytest.mark.parametrize("std", [0.3, 2.5])
def test_a_single_gaussian_flows_along_its_closed_form(path: Path, std: float) -> None:
    mean = torch.tensor([[1.5, -0.5, 3.0]], dtype=torch.float64)
    mixture = GaussianMixture([1.0], mean, [std])
    start, _ = points()
    zero = torch.zeros(1, dtype=torch.float64)
    for end in (0.3, 1.0):
        scale = [
            (path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2).sqrt() for t in (zero, zero + end)
        ]
        exact = path.alpha(zero + end) * mean + scale[1] / scale[0] * (
            start - path.alpha(zero) * mean
        )
        assert_close(
            rk4(lambda x, t: mixture.velocity(x, t, path=path), start, 0.0, end),
            exact,
            atol=5e-4,
            rtol=5e-4,
        )


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda path: path.name)
@KINDS
def test_the_flow_carries_the_density_from_noise_to_the_mixture(
    mixture: GaussianMixture, path: Path
) -> None:
    """Along a trajectory log p falls by the integral of the divergence: the marginal at t = 1 is
    the mixture, exactly.
    """
    start, _ = points()
    y = torch.tensor([4, 1] * 4)

    def field(state: Tensor, t: Tensor) -> Tensor:
        x = state[:, :3]
        return torch.cat(
            [
                mixture.velocity(x, t, y, path),
                divergence(lambda x: mixture.velocity(x, t, y, path), x)[:, None],
            ],
            1,
        )

    end = rk4(field, torch.cat([start, torch.zeros(8, 1)], 1))
    noise, data = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    before, after = (
        mixture.log_prob(start, noise, y, path),
        mixture.log_prob(end[:, :3], data, y, path),
    )
    assert_close(before, -0.5 * (start**2 + math.log(2 * math.pi)).sum(1))
    assert_close(after, before - end[:, 3], atol=5e-4, rtol=5e-4)


@EVERY
def test_the_flow_of_noise_samples_ends_in_the_mixture(path: Path) -> None:
    mixture = GaussianMixture([0.7, 0.3], [[2.0, 1.0], [-2.0, 0.0]], [0.5, 0.3])
    start = torch.randn(4000, 2)
    end = rk4(lambda x, t: mixture.velocity(x, t, path=path), start)
    right = end[:, 0] > 0
    slack = 0.03 if path is VP else 0  # VP starts at alpha = 0.0066, not at pure noise
    assert right.float().mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 4000) + slack)
    for inside, mean, std in ((right, mixture.means[0], 0.5), (~right, mixture.means[1], 0.3)):
        assert_close(
            end[inside].mean(0), mean.float(), atol=4 * std / math.sqrt(1200) + slack, rtol=0
        )
        assert_close(
            end[inside].std(0),
            torch.full((2,), std),
            atol=4 * std / math.sqrt(2400) + slack,
            rtol=0,
        )


@EVERY
def test_the_mean_velocity_is_the_slope_of_the_mean(path: Path) -> None:
    mixture, n = isotropic(), 50_000
    x1, _ = mixture.sample(n)
    x_t, u_t = path.interpolate(torch.randn_like(x1), x1, torch.full((n,), 0.6))
    v = mixture.velocity(x_t, torch.full((n,), 0.6), path=path)
    exact = path.d_alpha(torch.tensor(0.6, dtype=torch.float64)) * mixture.mean()
    assert ((v.mean(0) - exact).abs() < 4.5 * u_t.std(0) / math.sqrt(n)).all()


# --- classes


@EVERY
@KINDS
def test_a_label_means_the_mixture_of_its_components_alone(
    mixture: GaussianMixture, path: Path
) -> None:
    x, t = points()
    rows = torch.tensor([0, 2])  # the components of class 4
    spread = (
        {"covariances": mixture.covariances[rows]}
        if mixture.stds is None
        else {"stds": mixture.stds[rows]}
    )
    alone = GaussianMixture(mixture.weights[rows], mixture.means[rows], **spread)
    y = torch.full((8,), 4)
    for name in ("log_prob", "velocity", "score"):
        assert_close(getattr(mixture, name)(x, t, y, path), getattr(alone, name)(x, t, path=path))
    assert (mixture.responsibilities(x, t, y, path)[:, 1] == 0).all()


def test_the_marginal_velocity_is_the_mean_of_the_class_velocities() -> None:
    mixture = isotropic()
    x, t = points()
    classes = torch.tensor([4, 1])
    prior = torch.tensor([0.8, 0.2], dtype=torch.float64)
    by_class = torch.stack(
        [mixture.velocity(x, t, label.expand(8)) for label in classes]
    )  # (2, B, D)
    joint = (
        torch.stack([mixture.log_prob(x, t, label.expand(8)) for label in classes])
        + prior.log()[:, None]
    )
    assert_close(mixture.velocity(x, t), (joint.softmax(0)[..., None] * by_class).sum(0))
    assert_close(mixture.log_prob(x, t), joint.logsumexp(0))


def test_mean_by_class_and_over_all_classes() -> None:
    mixture = isotropic()
    assert_close(mixture.mean(), 0.5 * MEANS[0] + 0.2 * MEANS[1] + 0.3 * MEANS[2])
    assert_close(
        mixture.mean(torch.tensor([1, 4, 4])),
        torch.stack([MEANS[1], *[(0.5 * MEANS[0] + 0.3 * MEANS[2]) / 0.8] * 2]),
    )
    assert mixture.classes.tolist() == [1, 4]
    assert GaussianMixture([1, 0, 1], MEANS, 1.0).classes.tolist() == [0, 2]


def test_without_labels_each_component_is_a_class() -> None:
    mixture = GaussianMixture(WEIGHTS, MEANS, 0.5)
    assert mixture.labels.tolist() == [0, 1, 2]
    assert_close(mixture.mean(torch.tensor([2])), MEANS[2:])


@KINDS
def test_samples_have_the_moments_and_labels_of_the_mixture(mixture: GaussianMixture) -> None:
    n = 40_000
    x1, y = mixture.sample(n, generator=torch.Generator().manual_seed(5))
    assert (x1.shape, y.shape, y.dtype) == ((n, 3), (n,), torch.int64)
    assert (y == 1).double().mean().item() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / n))
    covariances = (
        mixture.covariances
        if mixture.stds is None
        else mixture.stds.view(3, 1, 1) ** 2 * torch.eye(3)
    )
    assert_close(x1[y == 1].mean(0), MEANS[1], atol=5 / math.sqrt(n * 0.2), rtol=0)
    assert_close(x1[y == 1].T.cov(), covariances[1], atol=8 / math.sqrt(n * 0.2), rtol=0)
    moment = torch.einsum(
        "k,kde->de", mixture.weights, covariances + torch.einsum("kd,ke->kde", MEANS, MEANS)
    )
    assert_close(x1.T @ x1 / n, moment, atol=0.1, rtol=0)


def test_samples_depend_on_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (
        isotropic().sample(7, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)


# --- numerics


@EVERY
@KINDS
def test_everything_is_finite_at_both_ends_and_far_away(
    mixture: GaussianMixture, path: Path
) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[0.0, 0.0, 0.0], [1e3, -1e3, 1e3]], dtype=dtype).repeat(3, 1)
        t = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, 0.5], dtype=dtype)
        for method in (mixture.velocity, mixture.score, mixture.log_prob, mixture.responsibilities):
            assert method(x, t, None, path).isfinite().all()
            assert method(x, t, torch.tensor([1, 4] * 3), path).isfinite().all()


@EVERY
def test_the_ends_are_the_limits_of_what_lies_between(path: Path) -> None:
    mixture = isotropic()
    x, _ = points()
    for end, near in ((0.0, 1e-9), (1.0, 1 - 1e-9)):
        at, close = (
            mixture.velocity(x, torch.full((8,), time, dtype=torch.float64), path=path)
            for time in (end, near)
        )
        assert_close(at, close, atol=1e-5, rtol=1e-5)


def test_linear_velocity_at_the_start_is_the_data_mean_minus_the_noise() -> None:
    x, _ = points()
    assert_close(
        isotropic().velocity(x, torch.zeros(8, dtype=torch.float64)), isotropic().mean() - x
    )


@KINDS
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_results_have_the_dtype_of_the_positions(
    mixture: GaussianMixture, given: torch.dtype, wanted: torch.dtype
) -> None:
    x, t = (a.to(given) for a in points())
    for method in (mixture.velocity, mixture.score, mixture.log_prob, mixture.responsibilities):
        assert method(x, t).dtype == wanted
        assert_close(method(x, t), method(x.double(), t.double()).to(wanted))
    for name in ("fm", "delta_fm", "vecor"):
        assert optimal_velocity(mixture, x, t, method=name).dtype == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_means(dtype: torch.dtype) -> None:
    mixture = GaussianMixture(WEIGHTS, MEANS.to(dtype), 1.0)
    assert (
        mixture.sample(2)[0].dtype
        == mixture.mean().dtype
        == mixture.mean(torch.tensor([0])).dtype
        == dtype
    )
    assert mixture.means.dtype == torch.float64
    assert GaussianMixture([1], [[0, 0]], 1).sample(2)[0].dtype == torch.float32


@EVERY
@KINDS
def test_time_never_broadcasts_along_the_features(mixture: GaussianMixture, path: Path) -> None:
    x, t, y = torch.randn(3, 3), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([4, 1, 4])
    for method in (mixture.velocity, mixture.score, mixture.log_prob, mixture.responsibilities):
        rows = [method(x[i : i + 1], t[i : i + 1], y[i : i + 1], path) for i in range(3)]
        assert_close(method(x, t, y, path), torch.cat(rows))


def test_weights_are_normalised_and_arguments_are_copied() -> None:
    weights, means, stds = (
        torch.tensor([2.0, 6.0]),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
    )
    mixture = GaussianMixture(weights, means, stds)
    means += 1
    stds += 1
    assert mixture.weights.tolist() == [0.25, 0.75]
    assert mixture.means.sum() == 0
    assert mixture.stds.tolist() == [1, 1]
    assert weights.tolist() == [2, 6]


def test_a_component_without_weight_changes_nothing() -> None:
    x, t = points()
    more = GaussianMixture(
        [*WEIGHTS, 0.0], torch.cat([MEANS, x[:1]]), [0.4, 0.9, 0.6, 0.1], labels=[*LABELS, 9]
    )
    for name in ("velocity", "score", "log_prob"):
        assert_close(getattr(more, name)(x, t), getattr(isotropic(), name)(x, t))
        gradient = torch.func.grad(lambda x, name=name: getattr(more, name)(x, t).sum())(x)
        assert gradient.isfinite().all()


def test_full_covariances_that_are_isotropic_are_stds() -> None:
    x, t = points()
    stds = torch.tensor([0.4, 0.9, 0.6], dtype=torch.float64)
    same = GaussianMixture(
        WEIGHTS, MEANS, covariances=stds.view(3, 1, 1) ** 2 * torch.eye(3), labels=LABELS
    )
    for name in ("velocity", "score", "log_prob"):
        assert_close(
            getattr(same, name)(x, t), getattr(isotropic(), name)(x, t), atol=1e-12, rtol=1e-12
        )


def test_a_rotated_mixture_has_the_rotated_velocity() -> None:
    mixture = full()
    x, t = points()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turned = GaussianMixture(
        WEIGHTS, MEANS @ turn.T, covariances=turn @ mixture.covariances @ turn.T
    )
    assert_close(
        turned.velocity(x @ turn.T, t), mixture.velocity(x, t) @ turn.T, atol=1e-11, rtol=1e-11
    )


def test_one_row_is_enough_and_arguments_stay_as_they_are() -> None:
    x, t, y = torch.zeros(1, 3), torch.tensor([0.5]), torch.tensor([1])
    state = torch.get_rng_state()
    for name in ("fm", "delta_fm", "vecor"):
        assert optimal_velocity(isotropic(), x, t, y, method=name).shape == (1, 3)
    assert (x.sum(), t.item(), y.item()) == (0, 0.5, 1)
    assert torch.equal(torch.get_rng_state(), state)


# --- the optimum of each objective


def non_identity(dim: int) -> list[list[int]]:
    return [list(order) for order in permutations(range(dim))][1:]


def pair_velocities(mixture: GaussianMixture, path: Path, order: int = 64) -> tuple[Tensor, Tensor]:
    """Weights and velocities of independent pairs, at the nodes of a quadrature in time; the noise
    stands at its two sides +-e.
    """
    t = (torch.arange(order, dtype=torch.float64) + 0.5) / order
    noise = torch.tensor([[0.7, -1.1, 0.4]], dtype=torch.float64) * torch.tensor(
        [[1.0], [-1.0]], dtype=torch.float64
    )
    u = (
        path.d_alpha(t).view(-1, 1, 1, 1) * mixture.means.view(1, -1, 1, 3)
        + path.d_sigma(t).view(-1, 1, 1, 1) * noise
    )
    weights = mixture.weights.view(1, -1, 1).expand(u.shape[:-1])
    return (weights / weights.sum()).flatten(), u.flatten(0, -2)


def risk(
    f: Tensor, shares: Tensor, u: Tensor, negatives: list[tuple[Tensor, Tensor]], weight: float
) -> Tensor:
    """E|f - u|^2 - weight sum_k E|f - u_neg|^2 at one point (D,), from finite distributions
    (shares, vectors).
    """

    def distance(shares: Tensor, vectors: Tensor) -> Tensor:
        return shares @ (f - vectors).square().sum(-1)

    return distance(shares, u) - weight * sum(distance(*negative) for negative in negatives)


def setting(
    method: str, path: Path, row: int, k: int = 1
) -> tuple[GaussianMixture, Tensor, Tensor, Callable[[Tensor, float], Tensor]]:
    """Three data points, one position and time, and the exact objective there as a function of the
    value f of the field.
    """
    mixture = GaussianMixture(WEIGHTS, MEANS, 0.0)
    x, t = points()
    x, t = x[row : row + 1], t[row : row + 1]
    shares, u = (a[0] for a in posterior_of_points(MEANS, mixture.weights, x, t, path))
    if method == "delta_fm":
        negatives = [pair_velocities(mixture, path, 4096)] * k
    else:
        orders = non_identity(3)
        negatives = [
            (shares.repeat(len(orders)) / len(orders), torch.cat([u[:, order] for order in orders]))
        ] * k
    return mixture, x, t, lambda f, weight: risk(f, shares, u, negatives, weight)


@EVERY
@REPELLING
@pytest.mark.parametrize(("weight", "k"), [(0.0, 1), (0.05, 1), (0.5, 1), (0.3, 3)])
def test_optimal_velocity_is_where_the_objective_is_least(
    method: str, path: Path, weight: float, k: int
) -> None:
    mixture, x, t, objective = setting(method, path, 4, k)
    best = optimal_velocity(mixture, x, t, method=method, weight=weight, k=k, path=path)[0]
    zero = torch.zeros(3, dtype=torch.float64)
    slope = jacrev(lambda f: objective(f, weight))
    newton = torch.linalg.solve(
        jacrev(slope)(zero), -slope(zero)
    )  # the objective is quadratic: one step from anywhere
    # the other side of the comparison integrates over time by the midpoint rule; VP's d_alpha needs
    # its 4096 nodes
    assert_close(newton, best, atol=1e-6, rtol=1e-6)
    assert_close(jacrev(slope)(zero), 2 * (1 - weight * k) * torch.eye(3, dtype=torch.float64))
    nearby = best + 0.1 * torch.randn(20, 3, dtype=torch.float64)
    assert (vmap(lambda f: objective(f, weight))(nearby) > objective(best, weight)).all()


@REPELLING
@pytest.mark.parametrize(("weight", "k"), [(0.05, 1), (0.3, 3)])
def test_the_least_value_completes_the_square_and_may_be_negative(
    method: str, weight: float, k: int
) -> None:
    mixture, x, t, objective = setting(method, LINEAR, 4, k)
    best = optimal_velocity(mixture, x, t, method=method, weight=weight, k=k)[0]
    v, negative = mixture.velocity(x, t)[0], mean_negative(mixture, x, t, method=method)[0]
    at_zero = objective(torch.zeros(3, dtype=torch.float64), weight)  # E|u|^2 - weight k E|u_neg|^2
    least = at_zero - (v - weight * k * negative).square().sum() / (1 - weight * k)
    assert_close(objective(best, weight), least, atol=1e-9, rtol=1e-9)
    if weight * k > 0.5:
        assert least < 0


@REPELLING
@pytest.mark.parametrize(("weight", "k"), [(1.0, 1), (0.6, 2)])
def test_the_objective_is_unbounded_where_weight_times_k_reaches_one(
    method: str, weight: float, k: int
) -> None:
    mixture, x, t, objective = setting(method, LINEAR, 4, k)
    v, negative = mixture.velocity(x, t)[0], mean_negative(mixture, x, t, method=method)[0]
    away = v - weight * k * negative
    values = [objective(scale * away, weight).item() for scale in (0, 1e2, 1e4, 1e6)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < -1e4
    with pytest.raises(ConfigError, match=rf"weight is {weight:g}.*no minimum.*below {1 / k:g}"):
        optimal_velocity(mixture, x, t, method=method, weight=weight, k=k)


@EVERY
@CONDITIONS
def test_weight_zero_is_plain_flow_matching(path: Path, y: Tensor | None) -> None:
    x, t = points()
    v = isotropic().velocity(x, t, y, path)
    assert torch.equal(optimal_velocity(isotropic(), x, t, y, method="fm", path=path), v)
    for method in ("delta_fm", "vecor"):
        assert_close(
            optimal_velocity(isotropic(), x, t, y, method=method, weight=0, path=path),
            v,
            atol=0,
            rtol=0,
        )
        near = optimal_velocity(isotropic(), x, t, y, method=method, weight=1e-6, path=path)
        assert_close(near, v, atol=1e-4, rtol=1e-4)


@EVERY
@REPELLING
@CONDITIONS
def test_the_bias_is_undone_by_its_inverse_map(method: str, path: Path, y: Tensor | None) -> None:
    x, t = points()
    best = optimal_velocity(isotropic(), x, t, y, method=method, weight=0.2, k=2, path=path)
    negative = mean_negative(isotropic(), x, t, y, method=method, path=path)
    assert_close(0.6 * best + 0.4 * negative, isotropic().velocity(x, t, y, path))


@EVERY
@REPELLING
def test_the_bias_commutes_with_classifier_free_guidance(method: str, path: Path) -> None:
    """Both are affine with weights that sum to one, so guiding the biased fields is biasing the
    guided field.
    """
    x, t = points()
    y = torch.tensor([4, 1] * 4)
    mixture, scale, weight = isotropic(), 2.5, 0.3

    def guided(given: Callable[[Tensor | None], Tensor]) -> Tensor:
        return given(None) + scale * (given(y) - given(None))

    biased = guided(
        lambda y: optimal_velocity(mixture, x, t, y, method=method, weight=weight, path=path)
    )
    negative = guided(lambda y: mean_negative(mixture, x, t, y, method=method, path=path))
    assert_close(
        biased,
        (guided(lambda y: mixture.velocity(x, t, y, path)) - weight * negative) / (1 - weight),
    )


def test_the_negative_of_delta_fm_depends_on_nothing_but_the_data() -> None:
    x, t = points()
    for path, span in ((LINEAR, 1.0), (COSINE, 1.0), (VP, 1 - math.exp(-0.25 * 19.9 - 0.05))):
        for y in (None, torch.tensor([4, 1] * 4)):
            negative = mean_negative(isotropic(), x, t, y, method="delta_fm", path=path)
            assert_close(negative, (span * isotropic().mean()).expand(8, 3))


@EVERY
def test_the_negative_of_delta_fm_is_the_mean_velocity_of_other_pairs(path: Path) -> None:
    weights, u = pair_velocities(isotropic(), path, 4096)
    x, t = points(1)
    assert_close(
        mean_negative(isotropic(), x, t, method="delta_fm", path=path)[0],
        weights @ u,
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_the_negative_of_vecor_is_the_mean_over_all_other_permutations(channels: int) -> None:
    mixture = GaussianMixture([0.4, 0.6], torch.randn(2, channels), [0.5, 0.8])
    x, t = torch.randn(6, channels), torch.rand(6)
    v = mixture.velocity(x, t)
    listed = torch.stack([v[:, order] for order in non_identity(channels)]).mean(0)
    assert_close(mean_negative(mixture, x, t, method="vecor"), listed)
    if channels == 2:
        assert_close(listed, v.flip(1))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_each_law_of_permutations_has_its_own_mean(channels: int) -> None:
    m = torch.randn(channels, dtype=torch.float64)
    mean, orders = m.mean(), [list(order) for order in permutations(range(channels))]
    deranged = [order for order in orders if all(i != j for i, j in enumerate(order))]
    count = math.factorial(channels)
    assert_close(torch.stack([m[order] for order in orders]).mean(0), mean.expand(channels))
    assert_close(
        torch.stack([m[order] for order in orders[1:]]).mean(0), (count * mean - m) / (count - 1)
    )
    assert_close(
        torch.stack([m[order] for order in deranged]).mean(0),
        (channels * mean - m) / (channels - 1),
    )


@EVERY
def test_vecor_keeps_the_channel_mean_and_stretches_the_deviations(path: Path) -> None:
    x, t = points()
    v, weight = isotropic().velocity(x, t, path=path), 0.4
    best = optimal_velocity(isotropic(), x, t, method="vecor", weight=weight, path=path)
    assert_close(best.mean(1), v.mean(1))
    factor = (1 + weight / 5) / (1 - weight)  # 3! - 1 = 5 other permutations
    assert_close(best - best.mean(1, keepdim=True), factor * (v - v.mean(1, keepdim=True)))


def test_many_channels_leave_the_channel_mean_as_the_negative() -> None:
    mixture = GaussianMixture([1.0], torch.randn(1, 200, dtype=torch.float64), 0.5)
    x, t = torch.randn(2, 200, dtype=torch.float64), torch.tensor([0.2, 0.7], dtype=torch.float64)
    v = mixture.velocity(x, t)
    assert_close(mean_negative(mixture, x, t, method="vecor"), v.mean(1, keepdim=True).expand_as(v))


def test_an_untrained_network_has_the_loss_that_the_moments_say() -> None:
    """A zero output has FM loss E|u|^2 / D = (E|x1 - mu|^2 + |mu|^2) / D + 1; repulsion takes off
    the share weight of it.
    """
    mixture, n, weight = isotropic(), 60_000, 0.05
    x1, _ = mixture.sample(n)
    u = LINEAR.interpolate(torch.randn_like(x1), x1, torch.rand(n))[1]
    each = u.square().mean(1)
    second = mixture.weights @ (mixture.stds**2 * 3 + MEANS.square().sum(1)) / 3 + 1
    assert each.mean().item() == pytest.approx(
        second.item(), abs=4.5 * each.std().item() / math.sqrt(n)
    )
    other = each.roll(1)  # the velocity of another pair
    assert (each - weight * other).mean().item() == pytest.approx(
        (1 - weight) * second.item(), abs=4.5 * each.std().item() / math.sqrt(n)
    )


@EVERY
def test_the_mean_velocity_is_shorter_than_the_velocities_and_repulsion_stretches_it(
    path: Path,
) -> None:
    """Jensen: |E[u | x]|^2 <= E[|u|^2 | x]; the optimum's distance to the negative grows by exactly
    1 / (1 - weight).
    """
    mixture = GaussianMixture(WEIGHTS, MEANS, 0.0)
    x, t = points()
    shares, u = posterior_of_points(MEANS, mixture.weights, x, t, path)
    v = mixture.velocity(x, t, path=path)
    variance = torch.einsum("bk,bkd->b", shares, (u - v[:, None]) ** 2)
    assert (variance >= 0).all()
    assert variance.max() > 0.1
    assert_close(
        torch.einsum("bk,bkd->b", shares, u**2) - v.square().sum(1), variance, atol=1e-9, rtol=1e-9
    )
    best = optimal_velocity(mixture, x, t, method="delta_fm", weight=0.3, path=path)
    negative = mean_negative(mixture, x, t, method="delta_fm", path=path)
    assert_close((best - negative).norm(dim=1), (v - negative).norm(dim=1) / 0.7)


def test_the_two_mode_toy_of_delta_fm_overshoots_by_its_closed_form() -> None:
    """Stoica et al. 2025, fig. 3: modes 1.088 apart, weight 0.5; the source N((-15, 0), 0.25 I) is
    N(0, I) in x' = (x + (15, 0)) / 0.5.
    """
    angle = 4 * math.pi / 360 * 2 * math.pi
    modes = torch.tensor(
        [[5.0, 0.0], [5 * math.cos(angle), 5 * math.sin(angle)]], dtype=torch.float64
    )
    mixture = GaussianMixture([1, 1], (modes + torch.tensor([15.0, 0.0])) / 0.5, 1.0)
    y = torch.tensor([0, 1])
    gap = 5 * math.sin(angle)
    assert gap == pytest.approx(1.088, abs=5e-4)

    origin, now = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    negative = mean_negative(mixture, origin, now, y, method="delta_fm")
    assert_close(
        0.5 * negative[0], torch.tensor([19.940, 0.544], dtype=torch.float64), atol=5e-4, rtol=0
    )
    target = (
        mixture.mean(y) - 0.5 * negative
    ) / 0.5  # at the centre of the source E[u | y] = E[x1 | y]
    assert_close(target, optimal_velocity(mixture, origin, now, y, method="delta_fm", weight=0.5))
    assert 0.5 * (target[1] - target[0])[1].item() == pytest.approx(2.176, abs=5e-4)

    for method, wanted in (("fm", gap), ("delta_fm", gap * (1 + math.pi / 2))):
        end = 0.5 * rk4(
            lambda x, t, method=method: optimal_velocity(
                mixture, x, t, y, method=method, weight=0.5
            ),
            origin,
            steps=50,
        )
        assert (end[1] - end[0])[1].item() == pytest.approx(wanted, abs=1e-6)
    assert gap * (1 + math.pi / 2) == pytest.approx(2.797, abs=5e-4)


# --- wrong arguments

ONES = [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": [1.0, 1.0]}, r"weights has shape \(2,\).*\(3,\)"),
        ({"weights": [1.0, -0.1, 1.0]}, "weights goes down to -0.1"),
        ({"weights": [1.0, math.nan, 1.0]}, "weights holds NaN"),
        ({"weights": [0.0, 0.0, 0.0]}, "weights are all 0"),
        ({"weights": "abc"}, "weights cannot be read"),
        ({"means": torch.zeros(3)}, r"means has shape \(3,\).*\(K, D\)"),
        ({"means": torch.zeros(0, 2)}, r"means has shape \(0, 2\)"),
        ({"means": [[1.0, 2.0], [3.0]]}, "means cannot be read"),
        ({"means": torch.full((3, 3), math.inf)}, "means holds NaN or infinite"),
        ({"stds": [1.0, 1.0]}, r"stds has shape \(2,\)"),
        ({"stds": [1.0, -1.0, 1.0]}, "stds goes down to -1"),
        ({"stds": None}, "either stds .* or covariances"),
        ({"covariances": torch.eye(3).expand(3, 3, 3)}, "not both"),
        (
            {"stds": None, "covariances": torch.eye(3)},
            r"covariances has shape \(3, 3\).*\(3, 3, 3\)",
        ),
        ({"stds": None, "covariances": torch.ones(3, 3, 3).triu()}, "symmetric"),
        ({"stds": None, "covariances": -torch.eye(3).expand(3, 3, 3)}, "eigenvalue of -1"),
        ({"labels": [0, 1]}, "3 integers of at least 0"),
        ({"labels": [0.0, 1.0, 2.0]}, "float32"),
        ({"labels": [-1, 0, 1]}, "at least 0"),
    ],
)
def test_a_wrong_mixture_is_named(arguments: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GaussianMixture(**({"weights": ONES, "means": MEANS, "stds": ONES} | arguments))


GOOD = {"x": torch.zeros(2, 3), "t": torch.tensor([0.2, 0.8])}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"x": torch.zeros(2, 2)}, r"x has shape \(2, 2\).*\(B, 3\)"),
        ({"x": torch.zeros(3)}, r"x has shape \(3,\)"),
        ({"x": torch.zeros(2, 3).long()}, "int64"),
        ({"x": [[0.0, 0.0, 0.0]]}, "type list"),
        ({"t": torch.tensor([0.5])}, r"t has shape \(1,\)"),
        ({"t": 0.5}, "type float"),
        ({"t": torch.tensor([0.5, 1.5])}, r"\[0, 1\]"),
        ({"t": torch.tensor([0.5, math.nan])}, "nan"),
        ({"y": torch.tensor([4])}, r"y has shape \(1,\)"),
        ({"y": torch.tensor([4.0, 1.0])}, "integers"),
        ({"y": torch.tensor([4, 5])}, r"\[0, 4\]"),
        ({"y": torch.tensor([4, 2])}, r"\[2, 4\].*\[1, 4\]"),
        ({"path": "linear"}, "must be a Path"),
    ],
)
@pytest.mark.parametrize("name", ["log_prob", "velocity", "score", "responsibilities"])
def test_a_wrong_argument_is_named(name: str, arguments: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        getattr(isotropic(), name)(**(GOOD | arguments))


def test_points_have_no_density_at_the_data_end() -> None:
    mixture = GaussianMixture(ONES, MEANS, [0.0, 1.0, 1.0])
    for path in (LINEAR, COSINE, VP):
        with pytest.raises(ConfigError, match="std 0 has no density"):
            mixture.velocity(torch.zeros(2, 3), torch.tensor([0.5, 1.0]), path=path)
        assert (
            mixture.velocity(torch.zeros(2, 3), torch.tensor([0.0, 0.999]), path=path)
            .isfinite()
            .all()
        )


def test_a_label_whose_components_have_no_weight_is_unknown() -> None:
    mixture = GaussianMixture([1.0, 0.0], torch.zeros(2, 2), 1.0)
    with pytest.raises(ConfigError, match=r"labels \[1\].*\[0\] only"):
        mixture.mean(torch.tensor([1]))
    with pytest.raises(ConfigError, match="type list"):
        mixture.mean([1])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_a_wrong_number_of_samples_is_named(n: int) -> None:
    with pytest.raises(ConfigError, match=f"n is {n}"):
        isotropic().sample(n)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "deltafm"}, "Did you mean 'delta_fm'"),
        ({"method": "delta_fm", "weight": -0.1}, "weight is -0.1"),
        ({"method": "vecor", "weight": math.nan}, "weight is nan"),
        ({"method": "vecor", "k": 0}, "k is 0"),
        (
            {"method": "vecor", "weight": 0.5, "k": 2},
            r"λK = 1\. λK must stay below 1: .*Use a weight below 0\.5",
        ),
    ],
)
def test_a_wrong_objective_is_named(arguments: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        optimal_velocity(isotropic(), **GOOD, **arguments)


def test_vecor_needs_two_coordinates_and_fm_has_no_negative() -> None:
    line = GaussianMixture([1.0], [[0.0]], 1.0)
    x, t = torch.zeros(1, 1), torch.tensor([0.5])
    with pytest.raises(ConfigError, match="D = 1"):
        optimal_velocity(line, x, t, method="vecor")
    assert optimal_velocity(line, x, t, method="delta_fm").shape == (1, 1)
    with pytest.raises(ConfigError, match="method is 'fm'"):
        mean_negative(line, x, t, method="fm")


@KINDS
def test_no_value_is_read_back_from_a_device(mixture: GaussianMixture) -> None:
    """Tensors on the meta device have no values: any reading of one would raise."""
    x, t = (a.to("meta") for a in points())
    y = torch.zeros(8, dtype=torch.int64, device="meta")
    for name in ("fm", "delta_fm", "vecor"):
        assert optimal_velocity(mixture, x, t, y, method=name).is_meta
    assert mixture.log_prob(x, t, y).is_meta
    assert mixture.mean(y).is_meta


@pytest.mark.gpu
def test_the_mixture_follows_its_arguments_to_their_device() -> None:
    for mixture in (isotropic(), full()):
        x, t = points()
        y = torch.tensor([4, 1] * 4)
        for name in ("log_prob", "velocity", "score"):
            there = getattr(mixture, name)(x.cuda(), t.cuda(), y.cuda())
            assert_close(there.cpu(), getattr(mixture, name)(x, t, y))
        x1, labels = mixture.sample(5, generator=torch.Generator("cuda"))
        assert x1.device.type == labels.device.type == mixture.mean(y.cuda()).device.type == "cuda"


def test_a_path_whose_velocity_is_infinite_at_an_end_is_named_with_the_time():
    roots = Path(
        "roots",
        torch.sqrt,
        lambda t: 1 - t,
        lambda t: 0.5 / t.sqrt(),
        lambda t: -torch.ones_like(t),
    )
    mixture = GaussianMixture([1.0], [[2.0]], [0.5])
    assert (
        mixture.velocity(torch.zeros(2, 1), torch.tensor([0.1, 1.0]), path=roots).isfinite().all()
    )
    with pytest.raises(ConfigError, match="not defined on path 'roots' at t = 0, where alpha = 0"):
        mixture.velocity(torch.zeros(2, 1), torch.tensor([0.1, 0.0]), path=roots)


@pytest.mark.parametrize("path", [LINEAR, COSINE])
def test_a_data_point_of_another_class_or_without_weight_needs_no_density_at_the_data(path) -> None:
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.long)
    alone = GaussianMixture([1.0], [[0.0, 1.0]], 0.5)
    beside = GaussianMixture([0.5, 0.5], [[0.0, 1.0], [2.0, 3.0]], [0.5, 0.0])
    without = GaussianMixture([1.0, 0.0], [[0.0, 1.0], [2.0, 3.0]], [0.5, 0.0])
    for name in ("log_prob", "velocity", "score"):
        wanted = getattr(alone, name)(x, t, path=path)
        assert_close(getattr(beside, name)(x, t, y, path=path), wanted)
        assert_close(getattr(without, name)(x, t, path=path), wanted)
    assert_close(beside.responsibilities(x, t, y, path), torch.tensor([[1.0, 0.0]] * 5).double())
    with pytest.raises(ConfigError, match="std 0 has no density"):
        beside.velocity(x, t, path=path)
    with pytest.raises(ConfigError, match="std 0 has no density"):
        beside.velocity(x, t, 1 - y, path=path)
