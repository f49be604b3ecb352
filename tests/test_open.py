"""A run is opened in one way, knows what its network takes, and is sampled by one function."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.evaluate.card import card_of, told
from cfm_lite.lab.arms import ARMS, velocity
from cfm_lite.lab.suites import trials
from cfm_lite.runs import Run, Spec, sampling
from cfm_lite.runs.imagenet import imagenet
from cfm_lite.runs.reads import OF_SAMPLES
from cfm_lite.runs.recipe import Recipe

SMALL = Recipe(hidden_size=8, depth=1, steps=2, batch=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("opened") / "run"
    runs.train(SMALL, dataset("digits"), out=place, progress=False)
    return place


def change(folder, tmp_path, **parts):
    """A copy of the run whose config.json has other parts; None takes one away."""
    import shutil

    copy = shutil.copytree(folder, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text()) | parts
    config = {name: part for name, part in config.items() if part is not None}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_run_says_what_it_is(folder):
    run = Run.open(folder)
    assert run.recipe == SMALL
    assert run.spec == Spec((1, 8, 8), 10, "labels")
    assert run.step == 2
    assert run.place.folder == folder
    assert run.place.step.name == "step-00000002"
    assert len(run.weights) == 64
    saved = json.loads((folder / "config.json").read_text())["spec"]
    assert saved == {"shape": [1, 8, 8], "condition": "labels", "classes": 10}


def test_no_data_set_is_loaded_in_order_to_sample(folder, tmp_path, monkeypatch):
    def loaded(*args, **how):
        raise AssertionError("a data set was loaded")

    monkeypatch.setattr("cfm_lite.data.datasets.digits.load", loaded)
    out = tmp_path / "x.npz"
    words = ["sample", "--checkpoint", str(folder), "--num", "4", "--steps", "2"]
    assert cli.main([*words, "--out", str(out)]) == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["x"].shape == (4, 1, 8, 8)


def test_a_run_without_a_spec_takes_it_from_its_data_and_goes_on_without_a_new_segment(
    folder, tmp_path
):
    old = change(folder, tmp_path, spec=None, data=None)
    assert Run.open(old).spec == Run.open(folder).spec
    runs.train(SMALL.changed(steps=2), dataset("digits"), out=old, resume=True, progress=False)
    config = json.loads((old / "config.json").read_text())
    assert config["spec"]["shape"] == [1, 8, 8]
    assert not any("spec" in part["changed"] for part in config.get("segments", []))


@pytest.mark.parametrize("spec", [{"shape": 3}, {"shape": [1, 8, 8]}, {"shape": ["a"]}, 3])
def test_a_damaged_spec_is_an_error_of_the_checkpoint(spec, folder, tmp_path):
    with pytest.raises(CheckpointError, match="spec"):
        Run.open(change(folder, tmp_path, spec=spec))


def test_a_checkpoint_of_another_data_set_lies_in_the_wrong_folder(folder, tmp_path):
    recipe = SMALL.changed(dataset="mine").as_dict()
    with pytest.raises(CheckpointError, match="wrong folder"):
        Run.open(change(folder, tmp_path, recipe=recipe))


def test_how_many_are_drawn_at_once_decides_only_the_noise_of_the_sde(folder):
    run = Run.open(folder)

    def drawn(**given):
        return sampling.draw_run(run, sampling.settings_of(run, 12, steps=3, **given))[0]

    torch.testing.assert_close(drawn(batch=5), drawn())
    assert not torch.allclose(drawn(batch=5, solver="sde"), drawn(solver="sde"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "banana"}, "format is 'banana'.*Leave format out"),
        ({"network": "SiT-B/2"}, "network is 'SiT-B/2'.*Leave network out"),
        ({"device": "foo"}, "device is 'foo'.*such as 'cpu'"),
        ({"device": 2.5}, "device is 2.5"),
        ({"device": "privateuseone"}, "device is 'privateuseone'"),
    ],
)
def test_settings_of_open_that_do_not_fit_are_refused(settings, words, folder):
    with pytest.raises(ConfigError, match=words):
        Run.open(folder, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match=r"device is 'cuda'.*such as 'cpu'"):
        Run.open(folder, device="cuda")


@pytest.mark.parametrize("path", [3, None, b"run"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(ConfigError, match=r"a path is .* it must be a text or a pathlib\.Path"):
        Run.open(path)


def test_a_run_without_a_spec_is_not_sampled(folder):
    run = Run(SMALL, Run.open(folder).model)
    with pytest.raises(ConfigError, match=r"Run\.open"):
        sampling.draw_run(run, sampling.Settings(2))


NO_NULL = SMALL.changed(label_dropout=0.0)


@pytest.fixture(scope="module")
def without_null(tmp_path_factory):
    place = tmp_path_factory.mktemp("opened") / "no-null"
    runs.train(NO_NULL, dataset("digits"), out=place, progress=False)
    return place


def test_guidance_by_a_null_condition_that_was_never_trained_is_refused(
    without_null, tmp_path, capsys
):
    out = tmp_path / "x.npz"
    line = f"sample --checkpoint {without_null} --num 4 --steps 2 --out {out}"
    assert cli.main([*line.split(), "--guidance", "2"]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in ("label_dropout is 0", "guidance 1", "label_dropout=0.1"))
    assert not out.exists()
    assert cli.main(line.split()) == 0
    run = Run.open(without_null)
    run.data = {"start": "0" * 64}  # fine-tuned: the first training had a null condition
    sampling.guided(run, torch.tensor([0]), 2.0)


def test_a_training_whose_samples_would_need_an_untrained_null_condition_is_refused(tmp_path):
    out = tmp_path / "run"
    words = ["train", "digits", "--out", str(out), "--set", "label_dropout=0", "guidance=2"]
    assert cli.main(words) == 2
    assert not out.exists()
    with pytest.raises(ConfigError, match="label_dropout"):
        list(trials("digits", "guidance", seeds=(0,), changes={"label_dropout": 0.0}))
    assert list(trials("digits", "core", seeds=(0,), changes={"label_dropout": 0.0}))


@pytest.mark.parametrize("method", ["delta_fm", "vecor_latent"])
def test_a_debiased_velocity_is_boosted_after_it_is_debiased(folder, method):
    fields = {"method": method, "weight": 0.2, "guidance": 2.0, "boost_power": 2.0}
    run = Run(SMALL.changed(**fields), Run.open(folder).model, spec=Spec((1, 8, 8), 10))
    faster = Run(run.recipe.changed(boost=0.5), run.model, spec=run.spec)
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor([0.0, 0.3, 0.6, 1.0]), torch.arange(4)
    boost = (1 + 0.5 * (1 - t) ** 2)[:, None, None, None]
    settings = sampling.settings_of(run, 4, debias=True)
    slow, fast = (sampling.velocity_of(one, settings, y)(x, t) for one in (run, faster))
    torch.testing.assert_close(fast, boost * slow)
    data = dataset("digits")
    for arm in (method, f"{method}_debiased"):
        slow, fast = (velocity(ARMS[arm], one, data, y)(x, t) for one in (run, faster))
        torch.testing.assert_close(fast, boost * slow)


def test_an_interval_without_a_time_of_the_solver_is_refused_and_its_remedies_work():
    given = {"steps": 3, "guidance": 2.0, "interval": (0.4, 0.45)}
    with pytest.raises(ConfigError, match=r"nearest is 0\.333333\. Widen .* more steps"):
        sampling.Settings(2, **given)
    assert sampling.Settings(2, **given | {"interval": (0.333333, 0.45)})
    assert sampling.Settings(2, **given | {"steps": 7})
    assert sampling.Settings(2, **given | {"guidance": 1.0})  # a sweep may hold 1
    with pytest.raises(ConfigError, match=r"sde evaluate .* nearest is 0\.48"):
        sampling.Settings(2, **given | {"solver": "sde"})


CARDED = {  # a field of Settings: another value
    "num": 7, "seed": 3, "solver": "heun", "steps": 5, "guidance": 2.0, "interval": (0.2, 0.8),
    "debias": True, "batch": 3, "labels": "1,2", "prompts": ("a red seven",),
    "negative": "a blue star",
}  # fmt: skip
ABOUT = {"features": "", "features_hash": None, "reference": ""}


def carded(recipe=SMALL, **changed):
    settings = sampling.Settings(**{"num": 6} | changed)
    drawn = json.loads(json.dumps(dataclasses.asdict(settings)))  # as a file keeps them
    told = {"recipe": recipe.as_dict(), "step": 2, **drawn}
    return card_of(told, samples=settings.num, **ABOUT)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(sampling.Settings)])
def test_every_setting_of_the_samples_is_on_their_card(name):
    assert carded(**{name: CARDED[name]}) != carded()


def test_the_card_names_the_sizes_that_a_named_network_does_not_have():
    def card(**sizes):
        recipe = imagenet("sit", model="SiT-Ti/2", **sizes)
        return card_of({"recipe": recipe.as_dict(), "step": 2}, samples=6, **ABOUT)

    assert card()["network"] == "SiT-Ti/2"
    assert card(num_heads=1)["network"] == "SiT-Ti/2 with num_heads=1"


@pytest.mark.parametrize(
    "name", ["dataset", "model", "method", *OF_SAMPLES, "boost", "boost_power", "path"]
)
def test_what_the_samples_read_of_a_recipe_is_on_their_card(name):
    other = {"dataset": "moons", "model": "sit", "method": "delta_fm", "solver": "heun",
             "sample_steps": 3, "guidance": 2.0, "boost": 0.2, "boost_power": 3.0,
             "path": "cosine"}  # fmt: skip
    base = SMALL.changed(boost=0.1) if name == "boost_power" else SMALL

    def card(recipe):  # what the settings leave to the recipe
        return card_of({"recipe": recipe.as_dict(), "step": 2}, samples=6, **ABOUT)

    assert card(base.changed(**{name: other[name]})) != card(base)


def test_the_printed_card_names_few_captions_what_they_avoid_and_a_boost():
    lines = "\n".join(
        told(
            carded(
                SMALL.changed(boost=0.5, boost_power=2.0),
                prompts=("a red seven", "a pink two"), guidance=2.0, negative="a blue star",
            )
        )
    )  # fmt: skip
    assert "2 captions ('a red seven', 'a pink two')" in lines
    assert "away from 'a blue star', boost 0.5 (1 - t)^2" in lines
    many = carded(prompts=[f"a {i}" for i in range(100)])
    assert (len(many["captions"]), many["labels"]) == (16, "100 captions")
    assert many != carded(prompts=[f"a {i}" for i in range(99)] + ["a b"])
