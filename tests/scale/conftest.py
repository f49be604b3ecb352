"""What the full-scale tests share: made images, their latents through the tiny VAE, and one short
run.
"""

from pathlib import Path

import pytest

from cfm_lite.data import images
from cfm_lite.data.latents import Latents, prepare
from cfm_lite.data.latents.codec import open_codec
from cfm_lite.runs.imagenet import imagenet
from cfm_lite.scale.train import Options, train_imagenet
from tests.pictures import made_folder

SMALL = imagenet("vecor", model="SiT-Ti/2", batch=8, shard=2, steps=6, size=32)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return made_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="session")
def codec():
    return open_codec("tiny")


@pytest.fixture(scope="session")
def folder(pictures, codec, tmp_path_factory):
    """A folder of latents: 24 images of 3 classes, 4x4 positions."""
    out = tmp_path_factory.mktemp("latents") / "L"
    prepare.prepare(images.find(pictures), out, codec, size=32, rows=7, progress=False)
    return out


@pytest.fixture(scope="session")
def data(folder):
    return Latents(folder)


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """The folder of a run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train_imagenet(SMALL, data, Options(out, log_every=1, progress=False))
    return out


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.scale)
