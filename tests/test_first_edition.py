"""Runs that the first edition left behind load, sample and evaluate as they did then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite.data.datasets import dataset

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
    command("sample", "--checkpoint", old / name, "--out", out, *SAMPLE[name])
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
    before = {row["metric"]: row["value"] for row in json.loads((old / name / "metrics.json").read_text())}
    command("evaluate", "--samples", old / name / "samples.npz", "--out", tmp_path / "metrics.json")
    after = {row["metric"]: row["value"] for row in json.loads((tmp_path / "metrics.json").read_text())}
    assert {metric: after[metric] for metric in before} == pytest.approx(before, rel=1e-3, abs=1e-4)


@pytest.mark.filterwarnings("ignore:16 samples against 16")
def test_old_samples_of_imagenet_are_measured(old, tmp_path):
    samples = old / "imagenet" / "samples"
    command("evaluate", "--samples", samples, "--reference", samples, "--inception", "standin", "--out", tmp_path / "metrics.json")
    values = {row["metric"]: row["value"] for row in json.loads((tmp_path / "metrics.json").read_text())}
    assert values["standin_fid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_the_average_of_an_old_run_is_opened(name, old):
    recipe, model, step = runs.load_model(old / name, dataset(runs.saved_recipe(old / name).dataset))
    assert (step, recipe.steps) == (300, 300)
    assert all(torch.isfinite(p).all() for p in model.parameters())
