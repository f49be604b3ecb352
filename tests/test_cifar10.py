"""data/cifar10.py: both archives are read exactly, without unpacking and without a pickle, and
damage is one clear error.
"""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cfm_lite.data import cifar10, root
from cfm_lite.data.datasets import dataset
from cfm_lite.data.teachers import Tokens, train_teacher
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.evaluate.judges import Judge, train_judge

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
LABELS = np.arange(40) % 10


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def records(rows):
    return b"".join(bytes([LABELS[i]]) + PIXELS[i].tobytes() for i in rows)


def picture(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


BINARY = {
    f"cifar-10-batches-bin/data_batch_{i}.bin": records(range(4 * i - 4, 4 * i))
    for i in range(1, 6)
}
BINARY["cifar-10-batches-bin/test_batch.bin"] = records(range(20, 40))
FOLDERS = {
    f"{'train' if i < 20 else 'test'}/{cifar10.CLASSES[LABELS[i]]}/{i:04d}.jpg": picture(PIXELS[i])
    for i in range(40)
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data root with both archives, of 20 + 20 pictures."""
    monkeypatch.setenv(root.VARIABLE, str(tmp_path))
    monkeypatch.setattr(cifar10, "SPLITS", {"train": 20, "test": 20})
    pack(tmp_path / "cifar10" / cifar10.ARCHIVES["cifar10"], BINARY)
    pack(tmp_path / "cifar10" / cifar10.ARCHIVES["cifar10-jpeg75"], FOLDERS)
    return tmp_path / "cifar10"


@pytest.mark.parametrize("name", cifar10.NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_keep_their_pixels_and_their_labels(folder, name, split):
    x, y = cifar10.load(split, name=name)
    bytes_seen = ((x + 1) * 127.5).round().to(torch.uint8).numpy()
    kept = PIXELS
    if name.endswith("-16"):  # four pixels become their mean
        means = PIXELS.astype(np.float64).reshape(40, 3, 16, 2, 16, 2).mean((3, 5))
        kept = ((torch.from_numpy(means / 127.5 - 1).float() + 1) * 127.5).round().numpy()
    rows = [
        int(np.argmin(np.abs(image.astype(float) - kept).max((1, 2, 3)))) for image in bytes_seen
    ]
    assert all(
        np.abs(image.astype(float) - kept[row]).max() <= name.endswith("-16")
        for image, row in zip(bytes_seen, rows)
    )
    assert sorted(rows) == list(range(20) if split == "train" else range(20, 40))
    assert [LABELS[row] for row in rows] == y.tolist()
    assert rows != sorted(rows)  # the classes are mixed
    assert torch.equal(cifar10.load(split, name=name, limit=7)[0], x[:7])


def test_what_a_desktop_leaves_in_the_archive_is_passed_over(folder):
    pack(
        folder / cifar10.ARCHIVES["cifar10-jpeg75"],
        FOLDERS
        | {
            f"{where}train/dog/{name}0001.jpg": b"x"
            for where, name in (("", "._"), ("__MACOSX/", ""))
        },
    )
    assert len(cifar10.load("train", name="cifar10-jpeg75")[0]) == 20


def test_the_two_names_are_two_data_sets(folder):
    assert dataset("cifar10").name == "cifar10"
    data = dataset("cifar10-jpeg75", limit=5)
    assert (data.name, data.num_classes, data.shape, len(data.x1), len(data.held_x1)) == (
        "cifar10-jpeg75",
        10,
        (3, 32, 32),
        5,
        20,
    )


@pytest.mark.parametrize(
    ("name", "members", "words"),
    [
        ("cifar10", {**BINARY, "cifar-10-batches-bin/data_batch_3.bin": b""}, "holds 16 pictures"),
        (
            "cifar10",
            {**BINARY, "cifar-10-batches-bin/data_batch_3.bin": b"123"},
            "not a whole archive",
        ),
        (
            "cifar10",
            {k: v for k, v in BINARY.items() if "batch_2" not in k},
            r"no data_batch_2\.bin",
        ),
        (
            "cifar10",
            {**BINARY, "cifar-10-batches-bin/data_batch_1.bin": b"\xff" * len(records(range(4)))},
            "by class",
        ),
        (
            "cifar10-jpeg75",
            {**FOLDERS, "train/horse/0007.jpg": b"<html>"},
            "0007.jpg', which is not a picture",
        ),
        ("cifar10-jpeg75", {**FOLDERS, "train/unicorn/1.jpg": picture(PIXELS[0])}, "unicorn"),
        (
            "cifar10-jpeg75",
            {**FOLDERS, "train/horse/0007.jpg": picture(PIXELS[0][:, :8])},
            "not 32 x 32",
        ),
        (
            "cifar10-jpeg75",
            {k: v for k, v in FOLDERS.items() if "0007" not in k},
            "holds 19 pictures",
        ),
        ("cifar10-jpeg75", {}, "holds 0 pictures"),
    ],
)
def test_an_archive_that_is_not_whole_is_named(folder, name, members, words):
    pack(folder / cifar10.ARCHIVES[name], members)
    with pytest.raises(DataError, match=words) as caught:
        cifar10.load("train", name=name)
    assert str(folder) in str(caught.value)
    assert "cfm-lite prepare cifar10" in str(caught.value)


@pytest.mark.parametrize("name", cifar10.NAMES)
def test_a_missing_cut_or_foreign_file_is_named(folder, name):
    path = folder / cifar10.ARCHIVES[name.removesuffix("-16")]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="not a whole archive"):
        cifar10.load("train", name=name)
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="not a whole archive"):
        cifar10.load("train", name=name)
    path.unlink()
    assert not cifar10.available(name)
    with pytest.raises(DataError, match="there is no file"):
        cifar10.load("train", name=name)
    with pytest.raises(ConfigError, match="name"):
        cifar10.load("train", name="cifar100")


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(DataError, match="download failed"):
        cifar10.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_judge_and_the_teacher_take_three_colours(folder):
    teacher = train_teacher("cifar10", limit=20)
    assert Tokens(teacher, 8)(torch.zeros(2, 3, 32, 32)).shape == (2, 64, Tokens.dim)
    judge = train_judge("cifar10-jpeg75", limit=20)
    assert judge.features(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
    with pytest.raises(ConfigError, match="3, 32, 32"):
        Judge("cifar10").features(torch.zeros(2, 1, 32, 32))
