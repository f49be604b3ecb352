"""Disks that fill up, calls that fail, bits that flip: what was saved before still loads, and the
message says how much was needed.
"""

import builtins
import errno
import os
import random
import resource
import shutil
import signal
import subprocess

import pytest
import torch

from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointCorruptError, CheckpointError, DiskFullError
from tests.faults import counts
from tests.faults.damage import keep
from tests.processes import forked

WEIGHTS = {"w": torch.arange(60_000.0), "b": torch.ones(3)}
MOMENTS = {"0.exp_avg": torch.zeros(60_000)}


def save(folder, step, **how):
    return checkpoint.save(folder, step, WEIGHTS, MOMENTS, {"seed": 1}, **how)


def files(path):
    return sorted(file for file in path.iterdir() if file.is_file())


def damaged(path, change, chance):
    """Whether loading a copy of `path` with one of its files changed names that file; a manifest
    may name itself or be missing.
    """
    file = chance.choice(files(path))
    before = file.read_bytes()
    file.write_bytes(change(before, chance))
    try:
        checkpoint.load(path)
    except CheckpointError as error:
        return file.name in str(error) or file.name == checkpoint.MANIFEST
    finally:
        file.write_bytes(before)
    return False


def flipped(content, chance):
    place = chance.randrange(8 * len(content))
    return (
        content[: place // 8]
        + bytes([content[place // 8] ^ 1 << place % 8])
        + content[place // 8 + 1 :]
    )


def truncated(content, chance):
    return content[: chance.randrange(len(content))]


def zeroed(content, chance):
    start = chance.randrange(max(1, len(content) - 64))
    part = bytes(64)[: len(content) - start]
    changed = content[:start] + part + content[start + len(part) :]
    return changed if changed != content else flipped(content, chance)


@pytest.mark.faults
def test_every_flip_truncation_and_zeroed_block_is_found(tmp_path):
    path, chance = save(tmp_path, 1), random.Random(0)
    found = {
        name: sum(damaged(path, change, chance) for _ in range(trials))
        for name, change, trials in (
            ("flips", flipped, 500),
            ("truncations", truncated, 500),
            ("zeroed", zeroed, 500),
        )
    }
    counts.write("corruptions", trials=1500, **found)
    assert found == {"flips": 500, "truncations": 500, "zeroed": 500}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failure_at_each_call_in_turn_loses_nothing(tmp_path, monkeypatch, code):
    """Every call of fsync and rename, of opening a file, and of writing a tensor or anything else
    (half of it), fails once.
    """
    trials = 0
    for name in ("fsync", "replace", "open", "write"):
        number = 0
        while True:
            folder = tmp_path / f"{name}-{number}"
            old = save(folder, 1)
            with monkeypatch.context() as patch:
                failed = _fail(patch, name, number, code)
                message = _refusal(folder, DiskFullError if code != errno.EIO else CheckpointError)
            if not failed:
                break
            assert "nothing older was lost" in message
            assert ("bytes and has" in message) == (code != errno.EIO)
            trials, number = trials + 1, number + 1
            newest = checkpoint.load(checkpoint.latest(folder))
            assert newest.step >= 1
            assert torch.equal(newest.weights["w"], WEIGHTS["w"])
            assert not list(folder.glob(".tmp-*"))
            assert old.exists()
            shutil.rmtree(folder)
    keep("fault_points", {errno.errorcode[code]: {"calls that failed": trials, "lost": 0}})
    assert trials >= 16


def _refusal(folder, kind):
    """What a save says that fails, and nothing for one that does not."""
    try:
        save(folder, 2)
    except kind as error:
        return str(error)
    return ""


def _fail(patch, name, number, code):
    """Make the `number`-th call of os.fsync, os.replace or open fail; the list is filled when it
    did.
    """
    places = {"fsync": os, "replace": os, "open": builtins, "write": builtins}
    called = {"write": "open"}.get(name, name)
    real, calls, failed = getattr(places[name], called), [], []

    def due():
        calls.append(1)
        if len(calls) == number + 1:
            failed.append(1)
        return len(calls) == number + 1

    def failing(*args, **how):
        if (name in ("fsync", "replace") or (name == "open" and "x" in str(args[1:2]))) and due():
            raise OSError(code, os.strerror(code))
        opened = real(*args, **how)
        return Half(opened, due, code) if name == "write" and "x" in str(args[1:2]) else opened

    patch.setattr(places[name], called, failing)
    return failed


class Half:
    """A file that takes half of what is written into it, and then fails, when it is due."""

    def __init__(self, file, due, code):
        self.file, self.due, self.code = file, due, code

    def write(self, data):
        if self.due():
            self.file.write(data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def test_files_are_on_the_disk_before_the_manifest_and_the_manifest_before_the_rename(
    tmp_path, monkeypatch
):
    """SIGKILL cannot test what a power cut does; the order of the calls can be seen."""
    order = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(handle):
        order.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        return real["fsync"](handle)

    def replace(source, target):
        order.append(("replace", os.path.basename(target)))
        return real["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = save(tmp_path, 7)
    names = [name for _, name in order]
    rename = order.index(("replace", path.name))
    manifest = order.index(("fsync", checkpoint.MANIFEST))
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        assert order.index(("fsync", name)) < manifest
    assert manifest < rename
    assert ("fsync", tmp_path.name) in order[rename:]
    assert any(
        name.startswith(".tmp-") for name in names[manifest:rename]
    )  # the directory of the files, after the manifest


def test_a_limit_on_file_size_is_a_full_disk(tmp_path):
    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save(tmp_path, 2)
        except DiskFullError as error:
            print(error, flush=True)
            return 0
        return 1

    old = save(tmp_path, 1)
    _, status = os.waitpid(forked(work, tmp_path / "output.txt"), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "bytes and has" in (tmp_path / "output.txt").read_text()
    assert checkpoint.latest(tmp_path) == old
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_full_file_system_keeps_the_old_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1700k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not run: mounting a small file system needs root")
    try:
        old = save(disk, 1)
        with pytest.raises(DiskFullError, match=r"needs [\d,]+ bytes and has [\d,]+ free"):
            save(disk, 2)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 60_000))
        real, shutil.disk_usage = (
            shutil.disk_usage,
            lambda path: real(path)._replace(free=10**12),
        )  # a disk that fills while it is written
        try:
            with pytest.raises(DiskFullError):
                save(disk, 3)
        finally:
            shutil.disk_usage = real
        assert checkpoint.latest(disk) == old
        assert torch.equal(checkpoint.load(old).weights["w"], WEIGHTS["w"])
        filler.unlink()
        for path in disk.glob("step-*"):
            shutil.rmtree(path)
        assert save(disk, 4).exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kept", [1, 2])
def test_the_last_valid_one_stays_however_many_newer_ones_are_damaged(tmp_path, kept):
    good = save(tmp_path, 1)
    for step in (2, 3, 4):
        (save(tmp_path, step, keep=9) / "state.json").write_bytes(b"{}")
    checkpoint._prune(tmp_path, kept)
    assert good.exists()
    with pytest.warns(UserWarning, match="newer ones are damaged"):
        assert checkpoint.latest(tmp_path) == good


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refuse(path, **how):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match="cannot remove"):
        path = save(tmp_path, 2, keep=1)
    assert checkpoint.latest(tmp_path) == path


def test_a_manifest_of_another_time_is_named(tmp_path):
    path = save(tmp_path, 1) / checkpoint.MANIFEST
    for content in (b"", b"[]", b"null", b'{"format": 1}', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(CheckpointCorruptError, match=checkpoint.MANIFEST):
            checkpoint.load(path.parent)
