"""Image folders: what is found, how it is cropped, and what every odd file becomes."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfm_lite.data import images
from cfm_lite.errors import ConfigError, DataError
from tests.pictures import made_folder, picture


def saved(tmp_path, image, name="image.png", **how):
    image.save(tmp_path / name, **how)
    return tmp_path / name


def test_classes_are_the_sorted_folder_names_and_keys_are_paths(tmp_path):
    found = images.find(made_folder(tmp_path / "set"))
    assert found.classes == ("class0", "class1", "class2")
    assert [file.key for file in found.files] == sorted(file.key for file in found.files)
    assert found.files[0].key == "class0/000.png"
    assert all(found.classes[file.label] == file.key.split("/")[0] for file in found.files)


def test_a_folder_called_train_is_entered(tmp_path):
    inner = images.find(made_folder(tmp_path / "set" / "train"))
    assert images.find(tmp_path / "set") == inner


def test_files_that_are_no_images_and_hidden_ones_are_not_found(tmp_path):
    root = made_folder(tmp_path / "set", classes=1, each=2)
    (root / "class0" / "notes.txt").write_text("x")
    (root / "class0" / "._000.png").write_bytes(b"x")
    (root / ".cache").mkdir()
    assert len(images.find(root).files) == 2


def test_a_loop_of_folders_ends_and_a_linked_folder_is_followed(tmp_path):
    root = made_folder(tmp_path / "set", classes=1, each=2)
    (root / "class0" / "again").symlink_to(root / "class0", target_is_directory=True)
    (root / "class1").symlink_to(root / "class0", target_is_directory=True)
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
    # a grid of single white pixels would alias under a bicubic filter alone; its mean is what is left
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
    got = np.asarray(images.read(saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "red.jpg", quality=95)))
    assert got[..., 0].min() > 230
    assert got[..., 1:].max() < 40


@pytest.mark.parametrize("value", [0, 257, 32896, 65535])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, value):
    path = saved(tmp_path, Image.fromarray(np.full((8, 8), value, np.uint16)))
    assert np.asarray(images.read(path)).max() == np.asarray(images.read(path)).min() == value // 257


def test_one_pixel_is_an_image(tmp_path):
    got = images.load(saved(tmp_path, Image.new("RGB", (1, 1), (9, 8, 7))), 8)
    assert got.flatten(1).unique(dim=1).tolist() == [[9], [8], [7]]


def bomb(path, side=60_000):
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["empty", "page", "half", "bomb", "big", "gone", "loop", "float", "folder"])
def test_what_is_no_image_is_one_error_that_names_the_file(tmp_path, kind):
    path = tmp_path / ("odd.tiff" if kind == "float" else "odd.png")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "page":
        path.write_text("<html>404</html>")
    elif kind == "half":
        picture(5, 200, 200).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind in ("bomb", "big"):
        bomb(path, 60_000 if kind == "bomb" else 14_000)
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
