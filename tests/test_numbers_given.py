"""Numbers and labels of every kind: NumPy's, tensors', and integers of 8 to 64 bits mean what
Python's mean.
"""

import json
import math
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from cfm_lite import draws, guidance, metrics, negatives, objective, samplers
from cfm_lite._internal.checks import check_count, check_flag, check_labels, check_number, promote
from cfm_lite.data.batches import batches, row_numbers
from cfm_lite.errors import ConfigError
from cfm_lite.models import MLP, SiT, export_official, load_official
from cfm_lite.paths import LINEAR, FlowSample
from cfm_lite.runs.recipe import Recipe
from cfm_lite.training import Trainer
from tests.networks import Tiny, same_parameters

X1 = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(24) % 3
THREES = [
    np.int64(3),
    np.uint8(3),
    np.array(3),
    torch.tensor(3),
    torch.tensor(3, dtype=torch.int16),
]
INTEGERS = [
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]


@pytest.mark.parametrize(
    ("low", "high", "how", "words"),
    [
        (-math.inf, math.inf, {}, "a finite number"),
        (0, math.inf, {}, "a finite number of at least 0"),
        (0.2, math.inf, {"open_low": True, "open_high": True}, "a finite number above 0.2"),
        (-math.inf, 1, {}, "a finite number of at most 1"),
        (-math.inf, 1, {"open_high": True}, "a finite number below 1"),
        (0, 1, {}, "a number in [0, 1]"),
        (0, 1, {"open_low": True, "open_high": True}, "a number in (0, 1)"),
    ],
)
def test_what_a_number_may_be_is_said_in_words(low, high, how, words):
    for wrong in (math.nan, math.inf, "x"):
        with pytest.raises(ConfigError, match=f"it must be {re.escape(words)}\\.$"):
            check_number("n", wrong, low, high, **how)


@pytest.mark.parametrize("three", THREES)
def test_a_whole_number_of_any_library_is_that_number(three):
    assert type(check_count("n", three)) is int
    assert check_count("n", three) == 3
    assert check_number("n", three, 0, 9) == 3.0


@pytest.mark.parametrize(
    "number",
    [
        True,
        np.True_,
        torch.tensor(True),
        np.array([3]),
        torch.tensor([3]),
        3.0,
        torch.tensor(3.0),
        "3",
        None,
    ],
)
def test_what_is_no_whole_number_is_refused_by_name(number):
    with pytest.raises(ConfigError, match="steps is"):
        check_count("steps", number)


def test_numbers_and_flags_of_numpy_count_and_its_flags_are_no_numbers():
    assert (
        check_number("w", np.float32(0.5), 0, 1)
        == check_number("w", torch.tensor(0.5), 0, 1)
        == 0.5
    )
    check_flag(on=np.True_)
    for value in (np.True_, torch.tensor(False), np.array([0.5])):
        with pytest.raises(ConfigError, match="w is"):
            check_number("w", value, 0, 1)


@pytest.mark.parametrize("three", THREES)
def test_seeds_of_any_library_draw_the_same(three):
    assert (
        draws.keyed_generator("cpu", three, "a").initial_seed()
        == draws.keyed_generator("cpu", 3, "a").initial_seed()
    )
    assert torch.equal(
        next(row_numbers(9, size=three, seed=three, start=three)),
        next(row_numbers(9, size=3, seed=3, start=3)),
    )


def test_a_run_of_numpy_numbers_is_the_run_of_the_same_numbers_and_can_be_saved_and_resumed(
    tmp_path,
):
    def build(n, x):
        built = objective.delta_fm(Tiny(), x(0.125), label_dropout=x(0.5), shard=n(8)).plus(
            objective.Dispersive(x(0.5), block=n(1))
        )
        return Trainer(
            built,
            lr=x(0.0078125),
            clip=x(0.5),
            ema_decay=x(0.75),
            seed=n(4),
            accumulate=n(2),
            log_every=n(2),
            runaway=x(20.0),
        )

    runs = [build(int, float), build(np.int64, np.float32), build(np.array, torch.tensor)]
    for trainer in runs:
        list(trainer.run(batches(X1, Y, size=16, seed=trainer.seed), np.int32(3)))
    for number, trainer in enumerate(runs[1:]):
        assert same_parameters(runs[0].objective, trainer.objective)
        trainer.save(tmp_path / str(number), keep=np.int64(2))
        assert build(int, float).resume(tmp_path / str(number)).step == 3


def test_a_recipe_of_numpy_numbers_is_the_same_recipe_and_can_be_written():
    recipe = Recipe(
        steps=np.int64(7),
        weight=np.float64(0.25),
        k=torch.tensor(2),
        seed=np.uint8(3),
        lr=torch.tensor(0.5),
        guidance=np.array(2),
    )
    assert json.dumps(recipe.as_dict()) == json.dumps(
        Recipe(steps=7, weight=0.25, k=2, seed=3, lr=0.5, guidance=2).as_dict()
    )


def test_networks_of_numpy_sizes_are_built_and_say_their_sizes_as_plain_numbers():
    mlp = MLP((np.int64(1), 2), np.int64(8), np.int32(2), torch.tensor(3))
    sit = SiT(
        np.int64(4),
        np.int64(2),
        np.int64(1),
        np.int64(8),
        np.int64(1),
        np.int64(2),
        num_classes=np.int64(3),
        mlp_ratio=np.float32(2),
    )
    assert (
        json.loads(json.dumps(mlp.config))["hidden_size"]
        == json.loads(json.dumps(sit.config))["hidden_size"]
        == 8
    )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_every_integer_kind_are_those_labels(dtype):
    y = Y.to(dtype)
    expected = objective.delta_fm(Tiny(), negatives=negatives.other_class, label_dropout=0.5).at(
        0, 1
    )(X1, Y)[0]
    assert torch.equal(
        objective.delta_fm(Tiny(), negatives=negatives.other_class, label_dropout=0.5).at(0, 1)(
            X1, y
        )[0],
        expected,
    )
    ts = torch.linspace(0, 1, 3)
    for guided in (
        lambda y: guidance.conditional(Tiny(), y),
        lambda y: guidance.cfg(Tiny(), y, 2.0),
    ):
        assert torch.equal(samplers.sample(guided(y), X1, ts), samplers.sample(guided(Y), X1, ts))
    assert metrics.accuracy(torch.eye(3)[Y], y) == 1
    assert torch.equal(next(batches(X1, y, size=5))[1], next(batches(X1, Y, size=5))[1])
    assert torch.equal(MLP(2, 8, 2, 3)(X1, torch.full((24,), 0.5), y), torch.zeros(24, 2))


@pytest.mark.parametrize(
    ("dtype", "null"), [(torch.uint8, 256), (torch.int8, 128), (torch.uint16, 65536)]
)
def test_a_null_label_that_does_not_fit_into_the_labels_kind_is_still_the_null_label(dtype, null):
    y = torch.tensor([0, null - 1]).to(dtype)
    assert draws.drop_labels(y, 1.0, null).tolist() == [null, null]
    seen = []

    class Spy(torch.nn.Module):
        num_classes = null

        def forward(self, x, t, y=None):
            seen.append(y.tolist())
            return x

    guidance.cfg(Spy(), y, 2.0)(X1[:2], torch.zeros(2))
    assert seen == [[0, null - 1, null, null]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_in_an_array_are_labels(dtype):
    y = Y.numpy().astype(dtype)
    assert torch.equal(
        objective.fm(Tiny()).at(0, 1)(X1, y)[0], objective.fm(Tiny()).at(0, 1)(X1, Y)[0]
    )
    x, t = X1, torch.full((24,), 0.5)
    assert torch.equal(guidance.conditional(Tiny(), y)(x, t), guidance.conditional(Tiny(), Y)(x, t))


@pytest.mark.parametrize(
    "y",
    [
        Y > 0,
        Y.float(),
        Y.to(torch.complex64),
        Y.numpy() > 0,
        Y.tolist(),
        torch.full((24,), -1).to(torch.uint64),
    ],
)
def test_what_are_no_labels_is_refused(y):
    with pytest.raises(ConfigError, match=r"y has|labels span"):
        check_labels(y, X1, 2)
    with pytest.raises(ConfigError, match=r"y has|labels span"):
        objective.fm(Tiny())(X1, y)


def test_negatives_of_a_sample_know_unsigned_labels():
    t = torch.full((24,), 0.5)
    x0 = torch.zeros_like(X1)
    sample = FlowSample(x0, X1, t, *LINEAR.interpolate(x0, X1, t), Y.to(torch.uint32))
    u, keep = negatives.other_class(sample, generator=torch.Generator().manual_seed(0))
    assert keep.all()
    assert u.shape == X1.shape


FLOATS = sorted(
    (
        d
        for d in vars(torch).values()
        if isinstance(d, torch.dtype) and d.is_floating_point and d.itemsize < 4
    ),
    key=str,
)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_shorter_floating_type_becomes_float32(dtype):
    if "fn_x2" in str(dtype):
        return  # two numbers in a byte: torch itself cannot read them
    assert promote(torch.ones(2).to(dtype)).tolist() == [1.0, 1.0]
    assert promote(torch.ones(2).to(dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]
)
def test_official_weights_of_every_floating_type_become_a_network_of_float32(dtype, tmp_path):
    sit = SiT(
        input_size=4,
        patch_size=2,
        in_channels=1,
        hidden_size=8,
        depth=1,
        num_heads=2,
        num_classes=3,
    )
    state = {name: value.to(dtype) for name, value in export_official(sit, format="sit").items()}
    safetensors.torch.save_file(state, tmp_path / "sit.safetensors")
    torch.save(state, tmp_path / "sit.pt")
    for source in (state, tmp_path / "sit.safetensors", tmp_path / "sit.pt"):
        model = load_official(source, format="sit", num_heads=2)
        # a state dict in float64 was made so by its owner; a file only tells how it was saved
        wide = source is state and dtype == torch.float64
        assert {p.dtype for p in model.parameters()} == {torch.float64 if wide else torch.float32}
        assert torch.equal(model.pos_embed, state["pos_embed"].to(model.pos_embed.dtype))
