"""The average: its formula, its gate, and the bits of torch's AveragedModel, which it replaces."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from cfm_lite import objective
from cfm_lite.data.batches import batches
from cfm_lite.engine.average import Average, lerp, share_of_start
from cfm_lite.training import Trainer
from tests.networks import Tiny, same_parameters

X1, Y = torch.randn(60, 2, generator=torch.Generator().manual_seed(5)), torch.arange(60) % 3


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in ((3, 4), (5,), (1, 2, 3))]


@pytest.mark.parametrize("warmup", [False, True])
def test_twenty_steps_give_the_bits_of_averaged_model(warmup):
    trainer = Trainer(
        objective.delta_fm(Tiny(), shard=8), lr=1e-2, ema_decay=0.9, ema_warmup=warmup
    )
    seen = []

    def old_formula(ema, params, count):
        n = int(reference.n_averaged)
        seen.append(n)
        torch._foreach_lerp_(ema, params, 1 - (min(0.9, (1 + n) / (10 + n)) if warmup else 0.9))

    reference = AveragedModel(trainer.objective.model, multi_avg_fn=old_formula)
    for _ in trainer.run(batches(X1, Y, size=16), 20):
        reference.update_parameters(trainer.objective.model)
    assert seen == list(range(1, 20))
    assert same_parameters(trainer.ema, reference.module)


def test_the_gated_form_is_the_plain_one_where_the_step_was_good():
    plain, gated, params = weights(0), weights(0), weights(1)
    lerp(plain, params, 0.1)
    lerp(gated, params, 0.1, torch.ones(()))
    for a, b in zip(plain, gated):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-7)
    assert all(
        torch.equal(p, q) for p, q in zip(params, weights(1))
    )  # what is averaged stays as it is


@pytest.mark.gpu
@pytest.mark.parametrize("ok", [0.0, 1.0])
def test_on_cuda_the_gated_kernel_is_the_lerp(ok):
    ema, params = ([w.cuda() for w in weights(seed)] for seed in (0, 1))
    lerp(ema, params, 0.1, torch.full((), ok, device="cuda"))
    for e, old, p, new in zip(ema, weights(0), weights(1), params):
        torch.testing.assert_close(e.cpu(), old.lerp(p, 0.1 * ok), rtol=0, atol=2e-7)
        assert torch.equal(new.cpu(), p)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("updates", [0, 1, 2, 30])
def test_the_share_of_the_start_is_what_an_average_keeps_of_it(warmup, updates):
    average, model = Average(Tiny(), 0.9, warmup), Tiny()
    with torch.no_grad():
        for n in range(updates):
            for p in model.parameters():
                p.fill_(1.0 if n == 0 else 0.0)  # the first update copies the start
            average.update_parameters(model)
    kept = next(average.module.parameters()).flatten()[0].item() if updates else 1.0
    assert share_of_start(0.9, warmup, updates) == pytest.approx(kept, rel=1e-5)


def test_a_bad_step_moves_nothing_even_where_the_model_is_not_finite():
    ema, params = weights(0), [p * float("nan") for p in weights(1)]
    lerp(ema, params, 0.1, torch.zeros(()))
    assert all(torch.equal(e, old) for e, old in zip(ema, weights(0)))


def test_parameters_of_several_dtypes_are_averaged_each_in_its_own():
    ema, params = [w.double() if i == 1 else w for i, w in enumerate(weights(0))], weights(1)
    params[1] = params[1].double()
    lerp(ema, params, 0.25, torch.ones(()))
    for e, old, p in zip(ema, weights(0), params):
        torch.testing.assert_close(e, old.to(e.dtype).lerp(p, 0.25))


def test_the_first_update_copies_and_buffers_follow():
    model = torch.nn.BatchNorm1d(4)
    average = Average(model, 0.9)
    with torch.no_grad():
        for p in [*model.parameters(), model.running_mean]:
            p.add_(1.0)
    average.update_parameters(model)
    assert average.n_averaged == 1
    assert same_parameters(average.module, model)
    model.running_mean.add_(1.0)
    average.update_parameters(model)
    assert same_parameters(average.module, model)


class Counting(torch.nn.Module):
    """A module that makes its buffers anew, as `self.seen = self.seen + 1` does."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("rows", torch.zeros(0))  # one more entry at each call
        self.register_buffer("late", None)  # a tensor only after the first call
        self.register_buffer("early", torch.ones(1))  # and none after it

    def forward(self, x, t):
        if self.training:
            self.seen, self.rows = self.seen + 1, torch.cat([self.rows, self.seen[None]])
            self.late, self.early = self.seen.double(), None
        return self.gain * x


def test_a_buffer_that_is_made_anew_at_each_step_is_followed_too():
    trainer = Trainer(objective.fm(Counting()))
    for number, _ in enumerate(trainer.run([X1[:8]] * 3, 3), 1):
        ema, model = trainer.ema, trainer.objective.model
        assert ema.seen.item() == number
        assert ema.rows.tolist() == list(range(number))
        assert torch.equal(ema.late, model.late)
        assert ema.late.dtype == torch.float64
        assert ema.early is None
        assert not {b.data_ptr() for b in ema.buffers()} & {b.data_ptr() for b in model.buffers()}


def test_the_average_is_neither_trained_nor_the_model_itself():
    model = Tiny()
    average = Average(model, 0.9)
    before = copy.deepcopy(average.module.state_dict())
    with torch.no_grad():
        model.first.weight.add_(1.0)
    assert not any(p.requires_grad for p in average.module.parameters())
    assert all(
        torch.equal(before[key], value) for key, value in average.module.state_dict().items()
    )
