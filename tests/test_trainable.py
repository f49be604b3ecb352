"""Whatever cannot be trained, averaged, guarded or saved is found before the first step, and named;
the rest is saved and resumed.
"""

import copy
import re
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from cfm_lite import models, objective
from cfm_lite.data.batches import batches
from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import ALONE, joined
from cfm_lite.engine.sharded import full
from cfm_lite.errors import ConfigError, DistributedError
from cfm_lite.training import Trainer
from tests.networks import same_parameters
from tests.processes import interpreters, ranks

X1 = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """Two layers, and what `change` adds to them; `more(net, h)` is added to the output."""

    def __init__(self, change=lambda net: None, more=lambda net, h: 0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.more = more
            change(self)

    def forward(self, x, t):
        h = self.first(x)
        return self.second(h) + self.more(self, h)


def tie(net):
    net.second.weight = net.first.weight


def weight_norm(net):
    nn.utils.parametrizations.weight_norm(net.second)


def spectral_norm(net):
    nn.utils.parametrizations.spectral_norm(net.second)


def transposed(net):
    net.second.weight = nn.Parameter(net.second.weight.detach().T.contiguous().T)


def channels_last(net):
    net.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)


def batch_norm(net):
    net.first = nn.Sequential(net.first, nn.BatchNorm1d(2))


def buffers(net):
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.float8_e4m3fn,
        torch.complex64,
    ):
        net.register_buffer("of_" + str(dtype).removeprefix("torch."), torch.ones(3).to(dtype))
    net.register_buffer("count", torch.tensor(0))
    net.register_buffer("passing", torch.ones(1), persistent=False)


def frozen(net):
    net.first.requires_grad_(False)
    net.integers = nn.Parameter(torch.arange(3), requires_grad=False)
    net.bytes = nn.Parameter(torch.ones(3).to(torch.float8_e5m2), requires_grad=False)


def scalar(net):
    net.gain = nn.Parameter(torch.tensor(0.5))


def half(net):
    net.gain = nn.Parameter(torch.tensor([0.5], dtype=torch.bfloat16))


def unused(net):
    net.spare = nn.Linear(2, 2)


def views(net):
    whole = torch.zeros(4)
    net.register_buffer("low", whole[:2])
    net.register_buffer("all", whole)


GOOD = {
    "tied weights": Net(tie),
    "weight_norm": Net(weight_norm),
    "spectral_norm": Net(spectral_norm),
    "a transposed weight": Net(transposed),
    "channels last": Net(
        channels_last,
        lambda net, h: net.conv(h[:, :, None, None].expand(-1, -1, 3, 3)).flatten(1)[:, :2],
    ),
    "BatchNorm": Net(batch_norm),
    "buffers of every kind": Net(buffers, lambda net, h: net.count.add_(1) * 0.0),
    "frozen parts": Net(frozen),
    "a parameter without dimension": Net(scalar, lambda net, h: net.gain * h),
    "a parameter in bfloat16": Net(half, lambda net, h: net.gain.float() * h),
    "a parameter without gradient": Net(unused),
    "buffers that share memory": Net(views),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_trained_is_averaged_saved_and_resumed_bit_for_bit(name, tmp_path):
    def build():
        return Trainer(objective.fm(copy.deepcopy(GOOD[name])), lr=1e-2, ema_decay=0.5, log_every=1)

    straight, stopped, resumed = build(), build(), build()
    list(straight.run(batches(X1, size=8), 4))
    list(stopped.run(batches(X1, size=8), 2))
    stopped.save(tmp_path)
    list(
        resumed.run(batches(X1, size=8, seed=3), 1)
    )  # other numbers, which the file has to replace
    resumed.resume(tmp_path)
    list(resumed.run(batches(X1, size=8, start=2), 2))
    assert same_parameters(straight.objective, resumed.objective)
    assert same_parameters(straight.ema, resumed.ema)
    assert not same_parameters(straight.objective, stopped.objective)


def test_a_tied_weight_is_stored_once_read_under_both_names_and_stays_tied(tmp_path):
    trainer = Trainer(objective.fm(Net(tie)))
    list(trainer.run(batches(X1, size=8), 2))
    saved = trainer.save(tmp_path)
    stored = safetensors.torch.load_file(saved / "weights.safetensors")
    assert (
        len([name for name in stored if name.endswith("weight")]) == 2
    )  # the model's and the average's
    read = checkpoint.load(saved).weights
    assert torch.equal(read["objective.model.first.weight"], read["objective.model.second.weight"])
    assert trainer.ema.first.weight is trainer.ema.second.weight
    other = Trainer(objective.fm(Net(tie))).resume(tmp_path)
    assert other.objective.model.first.weight is other.objective.model.second.weight


def lazy(net):
    net.second = nn.LazyLinear(2)


def meta(net):
    net.second = nn.Linear(2, 2, device="meta")


def sparse(net):
    net.table = nn.Embedding(3, 2, sparse=True)


def sparse_tensor(net):
    net.register_buffer("graph", torch.eye(2).to_sparse())


def complex_weight(net):
    net.gain = nn.Parameter(torch.ones(2, dtype=torch.complex64))


def expanded(net):
    net.gain = nn.Parameter(torch.ones(1).expand(2))


def expanded_buffer(net):
    net.register_buffer("gain", torch.ones(1).expand(2))


def old_weight_norm(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net.second)


def result(net):
    net.kept = net.first(torch.ones(1, 2))


def inference(net):
    with torch.inference_mode():
        net.register_buffer("made", torch.ones(2))


def extra(net):
    net.second = type(
        "Extra",
        (nn.Linear,),
        {"get_extra_state": lambda self: {"step": 1}, "set_extra_state": lambda self, s: None},
    )(2, 2)


def wide(net):
    net.register_buffer("wide", torch.ones(1, dtype=torch.complex128))


def nan(net):
    net.second.bias.data[0] = torch.nan


def eight_bits(net):
    net.gain = nn.Parameter(torch.ones(2).to(torch.float8_e5m2))


def all_frozen(net):
    net.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lazy, "model.second.weight has no shape yet"),
        (meta, "model.second.weight is on the meta device"),
        (sparse, "model.table gives sparse gradients.*sparse=False"),
        (sparse_tensor, r"model.graph has the layout torch.sparse_coo"),
        (complex_weight, "model.gain is complex"),
        (expanded, r"model.gain was expanded.*clone"),
        (expanded_buffer, r"model.gain was expanded.*clone"),
        (old_weight_norm, r"second.weight is the result of a computation.*parametrizations"),
        (result, "kept is the result of a computation"),
        (inference, "model.made was made in inference mode"),
        (extra, r"model.second._extra_state, a dict"),
        (wide, "model.wide has dtype torch.complex128"),
        (nan, "model.second.bias.*NaN"),
        (eight_bits, r"model.gain has dtype torch.float8_e5m2.*requires_grad_\(False\)"),
        (all_frozen, "no parameter that requires a gradient"),
    ],
)
def test_what_cannot_be_trained_or_saved_is_named_before_the_first_step(change, words):
    with pytest.raises(ConfigError, match=words):
        Trainer(objective.fm(Net(change)))


def test_a_velocity_without_a_gradient_is_named_at_the_first_step():
    trainer = Trainer(
        objective.fm(
            type("Cut", (Net,), {"forward": lambda self, x, t: Net.forward(self, x, t).detach()})()
        )
    )
    with pytest.raises(ConfigError, match="the loss has no gradient"):
        list(trainer.run(batches(X1, size=8), 1))


def test_a_model_whose_memory_is_ordered_anew_after_its_average_was_made_is_averaged_number_by_number():
    trainer = Trainer(
        objective.fm(
            Net(
                channels_last,
                lambda net, h: net.conv(h[:, :, None, None].expand(-1, -1, 3, 3)).flatten(1)[:, :2],
            )
        )
    )
    trainer.objective.model.to(memory_format=torch.contiguous_format)
    list(trainer.run(batches(X1, size=8), 3))
    torch.testing.assert_close(
        trainer.ema.conv.weight, trainer.objective.model.conv.weight, atol=0.02, rtol=0
    )
    assert (trainer.ema.conv.weight - trainer.objective.model.conv.weight).abs().max() < 0.01


def test_an_optimizer_whose_rate_is_a_tensor_is_saved_and_resumed(tmp_path):
    built = objective.fm(Net())
    trainer = Trainer(
        built,
        torch.optim.Adam(
            built.parameters(), lr=torch.tensor(0.25), capturable=False, foreach=False
        ),
    )
    list(trainer.run(batches(X1, size=8), 1))
    trainer.save(tmp_path)
    assert trainer.resume(tmp_path).step == 1


def built(net, world, parallel):
    return Trainer(
        objective.fm(copy.deepcopy(net), shard=4), lr=1e-2, ema_decay=0.5, log_every=1,
        world=world, parallel=parallel,
    )  # fmt: skip


def three_steps(net, world, parallel, folder, x1):
    """The trained numbers after three steps; a run that was saved after two gives the same bits."""
    rows = len(x1) // world.size
    mine = x1[rows * world.rank : rows * (world.rank + 1)]
    straight = built(net, world, parallel)
    list(straight.run([mine] * 2, 2))
    straight.save(folder)
    list(straight.run([mine], 1))
    resumed = built(net, world, parallel).resume(folder)
    list(resumed.run([mine], 1))
    mine, theirs = ([full(p) for p in trainer.parameters] for trainer in (straight, resumed))
    assert all(map(torch.equal, mine, theirs))
    return mine


def at_once(*changes):
    """One network with all of this."""

    def more(net, h):
        maps = h[:, :, None, None].expand(-1, -1, 3, 3)
        return net.conv(maps).flatten(1)[:, :2] + net.gain * h + net.count.add_(1) * 0.0

    every = (transposed, channels_last, buffers, views, unused, frozen, *changes)
    return Net(lambda net: [change(net) for change in every], more)


def for_parts(net):
    """What FSDP takes in place of a scalar and of frozen 8 bits, as its errors say."""
    net.gain = nn.Parameter(torch.tensor([0.5]))
    in_bytes = net.bytes.detach()
    del net.bytes
    net.register_buffer("bytes", in_bytes)


def test_two_ranks_train_save_and_resume_what_one_process_does_or_say_why_not(tmp_path):
    """One start tries all, because it takes seconds."""
    whole, parts = at_once(scalar), at_once(for_parts)
    unet = models.UNet(8, 1, channels=(8, 16), num_heads=2)
    pictures = X1[:8].repeat(1, 32).reshape(8, 1, 8, 8)
    refused = {
        scalar: r"model.gain has no dimension.*\(1,\).*'ddp'",
        frozen: "model.bytes has dtype torch.float8_e5m2.*buffer.*'ddp'",
        half: r"model.gain has torch.bfloat16, model.second.bias has torch.float32.*float\(\).*'ddp'",
    }
    cases = ("ddp", whole, X1[:8]), ("fsdp", parts, X1[:8]), ("fsdp", unet, pictures)
    alone = [
        three_steps(net, ALONE, "ddp", tmp_path / f"{i}", x1)
        for i, (_, net, x1) in enumerate(cases)
    ]

    def work():
        with joined() as world:
            for i, (parallel, net, x1) in enumerate(cases):
                both = three_steps(net, world, parallel, tmp_path / f"{i} together", x1)
                # where gradients are all but zero, AdamW makes steps of their rounding
                apart = torch.cat([(a - b).flatten() for a, b in zip(both, alone[i], strict=True)])
                assert apart.abs().mean() < 1e-4
            # saved by one process, which has no moments of a parameter without gradient
            going_on = built(parts, world, "fsdp").resume(tmp_path / "1")
            list(going_on.run([X1[4 * world.rank : 4 * world.rank + 4]], 1))
            assert all(
                (full(a) - b).abs().mean() < 1e-4
                for a, b in zip(going_on.parameters, alone[1], strict=True)
            )
            for change, words in refused.items():
                with pytest.raises(ConfigError, match=words):
                    Trainer(objective.fm(Net(change)), world=world, parallel="fsdp")
            Trainer(objective.fm(Net(half).float()), world=world, parallel="fsdp")

    started = ranks([work] * 2, tmp_path)
    assert started.wait() == [0, 0], "\n".join(started.texts())


class Now(nn.Module):
    """A network that uses its `gain` in some of a step's four micro-batches only, and only in some
    `steps`.
    """

    def __init__(self, when, first, count, steps=(0, 1, 2)):
        super().__init__()
        self.net, self.gain = Net(unused), nn.Parameter(torch.ones(2))
        self.when, self.first, self.count, self.calls = when, first, count, 0
        self.steps = steps

    def forward(self, x, t):
        number, step = self.first + self.calls % self.count, self.calls // self.count
        self.calls += 1
        used = number in self.when and step in self.steps
        return self.net(x, t) + (self.gain * x if used else 0)


# of two ranks the first has the micro-batches 0 and 1, the other 2 and 3
WHEN = {"early": (0, 2), "early on one rank": (0,), "late on one rank": (3,), "either": (0, 3)}


CASES = [(parallel, when) for parallel in ("ddp", "fsdp") for when in WHEN]


def by_micro_batches(world, parallel, when):
    """The trained numbers after three steps of four micro-batches in all."""
    each = 4 // world.size
    net = Now(WHEN[when], world.rank * each, each)
    trainer = Trainer(
        objective.fm(net, shard=2), torch.optim.SGD(net.parameters(), 0.1) if parallel == "ddp" else None,
        accumulate=each, clip=None, world=world, parallel=parallel,
    )  # fmt: skip
    list(trainer.run([X1[2 * each * world.rank : 2 * each * (world.rank + 1)]] * 3, 3))
    return torch.cat([full(p).detach().flatten() for p in trainer.parameters])


def by_steps(world, parallel):
    """The trained numbers after each of three steps; no rank uses `gain` in the second, and one
    alone in the third. What has a gradient of 0 moves: by momentum and by the decay.
    """
    each = 4 // world.size
    net, found = Now((0, 1, 2, 3), world.rank * each, each, steps=(0, 2)), []
    trainer = Trainer(
        objective.fm(net, shard=2), torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=0.1)
        if parallel == "ddp" else None, weight_decay=None if parallel == "ddp" else 0.1,
        accumulate=each, clip=None, world=world, parallel=parallel,
    )  # fmt: skip
    for log in trainer.run([X1[2 * each * world.rank : 2 * each * (world.rank + 1)]] * 3, 3):
        net.when = (3,) if int(log["step"]) == 2 else net.when
        found.append(torch.cat([full(p).detach().flatten() for p in trainer.parameters]))
    return torch.stack(found)


class Late(nn.Module):
    """A block that uses one layer always, one in each second pass, and one never."""

    def __init__(self):
        super().__init__()
        self.always, self.second, self.never = (nn.Linear(2, 2) for _ in range(3))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.always(x) + (self.second(x) if self.calls % 2 == 0 else 0)


class Blocks(nn.Module):
    """Three blocks, of which those are run that `which(step)` names, in this order."""

    def __init__(self, which=lambda step: (0, 1, 2), block=lambda: nn.Sequential(nn.Linear(2, 2))):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([block() for _ in range(3)])
        self.which, self.step = which, 0

    def forward(self, x, t):
        self.step += 1
        for number in self.which(self.step):
            x = x + self.blocks[number](x)
        return x.float()


def in_half(world, parallel):
    """Trained in bf16 by two micro-batches a rank; the last block is never run."""
    net = Blocks(lambda step: (0, 1), Late)
    trainer = Trainer(
        objective.fm(net, shard=2), precision="bf16", accumulate=2, world=world, parallel=parallel
    )
    list(trainer.run([X1[4 * world.rank : 4 * world.rank + 4]] * 3, 3))
    return torch.cat([full(p).detach().flatten() for p in trainer.parameters])


def on_a_rank(world, folder):
    torch.testing.assert_close(in_half(world, "fsdp"), in_half(world, "ddp"), rtol=0, atol=1e-4)
    for parallel, when in CASES:
        found = by_micro_batches(world, parallel, when)
        if world.is_main:
            torch.save(found, f"{folder}/{parallel} {when}.pt")
    for parallel in ("ddp", "fsdp"):
        found = by_steps(world, parallel)
        if world.is_main:
            torch.save(found, f"{folder}/{parallel} by steps.pt")


def test_a_parameter_that_only_some_micro_batches_or_steps_use_is_trained_as_on_one_process(
    tmp_path,
):
    started = interpreters("tests.test_trainable:on_a_rank", 2, tmp_path, str(tmp_path))
    assert started.wait() == [0, 0], "\n".join(started.texts())
    for parallel, when in CASES:
        found = torch.load(tmp_path / f"{parallel} {when}.pt", weights_only=True)
        alone = by_micro_batches(ALONE, parallel, when)
        assert not torch.equal(alone[:2], torch.ones(2))
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6, msg=f"{parallel}, {when}")
    for parallel in ("ddp", "fsdp"):
        found = torch.load(tmp_path / f"{parallel} by steps.pt", weights_only=True)
        alone = by_steps(ALONE, parallel)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5, msg=f"{parallel}, by steps")
        assert torch.equal(found[0, :2], found[1, :2])  # what no rank uses stays as it is
        assert (found[0, :2] != found[2, :2]).all()


OTHER = {
    "another block": ((0, 2), (1, 2), "blocks.0", "blocks.1"),
    "another order": ((0, 1, 2), (1, 0, 2), "blocks.0", "blocks.1"),
    "a block more": ((0, 1, 2), (0, 2), "blocks.1", "blocks.2"),
    "a last block more": ((0, 1, 2), (0, 1), "blocks.2", "the end"),
}


@pytest.mark.parametrize("case", OTHER)
def test_ranks_that_run_other_blocks_under_fsdp_are_told_which_and_what_to_do(case, tmp_path):
    """Blocks of one size would be taken for each other; with a block more a rank waits until the
    time limit.
    """
    *which, first, second = OTHER[case]
    said = (
        rf"in step 2 rank 0 came to (model\.)?{first} and rank 1 to (model\.)?{second}; with "
        r"parallel='fsdp' all ranks must run the same blocks in the same order\. Choose by what "
        r"they share, such as the step, or use 'ddp'\."
    )

    def disagree():
        with joined() as world:
            net = Blocks(lambda step: (0, 1, 2) if step == 1 else which[world.rank])
            trainer = Trainer(objective.fm(net, shard=2), world=world, parallel="fsdp")
            list(trainer.run([X1[:4]], 1))
            before = [p.to_local().clone() for p in trainer.parameters]
            try:
                list(trainer.run([X1[:4]] * 2, 2))
            finally:
                assert all(torch.equal(a, p.to_local()) for a, p in zip(before, trainer.parameters))

    def work():
        with pytest.raises(DistributedError) as error:
            disagree()
        print(error.value)
        return 0 if re.search(said, str(error.value)) else 7

    started = ranks([work] * 2, tmp_path, timeout=8)
    # of two that wait, the first to give up may take the store of the ranks with it
    assert set(started.wait()) <= ({0} if "another" in case else {0, 7})
    assert any(re.search(said, text) for text in started.texts()), started.texts()
