"""VeCoR with linear perturbations: its optimum is an affine image of FM's, and the way back is
exact.
"""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from cfm_lite.errors import ConfigError
from cfm_lite.guidance import debias_linear, retarget_linear
from cfm_lite.negatives import perturbed
from cfm_lite.paths import COSINE, LINEAR, VP, FlowSample, Path
from cfm_lite.perturbations import (
    channel_shuffle,
    color_jitter,
    crop_resize,
    cutmix,
    expected_map,
)
from cfm_lite.theory import GaussianMixture, optimal_velocity

MIX = GaussianMixture(
    torch.tensor([0.4, 0.6]),
    torch.tensor([[2.0, 0.0, -1.0], [-1.0, 1.0, 2.0]]),
    torch.tensor([0.3, 0.5]),
)
SWAP = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
MAPS = torch.stack(
    [SWAP, 0.5 * torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, 2.0]))]
)  # P is one of these, equally likely


def some_map(x, *, generator=None):
    return torch.einsum(
        "nij,nj->ni", MAPS[torch.randint(3, (len(x),), generator=generator)].to(x), x
    )


def fm(path):
    return lambda x, t: MIX.velocity(x, t, path=path)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda p: p.name)
@pytest.mark.parametrize("space", ["velocity", "latent"])
def test_retargeted_fm_minimises_the_vecor_loss(space, path):
    """At the minimum the gradient E[(v - u) - p (v - u_neg) | x_t] is 0, so it is uncorrelated with
    every function of x_t.
    """
    n, p, g = 400_000, 0.3, torch.Generator().manual_seed(0)
    x1 = MIX.sample(n, generator=g)[0].double()
    x0, t = (
        torch.randn(x1.shape, generator=g, dtype=torch.float64),
        torch.full((n,), 0.6, dtype=torch.float64),
    )
    x_t, u_t = path.interpolate(x0, x1, t)
    u_neg = perturbed(some_map, space=space, path=path)(
        FlowSample(x0, x1, t, x_t, u_t, None), generator=g
    )
    v = retarget_linear(fm(path), p, MAPS.mean(0), space=space, path=path)(x_t, t)
    residual = (v - u_t) - p * (v - u_neg)
    for feature in (torch.ones(n, 1), x_t, x_t**2, torch.sin(2 * x_t)):
        mean = (residual * feature.double()).mean(0)
        spread = (residual * feature.double()).std(0) / n**0.5
        assert (mean.abs() < 4.5 * spread).all()
    plain = (fm(path)(x_t, t) - u_t) - p * (fm(path)(x_t, t) - u_neg)
    assert (
        (plain * x_t).mean(0).abs() > 20 * (plain * x_t).std(0) / n**0.5
    ).any()  # FM itself is no minimum


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda p: p.name)
@pytest.mark.parametrize("space", ["velocity", "latent"])
def test_debias_inverts_retarget_at_every_time(space, path):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = retarget_linear(fm(path), 0.1, MAPS.mean(0), k=3, space=space, path=path)
    back = debias_linear(there, 0.1, MAPS.mean(0), k=3, space=space, path=path)
    for t in (
        torch.linspace(0, 1, 7, dtype=torch.float64),
        torch.full((7,), 0.25, dtype=torch.float64),
    ):
        torch.testing.assert_close(back(x, t), fm(path)(x, t), rtol=1e-9, atol=1e-9)
        assert (there(x, t) - fm(path)(x, t)).abs().max() > 0.05


def _smooth(t):
    return 3 * t**2 - 2 * t**3


SMOOTH = Path(
    "smooth",
    _smooth,
    lambda t: 1 - _smooth(t),
    lambda t: 6 * t * (1 - t),
    lambda t: 6 * t * (t - 1),
)  # at rest at both ends


@pytest.mark.parametrize("path", [SMOOTH, VP], ids=lambda p: p.name)
def test_the_maps_have_their_limits_at_the_ends_of_a_path(path):
    """SMOOTH's velocity is 0 at both ends; VP's d_sigma is infinite at t = 1, where the noise is 0
    for a finite velocity.
    """
    x, mean = torch.randn(3, 3, dtype=torch.float64), MAPS.double().mean(0)
    ends, near = (
        torch.tensor([0.0, 1.0, 0.5]).double(),
        torch.tensor([1e-7, 1 - 1e-9, 0.5]).double(),
    )
    there = retarget_linear(fm(path), 0.3, mean, path=path)
    back = debias_linear(there, 0.3, mean, path=path)
    assert_close(there(x, ends), there(x, near), atol=1e-3, rtol=1e-3)
    assert_close(back(x, ends), fm(path)(x, ends), atol=1e-6, rtol=1e-6)


def test_for_shuffles_it_is_the_exact_theory():
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    mean = (
        3 * 2 * torch.full((3, 3), 1 / 3) - torch.eye(3)
    ) / 5  # over the five orders other than the identity
    ours = retarget_linear(fm(LINEAR), 0.05, mean.double(), space="velocity")(x, t)
    torch.testing.assert_close(
        ours, optimal_velocity(MIX, x, t, method="vecor", weight=0.05), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(expected_map(channel_shuffle, (3,), 20_000), mean, rtol=0, atol=0.02)


def test_the_expected_crop_is_the_mean_of_crops():
    mean = expected_map(crop_resize, (1, 8, 8))
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    crops = crop_resize(
        image.expand(20_000, -1, -1, -1), generator=torch.Generator().manual_seed(4)
    )
    torch.testing.assert_close(
        (image.flatten() @ mean.mT).reshape(8, 8), crops.mean(0)[0], rtol=0, atol=0.03
    )  # 2,000 draws for a pixel
    torch.testing.assert_close(
        mean.sum(1), torch.ones(64), rtol=0, atol=0.05
    )  # a constant image stays as it is


def _one(t):
    return torch.ones_like(t)


# the noise is never carried away, so that all of the velocity is the data's
STILL = Path("still", lambda t: t, _one, _one, torch.zeros_like)


def test_weight_zero_changes_nothing_and_bad_settings_are_named():
    x, t = torch.randn(4, 3), torch.rand(4)
    for f in (retarget_linear, debias_linear):
        torch.testing.assert_close(
            f(fm(LINEAR), 0.0, SWAP)(x, t), fm(LINEAR)(x, t), rtol=1e-5, atol=1e-5
        )
        with pytest.raises(ConfigError, match="below 1"):
            f(fm(LINEAR), 0.5, SWAP, k=2)
        with pytest.raises(ConfigError, match="space"):
            f(fm(LINEAR), 0.1, SWAP, space="image")
        with pytest.raises(ConfigError, match="expected has entries that are not finite"):
            f(fm(LINEAR), 0.1, torch.full((3, 3), torch.nan))
        with pytest.raises(ConfigError, match="square"):
            f(fm(LINEAR), 0.1, torch.ones(2, 3))
    for space in ("velocity", "latent"):  # 0.25 * 4 = 1, so the repulsion cancels the data
        with pytest.raises(ConfigError, match="no inverse"):
            debias_linear(lambda x, t: x, 0.25, 4 * torch.eye(3), space=space, path=STILL)(x, t)
    with pytest.raises(ConfigError, match="a sample has 2 numbers"):
        retarget_linear(lambda x, t: x, 0.1, SWAP)(torch.randn(4, 2), t)
    with pytest.raises(ConfigError, match="not linear"):
        expected_map(color_jitter, (3,))
    with pytest.raises(ConfigError, match="cutmix mixes the rows of a batch"):
        expected_map(cutmix, (1, 8, 8))


@pytest.mark.parametrize(
    "change",
    [torch.abs, torch.square, torch.relu, torch.tanh, torch.sqrt, lambda x: x.clamp(-1, 1)],
)
def test_a_transform_that_is_not_linear_has_no_expected_map(change):
    with pytest.raises(ConfigError, match="not linear: with equal draws"):
        expected_map(lambda x, *, generator=None: change(x), (2,))


def test_a_transform_that_draws_elsewhere_is_told_so():
    with pytest.raises(ConfigError, match="draws from its generator alone"):
        expected_map(lambda x, *, generator=None: torch.rand(len(x), 1) * x, (2,))


def test_a_linear_transform_may_be_unhashable():
    @dataclass  # with eq, so without a hash
    class Times:
        by: float

        def __call__(self, x, *, generator=None):
            return self.by * x

    assert torch.equal(expected_map(Times(3.0), (2,)), 3 * torch.eye(2))


@pytest.mark.parametrize("space", ["velocity", "latent"])
def test_a_map_of_channels_is_the_map_of_whole_images_that_it_stands_for(space):
    g = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 5, 3, 4, 4, generator=g, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.3], dtype=torch.float64)
    small, whole = (expected_map(channel_shuffle, shape).double() for shape in ((3,), (3, 4, 4)))
    for change in (retarget_linear, debias_linear):
        mine, other = (
            change(lambda x, t: v, 0.2, mean, space=space)(x, t) for mean in (small, whole)
        )
        torch.testing.assert_close(mine, other)
    there = retarget_linear(lambda x, t: v, 0.2, small, space=space)
    torch.testing.assert_close(debias_linear(there, 0.2, small, space=space)(x, t), v)


def test_the_mean_of_a_channel_shuffle_is_exact():
    drawn = (
        torch.stack(
            [
                channel_shuffle(torch.eye(3), generator=torch.Generator().manual_seed(i))
                for i in range(3000)
            ]
        )
        .mean(0)
        .mT
    )
    torch.testing.assert_close(expected_map(channel_shuffle, (3,)), drawn, rtol=0, atol=0.02)
    assert torch.equal(expected_map(channel_shuffle, (2,)), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(ConfigError, match="at least 2 channels"):
        expected_map(channel_shuffle, (1, 8, 8))
