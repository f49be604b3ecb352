"""The suites of CIFAR-10: the JPEG pictures serve where the original bytes are missing, under their own
name, and a miniature runs on a CPU.
"""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cfm_lite import cli
from cfm_lite.data import cifar10, root, teachers
from cfm_lite.evaluate import judges
from cfm_lite.lab import SUITES, jobs
from cfm_lite.lab.measures import judge_of
from cfm_lite.lab.suites import euler
from tools.report.pages import write_report
from tools.report.results import Results


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A data root with the JPEG pictures alone, 200 + 200 of them, and a judge and a teacher that
    learn from them in a second.
    """
    (tmp_path / "cifar10").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), np.uint8)
    with tarfile.open(tmp_path / "cifar10" / cifar10.ARCHIVES["cifar10-jpeg75"], "w:gz") as tar:
        for i, image in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            info = tarfile.TarInfo(
                f"{'train' if i < 200 else 'test'}/{cifar10.CLASSES[i % 10]}/{i:04d}.jpg"
            )
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    monkeypatch.setenv(root.VARIABLE, str(tmp_path))
    monkeypatch.setattr(cifar10, "SPLITS", {"train": 200, "test": 200})
    for module in (judges, teachers):
        monkeypatch.setattr(module, "cache_root", lambda: tmp_path)
        for name in [name for name in module.SETTINGS if name.startswith("cifar10")]:
            brief = dataclasses.replace(module.SETTINGS[name], epochs=1)
            monkeypatch.setitem(module.SETTINGS, name, brief)
    known = (jobs._data, jobs._row_seconds, teachers.teacher_for)
    for one in known:
        one.cache_clear()
    yield tmp_path
    for one in known:
        one.cache_clear()


def test_the_suite_compares_the_core_arms_of_mnist_sit_in_pixels_at_the_size_of_sit_s_2():
    suite, recipe = SUITES["cifar10_full"], SUITES["cifar10_full"].base("core", {})
    assert suite.arms == SUITES["mnist_sit"].arms
    assert suite.groups["core"].seeds >= 3
    assert suite.groups["core"].samplings == SUITES["mnist_sit"].groups["core"].samplings
    assert (
        recipe.model,
        recipe.hidden_size,
        recipe.depth,
        recipe.num_heads,
        recipe.patch_size,
    ) == ("sit", 384, 12, 6, 2)


def test_where_only_the_jpeg_pictures_are_their_name_stands_in_every_setting(pictures):
    for name, end in (("cifar10_full", ""), ("cifar10", "-16")):
        suite = SUITES[name]
        assert suite.data == suite.base("core", {}).dataset == f"cifar10-jpeg75{end}"
        judge = judge_of(suite.data)
        assert judge is not None
        assert judge.dataset == suite.data
    (pictures / "cifar10" / cifar10.ARCHIVES["cifar10"]).touch()
    assert SUITES["cifar10_full"].data == "cifar10"
    assert SUITES["cifar10"].data == "cifar10-16"


def test_half_the_side_is_the_mean_of_two_by_two_pixels(pictures):
    whole, y = cifar10.load("test", name="cifar10-jpeg75")
    half, y_half = cifar10.load("test", name="cifar10-jpeg75-16")
    assert torch.equal(y, y_half)
    assert half.shape == (200, 3, 16, 16)
    torch.testing.assert_close(half[0, 1, 3, 5], whole[0, 1, 6:8, 10:12].mean())


def test_the_suite_of_half_the_side_tries_every_space_of_the_channel_shuffle():
    suite = SUITES["cifar10"]
    assert {"vecor", "vecor_latent", "fm_retargeted_vecor", "fm_time_scaled"} <= set(suite.arms)
    assert suite.base("core", {}).perturb == "channel_shuffle"
    assert suite.base("core", {}).model == "unet"
    assert suite.groups["core"].seeds >= 3


def test_a_miniature_runs_every_arm_and_its_rows_say_that_they_are_one(pictures, monkeypatch):
    out, suite = pictures / "out", SUITES["cifar10_full"]
    few = {"core": dataclasses.replace(suite.groups["core"], samplings=euler(2, samples=20))}
    monkeypatch.setitem(SUITES, "cifar10_full", dataclasses.replace(suite, groups=few))
    words = ["--seeds", "1", "--set", "steps=1", "hidden_size=16", "depth=1"]
    assert cli.main(["compare", "cifar10_full", "--quick", *words, "--out", str(out)]) == 0
    rows = json.loads((out / "cifar10_full.json").read_text())
    assert {row["method"] for row in rows} == set(SUITES["cifar10_full"].arms)
    assert {row["dataset"] for row in rows} == {"cifar10-jpeg75"}
    assert all(row["miniature"] for row in rows)
    assert json.loads((out / "cifar10_full.info.json").read_text())["quick"] is True
    assert not Results(out).suites
    assert list(Results(out).miniatures) == ["cifar10_full"]
    write_report(out)
    text = (out / "tables.md").read_text()
    assert "a miniature only" in text
    assert "dataset cifar10-jpeg75 (not cifar10)" in text
