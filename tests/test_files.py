"""A file is written whole or not at all, and its hash is the one that older files hold."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from cfm_lite._internal.files import (
    fingerprint,
    hash_of_file,
    hash_of_json,
    inside,
    publish,
    replacing,
)

TENSORS = {"b": torch.arange(6.0).reshape(2, 3).mT, "a": torch.tensor(7), "none": torch.zeros(0)}


@pytest.mark.parametrize("shapes", [True, False])
def test_a_fingerprint_is_the_hash_of_names_shapes_and_bytes(shapes):
    digest = hashlib.sha256(b"facts")
    for name in sorted(TENSORS):
        x = TENSORS[name]
        digest.update((f"{name} {tuple(x.shape)} {x.dtype}" if shapes else name).encode())
        digest.update(x.contiguous().numpy().tobytes())
    assert fingerprint(TENSORS, "facts", shapes=shapes) == digest.hexdigest()


def test_a_fingerprint_reads_types_that_numpy_lacks_and_sees_one_changed_bit():
    weights = {"w": torch.ones(3, dtype=torch.bfloat16)}
    before = fingerprint(weights)
    weights["w"][1] = 2
    assert fingerprint(weights) != before


def test_a_file_is_replaced_whole_and_hashed_as_it_lies_on_the_disk(tmp_path):
    path = tmp_path / "new folder" / "file"
    for content in (b"old", b"new"):
        publish(content, path)
        assert hash_of_file(path) == hashlib.sha256(content).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_the_hash_of_json_is_the_one_that_caches_and_jobs_hold():
    # changed bytes would find no cache, no finished job and no latents of before
    values = {"steps": 3, "lr": 1e-3, "arm": ["fm", None, True], "Ωmega": {"b": 1, "a": 2}}
    held = "3692563256347d31987598d6bc366db6238a590797bc90bf621ffe6805d8cb71"
    assert hash_of_json(values) == held
    assert hash_of_json(dict(reversed(values.items()))) == held
    told = json.dumps({"path": "a/b"}, sort_keys=True).encode()
    assert hash_of_json({"path": Path("a/b")}, default=str) == hashlib.sha256(told).hexdigest()


def test_a_file_that_is_written_in_pieces_replaces_the_old_one_or_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half", "no bytes"])
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"ne")
        file.write(b"w")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_were_made_for_nothing_go_again_and_others_stay(tmp_path):
    deep = tmp_path / "new" / "deep"
    with pytest.raises(TypeError), replacing(deep / "file") as file:
        file.write("no bytes")
    assert list(tmp_path.iterdir()) == []

    def interrupted():
        (deep.parent / "of another").touch()  # written meanwhile
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), inside(deep):
        interrupted()
    assert [path.name for path in deep.parent.iterdir()] == ["of another"]
    with pytest.raises(ZeroDivisionError), inside(tmp_path / "new"):
        _ = 1 / 0
    assert (deep.parent / "of another").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ZeroDivisionError), inside(empty):
        _ = 1 / 0
    assert empty.is_dir()  # it was there before
