"""Checkpoints are whole or absent; the full fault matrix stands in tests/faults."""

import errno
import json
import os
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointCorruptError, CheckpointError, DiskFullError

WEIGHTS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2, 3])}
OPTIMIZER = {"0.exp_avg": torch.ones(5, dtype=torch.float64)}


def save(folder, step=1, **settings):
    return checkpoint.save(folder, step, WEIGHTS, OPTIMIZER, {"seed": 3}, **settings)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    loaded = checkpoint.load(save(tmp_path, 500))
    assert loaded.step == 500
    assert loaded.state["seed"] == 3
    assert loaded.path.name == "step-00000500"
    for saved, back in ((WEIGHTS, loaded.weights), (OPTIMIZER, loaded.optimizer)):
        assert all(
            torch.equal(saved[key], back[key]) and saved[key].dtype == back[key].dtype
            for key in saved
        )
    names = {file.name for file in loaded.path.iterdir()}
    assert names == {"weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"}


def test_any_flipped_bit_is_found_and_its_file_named(tmp_path):
    path = save(tmp_path)
    files = sorted(path.iterdir())
    rng = random.Random(0)
    for _ in range(60):
        file = rng.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=file.name.replace(".", r"\.")):
            checkpoint.load(path)
        file.write_bytes(good)
    checkpoint.load(path)


def test_any_truncation_is_found(tmp_path):
    path = save(tmp_path)
    rng = random.Random(1)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for cut in {0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(5))}:
            file.write_bytes(good[:cut])
            with pytest.raises(CheckpointError):
                checkpoint.load(path)
        file.write_bytes(good)


def test_a_missing_file_is_corruption_and_a_missing_manifest_is_no_checkpoint(tmp_path):
    path = save(tmp_path)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointCorruptError, match="optimizer"):
        checkpoint.load(path)
    (path / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(path)


def test_another_format_is_refused_by_name(tmp_path):
    path = save(tmp_path)
    file = path / "MANIFEST.json"
    body = json.loads(file.read_text())
    body = {"format": 99, "files": body["files"]}
    file.write_text(json.dumps({**body, "self": checkpoint._digest(checkpoint._canonical(body))}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path)


def test_the_newest_is_found_by_number_not_by_name(tmp_path):
    for step in (9, 10, 99, 100_000_000):
        save(tmp_path, step, keep=10)
    (tmp_path / "step-999999999999").mkdir()  # an empty folder with a larger number
    (tmp_path / "step-latest").mkdir()
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.latest(tmp_path).name == "step-100000000"


def test_only_damaged_ones_left_is_an_error_that_lists_them(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000002.*step-00000001"):
        checkpoint.latest(tmp_path)


def test_pruning_keeps_the_newest_valid_ones(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (tmp_path / "step-00000003" / "state.json").write_bytes(b"{}")
    save(tmp_path, 4, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [
        "step-00000002",
        "step-00000003",
        "step-00000004",
    ]  # 3 is damaged and does not count


def test_saving_a_step_again_keeps_the_old_one_until_the_new_one_is_whole(tmp_path):
    save(tmp_path, 7)
    again = checkpoint.save(tmp_path, 7, {"a": torch.zeros(1)}, {}, {})
    assert again.name == "step-00000007-r1"
    assert checkpoint.latest(tmp_path) == again


def test_stale_temporaries_are_cleaned(tmp_path):
    (tmp_path / ".tmp-old").mkdir()
    (tmp_path / ".tmp-old" / "weights.safetensors").write_bytes(b"half")
    save(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, CheckpointError)]
)
def test_a_failure_of_any_call_leaves_the_previous_checkpoint(
    tmp_path, monkeypatch, call, code, kind
):
    real, calls = getattr(os, call), []
    monkeypatch.setattr(os, call, lambda *args: (calls.append(args), real(*args))[1])
    save(tmp_path, 1)
    for n in range(len(calls)):
        left = iter(range(n))

        def fail(*args, left=left):
            if next(left, None) is None:
                raise OSError(code, os.strerror(code))
            return real(*args)

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(kind, match="nothing older was lost"):
            save(tmp_path, 2)
        monkeypatch.setattr(os, call, real)
        assert checkpoint.load(checkpoint.latest(tmp_path)).step in (
            1,
            2,
        )  # 2 where only the last fsync of the folder failed
        assert checkpoint.load(tmp_path / "step-00000001").step == 1
    assert len(calls) >= 1


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"needs 1,000,\d+ bytes and has 10 free"):
        save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path):
    path = save(tmp_path / "run")
    outside = tmp_path / "outside"
    (path / "weights.safetensors").rename(outside)
    (path / "weights.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointCorruptError, match="outside"):
        checkpoint.load(path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "f.json"
    checkpoint.write_bytes(file, b"old")
    monkeypatch.setattr(
        os, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
    )
    with pytest.raises(CheckpointError):
        checkpoint.write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_every_file_is_on_the_disk_before_the_folder_is_renamed_and_the_manifest_is_the_last(
    tmp_path, monkeypatch
):
    """A kill cannot show this, for what a process wrote outlives it; a power failure would."""
    done, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        return fsync(handle)

    def renamed(source, target):
        assert {path.name for path in source.iterdir()} == set(done[:-1])
        done.append("renamed")
        return replace(source, target)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("not run: this system has no /proc")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path / "run")
    files, (work, renaming, parent) = done[:4], done[4:]
    assert files[:2] == ["weights.safetensors", "optimizer.safetensors"]
    assert files[2:] == ["state.json", "MANIFEST.json"]
    assert work.startswith(".tmp-")
    assert (renaming, parent) == ("renamed", "run")


def bytes_read():
    """What this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(
    not os.path.exists("/proc/self/io"),
    reason="not run: this system does not count what a process reads",
)
def test_a_save_reads_nothing_back(tmp_path):
    """Neither what it has just written, nor the older checkpoints that this process wrote, verified
    or loaded itself.
    """
    large = {"a": torch.rand(2_000_000), "b": torch.rand(500, 1000).t()}
    size = sum(4 * x.numel() for x in large.values())
    for step in range(6):  # the last three remove an older one
        before = bytes_read()
        path = checkpoint.save(tmp_path, step, large, {"m": large["a"]}, {})
        assert bytes_read() - before < size / 20
    assert len(list(tmp_path.iterdir())) == 3
    # as in a new process, which has loaded the newest and looks at the older ones once
    checkpoint._KNOWN.clear()
    checkpoint.load(path)
    for step, (low, high) in ((6, (1, 3)), (7, (-1, 0.1))):
        before = bytes_read()
        checkpoint.save(tmp_path, step, large, {"m": large["a"]}, {})
        assert low * size < bytes_read() - before < high * size


def test_what_this_process_wrote_is_read_again_once_it_was_touched(tmp_path):
    """Same length, other bytes: the damaged one does not count, so the two older ones stay."""
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)
    file = tmp_path / "step-00000003" / "state.json"
    file.write_bytes(bytes(len(file.read_bytes())))
    save(tmp_path, 4, keep=3)
    assert {path.name for path in tmp_path.iterdir()} == {f"step-0000000{n}" for n in (1, 2, 3, 4)}


def test_the_tensors_files_are_those_of_safetensors_byte_for_byte_in_any_order_of_the_dict(
    tmp_path,
):
    tensors = {
        "z": torch.rand(3, 2),
        "é": torch.arange(3),
        "h": torch.ones(2, 2).half(),
        "s": torch.tensor(1.0),
    }
    backwards = dict(reversed(tensors.items()))
    paths = [
        checkpoint.save(tmp_path, step, kept, {}, {})
        for step, kept in enumerate((tensors, backwards))
    ]
    found = [(path / "weights.safetensors").read_bytes() for path in paths]
    assert found[0] == found[1] == safetensors.torch.save(tensors)
    assert list(checkpoint.load(checkpoint.latest(tmp_path)).weights) == sorted(tensors)


def test_every_dtype_shape_and_layout_comes_back_and_an_unknown_dtype_is_refused_whole(tmp_path):
    kinds = {str(kind): torch.randint(0, 2, (3, 5)).to(kind) for kind in checkpoint._KINDS}
    shapes = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "turned": torch.rand(4, 6).t(),
        "same": torch.ones(1).expand(3),
    }
    loaded = checkpoint.load(checkpoint.save(tmp_path, 1, kinds | shapes, {}, {})).weights
    for name, value in (kinds | shapes).items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].tolist() == value.tolist()
    with pytest.raises(CheckpointError, match="the tensor odd has dtype"):
        checkpoint.save(tmp_path, 2, {"odd": torch.ones(2, dtype=torch.complex128)}, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
