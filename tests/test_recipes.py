"""Recipes: every field changes the run, and a recipe survives being written down."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch

from cfm_lite import lab as experiments
from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import NAMES, dataset
from cfm_lite.errors import ConfigError
from cfm_lite.objective import dispersive
from cfm_lite.runs import train
from cfm_lite.runs.recipe import (
    RECIPES,
    Recipe,
    build_model,
    build_objective,
    build_trainer,
    from_dict,
    recipe,
    schedule_of,
)

SMALL = Recipe(hidden_size=16, depth=3, steps=6, batch=64, shard=32, warmup=0, sample_steps=3)
DATA = dataset("digits")
# field: (another value, what must be set for the field to be read)
CHANGES = {
    "dataset": ("moons", {}),
    "model": ("sit", {}),
    "hidden_size": (24, {}),
    "depth": (2, {}),
    "num_heads": (2, {"model": "sit"}),
    "patch_size": (4, {"model": "sit"}),
    "qk_norm": (True, {"model": "sit"}),
    "levels": (1, {"model": "unet"}),
    "method": ("delta_fm", {}),
    "weight": (0.2, {"method": "delta_fm"}),
    "k": (2, {"method": "vecor_latent"}),
    "perturb": ("cutmix", {"method": "vecor_latent"}),
    "spread": (0.1, {"method": "dispersive"}),
    "variant": ("covariance", {"method": "dispersive", "spread": 1e-5}),
    "tau": (2.0, {"method": "dispersive"}),
    "block": (2, {"method": "dispersive"}),
    "align": (5.0, {"method": "repa"}),
    "align_block": (1, {"method": "repa"}),
    "also": ("dispersive", {"method": "delta_fm"}),
    "views": ("restricted", {"method": "contrastive"}),
    "path": ("cosine", {}),
    "time": ("logit_normal", {}),
    "time_mean": (-1.0, {"time": "logit_normal"}),
    "coupling": ("minibatch_ot", {}),
    "label_dropout": (0.5, {}),
    "shard": (16, {}),
    "batch": (32, {}),
    "steps": (4, {}),
    "lr": (1e-3, {}),
    "weight_decay": (0.1, {}),
    "beta1": (0.5, {}),
    "beta2": (0.95, {}),
    "warmup": (5, {}),
    "cooldown": (0.5, {}),
    "schedule": ("cosine", {}),
    "clip": (1e-3, {}),
    "ema": (0.1, {}),
    "precision": ("bf16", {}),
    "seed": (1, {}),
    "solver": ("heun", {}),
    "sample_steps": (5, {}),
    "guidance": (2.0, {}),
    "boost": (0.5, {}),
    "boost_power": (3.0, {"boost": 0.5}),
}


def samples_of(chosen: Recipe) -> torch.Tensor:
    data = dataset(chosen.dataset, points=200)
    run = train(chosen, data, progress=False)
    y = experiments.balanced_labels(data.num_classes, 8)
    return experiments.draw_samples(
        experiments.ARMS["fm"], run, data, y, chosen.sample_steps, chosen.seed
    )


@pytest.mark.parametrize("field", CHANGES)
def test_every_recipe_field_changes_the_run(field):
    value, needed = CHANGES[field]
    before = SMALL.changed(**needed)
    a, b = samples_of(before), samples_of(before.changed(**{field: value}))
    assert a.shape != b.shape or not torch.equal(a, b)
    assert torch.isfinite(b).all()


@pytest.mark.parametrize("model", ["mlp", "sit"])
def test_repa_trains_the_features_towards_the_teacher_and_samples_without_its_projector(model):
    chosen = SMALL.changed(method="repa", model=model, steps=60, align=2.0, hidden_size=32)
    trained = train(chosen, DATA, progress=False, log_every=1)
    first, last = (
        sum(line["alignment"] for line in part) / 5 for part in (trained.log[:5], trained.log[-5:])
    )
    assert last < first - 0.2
    assert [name for name, _ in trained.model.named_parameters()] == [
        name for name, _ in build_model(chosen, DATA).named_parameters()
    ]


def test_a_method_may_be_joined_by_a_second():
    chosen = SMALL.changed(method="delta_fm", also="vecor_latent", weight=0.05)
    log = train(chosen, DATA, progress=False, log_every=1).log[0]
    assert {"flow_matching", "repulsion", "vecor_latent"} <= set(log)
    parts = [
        train(SMALL.changed(method=m), DATA, progress=False, log_every=1).log[0]
        for m in ("delta_fm", "vecor_latent")
    ]
    assert log["repulsion"] == pytest.approx(
        parts[0]["repulsion"]
    )  # its own draws, whoever is beside it
    with pytest.raises(ConfigError, match="the sum of λK over the repulsions is 1"):
        build_objective(chosen.changed(weight=0.5), build_model(chosen, DATA))
    toy = Recipe(dataset="moons", method="repa")
    with pytest.raises(ConfigError, match="has none"):
        build_objective(toy, build_model(toy, dataset("moons")))


def test_vecor_in_image_space_differs_from_that_in_latent_space_where_there_is_a_codec():
    latents = dataset("digits_pca")
    assert latents.shape == (32, 1, 1)
    assert (latents.images.held_x1 - DATA.held_x1).square().mean() < 0.1 * DATA.held_x1.var()
    seen = []
    for method, perturb in (
        ("vecor_image", "crop_resize"),
        ("vecor_latent", "channel_shuffle"),
        ("vecor", "channel_shuffle"),
    ):
        chosen = SMALL.changed(dataset="digits_pca", method=method, perturb=perturb)
        seen.append(train(chosen, latents, progress=False, log_every=1).log[0]["repulsion"])
    assert len(set(seen)) == 3


def test_every_field_is_in_the_list_above():
    # accumulation alone must NOT change a run: test_accumulation_does_not_change_a_run
    # a second average changes what is saved, not what is drawn from the first:
    # test_a_second_average_...
    assert set(CHANGES) | {"accumulate", "ema2"} == {
        field.name for field in dataclasses.fields(Recipe)
    }


@pytest.mark.parametrize(
    ("fields", "factors"),
    [
        ({"cooldown": 0.5}, [1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"cooldown": 0.5, "schedule": "cosine"}, [1, 1, 1, 1, 1, 0.8535534, 0.5, 0.1464466]),
        (
            {"schedule": "cosine", "warmup": 4},
            [1 / 4, 2 / 4, 3 / 4, 1, 1, 0.8535534, 0.5, 0.1464466],
        ),
        ({"cooldown": 0.5, "schedule": "constant"}, [1] * 8),
        ({"warmup": 2}, [1 / 2, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "cosine", "warmup": 9}, [(i + 1) / 9 for i in range(8)]),
        # less than half a step is not the whole run
        ({"schedule": "cosine", "cooldown": 0.05}, [1] * 8),
        ({"cooldown": 0.05}, [1] * 8),
    ],
)
def test_the_learning_rate_rises_stays_and_falls_as_the_recipe_says(fields, factors):
    factor = schedule_of(Recipe(steps=8, **fields))
    assert [factor(step) for step in range(8)] == pytest.approx(factors)


def test_the_optimizer_is_that_of_the_recipe():
    chosen = SMALL.changed(weight_decay=0.01, beta1=0.8, beta2=0.95, lr=3e-3)
    (group,) = build_trainer(chosen, build_model(chosen, DATA)).optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["lr"]) == (0.01, (0.8, 0.95), 3e-3)


def test_equal_recipes_give_equal_samples_bit_for_bit():
    assert torch.equal(samples_of(SMALL), samples_of(SMALL))


def test_paired_methods_share_start_batches_noise_and_times():
    seen = {}
    for method in ("fm", "delta_fm", "vecor_latent", "dispersive"):
        chosen = SMALL.changed(method=method, weight=0.0, spread=0.0)
        trainer = build_trainer(chosen, build_model(chosen, DATA))
        list(trainer.run(batches(DATA.x1, DATA.y, size=64), 3))
        seen[method] = [p.clone() for p in trainer.objective.model.parameters()]
    for method, parameters in seen.items():
        assert all(torch.equal(p, q) for p, q in zip(seen["fm"], parameters)), method


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    chosen = recipe(name, seed=3)
    assert from_dict(json.loads(json.dumps(chosen.as_dict()))) == chosen


@pytest.mark.parametrize(
    "name",
    [name for name in RECIPES if not name.startswith(("mnist", "fashion", "cifar10", "words"))],
)
def test_each_recipe_trains(name):
    chosen = recipe(name, steps=2, batch=32)
    data = dataset(chosen.dataset, points=100)
    run = train(chosen, data, progress=False)
    assert run.step == 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: recipe("digit"), "Did you mean 'digits'"),
        (lambda: recipe("digits", weigth=0.1), "Did you mean 'weight'"),
        (lambda: recipe("digits", method="deltafm"), "Did you mean 'delta_fm'"),
        (lambda: recipe("digits", steps=0), "steps"),
        (lambda: recipe("digits", beta2=1.0), "beta2"),
        (lambda: recipe("digits", weight_decay=-0.1), "weight_decay"),
        (lambda: recipe("digits", ema2=1.0), "ema2"),
        (lambda: recipe("digits", schedule="cosin"), "Did you mean 'cosine'"),
        (lambda: recipe("digits", qk_norm="yes"), "qk_norm"),
        (lambda: from_dict({"speed": 3}), "speed"),
        (lambda: dataset("mnits"), "Did you mean 'mnist'"),
        (lambda: dataset("moons", points=0), "points"),
    ],
)
def test_wrong_names_and_values_are_refused_with_the_nearest_right_one(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_a_mean_of_times_is_for_the_one_distribution_that_has_it():
    with pytest.raises(ConfigError, match="only logit_normal has a mean"):
        recipe("toy", time_mean=-1.0)
    chosen = recipe("toy", time="logit_normal", time_mean=-1.0)
    t = build_objective(chosen, build_model(chosen, dataset("moons", points=50))).time(4000)
    assert abs(t.median() - 0.2689) < 0.02


@pytest.mark.parametrize("model", ["mlp", "sit", "unet"])
@pytest.mark.parametrize("method", ["dispersive", "contrastive"])
def test_the_spread_of_another_form_is_refused_and_the_one_that_is_named_trains(model, method):
    small = {} if model == "mlp" else {"hidden_size": 16, "depth": 2, "num_heads": 2}
    chosen = recipe("digits", method=method, variant="covariance", model=model, steps=2, **small)
    with pytest.raises(ConfigError, match="variant=covariance is a sum") as refused:
        train(chosen, DATA, progress=False)
    named = re.search(r"--set spread=(\S+),", str(refused.value))
    assert named
    run = train(chosen.changed(spread=float(named[1])), DATA, progress=False)
    assert run.step == 2


def test_the_usual_spread_of_a_recipe_is_the_weight_of_the_builder():
    chosen = recipe("digits", method="dispersive", variant="covariance", model="sit")
    model = build_model(chosen, DATA)
    weight = dispersive(model, variant="covariance").terms["dispersive"].weight
    with pytest.raises(ConfigError, match=f"spread={weight:.1g},"):
        build_objective(chosen, model)


def test_shuffling_the_one_channel_of_digits_is_refused():
    chosen = SMALL.changed(method="vecor", perturb="channel_shuffle")
    with pytest.raises(ConfigError, match="channel"):
        train(chosen, DATA, progress=False)


def test_a_bound_that_is_reached_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"weight is 0\.5 with K = 2"):
        build_objective(
            SMALL.changed(method="vecor_latent", weight=0.5, k=2), build_model(SMALL, DATA)
        )


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if not name.startswith(("mnist", "fashion", "cifar10", "words"))],
)
def test_every_data_set_loads_with_held_out_data_of_the_same_kind(name):
    data = dataset(name, points=50)
    assert data.x1.shape[1:] == data.held_x1.shape[1:] == data.shape
    assert data.x1.dtype == torch.float32
    assert data.y.dtype == torch.int64
    assert set(data.y.tolist()) <= set(range(data.num_classes))
    assert not any(torch.equal(row, other) for row in data.x1[:20] for other in data.held_x1[:20])


def test_sizes_of_a_unet_that_cannot_be_are_told_by_the_recipes_fields():
    data = SimpleNamespace(shape=(1, 28, 28), num_classes=10)
    for given in ({"hidden_size": 12}, {"hidden_size": 16, "num_heads": 5}):
        with pytest.raises(
            ConfigError, match=f"hidden_size is {given['hidden_size']}, so the"
        ) as e:
            build_model(recipe("mnist", **given), data)
        assert "\n" not in str(e.value)
    assert build_model(recipe("mnist", hidden_size=16), data).channels == (16, 32)


@pytest.mark.parametrize("given", [{"hidden_size": 100}, {"num_heads": 3}, {"hidden_size": 30}])
def test_a_width_that_a_network_of_captions_cannot_have_is_told_with_one_that_it_can(given):
    data = SimpleNamespace(shape=(3, 32, 32), num_classes=0, condition="captions")
    chosen = recipe("words", depth=1, **given)
    with pytest.raises(ConfigError, match="must be a multiple of") as told:
        build_model(chosen, data)
    assert "leave rotary out" not in str(told.value)  # no field of a recipe
    width = int(str(told.value).split("such as ")[1].rstrip("."))
    assert build_model(chosen.changed(hidden_size=width), data).hidden_size == width


@pytest.mark.parametrize("given", ["runs/a", (torch.zeros(4, 2), torch.zeros(4)), torch.zeros(4)])
@pytest.mark.parametrize("name", ["toy", "words"])
def test_what_is_no_data_set_is_named(given, name):
    with pytest.raises(
        ConfigError, match=r"data is a \w+; it must be a data set, such as dataset\("
    ):
        train(recipe(name, steps=1), given, progress=False)
