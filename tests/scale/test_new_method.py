"""A method is one entry: with the block of CONTRIBUTING.md at the end of methods.py, everything that
knows methods knows the new one.
"""

import json
import os
import shutil
import subprocess
import sys

from tests.documents import ROOT, blocks

SCRIPT = """
import json
from cfm_lite import cli, viz
from cfm_lite.lab.arms import CONTROLS
from tools import tables

def command(*words):
    assert cli.main(list(words)) == 0

command("train", "toy", "--method", "mean_fm", "--steps", "3", "--out", "run")
command("sample", "--checkpoint", "run", "--debias", "--num", "4", "--out", "samples.npz")
arms = ("fm", CONTROLS["mean_fm"], "mean_fm", "mean_fm_debiased")
command("compare", "toy", "--quick", "--seeds", "1", "--arms", *arms, "--out", "rows")
figure = viz.quality_vs_steps(json.load(open("rows/toy.json")), ["sliced_wasserstein"])
words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
found = {"legend": words, "table": tables.methods_table() + tables.controls_table(), "colour": viz.METHOD_COLORS["mean_fm"]}
json.dump(found, open("found.json", "w"))
"""


def test_one_entry_is_trained_compared_drawn_and_listed(tmp_path):
    copy = tmp_path / "package" / "cfm_lite"
    shutil.copytree(
        ROOT / "cfm_lite", copy, ignore=shutil.ignore_patterns("__pycache__", "checkpoints")
    )
    entry = blocks("CONTRIBUTING.md")[2].text
    with (copy / "methods.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{entry}")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{copy.parent}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["method"] == "mean_fm"
    )
    rows = json.loads((tmp_path / "rows" / "toy.json").read_text())
    measured = {"fm", "fm_retargeted_mean", "mean_fm", "mean_fm_debiased"}
    assert {row["method"] for row in rows} == measured
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"mean ΔFM", "FM, re-targeted as mean ΔFM", "mean ΔFM, debiased"} <= set(found["legend"])
    assert "| mean ΔFM | FM − λ E‖v − ū‖²" in found["table"]
    assert "| `mean_fm` | `fm_retargeted_mean` | `mean_fm_debiased` |" in found["table"]
    assert found["colour"] == "#44AA99"
