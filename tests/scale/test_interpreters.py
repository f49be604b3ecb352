"""Ranks in interpreters of their own, as torchrun starts them: nothing that forked ranks share can
make them agree.
"""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch

from cfm_lite.data.latents import Latents
from cfm_lite.engine import checkpoint
from cfm_lite.scale.train import Options, train_imagenet
from tests.processes import interpreters
from tests.scale.conftest import SMALL

pytestmark = pytest.mark.timeout(300)  # four interpreters import torch
WAYS = ("ddp", "fsdp")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def begin(world, folder, latents):
    """What each rank of the first start does: three of six steps, once under DDP and once under
    FSDP.
    """
    for way in WAYS:
        options = Options(
            Path(folder) / way, world=world, parallel=way, log_every=1, progress=False
        )
        train_imagenet(SMALL.changed(steps=3), Latents(latents), options)


def go_on(world, folder, latents):
    """What each rank of the second start does: the other three steps, from each of the two under
    each of the two.
    """
    for before, after in product(WAYS, WAYS):
        options = Options(
            Path(folder) / f"{before}-{after}",
            world=world,
            parallel=after,
            resume=True,
            log_every=1,
            progress=False,
        )
        train_imagenet(SMALL, Latents(latents), options)


@pytest.fixture(scope="module")
def resumed(folder, tmp_path_factory):
    """The four runs that were saved under one parallel and resumed under another, four interpreters
    in all.
    """
    home = tmp_path_factory.mktemp("interpreters")
    for work in (begin, go_on):
        started = interpreters(f"{__name__}:{work.__name__}", 2, home, str(home), str(folder))
        assert started.wait(150) == [0, 0], "\n".join(started.texts())
        if work is begin:
            for before, after in product(WAYS, WAYS):
                shutil.copytree(home / before, home / f"{before}-{after}")
    return home


@pytest.mark.parametrize(("before", "after"), list(product(WAYS, WAYS)))
def test_a_run_saved_under_one_parallel_is_resumed_under_another_as_one_process_would(
    before, after, resumed, run
):
    place = resumed / f"{before}-{after}"
    assert losses(place) == pytest.approx(losses(run), abs=1e-6)
    ours, whole = (
        checkpoint.load(checkpoint.latest(folder / "checkpoints")) for folder in (place, run)
    )
    assert list(ours.weights) == list(whole.weights)
    for name, value in whole.weights.items():
        torch.testing.assert_close(ours.weights[name], value, rtol=0, atol=1e-5)
    for name, value in whole.optimizer.items():
        torch.testing.assert_close(ours.optimizer[name], value, rtol=0, atol=1e-5)
