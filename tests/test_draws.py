"""Draws: the laws of time, couplings, label dropout and keyed generators."""

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor
from torch.testing import assert_close

from cfm_lite import draws
from cfm_lite.draws import (
    drop_labels,
    independent,
    keyed_generator,
    logit_normal_time,
    lognormal_time,
    minibatch_ot,
    uniform_time,
)
from cfm_lite.errors import ConfigError
from cfm_lite.paths import COSINE, LINEAR, VP, Path
from tests.reference import case

LAWS = {
    "uniform": uniform_time,
    "logit_normal": logit_normal_time,
    "lognormal_linear": lognormal_time,
    "lognormal_cosine": partial(lognormal_time, path=COSINE),
}
EVERY = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
COUPLINGS = pytest.mark.parametrize("couple", [independent, minibatch_ot])


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda path: path.name)
def test_lognormal_times_agree_with_repa_in_reversed_time(path: Path) -> None:
    reference = case("repa_siloss", f"lognormal_{path.name}")
    t = draws._lognormal_law(path)(reference["normal"])
    assert_close(t, 1 - reference["t"], atol=1e-10, rtol=1e-10)
    inside = t < 1 - 1e-6
    assert_close(
        (path.sigma(t) / path.alpha(t))[inside], reference["sigma"][inside], atol=1e-9, rtol=1e-9
    )


def logit(t: Tensor) -> Tensor:
    return torch.log(t / (1 - t))


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (uniform_time, lambda t: t),
        (logit_normal_time, lambda t: norm.cdf(logit(t))),
        (
            partial(logit_normal_time, mean=-0.7, std=1.6),
            lambda t: norm.cdf((logit(t) + 0.7) / 1.6),
        ),
        (lognormal_time, lambda t: norm.cdf(logit(t))),
        (
            partial(lognormal_time, path=COSINE),
            lambda t: 1 - norm.cdf(torch.log(torch.tan(math.pi / 2 * (1 - t)))),
        ),
    ],
    ids=[
        *("uniform", "logit_normal", "shifted_logit_normal"),
        *("lognormal_linear", "lognormal_cosine"),
    ],
)
def test_times_follow_their_law(
    law: Callable[..., Tensor], cdf: Callable[[Tensor], Tensor]
) -> None:
    t = law(20_000, generator=seeded()).double()
    assert kstest(t.numpy(), lambda values: np.asarray(cdf(torch.from_numpy(values)))).pvalue > 1e-3


@EVERY
def test_times_are_float32_in_the_unit_interval(law: Callable[..., Tensor]) -> None:
    t = law(100_000, generator=seeded())
    assert t.shape == (100_000,)
    assert t.dtype == torch.float32
    assert t.min() >= 0
    assert t.max() <= 1


def test_extreme_logit_normal_and_lognormal_times_stay_in_the_unit_interval() -> None:
    t = logit_normal_time(1000, mean=40, std=100, generator=seeded())
    assert (t.min(), t.max()) == (0, 1)
    for path in (LINEAR, COSINE):
        assert draws._lognormal_law(path)(torch.tensor([-200.0, 0.0, 200.0])).tolist() == [
            1,
            0.5,
            0,
        ]


@EVERY
def test_times_depend_on_the_generator_alone(law: Callable[..., Tensor]) -> None:
    state = torch.get_rng_state()
    assert torch.equal(law(16, generator=seeded()), law(16, generator=seeded()))
    assert not torch.equal(law(16, generator=seeded(3)), law(16, generator=seeded(4)))
    assert torch.equal(torch.get_rng_state(), state)


@EVERY
def test_without_a_generator_the_global_seed_decides(law: Callable[..., Tensor]) -> None:
    first = law(4)
    torch.manual_seed(0)
    assert torch.equal(law(4), first)
    assert torch.equal(law(1, device="cpu", generator=seeded()), law(1, generator=seeded()))


def test_zero_mean_logit_normal_is_the_mirrored_linear_lognormal() -> None:
    assert_close(
        logit_normal_time(64, generator=seeded()), 1 - lognormal_time(64, generator=seeded())
    )


@EVERY
@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_a_wrong_number_of_times_is_named(law: Callable[..., Tensor], n: object) -> None:
    with pytest.raises(ConfigError, match=f"n is {n!r}"):
        law(n)


@EVERY
def test_a_generator_on_another_device_is_named(law: Callable[..., Tensor]) -> None:
    with pytest.raises(ConfigError, match="generator is on cpu, device is meta"):
        law(4, generator=seeded(), device="meta")


def test_wrong_settings_of_a_time_law_are_named() -> None:
    with pytest.raises(ConfigError, match="std is 0"):
        logit_normal_time(4, std=0)
    with pytest.raises(ConfigError, match="mean is nan"):
        logit_normal_time(4, mean=math.nan)
    with pytest.raises(ConfigError, match="'vp'; it must be one of 'linear', 'cosine'"):
        lognormal_time(4, VP)
    with pytest.raises(ConfigError, match="None"):
        lognormal_time(4, None)  # pyright: ignore[reportArgumentType]


def test_independent_returns_what_it_got() -> None:
    x0, x1, y = torch.randn(3, 2), torch.randn(3, 2), torch.arange(3)
    assert all(now is then for now, then in zip(independent(x0, x1, y), (x0, x1, y)))
    assert independent(x0, x1)[2] is None


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_minibatch_ot_finds_the_best_of_all_pairings(shape: tuple[int, ...]) -> None:
    x0, x1 = torch.randn(5, *shape), torch.randn(5, *shape)

    def cost(noise: Tensor) -> Tensor:
        return (noise - x1).square().sum()

    paired, _, _ = minibatch_ot(x0, x1)
    best = min((x0[list(order)] for order in permutations(range(5))), key=cost)
    assert torch.equal(paired, best)


def test_minibatch_ot_on_a_line_sorts_the_noise_like_the_data() -> None:
    x0, x1 = torch.randn(64, 1), torch.randn(64, 1)
    paired, _, _ = minibatch_ot(x0, x1)
    assert torch.equal(paired[x1[:, 0].argsort(), 0], x0[:, 0].sort().values)


def test_minibatch_ot_is_not_misled_by_a_large_offset() -> None:
    x0, x1 = torch.randn(32, 2), torch.randn(32, 2)
    paired, _, _ = minibatch_ot(x0, x1)
    moved, _, _ = minibatch_ot(x0.double() + 1e5, x1.double() - 1e5)
    assert_close(moved - 1e5, paired.double(), atol=1e-9, rtol=0)


def test_minibatch_ot_permutes_noise_and_leaves_data_and_labels_in_place() -> None:
    x0, x1, y = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3), torch.arange(8)
    before = x0.detach().clone()
    paired, data, labels = minibatch_ot(x0, x1, y)
    assert data is x1
    assert labels is y
    assert torch.equal(x0.detach(), before)
    assert sorted(paired.tolist()) == sorted(x0.tolist())
    assert paired.requires_grad


@COUPLINGS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_couplings_keep_the_type_and_accept_a_batch_of_one(
    couple: Callable[..., tuple], dtype: torch.dtype
) -> None:
    state = torch.get_rng_state()
    x0, x1, y = couple(
        torch.ones(1, 2, dtype=dtype), torch.zeros(1, 2, dtype=dtype), torch.tensor([3])
    )
    assert (x0.dtype, x1.dtype, y.tolist()) == (dtype, dtype, [3])
    assert torch.equal(torch.get_rng_state(), state)


@COUPLINGS
@pytest.mark.parametrize(
    ("x0", "x1", "y", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), None, r"x0 \(2, 3\), x1 \(2, 4\)"),
        (torch.zeros(0, 3), torch.zeros(0, 3), None, "at least 1"),
        (torch.tensor(0.0), torch.tensor(0.0), None, r"shape \(\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), None, "int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3).long(), r"y is \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), [0, 1], "y is list"),
    ],
)
def test_wrong_pairs_are_named(
    couple: Callable[..., tuple], x0: Tensor, x1: Tensor, y: Tensor | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        couple(x0, x1, y)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_minibatch_ot_refuses_values_without_a_distance(bad: float) -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        minibatch_ot(x, torch.full((3, 2), bad))


def test_labels_are_dropped_with_the_given_probability() -> None:
    y = torch.zeros(100_000, dtype=torch.int64)
    dropped = (drop_labels(y, 0.1, 10, generator=seeded()) == 10).double().mean()
    assert abs(dropped - 0.1) < 4 * math.sqrt(0.09 / 100_000)


def test_dropping_no_labels_or_all_of_them() -> None:
    y = torch.arange(10).repeat(20)
    assert torch.equal(drop_labels(y, 0.0, 10), y)
    assert drop_labels(y, 0.0, 10) is not y
    assert (drop_labels(y, 1.0, 10) == 10).all()


def test_dropping_labels_changes_nothing_but_the_result() -> None:
    y, state = torch.arange(10).repeat(20).int(), torch.get_rng_state()
    before = y.clone()
    dropped = drop_labels(y, 0.5, 10, generator=seeded())
    assert torch.equal(y, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        dropped.dtype == torch.int64
    )  # whatever the labels were: a narrow kind may not hold the null label
    assert torch.equal(dropped[dropped != 10], y[dropped != 10])
    assert torch.equal(dropped, drop_labels(y, 0.5, 10, generator=seeded()))


@pytest.mark.parametrize(
    ("y", "p", "null", "says"),
    [
        (torch.tensor([0, 11]), 0.1, 10, r"\[0, 11\].*\[0, 10\]"),
        (torch.tensor([-1, 2]), 0.1, 10, r"\[-1, 2\]"),
        (torch.zeros(2), 0.1, 10, "float32.*integers"),
        (torch.zeros(2, dtype=torch.bool), 0.1, 10, "bool"),
        (torch.zeros(2, 1).long(), 0.1, 10, r"shape \(2, 1\)"),
        (torch.tensor(1), 0.1, 10, r"shape \(\)"),
        ([0, 1], 0.1, 10, "type list"),
        (torch.tensor([0]), -0.1, 10, r"p is -0.1.*\[0, 1\]"),
        (torch.tensor([0]), 1.5, 10, "p is 1.5"),
        (torch.tensor([0]), math.nan, 10, "p is nan"),
        (torch.tensor([0]), 0.1, 0, "null is 0"),
        (torch.tensor([0]), 0.1, None, "null is None"),
    ],
)
def test_wrong_label_dropout_is_named(y: Tensor, p: float, null: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        drop_labels(y, p, null)


# Python's own hash() differs between processes; these numbers must not.
PINNED = [0.434349954422237, 0.5904931674635788, 0.14111526024066967]


def test_a_keyed_generator_is_the_same_in_every_process() -> None:
    generator = keyed_generator("cpu", 0, 7, 3, "noise")
    assert generator.initial_seed() == 769819414062990983
    assert torch.rand(3, generator=generator, dtype=torch.float64).tolist() == PINNED


def test_keyed_generators_of_different_keys_differ() -> None:
    keys = [
        (0, 1, 2),
        (0, 2, 1),
        (0, 12),
        (1, 2),
        (0, 1, "2"),
        (0, 1),
        (),
        ("noise",),
        ("time",),
        (-1,),
    ]
    keys += [
        (0, step, shard, what)
        for step in range(20)
        for shard in range(20)
        for what in ("noise", "time")
    ]
    assert len(
        {
            torch.rand(1, generator=keyed_generator("cpu", *key), dtype=torch.float64).item()
            for key in keys
        }
    ) == len(keys)


def test_keyed_generators_of_neighbouring_keys_are_independent() -> None:
    first = torch.stack(
        [torch.randn(8, generator=keyed_generator("cpu", 0, step, "noise")) for step in range(4000)]
    )
    assert_close(first.T @ first / 4000, torch.eye(8), atol=0.08, rtol=0)
    assert abs((first[1:] * first[:-1]).mean()) < 0.03
    assert kstest(first.flatten().numpy(), "norm").pvalue > 1e-3


def test_a_keyed_generator_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    assert keyed_generator(None, 1).device == torch.device("cpu")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("part", [1.0, None, torch.tensor([1]), (1, 2)])
def test_a_key_of_unstable_text_is_refused(part: object) -> None:
    with pytest.raises(ConfigError, match="must be an int or a str"):
        keyed_generator("cpu", 0, part)  # pyright: ignore[reportArgumentType]


def test_no_value_is_read_back_from_a_device() -> None:
    """Tensors on the meta device have no values: any reading of one would raise."""
    assert all(law(4, device="meta").is_meta for law in LAWS.values())
    assert drop_labels(torch.zeros(4, dtype=torch.int64, device="meta"), 0.1, 10).is_meta


@pytest.mark.gpu
def test_draws_land_on_the_device_of_their_generator() -> None:
    generator = keyed_generator("cuda", 1, "time")
    assert all(law(4, generator=generator).device.type == "cuda" for law in LAWS.values())
    x = torch.randn(6, 2, device="cuda")
    assert minibatch_ot(x, x.flip(0))[0].device.type == "cuda"
    y = torch.arange(4, device="cuda")
    assert drop_labels(y, 0.5, 4, generator=generator).device.type == "cuda"
    assert drop_labels(y, 0.5, 4, generator=seeded()).device.type == "cuda"


@pytest.mark.parametrize("labels", [np.array([3, 7]), torch.tensor([3, 7]), 3, None, ["turn"]])
def test_labels_that_are_no_word_are_refused(labels):
    with pytest.raises(ConfigError, match="it must be turn, random, or classes"):
        draws.class_labels(labels, 10, 4)
    with pytest.raises(ConfigError, match="it must be turn, random, or classes"):
        draws.check_labels_word(labels)
