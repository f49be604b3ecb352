"""losses.py, the feature half: the fixtures, bounds and invariances of each variant, extreme
scales, memory, wrong arguments.
"""

import itertools
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cfm_lite._internal import kernels
from cfm_lite._internal.kernels import cosine, gram, standardize
from cfm_lite.errors import ConfigError
from cfm_lite.losses import contrastive, dispersive, squared_error
from tests.reference import case, cases, settings

CASES = cases("dispersive")
EVERY = [
    {"variant": "infonce_l2"},
    {"variant": "infonce_l2", "include_diagonal": False},
    {"variant": "infonce_l2", "normalize_by_dim": False, "tau": 20.0},
    {"variant": "infonce_cosine"},
    {"variant": "hinge", "margin": 3.0},
    {"variant": "hinge", "margin": 3.0, "distance": "l2", "include_diagonal": False},
    {"variant": "covariance"},
]
NAMES = [", ".join(str(value) for value in options.values()) for options in EVERY]
PAIRED = [
    {key: value for key, value in options.items() if key != "include_diagonal"} for options in EVERY
]
every_variant = pytest.mark.parametrize("options", EVERY, ids=NAMES)
every_paired_variant = pytest.mark.parametrize("options", PAIRED, ids=NAMES)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


# the fixtures


@pytest.mark.parametrize("name", CASES)
def test_infonce_agrees_with_its_definition(name):
    f = case("dispersive", name)
    z = f["z"].requires_grad_()
    close(dispersive(z, tau=1.0).detach(), f["infonce_l2_official"])
    for tau in settings("dispersive")[name]["taus"]:
        for part, diagonal in (("full", True), ("offdiag", False)):
            for scale, by_dim in (("divD", True), ("noD", False)):
                value = dispersive(
                    z, "infonce_l2", tau, normalize_by_dim=by_dim, include_diagonal=diagonal
                )
                close(value.detach(), f[f"infonce_l2_{part}_{scale}_tau{tau}"])
            value = dispersive(z, "infonce_cosine", tau, include_diagonal=diagonal).detach()
            close(value, f[f"infonce_cos_{part}_tau{tau}"])
            close(
                value - 1 / tau, f[f"infonce_cos1m_{part}_tau{tau}"]
            )  # a dissimilarity of 1 - cosine shifts the logarithm
        close(gradient(dispersive(z, tau=tau), z)[0], f[f"grad_infonce_l2_full_divD_tau{tau}"])


@pytest.mark.parametrize("name", CASES)
def test_hinge_and_covariance_agree_with_their_definitions(name):
    f, setting = case("dispersive", name), settings("dispersive")[name]
    z = f["z"]
    for eps in setting["hinge_eps"]:
        for part, diagonal in (("full", True), ("offdiag", False)):
            kinds = {"sqL2": ("sq_l2", False), "sqL2divD": ("sq_l2", True), "L2": ("l2", False)}
            for kind, (distance, by_dim) in kinds.items():
                options = {
                    "margin": eps,
                    "distance": distance,
                    "normalize_by_dim": by_dim,
                    "include_diagonal": diagonal,
                }
                close(dispersive(z, "hinge", **options), f[f"hinge_{kind}_{part}_eps{eps}"])
    close(dispersive(z, "covariance"), f["corr_offdiag_biased"])
    close(
        dispersive(z, "covariance"), f["corr_offdiag_unbiased"]
    )  # a correlation does not know ddof
    close(dispersive(z, "covariance") + setting["D"], f["corr_all_biased"])


@pytest.mark.parametrize("name", CASES)
def test_building_blocks_agree_with_the_fixtures(name):
    f = case("dispersive", name)
    z, n = f["z"], len(f["z"])
    i, j = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    close((squared_error(z[i], z[j]) * z.shape[1]).reshape(n, n), f["sq_dist"])
    close(cosine(z[:, None], z[None]), f["cosine"])


# bounds and invariances (methods.md, section 7)


@pytest.mark.parametrize("n", [2, 16, 32])
def test_infonce_lies_between_minus_log_batch_and_zero(n):
    z = normal(n, 40)
    values = [dispersive(scale * z) for scale in (0.0, 0.1, 1.0, 10.0, 100.0)]
    assert values[0] == pytest.approx(0, abs=1e-15)
    assert all(
        a > b for a, b in itertools.pairwise(values) if b > -math.log(n) + 1e-9
    )  # scale-seeking
    assert values[-1] == pytest.approx(-math.log(n), abs=1e-12)
    assert all(-math.log(n) <= value <= 0 for value in values)
    assert (
        dispersive(100 * z, include_diagonal=False) < -1000
    )  # without the diagonal there is no floor


@every_variant
def test_loss_ignores_the_order_of_the_batch(options):
    z = normal(9, 4, 5)
    close(dispersive(z[torch.randperm(9)], **options), dispersive(z, **options))


@pytest.mark.parametrize(
    "options", [o for o in EVERY if o["variant"] in ("infonce_l2", "hinge")], ids=str
)
def test_distances_ignore_shifts_and_rotations(options):
    z, shift = normal(9, 6).requires_grad_(), 5 * normal(6, seed=1)
    rotation, _ = torch.linalg.qr(normal(6, 6, seed=2))
    loss = dispersive(z, **options)
    close(dispersive(z + shift, **options).detach(), loss.detach())
    close(dispersive(z @ rotation, **options).detach(), loss.detach())
    close(gradient(loss, z)[0].sum(0), torch.zeros(6))


def test_scale_trades_with_temperature():
    z = normal(9, 6)
    close(dispersive(3 * z, tau=0.5), dispersive(z, tau=0.5 / 9))
    close(dispersive(z, tau=0.5), dispersive(z, tau=3.0, normalize_by_dim=False))
    close(
        dispersive(torch.rand(9, 1).double() * z, "infonce_cosine"), dispersive(z, "infonce_cosine")
    )
    assert abs(dispersive(z + 1, "infonce_cosine") - dispersive(z, "infonce_cosine")) > 0.01
    close(dispersive(torch.rand(6).double() * z, "covariance"), dispersive(z, "covariance"))


def test_cosine_variant_is_bounded_by_the_aligned_and_the_simplex():
    n, tau = 6, 0.5
    low = math.log(math.exp(1 / tau) / n + (n - 1) / n * math.exp(-1 / ((n - 1) * tau)))
    simplex = torch.eye(n, dtype=torch.float64) - 1 / n
    close(dispersive(torch.ones(n, 4).double(), "infonce_cosine", tau), 1 / tau)
    close(dispersive(simplex, "infonce_cosine", tau), low)
    assert low < dispersive(normal(n, 4), "infonce_cosine", tau) < 1 / tau


def test_hinge_is_bounded_and_rests_once_all_are_far():
    margin, z = 2.0, normal(8, 5).requires_grad_()
    far = dispersive(100 * z, "hinge", margin=margin)
    close(far.detach(), margin**2 / 8)  # the diagonal
    assert torch.equal(gradient(far, z)[0], torch.zeros_like(z))
    assert margin**2 / 8 < dispersive(z, "hinge", margin=margin) < margin**2
    close(dispersive(torch.zeros(8, 5).double(), "hinge", margin=margin), margin**2)
    assert dispersive(100 * z, "hinge", margin=margin, include_diagonal=False) == 0


@pytest.mark.parametrize(("n", "d"), [(5, 12), (9, 3)])
def test_covariance_has_the_floor_of_its_rank(n, d):
    z = normal(n, d)
    value = dispersive(z, "covariance")
    assert value >= d**2 / min(d, n - 1) - d
    correlation = torch.corrcoef(z.T)
    close(value, (correlation - torch.eye(d)).square().sum())


# the contrastive counterpart


def test_contrastive_infonce_splits_into_attraction_and_a_row_wise_dispersion():
    z, other = normal(7, 10), normal(7, 10, seed=1)
    for variant in ("infonce_l2", "infonce_cosine"):
        tau = 0.7
        gap = (
            -cosine(z[:, None], z[None])
            if variant == "infonce_cosine"
            else (z[:, None] - z[None]).square().mean(2)
        )
        near = -cosine(z, other) if variant == "infonce_cosine" else squared_error(z, other)
        row_wise = torch.logsumexp(-gap / tau, 1).sub(math.log(7)).mean()
        close(contrastive(z, other, variant, tau), near.mean() / tau + math.log(7) + row_wise)
        assert row_wise <= dispersive(
            z, variant, tau
        )  # Jensen; equal when all rows have the same mean
    same = torch.eye(7).double()
    close(contrastive(same, same), dispersive(same) + math.log(7))


def test_contrastive_hinge_adds_the_squared_distance_of_the_pair():
    z, other = normal(7, 10), normal(7, 10, seed=1)
    close(
        contrastive(z, other, "hinge"),
        squared_error(z, other).square().mean() + dispersive(z, "hinge"),
    )
    distant = contrastive(z, other, "hinge", margin=3.0, distance="l2", normalize_by_dim=False)
    close(
        distant,
        (z - other).square().sum(1).mean()
        + dispersive(z, "hinge", margin=3.0, distance="l2", normalize_by_dim=False),
    )
    close(contrastive(z, z, "hinge"), dispersive(z, "hinge"))


def test_contrastive_covariance_is_barlow_twins():
    z, other, w = normal(7, 10), normal(7, 10, seed=1), 0.3
    c = standardize(z).T @ standardize(other) / 7
    off = c.square().sum() - c.diagonal().square().sum()
    close(contrastive(z, other, "covariance", w=w), (1 - c.diagonal()).square().sum() + w * off)
    close(contrastive(z, z, "covariance"), dispersive(z, "covariance"))


# gradients, dtypes, compilation


@every_variant
def test_gradient_agrees_with_finite_differences(options):
    z = normal(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: dispersive(z, **options), z)
    assert torch.autograd.gradgradcheck(lambda z: dispersive(z, **options), z)


@every_paired_variant
def test_contrastive_gradient_reaches_both_views(options):
    views = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *views: contrastive(*views, **options), views)


@every_variant
def test_dtype_is_kept_and_half_is_computed_in_float32(options):
    z = normal(16, 3, 40)
    exact = dispersive(z, **options)
    assert exact.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 3e-2)):
        low = z.to(dtype).requires_grad_()
        value = dispersive(low, **options)
        assert value.dtype == torch.float32
        close(value.detach(), exact, tolerance)
        assert gradient(value, low)[0].dtype == dtype


@every_paired_variant
def test_autocast_does_not_lower_the_precision(options):
    z, other = (normal(8, 2000, seed=s, dtype=torch.float32).requires_grad_() for s in range(2))
    plain = contrastive(z, other, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive(z, other, **options)
        grads = gradient(inside, z, other)
    close(inside.detach(), plain.detach(), 1e-6)
    for a, b in zip(grads, gradient(plain, z, other)):
        close(a, b, 1e-6)


@pytest.mark.parametrize("options", PAIRED[0::2] + PAIRED[5:6], ids=str)
def test_compiled_loss_agrees_in_one_graph(options):
    def both(z, other):
        return dispersive(z, **options) + contrastive(z, other, **options)

    z, other = (normal(4, 1500, seed=s, dtype=torch.float32).requires_grad_() for s in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a = torch.compile(both, fullgraph=True, backend="aot_eager")(z, other)
    b = both(z, other)
    close(a.detach(), b.detach(), 1e-6)
    for one, two in zip(gradient(a, z, other), gradient(b, z, other)):
        close(one, two, 1e-6)


@every_paired_variant
def test_nothing_is_read_back_and_nothing_is_mutated(options):
    meta = torch.empty(4, 3, 2, device="meta").requires_grad_()  # reading a meta tensor raises
    (dispersive(meta, **options) + contrastive(meta, meta, **options)).backward()
    z, other = normal(4, 6), normal(4, 6, seed=1)
    copies = z.clone(), other.clone()
    contrastive(z, other, **options)
    assert torch.equal(z, copies[0])
    assert torch.equal(other, copies[1])


# slabs, scales, offsets, duplicates


def plain_infonce(z, tau=0.5):
    z = z.reshape(len(z), -1)
    gap = (z[:, None] - z[None]).square().mean(2)
    return torch.logsumexp(-gap.flatten() / tau, 0) - 2 * math.log(len(z))


@pytest.mark.parametrize(
    ("n", "d"),
    [(6, 1), (6, 1023), (6, 1024), (6, 1025), (6, 5000), (64, 9), (65, 9), (131, 1030), (300, 40)],
)
def test_slabs_of_columns_and_bands_of_rows_add_up(n, d):
    z = normal(n, d).requires_grad_()
    loss, plain = dispersive(z), plain_infonce(z)
    close(loss.detach(), plain.detach())
    close(gradient(loss, z)[0], gradient(plain, z)[0], 1e-12)
    close(gram(z).detach(), (z @ z.T).detach(), 1e-9)
    assert torch.equal(gram(z), gram(z).T)


@pytest.mark.parametrize("centre", [False, True])
def test_gram_matrix_has_two_derivatives(centre):
    z, weights = normal(4, 3).requires_grad_(), normal(4, 4, seed=1)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda z: (weights * gram(z, centre)).sin(), z)
    value = (weights * gram(z, centre)).sum()
    with_graph, alone = (
        torch.autograd.grad(value, z, create_graph=g, retain_graph=True)[0] for g in (True, False)
    )
    close(with_graph.detach(), alone, 1e-12)


def test_near_duplicates_have_the_distance_that_float32_can_resolve():
    for seed in range(8):
        z = normal(6, 3000, seed=seed, dtype=torch.float32)
        z[1] = z[0] * (1 + 2e-7)
        value = dispersive(
            z, "hinge", distance="l2", normalize_by_dim=False, include_diagonal=False
        )
        close(value, 2 / 30, 1e-4)  # the pair adds margin^2 twice, all others are far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("spread", "offset"),
    [(1.0, 0.0), (1.0, 1e3), (1e-2, 10.0), (1e-8, 0.0), (1e-8, 1e-5), (1e4, 0.0), (1e4, 1e7)],
)
def test_any_scale_and_a_common_offset_stay_accurate(spread, offset, dtype):
    z = (spread * normal(16, 3000) + offset * normal(3000, seed=1)).to(dtype).requires_grad_()
    tau = 0.5 * max(spread, 1e-4) ** 2
    loss = dispersive(z, tau=tau)
    exact = z.detach().double().requires_grad_()
    plain = plain_infonce(exact, tau)
    close(loss.detach().double(), plain.detach(), 1e-5)
    grad, true = gradient(loss, z)[0].double(), gradient(plain, exact)[0]
    assert grad.isfinite().all()
    assert (grad - true).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-4) * true.norm()


@every_variant
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
def test_duplicates_and_zero_rows_stay_finite(options, scale):
    z = scale * normal(8, 30, dtype=torch.float32)
    z[1], z[2], z[3] = z[0], 0.0, z[0] * (1 + 1e-7)
    z[:, 4] = 0.1  # a constant feature, not exactly representable
    z.requires_grad_()
    loss = dispersive(z, **options)
    assert loss.isfinite()
    assert gradient(loss, z)[0].isfinite().all()


@every_paired_variant
def test_identical_views_stay_finite(options):
    z = normal(4, 6, dtype=torch.float32)
    z[1] = 0
    z.requires_grad_()
    loss = contrastive(z, z, **options)
    assert loss.isfinite()
    assert gradient(loss, z)[0].isfinite().all()


def test_all_rows_equal_is_the_worst_value_and_finite():
    z = torch.full((6, 50), 0.1, requires_grad=True)
    worst = {"infonce_l2": 0.0, "infonce_cosine": 2.0, "hinge": 1.0, "covariance": 0.0}
    for variant, value in worst.items():
        loss = dispersive(z, variant)
        close(loss.detach(), value, 1e-5)
        assert gradient(loss, z)[0].isfinite().all()


def test_a_constant_feature_correlates_with_none():
    z = normal(7, 5, dtype=torch.float32)
    constant = torch.cat(
        [z, torch.full((7, 1), 0.1)], 1
    ).requires_grad_()  # its mean is not exactly 0.1
    loss = dispersive(constant, "covariance")
    close(loss.detach(), dispersive(z, "covariance"), 1e-5)
    assert torch.equal(gradient(loss, constant)[0][:, 5], torch.zeros(7))
    assert constant[:, 5].mean() != constant[0, 5]


@every_variant
def test_a_nan_is_not_hidden(options):
    z = normal(6, 4)
    z[2, 1] = math.nan
    assert dispersive(z, **options).isnan()


class Watch(TorchDispatchMode):
    """The peak number of elements that tensors hold besides `known`."""

    def __init__(self, known):
        super().__init__()
        self.known, self.live, self.peak, self.largest = known.untyped_storage()._cdata, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and not x._is_view():
                storage = x.untyped_storage()
                key = storage._cdata
                if key != self.known and key not in self.live:
                    self.live[key] = storage.nbytes() // x.element_size()
                    weakref.finalize(storage, self.live.pop, key, None)
                self.largest = max(self.largest, self.live.get(key, 0))
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def test_infonce_needs_the_gradient_and_five_percent_of_memory():
    z = normal(40, 140_000, dtype=torch.float32).requires_grad_()
    with Watch(z) as forward:
        products = kernels._gram_forward(z.detach(), True)
    with Watch(z) as backward:
        kernels._gram_product(products, z.detach(), True)
    assert 0 < forward.peak <= 0.05 * z.numel()
    assert z.numel() <= backward.peak <= 1.05 * z.numel()
    with Watch(z) as outside:  # the two operators above count as one call each
        dispersive(z).backward()
    assert z.numel() <= outside.peak <= 1.05 * z.numel()


@pytest.mark.parametrize("paired", [False, True])
def test_covariance_never_builds_a_features_by_features_matrix(paired):
    z = normal(4, 500).requires_grad_()
    with Watch(z) as watch:
        (contrastive(z, z, "covariance") if paired else dispersive(z, "covariance")).backward()
    assert watch.largest <= z.numel()


# batch of one, wrong arguments


@every_paired_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_of_one_gives_zero_and_one_warning(options, dtype):
    z, other = (
        normal(1, 3, 2, dtype=dtype).requires_grad_(),
        normal(1, 3, 2, seed=1, dtype=dtype).requires_grad_(),
    )
    with pytest.warns(UserWarning, match="batch of one"):
        loss = dispersive(z, **options)
    paired = contrastive(
        z, other, **options
    )  # warned already: a second warning would be an error here
    for value in (loss, paired):
        assert value == 0
        assert value.dtype == dtype
        value.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))
    assert torch.equal(other.grad, torch.zeros_like(other))


@pytest.mark.parametrize("name", ["tau", "margin"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True, None])
def test_numbers_out_of_range_are_refused(name, value):
    for loss in (
        lambda **o: dispersive(normal(4, 3), **o),
        lambda **o: contrastive(normal(4, 3), normal(4, 3), **o),
    ):
        with pytest.raises(ConfigError, match=name):
            loss(**{name: value})


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'infonce_l2'"):
        dispersive(normal(4, 3), "infonce_l3")
    with pytest.raises(ConfigError, match="covariance"):
        contrastive(normal(4, 3), normal(4, 3), "barlow")
    with pytest.raises(ConfigError, match="sq_l2"):
        dispersive(normal(4, 3), "hinge", distance="euclidean")
    with pytest.raises(ConfigError, match=r"\bw is -1"):
        contrastive(normal(4, 3), normal(4, 3), "covariance", w=-1)


@pytest.mark.parametrize("shape", [(), (4,), (0, 3), (4, 0), (4, 0, 2)])
def test_features_that_are_no_batch_are_refused(shape):
    with pytest.raises(ConfigError, match="h has shape"):
        dispersive(torch.zeros(shape))


def test_integers_and_views_of_unequal_shape_are_refused():
    with pytest.raises(ConfigError, match="dtype"):
        dispersive(torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"h_positive \(4, 2\)"):
        contrastive(normal(4, 3), normal(4, 2))
