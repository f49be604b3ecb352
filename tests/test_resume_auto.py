"""`--resume auto`: go on where there is something, start where there is nothing, and never lose
what is only damaged.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from cfm_lite import cli, runs
from cfm_lite.cli import samples
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.lab.store import Store
from cfm_lite.runs.recipe import Recipe
from tests.processes import forked

TOY = ["train", "toy", "--set", "hidden_size=16", "batch=32", "cooldown=0"]


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch):
    """What is drawn after a run is not looked at here."""
    monkeypatch.setattr(samples, "sample_file", lambda *args: "samples in a")


def train(folder, steps, *words):
    return cli.main(
        [*TOY, "--steps", str(steps), "--save-every", "2", "--out", str(folder), *words]
    )


def saved(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("how", [("--resume", "auto"), ("--resume=auto",)])
def test_the_same_command_starts_goes_on_and_says_that_all_is_done(how, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, 4, *how) == 0
    assert train(out, 6, *how) == 0
    assert "6 steps" in capsys.readouterr().out
    assert train(out, 6, *how) == 0
    assert "all 6 steps were done before" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()][
        -1
    ] == 6


@pytest.mark.parametrize("resume", ["yes", "Auto", "", 1, 0, None])
@pytest.mark.parametrize("out", [True, False])
def test_another_word_for_resume_is_refused_also_where_nothing_is_kept(resume, out, tmp_path):
    data = dataset("moons", points=64)
    short = Recipe(dataset="moons", hidden_size=8, depth=1, batch=32, steps=2)
    folder = tmp_path / "run" if out else None
    with pytest.raises(ConfigError, match=r"resume is .*; it must be True, False or 'auto'"):
        runs.train(short, data, out=folder, resume=resume, progress=False)
    assert list(tmp_path.iterdir()) == []
    for allowed in (False, "auto"):
        assert runs.train(short, data, resume=allowed, progress=False).step == 2


def test_a_run_killed_before_its_first_save_starts_again_with_or_without_auto(tmp_path):
    for name, words in (("auto", ["--resume", "auto"]), ("plain", [])):
        out = tmp_path / name
        (out / "checkpoints" / ".tmp-half").mkdir(parents=True)  # killed inside its first save
        (out / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"st')
        (out / "config.json").write_text('{"recipe": {}}')
        assert train(out, 4, *words) == 0
        assert saved(out) == ["step-00000002", "step-00000004"]
        assert json.loads((out / "config.json").read_text())["recipe"]["steps"] == 4
        lines = (out / "log.jsonl").read_text().splitlines()
        assert 9.0 not in [json.loads(line)["loss"] for line in lines]


def test_lines_of_the_log_that_are_none_are_dropped(tmp_path):
    out = tmp_path / "run"
    assert train(out, 2) == 0
    with open(out / "log.jsonl", "ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"loss": 1}\n3\n{"step": "x"}\n' + b"[" * 100_000)
    assert train(out, 4, "--resume", "auto") == 0
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 4


@pytest.mark.filterwarnings("default:using")
def test_a_damaged_newest_one_is_a_note_and_only_damaged_ones_are_an_error(tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, 4) == 0
    (out / "checkpoints" / "step-00000004" / "weights.safetensors").write_bytes(b"half")
    shutil.copytree(out, tmp_path / "worse")
    (tmp_path / "worse" / "checkpoints" / "step-00000002" / "state.json").write_bytes(b"")
    assert train(out, 6, "--resume", "auto") == 0
    said = capsys.readouterr()
    assert "newer ones are damaged" in said.err
    assert "6 steps" in said.out
    assert (
        train(tmp_path / "worse", 6, "--resume", "auto") == 4
    )  # a long run is never started again without a word
    assert "no valid checkpoint" in capsys.readouterr().err


def test_resume_alone_still_needs_a_run_and_leaves_nothing_where_there_is_none(tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, 4, "--resume") == 4
    assert "give --resume auto" in capsys.readouterr().err
    assert not out.exists()
    assert train(out, 4, "--no-resume") == 0
    assert train(out, 4, "--resume", "--seed", "0") == 0
    assert train(out, 4) == 2


def test_where_a_run_goes_on_is_decided_in_one_place(tmp_path):
    assert not runs.resumes(tmp_path)
    assert runs.resumes(tmp_path, True)
    with pytest.raises(ConfigError, match="auto"):
        runs.resumes(tmp_path, "atuo")
    with pytest.raises(CheckpointError, match="does not exist"):
        runs.train(Recipe(), None, out=tmp_path / "none", resume=True, trainer=_Nothing())  # pyright: ignore


class _Nothing:
    """A trainer that is never asked to do anything."""

    step, compiled = 0, False

    from cfm_lite.engine.parallel import ALONE as world


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: a system without users of its own")
@pytest.mark.parametrize("mode", [0o333, 0o444, 0o000])
def test_a_closed_folder_is_an_error_and_not_an_empty_one(mode):
    with tempfile.TemporaryDirectory() as home:
        out, store = Path(home) / "run", Store(home, "toy")
        assert train(out, 4) == 0
        log = (out / "log.jsonl").read_bytes()
        store.parts.mkdir()
        (store.parts / "key.json").write_text("[]")
        for path in (Path(home), *Path(home).rglob("*")):
            path.chmod(0o777)

        def look():
            if os.getuid() == 0:
                os.setuid(65534)
            with pytest.raises(CheckpointError, match=r"checkpoints cannot be listed \(Permission"):
                runs.resumes(out)
            with pytest.raises(DataError, match="parts cannot be listed"):
                store.finished()
            return train(out, 6, "--resume", "auto")

        for closed in (out / "checkpoints", store.parts):
            closed.chmod(mode)
        assert os.waitstatus_to_exitcode(os.waitpid(forked(look), 0)[1]) == 4
        for closed in (out / "checkpoints", store.parts):
            closed.chmod(0o777)
        assert (out / "log.jsonl").read_bytes() == log
