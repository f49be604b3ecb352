"""Image folders: what is found, how it is cropped, and what every odd file becomes."""

import os
import re
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfm_lite.data import images
from cfm_lite.errors import ConfigError, DataError
from tests.pictures import made_folder, picture
from tests.processes import forked


def saved(tmp_path, image, name="image.png", **how):
    image.save(tmp_path / name, **how)
    return tmp_path / name


def test_classes_are_the_sorted_folder_names_and_keys_are_paths(tmp_path):
    found = images.find(made_folder(tmp_path / "set"))
    assert found.classes == ("class0", "class1", "class2")
    assert [file.key for file in found.files] == sorted(file.key for file in found.files)
    assert found.files[0].key == "class0/000.png"
    assert all(found.classes[file.label] == file.key.split("/")[0] for file in found.files)


# what is there (a name without a slash is an image in the root), and what is found: the classes,
# the folder that is taken
LAYOUTS = {
    "classes": ("bus/1 car/1", "bus car", ""),
    "classes with folders of their own": ("bus/a/1 bus/b/1 car/a/1", "bus car", ""),
    "one class": ("cats/1 cats/2", "cats", ""),
    "an image beside the classes": ("0 bus/1 car/1", "bus car", ""),
    "train alone": ("train/bus/1 train/car/1", "bus car", "train"),
    "train and val": ("train/bus/1 train/car/1 val/bus/1", "bus car", "train"),
    "train and flat val and test": ("train/bus/1 train/car/1 val/1 test/1", "bus car", "train"),
    "train and val that is empty": ("train/bus/1 train/car/1 val/", "bus car", "train"),
    "train and val beside notes": ("train/bus/1 train/car/1 val/1 notes/", "bus car", "train"),
    "Train and Validation": ("Train/bus/1 Train/car/1 Validation/1", "bus car", "Train"),
    "train of one class": ("train/bus/1 val/bus/1", "bus", "train"),
    "train2017 and val2017": ("train2017/bus/1 train2017/car/1 val2017/1", "bus car", "train2017"),
    "training_set and test_set": ("test_set/bus/1 training_set/bus/1", "bus", "training_set"),
    "seg_train and seg_test": ("seg_train/bus/1 seg_test/bus/1", "bus", "seg_train"),
    "train and dev": ("train/bus/1 dev/bus/1 eval/1", "bus", "train"),
    "train and holdout": ("train/bus/1 holdout/bus/1", "bus", "train"),
    "Train and Validate": ("Train/bus/1 Validate/bus/1", "bus", "Train"),
    "ImageNet with blurred faces": ("train_blurred/n1/1 val_blurred/n1/1", "n1", "train_blurred"),
    "small ImageNet": ("train_256px/n1/1 val_256px/n1/1", "n1", "train_256px"),
    "the set's name beside": ("cifar10_train/a/1 cifar10_test/a/1", "a", "cifar10_train"),
    "capitals part words": ("trainSmall/a/1 testSmall/a/1", "a", "trainSmall"),
    "trains beside tests of others": ("test_tube/1 train_fast/1", "test_tube train_fast", ""),
    "trains": (
        "steam_train/1 bullet_train/1 test_tube/1",
        "bullet_train steam_train test_tube",
        "",
    ),
    "train twice": ("train/train/bus/1 train/val/bus/1 val/bus/1", "bus", "train/train"),
    "train as a class": ("train/1 bus/1 car/1", "bus car train", ""),
    "train as a class with folders": (
        "train/steam/1 train/diesel/1 bus/1 car/1",
        "bus car train",
        "",
    ),
    "train, val and test as classes": ("train/a/1 val/b/1 test/1 bus/1", "bus test train val", ""),
    "train as the only class": ("train/1 train/2", "train", ""),
    "val as a class": ("val/1 bus/1", "bus val", ""),
    "train below several classes": ("a/train/1 b/train/1", "a b", ""),
}
REFUSED = {  # and the folder that the message says to give, with what has to be moved there first
    "a parent of the set": ("set/train/bus/1 set/train/car/1 set/val/1", "set/train"),
    "a parent of its parent": (
        "ILSVRC/Data/CLS-LOC/train/bus/1 ILSVRC/Data/CLS-LOC/val/1 ILSVRC/Notes/",
        "ILSVRC/Data/CLS-LOC/train",
    ),
    "a parent of classes": ("set/bus/1 set/car/1", "set"),
    "a parent of classes with an image": ("set/0 set/bus/1 set/car/1", "set"),
    "two sets": ("a/train/bus/1 a/val/bus/1 b/train/bus/1 b/val/bus/1", "a/train"),
    "a set beside classes": ("a/train/bus/1 a/test/bus/1 bus/1", "a/train"),
    "a deep set beside classes": ("a/b/train/bus/1 a/b/test/bus/1 bus/1", "a/b/train"),
    "val without train": ("val/bus/1 val/car/1", "val"),
    "val and test without train": ("val/bus/1 test/bus/1", "test"),
    "a set beside other folders": ("train/bus/1 train/car/1 val/bus/1 extra/1", "train"),
    "a set beside its test images": ("train/bus/1 Testing/bus/1 unlabelled/a/1", "train"),
    "two parts to train on": ("train.X1/a/1 train.X2/b/1 val.X/a/1", "train.X1"),
    "two domains": ("testA/1 testB/1 trainA/1 trainB/1", "trainA"),
    "small flat parts": ("train_64x64/1 valid_64x64/1", "train_64x64"),
    "flat": ("0 1", None),
    "flat train and val": ("train/1 val/1", "train"),
    "train beside empty classes": ("train/bus/1 train/car/1 bus/ car/", "train"),
}


def laid_out(root, names):
    for name in names.split():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(0, 8, 8).save(f"{path}.png")
    return root


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_is_known_by_its_structure_and_not_by_names(tmp_path, case):
    names, classes, taken = LAYOUTS[case]
    found = images.find(laid_out(tmp_path, names))
    assert found.classes == tuple(classes.split())
    assert found.root == images.layout(tmp_path) == tmp_path / taken
    assert {file.key.split("/")[0] for file in found.files} == set(found.classes)


@pytest.mark.parametrize("case", REFUSED)
def test_a_layout_that_would_mix_sets_is_refused_and_the_folder_that_is_named_works(tmp_path, case):
    names, right = REFUSED[case]
    with pytest.raises(DataError) as error:
        images.find(laid_out(tmp_path, names))
    said = str(error.value)
    if move := re.search(r"move its images into (\S+?)\.?$", said):
        inside = [path for path in Path(move[1]).parent.iterdir() if path.is_file()]
        Path(move[1]).mkdir()
        for path in inside:
            path.rename(Path(move[1]) / path.name)
    give = re.search(r"[Gg]ive (\S+?)[.;]?( |$)", said)
    assert (give and give[1]) == (right and str(tmp_path / right)), said
    assert len(images.find(give[1] if give else tmp_path).files) > 0


def test_a_flat_folder_has_no_classes_and_never_mixes_the_parts_of_a_set(tmp_path):
    assert [file.key for file in images.flat(laid_out(tmp_path / "a", "0 x/1 x/y/2")).files] == [
        "0.png",
        "x/1.png",
        "x/y/2.png",
    ]
    assert [file.key for file in images.flat(laid_out(tmp_path / "b", "train/1 val/2")).files] == [
        "1.png"
    ]
    assert len(images.flat(laid_out(tmp_path / "c", "bus/1 train/1")).files) == 2
    assert len(images.flat(laid_out(tmp_path / "d", "train_64x64/1 valid_64x64/2")).files) == 1
    for names in (
        "val/1 test/1",
        "train.X1/1 train.X2/2 val.X/3",
        "train/a/1 val/a/1 extra/1",
        "a/train/1 a/val/1",
        "a/b/c/train/1 a/b/c/val/1",
        "x/",
    ):
        with pytest.raises(DataError, match=r"parts of a set|no image"):
            images.flat(laid_out(tmp_path / names.replace("/", ""), names))


@pytest.mark.parametrize("level", ["", "class0", "class0/deep"])
def test_files_that_are_no_images_and_hidden_ones_are_not_found_at_any_level(tmp_path, level):
    root = made_folder(tmp_path / "set", classes=1, each=2)
    here = root / level
    for name in (
        ".ipynb_checkpoints",
        ".thumbnails",
        "@eaDir",
        "#snapshot",
        "@Recycle",
        "@Recently-Snapshot",
        "__MACOSX",
        "lost+found",
        "$RECYCLE.BIN",
    ):
        (here / name / "class0").mkdir(parents=True)
        picture(9).save(here / name / "class0" / "000.png")
        picture(9).save(here / name / "000.png")
    for name in ("notes.txt", ".DS_Store", "._000.png", ".hidden.png", "Thumbs.db", "README"):
        (here / name).write_bytes(b"x")
    (root / ".cache").mkdir()
    assert [file.key for file in images.find(root).files] == ["class0/000.png", "class0/001.png"]
    assert len(images.flat(root).files) == 2


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_smaller_set(tmp_path, monkeypatch):
    root = made_folder(tmp_path / "set", classes=2, each=2)
    (root / "class0" / "deep").mkdir()
    plain, closed = os.scandir, root

    def scandir(folder):
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return plain(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    for closed in (root, root / "class0", root / "class1", root / "class0" / "deep"):
        for look in (images.find, images.flat):
            with pytest.raises(DataError, match=f"{re.escape(str(closed))} cannot be listed"):
                look(root)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: a system without users of its own")
def test_an_ordinary_user_hears_of_a_closed_folder_and_of_a_closed_file():
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        root = made_folder(Path(home) / "set", classes=2, each=2)
        os.chmod(root / "class1" / "001.png", 0)

        def look():
            if os.getuid() == 0:
                os.setuid(65534)
            with pytest.raises(
                DataError, match=r"001\.png cannot be read \(Permission denied\)\. Make it readable"
            ):
                images.load(images.find(root).files[-1].path, 8)
            return 7

        def look_closed():
            if os.getuid() == 0:
                os.setuid(65534)
            for folder in (root, root / "class0"):
                with pytest.raises(DataError, match="class0 cannot be listed"):
                    images.find(folder)
            return 7

        assert os.waitstatus_to_exitcode(os.waitpid(forked(look), 0)[1]) == 7
        os.chmod(root / "class0", 0)
        assert os.waitstatus_to_exitcode(os.waitpid(forked(look_closed), 0)[1]) == 7
        os.chmod(root / "class0", 0o755)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    root = made_folder(tmp_path / "set", classes=2, each=2)
    for link in (root / "class2", root / "class1" / "more", root / "class1" / "itself"):
        link.symlink_to(link if link.name == "itself" else tmp_path / "gone")
        with pytest.raises(DataError, match=rf"{link.name} is a link that leads nowhere"):
            images.find(root)
        link.unlink()
    (root / "class1" / "009.png").symlink_to(
        tmp_path / "gone.png"
    )  # an image that cannot be read, as any other
    found = images.find(root).files[-1]
    with pytest.raises(DataError, match=r"009\.png cannot be decoded"):
        images.load(found.path, 8)


def test_a_loop_of_folders_ends_and_a_linked_folder_is_followed(tmp_path):
    root = made_folder(tmp_path / "set", classes=1, each=2)
    (root / "class0" / "again").symlink_to(root / "class0", target_is_directory=True)
    (root / "class1").symlink_to(root / "class0", target_is_directory=True)
    (root / "class0" / "up").symlink_to(root, target_is_directory=True)
    found = images.find(root)
    assert found.classes == ("class0", "class1")
    assert len(found.files) == 4


@pytest.mark.parametrize("layout", ["absent", "empty", "flat", "hollow"])
def test_a_folder_without_classes_is_one_error_that_says_the_layout(tmp_path, layout):
    root = tmp_path / "set"
    if layout != "absent":
        root.mkdir()
    if layout == "flat":
        picture(0).save(root / "a.png")
    if layout == "hollow":
        made_folder(tmp_path / "set2", 1)
        (tmp_path / "set2" / "zebra").mkdir()
        root = tmp_path / "set2"
    with pytest.raises(DataError, match="zebra" if layout == "hollow" else "class folder"):
        images.find(root)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 64))
def test_the_crop_has_the_size_whatever_the_image(width, height, size):
    assert images.centre_crop(Image.new("RGB", (width, height)), size).size == (size, size)


def test_the_crop_is_the_middle():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert np.asarray(images.centre_crop(Image.fromarray(wide), 8)).min() == 255


def test_large_images_are_halved_by_means_of_four(tmp_path):
    # a grid of single white pixels would alias under a bicubic filter alone; its mean is what is
    # left
    fine = np.zeros((64, 64, 3), np.uint8)
    fine[::2, ::2] = 255
    got = np.asarray(images.centre_crop(Image.fromarray(fine), 16))
    assert np.abs(got.astype(int) - 64).max() <= 1


def test_an_rgb_image_of_the_size_is_read_as_it_is(tmp_path):
    image = picture(1, 32, 32)
    got = images.load(saved(tmp_path, image), 32)
    assert got.dtype == torch.uint8
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(image))


def test_grey_palette_and_bilevel_become_rgb(tmp_path):
    grey = picture(2).convert("L")
    for mode in ("L", "P", "1"):
        path = saved(tmp_path, grey.convert(mode), f"{mode}.png")
        got = np.asarray(images.read(path))
        assert got.shape == (32, 40, 3)
        assert np.array_equal(got, np.asarray(grey.convert(mode).convert("RGB")))


def test_transparent_pixels_become_white_and_opaque_ones_stay(tmp_path):
    for mode in ("RGBA", "LA"):
        image = picture(3).convert(mode)
        alpha = Image.new("L", image.size, 255)
        alpha.paste(0, (0, 0, 20, 32))
        image.putalpha(alpha)
        got = np.asarray(images.read(saved(tmp_path, image, f"{mode}.png")))
        assert got[:, :20].min() == 255
        assert np.array_equal(got[:, 20:], np.asarray(image.convert("RGB"))[:, 20:])


def test_a_palette_with_a_transparent_entry_becomes_white_there(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    got = np.asarray(images.read(saved(tmp_path, image, "clear.png", transparency=0)))
    assert got.min() == 255


def test_cmyk_becomes_rgb(tmp_path):
    got = np.asarray(
        images.read(
            saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "red.jpg", quality=95)
        )
    )
    assert got[..., 0].min() > 230
    assert got[..., 1:].max() < 40


@pytest.mark.parametrize("value", [0, 257, 32896, 65535])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, value):
    path = saved(tmp_path, Image.fromarray(np.full((8, 8), value, np.uint16)))
    assert (
        np.asarray(images.read(path)).max() == np.asarray(images.read(path)).min() == value // 257
    )


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def packed_bits(levels, bits):
    text = "".join(format(level, f"0{bits}b") for level in levels)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def png(levels, bits, kind=0, extra=b""):
    """A PNG of one row, written by hand so that its depth is what is said; `kind` 0 is grey, 2 RGB,
    4 grey with alpha, 6 RGBA.
    """
    width = len(levels) // {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"\0" + packed_bits(levels, bits)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + content + chunk(b"IEND", b"")


def pnm(levels, top, plain=False):
    body = (
        " ".join(map(str, levels)).encode()
        if plain
        else packed_bits(levels, 16 if top > 255 else 8)
    )
    return b"P%d\n%d 1\n%d\n" % (2 if plain else 5, len(levels), top) + body


def tiff(levels, bits, *, order="<", white=False, kind=1):
    """A TIFF of one row; `white` for 0 as white, `kind` 2 for signed integers and 3 for floats."""
    data = packed_bits([level % 2**bits for level in levels], bits)
    data = (
        data
        if order == ">" or bits < 16
        else np.frombuffer(data, f">u{bits // 8}").astype(f"<u{bits // 8}").tobytes()
    )
    tags = {
        256: len(levels),
        257: 1,
        258: bits,
        259: 1,
        262: 0 if white else 1,
        273: 8 + 2 + 12 * 10 + 4,
        277: 1,
        278: 1,
        279: len(data),
        339: kind,
    }
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()
    )
    return (
        (b"II" if order == "<" else b"MM")
        + struct.pack(f"{order}HIH", 42, 8, len(tags))
        + entries
        + bytes(4)
        + data
    )


DEPTHS = {  # a file of the levels 0, 1, a third and white, by its own depth
    **{f"PNG of {bits} bits": (png, bits, {}) for bits in (1, 2, 4, 8, 16)},
    **{f"TIFF of {bits} bits": (tiff, bits, {}) for bits in (1, 2, 4, 8, 12, 16)},
    "TIFF of 16 bits, big end first": (tiff, 16, {"order": ">"}),
    "TIFF of 16 bits, 0 is white": (tiff, 16, {"white": True}),
    "TIFF of 8 bits, 0 is white": (tiff, 8, {"white": True}),
    **{
        f"PGM up to {top}": (pnm, top, {"plain": plain})
        for plain in (False, True)
        for top in (15, 255, 1023, 4095, 65535)
    },
}


@pytest.mark.parametrize("part", ["whole", "dark"])
@pytest.mark.parametrize("case", DEPTHS)
def test_levels_are_scaled_by_the_depth_of_the_file_and_never_by_what_it_holds(case, part):
    make, size, how = DEPTHS[case]
    top = size if make is pnm else 2**size - 1
    levels = (
        [0, min(1, top), top // 3, top]
        if part == "whole"
        else sorted({0, 1, min(top, 255) // 2, min(top, 255)})
    )
    got = np.asarray(images.decode(make(levels, size, **how), case))[0, :, 0].astype(float)
    expected = np.array(levels) * 255 / top
    assert np.abs(got - (255 - expected if how.get("white") else expected)).max() <= 1
    if make is png and size == 16:
        assert got.tolist() == [level // 257 for level in levels]


def test_16_bits_of_colour_and_of_alpha_are_scaled_as_those_of_grey():
    dark, white = 257 * 9, 65535
    for kind, pixels in ((2, [dark] * 3), (4, [dark, white]), (6, [dark] * 3 + [white])):
        assert np.asarray(images.decode(png(pixels, 16, kind), "a")).flatten().tolist() == [9, 9, 9]
    for kind, pixels in ((4, [dark, 0]), (6, [dark] * 3 + [0])):
        assert np.asarray(images.decode(png(pixels, 16, kind), "a")).min() == 255


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_transparent_level_of_a_grey_png_counts_in_its_own_depth(bits):
    extra = chunk(b"tRNS", struct.pack(">H", 1))
    got = np.asarray(images.decode(png([0, 1, 2], bits, extra=extra), "a"))[0, :, 0]
    assert got.tolist() == [0, 255, 2 * 255 // (2**bits - 1)]


@pytest.mark.parametrize(
    "content",
    [
        tiff([0, 5], 16, kind=2),
        tiff([0, 5], 8, kind=2),
        tiff([0, 5], 32),
        tiff([0, 5], 32, kind=2),
        tiff([0, 0], 32, kind=3),
    ],
)
def test_numbers_without_a_known_white_are_refused(content):
    with pytest.raises(DataError, match="whose range is unknown"):
        images.decode(content, "a")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("tif", {"compression": "jpeg"}),
        ("png", {}),
        ("jpg", {}),
        ("webp", {}),
    ],
)
def test_a_tag_of_orientation_turns_no_image_of_any_kind(tmp_path, suffix, how, orientation):
    """Pillow turns a TIFF, and no other, while it reads it; published numbers turn none."""
    pixels = (
        np.random.default_rng(0).integers(0, 255, (2, 3, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    plain, tagged = tmp_path / f"plain.{suffix}", tmp_path / f"tagged.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(plain, **how)
    Image.fromarray(pixels).save(tagged, exif=exif, **how)
    assert images.read(tagged).size == (24, 16)
    assert np.array_equal(images.read(tagged), images.read(plain))


def test_one_pixel_is_an_image(tmp_path):
    got = images.load(saved(tmp_path, Image.new("RGB", (1, 1), (9, 8, 7))), 8)
    assert got.flatten(1).unique(dim=1).tolist() == [[9], [8], [7]]


def bomb(path, width, height):
    """A PNG of a few bytes that claims width x height pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "kind",
    ["empty", "page", "half", "bomb", "big", "long", "gone", "loop", "float", "folder", "pipe"],
)
def test_what_is_no_image_is_one_error_that_names_the_file(tmp_path, kind):
    path = tmp_path / ("odd.tiff" if kind == "float" else "odd.png")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "page":
        path.write_text("<html>404</html>")
    elif kind == "half":
        picture(5, 200, 200).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind in ("bomb", "big", "long"):
        bomb(
            path, *{"bomb": (60_000, 60_000), "big": (14_000, 14_000), "long": (1, 2_000_000)}[kind]
        )
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        os.symlink(path, path)
    elif kind == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=r"odd\.(png|tiff).*(Fetch it again|remove it)"):
        images.read(path)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000))
def test_a_damaged_jpeg_is_an_image_or_a_data_error(tmp_path_factory, cut, flip):
    path = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    picture(7, 120, 90).save(path, quality=90)
    content = bytearray(path.read_bytes())
    content[flip % len(content)] ^= 0xFF
    path.write_bytes(bytes(content[: len(content) - cut % len(content)]))
    assert read_or_named(path)


def read_or_named(path):
    """True where an image is read, or refused by its name."""
    try:
        return images.load(path, 16).shape == (3, 16, 16)
    except DataError as error:
        return path.name in str(error)


def test_a_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="size"):
        images.centre_crop(picture(0), 0)


OTHERS = (
    "DDS",
    "ICO",
    "PCX",
    "TGA",
    "SGI",
    "JPEG2000",
    "QOI",
    "EPS",
    "ICNS",
    "DIB",
    "PDF",
    "TIFF of a kind unknown",
)


@pytest.mark.parametrize("kind", OTHERS)
def test_an_image_of_another_kind_is_left_out_by_name_whatever_it_is_called(tmp_path, kind):
    path = tmp_path / "a.jpg"
    if kind in OTHERS[:-1]:
        picture(0, 32, 32).save(path, kind)
    else:
        path.write_bytes(tiff([0, 5], 24, order=">"))
    with pytest.raises(DataError, match=r"a\.jpg cannot be read as any of JPEG, PNG"):
        images.load(path, 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO"])
def test_what_is_an_image_is_read_whatever_it_is_called_and_of_many_frames_the_first(
    tmp_path, kind
):
    path, frames = (
        tmp_path / "a.jpg",
        [picture(i, 24, 16).convert("P" if kind == "GIF" else "RGB") for i in range(3)],
    )
    more = {"save_all": True, "append_images": frames[1:]} if kind not in ("BMP", "PPM") else {}
    frames[0].save(path, kind, **({"lossless": True} if kind == "WEBP" else {}), **more)
    got, first = (
        np.asarray(images.read(path)).astype(int),
        np.asarray(frames[0].convert("RGB")).astype(int),
    )
    assert np.abs(got - first).mean() < (8 if kind == "MPO" else 0.01)


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("kind"),
        MemoryError(),
        RecursionError("deep"),
        struct.error("short"),
        zlib.error("-3"),
        KeyError(7),
        ZeroDivisionError(),
        UserWarning("odd"),
        AssertionError(),
        TypeError("none"),
    ],
)
def test_whatever_a_decoder_raises_is_its_file_s(tmp_path, monkeypatch, error):
    picture(0).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(DataError, match=r"a\.png cannot be decoded \(.+\)"):
        images.load(tmp_path / "a.png", 8)


def test_texts_and_profiles_of_a_png_are_bounded(tmp_path):
    big = zlib.compress(bytes(2**24), 9)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        (tmp_path / "a.png").write_bytes(png([0, 255], 8, extra=chunk(kind, head + big)))
        assert read_or_named(tmp_path / "a.png")


def test_remarks_of_pillow_are_silent_from_several_threads_and_filters_stay_as_they_were(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30] + [0] * 765)
    image.save(
        tmp_path / "a.png", transparency=bytes([0] * 256)
    )  # "should be converted to RGBA images", if it is not
    with Image.open(tmp_path / "a.png") as opened, pytest.warns(UserWarning, match="RGBA"):
        opened.convert("RGB")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: images.load(tmp_path / "a.png", 8), range(200)))) == 200
    assert warnings.filters == before


def adm(image, size):
    """The crop as ADM's loader computes it, whatever it costs."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_the_crop_is_adm_s_bit_for_bit(width, height, size, seed):
    image = picture(seed, width, height)
    assert images.centre_crop(image, size).tobytes() == adm(image, size).tobytes()


@pytest.mark.parametrize(
    "shape", [(20_000, 1), (1, 20_000), (3000, 2), (7, 9000), (90_000, 300), (1_000_000, 1)]
)
def test_a_long_image_is_cropped_before_it_is_scaled(shape, monkeypatch):
    image, sizes, plain = picture(3, *shape), [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *rest: (sizes.append(size), plain(self, size, *rest))[1],
    )
    assert images.centre_crop(image, 256).size == (256, 256)
    assert all(width * height <= 2**24 for width, height in sizes)


def test_a_crop_of_part_of_an_image_is_that_of_the_whole(monkeypatch):
    monkeypatch.setattr(images, "RESIZED", 0)
    for seed, shape in enumerate(
        [(40, 90), (90, 40), (17, 300), (300, 17), (33, 34), (64, 64), (5, 61)]
    ):
        for size in (8, 30, 48):
            image = picture(seed, *shape)
            assert (
                np.abs(
                    np.asarray(images.centre_crop(image, size)).astype(int)
                    - np.asarray(adm(image, size))
                ).max()
                <= 2
            )


def test_of_an_image_that_is_not_there_nobody_says_to_remove_it(tmp_path):
    with pytest.raises(DataError) as error:
        images.read(tmp_path / "a.png")
    assert str(error.value) == f"{tmp_path / 'a.png'} is not there. Fetch it again."
