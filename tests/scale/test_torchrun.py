"""What a person sees and gets who starts several ranks with torchrun itself."""

import json
import os
import re
import subprocess
import sys

import pytest

from cfm_lite import cli

pytestmark = pytest.mark.timeout(300)  # new interpreters import torch
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "-m",
    "cfm_lite.cli",
    "--",
]


def test_our_one_line_is_the_last_that_torchrun_prints(tmp_path):
    """Only the border of torchrun's box stands below; its own lines above it cannot be helped."""
    words = [
        *TORCHRUN,
        "scale",
        "train",
        "--latents",
        str(tmp_path / "nowhere"),
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    lines = [line for line in done.stderr.splitlines() if line.strip(" =-")]
    assert re.search(r"cfm-lite( \[rank 1\])?: error:", lines[-1])  # of the rank that ended first
    assert "nowhere holds no latents" in lines[-1]
    assert "exitcode  : 3" in done.stderr
    assert "To enable traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["train", "--speed", "9"], "speed"), (["train", "digits", "--steps", "0"], "steps is 0")],
)
def test_any_error_of_a_command_is_left_where_torchrun_looks(argv, words, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", "1")
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    left = json.loads((tmp_path / "error.json").read_text())["message"]
    assert code == 2
    assert left["message"].startswith("cfm-lite [rank 1]: error: ")
    assert words in left["extraInfo"]["py_callstack"]


def test_a_bug_leaves_its_traceback_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(cli.Train, "run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "digits"])
    assert "ZeroDivisionError" in (tmp_path / "error.json").read_text()
