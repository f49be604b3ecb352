"""Stopping at any step and going on equals not stopping, bit for bit; and every piece of saved
state is needed for that.
"""

import copy
from unittest import mock

import pytest
import torch

from cfm_lite.engine import checkpoint
from cfm_lite.errors import CFMError, ResumeMismatchError
from tests.faults import counts
from tests.faults.work import (
    DIGITS,
    METHODS,
    POINTS,
    data_of,
    digest,
    going_on,
    new_trainer,
    steps,
    unbroken,
)

RECIPES = {
    f"{method}-{base.dataset}": base.changed(method=method)
    for base in (POINTS, DIGITS)
    for method in METHODS
}
RECIPES = {
    name: recipe for name, recipe in RECIPES.items() if name != "vecor-digits"
}  # one channel cannot be shuffled
RECIPES["vecor_latent-two_classes"] = RECIPES["vecor_latent-two_classes"].changed(
    perturb="channel_shuffle"
)
A_FEW = (
    1,
    5,
    19,
    20,
    31,
    59,
)  # warm-up, inside an epoch, its last batch, its end, mid-epoch, the step before the last


def stopped_at(recipe, data, folder, stops):
    """{stop: whether going on from there gives the same losses and the same digest}, saved along
    one run.
    """
    curve, end = unbroken(recipe, data)
    trainer = new_trainer(recipe, data)
    same = {}
    for step, _ in steps(trainer, recipe, data, recipe.steps):
        if step in stops:
            trainer.save(folder / str(step))
            again = going_on(recipe, data, folder / str(step))
            rest = dict(steps(again, recipe, data, recipe.steps))
            same[step] = (
                rest == {s: loss for s, loss in curve.items() if s > step} and digest(again) == end
            )
    return same


@pytest.mark.parametrize("name", ["fm-two_classes", "repa-digits", "contrastive-two_classes"])
def test_a_run_stopped_at_a_few_places_goes_on_bit_for_bit(name, tmp_path):
    recipe = RECIPES[name]
    same = stopped_at(recipe, data_of(recipe), tmp_path, A_FEW)
    assert same == dict.fromkeys(A_FEW, True)


@pytest.mark.faults
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_stopped_at_every_step_goes_on_bit_for_bit(name, tmp_path):
    recipe = RECIPES[name]
    same = stopped_at(recipe, data_of(recipe), tmp_path, range(1, recipe.steps))
    counts.write(
        f"resume-{name}", stops=len(same), differing=sum(not value for value in same.values())
    )
    assert len(same) == recipe.steps - 1
    assert all(same.values())


# every piece of saved state, and what is put in its place
MUTANTS = {
    "parameters": lambda saved: saved.weights.update(
        {k: v + 1e-3 for k, v in saved.weights.items() if k.startswith("objective.")}
    ),
    "average": lambda saved: saved.weights.update(
        {k: v * 0 for k, v in saved.weights.items() if k.startswith("ema.")}
    ),
    "first moments": lambda saved: saved.optimizer.update(
        {k: v * 0 for k, v in saved.optimizer.items() if k.endswith("exp_avg")}
    ),
    "second moments": lambda saved: saved.optimizer.update(
        {k: v * 0 for k, v in saved.optimizer.items() if k.endswith("exp_avg_sq")}
    ),
    "the optimizer's step": lambda saved: saved.optimizer.update(
        {k: v * 0 + 1 for k, v in saved.optimizer.items() if k.endswith(".step")}
    ),
    "the count of the average": lambda saved: saved.state.update(averaged=3),
    "the learning rate's group": lambda saved: [
        group.update(betas=[0.5, 0.5]) for group in saved.state["groups"]
    ],
    "the step": lambda saved: object.__setattr__(saved, "step", saved.step - 1),
}


@pytest.mark.parametrize("piece", MUTANTS)
def test_each_piece_of_saved_state_is_needed(piece, tmp_path):
    """The equality above fails where one of them is not brought back."""
    recipe, data = POINTS.changed(steps=24), data_of(POINTS)
    _, end = unbroken(recipe, data)
    trainer = new_trainer(recipe, data)
    list(steps(trainer, recipe, data, 12))
    trainer.save(tmp_path)
    load = checkpoint.load

    def mutated(*args):
        saved = copy.deepcopy(load(*args))
        MUTANTS[piece](saved)
        return saved

    with mock.patch.object(checkpoint, "load", mutated):
        again = going_on(recipe, data, tmp_path)
    list(steps(again, recipe, data, recipe.steps))
    assert digest(again) != end


@pytest.mark.parametrize("key", ["seed", "averaged", "groups", "settings", "step"])
def test_a_missing_piece_is_named(key, tmp_path):
    data = data_of(POINTS)
    trainer = new_trainer(POINTS, data)
    list(steps(trainer, POINTS, data, 3))
    path = trainer.save(tmp_path)
    load = checkpoint.load

    def without(*args):
        saved = load(*args)
        saved.state.pop(key)
        return saved

    with (
        mock.patch.object(checkpoint, "load", without),
        pytest.raises(ResumeMismatchError, match=key),
    ):
        new_trainer(POINTS, data).resume(path)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 24},
        {"depth": 2},
        {"method": "delta_fm"},
        {"seed": 3},
        {"ema": 0.5},
        {"clip": 2.0},
    ],
)
def test_a_run_of_other_settings_is_never_gone_on_with(change, tmp_path):
    data = data_of(POINTS)
    path = new_trainer(POINTS, data).save(tmp_path)
    with pytest.raises(ResumeMismatchError, match="saved"):
        new_trainer(POINTS.changed(**change), data).resume(path)


def test_how_often_a_run_is_logged_or_saved_changes_nothing(tmp_path):
    recipe, data, seen = POINTS.changed(steps=15), data_of(POINTS), set()
    for every in (1, 4, 50):
        trainer = new_trainer(recipe, data)
        trainer.log_every = every
        for step, _ in steps(trainer, recipe, data, recipe.steps):
            if step % every == 0:
                trainer.save(tmp_path / str(every))
                torch.randn(3)  # whatever else draws from the global generator
        seen.add(digest(trainer))
    assert len(seen) == 1


def test_steps_are_compared_as_numbers(tmp_path):
    data = data_of(POINTS)
    trainer = new_trainer(POINTS, data)
    for step in (9, 10, 10**9):
        trainer.step = step
        trainer.save(tmp_path, keep=5)
        assert checkpoint.load(checkpoint.latest(tmp_path)).step == step


def test_only_damaged_checkpoints_are_never_a_fresh_start(tmp_path):
    data = data_of(POINTS)
    trainer = new_trainer(POINTS, data)
    for step in (1, 2):
        trainer.step = step
        (trainer.save(tmp_path) / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CFMError, match=r"step-00000002.*step-00000001"):
        new_trainer(POINTS, data).resume(tmp_path)
