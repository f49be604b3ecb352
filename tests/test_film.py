"""The moving picture of a sampling run holds every state, pixel by pixel, and loops."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cfm_lite.course import figures
from cfm_lite.errors import ConfigError


def frames(picture) -> list[np.ndarray]:
    png = Image.open(io.BytesIO(picture.data))
    assert (png.format, png.info["loop"]) == ("PNG", 0)  # what every page of a notebook can show
    found = []
    for number in range(png.n_frames):
        png.seek(number)
        found.append(np.asarray(png.convert("L")))
    return found


def test_every_state_is_a_picture_with_its_images_side_by_side():
    states = torch.linspace(-1, 1, 3)[:, None, None, None, None].repeat(1, 2, 1, 4, 4)
    states[:, 1] = -1  # the second image stays black
    picture = figures.film(states, enlarge=4)
    shown = frames(picture)
    assert picture.width == 32
    assert [frame.shape for frame in shown] == 3 * [(8, 16)]
    assert [int(frame[0, 0]) for frame in shown] == pytest.approx([0, 128, 255], abs=1)
    assert all(frame[:, 8:].max() == 0 for frame in shown)


def test_colours_stay_colours():
    states = torch.zeros(2, 1, 3, 4, 4)
    states[1] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]  # red
    png = Image.open(io.BytesIO(figures.film(states, enlarge=1).data))
    png.seek(1)
    assert np.asarray(png.convert("RGB"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (2, 1, 2, 4, 4)])
def test_what_is_no_row_of_images_is_refused(shape):
    with pytest.raises(ConfigError):
        figures.film(torch.zeros(shape))
