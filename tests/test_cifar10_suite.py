"""The suite cifar10: the JPEG pictures serve where the original bytes are missing, under their own
name, and a miniature runs on a CPU.
"""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from cfm_lite import cli
from cfm_lite.data import cifar10, root, teachers
from cfm_lite.evaluate import judges
from cfm_lite.lab import SUITES, jobs
from cfm_lite.lab.measures import judge_of
from cfm_lite.lab.results import Results
from cfm_lite.lab.suites import euler


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
    known = (jobs._data, jobs._row_seconds, teachers.teacher_for)
    for one in known:
        one.cache_clear()
    yield tmp_path
    for one in known:
        one.cache_clear()


def test_the_suite_compares_the_core_arms_of_mnist_in_pixels_at_the_size_of_sit_s_2():
    suite, recipe = SUITES["cifar10"], SUITES["cifar10"].base("core", {})
    assert suite.arms == SUITES["mnist"].arms
    assert suite.groups["core"].seeds >= 3
    assert suite.groups["core"].samplings == SUITES["mnist"].groups["core"].samplings
    assert (
        recipe.model,
        recipe.hidden_size,
        recipe.depth,
        recipe.num_heads,
        recipe.patch_size,
    ) == ("sit", 384, 12, 6, 2)


def test_where_only_the_jpeg_pictures_are_their_name_stands_in_every_setting(pictures):
    assert SUITES["cifar10"].data == SUITES["cifar10"].base("core", {}).dataset == "cifar10-jpeg75"
    judge = judge_of("cifar10-jpeg75")
    assert judge is not None
    assert judge.dataset == "cifar10-jpeg75"
    (pictures / "cifar10" / cifar10.ARCHIVES["cifar10"]).touch()
    assert SUITES["cifar10"].data == "cifar10"


def test_a_miniature_runs_every_arm_and_its_rows_say_that_they_are_one(pictures, monkeypatch):
    out, suite = pictures / "out", SUITES["cifar10"]
    few = {"core": dataclasses.replace(suite.groups["core"], samplings=euler(2, samples=20))}
    monkeypatch.setitem(SUITES, "cifar10", dataclasses.replace(suite, groups=few))
    words = ["--seeds", "1", "--set", "steps=1", "hidden_size=16", "depth=1"]
    assert cli.main(["compare", "cifar10", "--quick", *words, "--out", str(out)]) == 0
    rows = json.loads((out / "cifar10.json").read_text())
    assert {row["method"] for row in rows} == set(SUITES["cifar10"].arms)
    assert {row["dataset"] for row in rows} == {"cifar10-jpeg75"}
    assert all(row["miniature"] for row in rows)
    assert json.loads((out / "cifar10.info.json").read_text())["quick"] is True
    assert not Results(out).suites
    assert list(Results(out).miniatures) == ["cifar10"]
    assert cli.main(["compare", "--report", "--out", str(out)]) == 0
    text = (out / "README.md").read_text()
    assert "a miniature only" in text
    assert "dataset cifar10-jpeg75 (not cifar10)" in text
