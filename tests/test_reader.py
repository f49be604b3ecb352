"""The reader that judges pictures of `words`: what it must answer, and how pictures are scored."""

import numpy as np
import pytest
import torch

from cfm_lite.data import captions, words
from cfm_lite.data.captions import COLOURS, KINDS, SIZES, Scene, Thing, parse
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate import reader as module
from cfm_lite.evaluate.reader import (
    HEADS,
    Reader,
    one_word_off,
    reader_for,
    reading,
    rejected,
    score_of,
    score_table,
    scores,
    train_reader,
)

SEVEN, STAR = Thing("seven", "red", "small"), Thing("star", "blue", "large")


class Told(Reader):
    """A reader that sees what it is told."""

    def __init__(self, scenes):
        super().__init__()
        self.scenes = scenes

    def forward(self, x):
        rows = [reading(scene) for scene in self.scenes]
        return {
            name: torch.nn.functional.one_hot(
                torch.tensor([row[name] for row in rows]), len(choices)
            ).float()
            for name, choices in HEADS.items()
        }


def test_things_are_read_from_left_to_right_and_from_the_top_down():
    right = reading(Scene((STAR, SEVEN), "right"))
    assert right == reading(Scene((SEVEN, STAR), "left"))
    assert (right["things"], right["axis"]) == (1, 0)
    assert (right["kind1"], right["kind2"]) == (KINDS.index("seven"), KINDS.index("star"))
    assert (right["colour2"], right["size2"]) == (COLOURS.index("blue"), SIZES.index("large"))
    assert reading(Scene((SEVEN, STAR), "below"))["kind1"] == KINDS.index("star")
    assert reading(Scene((SEVEN,)))["things"] == 0


def test_a_reading_becomes_the_scene_again():
    seen = [Scene((SEVEN, STAR), "left"), Scene((SEVEN, STAR), "above"), Scene((STAR,))]
    assert Told(seen).read(torch.zeros(3, 3, 32, 32)) == seen


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a red seven left of a blue star", (1, 1, 1, 1, 1)),
        ("a blue star right of a small red 7", (1, 1, 1, 1, 1)),
        ("a red six left of a blue star", (0, 0, 1, 1, 0)),
        ("a red seven left of a pink star", (0, 1, 0, 1, 1)),
        ("a large red seven left of a blue star", (0, 1, 1, 0, 1)),
        ("a red seven above a blue star", (0, 1, 1, 1, 0)),
        ("a red star left of a blue seven", (0, 1, 1, 1, 0)),
        ("a red seven", (0, 0, 0, 1, 0)),
    ],
)
def test_each_part_of_a_caption_has_its_own_score(said, expected):
    told = Told([Scene((SEVEN, STAR), "left")])
    assert tuple(score_of(told, torch.zeros(1, 3, 32, 32), [parse(said)])) == expected


def test_the_same_seed_gives_the_same_reader_and_the_global_state_is_left():
    state = torch.random.get_rng_state()
    one, two = (train_reader(pictures=256, epochs=1) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.equal(a, b)
        assert not a.requires_grad


def drawn(*things, size=14):
    """A picture of plain squares of (colour, top, left) on a grey background."""
    x = torch.full((1, 3, 32, 32), -0.8)
    for colour, top, left in things:
        x[0, :, top : top + size, left : left + size] = torch.tensor(colour)[:, None, None]
    return x


def test_things_are_found_where_blank_lines_divide_them():
    red, blue = (0.8, -0.8, -0.8), (-0.6, -0.2, 0.8)
    one = module.find(drawn((red, 3, 5)))
    assert not one.two.item()
    assert one.centre[0, 0].tolist() == [12.0, 10.0]
    assert one.side[0, 0] == 14
    side_by_side = module.find(drawn((blue, 4, 18), (red, 2, 1)))
    assert side_by_side.two.item()
    assert not side_by_side.down.item()
    torch.testing.assert_close(side_by_side.colour[0], (torch.tensor([red, blue]) + 1) / 2)
    stacked = module.find(drawn((red, 16, 3), (blue, 0, 5)))
    assert stacked.down.item()
    torch.testing.assert_close(stacked.colour[0, 0], (torch.tensor(blue) + 1) / 2)
    touching = module.find(drawn((red, 0, 0), (blue, 0, 15)))
    assert not touching.two.item()


def test_an_empty_picture_is_read_without_an_error():
    assert len(Reader().eval().read(drawn())) == 1


def test_cutting_out_scales_every_thing_to_one_size():
    small, large = drawn(((1.0, 1.0, 1.0), 3, 5), size=8), drawn(((1.0, 1.0, 1.0), 10, 2), size=14)
    for x in (small, large):
        ink, centre, side = (part[:, 0] for part in module.find(x)[2:5])
        shown = module.cut(ink, centre, side)[0, 0]
        assert shown[8, 8] > 0.999
        assert shown[0].max() < 0.5  # a margin of a pixel of the picture
        assert (shown > 0.5).float().mean() > 0.5


def test_moving_a_thing_changes_it_a_little():
    ink, centre, side = (part[:, 0] for part in module.find(words.load("judge", 8).x1)[2:5])
    moved = module.cut(ink, centre, side, module._moved(8, torch.Generator().manual_seed(0)))
    assert 0.005 < float((moved - module.cut(ink, centre, side)).abs().mean()) < 0.3


SHOWN = {split: words.load(split, 400, seed=3) for split in ("seen", "held_out")}


@pytest.mark.parametrize("split", SHOWN)
def test_the_shipped_reader_reads_real_pictures(split):
    """The recorded command measures 4,000 of each; here its goal stands with room for chance."""
    shown = SHOWN[split]
    score = score_of(reader_for(), shown.x1, shown.scenes)
    assert min(score) > 0.96
    assert min(score.colours, score.sizes) > 0.99
    assert rejected(reader_for(), shown.x1, shown.scenes) > 0.98


def test_one_wrong_word_is_never_true_of_the_picture():
    g = np.random.default_rng(0)
    for scene in SHOWN["seen"].scenes:
        other = one_word_off(scene, g)
        assert not captions.shows(other, scene)
        same = [a == b for a, b in zip(scene.things, other.things)]
        assert (other.relation == scene.relation) + sum(same) == len(same)  # one part differs


def test_scores_are_apart_for_held_out_combinations_and_for_two_things():
    said = ["a red seven", "a blue seven", "a red seven left of a blue star"]
    assert [captions.is_held_out(parse(text)) for text in said] == [False, True, False]
    told = Told([parse("a red seven")])
    told.read = lambda x, chunk=0: [parse("a red seven")] * len(x)
    rows = scores(told, torch.zeros(3, 3, 32, 32), said)
    right = {(r["prompts"], r["things"]): r["value"] for r in rows if r["metric"] == "right"}
    assert right == {("seen", 1): 1.0, ("seen", 2): 0.0, ("held_out", 1): 0.0}
    lines = score_table(rows)
    assert len(lines) == 4
    assert lines[1].startswith("seen, one thing")
    assert "100.0%" in lines[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_that_is_not_finite_shows_nothing(value):
    """A diverged network draws such pictures. They were read as a red zero."""
    pictures = words.load("seen", 3).x1
    pictures[1, 0, 5, 5] = value
    with pytest.raises(ConfigError, match="x holds NaN or infinite numbers in 1 of 3 rows"):
        reader_for().read(pictures)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        scores(reader_for(), pictures, ["a red zero"] * 3)
    assert len(reader_for().read(pictures[::2])) == 2


def test_other_pictures_are_refused():
    for x in (torch.zeros(2, 1, 28, 28), torch.zeros(2, 3, 16, 16)):
        with pytest.raises(ConfigError, match="pictures are"):
            Reader().read(x)
    with pytest.raises(ConfigError, match="floating"):
        Reader().read(torch.zeros(2, 3, 32, 32, dtype=torch.long))
    with pytest.raises(ConfigError, match="at least 1"):
        Reader().read(torch.zeros(0, 3, 32, 32))


@pytest.mark.parametrize(("pictures", "asked"), [(2, 1), (1, 2), (0, 0)])
def test_each_picture_needs_its_caption(pictures, asked):
    x = torch.zeros(pictures, 3, 32, 32)
    for call in (
        lambda: score_of(Reader(), x, [Scene((SEVEN,))] * asked),
        lambda: scores(Reader(), x, ["a red seven"] * asked),
    ):
        with pytest.raises(ConfigError, match=f"{pictures} pictures and {asked} scenes.*one scene"):
            call()
