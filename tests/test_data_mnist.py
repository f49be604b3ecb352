"""data/mnist.py and data/root.py: right files are read exactly, and every damaged one is one clear
DataError.
"""

import gzip
import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import platformdirs
import pytest
import torch

from cfm_lite._internal import files
from cfm_lite.data import mnist, root
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.runs import train
from cfm_lite.runs.recipe import recipe

N = 6
IMAGES, LABELS = mnist.SPLITS["train"]
PIXELS = torch.randint(
    256, (N, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
DIGITS = torch.tensor([3, 0, 9, 1, 1, 4], dtype=torch.uint8)


def idx(array, magic=None, sizes=None):
    magic = bytes([0, 0, 8, array.dim()]) if magic is None else magic
    sizes = array.shape if sizes is None else sizes
    return magic + struct.pack(f">{len(sizes)}I", *sizes) + array.numpy().tobytes()


CONTENT = {name: idx(PIXELS if "images" in name else DIGITS) for name in mnist.MD5}


def pack(content):
    return gzip.compress(content, mtime=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data root with four small right files, whose MD5 stand in the table; returns its mnist
    folder.
    """
    monkeypatch.setenv(root.VARIABLE, str(tmp_path))
    monkeypatch.setattr(
        mnist, "MD5", {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
    )
    (tmp_path / "mnist").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "mnist" / name).write_bytes(pack(content))
    return tmp_path / "mnist"


def failure(path, call=mnist.load):
    """The message of the DataError that `call` must raise; it is one line that names the path, the
    variable and the command.
    """
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert str(path) in message
    assert root.VARIABLE in message
    assert "cfm-lite prepare mnist" in message
    assert "\n" not in message
    assert (
        caught.value.__context__ is None or caught.value.__suppress_context__
    )  # no second traceback above the clear one
    return message


# reading


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_the_bytes_of_the_files_scaled_to_minus_one_to_one(folder, split):
    images, labels = mnist.load(split)
    torch.testing.assert_close(images, PIXELS[:, None].float() / 127.5 - 1, rtol=0, atol=1e-6)
    assert images.dtype == torch.float32
    assert torch.equal(labels, DIGITS.long())
    assert images.min() >= -1
    assert images.max() <= 1


def test_limit_takes_the_first_rows(folder):
    images, labels = mnist.load(limit=2)
    assert torch.equal(images, mnist.load()[0][:2])
    assert labels.tolist() == [3, 0]
    assert len(mnist.load(limit=100)[1]) == N


def test_root_argument_overrides_the_variable(folder, monkeypatch, tmp_path):
    monkeypatch.setenv(root.VARIABLE, str(tmp_path / "elsewhere"))
    assert len(mnist.load(root=folder.parent)[1]) == N
    assert mnist.available(folder.parent)
    assert not mnist.available()


def test_names_with_spaces_and_other_alphabets_work(folder, tmp_path):
    strange = tmp_path / "мои данные ünd mehr"
    strange.mkdir()
    folder.rename(strange / "mnist")
    assert len(mnist.load(root=strange)[1]) == N


def test_verify_false_reads_files_that_are_whole_but_not_the_official_ones(folder):
    (folder / LABELS).write_bytes(pack(idx(DIGITS.flip(0))))
    failure(folder / LABELS)
    assert mnist.load(verify=False)[1].tolist() == DIGITS.flip(0).tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tain",), "Did you mean 'train'"),
        (("train", 0), "limit is 0"),
        (("train", 2.5), "limit is 2.5"),
        (("train", True), "limit is True"),
    ],
)
def test_wrong_arguments_are_config_errors(folder, arguments, words):
    with pytest.raises(ConfigError, match=words):
        mnist.load(*arguments[:1], limit=(arguments[1:] or (None,))[0])


# every fault of a file


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda content: b"", "empty"),
        (lambda content: b"  <!DOCTYPE html><html>404</html>", "web page"),
        (lambda content: content, "not a gzip file"),
        (lambda content: b"\x1f\x8b", "truncated"),
        (lambda content: pack(content)[:-9], "truncated"),
        (lambda content: pack(content)[: len(pack(content)) // 2], "truncated"),
        (lambda content: pack(content)[:-8] + bytes(4) + pack(content)[-4:], "CRC"),
        (lambda content: pack(content) + b"more", "damaged"),
        (lambda content: pack(b""), "starts with"),
        (lambda content: pack(b"\x00\x00\x09" + content[3:]), "starts with"),
        (lambda content: pack(content[::-1]), "starts with"),
        (lambda content: pack(content[:6]), "ends inside its header"),
        (lambda content: pack(content[:-1]), "announces"),
        (lambda content: pack(content + b"\x00"), "announces"),
        (lambda content: pack(content[:4] + b"\xff\xff\xff\xff" + content[8:]), "announces"),
        (lambda content: pack(content[:4] + bytes(4) + content[8:]), "announces"),
        (lambda content: pack(content[:-1] + bytes([content[-1] ^ 1])), "MD5"),
    ],
)
def test_every_damaged_file_is_one_clear_error(folder, name, make, words):
    (folder / name).write_bytes(make(CONTENT[name]))
    assert words in failure(folder / name)


def test_no_flipped_bit_passes_for_data(folder):
    right, packed = mnist.load(), pack(CONTENT[LABELS])
    undetected = []
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << (bit % 8)
        (folder / LABELS).write_bytes(bytes(flipped))
        try:
            seen = mnist.load(verify=False)
        except DataError:
            continue
        # a flip in gzip's own time stamp or system byte leaves the data as they are
        if not (torch.equal(seen[0], right[0]) and torch.equal(seen[1], right[1])):
            undetected.append(bit)
    assert undetected == []


def test_no_truncation_passes_for_data(folder):
    packed = pack(CONTENT[LABELS])
    for length in range(len(packed)):
        (folder / LABELS).write_bytes(packed[:length])
        failure(folder / LABELS, lambda: mnist.load(verify=False))


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_missing_file_is_named_and_nothing_else_is_loaded_instead(folder, name):
    (folder / name).unlink()
    assert "there is no file" in failure(folder / name)
    assert not mnist.available()
    assert len(mnist.load("test")[1]) == N


def test_missing_root_and_a_root_that_is_a_file_are_named(folder, tmp_path, monkeypatch):
    for place in (tmp_path / "nowhere", folder / LABELS):
        monkeypatch.setenv(root.VARIABLE, str(place))
        message = failure(place / "mnist" / IMAGES)
        assert f"it is {place}" in message
        assert not mnist.available()


def test_a_folder_or_a_loop_of_links_in_place_of_a_file_is_named(folder):
    (folder / LABELS).unlink()
    (folder / LABELS).mkdir()
    assert "cannot be read" in failure(folder / LABELS)
    (folder / LABELS).rmdir()
    (folder / LABELS).symlink_to(folder / LABELS)
    assert "cannot be read" in failure(folder / LABELS)


def test_a_null_byte_in_the_root_is_a_data_error(folder):
    with pytest.raises(DataError, match="null"):
        mnist.load(root="a\0b")


def test_images_and_labels_of_different_counts_are_refused(folder):
    (folder / LABELS).write_bytes(pack(idx(DIGITS[:5])))
    with pytest.raises(DataError, match=r"5 labels, while train-images-idx3-ubyte\.gz holds 6"):
        mnist.load(verify=False)


def test_exchanged_files_wrong_sizes_and_wrong_labels_are_refused(folder):
    (folder / LABELS).write_bytes(pack(CONTENT[IMAGES]))
    assert "starts with 00000803" in failure(folder / LABELS, lambda: mnist.load(verify=False))
    (folder / LABELS).write_bytes(pack(idx(DIGITS + 1)))
    assert "label 10" in failure(folder / LABELS, lambda: mnist.load(verify=False))
    (folder / IMAGES).write_bytes(pack(idx(PIXELS, sizes=(N, 14, 56))))
    assert "shape (14, 56)" in failure(folder / IMAGES, lambda: mnist.load(verify=False))


def test_a_file_that_unpacks_without_end_is_stopped(folder, monkeypatch):
    monkeypatch.setattr(mnist, "_MAX_BYTES", 10_000)
    (folder / IMAGES).write_bytes(pack(bytes(10_001)))
    assert "more than the 10000 bytes" in failure(folder / IMAGES)


def test_official_table_names_the_official_files():
    assert mnist.MD5 == {
        "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    }


# the root


def test_root_is_the_argument_then_the_variable_then_the_checkout_then_the_users_cache(
    monkeypatch, tmp_path
):
    monkeypatch.setenv(root.VARIABLE, str(tmp_path))
    assert root.data_root(tmp_path / "own") == tmp_path / "own"
    assert root.data_root() == tmp_path
    for unset in (None, ""):
        monkeypatch.delenv(root.VARIABLE, raising=False) if unset is None else monkeypatch.setenv(
            root.VARIABLE, unset
        )
        monkeypatch.setattr(root, "checkout", lambda: tmp_path / "repository")
        assert root.data_root() == tmp_path / "repository" / "data" / "cache"
        monkeypatch.setattr(root, "checkout", lambda: None)
        assert root.data_root() == platformdirs.user_cache_path("cfm_lite")
    monkeypatch.setenv(root.VARIABLE, "~/data")
    assert "~" not in str(root.data_root())


def test_checkout_is_a_folder_with_our_project_file(monkeypatch, tmp_path):
    module = tmp_path / "cfm_lite" / "data" / "root.py"
    monkeypatch.setattr(root, "__file__", str(module))
    assert root.checkout() is None
    (tmp_path / "pyproject.toml").write_text('name = "another"')
    assert root.checkout() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "cfm-lite"\n')
    assert root.checkout() == tmp_path.resolve()


def test_publish_replaces_whole_files_and_leaves_nothing_behind(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    files.publish(b"old", target)
    files.publish(b"new", target)
    assert target.read_bytes() == b"new"

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(root.os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        files.publish(b"newer", target)
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


# downloading, with a stand-in for torchvision


def stand_in(monkeypatch, content=None, error=None):
    """Puts `content` where torchvision puts its files, or raises `error`; returns the list of
    calls.
    """
    calls = []

    def fetch(folder, download):
        calls.append(folder)
        raw = root.Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, packed in (content or {name: pack(CONTENT[name]) for name in CONTENT}).items():
            (raw / name).write_bytes(packed)
        if error:
            raise error

    monkeypatch.setattr(mnist, "optional", lambda module, extra: SimpleNamespace(MNIST=fetch))
    return calls


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_brings_four_verified_files_and_no_others(folder, monkeypatch, tmp_path):
    calls = stand_in(monkeypatch)
    fresh = tmp_path / "new root"
    assert mnist.download(fresh) == fresh / "mnist"
    assert names(fresh / "mnist") == sorted(mnist.MD5)
    assert len(mnist.load(root=fresh)[1]) == N
    mnist.download(fresh)
    assert len(calls) == 1  # what is there and right is not fetched again


def test_download_replaces_the_damaged_file_alone_and_keeps_it_aside(folder, monkeypatch):
    stand_in(monkeypatch)
    (folder / LABELS).write_bytes(b"half")
    untouched = (folder / IMAGES).stat().st_ino
    mnist.download()
    assert names(folder) == sorted([*mnist.MD5, f"{LABELS}.bad"])
    assert (folder / f"{LABELS}.bad").read_bytes() == b"half"
    assert (folder / IMAGES).stat().st_ino == untouched
    mnist.load()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, OSError("Network is unreachable")),
        (None, RuntimeError("Error downloading\nwith a second line")),
        ({name: b"<html>404</html>" for name in CONTENT}, None),
        ({name: pack(content)[:-20] for name, content in CONTENT.items()}, None),
        ({name: pack(content[:-1] + b"\x01") for name, content in CONTENT.items()}, None),
        ({IMAGES: pack(CONTENT[IMAGES])}, None),
    ],
)
def test_failed_download_leaves_nothing_and_says_where_files_belong(
    folder, monkeypatch, tmp_path, content, error
):
    stand_in(monkeypatch, content, error)
    fresh = tmp_path / "fresh"
    with pytest.raises(DataError) as caught:
        mnist.download(fresh)
    assert str(fresh) in str(caught.value)
    assert "\n" not in str(caught.value)
    left = names(fresh / "mnist") if fresh.exists() else []
    assert left in ([], [IMAGES])  # a verified file may stay
    assert fresh.exists() == bool(left)  # and else no folder does
    assert not mnist.available(fresh)


def test_download_into_a_place_that_is_a_file_is_a_data_error(folder, monkeypatch):
    stand_in(monkeypatch)
    with pytest.raises(DataError, match="cannot write to"):
        mnist.download(folder / IMAGES)


def test_interrupted_download_leaves_no_temporary_folder(folder, monkeypatch, tmp_path):
    stand_in(monkeypatch, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mnist.download(tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


# the real files


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("split", "count", "first"),
    [("train", 60_000, [5, 0, 4, 1, 9]), ("test", 10_000, [7, 2, 1, 0, 4])],
)
def test_real_files_are_the_official_ones(split, count, first):
    images, labels = mnist.load(split)
    assert images.shape == (count, 1, 28, 28)
    assert labels.shape == (count,)
    assert labels[:5].tolist() == first
    assert images.aminmax() == (-1, 1)
    assert labels.bincount().min() > count / 12
    if split == "train":  # the known mean and deviation of MNIST's pixels
        pixels = (images + 1) / 2
        assert abs(pixels.mean() - 0.1307) < 1e-4
        assert abs(pixels.std() - 0.3081) < 1e-4


@pytest.mark.real_data
def test_real_limit_is_the_beginning():
    images, labels = mnist.load("test", limit=10)
    assert labels.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert len(images) == 10


def fashion(root, each):
    """Made files of `each` items a class."""
    folder = root / "fashion_mnist"
    folder.mkdir(parents=True, exist_ok=True)
    labels = torch.arange(10 * each, dtype=torch.uint8) % 10
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), np.uint8)
    )
    for images_name, labels_name in mnist.SPLITS.values():
        (folder / images_name).write_bytes(pack(idx(pixels)))
        (folder / labels_name).write_bytes(pack(idx(labels)))
    return pixels, labels


def test_fashion_mnist_is_read_by_the_same_loader(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "SIZES", {"train": 40, "test": 40})
    pixels, labels = fashion(tmp_path, 4)
    x, y = mnist.load("train", name="fashion_mnist", root=tmp_path)
    assert torch.equal(x, pixels[:, None].float() / 127.5 - 1)
    assert y.tolist() == labels.tolist()
    assert mnist.available(tmp_path, "fashion_mnist")
    assert not mnist.available(tmp_path)
    monkeypatch.setenv("CFM_LITE_DATA", str(tmp_path))
    data = dataset("fashion_mnist")
    assert (data.shape, data.num_classes, len(data.held_x1)) == ((1, 28, 28), 10, 40)
    chosen = recipe("fashion_mnist", steps=1, batch=4, shard=4, hidden_size=8, num_heads=2)
    assert train(chosen, data, progress=False).step == 1


def test_a_fashion_mnist_of_other_counts_is_refused(tmp_path):
    fashion(tmp_path, 4)
    with pytest.raises(DataError, match=r"fashion_mnist: .* 6000 items of each class"):
        mnist.load("train", name="fashion_mnist", root=tmp_path)
    assert len(mnist.load("train", name="fashion_mnist", root=tmp_path, verify=False)[0]) == 40
