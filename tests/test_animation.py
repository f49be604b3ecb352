"""The moving picture: it shows the paths that the fields have, on one clock, and the file holds
exactly the pictures it was given.
"""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from cfm_lite import samplers
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.viz import style
from tools import animation, figures

LIMITS = (-3.0, 3.0, -3.0, 3.0)
TS = torch.linspace(0, 1, 5, dtype=torch.float64)
X0 = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)


def attract(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 1.0 - x


def repel(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, -t], dim=1)


def both() -> list[animation.Film]:
    return [
        animation.film("left", attract, X0, TS, marked=(0, 2)),
        animation.film("right", attract, X0, TS, repel=repel, marked=(0, 2), note="the end"),
    ]


def pictures(**settings) -> list[np.ndarray]:
    return list(animation.frames(both(), TS, LIMITS, classes=[0, 1, 0], width=450, **settings))


def test_a_film_follows_the_sum_of_its_two_fields():
    states = torch.stack(
        list(samplers.trajectory(lambda x, t: attract(x, t) + repel(x, t), X0, TS))
    )
    np.testing.assert_array_equal(both()[1].states, states.numpy())
    np.testing.assert_array_equal(both()[0].states[0], X0.numpy())


def test_its_arrows_are_the_fields_at_the_marked_points():
    film = both()[1]
    here = torch.as_tensor(film.states[3])
    np.testing.assert_allclose(film.attract[3], attract(here, TS[3].expand(3))[[0, 2]].numpy())
    np.testing.assert_allclose(film.repel[3], repel(here, TS[3].expand(3))[[0, 2]].numpy())
    assert both()[0].repel is None


def test_there_is_one_picture_per_time_and_all_have_one_size():
    shown = pictures()
    assert len(shown) == len(TS)
    assert {picture.shape for picture in shown} == {shown[0].shape}
    assert shown[0].shape[1:] == (450, 3)
    assert shown[0].dtype == np.uint8
    assert all((a != b).any() for a, b in itertools.pairwise(shown))


def test_the_same_films_give_the_same_pictures_and_the_same_file(tmp_path):
    files = [animation.save_animation(pictures(), tmp_path / name) for name in ("a.webp", "b.webp")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_only_what_moves_changes_between_two_pictures():
    first, second = pictures()[1:3]
    corner = slice(0, 15), slice(0, 225)  # the left panel's title
    np.testing.assert_array_equal(first[corner], second[corner])


def test_the_arrows_go_and_the_note_comes_with_the_last_picture(monkeypatch):
    seen = []
    monkeypatch.setattr(animation, "_advance", _recording(animation._advance, seen))
    pictures()
    notes, arrows = zip(*seen)
    assert notes == (False,) * (2 * len(TS) - 2) + (True, True)
    assert arrows == (True,) * (2 * len(TS) - 2) + (False, False)


def _recording(advance, seen):
    def inside(panel, *rest):
        advance(panel, *rest)
        seen.append(
            (panel.note.get_visible(), all(arrows.get_visible() for arrows, _, _ in panel.pushes))
        )

    return inside


def test_the_second_arrow_starts_where_the_first_one_ends(monkeypatch):
    seen = []
    monkeypatch.setattr(animation, "_draw_panel", lambda *a: seen.append(_draw(*a)) or seen[-1])
    pictures()
    (first, feet, values), (second, tips, _) = seen[1].pushes
    np.testing.assert_allclose(tips, feet + values / second.scale)
    assert (
        first.scale == second.scale == seen[0].pushes[0][0].scale
    )  # one scale for all that is compared


_draw = animation._draw_panel


def test_letters_are_at_least_nine_points_at_nine_hundred_pixels(monkeypatch):
    sizes = []
    pixels = animation._pixels

    def measured(figure):
        wide = 900 / 100 / figure.get_figwidth()
        sizes.extend(
            wide * text.get_fontsize()
            for text in figure.findobj(Text)
            if text.get_text().strip() and text.get_visible()
        )
        return pixels(figure)

    monkeypatch.setattr(animation, "_pixels", measured)
    pictures()
    assert min(sizes) >= 8.99


def test_a_webp_loses_nothing_loops_and_holds_its_ends(tmp_path):
    shown = pictures()
    times = []
    with Image.open(
        animation.save_animation(shown, tmp_path / "a.webp", fps=20, hold=(1.0, 2.0))
    ) as image:
        assert (image.n_frames, image.info["loop"]) == (len(TS), 0)
        for k, picture in enumerate(shown):
            image.seek(k)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)
            times.append(image.info["duration"])
    assert times == [1000, 50, 50, 50, 2000]


def test_a_gif_keeps_white_and_the_rare_colours(tmp_path):
    with Image.open(animation.save_animation(pictures(), tmp_path / "a.gif")) as image:
        assert image.n_frames == len(TS)
        image.seek(2)
        seen = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert seen[0].tolist() == [255, 255, 255]
    for color in (style.ATTRACT, style.REPEL):
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(seen - wanted).sum(1).min() < 30


@pytest.mark.parametrize(
    ("films", "settings", "word"),
    [
        (lambda: [], {}, "empty"),
        (lambda: [both()[0], animation.film("x", attract, X0[:2], TS)], {}, "same S and B"),
        (both, {"ts": TS[:3]}, "same S and B"),
        (both, {"classes": [0, 1, 2]}, "at most 2 classes"),
        (both, {"classes": [0, 1]}, "shape"),
        (both, {"limits": (-1.0, 1.0, -2.0, 2.0)}, "square"),
        (both, {"width": 10}, "width"),
    ],
)
def test_what_does_not_fit_is_refused(films, settings, word):
    asked = {"ts": TS, "limits": LIMITS} | settings
    with pytest.raises(ConfigError, match=word):
        list(animation.frames(films(), asked.pop("ts"), asked.pop("limits"), **asked))


def test_a_field_that_is_not_finite_is_refused():
    with pytest.raises(DivergenceError, match="not finite"):
        animation.film(
            "x",
            lambda x, t: x,
            X0,
            TS,
            repel=lambda x, t: torch.where(t[:, None] < 1, 0 * x, float("nan")),
        )


def test_a_mark_that_is_no_point_is_refused():
    with pytest.raises(ConfigError, match="marked"):
        animation.film("x", attract, X0, TS, marked=(3,))


@pytest.mark.parametrize(
    ("shown", "name", "word"),
    [
        ([], "a.webp", "one size"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], "a.webp", "sizes"),
        ([np.zeros((4, 4), np.uint8)], "a.gif", "uint8 array"),
        ([np.zeros((4, 4, 3))], "a.gif", "uint8 array"),
        ([np.zeros((4, 4, 3), np.uint8)], "a.mp4", "ending"),
    ],
)
def test_pictures_that_cannot_be_saved_are_refused_and_nothing_is_written(
    shown, name, word, tmp_path
):
    with pytest.raises(ConfigError, match=word):
        animation.save_animation(shown, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


RESULTS = figures.RESULTS


def test_the_readme_s_picture_is_small_moves_and_tells_the_measured_numbers():
    path = RESULTS / "fm_against_repulsion.webp"
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert path.stat().st_size <= 2_000_000
    assert (image.n_frames, image.width) == (51, 1080)
    kept = json.loads((RESULTS / "fm_against_repulsion.json").read_text(encoding="utf-8"))
    fresh = figures.rows()
    assert [row["value"] for row in kept] == pytest.approx(
        [row["value"] for row in fresh], abs=1e-3
    )
    told = figures.notes(kept)
    assert (
        "too far apart" in told["delta_fm"]
    )  # a reader is not left to believe that repulsion is free
    assert "%" in told["fm"]


def test_the_picture_says_what_is_true():
    at = {(row["method"], row["metric"]): row["value"] for row in figures.rows(n=1000, steps=50)}
    assert at["fm", "class_gap"] == pytest.approx(at["real", "class_gap"], abs=0.05)
    assert at["fm", "class_spread"] == pytest.approx(at["real", "class_spread"], abs=0.02)
    assert at["delta_fm", "class_gap"] > 1.2 * at["real", "class_gap"]
    assert at["delta_fm", "class_spread"] < 0.7 * at["real", "class_spread"]
    assert at["delta_fm", "nearer_to_the_other"] < 0.2 * at["fm", "nearer_to_the_other"]
