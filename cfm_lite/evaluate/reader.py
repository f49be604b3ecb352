"""The judge of `words`: it reads a picture back, and scores pictures against captions.

    picture (B, 3, 32, 32) in [-1, 1]  ->  one or two things: kind, colour, size, and how they lie

Things are what differs from the background. Blank lines between two of them tell them apart. Each
is cut out, and a small network names it. It learns from pictures of digits that no generator has
seen, and shares no code with what draws them. The things of a picture are read from left to right,
or from the top down, so a picture has one reading, from whichever thing its caption speaks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from cfm_lite._internal.checks import check_count, check_floating, check_rows, full_precision
from cfm_lite._internal.networks import made_in_float32, seeded
from cfm_lite.data import words
from cfm_lite.data.captions import (
    COLOURS,
    KINDS,
    RELATIONS,
    SIZES,
    Scene,
    Thing,
    is_held_out,
    parse,
    shows,
)
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.judges import SHIPPED, Kept, load_judge, save_judge
from cfm_lite.models.classifier import one_thread

__all__ = [
    "Reader",
    "Score",
    "one_word_off",
    "reader_for",
    "reading",
    "rejected",
    "score_of",
    "score_table",
    "scores",
    "train_reader",
]

FILE = SHIPPED / "judge-words.safetensors"
INK = 0.3  # a pixel belongs to a thing if a channel in [0, 1] differs by more from the background
APART = 2  # blank lines between two things
CUT = 16  # the side of a thing that is cut out
# what is read of a picture: the name of each answer, and what it may be
HEADS = {
    "things": ("one", "two"),
    "axis": ("across", "down"),
    **{f"kind{slot}": KINDS for slot in (1, 2)},
    **{f"colour{slot}": COLOURS for slot in (1, 2)},
    **{f"size{slot}": SIZES for slot in (1, 2)},
}


class Found(NamedTuple):
    """Whether pictures hold `two` things (N,) and those lie one above the other, `down` (N,); for
    the first and the second thing its ink (N, 2, 32, 32), its centre (N, 2, 2) as (a, b) and its
    longer side (N, 2) in pixels, and its colour (N, 2, 3).
    """

    two: Tensor
    down: Tensor
    ink: Tensor
    centre: Tensor
    side: Tensor
    colour: Tensor


def find(x: Tensor) -> Found:
    """The things of pictures `x` (N, 3, 32, 32), without a network."""
    n, lines = len(x), torch.arange(words.SIDE, device="cpu")
    x = (x.detach().cpu().float() + 1) / 2
    ink = (x - x.flatten(2).median(2).values[:, :, None, None]).abs().amax(1)  # (N, 32, 32)
    marked = ink > INK
    across, down = (_blank(marked.any(dim)) for dim in (1, 2))
    is_down = down[0] > across[0]
    blank, end = torch.where(is_down, torch.stack(down), torch.stack(across))
    two = blank >= APART
    # a thing without a second one is all of the picture
    end = torch.where(two, end, words.SIDE)[:, None, None]
    first = torch.where(is_down[:, None, None], lines[:, None], lines) < end
    own = marked[:, None] & torch.stack([first, ~first], dim=1)  # (N, 2, 32, 32)
    ink = ink[:, None] * torch.stack([first, ~first], dim=1)
    ends = []
    for dim in (2, 3):  # columns, rows
        filled = own.any(dim)  # (N, 2, 32)
        low = torch.where(filled, lines, words.SIDE).amin(-1)
        high = torch.where(filled, lines, -1).amax(-1) + 1
        ends.append(torch.where(filled.any(-1), torch.stack([low, high]), 0))
    (left, right), (top, bottom) = ends
    centre = torch.stack([left + right, top + bottom], dim=-1).float() / 2
    side = torch.maximum(right - left, bottom - top).clamp(min=1).float()
    # the fullest pixels have the colour: others are mixed with the background
    weight = ink.flatten(2) ** 4
    colour = (weight @ x.flatten(2).mT) / weight.sum(-1, keepdim=True).clamp(min=1e-6)
    return Found(two, is_down & two, ink, centre.expand(n, 2, 2), side, colour)


def _blank(filled: Tensor) -> tuple[Tensor, Tensor]:
    """The most blank lines between filled ones of `filled` (N, S), and where they end."""
    run, most, end = torch.zeros_like(filled[:, 0].expand(3, -1), dtype=torch.long)
    begun = torch.zeros_like(filled[:, 0])
    for line, here in enumerate(filled.unbind(1)):
        longer = here & begun & (run > most)
        most, end = torch.where(longer, run, most), torch.where(longer, line, end)
        run, begun = torch.where(here, 0, run + 1), begun | here
    return most, end


def cut(ink: Tensor, centre: Tensor, side: Tensor, moved: Tensor | None = None) -> Tensor:
    """Things (M, 1, 16, 16), full at 1, of ink (M, 32, 32), around their centres (M, 2) and scaled
    to one size. `moved` (M, 2, 3) are affine maps of what is cut out.
    """
    half = (side / 2 + 1) / (words.SIDE / 2)
    maps = torch.eye(2, 3, dtype=ink.dtype, device=ink.device).expand(len(ink), 2, 3)
    maps = maps if moved is None else moved
    maps = half[:, None, None] * maps
    to = centre / (words.SIDE / 2) - 1
    maps = torch.cat([maps[:, :, :2], maps[:, :, 2:] + to[:, :, None]], dim=2)
    grid = F.affine_grid(maps, [len(ink), 1, CUT, CUT], align_corners=False)
    shown = F.grid_sample(ink[:, None], grid, align_corners=False)
    return shown / shown.flatten(1).amax(1).clamp(min=0.1)[:, None, None, None]


class Reader(Kept):
    """Reads pictures (B, 3, 32, 32). Raises ConfigError for another shape or for integers.

    >>> len(Reader().eval().read(-torch.ones(2, 3, 32, 32)))
    2
    """

    def __init__(self, dataset: str = "words", width: int = 32) -> None:
        super().__init__(dataset)
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
        )
        features = 2 * width * (CUT // 4) ** 2
        self.kind = nn.Linear(features, len(KINDS))
        self.size = nn.Linear(features + 1, len(SIZES))
        self.colour = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, len(COLOURS)))

    def name(self, shown: Tensor, side: Tensor, colour: Tensor) -> dict[str, Tensor]:
        """Logits of kind, colour and size (M, answers) of things that are cut out."""
        seen = self.body(shown)
        return {
            "kind": self.kind(seen),
            "colour": self.colour(colour),
            "size": self.size(torch.cat([seen, side[:, None] - 11], dim=1)),
        }

    @full_precision()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, answers) of each head.

        Raises ConfigError for pictures of another shape, of integers, or of numbers that are not
        finite, and for none.
        """
        check_floating(x=x)
        if tuple(x.shape[1:]) != (3, words.SIDE, words.SIDE) or not len(x):
            raise ConfigError(
                f"x has shape {tuple(x.shape)}; pictures are (B, 3, 32, 32), with B at least 1."
            )
        # a picture of NaN would be read as a thing like any other
        check_rows("x", x.cpu())
        found = find(x)
        told = {
            "things": F.one_hot(found.two.long(), 2).float(),
            "axis": F.one_hot(found.down.long(), 2).float(),
        }
        for slot in (0, 1):
            ink, centre, side, colour = (part[:, slot] for part in found[2:])
            named = self.name(cut(ink, centre, side), side, colour)
            told |= {f"{name}{slot + 1}": logits for name, logits in named.items()}
        return told

    @torch.no_grad()
    def read(self, x: Tensor, chunk: int = 1024) -> list[Scene]:
        """What each picture of `x` (N, 3, 32, 32) shows.

        Raises ConfigError for a chunk below 1.
        """
        parts = x.split(check_count("chunk", chunk))
        answers = [
            {name: logits.argmax(1).tolist() for name, logits in self(part).items()}
            for part in parts
        ]
        return [scene for part in answers for scene in _scenes(part)]


def _scenes(answers: dict[str, list[int]]) -> Iterator[Scene]:
    for row in zip(*answers.values()):
        told = {name: HEADS[name][answer] for name, answer in zip(answers, row)}
        first, second = (
            Thing(told[f"kind{slot}"], told[f"colour{slot}"], told[f"size{slot}"])
            for slot in (1, 2)
        )
        if told["things"] == "one":
            yield Scene((first,))
        else:
            yield Scene((first, second), "left" if told["axis"] == "across" else "above")


def reading(scene: Scene) -> dict[str, int]:
    """The right answers {head: number} for a picture of `scene`, whose sizes are named.

    >>> scene = Scene((Thing("seven", "red", "small"),))
    >>> reading(scene)["kind1"], KINDS.index("seven")
    (7, 7)
    """
    things, relation = scene
    if relation in ("right", "below"):
        things = things[::-1]
    right = {"things": len(things) - 1, "axis": int(relation in ("above", "below"))}
    for slot, thing in enumerate((things[0], things[-1]), 1):
        right |= {
            f"kind{slot}": KINDS.index(thing.kind),
            f"colour{slot}": COLOURS.index(thing.colour),
            f"size{slot}": SIZES.index(thing.size or SIZES[0]),
        }
    return right


class Score(NamedTuple):
    """Shares in [0, 1] of pictures with everything right, and with each part right.

    >>> Score(right=0.9, kinds=0.95, colours=1.0, sizes=0.97, relation=0.98).right
    0.9
    """

    right: float
    kinds: float
    colours: float
    sizes: float
    relation: float


def score_of(reader: Reader, pictures: Tensor, asked: Sequence[Scene]) -> Score:
    """How many `pictures` (N, 3, 32, 32) show what was `asked`. Raises ConfigError unless there is
    a scene for each.

    >>> shown = words.load("seen", 8)
    >>> score_of(reader_for(), shown.x1, shown.scenes).colours
    1.0
    """
    _check_counts(pictures, asked)
    seen = reader.read(pictures)
    whole = [shows(a, s) for a, s in zip(asked, seen)]
    parts = [[same(a, s) for a, s in zip(asked, seen)] for same in (_kinds, _colours, _sizes, _lie)]
    return Score(*(sum(hits) / len(asked) for hits in (whole, *parts)))


def _check_counts(pictures: Tensor, asked: Sequence[Scene]) -> None:
    if len(pictures) != len(asked) or not len(asked):
        raise ConfigError(
            f"there are {len(pictures)} pictures and {len(asked)} scenes asked for; give one scene "
            "for each picture, and at least one picture."
        )


def _in_order(asked: Scene, seen: Scene) -> Iterator[tuple[Thing, Thing]]:
    """Each thing asked for beside the one that is seen in its place."""
    things = asked.things[::-1] if asked.relation in ("right", "below") else asked.things
    return zip(things, seen.things)


def _kinds(asked: Scene, seen: Scene) -> bool:
    return sorted(t.kind for t in asked.things) == sorted(t.kind for t in seen.things)


def _colours(asked: Scene, seen: Scene) -> bool:
    return sorted(t.colour for t in asked.things) == sorted(t.colour for t in seen.things)


def _sizes(asked: Scene, seen: Scene) -> bool:
    return all(a.size in (None, s.size) for a, s in _in_order(asked, seen))


def _lie(asked: Scene, seen: Scene) -> bool:
    """The things lie as asked: along the right axis, and the first kind where it belongs."""
    if asked.relation is None or seen.relation is None:
        return asked.relation == seen.relation
    same_axis = (asked.relation in ("left", "right")) == (seen.relation == "left")
    return same_axis and all(a.kind == s.kind for a, s in _in_order(asked, seen))


def one_word_off(scene: Scene, g: np.random.Generator) -> Scene:
    """A scene that differs from `scene` in one word, and that no picture of `scene` shows.

    >>> scene = Scene((Thing("seven", "red", "small"),))
    >>> one_word_off(scene, np.random.default_rng(0)) == scene
    False
    """
    parts = ["kind", "colour", "size"] + ["relation"] * (scene.relation is not None)
    while True:
        part, which = parts[g.integers(len(parts))], int(g.integers(len(scene.things)))
        thing = scene.things[which]
        if part == "relation":
            other = scene._replace(relation=RELATIONS[g.integers(len(RELATIONS))])
        else:
            names = {"kind": KINDS, "colour": COLOURS, "size": SIZES}[part]
            changed = thing._replace(**{part: names[g.integers(len(names))]})
            things = list(scene.things)
            things[which] = changed
            other = scene._replace(things=tuple(things))
        if not shows(other, scene):
            return other


def rejected(reader: Reader, pictures: Tensor, shown: Sequence[Scene]) -> float:
    """The share of `pictures` (N, 3, 32, 32) that do not show, says the reader, what a caption with
    one wrong word asks for.

    >>> shown = words.load("seen", 8)
    >>> rejected(reader_for(), shown.x1, shown.scenes)
    1.0
    """
    g = np.random.default_rng(0)
    return 1 - score_of(reader, pictures, [one_word_off(scene, g) for scene in shown]).right


def scores(reader: Reader, pictures: Tensor, captions: Sequence[str]) -> list[dict[str, Any]]:
    """Rows {metric, prompts, things, count, value}: each part of the `Score` of `pictures`
    (N, 3, 32, 32), apart for combinations that training shows ("seen") and those that it never
    does ("held_out"), and for one and two things. Raises ConfigError unless there is a caption for
    each, and as `parse` does.

    >>> rows = scores(reader_for(), words.load("seen", 1).x1, ["a small red seven"])
    >>> [(row["metric"], row["prompts"]) for row in rows][0]
    ('right', 'seen')
    """
    asked = [parse(caption) for caption in captions]
    _check_counts(pictures, asked)
    groups: dict[tuple[str, int], list[int]] = {
        (prompts, things): [] for prompts in ("seen", "held_out") for things in (1, 2)
    }
    for row, scene in enumerate(asked):
        groups["held_out" if is_held_out(scene) else "seen", len(scene.things)].append(row)
    return [
        {"metric": metric, "prompts": prompts, "things": things, "count": len(rows), "value": value}
        for (prompts, things), rows in groups.items()
        if rows
        for metric, value in score_of(reader, pictures[rows], [asked[row] for row in rows])
        ._asdict()
        .items()
    ]


def score_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table of the rows of `scores`.

    >>> row = {"prompts": "seen", "things": 1, "count": 8, "value": 1.0}
    >>> print(score_table([row | {"metric": name} for name in Score._fields])[1])
    seen, one thing               8    100.0%    100.0%    100.0%    100.0%    100.0%
    """
    lines = [" " * 24 + "prompts" + "".join(f"{metric:>10}" for metric in Score._fields)]
    for first in range(0, len(rows), len(Score._fields)):
        group = rows[first : first + len(Score._fields)]
        prompts, things, count = (group[0][name] for name in ("prompts", "things", "count"))
        called = f"{prompts.replace('_', ' ')}, {'one thing' if things == 1 else 'two things'}"
        shares = "".join(f"{row['value']:>10.1%}" for row in group)
        lines.append(f"{called:<24}{count:>7}{shares}")
    return lines


@made_in_float32()
def train_reader(*, seed: int = 0, pictures: int = 8_000, epochs: int = 16) -> Reader:
    """A frozen reader, two minutes of one core; the global random state stays as it was.

    Its `accuracy` is the share of 2,000 other pictures, with digits that it has not seen, that it
    reads without an error.
    """
    shown = words.load("judge", pictures, seed=seed)
    right = {name: torch.tensor([reading(scene)[name] for scene in shown.scenes]) for name in HEADS}
    with seeded(seed):
        reader = Reader()
        with one_thread():
            _fit(reader, find(shown.x1), right, epochs, Generator().manual_seed(seed))
    reader.requires_grad_(False).eval()
    seen = words.load("seen", min(2_000, pictures), seed=seed + 1)
    reader.seed, reader.accuracy = seed, score_of(reader, seen.x1, seen.scenes).right
    return reader


def _moved(n: int, generator: Generator) -> Tensor:
    """`n` affine maps (n, 2, 3) near the identity: a few digits are many."""
    turn, slant, *rest = torch.rand(6, n, generator=generator, device="cpu") * 2 - 1
    turn, slant = turn * math.radians(15), 0.15 * slant
    wide, high, right, down = (0.15 * part for part in rest)
    cos, sin = turn.cos(), turn.sin()
    rows = (
        torch.stack([cos * wide.exp(), cos * wide.exp() * slant - sin * high.exp(), right], dim=1),
        torch.stack([sin * wide.exp(), sin * wide.exp() * slant + cos * high.exp(), down], dim=1),
    )
    return torch.stack(rows, dim=1)


def _fit(
    reader: Reader, found: Found, right: dict[str, Tensor], epochs: int, generator: Generator
) -> None:
    # the rows of things: both of a picture with two
    rows = torch.cat([torch.arange(len(found.two)), found.two.nonzero()[:, 0]])
    slots = torch.cat([torch.zeros(len(found.two)), torch.ones(int(found.two.sum()))]).long()
    ink, centre, side, colour = (part[rows, slots] for part in found[2:])
    y = {
        name: torch.where(slots == 0, right[f"{name}1"][rows], right[f"{name}2"][rows])
        for name in ("kind", "colour", "size")
    }
    batch = 128
    steps = epochs * (len(rows) // batch)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator, device="cpu")
        for some in order[: len(rows) // batch * batch].split(batch):
            noise = 0.03 * torch.randn(len(some), *ink.shape[1:], generator=generator, device="cpu")
            tint = 0.02 * torch.randn(len(some), 3, generator=generator, device="cpu")
            shown = cut(ink[some] + noise, centre[some], side[some], _moved(len(some), generator))
            logits = reader.name(shown, side[some], colour[some] + tint)
            loss = sum(
                F.cross_entropy(logits[name], y[name][some], label_smoothing=0.05) for name in y
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()


@cache
def reader_for() -> Reader:
    """The shipped reader, frozen. Raises CheckpointError or CheckpointCorruptError if its file is
    missing or damaged.
    """
    return load_judge(FILE, Reader)


def _table(reader: Reader, pictures: int = 4_000) -> Iterator[str]:
    """What the reader reads of real pictures with digits that it has not seen."""
    for split in ("seen", "held_out"):
        shown = words.load(split, pictures, seed=2)
        score = score_of(reader, shown.x1, shown.scenes)
        parts = ", ".join(f"{name} {share:.2%}" for name, share in score._asdict().items())
        yield f"{split}, {pictures:,} real pictures: {parts}"
        wrong = rejected(reader, shown.x1, shown.scenes)
        yield f"{split}, the same under captions with one wrong word: rejected {wrong:.2%}"


# python -m cfm_lite.evaluate.reader: the recorded command that made the shipped reader
if __name__ == "__main__":
    save_judge(train_reader(), FILE)
    print("\n".join(_table(load_judge(FILE, Reader))))
