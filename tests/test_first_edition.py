"""Runs that the first edition left behind load, sample and evaluate as they did then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite.data.datasets import dataset
from cfm_lite.engine.state import said_once
from cfm_lite.runs.recipe import build_model, build_trainer

OLD = Path(__file__).parent / "first_edition"
SAMPLE = {
    "toy": ["--num", "100"],
    "digits": ["--num", "100"],
    "imagenet": ["--num", "16", "--steps", "4", "--batch", "8", "--guidance", "1.5", "--debias"],
}


@pytest.fixture
def old(tmp_path):
    """A copy of the three runs, for a command may write beside them."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def command(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


def arrays(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return [file[name] for name in sorted(file.files) if file[name].dtype.kind in "fiu"]


@pytest.mark.parametrize("name", SAMPLE)
def test_an_old_run_gives_the_samples_that_it_gave(name, old, tmp_path):
    out = tmp_path / ("new" if name == "imagenet" else "new.npz")
    words = ["scale", "sample"] if name == "imagenet" else ["sample"]  # it has --batch
    command(*words, "--checkpoint", old / name, "--out", out, *SAMPLE[name])
    before = old / name / ("samples/samples.npz" if name == "imagenet" else "samples.npz")
    mine, theirs = arrays(out / "samples.npz" if name == "imagenet" else out), arrays(before)
    assert len(mine) == len(theirs) >= 2
    for a, b in zip(mine, theirs):
        # another processor rounds otherwise: a level of 255 for bytes
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1 if a.dtype == np.uint8 else 1e-3)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_checkpoint_of_an_old_run_is_sampled_too(name, old, tmp_path):
    (step,) = (old / name / "checkpoints").iterdir()
    out = tmp_path / ("new" if name == "imagenet" else "new.npz")
    command("sample", "--checkpoint", step, "--out", out, "--num", "10")
    assert len(arrays(out / "samples.npz" if name == "imagenet" else out)[0]) == 10


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_old_samples_are_measured_as_they_were(name, old, tmp_path):
    before = {
        row["metric"]: row["value"] for row in json.loads((old / name / "metrics.json").read_text())
    }
    command("evaluate", "--samples", old / name / "samples.npz", "--out", tmp_path / "metrics.json")
    after = {
        row["metric"]: row["value"] for row in json.loads((tmp_path / "metrics.json").read_text())
    }
    # few samples have a bias, and 0.1.0 held 899 real rows beside them
    if before.pop("frechet_real", None) is not None:
        assert before["frechet"] > after.pop("frechet_real") > 1
    assert {metric: after[metric] for metric in before} == pytest.approx(before, rel=1e-3, abs=1e-4)


@pytest.mark.filterwarnings("ignore:16 samples against 16")
def test_old_samples_of_imagenet_are_measured(old, tmp_path):
    samples = old / "imagenet" / "samples"
    command(
        "evaluate",
        "--samples",
        samples,
        "--reference",
        samples,
        "--inception",
        "standin",
        "--out",
        tmp_path / "metrics.json",
    )
    values = {
        row["metric"]: row["value"] for row in json.loads((tmp_path / "metrics.json").read_text())
    }
    assert values["standin_fid_to_16_images"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_the_average_of_an_old_run_is_opened(name, old):
    run = runs.Run.open(old / name)
    assert (run.step, run.recipe.steps) == (300, 300)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_an_old_run_goes_on_and_an_old_run_on_a_wrong_path_does_not(old):
    recipe = runs.saved_recipe(old / "digits")
    (step,) = (old / "digits" / "checkpoints").iterdir()
    trainer = build_trainer(recipe, build_model(recipe, dataset("digits")))
    assert trainer.resume(step).step == 300
    # the first edition's objective on COSINE let its negatives lie on LINEAR: another loss than
    # today's
    wrong = json.loads((step / "state.json").read_text())["settings"] | {"path": "cosine"}
    assert said_once(wrong)["terms"]["repulsion"]["negatives"]["path"] == "linear"
    mine = said_once(
        build_trainer(
            recipe.changed(path="cosine"), build_model(recipe, dataset("digits"))
        )._state._settings()
    )
    assert mine["terms"]["repulsion"]["negatives"]["path"] == "cosine"


def test_a_law_of_time_that_the_first_edition_saved_is_the_same_law_today():
    old_path = {
        "kind": "Path",
        "name": "linear",
        "alpha": "<lambda>",
        "d_alpha": "ones_like",
        "sigma_d_sigma": None,
        "train_end": 1.0,
    }
    bare, told = (
        {"path": "linear", "time": law}
        for law in ("lognormal_time", ["lognormal_time", [], {"path": old_path}])
    )
    today = {"path": "linear", "time": ["lognormal_time", [], {"path": "linear"}]}
    assert said_once(bare) == said_once(told) == said_once(today)
    assert said_once(bare | {"path": "cosine"}) != said_once(
        {"path": "cosine", "time": ["lognormal_time", [], {"path": "cosine"}]}
    )
