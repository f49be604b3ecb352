"""Folders and files that others change: while a run reads them, while two processes make them, and
names of every kind.
"""

import itertools
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from cfm_lite._internal.files import hash_of_file, hash_of_json, publish
from cfm_lite.data import archive, images, mnist
from cfm_lite.data.latents import Latents, prefetch, shards
from cfm_lite.data.latents.features import TeacherFeatures, encode_features
from cfm_lite.errors import DataError
from tests.faults.damage import keep
from tests.faults.sets import Law, build, whole
from tests.pictures import made_folder, picture
from tests.processes import forked

NO_ROOT = pytest.mark.skipif(
    hasattr(os, "getuid") and os.getuid() == 0, reason="not run: root may write everywhere"
)
ROWS, PLAIN = torch.arange(24), torch.zeros(24, dtype=torch.bool)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return made_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "L"
    build(pictures, out)
    return out


@pytest.fixture
def latents(made, tmp_path):
    return shutil.copytree(made, tmp_path / "L")


class Teacher(torch.nn.Module):
    grid, dim = 2, 3

    def forward(self, x):
        return x.mean((2, 3))[:, None].expand(-1, 4, -1)


def delete(path):
    path.unlink()


def cut(path):
    os.truncate(path, 100)


def empty(path):
    path.write_bytes(b"")


def grow(path):
    with open(path, "ab") as file:
        file.write(b"x")


def exchange(path):
    """The same size, other numbers, all of them finite."""
    content = path.read_bytes()
    path.write_bytes(content[:-64] + content[-128:-64])


def into_a_folder(path):
    path.unlink()
    path.mkdir()


CHANGES = [delete, cut, empty, grow, exchange, into_a_folder]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("what", ["latents", "teacher features"])
def test_a_shard_that_changes_while_it_is_read_is_an_error_that_names_it_and_never_a_signal(
    what, change, latents, pictures, tmp_path
):
    path = (latents if what == "latents" else tmp_path / "F") / "shard-00001.npy"
    if what == "teacher features":
        encode_features(
            Latents(latents), pictures, Teacher(), "means", tmp_path / "F", progress=False
        )

    def read():
        data = (
            Latents(latents)
            if what == "latents"
            else TeacherFeatures(tmp_path / "F", Latents(latents))
        )
        see = data.moments if what == "latents" else data
        see(ROWS, PLAIN)
        change(path)
        try:
            see(ROWS, PLAIN)
        except DataError as error:
            return 0 if path.name in str(error) else 2
        return 3

    child = forked(
        read, tmp_path / "said"
    )  # a map that is shorter than it was would kill the reader with SIGBUS
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (tmp_path / "said").read_text()


def test_a_shard_that_was_touched_or_copied_over_itself_is_read_on(latents):
    data, path = Latents(latents), latents / "shard-00001.npy"
    before = data.moments(ROWS, PLAIN)
    os.utime(path, (1, 1))
    assert torch.equal(data.moments(ROWS, PLAIN), before)
    shutil.copy(path, latents / "other")
    os.replace(latents / "other", path)
    assert torch.equal(data.moments(ROWS, PLAIN), before)


def test_a_shard_that_goes_while_batches_are_prefetched_reaches_the_training_loop(latents):
    data = Latents(latents)
    batches = prefetch(lambda: data.batches(size=24, shard=8))
    next(batches)
    (latents / "shard-00002.npy").unlink()
    with pytest.raises(DataError, match=r"shard-00002\.npy cannot be read"):
        list(itertools.islice(batches, 5))


def test_a_picture_that_goes_or_is_damaged_while_a_teacher_looks_is_named(
    latents, pictures, tmp_path
):
    root = shutil.copytree(pictures, tmp_path / "set")
    batches = Latents(latents).batches(size=24, shard=8, images=root)
    next(batches)
    (root / "class1" / "003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"class1/003\.png is empty"):
        next(batches)
    batches = Latents(latents).batches(size=24, shard=8, images=root)
    (root / "class1" / "003.png").unlink()
    with pytest.raises(DataError, match=r"class1/003\.png"):
        next(batches)


def test_an_mnist_file_that_changes_is_seen_by_the_next_load(tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in mnist.MD5:
        (tmp_path / "mnist" / name).write_bytes(b"\x1f\x8bhalf")
    with pytest.raises(DataError, match=mnist.SPLITS["train"][0]):
        mnist.load(root=tmp_path)


@pytest.mark.parametrize("count", [pytest.param(60, marks=pytest.mark.faults)])
def test_a_shard_that_is_cut_at_a_random_instant_is_an_error_and_not_a_signal(
    latents, tmp_path, count
):
    """Between the look and the read a moment is left, in which a cut would still be a signal; this
    counts how often it is hit.
    """
    path, signals, named = latents / "shard-00000.npy", 0, 0
    content = path.read_bytes()
    for trial in range(count):
        path.write_bytes(content)

        def read():
            data = Latents(latents, check="sizes")
            (tmp_path / "ready").touch()
            try:
                while True:
                    data.moments(ROWS, PLAIN)
            except DataError as error:
                return 0 if path.name in str(error) else 2

        child = forked(read, tmp_path / "said")
        while not (tmp_path / "ready").exists():
            time.sleep(0.001)
        (tmp_path / "ready").unlink()
        time.sleep(0.001 * (trial % 7))
        os.truncate(path, 64)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signals += code < 0
        named += code == 0
    keep(
        "data_changes",
        {
            "cut while read in a tight loop": {
                "trials": count,
                "DataError": named,
                "SIGBUS": signals,
            }
        },
    )
    assert named + signals == count
    assert signals <= count // 10


# two processes that make one set


@pytest.mark.parametrize("trials", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_two_builders_of_one_set_share_the_work_and_of_two_sets_one_is_refused(
    pictures, made, tmp_path, trials
):
    right, refused = Latents(made).fingerprint, 0
    for trial in range(trials):
        for numbers in ((0, 0), (0, 1)):
            out = tmp_path / f"L-{trial}-{numbers[1]}"

            def work(number, out=out):
                try:
                    build(pictures, out, Law(number), batch=3)
                except DataError as error:
                    return 3 if "holds other latents" in str(error) else 4
                return 0

            children = [
                forked(lambda number=number: work(number), tmp_path / f"said-{number}")
                for number in numbers
            ]
            codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
            assert codes == ([0, 0] if numbers == (0, 0) else [0, 3])
            refused += codes == [0, 3]
            found = Latents(out, check="hashes")
            assert (found.fingerprint == right) or numbers == (0, 1)
            means = found.moments(ROWS, PLAIN)[:, 0, 0].mean(
                (1, 2)
            )  # of builder 1's numbers every one is above 1
            assert bool((means >= 1).all()) or bool((means < 1).all())
            assert not list(out.glob(".*.tmp-*"))
    keep(
        "data_changes",
        {"two builders": {"pairs": 2 * trials, "refused, as the other made another set": refused}},
    )


def test_a_builder_waits_for_the_shard_that_another_is_making(
    pictures, made, tmp_path, monkeypatch
):
    out = shutil.copytree(made, tmp_path / "L")
    (out / "shard-00002.json").unlink()

    def hold():
        with shards.alone(out, 2):
            (tmp_path / "held").touch()
            time.sleep(0.4)
        return 0

    child = forked(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    began = time.monotonic()
    build(pictures, out)
    assert time.monotonic() - began > 0.25
    os.waitpid(child, 0)
    assert Latents(out).fingerprint == Latents(made).fingerprint


@pytest.mark.parametrize("kills", [pytest.param(30, marks=pytest.mark.faults)])
def test_thirty_killed_builders_leave_what_an_uninterrupted_one_writes(
    pictures, made, tmp_path, monkeypatch, kills
):
    out, killed, inside, write = tmp_path / "L", 0, 0, shards.write
    out.mkdir()

    def slow(path, content):
        (tmp_path / "writing").touch()
        time.sleep(0.01)
        write(path, content)
        (tmp_path / "writing").unlink()

    monkeypatch.setattr(shards, "write", slow)
    for trial in range(kills):
        (tmp_path / "writing").unlink(missing_ok=True)
        child = forked(lambda: build(pictures, out, batch=2))
        time.sleep(0.01 + 0.011 * (trial % 15))
        os.kill(child, signal.SIGKILL)
        gone = os.waitpid(child, 0)[1]
        killed += os.WIFSIGNALED(gone)
        inside += os.WIFSIGNALED(gone) and (tmp_path / "writing").exists()
        if (out / "index.json").exists():  # finished between two kills: begin again
            shutil.rmtree(out)
            out.mkdir()
    build(pictures, out, batch=2)
    same = Latents(out).fingerprint == Latents(made).fingerprint
    keep(
        "data_changes",
        {
            "builders killed -9": {
                "trials": kills,
                "killed": killed,
                "inside a write": inside,
                "different": int(not same),
            }
        },
    )
    assert same
    assert killed >= kills // 2
    assert inside >= kills // 5
    assert not list(out.glob(".*.tmp-*"))


def test_what_a_killed_builder_left_half_written_is_removed_by_the_next(pictures, tmp_path):
    out = tmp_path / "L"
    build(pictures, out)
    (out / "shard-00001.json").unlink()
    for name in ("shard-00001.npy", "shard-00001.json", "index.json", "labels.npy", "plan.json"):
        (out / f".{name}.tmp-0123456789abcdef").write_bytes(b"half")
    build(pictures, out)
    assert not list(out.glob(".*.tmp-*"))


# folders and names


@pytest.mark.parametrize(
    "name", ["with spaces in it", "данные", "数据 🗂", "a'b\"c", "x" * 200, "%s{}[0-9]*"]
)
def test_any_folder_name_works(pictures, tmp_path, name):
    root = shutil.copytree(pictures, tmp_path / name / "images")
    (root / "class0").rename(root / name)
    (root / name / "000.png").rename(root / name / f"{name[:60]}.png")
    index = build(root, tmp_path / name / "L")
    assert index is not None
    data = Latents(tmp_path / name / "L")
    assert name in data.classes
    assert f"{name}/{name[:60]}.png" in data.keys
    next(data.batches(size=24, shard=8, images=root))


@pytest.mark.parametrize(
    "kind", ["a file", "below a file", "a loop of links", "a folder that may not be written"]
)
def test_latents_cannot_be_made_in_what_is_no_folder(pictures, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "a loop of links":
        out.symlink_to(out)
    elif kind == "a folder that may not be written":
        if os.getuid() == 0:
            pytest.skip("not run: root may write everywhere")
        out.mkdir(mode=0o500)
    else:
        out.write_text("x")
        out = out / "below" if kind == "below a file" else out
    with pytest.raises(DataError, match=r"cannot write into .*out.*Choose another --out"):
        build(pictures, out)


@pytest.mark.parametrize("kind", ["absent", "a file", "a loop of links", "empty"])
def test_latents_are_not_read_from_what_is_no_set(tmp_path, kind):
    folder = tmp_path / "L"
    if kind == "a file":
        folder.write_text("x")
    elif kind == "a loop of links":
        folder.symlink_to(folder)
    elif kind == "empty":
        folder.mkdir()
    with pytest.raises(DataError, match="/L"):
        Latents(folder)


@NO_ROOT
def test_a_file_that_may_not_be_read_is_named(latents):
    (latents / "shard-00001.npy").chmod(0)
    with pytest.raises(DataError, match="shard-00001"):
        Latents(latents)


def test_a_published_file_is_as_readable_as_the_user_s_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        publish(b"x", tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", [b"a\nb.png", b"a\rb.png", b"\xff\xfe.png"])
def test_a_name_that_a_list_of_keys_cannot_hold_is_refused_before_anything_is_made(
    pictures, tmp_path, name
):
    """A line break would shift every later key by one, and so pair each picture with another's
    latents.
    """
    root = shutil.copytree(pictures, tmp_path / "set")
    try:
        os.replace(root / "class0" / "000.png", os.path.join(os.fsencode(root / "class0"), name))
    except OSError:
        pytest.skip("not run: this file system has no such names")
    with pytest.raises(DataError, match="Rename the file"):
        build(root, tmp_path / "L")
    assert not (tmp_path / "L").exists()


def test_pictures_and_labels_are_paired_by_name_when_files_come_and_go(pictures, made, tmp_path):
    root = shutil.copytree(pictures, tmp_path / "set")
    (root / "class0" / "000.png").unlink()
    picture(99).save(root / "class2" / "zzz.png")  # one missing, one more: as many as before
    with pytest.raises(DataError, match="holds other latents"):
        build(root, shutil.copytree(made, tmp_path / "L"))
    build(root, tmp_path / "L2")
    _, labels, _, keys = whole(tmp_path / "L2")
    before, after = (
        dict(zip(whole(made)[3], whole(made)[1].tolist())),
        dict(zip(keys, labels.tolist())),
    )
    assert after == {key: label for key, label in before.items() if key != "class0/000.png"} | {
        "class2/zzz.png": 2
    }


def test_keys_that_are_fewer_than_the_rows_are_refused(latents):
    data = Latents(latents)
    (latents / "keys.txt").write_text("class0/000.png\n" * 22 + "x")
    data.index["files"]["keys.txt"] = hash_of_file(latents / "keys.txt")
    with pytest.raises(DataError, match="does not name 24 images"):
        data.keys


def test_labels_that_do_not_fit_are_refused(latents):
    for wrong in (np.arange(24) % 4, np.arange(23) % 3, np.arange(24) % 3 - 1):
        (latents / "labels.npy").write_bytes(shards.npy(wrong.astype(np.int32)))
        resign(latents, "labels.npy")
        with pytest.raises(DataError, match=r"labels\.npy"):
            Latents(latents)


def resign(folder, name):
    """An index that agrees with the file `name` as it is now, its own hash included."""
    index = json.loads((folder / "index.json").read_text())
    index.pop("self")
    index["files"][name] = hash_of_file(folder / name)
    (folder / "index.json").write_text(json.dumps({**index, "self": hash_of_json(index)}))


def test_an_unpacked_archive_is_whole_or_absent_even_for_two_at_once(pictures, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(pictures, "set")
    children = [
        forked(lambda: archive.unpack(tmp_path / "a.tar", tmp_path / "out" / "folder") and 0)
        for _ in range(3)
    ]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(images.find(tmp_path / "out" / "folder" / "set").files) == 24
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["folder"]
