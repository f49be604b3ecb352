"""FSDP2: the parts of a model on several ranks train as the whole model does."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import ALONE
from cfm_lite.engine.sharded import full
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.runs.imagenet import build_imagenet_trainer, imagenet
from cfm_lite.runs.recipe import build_model
from cfm_lite.scale.dry_run import Made
from cfm_lite.scale.train import Options, train_imagenet
from tests.scale.conftest import SMALL
from tests.scale.test_ranks import done, losses, together, train

MADE = Made((4, 4, 4), 3)


def batch(world, rows=8):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 4, 4, 4, generator=g), torch.arange(rows) % 3
    mine = slice(world.rank * rows // world.size, (world.rank + 1) * rows // world.size)
    return x[mine], y[mine]


def gradients(folder, name, recipe=SMALL, **how):
    """A function of the world that keeps the gradients of one batch and their norm."""

    def work(world):
        trainer = build_imagenet_trainer(recipe, MADE, world=world, **how)
        log = trainer._train_step(batch(world), last=True)
        whole = [full(p.grad) for p in trainer.parameters if p.grad is not None]
        if world.is_main:
            torch.save(
                {
                    "grads": [g.clone() for g in whole],
                    "norm": log["grad_norm"],
                    "loss": log["loss"],
                },
                folder / f"{name}.pt",
            )

    return work


def read(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def grads(tmp_path_factory):
    """Gradients of one batch under DDP, under FSDP, and on one process, all unclipped."""
    folder, plain = tmp_path_factory.mktemp("gradients"), SMALL.changed(clip=0.0)
    done(together(2, folder, gradients(folder, "ddp", plain)))
    done(together(2, folder, gradients(folder, "fsdp", plain, parallel="fsdp")))
    done(
        together(
            2, folder, gradients(folder, "parts", plain.changed(accumulate=2), parallel="fsdp")
        )
    )
    gradients(folder, "one", plain)(ALONE)
    return {name: read(folder, name) for name in ("ddp", "fsdp", "parts", "one")}


@pytest.mark.parametrize("other", ["ddp", "one", "parts"])
def test_gradients_of_fsdp_are_means_and_those_of_ddp_of_one_process_and_of_micro_batches(
    grads, other
):
    """AdamW hides a factor of two, so the gradients themselves are compared, and the norm that
    clips them.
    """
    assert len(grads["fsdp"]["grads"]) == len(grads[other]["grads"])
    for a, b in zip(grads["fsdp"]["grads"], grads[other]["grads"]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    torch.testing.assert_close(grads["fsdp"]["norm"], grads[other]["norm"], rtol=1e-6, atol=0)
    assert max(g.abs().max() for g in grads["one"]["grads"]) > 1e-3


def test_two_ranks_keep_the_second_average_and_draw_on_the_way_as_one_process_does(data, tmp_path):
    recipe = SMALL.changed(ema2=0.5, sample_steps=2)
    train(data, tmp_path / "one", recipe, sample_every=3)(ALONE)
    one = checkpoint.load(checkpoint.latest(tmp_path / "one" / "checkpoints")).weights
    assert any(
        not torch.equal(one[f"ema2.{name[4:]}"], value)
        for name, value in one.items()
        if name.startswith("ema.")
    )
    for name, parallel in (("ddp", "ddp"), ("fsdp", "fsdp")):
        out = tmp_path / name
        done(
            together(
                2,
                tmp_path,
                train(data, out, recipe.changed(steps=3), parallel=parallel, sample_every=3),
            )
        )
        done(
            together(
                2,
                tmp_path,
                train(data, out, recipe, parallel=parallel, sample_every=3, resume=True),
            )
        )
        two = checkpoint.load(checkpoint.latest(out / "checkpoints")).weights
        assert two.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)
        for step in (3, 6):
            sheets = [
                np.asarray(Image.open(tmp_path / run / f"samples-step-{step:08d}.png")).astype(int)
                for run in ("one", name)
            ]
            assert abs(sheets[0] - sheets[1]).max() <= 2  # levels of 255


@pytest.mark.parametrize("method", ["vecor", "delta_fm", "dispersive"])
def test_fsdp_gives_the_loss_curve_of_one_process(data, run, tmp_path, method):
    recipe = (
        SMALL
        if method == "vecor"
        else imagenet(method, model="SiT-Ti/2", batch=8, shard=2, steps=6, size=32)
    )
    done(together(2, tmp_path, train(data, tmp_path / "two", recipe, parallel="fsdp")))
    if method != "vecor":
        train(data, tmp_path / "one", recipe)(ALONE)
    one = run if method == "vecor" else tmp_path / "one"
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=1e-6)
    ours, whole = (
        checkpoint.load(checkpoint.latest(folder / "checkpoints"))
        for folder in (tmp_path / "two", one)
    )
    assert ours.weights.keys() == whole.weights.keys()
    assert ours.optimizer.keys() == whole.optimizer.keys()
    atol = (
        1e-4 if method == "dispersive" else 1e-5
    )  # where gradients are all but zero, AdamW makes whole steps of their rounding
    for name, value in whole.weights.items():
        torch.testing.assert_close(ours.weights[name], value, rtol=0, atol=atol)
    for name, value in whole.optimizer.items():
        torch.testing.assert_close(ours.optimizer[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [(("fsdp", 2), ("ddp", 2)), (("ddp", 1), ("fsdp", 2)), (("fsdp", 2), ("ddp", 1))],
)
def test_a_run_goes_on_under_another_parallel_and_number_of_ranks(
    data, run, tmp_path, before, after
):
    for (parallel, ranks), recipe, resume in (
        (before, SMALL.changed(steps=3), False),
        (after, SMALL, True),
    ):
        done(
            together(
                ranks,
                tmp_path,
                train(data, tmp_path / "run", recipe, resume=resume, parallel=parallel),
            )
        )
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-6)
    ours, whole = (
        checkpoint.load(checkpoint.latest(folder / "checkpoints")).weights
        for folder in (tmp_path / "run", run)
    )
    for name, value in whole.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


def test_a_bad_batch_changes_no_part_of_the_parameters_or_the_average(tmp_path):
    def work(world):
        trainer = build_imagenet_trainer(SMALL, MADE, world=world, parallel="fsdp")
        list(trainer.run(iter([batch(world)] * 2), 2))
        kept = [
            full(p).clone()
            for module in (trainer.objective, trainer.ema)
            for p in module.parameters()
        ]
        x, y = batch(world)
        bad = x.clone()
        if world.rank == 1:
            bad[0, 0, 0, 0] = 1e30  # finite, and its square is not
        with pytest.raises(DivergenceError, match="step 3"):
            list(trainer.run(iter([(bad, y)]), 1))
        now = [full(p) for module in (trainer.objective, trainer.ema) for p in module.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(kept, now))

    done(together(2, tmp_path, work))


def test_a_rank_keeps_only_its_part(tmp_path):
    def work(world):
        trainer = build_imagenet_trainer(SMALL, MADE, world=world, parallel="fsdp")
        local = sum(p.to_local().numel() for p in trainer.parameters)
        whole = sum(p.numel() for p in trainer.parameters)
        assert 0.4 * whole < local < 0.6 * whole
        (tmp_path / f"{world.rank}.json").write_text(json.dumps(local))

    done(together(2, tmp_path, work))
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_one_process_needs_no_fsdp(data, tmp_path):
    with pytest.raises(ConfigError, match="torchrun"):
        train_imagenet(SMALL, data, Options(tmp_path / "run", parallel="fsdp", progress=False))


def test_an_optimizer_for_whole_parameters_is_refused():
    trainer = build_imagenet_trainer(SMALL, MADE)
    with pytest.raises(ConfigError, match="parallel"):
        type(trainer)(trainer.objective, trainer.optimizer, parallel="fsdp")


def looks(trainer):
    """The average and the network looked at from outside in every way there is: called, by
    features, read, and as a state dict.
    """
    g = torch.Generator().manual_seed(5)
    x, t, y = torch.randn(2, 4, 4, 4, generator=g), torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    seen = []
    for model in (trainer.ema, trainer.objective.model):
        with torch.no_grad():
            seen += [model(x, t, y), model.forward_features(x, t, y, (1,))[0]]
        seen += [full(p) for p in model.parameters()]
        seen += [full(value) for value in model.state_dict().values()]
    seen.append(trainer.ema(x, t, y))  # with a graph, too
    return [value.detach().clone() for value in seen]


@pytest.mark.parametrize("first", [True, False])
def test_an_average_that_is_looked_at_during_training_is_that_of_ddp(tmp_path, first):
    """A part that stays whole after a call would hide the updates of its slices; `first`: before
    the first step as well.
    """
    recipe = SMALL.changed(ema=0.5)

    def watched(parallel):
        def work(world):
            trainer = build_imagenet_trainer(recipe, MADE, world=world, parallel=parallel)
            seen = looks(trainer) if first else []
            for _ in range(3):
                list(trainer.run([batch(world)], 1))
                seen += looks(trainer)
            if world.is_main:
                torch.save(seen, tmp_path / f"{parallel}.pt")

        return work

    for parallel in ("ddp", "fsdp"):
        done(together(2, tmp_path, watched(parallel)))
    for a, b in zip(read(tmp_path, "ddp"), read(tmp_path, "fsdp"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_fsdp_in_bf16_is_ddp_in_bf16_up_to_its_rounding_and_keeps_float32(tmp_path):
    """Three steps: FSDP casts a block's weights once where autocast casts them at each use, and
    sums gradients in float32 as DDP does.
    """
    recipe = SMALL.changed(precision="bf16", clip=0.0)

    def work_under(parallel):
        def work(world):
            model = build_model(recipe, MADE)
            g = torch.Generator().manual_seed(7)
            for p in model.parameters():
                if p.requires_grad:
                    p.data += 0.05 * torch.randn(
                        p.shape, generator=g
                    )  # nowhere 0, so that every part has a gradient
            start = {
                f"objective.model.{name}": value.clone()
                for name, value in model.state_dict().items()
            }
            trainer = build_imagenet_trainer(
                recipe, MADE, world=world, parallel=parallel, model=model
            )
            times: list[torch.Tensor] = []
            trainer.objective.model.t_embedder.register_forward_hook(
                lambda module, args, out: times.append(out.detach().clone())
            )
            dtypes: set[torch.dtype] = set()
            attention = trainer.objective.model.blocks[0].attn
            attention.register_forward_pre_hook(
                lambda module, args: dtypes.update(p.dtype for p in module.parameters())
            )
            seen = [log["loss"] for log in trainer.run(iter([batch(world)] * 3), 3)]
            trainer.save(tmp_path / parallel)
            assert {p.grad.dtype for p in trainer.parameters if p.grad is not None} == {
                torch.float32
            }
            if world.is_main:
                found = {
                    "losses": seen,
                    "time": times[0],
                    "start": start,
                    "computed in": list(dtypes),
                }
                torch.save(found, tmp_path / f"{parallel}.pt")

        return work

    for parallel in ("ddp", "fsdp"):
        done(together(2, tmp_path, work_under(parallel)))
    ddp, fsdp = read(tmp_path, "ddp"), read(tmp_path, "fsdp")
    assert torch.equal(ddp["time"], fsdp["time"])
    torch.testing.assert_close(
        torch.stack(fsdp["losses"]), torch.stack(ddp["losses"]), rtol=2**-8, atol=0
    )  # one rounding to bf16
    ours, whole = (checkpoint.load(checkpoint.latest(tmp_path / name)) for name in ("fsdp", "ddp"))
    for part in (ours.weights, ours.optimizer, whole.weights, whole.optimizer):
        assert {x.dtype for x in part.values() if x.is_floating_point()} == {torch.float32}
    moved = torch.cat(
        [(whole.weights[name] - value).flatten() for name, value in ddp["start"].items()]
    ).norm()
    apart = torch.cat(
        [(whole.weights[name] - ours.weights[name]).flatten() for name in ddp["start"]]
    ).norm()
    assert moved > 0
    assert apart < 0.1 * moved
    assert fsdp["computed in"] == [torch.bfloat16]
