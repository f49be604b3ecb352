"""The judge of `words`: a network that reads a picture back, and the score of pictures against
captions.

    picture (B, 3, 32, 32) in [-1, 1]  ->  one or two things: kind, colour, size, and how they lie

It learns from pictures of digits that no generator has seen, and shares no code with what draws
them. The things of a picture are read from left to right, or from the top down, so a picture has
one reading, from whichever thing its caption speaks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, check_floating, full_precision
from cfm_lite.data import words
from cfm_lite.data.captions import COLOURS, KINDS, SIZES, Scene, Thing, shows
from cfm_lite.errors import ConfigError
from cfm_lite.models.classifier import one_thread

__all__ = ["Reader", "Score", "reading", "score_of", "train_reader"]

WIDTH = 96
# what is read of a picture: the name of each answer, and what it may be
HEADS = {
    "things": ("one", "two"),
    "axis": ("across", "down"),
    **{f"kind{slot}": KINDS for slot in (1, 2)},
    **{f"colour{slot}": COLOURS for slot in (1, 2)},
    **{f"size{slot}": SIZES for slot in (1, 2)},
}
_SECOND = ("axis", "kind2", "colour2", "size2")  # only where there are two things


class Reader(nn.Module):
    """Reads pictures (B, 3, 32, 32). Raises ConfigError for another shape or for integers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, WIDTH, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
        )  # (B, 96, 8, 8)
        # where the first and the second thing are: for this alone the places count
        self.look = nn.Sequential(
            nn.Conv2d(WIDTH + 2, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 2, 1)
        )
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(WIDTH if name[-1] in "12" else 2 * WIDTH + 4, len(answers))
                for name, answers in HEADS.items()
            }
        )

    @full_precision()
    def features(self, x: Tensor) -> Tensor:
        """What it sees of both things and where they are (B, 196), of pictures `x` in [-1, 1]."""
        check_floating(x=x)
        if tuple(x.shape[1:]) != (3, words.SIDE, words.SIDE):
            raise ConfigError(f"x has shape {tuple(x.shape)}; pictures are (B, 3, 32, 32).")
        seen = self.body(x.float())
        at = torch.linspace(-1, 1, seen.shape[-1], device=x.device)
        places = torch.stack(torch.meshgrid(at, at, indexing="ij")).expand(len(x), -1, -1, -1)
        seen = torch.cat([seen, places], dim=1)  # (B, 98, 8, 8)
        looks = self.look(seen).flatten(2).softmax(-1)  # (B, 2, 64)
        return (looks @ seen.flatten(2).mT).flatten(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, answers) of each head."""
        seen = self.features(x)
        first, second = (part[:, :WIDTH] for part in seen.chunk(2, dim=1))
        of = {"1": first, "2": second}
        return {name: head(of.get(name[-1], seen)) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, x: Tensor, chunk: int = 1024) -> list[Scene]:
        """What each picture of `x` (N, 3, 32, 32) shows."""
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
    """The right answers {head: number} for a picture of `scene`, whose sizes are named."""
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
    """Shares in [0, 1] of pictures with everything right, and with each part right."""

    right: float
    kinds: float
    colours: float
    sizes: float
    relation: float


def score_of(reader: Reader, pictures: Tensor, asked: Sequence[Scene]) -> Score:
    """How many `pictures` (N, 3, 32, 32) show what was `asked`. Raises ConfigError unless there is
    a scene for each.
    """
    if len(pictures) != len(asked) or not len(asked):
        raise ConfigError(f"there are {len(pictures)} pictures and {len(asked)} scenes asked for.")
    seen = reader.read(pictures)
    whole = [shows(a, s) for a, s in zip(asked, seen)]
    parts = [[same(a, s) for a, s in zip(asked, seen)] for same in (_kinds, _colours, _sizes, _lie)]
    return Score(*(sum(hits) / len(asked) for hits in (whole, *parts)))


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


def train_reader(*, seed: int = 0, pictures: int = 30_000, epochs: int = 12) -> Reader:
    """A frozen reader, some five minutes of one core; the global random state stays as it was."""
    shown = words.load("judge", pictures, seed=seed)
    right = [reading(scene) for scene in shown.scenes]
    y = {name: torch.tensor([answers[name] for answers in right]) for name in HEADS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader()
    with one_thread():
        _fit(reader, shown.x1, y, epochs, torch.Generator().manual_seed(seed))
    return reader.requires_grad_(False).eval()


def _turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture turned by up to 10 degrees and scaled by up to 8 %: a few digits are many."""
    turn, size = torch.rand(2, len(x), generator=generator) * 2 - 1
    angle, size = turn * math.radians(10), 1 + 0.08 * size
    cos, sin, zero = angle.cos() / size, angle.sin() / size, torch.zeros(len(x))
    rows = (torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1))
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _fit(
    reader: Reader, x: Tensor, y: dict[str, Tensor], epochs: int, generator: torch.Generator
) -> None:
    batch = 128
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // batch * batch].split(batch):
            noise = torch.randn(len(rows), *x.shape[1:], generator=generator)
            logits = reader(_turned(x[rows], generator) + 0.05 * noise)
            two = y["things"][rows] == 1
            loss = sum(
                F.cross_entropy(
                    logits[name][two] if name in _SECOND else logits[name],
                    y[name][rows][two] if name in _SECOND else y[name][rows],
                    label_smoothing=0.05,
                )
                for name in HEADS
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()
