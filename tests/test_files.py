"""A file is written whole or not at all, and its hash is the one that older files hold."""

import hashlib

import pytest
import torch

from cfm_lite._internal.files import fingerprint, hash_of_file, publish

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
