"""Archives of images: unpacked whole, inside their folder, or not at all."""

import bz2
import gzip
import io
import os
import random
import re
import shutil
import signal
import tarfile
import time
from pathlib import Path

import pytest

from cfm_lite.data import archive, images, root
from cfm_lite.errors import DataError, DiskFullError
from tests.pictures import made_folder, picture
from tests.processes import forked


def tarred(path, members, kind="w"):
    """A tar of {name: bytes, or a dict for a tar inside}; returns its bytes, and writes them where
    `path` is given.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:
        for name, content in members.items():
            content = (
                tarred(None, content, f"w:{name[-2:]}" if name.endswith(("gz", "xz")) else "w")
                if isinstance(content, dict)
                else content
            )
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def png(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


BUS, CAR = {"1.png": png(1), "2.png": png(2)}, {"3.png": png(3)}
FOLDERS = {
    f"{name}/{key}": content
    for name, images_ in (("bus", BUS), ("car", CAR))
    for key, content in images_.items()
}
PACKED = {  # all of them hold the same three images of two classes
    "a tar of tars": ("w", {"bus.tar": BUS, "car.tar": CAR}),
    "a tar of tars with dots": (
        "w",
        {"./bus.tar": {f"./{key}": x for key, x in BUS.items()}, "./car.tar": CAR},
    ),
    "a tar of tars in a folder": ("w", {"set/bus.tar": BUS, "set/car.tar": CAR}),
    "a tar of tars in train": (
        "w",
        {"train/bus.tar": BUS, "train/car.tar": CAR, "val/9.png": png(9)},
    ),
    "a tar of packed tars": ("w", {"bus.tar.gz": BUS, "car.txz": CAR}),
    "a packed tar of tars": ("w:gz", {"bus.tar": BUS, "car.tar": CAR}),
    "folders": ("w", FOLDERS),
    "folders with dots": ("w:gz", {f"./{key}": x for key, x in FOLDERS.items()}),
    "folders in a folder": ("w:xz", {f"set/{key}": x for key, x in FOLDERS.items()}),
    "folders in folders, with hidden things": (
        "w",
        {f"a/b/{key}": x for key, x in FOLDERS.items()}
        | {"a/.x.png": png(8), "__MACOSX/a/8.png": png(8), "._a": b"x", "a/._c.tar": b"x"},
    ),
    "folders in train": (
        "w",
        {f"set/train/{key}": x for key, x in FOLDERS.items()} | {"set/val/bus/9.png": png(9)},
    ),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / archive.SAMPLES


@pytest.mark.parametrize("case", PACKED)
def test_however_a_set_is_packed_it_is_the_same_set(case, tmp_path, cache):
    kind, members = PACKED[case]
    path = tmp_path / "set.tar"
    tarred(path, members, kind)
    found = images.find(path)
    assert found.classes == ("bus", "car")
    assert {file.key: file.path.read_bytes() for file in found.files} == FOLDERS
    assert images.layout(path) == found.root
    assert [image.name for image in cache.rglob(".tmp-*")] == []


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
    assert [f.key for f in images.find(folder).files] == [
        f.key for f in images.find(tmp_path / "set").files
    ]
    marker = folder / "marker"
    marker.touch()
    assert archive.unpacked(path) == folder
    assert marker.exists()


@pytest.mark.parametrize(
    "members", [{"../escape.txt": b"x"}, {"a/link": "../../outside"}, {"b": "/etc/passwd"}]
)
def test_a_member_that_would_leave_the_folder_refuses_the_archive(tmp_path, members):
    with pytest.raises(DataError, match=r"a\.tar was not unpacked"):
        archive.unpack(packed(tmp_path, members), tmp_path / "in" / "folder")
    assert {path.name for path in tmp_path.rglob("*")} == {"a.tar", "in"}


def test_an_absolute_name_lands_inside_the_folder(tmp_path):
    folder = archive.unpack(packed(tmp_path, {"/etc/escape.txt": b"x"}), tmp_path / "folder")
    assert (folder / "etc" / "escape.txt").read_bytes() == b"x"


def test_a_bad_archive_leaves_no_empty_folder_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "cache_root", lambda: tmp_path / "cache")
    with pytest.raises(DataError, match=r"a\.tar was not unpacked"):
        archive.unpacked(packed(tmp_path, {"../escape.txt": b"x"}))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


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


def test_the_archive_of_samples_is_not_what_a_desktop_left_beside_it_and_a_closed_folder_is_named(
    tmp_path, cache, monkeypatch
):
    folder = tmp_path / "root" / archive.SAMPLES
    folder.mkdir(parents=True)
    (folder / "._set.tar").write_bytes(b"x")
    tarred(folder / "set.tar", FOLDERS)
    assert images.find(archive.samples(tmp_path / "root")).classes == ("bus", "car")
    monkeypatch.setattr(
        os, "listdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(DataError, match=f"{archive.SAMPLES} cannot be listed"):
        archive.samples(tmp_path / "root")


@pytest.mark.real_data
def test_the_63_samples_are_63_classes():
    found = images.find(archive.samples())
    assert len(found.files) == len(found.classes) == 63
    assert {images.load(file.path, 32).shape for file in found.files[:8]} == {(3, 32, 32)}


def test_archives_of_one_name_in_two_places_are_two_sets_and_a_new_version_replaces_its_own_old_one(
    tmp_path, cache
):
    for name in ("a", "b", "a-b"):
        (tmp_path / name).mkdir()
        tarred(tmp_path / name / "set.tar", {"bus/1.png": name.encode()})
    tarred(tmp_path / "a" / "set-b.tar", {"bus/1.png": b"set-b"})
    folders = [archive.unpacked(path) for path in sorted(tmp_path.glob("*/set*.tar"))]
    assert len({*folders}) == 4
    assert all(folder.is_dir() for folder in folders)
    tarred(tmp_path / "a" / "set.tar", {"bus/1.png": b"another"})
    new = archive.unpacked(tmp_path / "a" / "set.tar")
    assert (new / "bus" / "1.png").read_bytes() == b"another"
    assert sorted(cache.iterdir()) == sorted(
        [new, *(folder for folder in folders if folder.is_dir())]
    )
    assert len(list(cache.iterdir())) == 4


INNER = {
    "a link": lambda tar: tar.addfile(special("a.png", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": lambda tar: tar.addfile(special("a.png", tarfile.LNKTYPE, "b")),
    "a name that climbs": lambda tar: tar.addfile(tarfile.TarInfo("../../a.png")),
    "a device": lambda tar: tar.addfile(special("a", tarfile.CHRTYPE)),
    "too many files": lambda tar: [tar.addfile(tarfile.TarInfo(f"{i}.png")) for i in range(30)],
    "too many bytes": lambda tar: tar.addfile(
        special("a.png", tarfile.REGTYPE, size=90_000), io.BytesIO(bytes(90_000))
    ),
    "no tar": None,
}


def special(name, kind, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


@pytest.mark.parametrize("packed_as", ["", "gz"])
@pytest.mark.parametrize("case", INNER)
def test_the_rules_hold_in_inner_tars_and_limits_count_all_of_them_together(
    case, packed_as, tmp_path
):
    buffer = io.BytesIO(b"no tar" * 200)
    if INNER[case] is not None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{packed_as}") as tar:
            INNER[case](tar)
    path, before = tmp_path / "outer.tar", {"in", "outer.tar"}
    tarred(
        path,
        {
            "one.tar": {f"{i}.png": bytes(2000) for i in range(15)},
            f"two.tar{packed_as and '.' + packed_as}": buffer.getvalue(),
        },
    )
    with pytest.raises(DataError, match=r"outer\.tar"):
        archive.unpack(path, tmp_path / "in" / "folder", limit=100_000, members=40)
    assert {found.name for found in tmp_path.rglob("*")} == before


def test_a_class_that_is_there_twice_is_refused(tmp_path):
    for members in (
        {"bus/1.png": b"x", "bus.tar": BUS},
        {"bus.tar": BUS, "bus.tgz": CAR},
        {"./a/bus.tar": BUS, "a/./bus/1.png": b"x"},
    ):
        tarred(tmp_path / "a.tar", members)
        with pytest.raises(DataError, match="once more"):
            archive.unpack(tmp_path / "a.tar", tmp_path / "in" / "folder")


def test_an_archive_larger_than_the_limit_of_50_gib_is_unpacked_and_one_that_does_not_fit_is_refused_before(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.tar"
    tarred(path, {"bus.tar": BUS, "car.tar": CAR})
    monkeypatch.setattr(archive, "LIMIT", 100)  # an archive may always be as large as it is
    assert len(list(archive.unpack(path, tmp_path / "folder").rglob("*.png"))) == 3
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage._replace(free=path.stat().st_size - 1)
    )
    with pytest.raises(DiskFullError, match=r"needs about [0-9,]+ bytes"):
        archive.unpack(path, tmp_path / "other" / "folder")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("damage", ["header", "zeros", "cut", "no end"])
@pytest.mark.parametrize("where", ["outer", "inner"])
def test_a_damaged_header_is_an_error_and_not_the_end(where, damage, tmp_path):
    """tarfile takes it for the end: the images behind it would be gone without a word."""
    inner = bytearray(tarred(None, {f"{i}.png": bytes([i]) * 600 for i in range(8)}))
    content = (
        bytearray(tarred(None, {"one.tar": bytes(inner), "two.tar": bytes(inner)}))
        if where == "outer"
        else inner
    )
    at = 512 + len(inner) if where == "outer" else 4 * (512 + 1024)  # where a header begins
    if damage == "header":
        content[at + 150] ^= 1
    elif damage == "zeros":
        content[at : at + 512] = bytes(512)
    else:
        content = content[
            : at
            if damage == "cut"
            else at + (512 + len(inner) if where == "outer" else 4 * (512 + 1024))
        ]
    (tmp_path / "a.tar").write_bytes(
        content if where == "outer" else tarred(None, {"one.tar": bytes(content)})
    )
    with pytest.raises(DataError, match=r"a\.tar is not a whole tar archive \(.*at byte"):
        archive.unpack(tmp_path / "a.tar", tmp_path / "folder")


@pytest.mark.parametrize("where", ["outer", "inner"])
@pytest.mark.parametrize(
    ("kind", "pack", "at"),
    [("gz", gzip.compress, -6), ("gz", gzip.compress, None), ("bz2", bz2.compress, -6)],
)
def test_a_damaged_compressed_archive_is_told_as_damage_and_not_as_a_full_disk(
    where, kind, pack, at, tmp_path
):
    """gzip and bzip2 raise OSError for a wrong checksum and for what follows the end."""
    content = bytearray(pack(tarred(None, {"cat/a.png": random.Random(0).randbytes(30_000)})))
    if at is None:
        content += b"garbage"
    else:
        content[at] ^= 255
    name = f"one.tar.{kind}"
    path = tmp_path / (name if where == "outer" else "a.tar")
    path.write_bytes(content if where == "outer" else tarred(None, {name: bytes(content)}))
    told = r".*Fetch it again" if where == "outer" else rf"{name}: .*Fetch it again"
    with pytest.raises(DataError, match=rf"{path.name} is not a whole tar archive \({told}"):
        archive.unpack(path, tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {path.name}


def test_a_zip_is_named_as_one(tmp_path):
    made_folder(tmp_path / "set", classes=1, each=2)
    made = Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "set"))
    with pytest.raises(DataError, match=r"a\.zip is a zip archive.*Unpack it, and give the folder"):
        images.find(made)
    outer = tmp_path / "a.tar"
    tarred(outer, {"class0/0.png": b"x", "class0/z.zip": made.read_bytes()})
    assert sorted(p.name for p in archive.unpack(outer, tmp_path / "b").glob("*/*"))[0] == "0.png"


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"\x28\xb5\x2f\xfd", "zstd"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\x00", "rar")],
)
def test_an_archive_of_another_kind_is_named_with_those_that_are_read(tmp_path, head, kind):
    made = tmp_path / "a.tar.other"
    made.write_bytes(head + bytes(range(256)) * 9)
    with pytest.raises(DataError, match=rf"a {kind} archive; a tar is read, .*gzip, bzip2 or xz"):
        images.find(made)


def test_a_killed_process_leaves_the_classes_that_it_finished_and_the_next_one_unpacks_the_others(
    tmp_path,
):
    path, folder = tmp_path / "a.tar", tmp_path / "out" / "folder"
    tarred(
        path, {f"c{i}.tar": {f"{i}.png": bytes([i]) * 50} for i in range(6)} | {"notes.txt": b"x"}
    )
    seen, plain = tmp_path / "seen", tarfile.TarFile.extract

    def work(limit):
        def extract(self, member, *rest, **how):
            with open(seen, "a") as file:
                file.write(f"{member.name}\n")
            if limit and seen.read_text().count("png") > limit:
                time.sleep(60)
            return plain(self, member, *rest, **how)

        tarfile.TarFile.extract = extract
        return 0 if archive.unpack(path, folder) else 1

    child = forked(lambda: work(3))
    while not seen.exists() or seen.read_text().count("png") < 4:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not folder.exists()
    seen.unlink()
    assert os.waitstatus_to_exitcode(os.waitpid(forked(lambda: work(0)), 0)[1]) == 0
    assert seen.read_text().split() == ["3.png", "4.png", "5.png", "notes.txt"]
    assert {file.name: file.read_bytes() for file in folder.rglob("*.png")} == {
        f"{i}.png": bytes([i]) * 50 for i in range(6)
    }
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def test_what_was_begun_for_another_archive_is_not_taken_on(tmp_path):
    path, folder = tmp_path / "a.tar", tmp_path / "out" / "folder"
    stale = folder.parent / ".tmp-folder" / "content" / "bus"
    stale.mkdir(parents=True)
    (stale / "old.png").write_bytes(b"old")
    (stale.parents[1] / "done").write_text('"another"\n["bus", 3]\n')
    tarred(path, {"bus.tar": BUS})
    assert sorted(file.name for file in archive.unpack(path, folder).rglob("*.png")) == [
        "1.png",
        "2.png",
    ]
    assert re.fullmatch(r"folder", *(entry.name for entry in Path(folder.parent).iterdir()))


def test_a_stopped_unpacking_leaves_nothing_where_no_class_was_finished(tmp_path, monkeypatch):
    tarred(tmp_path / "a.tar", FOLDERS)
    monkeypatch.setattr(
        tarfile.TarFile, "extract", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        archive.unpack(tmp_path / "a.tar", tmp_path / "out" / "folder")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_a_note_and_the_set_is_there_all_the_same(
    tmp_path, cache
):
    tarred(tmp_path / "set.tar", FOLDERS)
    right = {path.name for path in archive.unpacked(tmp_path / "set.tar").rglob("*.png")}
    os.utime(tmp_path / "set.tar", ns=(1, 1))  # another version, which is not in the cache
    shutil.rmtree(cache)
    cache.write_text("no folder")
    with pytest.warns(
        UserWarning, match=r"what set\.tar holds cannot be kept in .*: nothing is lost"
    ):
        folder = archive.unpacked(tmp_path / "set.tar")
    assert {path.name for path in folder.rglob("*.png")} == right
    assert not folder.is_relative_to(tmp_path)


def test_the_cache_is_an_absolute_folder_also_without_a_home(monkeypatch):
    monkeypatch.setattr(root, "checkout", lambda: None)
    monkeypatch.setattr(
        root.platformdirs, "user_cache_path", lambda name: Path("~/.cache") / name
    )  # what it gives without one
    assert root.cache_root().is_absolute()
    assert "~" not in str(root.cache_root())
