"""metrics.py: the fixtures of the official evaluators, closed forms, invariances, and wrong
arguments.
"""

import math

import pytest
import torch

from cfm_lite import metrics
from cfm_lite.errors import ConfigError
from cfm_lite.theory import GaussianMixture
from tests.reference import case, cases

FRECHET = [name for name in cases("metrics", "frechet") if name != "frechet_analytic"]
NEIGHBOURS = cases("metrics", "prec_recall")


def close(a, b, tolerance=1e-8):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64),
        torch.as_tensor(b, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def normal(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# the Fréchet distance


@pytest.mark.parametrize("name", FRECHET)
def test_frechet_agrees_with_every_official_evaluator(name):
    f = case("metrics", name)
    tolerance = 1e-5 if name == "frechet_rank_deficient" else 1e-8
    value = metrics.frechet(f["real"], f["fake"])
    for official in ("fid_pytorch_fid", "fid_torch_fidelity", "fid_symmetric_eigh"):
        close(value, f[official], tolerance)
    assert value.dtype == torch.float64
    assert value.shape == ()


@pytest.mark.parametrize("name", FRECHET)
def test_frechet_of_the_recorded_moments_is_frechet_of_the_features(name):
    f = case("metrics", name)
    tolerance = 1e-5 if name == "frechet_rank_deficient" else 1e-8
    from_moments = metrics.frechet_distance(
        f["mu_real"], f["cov_real"], f["mu_fake"], f["cov_fake"]
    )
    close(from_moments, f["fid_symmetric_eigh"], tolerance)
    close(f["real"].mean(0), f["mu_real"])
    close(metrics._covariance(f["real"]), f["cov_real"])
    close(metrics._covariance(f["fake"]), f["cov_fake"])


@pytest.mark.parametrize("n", [60, 120])
def test_frechet_of_fewer_rows_agrees_with_the_record(n):
    f = case("metrics", "frechet_main")
    close(metrics.frechet(f["real"][:n], f["fake"][:n]), f[f"fid_first{n}_of_each"])


def test_frechet_of_a_set_with_itself_is_zero():
    f = case("metrics", "frechet_identical")
    assert abs(metrics.frechet(f["real"], f["fake"])) < 1e-8
    assert abs(metrics.frechet(normal(50, 3), normal(50, 3))) < 1e-8


def test_frechet_of_diagonal_gaussians_has_its_closed_form():
    f = case("metrics", "frechet_analytic")
    value = metrics.frechet_distance(f["mu1"], f["cov1"], f["mu2"], f["cov2"])
    by_hand = (f["mu1"] - f["mu2"]).square().sum() + (
        f["cov1"].diag().sqrt() - f["cov2"].diag().sqrt()
    ).square().sum()
    close(value, by_hand)
    close(value, f["fid"])
    close(value, f["fid_pytorch_fid"])


def test_frechet_of_gaussians_that_do_not_commute_has_its_closed_form_in_two_dimensions():
    a, b = (m @ m.mT for m in (normal(2, 2, 1), normal(2, 2, 2)))
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2x2 M, and a^1/2 b a^1/2 has the trace and
    # determinant of a b
    overlap = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    mean = torch.zeros(2, dtype=torch.float64)
    close(metrics.frechet_distance(mean, a, mean + 1, b), 2 + a.trace() + b.trace() - 2 * overlap)


def test_frechet_is_symmetric_and_does_not_change_under_rotation_and_shift():
    a, b = normal(80, 6), 0.5 * normal(90, 6, 1) + 1
    rotation = torch.linalg.qr(normal(6, 6, 2)).Q
    value = metrics.frechet(a, b)
    close(metrics.frechet(b, a), value)
    close(metrics.frechet(a @ rotation + 3, b @ rotation + 3), value)
    close(metrics.frechet(3 * a, 3 * b), 9 * value)


def test_frechet_works_in_float64_on_float32_features_far_from_zero():
    a = normal(200, 4, dtype=torch.float32) + 1000
    b = normal(200, 4, 1, dtype=torch.float32) + 1000
    close(metrics.frechet(a, b), metrics.frechet(a.double() - 1000, b.double() - 1000), 1e-6)


def test_frechet_of_one_feature_is_that_of_two_normals():
    a, b = normal(30, 1), 2 * normal(40, 1, 1) + 1
    close(metrics.frechet(a, b), (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)


# precision and recall


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_agrees_with_the_definition_and_the_official_evaluators(name, k):
    f = case("metrics", name)
    precision, recall = metrics.precision_recall(f["real"], f["fake"], k)
    assert precision == f[f"brute_precision_le_k{k}"]
    assert recall == f[f"brute_recall_le_k{k}"]
    close(precision, f[f"torchfidelity_precision_k{k}"], 1e-7)
    close(recall, f[f"torchfidelity_recall_k{k}"], 1e-7)
    if name != "prec_recall_coarse":  # prdc takes < for <=; the coarse case has ties
        close(precision, f[f"prdc_precision_k{k}"])
        close(recall, f[f"prdc_recall_k{k}"])


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_radii_agree_with_the_record(name, k):
    f = case("metrics", name)
    close(metrics.neighbour_radii(f["real"], k), f[f"radii_real_k{k}"])
    close(metrics.neighbour_radii(f["fake"], k), f[f"radii_fake_k{k}"])


def test_coarse_fixture_tells_less_or_equal_from_less():
    f = case("metrics", "prec_recall_coarse")
    assert any(f[f"brute_precision_le_k{k}"] != f[f"brute_precision_lt_k{k}"] for k in (1, 3, 5))


def _exactly(real, fake, k):
    """Precision, recall and the radii of both from every distance in float64: the definition,
    without a short cut.
    """
    real, fake = real.double(), fake.double()
    table = lambda a, b: torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # noqa: E731
    of_real, of_fake = (table(x, x).kthvalue(k + 1, dim=1).values for x in (real, fake))
    across = table(fake, real)
    return (
        (across <= of_real).any(1).double().mean(),
        (across <= of_fake[:, None]).any(0).double().mean(),
        of_real,
        of_fake,
    )


def _lattice(n, d, side, seed):
    return torch.randint(side, (n, d), generator=torch.Generator().manual_seed(seed)).float()


HARD = {  # where rounding of a product could decide who is nearest, or who is inside
    "random": lambda: (
        normal(300, 40, dtype=torch.float32),
        normal(257, 40, 1, torch.float32) * 0.9,
    ),
    "as wide as Inception's": lambda: (
        normal(90, 2048, dtype=torch.float32),
        normal(110, 2048, 1, torch.float32) + 0.02,
    ),
    "duplicates": lambda: (
        normal(60, 9, dtype=torch.float32).repeat(5, 1),
        normal(60, 9, dtype=torch.float32).repeat(4, 1),
    ),
    "some duplicates": lambda: (
        torch.cat([normal(300, 9), normal(5, 9)]),
        torch.cat([normal(250, 9, 2), normal(5, 9), normal(5, 9)]),
    ),
    "a lattice": lambda: (_lattice(300, 3, 4, 0), _lattice(280, 3, 4, 1)),
    "a finer lattice": lambda: (_lattice(300, 2, 40, 0), _lattice(280, 2, 40, 1)),
    "far from zero": lambda: (
        normal(300, 8, dtype=torch.float32) + 1000,
        normal(260, 8, 1, torch.float32) + 1000,
    ),
    "very far from zero": lambda: (1e-3 * normal(300, 8) + 1e6, 1e-3 * normal(260, 8, 1) + 1e6),
    "half precision": lambda: (normal(300, 16).half(), normal(260, 16, 1).half()),
    "bfloat16": lambda: (normal(300, 16).bfloat16(), normal(260, 16, 1).bfloat16()),
    "nearly equal rows": lambda: (1 + 1e-9 * normal(300, 5), 1 + 1e-9 * normal(260, 5, 1)),
    "one outlier": lambda: (
        torch.cat([normal(300, 5), torch.full((1, 5), 1e6).double()]),
        normal(260, 5, 1),
    ),
    "huge": lambda: (1e100 * normal(100, 5), 1e100 * normal(90, 5, 1)),
    "tiny": lambda: (1e-100 * normal(100, 5), 1e-100 * normal(90, 5, 1)),
    "all equal": lambda: (torch.ones(50, 4), torch.ones(40, 4)),
    "one number each": lambda: (normal(200, 1), normal(150, 1, 1)),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("k", [1, 3, 30])
def test_products_in_float32_never_decide_what_only_float64_can(name, k):
    real, fake = HARD[name]()
    precision, recall, of_real, of_fake = _exactly(real, fake, k)
    assert metrics.precision_recall(real, fake, k) == (precision, recall)
    assert torch.equal(metrics.neighbour_radii(real, k), of_real)
    assert torch.equal(metrics.neighbour_radii(fake, k), of_fake)


def test_a_lower_matmul_precision_of_the_process_changes_nothing_and_is_given_back():
    real, fake = HARD["random"]()
    right = metrics.precision_recall(real, fake)
    torch.set_float32_matmul_precision("medium")
    try:
        assert metrics.precision_recall(real, fake) == right
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "name", ["random", "as wide as Inception's", "far from zero", "one outlier"]
)
def test_the_bound_of_a_product_s_rounding_holds_and_few_pairs_are_measured_again(
    name, monkeypatch
):
    real, fake = HARD[name]()
    a, b = metrics._Rounded.of(real, fake)
    rounded = a.squares[:, None] + b.squares - 2 * (a.low @ b.low.mT).double()
    exact = metrics._distances(real, fake).square() / a.scale**2
    assert ((rounded - exact).abs() <= a.slack * (a.squares[:, None] + b.squares)).all()
    measured = []
    plain = metrics._distances
    monkeypatch.setattr(
        metrics,
        "_distances",
        lambda x, y: (measured.append(x.shape[:-1].numel() * y.shape[-2]), plain(x, y))[1],
    )
    metrics.precision_recall(real, fake)
    assert sum(measured) < 20 * (
        len(real) + len(fake)
    )  # the 12 candidates for each radius, and some pairs


def test_products_are_taken_in_blocks_of_bounded_size(monkeypatch):
    real, fake = HARD["random"]()
    right = metrics.precision_recall(real, fake)
    monkeypatch.setattr(metrics, "_BLOCK", 1000)
    assert metrics.precision_recall(real, fake) == right
    (a,) = metrics._Rounded.of(real)
    assert max(len(part) * len(real) for part in a.parts(a)) <= 1000


def test_collapse_to_one_mode_keeps_precision_and_loses_recall():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    real = modes.repeat(50, 1) + normal(200, 2)
    fake = modes[:1] + 0.5 * normal(200, 2, 1)
    precision, recall = metrics.precision_recall(real, fake)
    assert precision > 0.95
    assert recall < 0.3
    # the arguments in the other order exchange the two
    assert metrics.precision_recall(fake, real) == (recall, precision)


def test_precision_recall_of_a_set_with_itself_is_one_and_of_far_sets_zero():
    a = normal(40, 3)
    assert metrics.precision_recall(a, a) == (1, 1)
    assert metrics.precision_recall(a, a + 100) == (0, 0)


def test_precision_recall_does_not_depend_on_the_chunk(monkeypatch):
    a, b = normal(50, 3), normal(41, 3, 1) + 0.5
    whole = metrics.precision_recall(a, b)
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    assert metrics.precision_recall(a, b) == whole


def test_neighbours_far_from_zero_are_told_apart():
    # where |a|^2 + |b|^2 - 2ab has no digits left: distances 1e-3 at 1e6 from the origin
    x = torch.arange(6, dtype=torch.float64)[:, None] * 1e-3 + 1e6
    close(metrics.neighbour_radii(x, 1), torch.full((6,), 1e-3), 1e-6)


def test_nearest_ratio_is_one_for_fresh_data_and_zero_for_copies():
    train, real, fresh = (normal(400, 4, seed) for seed in (1, 2, 3))
    assert abs(metrics.nearest_ratio(fresh, train, real) - 1) < 0.05
    assert metrics.nearest_ratio(train[:50], train, real) == 0
    by_hand = torch.stack([(train - row).norm(dim=1).min() for row in real]).mean()
    close(metrics.nearest_distances(real, train).mean(), by_hand)


# classifier outputs


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_agrees_with_the_record(splits):
    f = case("metrics", "inception_score")
    for shuffled, logits in enumerate((f["logits"], f["logits"][f["perm"]])):
        mean, std = metrics.inception_score(logits, splits)
        close(mean, f[f"is_mean_splits{splits}_shuffle{shuffled}"])
        close(std, f[f"is_std_splits{splits}_shuffle{shuffled}"])


def test_inception_score_is_one_without_information_and_the_class_count_with_all_of_it():
    close(metrics.inception_score(torch.zeros(20, 5), 2)[0], 1.0)
    sure = 1e4 * torch.eye(5).repeat(4, 1)
    mean, std = metrics.inception_score(sure, 2)
    close(mean, 5.0)
    close(std, 0.0)


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0], [5.0, 4.0]])
    assert metrics.accuracy(logits, torch.tensor([0, 1, 0, 0])) == 0.75


# laws without a network


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d(generator):
    a = normal(300, 3)
    shift = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    value = metrics.sliced_wasserstein(a, a + shift, 4000, generator=generator)
    assert abs(value - 3 / math.sqrt(3)) < 0.05


def test_sliced_wasserstein_in_one_dimension_is_the_wasserstein_distance_for_unequal_counts():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    # quantiles: a is 0 on (0, 1/2], 1 after; b is 0 on (0, 2/3], 3 after: squared cost 1/6 * 1 +
    # 1/3 * 4
    close(metrics.sliced_wasserstein(a, b), math.sqrt(1 / 6 + 4 / 3))
    close(metrics.sliced_wasserstein(b, a), math.sqrt(1 / 6 + 4 / 3))


def test_sliced_wasserstein_is_zero_for_the_same_rows_in_any_order_and_number(generator):
    a = normal(30, 4)
    assert metrics.sliced_wasserstein(a, a.flip(0)) < 1e-12
    assert metrics.sliced_wasserstein(a, a.repeat(3, 1)) < 1e-12
    one, two = (
        metrics.sliced_wasserstein(a, a + 1, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert one == two


def test_mmd_has_the_value_of_its_definition():
    a, b = normal(6, 2), normal(5, 2, 1) + 1

    def kernel(x, y):
        return sum(math.exp(-float((x - y).square().sum()) / (2 * h * h)) for h in (0.7, 1.5)) / 2

    def mean(values):
        return sum(values) / len(values)

    within = [
        mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
        for s in (a, b)
    ]
    close(
        metrics.mmd(a, b, (0.7, 1.5)), sum(within) - 2 * mean([kernel(x, y) for x in a for y in b])
    )


def test_mmd_is_zero_on_average_for_equal_laws_and_positive_for_others():
    values = torch.stack(
        [metrics.mmd(normal(100, 2, seed), normal(80, 2, 1000 + seed)) for seed in range(40)]
    )
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(40)
    assert (values < 0).any()  # unbiased, hence of either sign
    assert metrics.mmd(normal(100, 2), normal(80, 2, 7) + 1) > 10 * values.std()


def test_mmd_of_gaussians_has_its_closed_form():
    h, n, shift = 1.3, 4000, 1.0
    # E k(x, y) for x - y ~ N(m, 2) in one dimension: h / sqrt(h^2 + 2) exp(-m^2 / (2 (h^2 + 2)))
    expected = 2 * h / math.sqrt(h * h + 2) * (1 - math.exp(-(shift**2) / (2 * (h * h + 2))))
    assert abs(metrics.mmd(normal(n, 1), normal(n, 1, 1) + shift, h) - expected) < 0.01


def test_mmd_of_a_point_mass_with_itself_is_zero():
    assert metrics.mmd(torch.ones(5, 2), torch.ones(4, 2)) == 0


# trajectories and fields


def test_straightness_is_one_on_a_line_at_any_speed_and_chord_over_length_elsewhere():
    line = torch.tensor([0.0, 0.1, 0.7, 1.0])[:, None, None] * torch.tensor([[3.0, 4.0]])
    close(metrics.straightness(line), 1.0)
    corner = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.0, 4.0]]])
    close(metrics.straightness(corner), 5 / 7)
    close(metrics.straightness(iter(corner)), 5 / 7)
    there_and_back = torch.tensor([[[0.0]], [[1.0]], [[0.0]]])
    close(metrics.straightness(there_and_back), 0.0)


def test_straightness_of_a_half_circle_is_two_over_pi():
    angle = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]
    close(metrics.straightness(circle), 2 / math.pi, 1e-6)


def test_straightness_of_a_resting_point_is_one():
    close(metrics.straightness(torch.ones(4, 2, 3)), 1.0)


def _mixture():
    return GaussianMixture(
        torch.tensor([0.5, 0.5]), torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.3, 0.3])
    )


def _exact_states(mixture, ts, n, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x1, _ = mixture.sample(n, generator=generator)
    x0 = torch.randn(n, 2, generator=generator)
    return torch.stack([t * x1 + (1 - t) * x0 for t in ts])


def test_drift_is_zero_for_the_exact_law_and_grows_off_the_support(generator):
    mixture, ts = _mixture(), torch.linspace(0, 1, 6)
    states = _exact_states(mixture, ts, 4000)
    by_time = metrics.drift_by_time(states, mixture, generator=generator)
    assert by_time.shape == (6,)
    assert by_time.abs().max() < 0.1
    close(
        metrics.drift(states, mixture, generator=generator.manual_seed(1234)), by_time.mean(), 1e-12
    )
    halfway = torch.zeros(6, 100, 2)  # between the modes, where no sample should end
    assert metrics.drift_by_time(halfway, mixture, generator=generator)[-1] > 10
    assert (
        metrics.drift_by_time(halfway - torch.tensor([2.0, 0.0]), mixture, generator=generator)[-1]
        < -0.5
    )  # all at one mode


def test_drift_of_a_shifted_gaussian_has_its_closed_form(generator):
    one = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.full((1,), 0.5))
    states = 0.5 * torch.randn(1, 20_000, 2, generator=generator) + torch.tensor([1.0, 0.0])
    value = metrics.drift(states, one, ts=torch.ones(1), n_reference=20_000, generator=generator)
    assert abs(value - 1 / (2 * 0.25)) < 0.1  # |shift|^2 / (2 std^2)


def test_drift_reads_the_times_it_is_given(generator):
    mixture, ts = _mixture(), torch.tensor([0.0, 0.9, 1.0])
    states = _exact_states(mixture, ts, 2000)
    right = metrics.drift(states, mixture, ts, generator=generator)
    assert abs(right) < 0.1 < abs(metrics.drift(states, mixture, generator=generator))


def test_drift_against_data_is_the_distance_of_the_samples_to_the_nearest_row():
    data = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    states = torch.stack([torch.full((2, 2), 50.0), torch.tensor([[3.0, 4.0], [10.0, 1.0]])])
    close(metrics.drift(states, data), 3.0)
    close(metrics.drift_by_time(states, data)[1], 3.0)


def test_velocity_deficit_of_a_conditional_mean_is_below_one():
    u = normal(1000, 2)
    close(metrics.velocity_deficit(u, u), 1.0)
    close(metrics.velocity_deficit(0.8 * u, u), 0.8)
    pair_mean = u.reshape(500, 2, 2).mean(1, keepdim=True).expand(500, 2, 2).reshape(1000, 2)
    assert metrics.velocity_deficit(pair_mean, u) < 0.8


def test_effective_rank_counts_directions():
    basis = torch.linalg.qr(normal(40, 3)).Q
    features = torch.cat([basis, -basis]) @ normal(3, 8, 1)
    assert metrics.effective_rank(features) <= 3
    orthogonal = torch.cat([torch.eye(4), -torch.eye(4)])
    close(metrics.effective_rank(orthogonal), 4.0)
    close(metrics.effective_rank(5 * orthogonal + 7), 4.0)
    close(metrics.effective_rank(torch.ones(5, 3)), 1.0)


# wrong arguments

GOOD = torch.arange(40.0).reshape(10, 4)
NAN = GOOD.clone()
NAN[3, 2] = math.nan
EYE = torch.eye(4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.frechet(GOOD[:1], GOOD), "at least 2 rows"),
        (lambda: metrics.frechet(GOOD, NAN), "features_b holds NaN"),
        (lambda: metrics.frechet(GOOD, GOOD[:, :3]), "features_a 4, features_b 3"),
        (lambda: metrics.frechet(GOOD.long(), GOOD), "int64"),
        (lambda: metrics.frechet(GOOD.numpy(), GOOD), "ndarray"),
        (lambda: metrics.frechet(torch.empty(5, 0), torch.empty(5, 0)), "empty"),
        (lambda: metrics.frechet_distance(GOOD[0], EYE[:3], GOOD[0], EYE), "must be \\(4, 4\\)"),
        (lambda: metrics.frechet_distance(GOOD[0], EYE, GOOD[0, :3], EYE[:3, :3]), "shapes differ"),
        (lambda: metrics.frechet_distance(GOOD[0], GOOD[:4], GOOD[0], EYE), "not symmetric"),
        (lambda: metrics.frechet_distance(GOOD[:4, :2], EYE, GOOD[0], EYE), "mean1 has shape"),
        (lambda: metrics.frechet_distance(GOOD[0], EYE, GOOD[:4, :2], EYE), "mean2 has shape"),
        (lambda: metrics.frechet_to(GOOD, GOOD[:4, :2], EYE), r"a mean is \(d,\)"),
        (lambda: metrics.frechet_to(GOOD, GOOD[0], -EYE), "has the eigenvalue -1"),
        (lambda: metrics.frechet_to(GOOD, GOOD[0], GOOD[:4]), "not symmetric"),
        (lambda: metrics.frechet_to(GOOD[:3], GOOD[0], 2 - EYE), "has the eigenvalue -1"),
        (lambda: metrics.precision_recall(GOOD[:3], GOOD), "real has shape \\(3, 4\\)"),
        (lambda: metrics.precision_recall(GOOD, GOOD[:3]), "at least 4 rows"),
        (lambda: metrics.precision_recall(GOOD, GOOD, k=0), "k is 0"),
        (lambda: metrics.precision_recall(GOOD, GOOD[:, :2]), "real 4, fake 2"),
        (lambda: metrics.precision_recall(NAN, GOOD), "1 of 10 rows"),
        (lambda: metrics.inception_score(GOOD, splits=11), "at least 11 rows"),
        (lambda: metrics.inception_score(GOOD, splits=1.5), "splits is 1.5"),
        (lambda: metrics.accuracy(GOOD, torch.full((10,), 4)), "\\[0, 3\\]"),
        (lambda: metrics.accuracy(GOOD, torch.zeros(9, dtype=torch.long)), "one label per row"),
        (lambda: metrics.sliced_wasserstein(GOOD, GOOD[:, :2]), "differ in width"),
        (lambda: metrics.sliced_wasserstein(GOOD, GOOD, 0), "n_projections"),
        (lambda: metrics.mmd(GOOD[:1], GOOD), "at least 2 rows"),
        (lambda: metrics.mmd(GOOD, GOOD, 0.0), "bandwidth is 0.0"),
        (lambda: metrics.mmd(GOOD, GOOD, ()), "bandwidths is empty"),
        (lambda: metrics.straightness(GOOD), "\\(S, B, \\*dims\\)"),
        (lambda: metrics.straightness(GOOD[None]), "at least 2 states"),
        (lambda: metrics.straightness([]), "trajectory is empty"),
        (lambda: metrics.straightness([GOOD, GOOD[:5]]), "differ in shape"),
        (lambda: metrics.straightness(NAN[:, None]), "NaN"),
        (lambda: metrics.drift(GOOD[:, None, :2], _mixture(), ts=torch.ones(3)), "10 states"),
        (
            lambda: metrics.drift(GOOD[:, None, :2], _mixture(), ts=torch.full((10,), 2.0)),
            "\\[0, 1\\]",
        ),
        (lambda: metrics.drift(GOOD[:, None], GOOD[:, :3]), "differ in width"),
        (lambda: metrics.drift(GOOD[:, None], GOOD, ts=torch.ones(3)), "10 states"),
        (lambda: metrics.drift_by_time(GOOD[:, None], GOOD, ts="banana"), "ts has type str"),
        (lambda: metrics.nearest_ratio(GOOD, GOOD, GOOD), "held out"),
        (lambda: metrics.velocity_deficit(GOOD, GOOD[:5]), "shapes differ"),
        (lambda: metrics.effective_rank(GOOD[:1]), "at least 2 rows"),
    ],
)
def test_wrong_arguments_are_config_errors_that_say_what_was_seen(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_nothing_is_mutated_and_the_global_random_state_stays():
    a, b = normal(20, 4), normal(20, 4, 1)
    copies, state, g = (
        (a.clone(), b.clone()),
        torch.get_rng_state(),
        torch.Generator().manual_seed(0),
    )
    (
        metrics.frechet(a, b),
        metrics.precision_recall(a, b),
        metrics.mmd(a, b),
        metrics.sliced_wasserstein(a, b, generator=g),
    )
    metrics.inception_score(a), metrics.effective_rank(a), metrics.nearest_ratio(a, b, a)
    metrics.drift(a[:, None, :2], _mixture(), generator=g)
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])
    assert torch.equal(state, torch.get_rng_state())
