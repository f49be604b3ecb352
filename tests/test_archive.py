"""Archives of images: unpacked whole, inside their folder, or not at all."""

import io
import tarfile

import pytest

from cfm_lite.data import archive, images
from cfm_lite.errors import DataError
from tests.pictures import made_folder


def packed(tmp_path, members):
    """A tar of {name: bytes or a link's target}."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "cache_root", lambda: tmp_path / "cache")
    made_folder(tmp_path / "set" / "train")
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "set" / "train", "train")
    folder = archive.unpacked(path)
    assert [f.key for f in images.find(folder).files] == [f.key for f in images.find(tmp_path / "set").files]
    marker = folder / "marker"
    marker.touch()
    assert archive.unpacked(path) == folder
    assert marker.exists()


@pytest.mark.parametrize("members", [{"../escape.txt": b"x"}, {"a/link": "../../outside"}, {"b": "/etc/passwd"}])
def test_a_member_that_would_leave_the_folder_refuses_the_archive(tmp_path, members):
    with pytest.raises(DataError, match=r"a\.tar was not unpacked"):
        archive.unpack(packed(tmp_path, members), tmp_path / "in" / "folder")
    assert {path.name for path in tmp_path.rglob("*")} == {"a.tar", "in"}


def test_an_absolute_name_lands_inside_the_folder(tmp_path):
    folder = archive.unpack(packed(tmp_path, {"/etc/escape.txt": b"x"}), tmp_path / "folder")
    assert (folder / "etc" / "escape.txt").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["gone", "page", "half", "huge"])
def test_a_bad_archive_is_one_error_and_leaves_nothing(tmp_path, kind):
    path = packed(tmp_path, {"a/b.png": b"\0" * 30_000})
    if kind == "gone":
        path.unlink()
    elif kind == "page":
        path.write_text("<html>" * 200)
    elif kind == "half":
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"a\.tar"):
        archive.unpack(path, tmp_path / "out" / "folder", limit=1000 if kind == "huge" else 10**6)
    assert not list((tmp_path / "out").glob("*"))


def test_without_samples_the_error_names_the_variable(tmp_path):
    with pytest.raises(DataError, match="CFM_LITE_DATA"):
        archive.samples(tmp_path)


@pytest.mark.real_data
def test_the_63_samples_are_63_classes():
    found = images.find(archive.samples())
    assert len(found.files) == len(found.classes) == 63
    assert {images.load(file.path, 32).shape for file in found.files[:8]} == {(3, 32, 32)}
