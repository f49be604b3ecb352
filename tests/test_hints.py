"""A hint is a promise: each number and each command that a message proposes is tried here, as it
stands.
"""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm_lite.cli.arguments import parse_settings
from cfm_lite.data import cifar10, mnist
from cfm_lite.data.batches import fitting
from cfm_lite.data.images import ImageFolder
from cfm_lite.data.latents import part_of
from cfm_lite.data.latents.codec import Scaling
from cfm_lite.data.latents.prepare import plan_of
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.models import MLP
from cfm_lite.objective import fm
from cfm_lite.runs.imagenet import ImageNet, imagenet
from cfm_lite.scale.budget import split_batch
from cfm_lite.scale.train import check_fit
from cfm_lite.training import Trainer


def remedies(message):
    """The alternatives of a message, each as the changes that its options make."""
    found = []
    for words in re.split(r", or |; ", message):
        changes = parse_settings(re.findall(r"--set (\w+=[^\s,.]+)", words), ImageNet)
        changes |= {
            name.replace("-", "_"): int(value)
            for name, value in re.findall(r"--(batch|size|micro-batch) (\d+)", words)
        }
        found += [changes] if changes else []
    return found


class Set:
    """What check_fit looks at in a set of latents."""

    def __init__(self, images, size=256):
        self.images, self.size, self.folder, self.condition = images, size, "L", "labels"

    def __len__(self):
        return self.images


def fits(images, ranks, changes):
    recipe = imagenet("sit", **changes)
    check_fit(recipe, Set(images), ranks)
    part_of(recipe.batch, ranks, recipe.shard, images)
    split_batch(recipe, 32, 10**6, 10**9, ranks)


@settings(max_examples=300, deadline=None)
@given(
    batch=st.integers(1, 300),
    shard=st.integers(1, 64),
    ranks=st.integers(1, 9),
    images=st.integers(1, 400),
)
def test_what_a_refused_batch_is_told_to_be_is_taken_as_it_stands(batch, shard, ranks, images):
    given_, tried = {"batch": batch, "shard": shard}, 0
    for _ in range(
        3
    ):  # a recipe does not know the data, nor a set the recipe: each may have its say once
        try:
            fits(images, ranks, given_)
            break
        except ConfigError as error:
            message = str(error)
        told = remedies(message)
        if not told:
            assert images < ranks
            return
        where = (
            (images, ranks) if "not a multiple of shard" not in message else (10**6, 1)
        )  # as much as who speaks can know
        for changes in told:
            fits(*where, given_ | changes)
            tried += 1
        given_ |= told[0]
    else:
        raise AssertionError(message)
    assert tried or (batch % shard == 0 and batch <= images)


@pytest.mark.parametrize(
    ("images", "ranks", "told"),
    [
        (20, 1, ["--batch 20 --set shard=20"]),
        (63, 1, ["--batch 32"]),
        (63, 2, ["--batch 62 --set shard=31"]),
        (300, 1, []),
        (3, 4, []),
    ],
)
def test_a_small_set_is_told_a_batch_and_a_shard_that_go_together(images, ranks, told):
    """The 20 images of a trial, with the recipe's batch of 256 and shard of 32: "--batch 20" alone
    would be refused.
    """
    if images >= 256:
        return fits(images, ranks, {})
    assert fitting(256, 32, ranks=ranks, most=images) == told
    with pytest.raises(ConfigError, match="larger than the data, which holds"):
        fits(images, ranks, {})


@pytest.mark.parametrize("micro", [1, 7, 48, 128, 200, 1000])
def test_the_micro_batch_that_is_named_is_taken(micro):
    with pytest.raises(ConfigError, match="micro_batch is") as error:
        split_batch(imagenet("sit", batch=384), 32, 10**6, 10**9, 2, micro)
    (changes,) = remedies(str(error.value))
    allowed = [
        int(text) for text in re.findall(r"\d+", re.search(r"allow \[(.*?)\]", str(error.value))[1])
    ]
    for size in [changes["micro_batch"], *allowed]:
        assert split_batch(imagenet("sit", batch=384), 32, 10**6, 10**9, 2, size).micro == size


@pytest.mark.parametrize("shard", [None, 4])
@pytest.mark.parametrize(("rows", "accumulate"), [(10, 3), (10, 4), (7, 2), (1, 5)])
def test_the_batch_that_micro_batches_ask_for_is_taken(rows, accumulate, shard):
    def step(rows, shard):
        objective = fm(MLP(hidden_size=8, depth=1, num_classes=2), shard=shard)
        trainer = Trainer(objective, accumulate=accumulate)
        return next(trainer.run([(torch.randn(rows, 2), torch.zeros(rows, dtype=torch.long))], 1))

    with pytest.raises(ConfigError, match="cannot be cut into") as error:
        step(rows, shard)
    message = str(error.value)
    batch, unit = (
        int(re.search(words, message)[1])
        for words in (r"batch of (\d+), or any", r"multiple of (\d+)")
    )
    wanted = re.search(r"a shard of (\d+)", message)
    step(batch, int(wanted[1]) if wanted else shard)
    assert batch % unit == 0
    if shard:
        step(3 * unit, shard)


class Codec:
    channels, factor, source, fingerprint, scaling = 4, 8, "x", "y", Scaling()


@pytest.mark.parametrize("factor", [8, 16, 32, 512])
@pytest.mark.parametrize("size", [1, 100, 257, 999])
def test_the_size_that_a_codec_asks_for_is_taken(size, factor):
    codec, none = Codec(), ImageFolder(None, (), ())
    codec.factor = factor
    with pytest.raises(ConfigError, match="it must be a multiple") as error:
        plan_of(none, codec, size)
    assert (
        plan_of(none, codec, int(re.search(r"such as (\d+)", str(error.value))[1])).size % factor
        == 0
    )
    with pytest.raises(ConfigError, match="holds latents of 96") as error:
        check_fit(imagenet("sit"), Set(1000, 96))
    check_fit(imagenet("sit", **remedies(str(error.value))[0]), Set(1000, 96))


def test_a_missing_data_set_names_a_command_that_fetches_it_only_where_there_is_one(tmp_path):
    for load, name in ((mnist.load, "mnist"), (cifar10.load, "cifar10")):
        with pytest.raises(DataError, match=f"`cfm-lite prepare {name}` downloads it"):
            load(root=tmp_path)
    with pytest.raises(DataError, match="nothing downloads it") as error:
        cifar10.load(name="cifar10-jpeg75", root=tmp_path)
    assert "cfm-lite prepare" not in str(error.value)
