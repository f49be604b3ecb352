"""A run goes on as the run it was, or is refused by name; what may change is written down."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ResumeMismatchError
from cfm_lite.runs import segments
from cfm_lite.runs.imagenet import ImageNet, imagenet
from cfm_lite.runs.recipe import Recipe
from tests.logs import numbers
from tests.networks import same_parameters

SMALL = Recipe(hidden_size=16, depth=2, steps=6, batch=32)
DATA = dataset("digits")


def other(value):
    """Another value of the same type; no field is too particular for a comparison."""
    return {
        bool: lambda: not value,
        int: lambda: value + 1,
        float: lambda: value + 0.25,
        str: lambda: value + "x",
    }[type(value)]()


@pytest.mark.parametrize(
    "recipe", [Recipe(), imagenet("repa_vecor", model="SiT-Ti/2")], ids=["small", "imagenet"]
)
def test_every_field_that_decides_a_run_is_compared_and_named(recipe):
    for name, value in recipe.as_dict().items():
        before = recipe.as_dict() | {name: other(value)}
        if name in segments.FREE:
            segments.check_same_recipe(Path("run"), before, recipe)
            continue
        with pytest.raises(
            ResumeMismatchError,
            match=rf"run belongs to another run: {name}: saved {other(value)!r}, now {value!r}\.",
        ):
            segments.check_same_recipe(Path("run"), before, recipe)
    assert {f.name for f in dataclasses.fields(Recipe)} | {
        f.name for f in dataclasses.fields(ImageNet)
    } > set(segments.FREE)


def test_a_file_of_an_older_edition_has_the_defaults_of_the_fields_that_it_does_not_know():
    young = ("weight_decay", "beta1", "beta2", "schedule", "qk_norm", "ema2")
    old = {name: value for name, value in SMALL.as_dict().items() if name not in young}
    segments.check_same_recipe(Path("run"), old, SMALL)
    with pytest.raises(
        ResumeMismatchError,
        match=r"beta2: saved 0\.999, now 0\.95\. Resume with --set beta2=0\.999,",
    ):
        segments.check_same_recipe(Path("run"), old, SMALL.changed(beta2=0.95))
    with pytest.raises(ResumeMismatchError, match="speed: saved 3, now None"):
        segments.check_same_recipe(Path("run"), old | {"speed": 3}, SMALL)


def go(recipe, folder, data=DATA, **settings):
    return runs.train(recipe, data, out=folder, progress=False, log_every=1, **settings)


def config(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_words_of_a_refusal_bring_the_run_back(tmp_path, capsys):
    start = [
        "train",
        "digits",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "hidden_size=16",
        "depth=2",
        "sample_steps=2",
    ]
    assert cli.main([*start, "batch=32", "lr=0.001", "--steps", "3", "--seed", "4"]) == 0
    before = config(tmp_path / "run")
    capsys.readouterr()
    assert cli.main([*start, "--steps", "4", "--resume"]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "batch: saved 32, now 256; lr: saved 0.001, now 0.002; seed: saved 4, now 0." in said
    assert config(tmp_path / "run") == before
    assert len(numbers(tmp_path / "run")) == 1
    words = said.split("Resume with ")[1].split(",")[0].split()
    assert words == ["--seed", "4", "--set", "batch=32", "lr=0.001"]
    where = words.index("--set")
    assert cli.main([*start, *words[where + 1 :], *words[:where], "--steps", "4", "--resume"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 16},
        {"warmup": 3},
        {"cooldown": 0.5},
        {"lr": 1e-3},
        {"ema2": 0.9},
        {"schedule": "cosine"},
    ],
)
def test_another_setting_is_refused_also_where_only_the_checkpoint_remembers_it(change, tmp_path):
    go(SMALL, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ResumeMismatchError, match=next(iter(change))):
        go(SMALL.changed(steps=8, **change), tmp_path, resume=True)
    assert not (tmp_path / "config.json").exists()
    go(SMALL.changed(steps=8), tmp_path, resume=True)
    assert config(tmp_path)["recipe"]["steps"] == 8


@pytest.mark.parametrize(
    ("saved", "words"),
    [("two_classes", "train toy,"), ("moons", "--set dataset=moons,"), ("cc3m", "scale train,")],
)
def test_the_words_for_a_run_of_another_data_set_name_what_there_is(saved, words):
    with pytest.raises(ResumeMismatchError, match=f"Resume with (cfm-lite )?{words}"):
        segments.check_same_recipe("it", Recipe().as_dict() | {"dataset": saved}, Recipe())


def test_other_data_are_refused(tmp_path):
    go(SMALL, tmp_path)
    kept = config(tmp_path)["data"]
    assert (kept["name"], kept["rows"], kept["shape"], kept["num_classes"]) == (
        "digits",
        len(DATA.x1),
        [1, 8, 8],
        10,
    )
    moved = DATA.x1.clone()
    moved[3, 0, 4, 4] += 0.01
    for data in (DATA._replace(x1=moved), DATA._replace(y=DATA.y.flip(0))):
        with pytest.raises(ResumeMismatchError, match="trained with other data"):
            go(SMALL.changed(steps=8), tmp_path, data, resume=True)


def test_a_longer_run_with_other_samples_is_a_new_segment_and_the_config_says_what_is_true_now(
    tmp_path,
):
    whole = go(SMALL.changed(steps=9), tmp_path / "whole")
    part = tmp_path / "part"
    go(SMALL, part)
    longer = SMALL.changed(steps=9, solver="heun", sample_steps=7, guidance=2.0)
    resumed = go(longer, part, resume=True)
    assert same_parameters(whole.model, resumed.model)
    assert numbers(tmp_path / "whole") == numbers(part)
    (segment,) = config(part)["segments"]
    assert segment["from_step"] == 6
    assert segment["changed"] == {
        "steps": [6, 9],
        "solver": ["euler", "heun"],
        "sample_steps": [50, 7],
        "guidance": [1.0, 2.0],
    }
    assert runs.saved_recipe(part) == longer
    before = config(part)
    go(longer, part, resume=True)  # nothing is left to do, and nothing changed
    assert config(part) == before


def test_steps_that_move_the_learning_rate_of_what_is_done_are_said(tmp_path):
    falling = SMALL.changed(cooldown=0.5)
    go(falling, tmp_path)
    said = (
        r"planned for 6 steps, and now for 12: .* Step 6 was trained with 0\.0006\d*, "
        r"a new run would use 0\.002\."
    )
    with pytest.warns(UserWarning, match=said):
        go(falling.changed(steps=12), tmp_path, resume=True)
    assert config(tmp_path)["segments"][0]["changed"] == {"steps": [6, 12]}


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    go(SMALL, tmp_path)
    before = config(tmp_path)
    with pytest.raises(
        ResumeMismatchError, match="has done 6 steps and steps is 5; give 6 or more"
    ):
        go(SMALL.changed(steps=5), tmp_path, resume=True)
    assert config(tmp_path) == before


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_a_run_of_the_first_edition_goes_on_as_itself_and_as_nothing_else(name, tmp_path):
    old = Path(shutil.copytree(Path(__file__).parent / "first_edition" / name, tmp_path / name))
    recipe = runs.saved_recipe(old)
    data = dataset(recipe.dataset)
    with pytest.raises(ResumeMismatchError, match=r"lr: .*beta1: saved 0\.9, now 0\.8"):
        go(recipe.changed(steps=303, lr=1e-4, beta1=0.8), old, data, resume=True)
    with pytest.warns(UserWarning, match="planned for 300 steps, and now for 303"):
        run = go(recipe.changed(steps=303), old, data, resume=True)
    assert run.step == 303
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert config(old)["segments"][0]["changed"]["steps"] == [300, 303]
