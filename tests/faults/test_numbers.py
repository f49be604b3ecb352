"""NaN, infinity and numbers that run away: nothing of them reaches a parameter or the average, and
the error says where and what.
"""

import contextlib
import copy
import itertools
import math
import random
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cfm_lite import objective, terms
from cfm_lite.data import toy
from cfm_lite.data.batches import batches
from cfm_lite.engine import checkpoint
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.models import MLP
from cfm_lite.runs.imagenet import PRESETS, build_imagenet_trainer, imagenet
from cfm_lite.runs.recipe import RECIPES, build_model, build_objective, build_trainer
from cfm_lite.training import Trainer
from tests.faults import counts
from tests.networks import Tiny

X1 = torch.randn(48, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(48) % 3
BAD = (math.nan, math.inf, -math.inf)


class Planted(nn.Module):
    """A term that is bad at one call."""

    weight, name, sign, blocks = 1.0, "planted", 1.0, ()

    def __init__(self, at, value):
        super().__init__()
        self.at, self.value, self.calls = at, value, 0

    def prepare(self, draw):
        return None

    def forward(self, batch):
        self.calls += 1
        return (batch.v * (self.value if self.calls == self.at else 1.0)).mean()


def state(trainer):
    return copy.deepcopy(
        (
            trainer.objective.state_dict(),
            trainer.ema.state_dict(),
            trainer.optimizer.state_dict()["state"],
        )
    )


def same(a, b):
    return all(torch.equal(x[k], y[k]) for x, y in zip(a[:2], b[:2]) for k in x) and all(
        torch.equal(a[2][i][k], b[2][i][k]) for i in a[2] for k in ("exp_avg", "exp_avg_sq")
    )


def plants(n, seed):
    """`n` random (what, step, tensor number, value, whether the path of a device is taken)."""
    draw = random.Random(seed)
    return [
        (
            draw.choice(["loss", "gradient", "input"]),
            draw.randint(2, 6),
            draw.randrange(7),
            draw.choice(BAD),
            draw.random() < 0.5,
        )
        for _ in range(n)
    ]


def plant(what, step, tensor, value, as_device, folder):
    """Train with one bad number; returns (the error, the states before the bad step and after the
    error).
    """
    built = objective.delta_fm(Tiny(), shard=8)
    trainer = Trainer(
        built.plus(Planted(step, value)) if what == "loss" else built, lr=1e-2, log_every=4
    )
    trainer._guard.at_once = (
        not as_device
    )  # on the CPU, what a device does: latch, gate, and read at logged steps
    if what == "gradient":
        parameter = trainer.parameters[tensor % len(trainer.parameters)]
        parameter.register_hook(
            lambda g: g.index_fill(0, torch.tensor([0]), value) if trainer.step == step - 1 else g
        )

    def source():
        for i, (x1, y) in enumerate(batches(X1, Y, size=16), 1):
            yield (
                (
                    x1.index_fill(0, torch.tensor([tensor]), value)
                    if what == "input" and i == step
                    else x1
                ),
                y,
            )

    data = source()
    next_log = trainer.run(data, 12)
    for _ in range(step - 1):
        next(next_log)
    kept = trainer.save(folder)
    before = state(trainer)
    with pytest.raises((DivergenceError, ConfigError)) as caught:
        for _ in next_log:
            pass
    assert trainer.step - (step - 1) <= (4 if as_device else 0), (
        "read at the next logged step at the latest"
    )
    return caught.value, before, state(trainer), kept


def check_plants(cases, tmp_path, monkeypatch):
    for number, (what, step, tensor, value, as_device) in enumerate(cases):
        with monkeypatch.context() as patch:
            if as_device:
                patch.setattr(objective, "on_host", lambda x: False)
            error, before, after, kept = plant(
                what, step, tensor, value, as_device, tmp_path / str(number)
            )
        assert same(before, after), (what, step, tensor, value, as_device)
        if what == "input" and not as_device:  # the host sees it before the model does
            assert isinstance(error, ConfigError), error
            assert f"rows [{tensor}]" in str(error)
        else:
            name = {"loss": "planted", "gradient": "the gradient norm", "input": "flow_matching"}[
                what
            ]
            assert str(error).startswith(f"{name} is not finite at step {step};"), error
            assert str(kept) in str(error)
        assert checkpoint.latest(tmp_path / str(number)) == kept


def test_a_bad_number_in_100_places_never_reaches_a_parameter_or_the_average(tmp_path, monkeypatch):
    check_plants(plants(100, seed=0), tmp_path, monkeypatch)


@pytest.mark.faults
def test_a_bad_number_in_500_places_never_reaches_a_parameter_or_the_average(tmp_path, monkeypatch):
    check_plants(plants(500, seed=1), tmp_path, monkeypatch)
    counts.write("planted_numbers", places=500, reached_a_parameter=0)


@pytest.mark.parametrize("as_device", [False, True])
def test_a_bad_average_is_found_at_the_next_logged_step_and_never_saved(as_device, tmp_path):
    clean, trainer = (
        Trainer(objective.fm(Tiny(), shard=8), lr=1e-2, log_every=4) for _ in range(2)
    )
    trainer._guard.at_once = not as_device
    list(clean.run(batches(X1, Y, size=16), 4))
    run = trainer.run(batches(X1, Y, size=16), 10)
    next(run), next(run)
    kept = trainer.save(tmp_path)
    with torch.no_grad():
        trainer.ema.second.weight[3, 1] = math.nan
    with pytest.raises(DivergenceError, match=r"average of second.weight is not finite at step 2"):
        trainer.save(tmp_path)
    with pytest.raises(
        DivergenceError,
        match=rf"average of second.weight is not finite at step 4, and .*{kept.name}",
    ):
        list(run)
    assert checkpoint.latest(tmp_path) == kept


def test_nothing_is_saved_between_a_bad_step_and_the_error_on_a_device(tmp_path):
    trainer = Trainer(objective.fm(Tiny()).plus(Planted(3, math.nan)), log_every=50)
    trainer._guard.at_once = False
    run = trainer.run(batches(X1, Y, size=16), 10)
    for _ in range(4):
        next(run)
    with pytest.raises(DivergenceError, match="planted is not finite at step 3"):
        trainer.save(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- weight * K: refused from 1 on, a warning from 0.5 on


def refusals(weight, k):
    """Every entrance at which a weight of repulsion comes in."""
    from cfm_lite import guidance, losses, theory
    from cfm_lite.runs import recipe as recipes
    from cfm_lite.runs.imagenet import imagenet

    v, mixture = torch.zeros(4, 2), toy.mixture("two_classes")
    t = torch.full((4,), 0.5, dtype=torch.float64)
    stack = torch.ones(k, 4, 2)
    return {
        "losses.contrastive_flow_matching": lambda: losses.contrastive_flow_matching(
            v, v, stack, weight
        ),
        "losses.vecor": lambda: losses.vecor(v, v, stack, weight),
        "objective.vecor": lambda: objective.vecor(Tiny(), weight, k),
        "Objective": lambda: objective.fm(Tiny()).plus(
            *(terms.Repulsion(weight, name=f"r{i}") for i in range(k))
        ),
        "objective.delta_fm": lambda: objective.delta_fm(Tiny(), weight * k),
        "recipe": lambda: recipes.recipe("toy", method="vecor", weight=weight, k=k),
        "imagenet": lambda: imagenet("vecor", model="SiT-Ti/2", weight=weight, k=k),
        "from_dict": lambda: recipes.from_dict({"method": "vecor", "weight": weight, "k": k}),
        "guidance.retarget": lambda: guidance.retarget(lambda x, t: x, weight * k, torch.zeros(2)),
        "guidance.retarget_shuffle": lambda: guidance.retarget_shuffle(lambda x, t: x, weight, k),
        "guidance.debias": lambda: guidance.debias(lambda x, t: x, weight * k, torch.zeros(2)),
        "guidance.debias_shuffle": lambda: guidance.debias_shuffle(lambda x, t: x, weight, k),
        "theory": lambda: theory.optimal_velocity(
            mixture, v.double(), t, method="vecor", weight=weight, k=k
        ),
    }


@pytest.mark.parametrize("entrance", refusals(0.5, 2))
@pytest.mark.parametrize(
    ("weight", "k"),
    [(1.0, 1), (0.5, 2), (0.34, 3), (1.5, 1), (math.nan, 1), (math.inf, 1), (-0.1, 1)],
)
def test_a_weight_that_leaves_the_loss_without_a_minimum_is_refused_at_every_entrance(
    entrance, weight, k
):
    with pytest.raises(ConfigError, match="weight"):
        refusals(weight, k)[entrance]()


@pytest.mark.parametrize("entrance", refusals(0.5, 2))
def test_just_below_the_bound_is_accepted(entrance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusals(0.4999, 2)[entrance]()


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "toy", "--method", "delta_fm", "--set", "weight=1"],
        ["compare", "toy", "--set", "weight=2"],
    ],
)
def test_the_command_line_refuses_it_before_any_work(argv, capsys, tmp_path):
    from cfm_lite import cli

    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert "must stay below 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("weight", "k", "factor"), [(0.5, 1, "2"), (0.3, 3, "10"), (0.75, 1, "4")])
@pytest.mark.parametrize("entrance", ["objective", "losses"])
def test_from_one_half_on_a_warning_names_the_factor(entrance, weight, k, factor):
    v = torch.zeros(4, 2)
    warned = {
        "objective": lambda weight, k: objective.vecor(Tiny(), weight, k),
        "losses": lambda weight, k: terms.losses.vecor(v, v, torch.ones(k, 4, 2), weight),
    }
    with pytest.warns(UserWarning, match=rf"= {factor}\.$"):
        warned[entrance](weight, k)


def test_below_one_half_nothing_is_said():
    objective.vecor(Tiny(), 0.24, 2)  # warnings are errors here


# ---- finite, but running away: the flow-matching error above runaway^2 = 400 times its first value

GOOD = [
    *itertools.product([(0.0, 1)], [1e-3, 1e-2, 3e-2]),
    *itertools.product([(0.05, 1), (0.5, 1), (0.25, 2), (0.9, 1)], [1e-3, 1e-2, 3e-2]),
]
RUNAWAY = [
    ((0.05, 1), 1.0),
    ((0.0, 1), 1.0),
    ((0.5, 1), 1.0),
    ((0.25, 2), 1.0),
    ((0.0, 1), 10.0),
    ((0.9, 1), 10.0),
    ((0.33, 3), 1e-3),
]
RUNAWAY += [
    ((0.4999, 2), 1e-3),
    *itertools.product([(0.99, 1), (0.999, 1), (0.33, 3), (0.4999, 2)], [1e-2, 3e-2]),
][:8]


def train_toy(pair, lr, runaway, steps=200):
    """(steps run, largest |v| over that of the data) on the two-class toy."""
    (weight, k), mixture = pair, toy.mixture("two_classes")
    x1, y = mixture.sample(2000, generator=torch.Generator().manual_seed(0))
    x1 = x1.float()
    torch.manual_seed(0)
    model, speeds = MLP(2, 64, 2, 2), []
    model.register_forward_hook(
        lambda module, inputs, v: speeds.append(float(v.detach().square().mean()))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = (
            objective.fm(model)
            if not weight
            else objective.vecor(model, weight, k)
            if k > 1
            else objective.delta_fm(model, weight)
        )
    trainer = Trainer(built, lr=lr, runaway=runaway)
    with contextlib.suppress(DivergenceError):
        list(trainer.run(batches(x1, y, size=128), steps))
    return trainer.step, math.sqrt(max(speeds) / (1 + float(x1.square().mean())))


def test_the_two_kinds_of_settings_are_30_and_differ():
    assert len(GOOD) == len(RUNAWAY) == 15


@pytest.mark.parametrize(("pair", "lr"), [GOOD[2], GOOD[14], RUNAWAY[0], RUNAWAY[9]])
def test_a_run_that_runs_away_is_stopped_and_a_good_one_is_not(pair, lr):
    steps, _ = train_toy(pair, lr, 20.0, steps=100)
    assert (steps == 100) == ((pair, lr) in GOOD)


@pytest.mark.faults
def test_all_of_15_runaway_settings_are_stopped_within_200_steps_and_none_of_15_good_ones():
    stopped, speeds = {}, {}
    for pair, lr in (*GOOD, *RUNAWAY):
        free, speeds[pair, lr] = train_toy(pair, lr, None)
        assert free == 200
        stopped[pair, lr] = train_toy(pair, lr, 20.0)[0]
    # an independent measure says which is which: how fast the velocity of the unwatched run became,
    # in units of the data's speed
    assert max(speeds[case] for case in GOOD) < 10 < 20 < min(speeds[case] for case in RUNAWAY)
    late = [case for case in RUNAWAY if stopped[case] >= 200]
    alarms = [case for case in GOOD if stopped[case] < 200]
    counts.write(
        "runaway", runaway=len(RUNAWAY), stopped=len(RUNAWAY) - len(late), good=len(GOOD), false_alarms=len(alarms),
        fastest_good=max(speeds[case] for case in GOOD), slowest_runaway=min(speeds[case] for case in RUNAWAY),
        last_stop=max(stopped[case] for case in RUNAWAY),
    )  # fmt: skip
    assert not late
    assert not alarms


def test_a_large_first_error_that_falls_is_no_alarm():
    model = Tiny()
    with torch.no_grad():
        model.last.weight.mul_(1e4)
    log = list(Trainer(objective.fm(model), lr=1e-2, log_every=10).run(batches(X1, Y, size=16), 60))
    assert log[0]["flow_matching"] > 1e6


def test_a_negative_loss_is_no_alarm():
    with pytest.warns(UserWarning, match="factor|scaled"):
        trainer = Trainer(objective.delta_fm(Tiny(), 0.9), lr=1e-2, log_every=10)
    logs = list(trainer.run(batches(X1 + 2 * Y[:, None], Y, size=48), 120))
    assert min(log["loss"] for log in logs) < 0


def test_the_alarm_keeps_the_last_good_checkpoint_and_can_be_switched_off(tmp_path):
    def trainer(**settings):
        return Trainer(objective.fm(Tiny()), lr=50.0, log_every=10, **settings)

    watched = trainer()
    run = watched.run(batches(X1, Y, size=16), 100)
    kept = watched.save(tmp_path)
    with pytest.raises(
        DivergenceError,
        match=rf"step 10\. The limit is .*20\^2 times .*{kept.name}.*rate \(50\).*Trainer of your own .*runaway=None",
    ):
        list(run)
    assert len(list(trainer(runaway=None).run(batches(X1, Y, size=16), 100))) == 100


@pytest.mark.parametrize("value", [0.5, 0, -1, math.nan, "20", True])
def test_runaway_must_be_a_number_of_at_least_one(value):
    with pytest.raises(ConfigError, match="runaway"):
        Trainer(objective.fm(Tiny()), runaway=value)


class _Data(NamedTuple):
    shape: tuple[int, ...]
    num_classes: int
    condition: str


EARLY = [
    (name, method)
    for name in RECIPES
    for method in ("fm", "delta_fm", "vecor_latent", "dispersive", "contrastive")
]


SHAPES = {
    "words": (3, 32, 32),
    "mnist": (1, 28, 28),
    "mnist_sit": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar10_sit": (3, 32, 32),
}


def early(name, method, steps):
    """The first steps of a committed recipe, on made data of its shape and scale where the real
    ones are large.
    """
    small = (
        {"batch": 32, "shard": 32, "precision": "float32"}
        if name in SHAPES or name == "digits_sit"
        else {}
    )
    small |= {"hidden_size": 48, "depth": 4, "num_heads": 2} if name == "cifar10_sit" else {}
    recipe = RECIPES[name]().changed(
        method=method, **small, **({"perturb": "channel_shuffle"} if name == "toy" else {})
    )
    shape, classes = ((2,), 2) if name == "toy" else (SHAPES.get(name, (1, 8, 8)), 10)
    x1 = torch.rand(512, *shape) * 2 - 1 if name != "toy" else toy.load("two_classes", 512)[0]
    y = torch.arange(512) % classes
    if name == "words":
        y = torch.randint(1, 60, (512, 16))
    model = build_model(recipe, _Data(shape, classes, "captions" if name == "words" else "labels"))
    trainer = build_trainer(recipe, model)
    trainer.log_every = 5
    return len(list(trainer.run(batches(x1, y, size=recipe.batch), steps)))


@pytest.mark.faults
@pytest.mark.parametrize(("name", "method"), EARLY)
def test_the_first_steps_of_every_committed_recipe_raise_no_alarm(name, method):
    steps = 10 if name in SHAPES else 50
    assert early(name, method, steps) == steps


@pytest.mark.faults
@pytest.mark.parametrize("preset", [name for name in PRESETS if not name.startswith("repa")])
def test_the_first_steps_of_every_imagenet_preset_raise_no_alarm(preset):
    recipe = imagenet(preset, model="SiT-Ti/2", shard=8)
    data = type("Data", (), {"shape": (4, 8, 8), "num_classes": 10})()
    trainer = build_imagenet_trainer(recipe, data)
    trainer.log_every = 5
    x1 = torch.randn(256, 4, 8, 8)
    assert len(list(trainer.run(batches(x1, torch.arange(256) % 10, size=32), 40))) == 40


# ---- half precision: every term in float32, whatever autocast says


def all_terms(model):
    shared = {"shard": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        align = terms.Alignment(0.5, 2, 16, lambda x: x[:, None], 2, width=8)
    variants = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
    built = objective.vecor(model, 0.05, 2, **shared)
    built = built.plus(
        align,
        *(terms.Dispersive(0.1, 1, variant, name=f"dispersive_{variant}") for variant in variants),
    )
    return built.plus(
        *(terms.Contrastive(0.1, 2, variant, name=f"contrastive_{variant}") for variant in variants)
    )


def test_under_bf16_autocast_every_term_is_float32_and_within_two_percent():
    values = {}
    for half in (False, True):
        built = all_terms(Tiny()).at(0, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            total, values[half] = built(3 * X1, Y)
        assert total.dtype == torch.float32
        assert {value.dtype for value in values[half].values()} == {torch.float32}
        total.backward()
        assert all(
            p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all())
            for p in built.parameters()
        )
    for name, value in values[False].items():
        assert abs(values[True][name] - value) <= 0.02 * max(abs(value), 0.1), name


@pytest.mark.parametrize("count", ["one row", "one class", "all null"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_degenerate_batches_give_finite_losses_and_gradients(count, scale):
    x1, y = (X1[:1], Y[:1]) if count == "one row" else (X1[:16], torch.zeros(16, dtype=torch.long))
    from cfm_lite.negatives import in_batch, other_class

    model = Tiny()
    for negatives, null in itertools.product((in_batch, other_class), (True, False)):
        built = objective.Objective(
            model, terms=(terms.FlowMatching(), terms.Repulsion(0.3, negatives, null, rescale=True), terms.Dispersive(0.5, 1)),
            label_dropout=1.0 if count == "all null" else 0.1,
        ).at(0, 0)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            total, values = built(scale * x1, y)
        total.backward()
        assert all(value.isfinite() for value in (total, *values.values()))
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        if count == "all null" and not null:
            assert values["repulsion"] == 0


def test_with_every_label_dropped_and_no_contrast_on_null_the_loss_is_plain_flow_matching_bit_for_bit():
    plain = objective.fm(Tiny(), label_dropout=1.0).at(0, 0)(X1, Y)[0]
    with_term = objective.delta_fm(Tiny(), contrast_null=False, label_dropout=1.0).at(0, 0)(X1, Y)[
        0
    ]
    assert torch.equal(plain, with_term)


def test_building_an_objective_of_every_method_needs_no_data():
    for name, method in EARLY:
        recipe = RECIPES[name]().changed(
            method=method, **({"perturb": "channel_shuffle"} if name == "toy" else {})
        )
        model = build_model(
            recipe,
            type(
                "Data",
                (),
                {
                    "shape": (2,)
                    if name == "toy"
                    else (3, 32, 32)
                    if name == "words"
                    else (1, 8, 8),
                    "num_classes": 3,
                    "condition": "captions" if name == "words" else "labels",
                },
            )(),
        )
        assert build_objective(recipe, model).terms
