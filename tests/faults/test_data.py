"""Data files that are cut, flipped, zeroed, exchanged or changed: nothing damaged passes for data,
and every file is named.
"""

import gzip
import hashlib
import shutil
import struct
import tarfile

import numpy as np
import pytest
import torch

from cfm_lite import pretrained, runs
from cfm_lite.data import archive, cifar10, mnist
from cfm_lite.data.latents import Latents, shards
from cfm_lite.data.latents.features import TeacherFeatures, encode_features
from cfm_lite.evaluate import images as evaluate
from cfm_lite.evaluate import judges
from cfm_lite.evaluate.samples import load_samples, save_samples
from cfm_lite.models.official import read_weights
from cfm_lite.runs.folder import MEAN
from cfm_lite.runs.recipe import recipe
from tests.faults.damage import keep, sweep
from tests.faults.sets import build, whole
from tests.pictures import made_folder
from tests.test_cifar10 import BINARY, FOLDERS, pack

FAST, LONG = 24, 300
trials = pytest.mark.parametrize("trials", [FAST, pytest.param(LONG, marks=pytest.mark.faults)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return made_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "L"
    build(pictures, out)
    return out


def read_latents(tmp_path, made, name):
    folder = shutil.copytree(made, tmp_path / "L")
    return folder / name, lambda: whole(folder)


def read_facts(tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "L")
    return folder / "shard-00001.json", lambda: shards.read_facts(folder, 1)


def read_features(tmp_path, made):
    folder = shutil.copytree(made.parent / "F", tmp_path / "F")
    latents = Latents(made)

    def read():
        data = TeacherFeatures(folder, latents)
        data.verify()
        return data(torch.arange(24), torch.zeros(24, dtype=torch.bool))

    return folder / "shard-00000.npy", read


def read_mnist(tmp_path, name):
    rng = np.random.default_rng(0)
    content = {}
    for file in mnist.MD5:
        shape = (60, 28, 28) if "images" in file else (60,)
        array = rng.integers(0, 256 if "images" in file else 10, shape, np.uint8)
        content[file] = (
            bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()
        )
        (tmp_path / "mnist").mkdir(exist_ok=True)
        (tmp_path / "mnist" / file).write_bytes(gzip.compress(content[file], mtime=0))
    mnist.MD5.update({file: hashlib.md5(raw).hexdigest() for file, raw in content.items()})
    return tmp_path / "mnist" / name, lambda: mnist.load(root=tmp_path)


def read_cifar10(tmp_path, name):
    path = tmp_path / "cifar10" / cifar10.ARCHIVES[name]
    pack(path, BINARY if name == "cifar10" else FOLDERS)

    def read():
        cifar10._read.cache_clear()
        return cifar10.load("test", name=name, root=tmp_path)

    return path, read


def read_judge(tmp_path):
    path = tmp_path / "judge.safetensors"
    shutil.copy(judges.SHIPPED / judges.judge_file("digits"), path)
    return path, lambda: judges.load_judge(path).fingerprint


def read_network(tmp_path, monkeypatch):
    path = tmp_path / "toy_fm.safetensors"
    shutil.copy(pretrained.folder() / "toy_fm.safetensors", path)
    monkeypatch.setattr(pretrained, "folder", lambda: tmp_path)

    def read():
        pretrained._loaded.cache_clear()
        return pretrained.load("toy_fm")

    return path, read


def read_official(tmp_path):
    torch.save({"pos_embed": torch.randn(3000), "x": torch.arange(200)}, tmp_path / "w.pt")
    return tmp_path / "w.pt", lambda: read_weights(tmp_path / "w.pt")


def read_samples(tmp_path):
    path = tmp_path / "samples.npz"
    save_samples(
        path,
        torch.randn(100, 1, 8, 8),
        torch.arange(100) % 10,
        {"recipe": recipe("digits").as_dict(), "step": 3},
    )
    return path, lambda: load_samples(path)


def read_images(tmp_path):
    path = tmp_path / "arr.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), np.uint8))
    return path, lambda: torch.cat(list(evaluate.image_batches(path, 8)))


def read_mean(tmp_path):
    np.save(tmp_path / MEAN, np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32))
    digest = hashlib.sha256((tmp_path / MEAN).read_bytes()).hexdigest()
    return tmp_path / MEAN, lambda: runs.read_mean(tmp_path / MEAN, digest)


def read_tar(tmp_path, pictures):
    path, count = tmp_path / "set.tar.gz", iter(range(10**6))
    with tarfile.open(path, "w:gz") as tar:
        tar.add(pictures / "class0", "set/class0")

    def read():
        folder = archive.unpack(path, tmp_path / f"out{next(count)}")
        return b"".join(file.read_bytes() for file in sorted(folder.rglob("*.png")))

    return path, read


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


LATENTS = ("shard-00000.npy", "index.json", "labels.npy", "keys.txt", "mean.npy")
FILES = {
    **{
        f"latents: {name}": (read_latents, "made", name)
        for name in ("shard-00000.npy", "index.json", "labels.npy", "keys.txt", "mean.npy")
    },
    "latents: shard-00001.json": (read_facts, "made"),
    "teacher features: shard-00000.npy": (read_features, "features"),
    "mnist: images": (read_mnist, mnist.SPLITS["train"][0]),
    "mnist: labels": (read_mnist, mnist.SPLITS["train"][1]),
    "cifar10: archive": (read_cifar10, "cifar10"),
    "cifar10: archive of JPEG": (read_cifar10, "cifar10-jpeg75"),
    "judge": (read_judge,),
    "shipped network": (read_network, "monkeypatch"),
    "official .pt": (read_official,),
    "samples.npz": (read_samples,),
    "npz of images": (read_images,),
    "latent_mean.npy": (read_mean,),
    "tar.gz of images": (read_tar, "pictures"),
}


@pytest.fixture(scope="module")
def features(made, pictures):
    class Teacher(torch.nn.Module):
        grid, dim = 2, 3

        def forward(self, x):
            return x.mean((2, 3))[:, None].expand(-1, 4, -1)

    encode_features(Latents(made), pictures, Teacher(), "means", made.parent / "F", progress=False)
    return made


@trials
@pytest.mark.parametrize("kind", FILES)
def test_no_random_damage_passes_for_data_and_the_file_is_named(
    kind, trials, tmp_path, request, monkeypatch
):
    monkeypatch.setattr(mnist, "MD5", dict(mnist.MD5))
    monkeypatch.setattr(cifar10, "SPLITS", {"train": 20, "test": 20})
    make, *given = FILES[kind]
    fixtures = ("made", "features", "pictures", "monkeypatch")
    path, read = make(
        tmp_path, *(request.getfixturevalue(name) if name in fixtures else name for name in given)
    )
    # half of it in the header, where a file says what it is, and half of it anywhere
    size = path.stat().st_size
    seen = sweep(path, read, trials // 2, head=min(2048, size), same=equal) + sweep(
        path, read, trials - trials // 2, same=equal
    )
    keep("data", {kind: {"trials": trials, **seen}})
    assert seen["silent"] == seen["unnamed"] == 0, seen
    assert seen["named"] >= 0.9 * trials, seen
