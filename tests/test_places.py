"""Paths as a user gives them, and what an error of others looks like in one line."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cfm_lite import cli, objective, runs, viz
from cfm_lite._internal import checks, places
from cfm_lite.data import root
from cfm_lite.data.datasets import dataset
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.models import MLP
from cfm_lite.runs.recipe import recipe
from cfm_lite.training import Trainer


def test_a_tilde_is_expanded_in_variables_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.expanded("~/x") == tmp_path / "x"
    assert str(places.expanded("x/~y")) == "x/~y"
    monkeypatch.setenv("CFM_LITE_DATA", "~/data")
    assert root.data_root() == tmp_path / "data"
    monkeypatch.setenv("CFM_LITE_DATA", "~nobody-of-that-name/data")
    with pytest.raises(DataError, match="home folder"):
        root.data_root()
    monkeypatch.setattr(root, "checkout", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert str(root.cache_root()).startswith(str(tmp_path))


@pytest.mark.parametrize("link", ["symbolic", "hard", "none"])
def test_a_file_that_is_read_is_never_written_whatever_it_is_called(link, tmp_path):
    original = tmp_path / "reference.json"
    original.touch()
    out = tmp_path / "sub" / ".." / "reference.json" if link == "none" else tmp_path / "other.json"
    (tmp_path / "sub").mkdir()
    if link != "none":
        (os.symlink if link == "symbolic" else os.link)(original, out)
    with pytest.raises(ConfigError, match="which this command reads"):
        places.check_file(out, (".json",), inputs=[original])
    assert (
        places.check_file(
            tmp_path / "new.json", (".json",), inputs=[original, tmp_path / "missing"]
        )
        == tmp_path / "new.json"
    )


def test_what_cannot_be_written_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    assert places.check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"

    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(places.tempfile, "TemporaryFile", read_only)
    with pytest.raises(DataError, match="cannot make or write"):
        places.check_folder(tmp_path / "a" / "b")
    with pytest.raises(DataError, match="cannot make or write"):
        places.check_file(tmp_path / "a" / "x.json", (".json",))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wall_about_a_state_dict_becomes_counts_and_first_names():
    wide, deep = (
        nn.Sequential(*(nn.Linear(3, 3) for _ in range(9))),
        nn.Sequential(nn.Linear(3, 4), *(nn.Linear(4, 4) for _ in range(4))),
    )
    with pytest.raises(RuntimeError) as wall:
        wide.load_state_dict({**deep.state_dict(), "extra": torch.zeros(1)})
    assert len(str(wall.value).splitlines()) > 5
    mine = (
        "8 missing: 5.weight, 5.bias, 6.weight and 5 more; 1 unknown: extra; 10 of another shape: "
    )
    assert checks.in_one_line(wall.value).startswith(mine)
    with pytest.raises(CheckpointError, match=f"it does not fit this Sequential: {mine}") as error:
        checks.load_weights(wide, {**deep.state_dict(), "extra": torch.zeros(1)}, "it")
    assert "0.weight (4, 3), not (3, 3)" in str(error.value)
    assert checks.in_one_line(ValueError("first\nsecond")) == "first"
    assert checks.in_one_line(ValueError()) == "ValueError"


def test_the_samples_of_a_run_are_found_from_its_parts(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    assert runs.samples_of(tmp_path / "run") == tmp_path / "run"  # there are none yet
    (tmp_path / "run" / "samples").mkdir()
    inner = tmp_path / "run" / "samples" / "samples.npz"
    inner.touch()
    assert {runs.samples_of(path) for path in (tmp_path / "run", step, inner.parent, inner)} == {
        inner
    }
    assert runs.samples_of(tmp_path) == tmp_path  # a folder of pictures, perhaps
    for drawn in (1, 2):
        inner.with_name("settings.json").write_text(json.dumps({"step": drawn}))
        assert runs.samples_of(tmp_path / "run") == inner
        if drawn == 1:
            assert runs.samples_of(step) == inner
    for damaged in ("{", "[]", "{}"):
        inner.with_name("settings.json").write_text(damaged)
        with pytest.raises(DataError, match=r"settings\.json is damaged"):
            runs.samples_of(step)
    inner.with_name("settings.json").write_text('{"step": 2}')
    with pytest.raises(ConfigError, match=rf"drawn at step 2, not at {step.name}; give .*run, or"):
        runs.samples_of(step)


def test_the_samples_of_a_run_on_points_are_those_of_the_checkpoint_that_is_named(tmp_path, capsys):
    """Such a run keeps the settings inside of samples.npz, and has no settings.json."""
    chosen = recipe("toy", steps=2, hidden_size=4, depth=1, batch=4, shard=4)
    run = tmp_path / "run"
    runs.train(chosen, dataset("two_classes", points=20), out=run, save_every=1, progress=False)
    assert cli.main(["sample", "--checkpoint", str(run), "--num", "4"]) == 0
    first, last = (run / "checkpoints" / f"step-{step:08d}" for step in (1, 2))
    assert runs.samples_of(last) == runs.samples_of(run) == run / "samples.npz"
    assert cli.main(["evaluate", "--samples", str(first)]) == 2
    said = capsys.readouterr().err
    assert f"was drawn at step 2, not at {first.name}; give {run}, or draw others: " in said
    remedy = said.partition("others: cfm-lite ")[2].strip(".\n").replace("--num N", "--num 4")
    other = str(tmp_path / "FILE.npz")
    assert cli.main(remedy.replace("FILE.npz", other).split()) == 0  # its words work
    assert runs.samples_of(other) == Path(other)
    (run / "samples.npz").write_bytes(b"damaged")
    assert runs.samples_of(first) == run / "samples.npz"  # whoever reads it says what is wrong


def test_a_tilde_is_expanded_by_every_function_that_takes_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    chosen = recipe("toy", steps=1, hidden_size=4, depth=1, batch=4, shard=4)
    runs.train(chosen, dataset("two_classes", points=20), out="~/run", progress=False)
    trainer = Trainer(objective.fm(MLP(1, 4, 1)))
    trainer.save("~/checkpoints")
    assert checkpoint.latest("~/checkpoints") == Path(tmp_path / "home/checkpoints/step-00000000")
    assert checkpoint.load("~/checkpoints/step-00000000").step == 0
    viz.save(viz.image_grid({"real": torch.zeros(1, 1, 4, 4)}), "~/grid.png")
    runs.write_json("~/rows.json", [])
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [
        "checkpoints",
        "grid.png",
        "rows.json",
        "run",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
