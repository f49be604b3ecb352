"""The shell blocks of the documents, run as they are printed; only the sizes are small, and those are
changed outside the block.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cfm_lite.data import images
from tests.documents import ROOT, blocks
from tests.pictures import made_folder

# what stands in front of the real programs: it makes the numbers small, and passes everything else
# on
SMALL = """#!{python}
import os, sys
# every group in one sweep is tests/test_cifar10_suite.py's: here "all" is the core
SMALLER = {{"SiT-XL/2": "SiT-Ti/2", "50000": "10", "--nproc-per-node=8": "--nproc-per-node=2", "all": "core"}}
MORE = {{
    "prepare": ["--vae", "tiny", "--size", "64"],
    "train": ["--steps", "3", "--batch", "16"],
    "sample": ["--steps", "3"],
    "evaluate": ["--inception", "standin"],
    "compare": ["--quick", "--seeds", "1", "--arms", "fm", "delta_fm", "--set", "hidden_size=32"],
}}
words = [SMALLER.get(word, word) for word in sys.argv[1:]]
command = next(word for word in words if word in MORE)
more = [] if "--report" in words else MORE[command]
if words[words.index(command) - 1 : words.index(command) + 1] == ["scale", "sample"]:
    more = [*more, "--batch", "4"]
if os.path.basename(sys.argv[0]) == "torchrun":
    start = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
else:
    start = ["-m", "cfm_lite.cli"]
os.execv(sys.executable, [sys.executable, *start, *words, *more])
"""


@pytest.fixture
def shell(tmp_path):
    """`shell(block)` runs a block with bash in an empty folder, where cfm-lite and torchrun take
    small sizes; what it printed.
    """
    programs, home = tmp_path / "programs", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    for name in ("cfm-lite", "torchrun"):
        file = programs / name
        file.write_text(SMALL.format(python=sys.executable))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(text: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    run.home = home  # pyright: ignore[reportFunctionMemberAccess]
    return run


def rows(path: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in json.loads(path.read_text(encoding="utf-8"))}


@pytest.mark.timeout(300)
def test_the_commands_for_imagenet_go_from_images_to_a_score(shell):
    made_folder(shell.home / "ILSVRC" / "train", classes=4, each=10)
    shown = np.stack(
        [
            images.load(file.path, 64).permute(1, 2, 0).numpy()
            for file in images.find(shell.home / "ILSVRC/train").files
        ]
    )
    np.savez(shell.home / "VIRTUAL_imagenet256_labeled.npz", arr_0=shown)
    said = shell(blocks("docs/imagenet.md")[0].text)
    assert "40 images of 4 classes" in said
    assert "10 samples in samples/samples.npz" in said
    assert (shell.home / "runs/vecor-xl/checkpoints/step-00000003/MANIFEST.json").exists()
    values = rows(shell.home / "samples/metrics.json")
    five = {"fid_to_40_images", "sfid_to_40_images", "inception_score", "precision", "recall"}
    assert {name.removeprefix("standin_") for name in values} >= five
    assert all(np.isfinite(value) for value in values.values())


@pytest.mark.timeout(300)
def test_the_commands_of_the_lab_list_measure_and_report(shell):
    results = shell.home / "data" / "results"
    results.mkdir(parents=True)
    said = shell(blocks("docs/lab.md")[0].text)
    assert "jobs are left" in said
    assert {
        row["method"] for row in json.loads((results / "digits.json").read_text(encoding="utf-8"))
    } == {"fm", "delta_fm"}
    assert (results / "digits.weight.json").exists()
    assert "difference to fm" in said
