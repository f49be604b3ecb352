"""ImageNet's recipes: presets, the official sizes, and how a batch is dealt to ranks and
micro-batches.
"""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.card import method_name
from cfm_lite.models import SIT_CONFIGS, SiT, count_parameters
from cfm_lite.objective import Dispersive, Repulsion
from cfm_lite.runs.imagenet import (
    MODELS,
    PRESETS,
    ImageNet,
    build_imagenet_objective,
    build_imagenet_trainer,
    imagenet,
    versus,
)
from cfm_lite.runs.recipe import Recipe, build_model, from_dict
from cfm_lite.scale.budget import Split, activation_bytes, peak_bytes, split_batch, state_bytes
from cfm_lite.scale.dry_run import Made

DATA = Made((4, 4, 4), 3)
TINY = {"model": "SiT-Ti/2"}
# parameters with 1,000 classes at 256 pixels: (without, with learn_sigma), counted from the
# official definitions
OFFICIAL = {
    "SiT-S/2": (32_957_200, 32_963_360),
    "SiT-B/2": (130_500_112, 130_512_416),
    "SiT-L/2": (458_086_416, 458_102_816),
    "SiT-XL/2": (675_111_184, 675_129_632),
}


class Teacher(torch.nn.Module):
    dim = 5

    def forward(self, images):
        assert images.max() <= 1
        return images.mean((1, 2, 3))[:, None, None].expand(-1, 4, 5)


@pytest.mark.parametrize(
    ("name", "learn_sigma"), [(name, flag) for name in OFFICIAL for flag in (False, True)]
)
def test_the_official_models_have_the_official_parameter_counts(name, learn_sigma):
    recipe = imagenet("sit", model=name, learn_sigma=learn_sigma)
    with torch.device("meta"):
        model = SiT(
            hidden_size=recipe.hidden_size,
            depth=recipe.depth,
            num_heads=recipe.num_heads,
            learn_sigma=learn_sigma,
        )
    assert count_parameters(model)[0] == OFFICIAL[name][learn_sigma]


def test_the_models_are_the_official_ones_and_our_tiny_one():
    assert set(MODELS) == {*SIT_CONFIGS, "SiT-Ti/2"}
    assert len(SIT_CONFIGS) == 12
    model = build_model(imagenet(**TINY), DATA)
    assert count_parameters(model)[0] < 500_000


@pytest.mark.parametrize("model", ["SiT-Ti/2", "SiT-B/2"])
@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_is_a_recipe_that_survives_being_written_down(method, model):
    recipe = imagenet(method, model=model)
    again = from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert again == recipe
    assert isinstance(again, ImageNet)
    assert 1 <= recipe.block <= recipe.depth
    assert 1 <= recipe.align_block <= recipe.depth
    assert all(len(row) == 3 for row in versus(method))


@pytest.mark.parametrize("model", ["SiT-XL/2", "SiT-Ti/2"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_run_is_called_by_its_preset_also_when_fields_were_changed_and_written_down(name, model):
    for changes in (
        {},
        {"steps": 7, "ema": 0.5, "guidance": 4.0},
        {"batch": 64, "shard": 32},
        {"lr": 1.0, "seed": 3, "precision": "float32"},
    ):
        made = imagenet(name, model=model, **changes)
        assert method_name(from_dict(made.as_dict())) == name
        assert method_name(made, debias=True) == f"{name}_debiased"
    assert method_name(imagenet("vecor", model=model, also="dispersive")) == "vecor+dispersive"
    assert (
        method_name(imagenet("repa", model=model).changed(method="vecor_latent"))
        == "repa_vecor_latent"
    )


def test_the_papers_numbers():
    jax, torch_ = imagenet("dispersive"), imagenet("dispersive_torch")
    assert (jax.spread, jax.tau, jax.block, jax.shard) == (0.5, 0.5, 7, 16)
    assert (torch_.spread, torch_.tau, torch_.block, torch_.shard) == (0.25, 1.0, 28, 32)
    for method in PRESETS:
        recipe = imagenet(method)
        assert (recipe.batch, recipe.lr, recipe.ema, recipe.label_dropout, recipe.ema_warmup) == (
            256,
            1e-4,
            0.9999,
            0.1,
            False,
        )
        repa_code = method not in ("sit", "dispersive", "dispersive_torch")
        assert (recipe.clip, recipe.mirror) == ((1.0, False) if repa_code else (0.0, True))
        assert recipe.align == (0.5 if method.startswith("repa") else 0)


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_builds_its_terms_and_takes_a_step(method):
    recipe = imagenet(method, **TINY, batch=8, shard=4)
    trainer = build_imagenet_trainer(recipe, DATA, teacher=Teacher())
    terms = trainer.objective.terms
    assert [name for name, term in terms.items() if isinstance(term, Repulsion)] == (
        ["repulsion"] if "delta" in method or "vecor" in method else []
    )
    assert any(isinstance(term, Dispersive) for term in terms.values()) == ("dispersive" in method)
    assert ("alignment" in terms) == method.startswith("repa")
    pixels = (torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8),) if recipe.align else ()
    (log,) = trainer.run([(torch.randn(8, *DATA.shape), torch.arange(8) % 3, *pixels)], 1)
    assert all(torch.isfinite(value) for value in log.values())
    assert trainer.clip == (recipe.clip or None)


CHANGES = {
    "learn_sigma": True,
    "ema_warmup": True,
    "align": 0.5,
    "align_block": 1,
    "network": "SiT-S/2",
}


def weights_after(recipe):
    trainer = build_imagenet_trainer(recipe, DATA, teacher=Teacher())
    batch = (
        torch.randn(8, *DATA.shape),
        torch.arange(8) % 3,
        torch.arange(8 * 3 * 16).reshape(8, 3, 4, 4).byte(),
    )
    deque = [batch] * 3
    list(trainer.run(deque, 3))
    return torch.cat([p.flatten() for p in trainer.ema.parameters()])


@pytest.mark.parametrize("field", ["learn_sigma", "ema_warmup", "align", "align_block"])
def test_every_field_of_the_full_scale_changes_the_run(field):
    base = imagenet("repa" if field == "align_block" else "sit", **TINY, batch=8, shard=4)
    a, b = weights_after(base), weights_after(base.changed(**{field: CHANGES[field]}))
    assert a.shape != b.shape or not torch.equal(a, b)


def test_the_other_fields_of_the_full_scale_are_tested_elsewhere():
    # size and mirror: test_latents.py; teacher: test_scale_train.py; network is a name for four
    # other fields
    mine = {field.name for field in dataclasses.fields(ImageNet)} - {
        field.name for field in dataclasses.fields(Recipe)
    }
    assert mine == set(CHANGES) - {field.name for field in dataclasses.fields(Recipe)} | {
        "size",
        "mirror",
        "teacher",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "vecore"}, "Did you mean 'vecor'"),
        ({"model": "SiT-XXL/2"}, "SiT-XL/2"),
        ({"batch": 100}, "not a multiple of shard = 32"),
        ({"learn_sigma": "no"}, "True or False"),
        ({"align": -1}, "align"),
        ({"sise": 3}, "Did you mean 'size'"),
    ],
)
def test_wrong_settings_name_the_right_ones(changes, words):
    with pytest.raises(ConfigError, match=words):
        imagenet(**changes)


def test_alignment_without_a_teacher_says_what_to_give():
    recipe = imagenet("repa", **TINY)
    with pytest.raises(ConfigError, match="--images"):
        build_imagenet_objective(recipe, build_model(recipe, DATA))


@settings(max_examples=200, deadline=None)
@given(
    shards=st.integers(1, 64),
    ranks=st.integers(1, 16),
    shard=st.sampled_from([4, 16, 32]),
    free=st.floats(0, 1e12),
)
def test_a_split_gives_the_batch_in_whole_shards(shards, ranks, shard, free):
    recipe = imagenet("sit", batch=shards * shard, shard=shard)
    if shards % ranks:
        with pytest.raises(ConfigError, match="whole shards"):
            split_batch(recipe, 32, 10**6, int(free), ranks)
        return
    split = split_batch(recipe, 32, 10**6, int(free), ranks)
    assert split.ranks * split.accumulate * split.micro == recipe.batch
    assert split.micro % shard == 0
    if split.micro > shard:  # more than the least it can do: then it fits
        assert split.micro * activation_bytes(recipe, 32) + state_bytes(10**6) <= free


def test_a_second_average_takes_four_bytes_a_parameter_more():
    recipe, split = imagenet("sit"), Split(1, 1, 32)
    assert state_bytes(10**6, averages=2) - state_bytes(10**6) == 4 * 10**6
    assert (
        peak_bytes(recipe.changed(ema2=0.999), 32, 10**9, split)
        - peak_bytes(recipe, 32, 10**9, split)
        == 4 * 10**9
    )


def test_a_given_micro_batch_is_taken_or_the_allowed_ones_are_listed():
    recipe = imagenet("sit")
    assert split_batch(recipe, 32, 10**6, 0, 2, 64) == Split(2, 2, 64)
    with pytest.raises(ConfigError, match=r"\[32, 64, 128\]"):
        split_batch(recipe, 32, 10**6, 0, 2, 96)
