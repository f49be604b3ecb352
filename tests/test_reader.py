"""The reader that judges pictures of `words`: what it must answer, and how pictures are scored."""

import pytest
import torch

from cfm_lite.data import words
from cfm_lite.data.captions import COLOURS, KINDS, SIZES, Scene, Thing, parse
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate import reader as module
from cfm_lite.evaluate.reader import HEADS, Reader, reading, score_of, train_reader

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


def test_turning_keeps_a_picture_in_its_frame():
    x = words.load("judge", 8).x1
    turned = module._turned(x, torch.Generator().manual_seed(0))
    assert turned.shape == x.shape
    assert 0.01 < float((turned - x).abs().mean()) < 0.3


def test_other_pictures_are_refused():
    for x in (torch.zeros(2, 1, 28, 28), torch.zeros(2, 3, 16, 16)):
        with pytest.raises(ConfigError, match="pictures are"):
            Reader().read(x)
    with pytest.raises(ConfigError, match="floating"):
        Reader().read(torch.zeros(2, 3, 32, 32, dtype=torch.long))
    with pytest.raises(ConfigError, match="2 pictures and 1 scenes"):
        score_of(Reader(), torch.zeros(2, 3, 32, 32), [Scene((SEVEN,))])
