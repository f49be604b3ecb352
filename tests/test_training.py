"""The trainer: averages, guards, resumes; what it yields and what it refuses."""

import copy
import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from cfm_lite import objective
from cfm_lite.data.batches import batches
from cfm_lite.engine import checkpoint, optimizers
from cfm_lite.engine.guard import Guard
from cfm_lite.engine.parallel import World
from cfm_lite.engine.state import _completed
from cfm_lite.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    ResumeMismatchError,
)
from cfm_lite.models import SiT, UNet
from cfm_lite.negatives import perturbed
from cfm_lite.objective import Alignment, Contrastive, Dispersive, FlowMatching, Repulsion
from cfm_lite.paths import Path
from cfm_lite.perturbations import channel_shuffle
from cfm_lite.training import Trainer, warmup
from tests.networks import Tiny, same_parameters

X1 = torch.randn(60, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(60) % 3
KINDS = ["fm", "delta_fm", "vecor", "dispersive", "contrastive", "alignment"]


def build(kind="fm", **settings):
    model = Tiny()
    shared = {"shard": 8}
    if kind == "contrastive":
        built = objective.fm(model, **shared).plus(Contrastive(0.2, 1))
    elif kind == "alignment":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            built = objective.fm(model, **shared).plus(
                Alignment(0.5, 1, 16, lambda x: x[:, None], 2, width=8)
            )
    else:
        built = getattr(objective, kind)(model, **shared)
    return Trainer(built, lr=1e-2, log_every=5, **settings)


def go(trainer, steps, size=16):
    return list(trainer.run(batches(X1, Y, size=size, seed=0, start=trainer.step), steps))


def test_training_lowers_the_loss():
    logs = list(build().run(batches(0.1 * X1 + 3, Y, size=16, seed=0), 300))
    first, last = (
        torch.stack([log["loss"] for log in part]).mean() for part in (logs[:50], logs[-50:])
    )
    assert last < 0.8 * first


def test_each_step_logs_every_term_apart():
    log = go(build("delta_fm"), 1)[0]
    assert set(log) == {"step", "loss", "flow_matching", "repulsion", "grad_norm"}
    assert int(log["step"]) == 1
    torch.testing.assert_close(log["loss"], log["flow_matching"] - 0.05 * log["repulsion"])
    assert not any(value.requires_grad for value in log.values())


def test_whoever_listens_to_the_optimizer_hears_each_step():
    """Hooks of its own and of all, a step of its class or object, and a profiler."""
    heard = []
    hook = lambda *args: heard.append(1)  # noqa: E731
    trainer = build()
    steps = trainer.run(batches(X1, Y, size=16, seed=0), 9)
    for register in (
        trainer.optimizer.register_step_pre_hook,
        trainer.optimizer.register_step_post_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    ):
        handle = register(hook)
        next(steps)
        handle.remove()
        next(steps)
    assert len(heard) == 4
    with torch.profiler.profile() as profiler:
        next(steps)
    name = f"Optimizer.step#{type(trainer.optimizer).__name__}.step"
    assert name in {event.key for event in profiler.key_averages()}


def test_a_torch_that_keeps_its_hooks_elsewhere_makes_the_same_steps(monkeypatch):
    known, unknown = build(), build()
    go(known, 3)
    monkeypatch.delattr(optimizers._TORCH, "_global_optimizer_pre_hooks")
    assert optimizers._is_heard(unknown.optimizer)
    monkeypatch.undo()
    assert not optimizers._is_heard(unknown.optimizer)
    monkeypatch.setattr(optimizers, "_WRAPPER", None)
    go(unknown, 3)
    assert same_parameters(known.objective, unknown.objective)


@pytest.mark.parametrize("place", ["class", "object"])
def test_an_optimizer_whose_step_somebody_has_wrapped_makes_that_step(place):
    class Own(torch.optim.SGD):
        pass

    heard = []
    built = objective.fm(Tiny())
    optimizer = Own(built.parameters(), lr=0.1)
    place = Own if place == "class" else optimizer
    inner = place.step

    @functools.wraps(inner)
    def step(*args):
        heard.append(1)
        return inner(*args)

    place.step = step
    go(Trainer(built, optimizer), 3)
    assert len(heard) == 3


def test_the_average_follows_its_closed_form():
    trainer = build(ema_decay=0.9, ema_warmup=False)
    go(trainer, 1)  # the first update copies
    start = [p.clone() for p in trainer.ema.parameters()]
    target = [p.clone() for p in trainer.objective.model.parameters()]
    with torch.no_grad():
        for p in trainer.objective.model.parameters():
            p.add_(1.0)
    for _ in range(7):
        trainer._averages["ema"].update_parameters(trainer.objective.model)
    for ema, old, p in zip(trainer.ema.parameters(), start, target):
        torch.testing.assert_close(ema, (p + 1) + (old - (p + 1)) * 0.9**7)


def test_a_warm_average_forgets_the_start_of_a_short_run():
    warm, cold = (
        build(ema_decay=0.999),
        build(ema_decay=0.999, ema_warmup=False),
    )  # warm is the default
    go(warm, 30), go(cold, 30)
    pairs = [list(zip(t.ema.parameters(), t.objective.model.parameters())) for t in (warm, cold)]
    distance = [sum(float((p - q).detach().square().sum()) for p, q in each) for each in pairs]
    assert distance[0] < 0.3 * distance[1]


def test_the_average_does_not_change_the_training():
    a, b = build(ema_decay=0.0), build(ema_decay=0.999)
    go(a, 20), go(b, 20)
    assert same_parameters(a.objective, b.objective)
    assert same_parameters(a.ema, a.objective.model)
    assert not same_parameters(b.ema, b.objective.model)


def test_a_second_average_has_a_decay_of_its_own_and_changes_nothing_else(tmp_path):
    one, two = (
        build("dispersive", ema_decay=0.9),
        build("dispersive", ema_decay=0.9, ema2_decay=0.5),
    )
    alone = build("dispersive", ema_decay=0.5)
    for trainer in (one, two, alone):
        go(trainer, 30)
    assert same_parameters(one.objective, two.objective)
    assert same_parameters(one.ema, two.ema)
    assert same_parameters(alone.ema, two.ema2)
    assert not same_parameters(two.ema, two.ema2)
    assert one.ema2 is None
    two.save(tmp_path)
    resumed = build("dispersive", ema_decay=0.9, ema2_decay=0.5).resume(tmp_path)
    for trainer in (two, resumed):
        go(trainer, 5)
    assert same_parameters(two.ema2, resumed.ema2)
    with pytest.raises(ResumeMismatchError, match=r"ema2_decay: saved 0\.5, now 0\.0"):
        build("dispersive", ema_decay=0.9).resume(tmp_path)


def test_the_gradient_norm_is_bounded_by_clip():
    trainer = build(clip=1e-3)
    logs = go(trainer, 3)
    assert all(
        log["grad_norm"] > 1e-3 for log in logs
    )  # the norm before clipping is what is logged
    total = torch.nn.utils.get_total_norm([p.grad for p in trainer.parameters])
    assert total <= 1e-3 * 1.001


def test_warmup_rises_to_one_and_stays():
    assert [warmup(4)(i) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    trainer = build(schedule=warmup(4))
    go(trainer, 1)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.25e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_does_not_change_a_run(kind):
    whole, parts = build(kind), build(kind, accumulate=2)
    a, b = go(whole, 4), go(parts, 4)
    torch.testing.assert_close(
        torch.stack([log["loss"] for log in a]),
        torch.stack([log["loss"] for log in b]),
        rtol=1e-5,
        atol=1e-6,
    )
    # AdamW would hide gradients that are twice too large
    norms = [torch.stack([log["grad_norm"] for log in logs]) for logs in (a, b)]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-6)
    for p, q in zip(whole.objective.parameters(), parts.objective.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-4)


def test_accumulation_changes_neither_a_rescaled_repulsion_nor_the_count_of_its_rows():
    repulsion = Repulsion(0.3, contrast_null=False, rescale=True)
    logs = []
    for accumulate in (1, 2):
        terms = FlowMatching(), repulsion
        built = objective.Objective(Tiny(), terms=terms, label_dropout=0.5, shard=4)
        logs += go(Trainer(built, accumulate=accumulate), 1)
    assert logs[0]["repulsion"] == pytest.approx(float(logs[1]["repulsion"]), rel=1e-5)
    # rows, not a mean over micro-batches
    assert logs[0]["repulsion_left_out"] == logs[1]["repulsion_left_out"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_and_resuming_equals_not_stopping_bit_for_bit(kind, tmp_path):
    straight = build(kind)
    full = go(straight, 11)
    stopped = build(kind)
    head = go(stopped, 4)  # 4 * 16 rows: inside the second epoch of 60
    stopped.save(tmp_path)
    resumed = build(kind)
    with torch.no_grad():  # prove that the weights come from the file
        for p in resumed.objective.parameters():
            p.add_(1.0)
    resumed.resume(tmp_path)
    tail = go(resumed, 7)
    assert [float(log["loss"]) for log in full] == [float(log["loss"]) for log in head + tail]
    assert same_parameters(straight.objective, resumed.objective)
    assert same_parameters(straight.ema, resumed.ema)
    assert [int(log["step"]) for log in tail] == list(range(5, 12))


def test_a_network_with_dropout_resumes_bit_for_bit(tmp_path):
    def dropping():
        model = Tiny()
        model.second = torch.nn.Sequential(model.second, torch.nn.Dropout(0.5))
        return Trainer(objective.fm(model, shard=8), lr=1e-2)

    torch.manual_seed(3)
    straight = dropping()
    go(straight, 4)
    path = straight.save(tmp_path)
    tail = go(straight, 3)
    torch.manual_seed(7)
    resumed = go(dropping().resume(path), 3)
    assert [float(log["loss"]) for log in tail] == [float(log["loss"]) for log in resumed]
    # a run whose network draws nothing keeps no state that differs from process to process
    plain = build()
    go(plain, 1)
    assert checkpoint.load(plain.save(tmp_path / "plain"), "cpu").state["generators"] is None


def test_dropout_that_begins_after_the_first_step_resumes_bit_for_bit(tmp_path):
    class Late(Tiny):
        def forward(self, x, t, y=None):
            self.calls = getattr(self, "calls", 0) + 1
            v = super().forward(x, t, y)
            return torch.nn.functional.dropout(v) if self.calls > 1 else v

    def late():
        return Trainer(objective.fm(Late(), shard=8), lr=1e-2)

    torch.manual_seed(3)
    straight, resumed = late(), late()
    go(straight, 3)
    path, tail = straight.save(tmp_path), go(straight, 2)
    resumed.objective.model.calls = 3
    torch.manual_seed(7)
    again = go(resumed.resume(path), 2)
    assert [float(log["loss"]) for log in tail] == [float(log["loss"]) for log in again]


def test_a_term_that_counts_its_calls_resumes_in_a_new_trainer(tmp_path):
    trainer = Trainer(objective.fm(Tiny()).plus(Poison(9)))
    go(trainer, 2)
    path = trainer.save(tmp_path)
    assert Trainer(objective.fm(Tiny()).plus(Poison(9))).resume(path).step == 2
    with pytest.raises(ResumeMismatchError, match="terms: saved"):
        Trainer(objective.fm(Tiny()).plus(Poison(8))).resume(path)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not():
    a, b, c = build("vecor", seed=1), build("vecor", seed=1), build("vecor", seed=2)
    for trainer in (a, b, c):
        go(trainer, 5)
    assert same_parameters(a.objective, b.objective)
    assert not same_parameters(a.objective, c.objective)


class Poison(torch.nn.Module):
    """A term that becomes NaN or infinite at one step."""

    weight, name, sign, blocks = 1.0, "poison", 1.0, ()

    def __init__(self, at, value=float("nan")):
        super().__init__()
        self.at, self.value, self.calls = at, value, 0

    def prepare(self, draw):
        return None

    def forward(self, batch):
        self.calls += 1
        return (batch.v * (self.value if self.calls == self.at else 1.0)).mean()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_names_step_and_term_and_changes_nothing(value, tmp_path):
    trainer = Trainer(objective.fm(Tiny()).plus(Poison(4, value)))
    go(trainer, 2)
    path = trainer.save(tmp_path)
    source = trainer.run(batches(X1, Y, size=16, start=2), 10)
    next(source)
    before = copy.deepcopy(
        (trainer.objective.state_dict(), trainer.ema.state_dict(), trainer.optimizer.state_dict())
    )
    with pytest.raises(DivergenceError, match=rf"poison .* step 4.*{path.name}"):
        next(source)
    after = (
        trainer.objective.state_dict(),
        trainer.ema.state_dict(),
        trainer.optimizer.state_dict(),
    )
    for old, new in zip(before[:2], after[:2]):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert trainer.step == 3


def test_a_resumed_run_runs_away_from_the_first_error_of_the_run_it_goes_on_with(tmp_path):
    def grown(trainer, size):
        return list(trainer.run([(size * X1[:16], Y[:16])] * 5, 5))

    trainer = build(runaway=2.0)
    grown(trainer, 1.0)
    path = trainer.save(tmp_path)
    with pytest.raises(DivergenceError, match=r"2\^2 times its first value"):
        grown(build(runaway=2.0).resume(path), 10.0)
    # a checkpoint of an earlier edition names no error: then the first one after it counts
    load = checkpoint.load

    def old(*args):
        saved = load(*args)
        del saved.state["errors"]
        return saved

    with mock.patch.object(checkpoint, "load", old):
        assert len(grown(build(runaway=2.0).resume(path), 10.0)) == 5


@pytest.mark.parametrize("at_once", [True, False])
def test_the_trainer_that_diverged_resumes_itself(at_once, tmp_path):
    """`at_once` False is how the guard works on a device, where a bad step is read later."""
    trainer = Trainer(objective.fm(Tiny()).plus(Poison(4)), log_every=2, runaway=2.0)
    trainer._guard.at_once = at_once
    go(trainer, 2)
    trainer.save(tmp_path)
    with pytest.raises(DivergenceError, match="poison is not finite at step 4"):
        go(trainer, 2)
    trainer.resume(tmp_path)
    before = copy.deepcopy(trainer.objective.state_dict())
    assert [int(log["step"]) for log in go(trainer, 4)] == [3, 4, 5, 6]
    assert not any(torch.equal(before[k], x) for k, x in trainer.objective.state_dict().items())


def test_a_guard_whose_checkpoint_names_no_error_forgets_those_after_it():
    guard = Guard(torch.device("cpu"), "error", 2.0, [])
    guard.watch(1, {"error": torch.tensor(100.0)})
    guard.remember(None)
    assert guard.errors is None


@pytest.mark.parametrize("device", ["mps", "cuda"])
def test_a_guard_on_any_device_goes_on_from_the_errors_of_a_checkpoint(device):
    """MPS has no float64, and torch refuses to make such a tensor there."""
    with FakeTensorMode():
        guard = Guard(torch.device(device), "flow_matching", 2.0, [])
        guard.remember([1.0, 3.0])
        kinds = {(error.device.type, error.dtype) for error in guard._errors}
    assert kinds == {(device, torch.float32 if device == "mps" else torch.float64)}


def test_a_gradient_that_is_not_finite_stops_the_run_too():
    trainer = build()
    first = trainer.parameters[0]
    first.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(
        DivergenceError, match=r"gradient norm is not finite at step 1; .* no checkpoint"
    ):
        go(trainer, 1)
    assert torch.isfinite(first).all()


@pytest.mark.gpu
def test_on_a_device_a_bad_step_is_gated_without_synchronisation():
    model = Tiny().cuda()
    trainer = Trainer(objective.fm(model).plus(Poison(3)), log_every=5)
    x1, y = X1.cuda(), Y.cuda()
    source = trainer.run(((x1[:16], y[:16]) for _ in range(10)), 10)
    next(source), next(source)
    before = copy.deepcopy(trainer.objective.state_dict())
    torch.cuda.set_sync_debug_mode("error")
    next(source)
    torch.cuda.set_sync_debug_mode("default")
    assert all(
        torch.equal(before[key], value) for key, value in trainer.objective.state_dict().items()
    )
    with pytest.raises(DivergenceError, match=r"poison .* step 3"):
        next(source), next(source)


def test_another_optimizer_may_be_given():
    built = objective.fm(Tiny()).plus(Poison(2))
    trainer = Trainer(built, torch.optim.SGD(built.parameters(), lr=0.1))
    with pytest.raises(DivergenceError):
        go(trainer, 2)
    assert all(torch.isfinite(p).all() for p in built.parameters())


@pytest.mark.parametrize("fused", [(True, True), (True, False), (False, False)])
def test_a_shut_gate_holds_every_group_of_an_optimizer(fused):
    """A fused kernel reads the gate on the device; a group without one refuses it by an assert."""
    weights = [torch.ones(2, requires_grad=True) for _ in fused]
    groups = [{"params": [w], "fused": kind} for w, kind in zip(weights, fused)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for w in weights:
        w.grad = torch.full_like(w, float("nan"))
    optimizers.update(optimizer, torch.tensor(0.0))
    assert all(torch.equal(w, torch.ones(2)) for w in weights)


def test_bf16_keeps_parameters_and_losses_in_float32():
    trainer = build("dispersive", precision="bf16")
    log = go(trainer, 2)[-1]
    assert log["loss"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in trainer.parameters)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"clip": -1.0}, "clip"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]"),
        ({"betas": 0.9}, "betas"),
        ({"ema2_decay": 1.0}, "ema2_decay"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"precision": "fp8"}, "precision"),
        ({"accumulate": 0}, "accumulate"),
        ({"log_every": 0}, "log_every"),
        ({"schedule": 3}, "schedule is 3; it must be a function"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Trainer(objective.fm(Tiny()), **settings)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -1.0, "a", None])
def test_a_factor_that_is_no_number_of_at_least_zero_stops_before_the_step(factor):
    trainer = build(schedule=lambda step: factor if step == 2 else 1.0)
    go(trainer, 2)
    before = copy.deepcopy(trainer.objective)
    with pytest.raises(
        ConfigError, match=r"schedule\(2\) is .*; it must be a finite number of at least 0"
    ):
        go(trainer, 1)
    assert trainer.step == 2
    assert same_parameters(before, trainer.objective)


@pytest.mark.parametrize("number", [torch.tensor, lambda x: torch.tensor([x]), np.float32])
def test_a_factor_may_be_a_number_of_torch_or_numpy(number, tmp_path):
    trainer = by(torch.optim.Adam, schedule=lambda step: number(0.5 / (step + 1)), foreach=True)
    go(trainer, 2)
    assert type(trainer.optimizer.param_groups[0]["lr"]) is float
    assert trainer.lr == pytest.approx(0.25e-3)
    trainer.save(tmp_path)


def test_a_warmup_of_less_than_no_steps_is_refused():
    with pytest.raises(ConfigError, match=r"steps is -3; .*at least 0"):
        warmup(-3)


def test_parameters_that_are_not_finite_are_refused():
    model = Tiny()
    with torch.no_grad():
        model.last.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"model.last.weight"):
        Trainer(objective.fm(model))


def test_micro_batches_must_hold_whole_shards():
    with pytest.raises(ConfigError, match="whole shards"):
        go(build(accumulate=3), 1)


def test_batches_that_end_early_are_an_error():
    with pytest.raises(DataError, match=r"ended after 2 of 3"):
        list(build().run([(X1[:8], Y[:8])] * 2, 3))


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path):
    trainer = build("delta_fm")
    go(trainer, 1)
    trainer.save(tmp_path)
    with pytest.raises(ResumeMismatchError, match="terms"):
        build("fm").resume(tmp_path)
    with pytest.raises(ResumeMismatchError, match="seed: saved 0, now 3"):
        build("delta_fm", seed=3).resume(tmp_path)
    with pytest.raises(
        ResumeMismatchError,
        match=r"betas: saved \[\[0.9, 0.999\]\], now \[\[0.9, 0.95\]\]; weight_decay: saved \[0.0\], now",
    ):
        build("delta_fm", betas=(0.9, 0.95), weight_decay=0.1).resume(tmp_path)
    slower = Trainer(objective.delta_fm(Tiny(), shard=8), lr=1e-3)
    with pytest.raises(ResumeMismatchError, match=r"lr: saved \[0.01\], now \[0.001\]"):
        slower.resume(tmp_path)
    other = Trainer(objective.delta_fm(Tiny(num_classes=5), shard=8), lr=1e-2)
    with pytest.raises(ResumeMismatchError, match=r"labels.weight"):
        other.resume(tmp_path)


OPTIMIZERS = [  # the class, a setting of the saved run, and one of the run that resumes
    (torch.optim.RMSprop, {"alpha": 0.99}, {"alpha": 0.5}),
    (torch.optim.RMSprop, {"centered": False}, {"centered": True}),
    (torch.optim.Adadelta, {"rho": 0.9}, {"rho": 0.5}),
    (torch.optim.NAdam, {"momentum_decay": 4e-3}, {"momentum_decay": 0.1}),
    (torch.optim.RAdam, {"decoupled_weight_decay": False}, {"decoupled_weight_decay": True}),
    (torch.optim.Adagrad, {"lr_decay": 0.0}, {"lr_decay": 0.1}),
    (torch.optim.ASGD, {"lambd": 1e-4}, {"lambd": 0.1}),
    (torch.optim.Rprop, {"etas": (0.5, 1.2)}, {"etas": (0.4, 1.2)}),
    (torch.optim.SGD, {"maximize": False}, {"maximize": True}),
]


def by(kind, order=1, schedule=None, **settings):
    built = objective.fm(Tiny(), shard=8)
    return Trainer(
        built, kind(list(built.parameters())[::order], lr=1e-3, **settings), schedule=schedule
    )


@pytest.mark.parametrize(("kind", "saved", "now"), OPTIMIZERS)
def test_an_optimizer_with_another_setting_does_not_resume(kind, saved, now, tmp_path):
    trainer = by(kind, **saved)
    go(trainer, 1)
    trainer.save(tmp_path)
    with pytest.raises(ResumeMismatchError, match=f"{next(iter(now))}: saved .*, now "):
        by(kind, **now).resume(tmp_path)
    assert by(kind, **saved, foreach=False).resume(tmp_path).step == 1  # the same numbers


def test_an_optimizer_over_the_parameters_in_another_order_does_not_resume(tmp_path):
    trainer = by(torch.optim.Adam)
    go(trainer, 1)
    trainer.save(tmp_path)
    with pytest.raises(ResumeMismatchError, match="parameters: another order"):
        by(torch.optim.Adam, order=-1).resume(tmp_path)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (SiT, {"input_size": 8, "patch_size": 4, "in_channels": 1, "hidden_size": 8, "depth": 1}),
        (UNet, {"input_size": 8, "channels": (8, 16)}),
    ],
)
def test_a_network_of_the_same_weights_with_another_number_of_heads_does_not_resume(
    kind, sizes, tmp_path
):
    def build(heads):
        return Trainer(objective.fm(kind(**sizes, num_heads=heads, num_classes=3)))

    trainer = build(2)
    list(trainer.run([(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)], 1))
    trainer.save(tmp_path)
    assert build(2).resume(tmp_path).step == 1
    with pytest.raises(ResumeMismatchError, match=r"network: .*'num_heads': 2.*'num_heads': 4"):
        build(4).resume(tmp_path)


def test_another_schedule_that_can_be_compared_does_not_resume(tmp_path):
    trainer = by(torch.optim.Adam, schedule=warmup(0))
    go(trainer, 1)
    trainer.save(tmp_path)
    with pytest.raises(ResumeMismatchError, match=r"schedule: .*\[0\].*\[100\]"):
        by(torch.optim.Adam, schedule=warmup(100)).resume(tmp_path)
    assert by(torch.optim.Adam).resume(tmp_path).step == 1  # no warm-up is the default


def half_the_rate(trainer):
    trainer.optimizer.param_groups[0]["lr"] /= 2


def one_more_group(trainer):
    trainer.optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})


def thaw(trainer):
    trainer.objective.model.last.requires_grad_(True)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (half_the_rate, r"changed from 0.001 to 0.0005.*schedule="),
        (one_more_group, "has 2 groups, and had 1.*Make a new Trainer"),
        (thaw, "model.last.weight, model.last.bias was frozen.*Make a new Trainer"),
    ],
)
def test_what_the_trainer_would_not_follow_is_refused_before_a_step(change, words, given):
    built = objective.fm(Tiny(), shard=8)
    built.model.last.requires_grad_(False)
    adam = torch.optim.Adam(built.parameters(), lr=1e-3) if given else None
    trainer = Trainer(built, adam)
    go(trainer, 1)
    change(trainer)
    before = copy.deepcopy(built.state_dict())
    with pytest.raises(ConfigError, match=words):
        go(trainer, 1)
    assert all(torch.equal(before[name], x) for name, x in built.state_dict().items())


def assigned(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def adapted(model):
    model.last = torch.nn.Sequential(model.last, torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("change", "name"), [(assigned, "first.weight"), (adapted, "last.1.weight")]
)
def test_a_parameter_that_came_in_after_the_trainer_was_made_is_refused(change, name):
    trainer = build()
    go(trainer, 1)
    change(trainer.objective.model)
    with pytest.raises(ConfigError, match=f"model.{name}.*would never be trained"):
        go(trainer, 1)


def test_a_scheduler_of_torch_beside_the_trainer_is_refused_by_name():
    built = objective.fm(Tiny(), shard=8)
    sgd = torch.optim.SGD(built.parameters(), lr=0.1)
    scheduler, trainer = torch.optim.lr_scheduler.StepLR(sgd, 1), Trainer(built, sgd)
    run = trainer.run(batches(X1, Y, size=16), 3)
    next(run)
    scheduler.step()
    with pytest.raises(ConfigError, match="as by a scheduler of torch"):
        next(run)


def test_a_resumed_copied_or_interrupted_trainer_sets_its_own_rates(tmp_path):
    trainer = by(torch.optim.Adam, schedule=warmup(10))
    go(trainer, 3)
    trainer.save(tmp_path)
    for other in (by(torch.optim.Adam, schedule=warmup(10)), copy.deepcopy(trainer)):
        other.resume(tmp_path)
        go(other, 1)
        assert other.lr == pytest.approx(4e-4)
    with pytest.raises(DataError, match="ended"):
        list(trainer.run([(X1[:8], Y[:8])], 2))
    go(trainer, 1)
    assert trainer.lr == pytest.approx(5e-4)


class Slowing(torch.optim.Optimizer):
    """Momentum with a step of 1 / n, where n is a plain number in the state of each parameter."""

    def __init__(self, params, lr, **options):
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"n": 0, "moment": torch.zeros_like(p), "spare": None}
                state["n"] += 1
                state["moment"].mul_(0.9).add_(p.grad)
                p.sub_(group["lr"] / state["n"] * state["moment"])


def test_plain_numbers_in_the_state_of_an_optimizer_are_resumed(tmp_path):
    straight, stopped, resumed = (by(Slowing) for _ in range(3))
    go(straight, 3)
    go(stopped, 2)
    stopped.save(tmp_path)
    go(resumed.resume(tmp_path), 1)
    assert [state["n"] for state in resumed.optimizer.state.values()] == [3] * 7
    assert same_parameters(straight.objective, resumed.objective)


def test_a_state_of_an_optimizer_that_no_file_holds_is_named_and_the_rest_is_saved(tmp_path):
    trainer = by(Slowing)
    go(trainer, 1)
    for state in trainer.optimizer.state.values():
        state["history"] = [torch.ones(1)]
    with pytest.warns(UserWarning, match="history, a list.*does not hold"):
        trainer.save(tmp_path)
    assert by(Slowing).resume(tmp_path).step == 1


@pytest.mark.parametrize(
    ("value", "words"), [(torch.ones(2), "a Tensor"), (torch.nn.functional.relu, "a function")]
)
def test_an_option_of_an_optimizer_that_no_file_holds_is_named_before_the_first_step(value, words):
    with pytest.raises(ConfigError, match=f"the option extra, {words}"):
        by(Slowing, extra=value)


class Halved:
    """A codec, an object of a class that nobody here knows."""

    def __init__(self, factor=2.0):
        self.factor = factor
        self.table = {"of": self}  # no JSON

    def encode(self, x):
        return x / self.factor

    def decode(self, x):
        return x * self.factor


@dataclasses.dataclass(frozen=True)
class Weighted(FlowMatching):
    """A term with settings of all kinds."""

    each: torch.Tensor | None = None
    kind: torch.dtype = torch.float32
    names: frozenset = frozenset({"b", "a"})


def test_settings_of_any_kind_are_saved_and_compared(tmp_path):
    def build(factor=2.0, each=(1.0, 2.0), kind=torch.float32):
        image = perturbed(channel_shuffle, space="image", codec=Halved(factor))
        term = Weighted(each=torch.tensor(each), kind=kind, name="weighted")
        return Trainer(objective.fm(Tiny()).plus(Repulsion(0.1, image), term))

    trainer = build()
    go(trainer, 1)
    trainer.save(tmp_path)
    assert build().resume(tmp_path).step == 1
    for other in ({"factor": 3.0}, {"each": (1.0, 3.0)}, {"kind": torch.float64}):
        with pytest.raises(ResumeMismatchError, match="terms: saved"):
            build(**other).resume(tmp_path)


def _own_path(power):
    return Path(
        "own",
        lambda t: t**power,
        lambda t: 1 - t**power,
        lambda t: power * t ** (power - 1),
        lambda t: -power * t ** (power - 1),
    )


def test_another_path_of_the_same_name_does_not_resume(tmp_path):
    trainer = Trainer(objective.vecor(Tiny(), space="latent", path=_own_path(1)))
    go(trainer, 1)
    trainer.save(tmp_path)
    again = Trainer(objective.vecor(Tiny(), space="latent", path=_own_path(1)))
    assert again.resume(tmp_path).step == 1
    other = Trainer(objective.vecor(Tiny(), space="latent", path=_own_path(2)))
    with pytest.raises(ResumeMismatchError, match=r"path: saved \['own', \[0.25, .*now \['own'"):
        other.resume(tmp_path)
    mine = other._state._settings()  # every edition before saved the name alone
    assert _completed({"settings": mine | {"path": "own"}}, mine)["path"] == mine["path"]


class Called:
    """A coupling, a distribution of time, negatives and a perturbation with a setting of their own,
    as objects that are called and as a method.
    """

    def __init__(self, scale):
        self.scale, self.calls = scale, 0

    def __call__(self, x, *_, generator=None, device=None):
        self.calls += 1
        if isinstance(x, int):
            return torch.rand(x, generator=generator, device=device) ** self.scale
        return self.scale * getattr(x, "u_t", x)

    def couple(self, x0, x1, y=None):
        return self.scale * x0, x1, y


USES = {
    "time": lambda own: objective.fm(Tiny(), time=own),
    "couple": lambda own: objective.fm(Tiny(), couple=own.couple),
    "negatives": lambda own: objective.delta_fm(Tiny(), negatives=own),
    "perturb": lambda own: objective.vecor(Tiny(), perturb=own),
}


@pytest.mark.parametrize("use", USES)
def test_an_object_that_is_called_with_another_setting_does_not_resume(use, tmp_path):
    trainer = Trainer(USES[use](Called(2.0)))
    go(trainer, 1)
    trainer.save(tmp_path)
    again = Trainer(USES[use](Called(2.0)))
    assert again.resume(tmp_path).step == 1
    with pytest.raises(ResumeMismatchError, match=r"saved .*2\.0.*now .*3\.0"):
        Trainer(USES[use](Called(3.0))).resume(tmp_path)
    name = {"time": "Called", "couple": "Called.couple"}.get(use)
    if name:  # as every edition before saved it
        old = {"settings": again._state._settings() | {use: name}}
        mine = Trainer(USES[use](Called(3.0)))._state._settings()
        assert _completed(old, mine)[use] == mine[use]


def test_a_config_that_no_file_holds_is_named(tmp_path):
    trainer = build()
    with pytest.raises(ConfigError, match="config holds data, a PosixPath"):
        trainer.save(tmp_path, config={"data": tmp_path})
    with pytest.raises(ConfigError, match="config has type int; it must be a mapping"):
        trainer.save(tmp_path, config=5)
    assert not list(tmp_path.iterdir())


def test_a_config_may_hold_numbers_of_numpy_and_torch(tmp_path):
    config = {"rows": np.int64(3), "sizes": [np.float64(0.5), torch.tensor(2)], "name": "a"}
    path = build().save(tmp_path, config=config)
    assert checkpoint.load(path).state["config"] == {"rows": 3, "sizes": [0.5, 2], "name": "a"}


def test_an_option_that_the_optimizer_itself_moves_may_differ(tmp_path):
    class Counting(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.param_groups[0]["done"] = 0

        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["done"] += 1

    trainer = by(Counting)
    go(trainer, 2)
    trainer.save(tmp_path)
    again = by(Counting).resume(tmp_path)
    assert again.optimizer.param_groups[0]["done"] == 2


def test_a_checkpoint_of_before_some_settings_were_saved_resumes(tmp_path):
    trainer = by(torch.optim.RMSprop)
    go(trainer, 1)
    load = checkpoint.load
    path = trainer.save(tmp_path)

    def older(*args):
        saved = load(*args)
        for name in ("alpha", "centered", "schedule", "parameters"):
            del saved.state["settings"][name]
        return saved

    with mock.patch.object(checkpoint, "load", older):
        assert by(torch.optim.RMSprop).resume(path).step == 1


def test_resuming_from_nothing_is_an_error_not_a_fresh_start(tmp_path):
    with pytest.raises(CheckpointError, match=r"no step-"):
        build().resume(tmp_path)


def test_the_newest_valid_checkpoint_is_taken(tmp_path):
    trainer = build("dispersive")
    for _ in range(2):
        go(trainer, 3)
        trainer.save(tmp_path)
    file = tmp_path / "step-00000006" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        assert build("dispersive").resume(tmp_path).step == 3
    with pytest.raises(checkpoint.CheckpointCorruptError, match=r"weights\.safetensors"):
        build("dispersive").resume(tmp_path / "step-00000006")


def test_settings_of_terms_are_part_of_a_run(tmp_path):
    a = Trainer(objective.fm(Tiny()).plus(Dispersive(0.5, block=1)))
    go(a, 1)
    a.save(tmp_path)
    with pytest.raises(ResumeMismatchError):
        Trainer(objective.fm(Tiny()).plus(Dispersive(0.5, block=2))).resume(tmp_path)


@pytest.mark.parametrize("bound", [0.01, 1.0, 5.0, 1e3, None])
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.float64)])
def test_gradients_are_clipped_to_the_bits_of_torch_s_own_functions(bound, dtypes):
    g = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5, 7, generator=g, dtype=dtype)) for dtype in dtypes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for p, q in zip(ours, theirs):
        p.grad = torch.randn(5, 7, generator=g, dtype=p.dtype)
        q.grad = p.grad.clone()
    norm = optimizers.clip_gradients(ours, bound)
    assert torch.equal(norm, torch.nn.utils.get_total_norm([q.grad for q in theirs]))
    if bound is not None:
        torch.nn.utils.clip_grads_with_norm_(theirs, bound, norm)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours, theirs))


@pytest.mark.parametrize("world", [None, 2, "ddp", World])
def test_what_is_no_world_is_refused_by_name(world):
    for parallel in ("ddp", "fsdp"):
        with pytest.raises(ConfigError, match=r"world is .*; it must be a World"):
            Trainer(objective.fm(Tiny()), world=world, parallel=parallel)
