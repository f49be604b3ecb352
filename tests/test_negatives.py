"""negatives.py: the laws of DeltaFM's draws (chi-square), the three spaces of VeCoR, batches
without a negative, wrong arguments.
"""

import dataclasses
import functools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from cfm_lite import paths
from cfm_lite.draws import logit_normal_time, lognormal_time
from cfm_lite.errors import ConfigError
from cfm_lite.losses import repulsion, vecor
from cfm_lite.negatives import (
    Perturbed,
    in_batch,
    in_batch_mean,
    other_class,
    other_condition,
    perturbed,
)
from cfm_lite.paths import COSINE, LINEAR, VP, FlowSample
from cfm_lite.perturbations import channel_shuffle, cutmix
from tests.reference import case, cases, settings


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample_of(n, *dims, y=None, path=LINEAR, dtype=torch.float64):
    g = seeded(5)
    x0, x1 = (torch.randn(n, *dims, generator=g, dtype=dtype) for _ in range(2))
    t = torch.rand(n, generator=g, dtype=dtype)
    return FlowSample(
        x0, x1, t, *path.interpolate(x0, x1, t), None if y is None else torch.as_tensor(y)
    )


def numbered(n, y=None):
    """A sample whose velocity is its row number, so that a negative tells where it comes from."""
    s = sample_of(n, 1, y=y)
    return s._replace(u_t=torch.arange(n).double()[:, None])


def counts_of(draw, n, repeats=400):
    counts = torch.zeros(n, n, dtype=torch.float64)
    g = seeded(11)
    for _ in range(repeats):
        u_neg = draw(generator=g)
        u_neg = u_neg[0] if isinstance(u_neg, tuple) else u_neg
        counts[torch.arange(n), u_neg[:, 0].long()] += 1
    return counts


def check_law(counts, probabilities, p=1e-4):
    """Chi-square of each row of counts against its probabilities; a count where the probability is
    0 fails at once.
    """
    assert (counts[probabilities == 0] == 0).all()
    expected = counts.sum(1, keepdim=True) * probabilities
    allowed = probabilities > 0
    statistic = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum()
    freedom = int(allowed.sum() - len(counts))
    assert statistic <= (chi2.ppf(1 - p, freedom) if freedom else 0)


# another row


@pytest.mark.parametrize("n", [2, 3, 6])
def test_in_batch_is_uniform_over_the_other_rows(n):
    uniform = (1 - torch.eye(n, dtype=torch.float64)) / (n - 1)
    check_law(counts_of(functools.partial(in_batch, numbered(n)), n), uniform)


def test_in_batch_draws_rows_independently():
    drawn = torch.stack([in_batch(numbered(3), generator=seeded(s))[:, 0] for s in range(800)])
    offsets = ((drawn - torch.arange(3)) % 3).long() - 1  # 0 or 1 for each row
    combinations = (offsets @ torch.tensor([4, 2, 1])).bincount(minlength=8).double()
    check_law(combinations[None], torch.full((1, 8), 1 / 8, dtype=torch.float64))


@pytest.mark.parametrize("name", cases("deltafm_triplet", "random_"))
def test_deltafm_negatives_are_offsets_from_one_to_batch_minus_one(name, monkeypatch):
    f, u = case("deltafm_triplet", name), case("deltafm_triplet", "inputs")["target"]
    i, r = torch.arange(6), f["raw_draw"]
    assert torch.equal(r + (r >= i), f["neg_idx"])  # the official draw skips the row itself
    offset = (f["neg_idx"] - i) % 6
    monkeypatch.setattr(
        torch,
        "randint",
        lambda low, high, size, **_: offset if (low, high, size) == (1, 6, (6,)) else None,
    )
    assert torch.equal(in_batch(sample_of(6, 4, 4, 4)._replace(u_t=u)), u[f["neg_idx"]])


def test_each_negative_keeps_its_own_time():
    s = sample_of(8, 3, path=COSINE)
    u_neg = in_batch(s, generator=seeded())
    assert all((row == s.u_t).all(1).any() for row in u_neg)


@pytest.mark.parametrize("path", [LINEAR, COSINE, VP], ids=lambda path: path.name)
@pytest.mark.parametrize(
    "time",
    [
        functools.partial(logit_normal_time, mean=-1.5),
        functools.partial(logit_normal_time, mean=0.5, std=0.5),
        lognormal_time,
    ],
    ids=["towards noise", "towards data", "lognormal"],
)
def test_the_mean_of_in_batch_follows_the_times_of_the_objective(time, path):
    if time is lognormal_time and path is VP:
        with pytest.raises(ConfigError, match="path"):
            in_batch_mean(torch.ones(1), path, time)
        return
    x1, g = torch.ones(400_000, 1), seeded()
    follow = {"path": path} if time is lognormal_time else {}
    t = time(len(x1), generator=g, **follow).clamp(max=path.train_end)
    u = path.interpolate(torch.randn(len(x1), 1, generator=g), x1, t)[1]
    tolerance = 5 * float(u.std()) / len(u) ** 0.5
    torch.testing.assert_close(
        in_batch_mean(torch.ones(1), path, time), u.mean(0), atol=tolerance, rtol=0
    )


def test_the_mean_of_in_batch_keeps_its_bits_where_d_alpha_is_one():
    mean = torch.randn(5)
    assert torch.equal(in_batch_mean(mean, LINEAR, lognormal_time), mean)
    with pytest.raises(ConfigError, match="quantiles are not known; use uniform_time"):
        in_batch_mean(mean, COSINE, lambda n, **how: torch.zeros(n))
    with pytest.raises(ConfigError, match=r"path of time is 'linear' and .* 'cosine'"):
        in_batch_mean(mean, COSINE, functools.partial(lognormal_time, path=LINEAR))


def test_in_batch_of_one_keeps_nothing_and_warns_once():
    s = sample_of(1, 3)
    with pytest.warns(UserWarning, match="batch of one"):
        u_neg, keep = in_batch(s)
    in_batch(s)  # a second warning would be an error here
    assert torch.equal(u_neg, s.u_t)
    assert keep.tolist() == [False]
    assert repulsion(torch.ones_like(s.u_t), u_neg, keep) == 0


def test_in_batch_is_linear_in_the_batch():
    s = sample_of(65_536, 1)
    assert in_batch(s, generator=seeded()).shape == (
        65_536,
        1,
    )  # a B x B matrix of int64 would be 32 GiB
    y = torch.arange(65_536) % 1000
    _, keep = other_class(s._replace(y=y), generator=seeded())
    assert keep.all()


# another class


def test_other_class_has_the_law_of_deltafm():
    labels = case("deltafm_triplet", "inputs")[
        settings("deltafm_triplet")["class_conditioned_lam0.05_excl0_with_null"]["labels"]
    ]
    official = case("deltafm_triplet", "class_conditioned_probs")["probs"]
    assert (labels == 5).any()  # the null label, a class like any other
    check_law(counts_of(functools.partial(other_class, numbered(6, labels)), 6), official)


@pytest.mark.parametrize(
    "y", [[0, 0, 0, 1], [3, 1, 2, 0], [7, 7, 2, 2, 7, 9, 2, 1], [0, 1], [2**40, 0, 2**40, 5]]
)
def test_other_class_is_uniform_over_the_rows_of_other_classes(y):
    y = torch.tensor(y)
    different = (y[:, None] != y).double()
    check_law(
        counts_of(functools.partial(other_class, numbered(len(y), y)), len(y)),
        different / different.sum(1, keepdim=True),
    )


@pytest.mark.parametrize("y", [[4], [4, 4, 4]])
def test_without_another_class_nothing_is_kept(y):
    s = sample_of(len(y), 2, y=y)
    u_neg, keep = other_class(s, generator=seeded())
    assert u_neg.shape == s.u_t.shape
    assert not keep.any()
    v = torch.ones_like(s.u_t, requires_grad=True)
    loss = repulsion(v, u_neg, keep, rescale=True)
    loss.backward()
    assert loss == 0
    assert torch.equal(v.grad, torch.zeros_like(v))


def test_other_class_keeps_every_row_once_a_second_class_is_there():
    for seed in range(200):
        y = torch.randint(0, 3, (5,), generator=seeded(seed))
        u_neg, keep = other_class(numbered(5, y), generator=seeded(seed))
        assert (keep == (y != y[0]).any()).all()
        chosen = y[u_neg[:, 0].long()]
        assert (chosen[keep] != y[keep]).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_labels_of_any_integer_type_will_do(dtype):
    _, keep = other_class(numbered(3, torch.tensor([0, 1, 1], dtype=dtype)), generator=seeded())
    assert keep.all()


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(3),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.tensor([0, -1, 2]),
        [0, 1, 2],
        np.zeros(3),
    ],
)
def test_labels_of_a_wrong_kind_are_refused(y):
    with pytest.raises(ConfigError, match=r"y has|labels span"):
        other_class(numbered(3)._replace(y=y))


def test_labels_may_be_whole_numbers_of_numpy():
    given = numbered(3)._replace(y=np.array([0, 1, 1]))
    assert other_class(given, generator=seeded())[1].all()
    assert other_condition(given, generator=seeded())[0].tolist() == [1, 0, 0]


def test_other_class_without_labels_says_what_to_do():
    with pytest.raises(ConfigError, match=r"y=None.*in_batch"):
        other_class(sample_of(4, 2))


# perturbed velocities


class Halving:
    """A codec whose image is twice the latent; the perturbation in between tells both sides apart."""

    def decode(self, z):
        return 2 * z

    def encode(self, x):
        return x / 2


def shift(x, *, generator=None):
    return x + 1 + torch.rand(len(x), *[1] * (x.dim() - 1), generator=generator, dtype=x.dtype)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda path: path.name)
def test_each_space_is_its_definition(path):
    s = sample_of(5, 3, 4, 4, path=path)
    drawn = 1 + torch.rand(5, 1, 1, 1, generator=seeded(), dtype=torch.float64)

    def make(space, codec=None):
        return perturbed(shift, space=space, path=path, codec=codec)(s, generator=seeded())

    torch.testing.assert_close(make("velocity"), s.u_t + drawn)
    torch.testing.assert_close(make("latent"), path.interpolate(s.x0, s.x1 + drawn, s.t)[1])
    torch.testing.assert_close(
        make("image", Halving()), path.interpolate(s.x0, s.x1 + drawn / 2, s.t)[1]
    )
    with pytest.warns(UserWarning, match="acts like space='latent'"):
        same = make("image")
    assert torch.equal(same, make("latent"))
    assert torch.equal(same, make("image"))  # said once: a second warning would be an error here


@pytest.mark.parametrize("space", ["velocity", "latent"])
def test_a_codec_that_a_space_does_not_read_is_refused(space):
    with pytest.raises(ConfigError, match=f"space is '{space}', which reads none"):
        perturbed(channel_shuffle, space=space, codec=Halving())


class Normed(torch.nn.Module):
    """A codec whose numbers depend on its mode."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3).double()
        self.drop = torch.nn.Dropout(0.5)

    def decode(self, z):
        return self.norm(z)

    def encode(self, x):
        return self.drop(x)


def test_a_codec_in_training_mode_is_asked_in_evaluation_mode_and_learns_nothing():
    s, codec = sample_of(5, 3, 4, 4), Normed()
    negatives = perturbed(shift, space="image", codec=codec)
    u_neg = negatives(s, generator=seeded())
    assert codec.norm.num_batches_tracked == 0
    assert codec.training
    codec.eval()
    assert torch.equal(u_neg, negatives(s, generator=seeded()))


@pytest.mark.parametrize(("mine", "named"), [(COSINE, LINEAR), (COSINE, None), (LINEAR, VP)])
def test_negatives_of_another_path_than_the_sample_are_refused(mine, named):
    s = sample_of(5, 3, path=mine)
    with pytest.raises(ConfigError, match=f"does not lie on the path '{(named or LINEAR).name}'"):
        perturbed(channel_shuffle, space="latent", path=named)(s)
    assert perturbed(channel_shuffle, space="latent", path=mine)(s).shape == (5, 3)


def test_velocity_space_perturbs_the_noise_too():
    # a linear A on the linear path: A(x1 - x0) - (A x1 - x0) = x0 - A x0
    s = sample_of(6, 4, 3, 3)
    velocity, latent = (
        perturbed(channel_shuffle, space=space)(s, generator=seeded())
        for space in ("velocity", "latent")
    )
    torch.testing.assert_close(velocity - latent, s.x0 - channel_shuffle(s.x0, generator=seeded()))
    assert (velocity - s.u_t).norm() > (latent - s.u_t).norm()


def test_k_negatives_are_independent_draws():
    s = sample_of(6, 4, 3, 3)
    negatives = perturbed(channel_shuffle, k=3)
    u_neg = negatives(s, generator=seeded())
    assert u_neg.shape == (3, *s.u_t.shape)
    assert negatives.k == 3
    g = seeded()
    assert torch.equal(u_neg, torch.stack([channel_shuffle(s.u_t, generator=g) for _ in range(3)]))
    assert not torch.equal(u_neg[0], u_neg[1])
    assert perturbed(channel_shuffle)(s, generator=seeded()).shape == s.u_t.shape
    assert (
        vecor(s.u_t, s.u_t, u_neg, 0.1) < 0
    )  # the truth is as far from wrong as it can be, for free


def test_a_perturbation_carries_no_gradient_and_mutates_nothing():
    s = sample_of(6, 4, 3, 3)
    s.x1.requires_grad_()
    copies = [x.detach().clone() for x in s[:5]]
    for negatives in (perturbed(cutmix, space="latent"), perturbed(channel_shuffle), in_batch):
        assert not negatives(s, generator=seeded()).requires_grad
    assert all(torch.equal(x, copy) for x, copy in zip(s[:5], copies))


def test_perturbed_is_a_frozen_description():
    negatives = perturbed(channel_shuffle, space="latent", path=COSINE, k=2)
    assert isinstance(negatives, Perturbed)
    assert negatives == perturbed(channel_shuffle, space="latent", path=COSINE, k=2)
    assert (negatives.space, negatives.path, negatives.k, negatives.codec) == (
        "latent",
        paths.COSINE,
        2,
        None,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        negatives.k = 3  # pyright: ignore[reportAttributeAccessIssue]
    options = perturbed(functools.partial(channel_shuffle, per_sample=False))(
        sample_of(6, 4), generator=seeded()
    )
    assert options.shape == (6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "pixel"}, "space is 'pixel'; it must be one of 'velocity', 'latent', 'image'"),
        ({"space": "Velocity"}, "Did you mean 'velocity'"),
        ({"k": 0}, "k is 0"),
        ({"k": 1.5}, "k is 1.5"),
        ({"k": True}, "k is True"),
        ({"path": "linear"}, "path is 'linear'"),
        ({"space": "image", "codec": object()}, "encode and decode"),
        ({"codec": math}, "encode and decode"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(options, message):
    with pytest.raises(ConfigError, match=message):
        perturbed(channel_shuffle, **options)


def test_a_transform_that_is_none_or_changes_the_shape_is_refused():
    with pytest.raises(ConfigError, match="transform is 'shuffle'"):
        perturbed("shuffle")  # pyright: ignore[reportArgumentType]
    for space in ("velocity", "latent"):
        with pytest.raises(ConfigError, match=r"perturbed \(4, 2\)"):
            perturbed(lambda x, generator=None: x[:, :2], space=space)(sample_of(4, 3))


# for all


def draws():
    return [
        in_batch,
        other_class,
        perturbed(channel_shuffle),
        perturbed(channel_shuffle, space="latent", k=2),
    ]


@pytest.mark.parametrize("negatives", draws())
def test_generator_decides_alone(negatives):
    s = sample_of(32, 3, y=torch.arange(32) % 4)
    state = torch.get_rng_state()
    first, again, other = (negatives(s, generator=seeded(seed)) for seed in (1, 1, 2))
    first, again, other = (x[0] if isinstance(x, tuple) else x for x in (first, again, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("negatives", draws())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(negatives, dtype):
    u_neg = negatives(sample_of(8, 3, y=torch.arange(8) % 4, dtype=dtype), generator=seeded())
    assert (u_neg[0] if isinstance(u_neg, tuple) else u_neg).dtype == dtype


@pytest.mark.parametrize("negatives", draws())
def test_nothing_is_read_back_from_a_device(negatives):
    s = sample_of(4, 3, y=torch.arange(4))
    meta = FlowSample(*(x.to("meta") for x in s))  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        negatives(meta)  # reading a meta tensor raises
    with pytest.raises(ConfigError, match="generator is on cpu"):
        negatives(meta, generator=seeded())
