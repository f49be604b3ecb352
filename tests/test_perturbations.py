"""perturbations.py: laws (chi-square), geometry of windows, boxes and blurs, never the identity,
wrong arguments.
"""

import itertools
import math

import pytest
import torch
from scipy.stats import chi2

from cfm_lite import perturbations
from cfm_lite.errors import ConfigError
from cfm_lite.perturbations import (
    additive_noise,
    channel_shuffle,
    color_jitter,
    crop_resize,
    cutmix,
    gaussian_blur,
    other_row,
)

EVERY = [channel_shuffle, crop_resize, cutmix, gaussian_blur, color_jitter, additive_noise]
IMAGES_ONLY = [crop_resize, cutmix, gaussian_blur]
every = pytest.mark.parametrize("transform", EVERY, ids=lambda f: f.__name__)
images_only = pytest.mark.parametrize("transform", IMAGES_ONLY, ids=lambda f: f.__name__)


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def check_uniform(counts, p=1e-4):
    """A chi-square test that passes a uniform law but for one seed in 10,000."""
    counts = torch.as_tensor(counts, dtype=torch.float64)
    expected = counts.sum() / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - p, len(counts) - 1)


def orders_of(y, channels):
    """How often each permutation occurs among rows that began as 0, 1, ..., C - 1."""
    rows = [tuple(row) for row in y.reshape(len(y), channels).long().tolist()]
    return [rows.count(order) for order in itertools.permutations(range(channels))]


# what holds for all


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_result_is_like_x_but_no_row_stays_as_it_was(transform, dtype):
    x = normal(64, 3, 8, 8).to(dtype)
    y = transform(x, generator=seeded())
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert (x != y).flatten(1).any(1).all()


@every
def test_generator_decides_alone_and_x_is_not_mutated(transform):
    x = normal(16, 3, 8, 8)
    copy, state = x.clone(), torch.get_rng_state()
    first, again, other = (transform(x, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, copy)
    assert torch.equal(torch.get_rng_state(), state)
    transform(x)
    assert not torch.equal(torch.get_rng_state(), state)


@every
def test_rows_are_perturbed_differently_and_layout_does_not_matter(transform):
    x = normal(1, 3, 8, 8).repeat(12, 1, 1, 1) + torch.arange(12.0).reshape(12, 1, 1, 1)
    y = transform(x, generator=seeded())
    change = (y - x).flatten(1)
    assert len({tuple(row) for row in change.round(decimals=3).tolist()}) > 4
    strange = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(transform(strange, generator=seeded()), y, rtol=1e-5, atol=1e-5)


@every
def test_nothing_is_read_back_from_a_device(transform):
    transform(torch.empty(4, 3, 8, 8, device="meta"))  # reading a meta tensor raises
    with pytest.raises(ConfigError, match="generator is on cpu"):
        transform(torch.empty(4, 3, 8, 8, device="meta"), generator=seeded())


@every
def test_integers_and_empty_batches_are_refused(transform):
    with pytest.raises(ConfigError, match="dtype"):
        transform(torch.ones(4, 3, 8, 8, dtype=torch.int64))
    for shape in ((), (4,), (0, 3, 8, 8), (4, 0), (4, 3, 0, 8)):
        with pytest.raises(ConfigError, match=f"{transform.__name__} needs"):
            transform(torch.zeros(shape))


@images_only
def test_image_transforms_name_themselves_when_given_points(transform):
    for shape in ((4, 3), (4, 3, 8), (2, 4, 3, 8, 8), (4, 3, 1, 1)):
        with pytest.raises(ConfigError, match=rf"{transform.__name__} needs images \(B, C, H, W\)"):
            transform(torch.zeros(shape))


@pytest.mark.parametrize(
    "transform", [channel_shuffle, color_jitter, additive_noise], ids=lambda f: f.__name__
)
def test_point_transforms_take_points(transform):
    x = normal(50, 2)
    y = transform(x, generator=seeded())
    assert y.shape == x.shape
    assert (x != y).any(1).all()


# channel shuffle


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("exclude", [True, False])
def test_orders_are_uniform_with_or_without_the_identity(channels, exclude):
    x = torch.arange(channels).float().repeat(12_000, 1)
    counts = orders_of(channel_shuffle(x, exclude_identity=exclude, generator=seeded(3)), channels)
    if exclude:
        assert counts.pop(0) == 0
    if len(counts) > 1:
        check_uniform(counts)


def test_single_channels_may_stay_in_place():
    y = channel_shuffle(torch.arange(3.0).repeat(100, 1), generator=seeded())
    assert (y == torch.arange(3.0)).any()


def test_channels_move_as_wholes():
    x = normal(20, 4, 5, 6)
    y = channel_shuffle(x, generator=seeded())
    for before, after in zip(x, y):
        order = [next(i for i in range(4) if torch.equal(before[i], channel)) for channel in after]
        assert sorted(order) == [0, 1, 2, 3]


def test_one_order_for_the_batch_is_uniform_too():
    x = torch.arange(3.0).repeat(5, 1)
    g, drawn = seeded(), []
    for _ in range(600):
        y = channel_shuffle(x, per_sample=False, generator=g)
        assert (y == y[0]).all()
        drawn.append(y[:1])
    counts = orders_of(torch.cat(drawn), 3)
    assert counts.pop(0) == 0
    check_uniform(counts)


def test_ranks_enumerate_the_permutations_in_order():
    for channels in (1, 2, 4, 5):
        expected = torch.tensor(list(itertools.permutations(range(channels))))
        assert torch.equal(
            perturbations._unrank(torch.arange(math.factorial(channels)), channels), expected
        )


@pytest.mark.parametrize("channels", [8, 9, 64])
def test_many_channels_are_permuted_uniformly(channels):
    y = channel_shuffle(torch.arange(channels).float().repeat(4000, 1), generator=seeded()).long()
    assert torch.equal(y.sort(1).values, torch.arange(channels).repeat(4000, 1))
    for place in (0, channels // 2, channels - 1):
        check_uniform(y[:, place].bincount(minlength=channels))


def test_a_drawn_identity_of_many_channels_becomes_a_swap(monkeypatch):
    monkeypatch.setattr(
        torch, "rand", lambda n, c, **_: torch.arange(float(c)).repeat(n, 1)
    )  # its argsort is the identity
    x = torch.arange(9.0).repeat(3, 1)
    assert channel_shuffle(x)[0].tolist() == [1, 0, 2, 3, 4, 5, 6, 7, 8]
    assert torch.equal(channel_shuffle(x, exclude_identity=False), x)


def test_one_channel_is_refused_with_what_to_use_instead():
    for shape in ((4, 1), (4, 1, 8, 8)):
        with pytest.raises(ConfigError, match=r"grey images use crop_resize or cutmix"):
            channel_shuffle(torch.zeros(shape))


# crop and resize


def test_crop_of_a_ramp_is_the_ramp_of_a_smaller_window():
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(24.0), indexing="ij")
    x = torch.stack([rows, columns]).repeat(200, 1, 1, 1).double()
    y = crop_resize(x, side=(0.5, 0.9), generator=seeded())
    side = (y[:, 0, -2, 0] - y[:, 0, 1, 0]) / 29  # a slope: the side of the window
    torch.testing.assert_close(
        (y[:, 1, 0, -2] - y[:, 1, 0, 1]) / 21, side
    )  # the window has the image's aspect
    assert 0.5 <= side.min() < 0.52
    assert 0.88 < side.max() <= 0.9
    for channel, size in ((0, 32), (1, 24)):
        low, high = y[:, channel].flatten(1).aminmax(dim=1)
        assert (low >= 0).all()
        assert (high <= size - 1).all()
        start = (low - (side - 1) / 2) / (
            size * (1 - side)
        )  # where the window begins, 0 to 1 of the room there is
        check_uniform(torch.histc(start.clamp(0, 1), 5, 0, 1))


def test_crop_keeps_a_constant_image():
    x = torch.full((5, 2, 8, 8), 0.3)
    torch.testing.assert_close(crop_resize(x), x)


# cutmix


def test_cutmix_pastes_one_box_of_another_row():
    n, h, w = 400, 16, 20
    x = torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 2, h, w)
    y = cutmix(x, area=(0.1, 0.6), generator=seeded())
    pasted = y != x
    assert torch.equal(pasted[:, 0], pasted[:, 1])
    shares = []
    for i in range(n):
        rows, columns = pasted[i, 0].any(1), pasted[i, 0].any(0)
        assert torch.equal(pasted[i, 0], rows[:, None] & columns)
        for span in (rows, columns):
            place = span.nonzero()
            assert len(place) == place.max() - place.min() + 1
        assert y[i][pasted[i]].unique().numel() == 1
        shares.append(pasted[i, 0].float().mean())
        assert abs(rows.sum() - h * (columns.sum() / w)) <= 1  # the image's aspect
    shares = torch.stack(shares)
    assert 0.08 < shares.min() < 0.15
    assert 0.55 < shares.max() < 0.65
    assert abs(shares.mean() - 0.35) < 0.03


def test_cutmix_reaches_every_pixel_and_every_other_row():
    x = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 6, 6)
    g, reached, partners = seeded(), torch.zeros(6, 6), torch.zeros(5, 5)
    for _ in range(300):
        y = cutmix(x, generator=g)
        reached += (y != x).float().sum((0, 1))
        for i in range(5):
            partners[i, y[i][y[i] != i].long()[0]] += 1
    assert (reached > 0).all()
    assert (partners.diagonal() == 0).all()
    check_uniform(partners[~torch.eye(5, dtype=torch.bool)])


def test_cutmix_needs_a_second_row():
    with pytest.raises(ConfigError, match="another row"):
        cutmix(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_other_row_is_uniform_over_the_rest(n):
    drawn = torch.stack([other_row(n, torch.device("cpu"), seeded(s)) for s in range(500)])
    counts = torch.stack([column.bincount(minlength=n) for column in drawn.T])
    assert (counts.diagonal() == 0).all()
    for i in range(n):
        others = torch.cat([counts[i, :i], counts[i, i + 1 :]])
        if n > 2:
            check_uniform(others)


# blur, jitter, noise


def test_blur_of_a_point_is_a_gaussian_of_the_drawn_width():
    x = torch.zeros(300, 1, 41, 31, dtype=torch.float64)
    x[:, 0, 20, 15] = 1
    y = gaussian_blur(x, sigma=(0.7, 2.0), generator=seeded())[:, 0]
    torch.testing.assert_close(y.sum((1, 2)), torch.ones(300).double())
    widths = [
        (y.sum(axis) * (torch.arange(size) - size // 2) ** 2).sum(1).sqrt()
        for axis, size in ((2, 41), (1, 31))
    ]
    torch.testing.assert_close(widths[0], widths[1], rtol=1e-6, atol=1e-6)
    assert 0.69 < widths[0].min() < 0.75
    assert 1.95 < widths[0].max() < 2.01


def test_blur_keeps_a_constant_image_and_mixes_no_channels():
    x = torch.tensor([0.3, -2.0]).reshape(1, 2, 1, 1).repeat(6, 1, 9, 5)
    torch.testing.assert_close(gaussian_blur(x), x)


def test_jitter_is_affine_per_channel_and_never_slight():
    x = normal(500, 3, 4, 4, dtype=torch.float64)
    y = color_jitter(x, contrast=0.4, brightness=0.2, generator=seeded())
    scale = (y[..., 0, 0] - y[..., 1, 1]) / (x[..., 0, 0] - x[..., 1, 1])
    shift = y[..., 0, 0] - scale * x[..., 0, 0]
    torch.testing.assert_close(scale[..., None, None] * x + shift[..., None, None], y)
    for value, size in ((scale - 1, 0.4), (shift, 0.2)):
        assert (value.abs() >= size / 2 - 1e-9).all()
        assert (value.abs() <= size + 1e-9).all()
        assert abs((value > 0).double().mean() - 0.5) < 0.05
        check_uniform(torch.histc(value.abs(), 5, size / 2, size))


def test_noise_has_the_asked_size_and_no_mean():
    x = normal(200, 2, 8, 8, dtype=torch.float64)
    noise = additive_noise(x, std=0.3, generator=seeded()) - x
    assert abs(noise.std() - 0.3) < 0.01
    assert abs(noise.mean()) < 0.01


# wrong options


@pytest.mark.parametrize(
    ("transform", "options", "message"),
    [
        (crop_resize, {"side": (0.9, 0.6)}, "low <= high"),
        (crop_resize, {"side": (0.5, 1.0)}, "side"),
        (crop_resize, {"side": (0.0, 0.5)}, "side"),
        (crop_resize, {"side": 0.5}, "low, high"),
        (crop_resize, {"side": (math.nan, 0.5)}, "side is nan"),
        (cutmix, {"area": (0.5, 1.5)}, "area"),
        (cutmix, {"area": ("a", "b")}, "area"),
        (gaussian_blur, {"sigma": (0.0, 1.0)}, "sigma"),
        (gaussian_blur, {"sigma": (1.0, math.inf)}, "sigma"),
        (color_jitter, {"contrast": 1.0}, "contrast"),
        (color_jitter, {"brightness": -1}, "brightness"),
        (color_jitter, {"contrast": 0, "brightness": 0}, "changes nothing"),
        (additive_noise, {"std": 0}, "std"),
        (additive_noise, {"std": math.nan}, "std"),
    ],
)
def test_options_out_of_range_are_refused(transform, options, message):
    with pytest.raises(ConfigError, match=message):
        transform(normal(4, 3, 8, 8), **options)
