"""Under torchrun each process computes on a GPU of its own, whatever the command."""

import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite.errors import ConfigError

AT, NUMBERS = "cfm_lite.scale.commands", "cfm_lite.evaluate.samples"


class Placed(Exception):
    """Where a command would compute; raised in place of the work."""


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is the second that torchrun started, on a machine with two GPUs."""
    names = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_device_is_that_of_the_local_rank(second_of_two):
    assert runs.pick_device("auto") == runs.pick_device("cuda") == torch.device("cuda", 1)
    assert set(second_of_two) == {1}  # and what torch puts on "cuda" goes there too
    assert runs.pick_device("cpu") == torch.device("cpu")


def test_alone_the_device_has_no_number(second_of_two, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert runs.pick_device("cuda") == torch.device("cuda")
    assert second_of_two == []


def test_more_processes_than_gpus_are_refused_by_every_command(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--nproc-per-node"):
        runs.pick_device("cuda")


@pytest.mark.parametrize(
    ("place", "argv"),
    [
        (f"{AT}.open_codec", ["scale", "prepare", "--images", "{pictures}", "--out", "{tmp}/latents", "--vae", "tiny"]),
        (f"{NUMBERS}.open_extractor", ["evaluate", "--samples", "{pictures}", "--reference", "{pictures}", "--inception", "standin"]),
        (f"{AT}.joined", ["scale", "train", "--model", "SiT-Ti/2", "--dry-run", "--out", "{tmp}/run"]),
        ("cfm_lite.engine.parallel.joined", ["sample", "--checkpoint", "{run}", "--out", "{tmp}/samples"]),
    ],
)  # fmt: skip
def test_each_command_of_the_full_scale_computes_on_its_own_gpu(
    second_of_two, monkeypatch, pictures, run, tmp_path, place, argv
):
    def stop(*args, **how):
        raise Placed(next(x for x in (*args, *how.values()) if isinstance(x, torch.device)))

    monkeypatch.setattr(place, stop)
    with pytest.raises(Placed, match="cuda:1"):
        cli.main(
            [*(word.format(pictures=pictures, tmp=tmp_path, run=run) for word in argv), "--debug"]
        )
