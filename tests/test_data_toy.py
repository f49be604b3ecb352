"""data/toy.py: each set lies where its description says, follows its generator alone, and has its
exact density where it is a mixture.
"""

import math

import pytest
import torch

from cfm_lite.data import toy
from cfm_lite.errors import ConfigError
from cfm_lite.theory import GaussianMixture, optimal_velocity

NAMES = sorted(toy.TOYS)
CLASSES = {"gaussians": 8} | {name: 2 for name in NAMES if name != "gaussians"}


@pytest.mark.parametrize("name", NAMES)
def test_every_set_gives_points_and_labels(name, generator):
    for n in (1, 2, 7, 500):
        x1, y = toy.load(name, n, generator)
        assert (x1.shape, x1.dtype) == ((n, 2), torch.float32)
        assert (y.shape, y.dtype) == ((n,), torch.int64)
        assert x1.isfinite().all()
    assert y.unique().tolist() == list(range(CLASSES[name]))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "figure3"])
def test_every_set_is_centred_and_scaled_for_standard_noise(name, generator):
    x1, _ = toy.load(name, 4000, generator)
    assert x1.abs().max() < 4
    assert x1.mean(0).abs().max() < 0.5
    assert ((x1.std(0) > 0.7) & (x1.std(0) < 2)).all()


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_equally_frequent(name, generator):
    _, y = toy.load(name, 8000, generator)
    share = 1 / CLASSES[name]
    frequencies = y.bincount() / len(y)
    assert (frequencies - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / 8000)


@pytest.mark.parametrize("name", NAMES)
def test_one_generator_state_is_one_set_and_the_global_state_stays(name):
    before = torch.get_rng_state()
    first, again = (toy.load(name, 50, torch.Generator().manual_seed(7)) for _ in range(2))
    other = toy.load(name, 50, torch.Generator().manual_seed(8))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", NAMES)
def test_successive_draws_differ_and_the_global_seed_rules_without_a_generator(name, generator):
    assert not torch.equal(toy.load(name, 20, generator)[0], toy.load(name, 20, generator)[0])
    torch.manual_seed(3)
    first = toy.load(name, 20)[0]
    torch.manual_seed(3)
    assert torch.equal(first, toy.load(name, 20)[0])


def test_load_is_the_registered_function():
    x1, y = toy.load("spirals", 30, torch.Generator().manual_seed(1))
    again, labels = toy.spirals(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x1, again)
    assert torch.equal(y, labels)


def test_gaussians_stand_on_their_ring_by_label(generator):
    x1, y = toy.gaussians(8000, generator=generator)
    centres = torch.stack([x1[y == k].mean(0) for k in range(8)])
    angle = torch.arange(8) * math.pi / 4
    expected = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(centres, expected, atol=0.03, rtol=0)
    spread = (x1 - expected[y]).std(0)
    torch.testing.assert_close(spread, torch.full((2,), 0.2), atol=0.01, rtol=0)


def _to_curve(x, curve):
    return torch.cdist(x, curve.float()).amin(1)


def _scikit_learn(name, *arguments, **settings):
    """Noise-free points of scikit-learn's generator of the same name."""
    from sklearn import datasets

    points, label = getattr(datasets, f"make_{name}")(
        *arguments, noise=0.0, random_state=0, **settings
    )
    return torch.from_numpy(points), torch.from_numpy(label)


def test_circles_have_radius_two_and_one(generator):
    x1, y = toy.circles(4000, generator=generator)
    off = x1.norm(dim=1) - (2.0 - y)
    assert abs(off.mean()) < 0.01
    assert abs(off.std() - 0.08) < 0.005


def test_moons_are_half_circles_of_radius_1_6(generator):
    x1, y = toy.moons(4000, generator=generator)
    centre = torch.tensor([[-0.8, -0.4], [0.8, 0.4]])[y]
    off = (x1 - centre).norm(dim=1) - 1.6
    assert abs(off.mean()) < 0.01
    assert abs(off.std() - 0.08) < 0.005
    assert x1[y == 0, 1].mean() > 0.3 > -0.3 > x1[y == 1, 1].mean()


@pytest.mark.parametrize(("name", "settings"), [("moons", {}), ("circles", {"factor": 0.5})])
def test_moons_and_circles_are_scikit_learns_with_the_same_labels(name, settings, generator):
    points, label = _scikit_learn(name, 2000, **settings)
    theirs = (points - torch.tensor([0.5, 0.25])) * 1.6 if name == "moons" else 2 * points
    x1, y = toy.load(name, 2000, generator)
    for k in (0, 1):
        assert _to_curve(x1[y == k], theirs[label == k]).max() < 5 * 0.08
        assert _to_curve(theirs[label == k].float(), x1[y == k]).max() < 0.15  # no part is left out


def test_swiss_roll_is_scikit_learns(generator):
    points, turn = _scikit_learn("swiss_roll", 4000)
    theirs = points[:, [0, 2]] * 2.5 / (4.5 * math.pi)
    x1, y = toy.swiss_roll(4000, generator=generator)
    for k in (0, 1):
        half = (turn > 3 * math.pi) == bool(k)
        assert _to_curve(x1[y == k], theirs[half]).max() < 5 * 0.06
        assert _to_curve(theirs[half].float(), x1[y == k]).max() < 0.15


def test_checkerboard_fills_the_dark_squares_alone_and_evenly(generator):
    x1, y = toy.checkerboard(8000, generator=generator)
    cell = (x1 + 2).floor().long()  # column, row
    assert ((cell >= 0) & (cell < 4)).all()
    assert (cell.sum(1) % 2 == 0).all()
    assert torch.equal(cell[:, 1] % 2, y)
    counts = (cell[:, 0] * 4 + cell[:, 1]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    assert (counts[counts > 0] - 1000).abs().max() < 4.5 * math.sqrt(8000 / 8 * 7 / 8)


def test_spiral_arms_are_each_others_half_turn(generator):
    x1, y = toy.spirals(4000, generator=generator)
    radius = torch.linspace(0.4, 2.5, 1000)
    angle = 2.5 * math.pi * (radius - 0.4) / 2.1
    turned = x1 * (1 - 2 * y[:, None])  # class 1 turned by pi falls on class 0
    arm = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    assert _to_curve(turned, arm).max() < 5 * 0.06
    assert _to_curve(x1[y == 1], arm).median() > 0.3


def test_figure3_modes_are_the_papers(generator):
    x1, y = toy.figure3(8000, generator=generator)
    original = toy.to_figure3(x1)
    means = torch.stack([original[y == k].mean(0) for k in range(2)])
    torch.testing.assert_close(
        means, torch.tensor([[5.0, 0.0], [4.8801, 1.0879]]), atol=0.03, rtol=0
    )
    torch.testing.assert_close(
        (original - means[y]).std(0), torch.full((2,), 0.5), atol=0.02, rtol=0
    )


def test_figure3_maps_invert_each_other_and_make_the_source_standard_normal():
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(toy.to_figure3(toy.from_figure3(x)), x)
    torch.testing.assert_close(toy.from_figure3(torch.tensor([-15.0, 0.0])), torch.zeros(2))
    torch.testing.assert_close(
        toy.from_figure3(torch.tensor([-14.5, 0.5])), torch.ones(2)
    )  # one standard deviation
    assert toy.to_figure3(x.float()).dtype == torch.float32


def test_figure3_optimum_doubles_the_gap_of_the_class_means():
    """In the figure's coordinates and at weight 0.5, E[u_neg] = (19.940, 0.544) and the gap grows
    from 1.088 to 2.176.
    """
    mixture = toy.mixture("figure3")
    mean = toy.to_figure3(mixture.mean()) - toy.to_figure3(torch.zeros(2))
    torch.testing.assert_close(
        mean, torch.tensor([19.940, 0.544], dtype=mean.dtype), atol=1e-3, rtol=0
    )
    # noise at the origin, t = 0: the class-mean velocity
    x, t, y = (
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([0, 1]),
    )
    plain = 0.5 * optimal_velocity(mixture, x, t, y, method="fm")
    contrast = 0.5 * optimal_velocity(mixture, x, t, y, method="delta_fm", weight=0.5)
    assert abs(plain.diff(dim=0)[0, 1] - 1.088) < 1e-3
    assert abs(contrast.diff(dim=0)[0, 1] - 2.176) < 1e-3


def test_two_classes_mirror_each_other_and_have_distinct_means():
    mixture = toy.mixture("two_classes")
    assert mixture.labels.tolist() == [0, 0, 1, 1]
    flipped = mixture.means * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(flipped[[3, 2, 1, 0]], mixture.means)


@pytest.mark.parametrize("name", sorted(toy.MIXTURES))
def test_mixture_is_the_density_of_its_set(name, generator):
    mixture = toy.mixture(name)
    assert isinstance(mixture, GaussianMixture)
    x1, y = toy.load(name, 6000, generator)
    ones = torch.ones(6000)
    own, same = (
        mixture.log_prob(x1, ones, y),
        mixture.log_prob(*mixture.sample(6000, generator=generator)[:1], ones),
    )
    assert own.mean() > mixture.log_prob(x1, ones).mean()  # the label says more than the mixture
    assert abs(mixture.log_prob(x1, ones).mean() - same.mean()) < 0.1
    torch.testing.assert_close(mixture.mean().float(), x1.mean(0), atol=0.12, rtol=0)


def test_changing_a_mixture_does_not_change_the_set(generator):
    before = toy.gaussians(20, generator=torch.Generator().manual_seed(2))[0]
    toy.mixture("gaussians").means.zero_()
    assert torch.equal(before, toy.gaussians(20, generator=torch.Generator().manual_seed(2))[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: toy.load("moon", 5), "Did you mean 'moons'"),
        (lambda: toy.load(None, 5), "must be one of"),  # type: ignore[arg-type]
        (lambda: toy.mixture("moons"), "'figure3'"),
        (lambda: toy.mixture("gausians"), "Did you mean 'gaussians'"),
        *((lambda name=name: toy.load(name, 0), "n is 0") for name in NAMES),
        *((lambda name=name: toy.load(name, 2.5), "n is 2.5") for name in NAMES),
        *((lambda name=name: toy.load(name, True), "n is True") for name in NAMES),
    ],
)
def test_wrong_arguments_are_config_errors_that_say_what_was_seen(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
