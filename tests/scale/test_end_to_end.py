"""The four commands, on the 63 real ImageNet images where they are (else on made ones): alone, and
under torchrun on two ranks.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cfm_lite import cli
from cfm_lite.data import archive
from cfm_lite.data.latents import Latents
from tests.pictures import made_folder

REAL = bool(os.environ.get("CFM_LITE_DATA"))
SIZE, STEPS = "128", 20
TRAIN = ["scale", "train", "--model", "SiT-Ti/2", "--method", "vecor", "--log-every", "1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pictures_of(tmp_path_factory.mktemp("made"))


def pictures_of(folder):
    """The 63 real images, or as many made ones below `folder`."""
    if REAL:
        return archive.samples()
    print("no CFM_LITE_DATA: made images stand in for the 63 real ones")
    return made_folder(folder / "set", classes=9, each=7)


@pytest.fixture(scope="module")
def home(images, tmp_path_factory):
    """The four commands in one process each, one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    go(
        "scale",
        "prepare",
        "--images",
        str(images),
        "--out",
        str(folder / "L"),
        "--vae",
        "tiny",
        "--size",
        SIZE,
        "--rows",
        "16",
    )
    train = [*TRAIN, "--latents", str(folder / "L"), "--out", str(folder / "R")]
    go(*train, "--steps", "12")
    go(*train, "--steps", str(STEPS), "--resume")
    sample(folder)
    return folder


def go(*argv):
    assert cli.main(list(argv)) == 0, argv


def sample(folder, out="S"):
    go(
        "scale",
        "sample",
        "--checkpoint",
        str(folder / "R"),
        "--num",
        "18",
        "--steps",
        "4",
        "--batch",
        "5",
        "--out",
        str(folder / out),
    )


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def torchrun(*argv):
    """`torchrun --nproc-per-node=2 -m cfm_lite.cli -- ...`, as one types it."""
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",  # torchrun itself finds a port, and keeps it open
        "-m",
        "cfm_lite.cli",
        "--",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *argv], capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_images_became_latents(home, images):
    data = Latents(home / "L")
    assert len(data) == 63
    assert data.shape == (4, 16, 16)
    assert data.num_classes == (63 if REAL else 9)


def test_twenty_steps_with_a_stop_between_lower_the_loss(home):
    curve = losses(home / "R")
    assert len(curve) == STEPS
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_samples_are_measured_against_the_real_images(home, images, capsys):
    go(
        "evaluate",
        "--samples",
        str(home / "S"),
        "--reference",
        str(images),
        "--inception",
        "standin",
    )
    told = capsys.readouterr().out
    assert "these numbers mean nothing" in told
    rows = {row["metric"]: row for row in json.loads((home / "S" / "metrics.json").read_text())}
    names = (
        "fid_to_63_images",
        "sfid_to_63_images",
        "inception_score",
        "inception_score_std",
        "precision",
        "recall",
    )
    assert set(rows) == {f"standin_{name}" for name in names}
    row = rows["standin_fid_to_63_images"]
    assert row["value"] > 0
    assert "sampler euler, 4 steps, 4 evaluations each, no guidance; seed 0" in told
    assert (row["method"], row["steps"], row["nfe"], row["sampler"], row["samples"]) == (
        "vecor",
        STEPS,
        4,
        "euler",
        18,
    )
    assert row["reference_images"] == 63


def test_two_ranks_prepare_train_resume_and_sample_what_one_process_does(home, images, tmp_path):
    torchrun(
        "scale",
        "prepare",
        "--images",
        str(images),
        "--out",
        str(tmp_path / "L"),
        "--vae",
        "tiny",
        "--size",
        SIZE,
        "--rows",
        "16",
    )
    assert Latents(tmp_path / "L").fingerprint == Latents(home / "L").fingerprint
    train = [*TRAIN, "--latents", str(tmp_path / "L"), "--out", str(tmp_path / "R")]
    torchrun(*train, "--steps", "12")
    told = torchrun(*train, "--steps", str(STEPS), "--resume")
    assert told.count("the run is in") == 1  # rank 0 alone speaks
    assert losses(tmp_path / "R") == pytest.approx(losses(home / "R"), abs=1e-6)
    torchrun(
        "scale",
        "sample",
        "--checkpoint",
        str(home / "R"),
        "--num",
        "18",
        "--steps",
        "4",
        "--batch",
        "5",
        "--out",
        str(tmp_path / "S"),
    )
    two, one = (np.load(folder / "S" / "samples.npz")["arr_0"] for folder in (tmp_path, home))
    assert np.array_equal(two, one)


def test_a_dry_run_needs_nothing_but_a_name(capsys):
    go(
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--method",
        "repa_vecor",
        "--dry-run",
        "--size",
        "64",
        "--set",
        "teacher=vit_tiny_patch16_224",
        "--teacher",
        "random",
    )
    told = capsys.readouterr().out
    for words in ("200 steps will take", "images/s", "setting", "DINOv2"):
        assert words in told


def test_the_help_of_every_command_names_what_is_for_imagenet(capsys):
    for command, words in (
        ("scale train", "--latents"),
        ("sample", "--solver"),
        ("evaluate", "--reference"),
        ("scale prepare", "--vae"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command.split(), "--help"])
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_the_path_runs_at_512_pixels(images, tmp_path):
    few = tmp_path / "few"
    for folder in sorted(
        path
        for path in (images / "train" if (images / "train").is_dir() else images).iterdir()
        if path.is_dir()
    )[:2]:
        shutil.copytree(folder, few / folder.name)
    go(
        "scale",
        "prepare",
        "--images",
        str(few),
        "--out",
        str(tmp_path / "L"),
        "--vae",
        "tiny",
        "--size",
        "512",
    )
    assert Latents(tmp_path / "L").shape == (4, 64, 64)
    train = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--latents",
        str(tmp_path / "L"),
        "--out",
        str(tmp_path / "R"),
    ]
    go(*train, "--steps", "2", "--batch", "2", "--set", "shard=2")
    go(
        "sample",
        "--checkpoint",
        str(tmp_path / "R"),
        "--num",
        "2",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "S"),
    )
    with np.load(tmp_path / "S" / "samples.npz") as file:
        assert file["arr_0"].shape == (2, 512, 512, 3)
