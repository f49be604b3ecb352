"""The SLURM recipe of docs/imagenet.md, run as it stands there: it starts, is asked to stop, and the same
script goes on to the same end.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cfm_lite.runs import loop as runs
from cfm_lite.runs.imagenet import imagenet
from tests.processes import eventually
from tests.scale.test_ranks import done, together, train

ROOT = Path(__file__).parents[2]
STEPS = 150
pytestmark = pytest.mark.timeout(400)  # six interpreters import torch

# What stands in for a cluster: srun starts the step in a process group of its own, for SLURM
# signals every process of a step, and
# torchrun is the real one on this machine, with two ranks and a small model in the places of 32 and
# of SiT-XL/2.
SRUN = """#!{python}
import os, sys
os.setpgrp()
with open(os.environ["STEP"], "w") as file:
    file.write(str(os.getpid()))
os.execvp(sys.argv[1], sys.argv[1:])
"""
TORCHRUN = """#!{python}
import os, sys
words = sys.argv[1:]
given = [word.partition("=")[0] for word in words if word.startswith("--") and "=" in word]
assert given == ["--nnodes", "--nproc-per-node", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"], given
assert "--rdzv-id=77" in words and "--rdzv-endpoint=node1:29500" in words, words
rest = words[words.index("-m"):]
small = ["--batch", "8", "--steps", "{steps}", "--set", "shard=2", "--log-every", "1", "--device", "cpu"]
rest[rest.index("SiT-XL/2")] = "SiT-Ti/2"
rest[rest.index("latents-256")] = "{latents}"
os.execv("{python}", ["{python}", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *rest, *small])
"""
SCONTROL = "#!/bin/sh\necho node1\necho node2\n"


def recipe():
    """The script in docs/imagenet.md."""
    blocks = re.findall(
        r"```bash\n(.*?)```", (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (found,) = (block for block in blocks if "#SBATCH" in block)
    return found


@pytest.fixture
def cluster(tmp_path, folder):
    """A function that submits the script: the running job, and the file with its output."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("torchrun", TORCHRUN), ("scontrol", SCONTROL)):
        text = (
            text.replace("{python}", sys.executable)
            .replace("{steps}", str(STEPS))
            .replace("{latents}", str(folder))
        )
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(recipe())
    names = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "STEP": str(tmp_path / "step"),
        "PYTHONPATH": str(ROOT),
    }
    names |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]"}

    def submit(output):
        with open(output, "wb") as file:
            return subprocess.Popen(
                ["bash", "job.sh"], cwd=tmp_path, env=os.environ | names, stdout=file, stderr=file
            )

    return submit


def lines(run):
    return (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []


def losses(run):
    return [json.loads(line)["loss"] for line in lines(run)]


def test_the_recipe_starts_saves_at_term_goes_on_and_ends_where_an_unbroken_run_does(
    cluster, data, tmp_path
):
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in recipe()
    run, first, second = (
        tmp_path / "runs" / "vecor-xl",
        tmp_path / "first.txt",
        tmp_path / "second.txt",
    )
    with cluster(first) as job:
        with eventually(150) as wait:
            wait(lambda: len(lines(run)) > 3 or job.poll() is not None)
        assert job.poll() is None, first.read_text()
        os.killpg(int((tmp_path / "step").read_text()), signal.SIGTERM)
        assert job.wait(150) != 0
    (saved,) = (path.name for path in (run / "checkpoints").iterdir())
    stopped = int(saved.removeprefix("step-"))
    assert 3 < stopped < STEPS
    assert len(lines(run)) == stopped  # the last step done is the one that was saved
    with cluster(second) as job:
        assert job.wait(150) == 0, second.read_text()
    assert f"{STEPS} steps" in second.read_text()
    chosen = imagenet(
        "vecor", model="SiT-Ti/2", batch=8, shard=2, steps=STEPS, size=32, precision="float32"
    )
    done(together(2, tmp_path, train(data, tmp_path / "whole", chosen)))
    assert losses(run) == losses(tmp_path / "whole")


def test_under_torchrun_a_signal_that_comes_twice_is_one_request(monkeypatch):
    """SLURM and a terminal reach every process, and torchrun passes on what it was sent: the save
    that has begun goes on.
    """
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "77")
    with runs._stop_requests() as asked:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
