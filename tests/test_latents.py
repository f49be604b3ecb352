"""Latents on disk: what is written is what is read, damage is found, and order and noise are keyed."""

import itertools
import json
import mmap
import os
import re
import signal
import tarfile
import threading
import time

import numpy as np
import pytest
import torch

from cfm_lite import cli
from cfm_lite.data import archive, images
from cfm_lite.data.latents import Latents, prefetch, prepare, shards
from cfm_lite.data.latents import reader as latents
from cfm_lite.data.latents.codec import Codec, open_codec, tiny_vae
from cfm_lite.errors import ConfigError, DataError, DiskFullError
from cfm_lite.evaluate.images import image_batches
from tests.pictures import made_folder, picture
from tests.processes import forked

ROWS = 7  # 24 images make 3 whole shards and one of 3


@pytest.fixture(scope="module")
def codec():
    return open_codec("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_folder(tmp_path_factory.mktemp("pictures") / "set")


def go(folder, out, codec, **how):
    return prepare.prepare(
        images.find(folder), out, codec, **({"size": 32, "rows": ROWS, "progress": False} | how)
    )


@pytest.fixture(scope="module")
def made(folder, codec, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "L"
    go(folder, out, codec)
    return out


@pytest.fixture
def copy(made, tmp_path):
    import shutil

    return shutil.copytree(made, tmp_path / "L")


@pytest.fixture
def encoded(monkeypatch):
    """How many images each pass of the VAE took."""
    took, plain = [], prepare.both_mirrors
    monkeypatch.setattr(
        prepare, "both_mirrors", lambda codec, x: (took.append(len(x)), plain(codec, x))[1]
    )
    return took


def every(data, mirrored=False):
    return data.moments(torch.arange(len(data)), torch.full((len(data),), mirrored))


def test_what_is_read_is_what_the_vae_gave(made, folder, codec):
    data, found = Latents(made), images.find(folder)
    pixels = torch.stack([images.load(file.path, 32) for file in found.files])
    torch.testing.assert_close(
        every(data), codec.moments(pixels), rtol=1e-3, atol=1e-3
    )  # float16 on disk
    assert data.keys == [file.key for file in found.files]
    assert data.labels.tolist() == [file.label for file in found.files]
    assert (data.shape, data.num_classes, data.size, len(data)) == ((4, 4, 4), 3, 32, 24)


def test_a_mirror_is_the_encoding_of_the_flipped_image_not_the_flipped_encoding(
    made, folder, codec
):
    pixels = torch.stack([images.load(file.path, 32) for file in images.find(folder).files])
    data = Latents(made)
    torch.testing.assert_close(
        every(data, True), codec.moments(pixels.flip(-1)), rtol=1e-3, atol=1e-3
    )
    assert (every(data, True) - every(data).flip(-1)).abs().max() > 0.01


def test_the_index_holds_the_mean_of_the_scaled_latents_over_both_mirrors(made):
    data = Latents(made)
    means = torch.stack([every(data)[:, 0], every(data, True)[:, 0]]) * 0.18215
    torch.testing.assert_close(data.mean, means.mean((0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.tensor(data.index["channel_mean"]), means.mean((0, 1, 3, 4)), rtol=1e-4, atol=1e-5
    )
    drawn = torch.cat([data.draw(torch.arange(24), 0, step, 0)[0] for step in range(200)])
    torch.testing.assert_close(
        drawn.std((0, 2, 3)), torch.tensor(data.index["channel_std"]), rtol=0.02, atol=0
    )


def test_ranks_together_write_what_one_process_writes(made, folder, codec, tmp_path):
    assert go(folder, tmp_path / "L", codec, rank=1, world=2) is None
    with pytest.raises(DataError, match="not finished"):
        Latents(tmp_path / "L")
    index = go(folder, tmp_path / "L", codec, rank=0, world=2)
    assert index is not None
    assert index["self"] == Latents(made).fingerprint


def test_a_second_run_encodes_only_what_is_missing(copy, folder, codec, encoded):
    whole = Latents(copy).fingerprint
    (copy / "shard-00002.json").unlink()
    (copy / "index.json").unlink()
    go(folder, copy, codec)
    assert encoded == [ROWS]
    assert Latents(copy).fingerprint == whole


def test_a_damaged_shard_is_made_again_by_the_next_prepare(copy, folder, codec):
    whole = Latents(copy).fingerprint
    path = copy / "shard-00001.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    go(folder, copy, codec)
    assert Latents(copy).fingerprint == whole


@pytest.mark.parametrize("change", ["vae", "size", "images", "rows"])
def test_other_latents_are_never_mixed_in(copy, folder, codec, change, tmp_path):
    other, how = folder, {}
    if change == "vae":
        codec = Codec(tiny_vae(1), "tiny")
    elif change == "images":
        other = made_folder(tmp_path / "set", each=5)
    else:
        how = {"size": 64} if change == "size" else {"rows": 8}
    with pytest.raises(DataError, match="holds other latents") as error:
        go(other, copy, codec, **how)
    assert {
        "vae": "fingerprint",
        "size": "size: there 32, now 64",
        "images": "images",
        "rows": "rows",
    }[change] in str(error.value)


def test_300_damaged_shards_are_all_found_and_named(copy):
    rng = np.random.default_rng(0)
    for trial in range(300):
        path = copy / f"shard-{trial % 4:05d}.npy"
        whole = path.read_bytes()
        content = bytearray(whole)
        at = int(rng.integers(len(content)))
        if trial % 3 == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            content = content[:at]
        else:
            content[at : at + 64] = bytes(b ^ 0x55 for b in content[at : at + 64])
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            Latents(copy)
        path.write_bytes(whole)
    Latents(copy)


@pytest.mark.parametrize(
    "name", ["index.json", "labels.npy", "keys.txt", "mean.npy", "shard-00000.npy"]
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=name.split(".")[0]):
        Latents(copy).keys


def test_an_index_that_was_edited_is_refused(copy):
    index = json.loads((copy / "index.json").read_text())
    index["scale"] = 1.0
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="its own hash differs"):
        Latents(copy)
    index["format"] = 99
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="format 99"):
        Latents(copy)


def test_a_large_set_is_hashed_on_request_only(copy, monkeypatch):
    path = copy / "shard-00001.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(latents, "CHECKED_AT_ONCE", 0)
    data = Latents(copy)
    with pytest.raises(DataError, match="shard-00001"):
        data.verify()
    with pytest.raises(DataError, match="shard-00001"):
        Latents(copy, check="hashes")


def test_a_set_that_was_not_hashed_is_never_read_where_it_is_not_finite(copy):
    array = np.load(copy / "shard-00000.npy", mmap_mode="r+")
    array[2] = np.nan
    array.flush()
    data = Latents(copy, check="sizes")
    with pytest.raises(DataError, match="class0/002"):
        every(data)


def test_bad_images_are_left_out_and_listed_and_too_many_are_an_error(tmp_path, codec):
    root = made_folder(tmp_path / "set")
    (root / "class1" / "003.png").write_bytes(b"")
    (root / "class0" / "zz.jpg").write_text("<html>")
    index = go(root, tmp_path / "L", codec)
    assert index is not None
    assert [key for key, _ in index["skipped"]] == ["class0/zz.jpg", "class1/003.png"]
    data = Latents(tmp_path / "L")
    assert len(data) == 23
    assert "class1/003.png" not in data.keys
    assert data.labels.tolist() == [int(key[5]) for key in data.keys]
    for name in ("000.png", "001.png"):
        (root / "class2" / name).write_bytes(b"")
    with pytest.raises(DataError, match="4 of 25 images cannot be read") as error:
        go(root, tmp_path / "L2", codec)
    assert "remove" not in str(error.value)  # that would make another set


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("missing", [(), ("shard-00000.json", "index.json")])
def test_other_images_of_the_same_names_are_refused_and_nothing_is_written(
    copy, folder, codec, missing, encoded, tmp_path
):
    for name in missing:  # the set is unfinished, and its first shard would be made of the others
        (copy / name).unlink()
    other, before = tmp_path / "set", contents(copy)
    for path in sorted(folder.rglob("*.png")):
        place = other / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(1000, 44).save(place)
    first = "class0/007.png" if missing else "class0/000.png"
    sizes = [(root / first).stat().st_size for root in (other, folder)]
    with pytest.raises(DataError) as error:
        go(other, copy, codec)
    assert str(error.value) == (
        f"{other / first} has {sizes[0]:,} bytes; {copy} was made of a file of {sizes[1]:,}. "
        "Choose another --out, or remove the folder."
    )
    assert contents(copy) == before
    assert not encoded


def bitmaps(root, first):
    """24 images, each of the same size in bytes."""
    for i in range(24):
        path = root / f"class{i // 8}" / f"{i % 8:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(first + i).save(path)
    return root


def test_other_images_of_the_same_names_and_sizes_are_refused(codec, tmp_path):
    one, other = bitmaps(tmp_path / "one", 0), bitmaps(tmp_path / "other", 100)
    go(one, tmp_path / "L", codec)
    with pytest.raises(DataError, match=r"other/class0/000\.bmp has .* SHA-256 .*another --out"):
        go(other, tmp_path / "L", codec)


def test_processes_that_see_other_images_of_the_same_names_finish_no_set(
    folder, codec, tmp_path, monkeypatch
):
    other, out, plain = made_folder(tmp_path / "set"), tmp_path / "L", prepare.both_mirrors
    picture(1000, 44).save(other / "class0" / "000.png")

    def meanwhile(codec, x):
        monkeypatch.setattr(prepare, "both_mirrors", plain)
        go(other, out, codec, rank=0, world=2)
        return plain(codec, x)

    monkeypatch.setattr(prepare, "both_mirrors", meanwhile)
    with pytest.raises(DataError, match=r"000\.png has .* bytes"):
        go(folder, out, codec, rank=1, world=2)
    assert not (out / "index.json").exists()


def test_a_finished_set_is_looked_through_without_the_vae_wherever_its_images_lie_now(
    copy, folder, codec, encoded, tmp_path
):
    import shutil

    whole, moved = Latents(copy).fingerprint, tmp_path / "elsewhere"
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)  # with new times
    assert go(moved, copy, codec)["self"] == whole
    assert [go(folder, copy, codec, rank=rank, world=2)["self"] for rank in (0, 1)] == [whole] * 2
    assert not encoded


@pytest.mark.parametrize("broken", [b"", "zeros"])
def test_an_image_that_was_fetched_again_is_taken_in_by_the_same_command(
    made, folder, codec, broken, encoded, tmp_path
):
    root, out = made_folder(tmp_path / "set"), tmp_path / "L"
    path = root / "class1" / "003.png"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)) if broken == "zeros" else broken)
    before = go(root, out, codec)["self"]
    encoded.clear()
    assert go(root, out, codec)["self"] == before
    assert not encoded
    path.write_bytes(whole)
    assert go(root, out, codec)["skipped"] == []
    assert encoded == [ROWS]
    assert Latents(out).fingerprint == Latents(made).fingerprint
    assert Latents(out).keys == Latents(made).keys


def left_out_of(tmp_path, codec):
    """A set that left out two images, with the files of its images."""
    root, out = made_folder(tmp_path / "set"), tmp_path / "L"
    bad = [root / "class1" / "003.png", root / "class2" / "007.png"]  # the last of all
    for path in bad:
        path.write_bytes(b"")
    go(root, out, codec)
    return root, out, bad


def test_an_image_that_was_left_out_may_be_removed(codec, encoded, tmp_path):
    root, out, bad = left_out_of(tmp_path, codec)
    before = contents(out)
    encoded.clear()
    for path in bad:
        path.unlink()
        assert go(root, out, codec)["self"] == json.loads(before["index.json"])["self"]
        assert go(root, out, codec, rank=1, world=2) is not None
    assert contents(out) == before
    assert not encoded


def test_an_image_that_was_left_out_may_be_removed_before_the_set_is_finished(
    codec, encoded, tmp_path
):
    root, out, bad = left_out_of(tmp_path, codec)
    before = contents(out)
    for name in ("index.json", "shard-00000.json"):
        (out / name).unlink()
    bad[0].unlink()
    encoded.clear()
    assert go(root, out, codec) is not None
    assert contents(out) == before
    assert encoded == [ROWS]


def test_of_two_images_that_were_left_out_one_is_removed_and_the_other_taken_in(codec, tmp_path):
    root, out, bad = left_out_of(tmp_path, codec)
    bad[0].unlink()
    picture(207).save(bad[1])
    index = go(root, out, codec)
    assert [key for key, _ in index["skipped"]] == ["class1/003.png"]
    assert Latents(out).keys[-1] == "class2/007.png"
    assert len(Latents(out)) == 23


@pytest.mark.parametrize("how", ["kept", "renamed", "too many"])
def test_what_else_is_removed_is_another_set_and_changes_nothing(how, codec, encoded, tmp_path):
    root, out, bad = left_out_of(tmp_path, codec)
    if how == "too many":
        bad = sorted((root / "class0").iterdir())[:4]
        for path in bad:
            path.write_bytes(b"")
        out = tmp_path / "unfinished"
        with pytest.raises(DataError, match="too many to leave out"):
            go(root, out, codec)
    before = contents(out)
    encoded.clear()
    for path in bad:
        path.unlink()
    if how == "kept":
        (root / "class0" / "004.png").unlink()
    if how == "renamed":
        picture(103).save(root / "class1" / "003.bmp")
    with pytest.raises(DataError, match=r"holds other latents .*count: there 24, now 2\d") as error:
        go(root, out, codec)
    assert str(error.value).endswith("Choose another --out, or remove the folder.")
    assert contents(out) == before
    assert not encoded


@pytest.mark.parametrize("is_there", [True, False])
def test_the_same_command_finds_its_set_finished_where_a_class_lost_its_only_image(
    is_there, tmp_path, capsys
):
    root, out = made_folder(tmp_path / "set"), tmp_path / "L"
    rare = root / "class1a"
    rare.mkdir()
    (rare / "only.png").write_bytes(b"")
    line = ["scale", "prepare", "--images", root, "--out", out, "--vae", "tiny", "--size", "32"]
    line = [*map(str, line), "--device", "cpu"]
    assert cli.main(line) == 0
    assert "only.png is empty (0 bytes). Fetch it again, or remove it." in capsys.readouterr().out
    before = contents(out)
    (rare / "only.png").unlink()
    if not is_there:
        rare.rmdir()
    assert cli.main(line) == 0
    assert "left out class1a/only.png: it is not there any more" in capsys.readouterr().out
    assert contents(out) == before
    data = Latents(out)
    assert data.classes == ("class0", "class1", "class1a", "class2")
    assert len(latents.Pictures(data, root)(torch.arange(24), torch.zeros(24).bool())) == 24
    (root / "class0" / "004.png").unlink()  # what else goes makes another set
    assert cli.main(line) == 3
    said = capsys.readouterr().err
    assert ("class1a" in said) == is_there == ("hold no image" in said)
    assert is_there or "count: there 25, now 23" in said
    assert contents(out) == before


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))  # the size is as it was


def broken_link(path):
    path.unlink()
    path.symlink_to("gone.png")


def see_all(root, out, codec):
    data = Latents(out)
    latents.Pictures(data, root)(torch.arange(len(data)), torch.zeros(len(data)).bool())


@pytest.mark.parametrize(
    ("spoil", "look"), [(zeros, see_all), (broken_link, see_all), (broken_link, go)]
)
def test_where_latents_hold_a_damaged_image_each_remedy_that_is_said_works(
    spoil, look, codec, tmp_path
):
    root, out = made_folder(tmp_path / "set"), tmp_path / "L"
    go(root, out, codec)
    path = root / "class1" / "003.png"
    whole = path.read_bytes()
    spoil(path)
    with pytest.raises(DataError) as error:
        look(root, out, codec)
    said = str(error.value)
    assert said.startswith(f"{path} cannot be ")
    assert said.endswith(
        f". {out} holds it: fetch the same file again, or remove it and prepare latents with "
        "another --out."
    )
    path.unlink()
    with pytest.raises(DataError):  # half of the remedy
        look(root, out, codec)
    go(root, tmp_path / "another", codec)
    look(root, tmp_path / "another", codec)
    path.write_bytes(whole)
    look(root, out, codec)


def test_images_that_were_too_many_to_leave_out_are_taken_in_once_fetched(made, codec, tmp_path):
    root, out = made_folder(tmp_path / "set"), tmp_path / "L"
    whole = {path: path.read_bytes() for path in sorted(root.rglob("*.png"))[2::5]}
    for path in whole:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"too many .* Fetch them again\.$"):
        go(root, out, codec)
    for path, content in whole.items():
        path.write_bytes(content)
    assert go(root, out, codec)["self"] == Latents(made).fingerprint


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_ranks_take_in_what_was_fetched_again_whoever_comes_first(made, codec, ranks, tmp_path):
    root, out = made_folder(tmp_path / "set"), tmp_path / "L"
    path = root / "class1" / "003.png"  # in shard 1
    whole = path.read_bytes()
    path.write_bytes(b"")
    go(root, out, codec)
    path.write_bytes(whole)
    found = [go(root, out, codec, rank=rank, world=2) for rank in ranks]
    assert found[-1] is not None
    assert found[-1]["self"] == Latents(made).fingerprint == Latents(out).fingerprint


def test_latents_whose_facts_hold_no_sizes_open_and_go_on(copy, folder, codec, encoded):
    whole = Latents(copy).fingerprint
    for path in copy.glob("shard-*.json"):
        facts = json.loads(path.read_text())
        old = {name: facts[name] for name in ("sha256", "plan", "keys", "labels", "skipped")}
        shards.write_sealed(path, old)
    (copy / "shard-00002.json").unlink()
    assert go(folder, copy, codec)["self"] == whole
    assert encoded == [ROWS]
    assert Latents(copy, check="hashes").fingerprint == whole


@pytest.mark.parametrize("poison", ["nan", "huge", "flat"])
def test_latents_that_are_no_numbers_are_not_written(tmp_path, folder, codec, monkeypatch, poison):
    def wrong(codec, x):
        moments = plain(codec, x)
        if poison == "flat":
            moments[3, 0, 1] = 0
        else:
            moments[3, 0, 0, 0, 0, 0] = float("nan") if poison == "nan" else 1e6
        return moments

    plain = prepare.both_mirrors
    monkeypatch.setattr(prepare, "both_mirrors", wrong)
    with pytest.raises(DataError, match="class0/003"):
        go(folder, tmp_path / "L", codec)


def test_a_full_disk_is_said_and_loses_nothing(copy, folder, codec, monkeypatch):
    import errno

    (copy / "shard-00002.json").unlink()
    before = (copy / "shard-00000.npy").read_bytes()
    monkeypatch.setattr(
        shards,
        "publish",
        lambda content, path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")),
    )
    with pytest.raises(DiskFullError, match="shard-00002"):
        go(folder, copy, codec)
    assert (copy / "shard-00000.npy").read_bytes() == before


def test_killed_builders_leave_what_an_uninterrupted_one_writes(
    folder, codec, tmp_path, monkeypatch
):
    """Twelve kills on the way, then a run to the end: the same bytes."""
    go(folder, tmp_path / "whole", codec, batch=2)
    plain, out, killed = shards.write, tmp_path / "L", 0

    def slow(path, content):
        time.sleep(0.02)
        plain(path, content)

    monkeypatch.setattr(
        shards, "write", slow
    )  # so that kills fall before, between and after the writes
    for trial in range(12):
        child = forked(lambda: go(folder, out, codec, batch=2))
        time.sleep(0.03 + 0.04 * trial)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert killed >= 4
    go(folder, out, codec, batch=2)
    assert Latents(out).fingerprint == Latents(tmp_path / "whole").fingerprint


def first_batches(data, n=4, **how):
    return list(itertools.islice(data.batches(**({"size": 8, "shard": 4, "seed": 3} | how)), n))


def test_latents_and_their_images_are_read_where_the_current_folder_changes(
    made, folder, monkeypatch
):
    expected = Latents(made).batches(size=4, shard=4, images=folder)
    monkeypatch.chdir(made.parent)
    data = Latents(made.name)
    monkeypatch.chdir(folder.parent)
    found = data.batches(size=4, shard=4, images=folder.name)
    for _ in range(3):
        assert all(map(torch.equal, next(found), next(expected)))
        monkeypatch.chdir("/")
    assert data.keys == Latents(made).keys


@pytest.mark.parametrize("name", ["cats..", "..cats", "a..b", "etc..."])
def test_dots_in_the_name_of_a_class_are_a_name_like_any_other(name, codec, tmp_path):
    root = tmp_path / "set"
    for i, place in enumerate(("dogs", name, name)):
        (root / place).mkdir(parents=True, exist_ok=True)
        picture(i).save(root / place / f"{i}..png")
    if name.startswith("."):  # hidden, as every such name is
        assert images.find(root).classes == ("dogs",)
        return
    go(root, tmp_path / "L", codec)
    data = Latents(tmp_path / "L")
    assert data.keys == [file.key for file in images.find(root).files]
    assert next(data.batches(size=3, shard=3, images=root))[2].shape == (3, 3, 32, 32)


@pytest.mark.parametrize("key", ["../a.png", "a/../../b.png", "/a.png", "a/.."])
def test_no_key_leads_out_of_the_folder_of_images(key, copy):
    data = Latents(copy)
    keys = (copy / "keys.txt").read_text().split("\n")
    (copy / "keys.txt").write_text("\n".join([key, *keys[1:]]))
    data.index["files"]["keys.txt"] = shards.hash_of_file(copy / "keys.txt")
    with pytest.raises(DataError, match="does not name 24 images below their folder"):
        _ = data.keys


def test_batches_repeat_and_resume_bit_for_bit(made):
    data = Latents(made)
    a, b = first_batches(data), first_batches(data)
    later = first_batches(data, 2, start=2)
    for (x, y), (z, w) in [*zip(a, b), *zip(a[2:], later)]:
        assert torch.equal(x, z)
        assert torch.equal(y, w)
    assert not torch.equal(a[0][0], first_batches(data, seed=4)[0][0])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_hold_the_parts_of_the_same_global_batches(made, world):
    data = Latents(made)
    whole = first_batches(data, shard=2)
    parts = [first_batches(data, shard=2, rank=rank, world=world) for rank in range(world)]
    for step, (x, y) in enumerate(whole):
        assert torch.equal(x, torch.cat([part[step][0] for part in parts]))
        assert torch.equal(y, torch.cat([part[step][1] for part in parts]))


def test_every_image_comes_once_an_epoch_with_fresh_noise_and_half_of_them_mirrored(made):
    data = Latents(made)
    labels = torch.cat([y for _, y in first_batches(data, 3)])
    assert torch.equal(labels.bincount(), torch.tensor([8, 8, 8]))
    (a, m), (b, n) = data.draw(torch.arange(24), 0, 0, 0), data.draw(torch.arange(24), 0, 1, 0)
    assert not torch.equal(a, b)
    assert not torch.equal(m, n)
    share = (
        torch.cat([data.draw(torch.arange(24), 0, step, 0)[1] for step in range(50)]).float().mean()
    )
    assert abs(share - 0.5) < 0.06  # four standard deviations of 1,200 draws
    assert not data.draw(torch.arange(24), 0, 0, 0, mirror=False)[1].any()


def test_pictures_come_with_their_latents_mirrored_alike(made, folder, codec):
    data = Latents(made)
    for z, _, pixels in first_batches(data, 2, images=folder):
        means = codec.moments(pixels)
        noise = (data.scaling.unscaled(z) - means[:, 0]) / means[:, 1]
        assert noise.std() == pytest.approx(
            1, abs=0.1
        )  # a picture of another row, or not mirrored, would add its difference
        torch.testing.assert_close(noise.mean(), torch.zeros(()), rtol=0, atol=0.2)


def test_a_tar_of_tars_serves_as_the_folder_wherever_images_are_taken(
    made, folder, codec, tmp_path, monkeypatch
):
    monkeypatch.setattr(archive, "cache_root", lambda: tmp_path / "cache")
    with tarfile.open(tmp_path / "set.tar", "w") as outer:
        for name in sorted(path.name for path in folder.iterdir()):
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                for path in sorted((folder / name).iterdir()):
                    inner.add(path, path.name)
            outer.add(tmp_path / f"{name}.tar", f"{name}.tar")
    assert go(tmp_path / "set.tar", tmp_path / "L", codec)["self"] == Latents(made).fingerprint
    for (_, _, a), (_, _, b) in zip(
        *(
            first_batches(Latents(made), 2, images=source)
            for source in (folder, tmp_path / "set.tar")
        )
    ):
        assert torch.equal(a, b)
    pictures = [
        torch.cat(list(image_batches(source, 5, 32)))
        for source in (folder, images.opened(tmp_path / "set.tar"))
    ]
    assert torch.equal(*pictures)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"size": 25}, "larger than the data"),
        ({"size": 12, "shard": 8, "world": 2}, "multiple of 16"),
        ({"rank": 2, "world": 2}, "rank is 2"),
        ({"size": 0}, "batch is 0"),
    ],
)
def test_batches_that_cannot_be_are_refused(made, how, words):
    with pytest.raises(ConfigError, match=words):
        first_batches(Latents(made), **how)


def test_prefetch_gives_the_same_in_order_and_passes_errors_on():
    assert list(itertools.islice(prefetch(itertools.count), 50)) == list(range(50))

    def broken():
        yield 1
        raise DataError("gone")

    got = prefetch(broken)
    assert next(got) == 1
    with pytest.raises(DataError, match="gone"):
        next(got)


def test_the_reading_thread_is_gone_when_its_reader_is():
    def numbers():
        while True:
            yield torch.randn(100).sum()

    source = prefetch(numbers)
    next(source)
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "latents"]


def test_wrong_ranks_and_sizes_are_refused_before_anything_is_written(folder, codec, tmp_path):
    for how in (
        {"rank": 2, "world": 2},
        {"world": 0},
        {"size": 33},
        {"rows": 0},
        {"batch": 0},
        {"workers": 0},
    ):
        with pytest.raises(ConfigError):
            go(folder, tmp_path / "L", codec, **how)
    assert not (tmp_path / "L").exists()


def test_what_is_asked_for_are_the_bytes_of_the_row_and_its_mirror_image(made):
    data, asked = Latents(made), []

    class Map(mmap.mmap):
        def madvise(self, option, start, length):
            asked.append((start, length))
            return super().madvise(option, start, length)

    for row, mirror in ((0, 0), (3, 1), (23, 1)):
        ((number, place),) = data.places(torch.tensor([row]))
        array = data._maps[number]
        with open(array.filename, "rb") as file:
            mapped = Map(file.fileno(), 0, access=mmap.ACCESS_READ)
        copy = np.ndarray.__new__(
            np.memmap, array.shape, array.dtype, buffer=mapped, offset=array.offset
        )
        copy.offset = array.offset
        shards.ask_for(copy, place, mirror)
        start, length = asked.pop()
        assert start % mmap.PAGESIZE == 0
        assert array[place, mirror].tobytes() in mapped[start : start + length]


def test_a_prefetcher_that_is_left_leaves_no_thread_behind():
    def slow():
        while True:
            time.sleep(0.05)
            yield 1

    before = threading.active_count()
    source = prefetch(slow)
    next(source)
    source.close()
    assert threading.active_count() == before


def test_latents_among_the_images_are_refused_before_they_count_as_a_class(tmp_path, capsys):
    root = made_folder(tmp_path / "set", classes=2, each=2)
    line = f"scale prepare --images {root} --vae tiny --size 32 --out"
    for out in (root / "latents", root / "class0" / "deep"):
        assert cli.main([*line.split(), str(out)]) == 2
        said = capsys.readouterr().err
        assert "inside of --images" in said
        assert not out.exists()
    assert cli.main([*line.split(), re.search(r"such as (\S+)\.\s", said)[1]]) == 0


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_plan_is_made_again_by_its_remedy(damage, folder, copy, codec, encoded):
    (copy / "plan.json").write_bytes(damage)
    with pytest.raises(DataError, match=r"plan.json is damaged.*Remove it, and run the same"):
        go(folder, copy, codec)
    (copy / "plan.json").unlink()
    go(folder, copy, codec)
    assert not encoded  # the shards were kept
    assert len(Latents(copy)) == 24
