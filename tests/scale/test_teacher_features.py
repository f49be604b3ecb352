"""REPA's targets computed once: the same training as with the teacher in every step, and no mix-up."""

import json

import numpy as np
import pytest
import torch

from cfm_lite.data.latents import Latents, Pictures
from cfm_lite.data.latents.features import TeacherFeatures, encode_features
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.models import teacher
from cfm_lite.runs.imagenet import imagenet
from cfm_lite.scale.dry_run import dry_run
from cfm_lite.scale.train import Options, opened_teacher, train_imagenet
from tests.pictures import made_folder, picture
from tests.scale.test_ranks import done, losses, together, train

NAME = "vit_tiny_patch16_224"
RECIPE = imagenet("repa_vecor", model="SiT-Ti/2", batch=8, shard=2, steps=4, size=32, teacher=NAME)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return teacher(NAME, grid=2, pretrained=False)


def encode(data, pictures, vit, out, **how):
    return encode_features(data, pictures, vit, NAME, out, progress=False, **how)


@pytest.fixture(scope="module")
def features(data, pictures, vit, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "F"
    encode(data, pictures, vit, out, mirrors=2)
    return out


def test_tokens_are_those_of_the_row_and_of_its_mirror_image(data, pictures, vit, features):
    rows, mirrored = torch.tensor([0, 6, 7, 23, 3]), torch.tensor([False, True, False, True, True])
    mine = vit(Pictures(data, pictures)(rows, mirrored).float() / 255)
    torch.testing.assert_close(
        TeacherFeatures(features, data)(rows, mirrored).float(), mine, rtol=1e-3, atol=1e-3
    )


def test_training_on_stored_features_is_training_with_the_teacher(
    data, pictures, features, tmp_path, monkeypatch
):
    torch.manual_seed(0)  # the weights of the random teacher, as in `vit`
    train_imagenet(
        RECIPE,
        data,
        Options(tmp_path / "a", images=pictures, teacher="random", log_every=1, progress=False),
    )
    train_imagenet(
        RECIPE, data, Options(tmp_path / "b", features=features, log_every=1, progress=False)
    )
    assert losses(tmp_path / "b") == pytest.approx(
        losses(tmp_path / "a"), abs=2e-4
    )  # float16 on the disk
    last = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[-1])
    assert {"flow_matching", "repulsion", "alignment"} <= set(last)
    done(together(2, tmp_path, train(data, tmp_path / "c", RECIPE, features=features)))
    assert losses(tmp_path / "c") == pytest.approx(losses(tmp_path / "b"), abs=1e-6)
    assert "+ repa" in dry_run(RECIPE, data, Options(tmp_path / "d", features=features))


def test_a_dry_run_too_needs_what_the_teacher_sees(data, tmp_path):
    blind = Options(tmp_path / "d", teacher="random")
    with pytest.raises(ConfigError, match="which needs the images: give their folder"):
        dry_run(RECIPE, data, blind)
    # a guess of the cost, without latents
    assert "+ repa" in dry_run(RECIPE, None, blind, steps=1)


def test_a_stopped_encoding_goes_on_to_the_same_bytes(data, pictures, vit, features, tmp_path):
    assert encode(data, pictures, vit, tmp_path / "F", mirrors=2, rank=1, world=2) is None
    assert encode(data, pictures, vit, tmp_path / "F", mirrors=2) is not None
    for path in sorted(features.iterdir()):
        assert (tmp_path / "F" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(DataError, match="mirrors: there 2, now 1"):
        encode(data, pictures, vit, tmp_path / "F", mirrors=1)


def test_features_that_do_not_fit_are_refused(data, pictures, vit, features, tmp_path):
    for recipe, words in (
        (RECIPE.changed(teacher="other"), "the recipe's teacher is 'other'"),
        (RECIPE.changed(patch_size=1), "tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_imagenet(
                recipe, data, Options(tmp_path / "run", features=features, progress=False)
            )
    encode(data, pictures, vit, tmp_path / "one")
    with pytest.raises(ConfigError, match="mirror"):
        train_imagenet(
            RECIPE.changed(mirror=True),
            data,
            Options(tmp_path / "run", features=tmp_path / "one", progress=False),
        )
    with pytest.raises(ConfigError, match="no mirror images"):
        TeacherFeatures(tmp_path / "one", data)(torch.tensor([0]), torch.tensor([True]))


def test_features_of_other_images_than_the_latents_are_refused_and_nothing_is_written(
    data, pictures, vit, features, tmp_path
):
    import shutil

    other = made_folder(tmp_path / "set")
    path = other / "class1" / "003.png"
    picture(1000, 44).save(path)
    done = shutil.copytree(features, tmp_path / "F")
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    for out in (done, tmp_path / "new"):
        with pytest.raises(DataError) as error:
            encode(data, other, vit, out, mirrors=2)
        assert str(error.value) == (
            f"{path} has {path.stat().st_size:,} bytes; {data.folder} was made of a file of "
            f"{(pictures / 'class1' / '003.png').stat().st_size:,}. Give the folder that it was "
            "made of with --images."
        )
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before


def test_damaged_unfinished_and_foreign_features_are_named(data, folder, features, tmp_path):
    import shutil

    copy = tmp_path / "F"
    shutil.copytree(features, copy)
    content = bytearray((copy / "shard-00001.npy").read_bytes())
    content[-1] ^= 1
    (copy / "shard-00001.npy").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"shard-00001\.npy is damaged"):
        TeacherFeatures(copy, data).verify()
    np.save(copy / "shard-00001.npy", np.zeros((1, 2), np.float16))
    with pytest.raises(DataError, match="was written"):
        TeacherFeatures(copy, data)
    (copy / "index.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        TeacherFeatures(copy, data)
    other = Latents(folder)
    other.index = {**other.index, "self": "0" * 64}
    with pytest.raises(DataError, match="other latents"):
        TeacherFeatures(features, other)


def test_a_random_teacher_is_the_same_each_time_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, two = (opened_teacher(NAME, 2, "random").state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), before)
