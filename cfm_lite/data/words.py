"""Pictures in colour with captions, drawn from scikit-learn's real digits and five shapes.

    "a red seven left of a blue star"  ->  x1 (3, 32, 32) in [-1, 1]

The background is a dark grey, each colour varies a little, and some colours lie near each other.
One thing stands in the middle of the picture, two in the middles of its halves. A picture depends
on the seed, the split and its number alone. "train" and "seen" show the same combinations, with
other pictures; "held_out" shows those that training never does (`captions.is_held_out`). Digits of
"train" are those that generators learn from; "judge" shows all combinations with the other half of
the digits, for the reader that judges pictures.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite.data import digits
from cfm_lite.data.captions import (
    COLOURS,
    DIGITS,
    FORMS,
    KINDS,
    RELATIONS,
    SIZES,
    Scene,
    Thing,
    encode,
    is_held_out,
    sentence,
)
from cfm_lite.draws import keyed_generator

__all__ = ["SIDE", "SPLITS", "Pictures", "Standard", "load", "render", "scenes"]

SIDE = 32
GAP = 2  # blank pixels between the halves of a picture with two things
SPLITS = {  # the rows of the real digits, and whether held-out combinations are shown (None: both)
    "train": ("train", False),
    "seen": ("train", False),
    "held_out": ("train", True),
    "judge": ("judge", None),
}
PIXELS = {"small": 10, "large": 14}  # the side of a thing
RGB = {
    "red": (0.88, 0.10, 0.12),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.13, 0.65, 0.22),
    "cyan": (0.15, 0.78, 0.82),
    "blue": (0.16, 0.33, 0.92),
    "purple": (0.52, 0.20, 0.78),
    "pink": (0.97, 0.55, 0.75),
}
VARIES = 0.05  # each channel of a colour, on both sides
MEAN, STD = -0.68, 0.3  # of all values: most of a picture is background


class Pictures(NamedTuple):
    """Pictures `x1` (N, 3, 32, 32) in [-1, 1], their captions as word numbers `y` (N, 16), and the
    scenes that they show.

    >>> load("seen", 2).scenes[0].things[0].colour
    'green'
    """

    x1: Tensor
    y: Tensor
    captions: list[str]
    scenes: list[Scene]


class Standard:
    """The codec of these pictures: z = (x - MEAN) / STD has mean 0 and standard deviation 1.

    So the noise levels of a path, which meets noise of standard deviation 1, are those of the data.

    >>> Standard().encode(torch.tensor([-0.68, -0.38]))
    tensor([0., 1.])
    """

    def encode(self, x: Tensor) -> Tensor:
        """What a network learns from pictures in [-1, 1]."""
        return (x - MEAN) / STD

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of what a network draws."""
        return z * STD + MEAN


def load(split: str = "train", n: int = 20_000, *, seed: int = 0) -> Pictures:
    """The first `n` pictures of a split. Raises ConfigError for an unknown split.

    >>> load("seen", 1).x1.shape
    torch.Size([1, 3, 32, 32])
    """
    check_choice("split", split, SPLITS)
    n, seed = check_count("n", n), check_count("seed", seed, low=0)
    g = np.random.default_rng(keyed_generator("cpu", seed, "words", split).initial_seed())
    x1 = np.empty((n, 3, SIDE, SIDE), np.float32)
    said, shown = [], []
    for row, scene in zip(range(n), scenes(g, SPLITS[split][1])):
        x1[row] = render(scene, g, split)
        told = scene
        if g.random() < 0.5:  # half of the captions name no size
            told = scene._replace(things=tuple(t._replace(size=None) for t in scene.things))
        said.append(
            sentence(told, int(g.integers(FORMS)), (g.random(8) < 0.25).astype(int).tolist())
        )
        shown.append(scene)
    return Pictures(torch.from_numpy(x1).mul_(2).sub_(1), encode(said), said, shown)


def scenes(g: np.random.Generator, held_out: bool | None = None) -> Iterator[Scene]:
    """Endless scenes with every size named, two of three with two things; only held-out ones, only
    others, or, with None, both.

    >>> is_held_out(next(scenes(np.random.default_rng(0), held_out=True)))
    True
    """
    while True:
        things = tuple(
            Thing(*(_pick(g, names) for names in (KINDS, COLOURS, SIZES)))
            for _ in range(2 if g.random() < 2 / 3 else 1)
        )
        scene = Scene(things, _pick(g, RELATIONS) if len(things) == 2 else None)
        if held_out is None or is_held_out(scene) == held_out:
            yield scene


def render(scene: Scene, g: np.random.Generator, split: str = "train") -> np.ndarray:
    """A picture (3, 32, 32) float32 in [0, 1] of a scene, with digits of `split`.

    >>> render(Scene((Thing("star", "red"),)), np.random.default_rng(0)).shape
    (3, 32, 32)
    """
    sides = [PIXELS[thing.size or _pick(g, SIZES)] for thing in scene.things]
    picture = np.full((3, SIDE, SIDE), g.uniform(0.02, 0.22), np.float32)
    for thing, side, (top, left) in zip(scene.things, sides, _places(scene.relation, sides)):
        colour = np.array(RGB[thing.colour]) + g.uniform(-VARIES, VARIES, 3)
        mask = _mask(thing.kind, side, g, split)
        part = picture[:, top : top + side, left : left + side]
        part += mask * (colour.clip(0, 1).astype(np.float32)[:, None, None] - part)
    return picture


def _pick(g: np.random.Generator, names: Sequence[Any]) -> Any:
    return names[int(g.integers(len(names)))]


def _places(relation: str | None, sides: list[int]) -> list[tuple[int, int]]:
    """(top, left) of each thing: in the middle of the picture, or of its half."""
    if relation is None:
        middle = (SIDE - sides[0]) // 2
        return [(middle, middle)]
    half = (SIDE - GAP) // 2
    places = []
    for number, side in enumerate(sides):
        first = (number == 0) == (relation in ("left", "above"))
        along = (half - side) // 2 + (0 if first else half + GAP)
        across = (SIDE - side) // 2
        places.append((along, across) if relation in ("above", "below") else (across, along))
    return places


def _mask(kind: str, side: int, g: np.random.Generator, split: str) -> np.ndarray:
    """The share (side, side) in [0, 1] of each pixel that a thing covers."""
    if kind not in DIGITS:
        return _shape(kind, side)
    images = _digits(SPLITS[split][0])[DIGITS.index(kind)]
    resize = _resize(side)
    return (resize @ images[g.integers(len(images))] @ resize.T).clip(0, 1)


@cache
def _digits(rows: str) -> list[np.ndarray]:
    x, y = digits.load(rows)
    ink = ((x[:, 0] + 1) / 2).numpy()  # (n, 8, 8) in [0, 1]
    # the strokes of some are faint; a picture shows its colour
    ink = (1.4 * ink).clip(0, 1)
    return [ink[y.numpy() == digit] for digit in range(10)]


@cache
def _resize(side: int) -> np.ndarray:
    """(side, 8): linear interpolation of a row of 8 pixels."""
    centres = ((np.arange(side) + 0.5) * 8 / side - 0.5).clip(0, 7)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8))).astype(np.float32)


@cache
def _shape(kind: str, side: int) -> np.ndarray:
    """A shape that fills (side, side), each pixel the mean of fine * fine points."""
    fine = 4
    at = (np.arange(side * fine) + 0.5) / (side * fine) * 2 - 1  # in (-1, 1)
    b, a = np.meshgrid(at, at, indexing="ij")  # down, right
    radius, angle = np.hypot(a, b), np.arctan2(a, -b)  # from the top
    if kind == "circle":
        inside = radius < 0.95
    elif kind == "square":
        inside = np.maximum(abs(a), abs(b)) < 0.84
    elif kind == "triangle":
        inside = (b < 0.85) & (abs(a) < (b + 0.95) * 0.55)
    elif kind == "cross":
        inside = (np.minimum(abs(a), abs(b)) < 0.28) & (radius < 1)
    else:  # a star: its edge swings between five points and five notches
        turn = (angle % (2 * math.pi / 5)) / (2 * math.pi / 5)
        half = abs(turn - 0.5) * 2  # 1 at a point, 0 at a notch
        long, short = 1.0, 0.42
        wide = math.pi / 5
        # the straight line from a point (long, 0) to a notch (short, wide)
        theta = (1 - half) * wide
        edge = long * short * math.sin(wide) / (short * np.sin(wide - theta) + long * np.sin(theta))
        inside = radius < edge
    return inside.reshape(side, fine, side, fine).mean((1, 3)).astype(np.float32)
