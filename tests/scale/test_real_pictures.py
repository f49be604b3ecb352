"""Real pictures at their full number: decoding 60,000 in colour takes 15 seconds, so this is done once."""

import pytest
import torch

from cfm_lite.data import cifar10
from cfm_lite.data.datasets import dataset
from cfm_lite.runs import train
from cfm_lite.runs.recipe import recipe


@pytest.mark.real_data
def test_the_real_pictures_are_50000_and_10000_and_their_colours_are_shuffled():
    x, y = cifar10.load("train", name="cifar10-jpeg75")
    assert x.shape == (50_000, 3, 32, 32)
    assert len(cifar10.load("test", name="cifar10-jpeg75")[1]) == 10_000
    assert torch.allclose(
        x.mean((0, 2, 3)), torch.tensor([-0.017, -0.035, -0.107]), atol=0.003
    )  # of 0.4914, 0.4822, 0.4465 in [0, 1]
    assert y[:1000].bincount().min() > 70
    small = {
        "hidden_size": 48,
        "depth": 4,
        "num_heads": 2,
        "steps": 2,
        "batch": 32,
        "precision": "float32",
    }
    chosen = recipe("cifar10", dataset="cifar10-jpeg75", method="vecor", **small)
    run = train(chosen, dataset(chosen.dataset, limit=64), progress=False, log_every=1)
    assert run.log[-1]["repulsion"] > 0


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mnist", "mnist_sit"])
def test_the_mnist_recipes_train_on_real_images(name):
    chosen = recipe(name, steps=2, batch=8, shard=8, method="vecor_latent")
    run = train(chosen, dataset("mnist", limit=256), progress=False, log_every=1)
    assert run.step == 2
    assert run.log[-1]["flow_matching"] > 0
