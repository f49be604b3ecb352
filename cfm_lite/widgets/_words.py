"""Pictures from words: pick what a caption says, see what the shipped network draws, and what the
reader reads in it.

Python draws a picture, in less than a second. Some stand on a shelf that ships with the package, so
that a page without a kernel shows them too. The recorded command that draws the shelf:
python -m cfm_lite.widgets._words.
"""

import base64
import functools
import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import traitlets
from PIL import Image, PngImagePlugin
from torch import Generator, Tensor

from cfm_lite import pretrained, runs
from cfm_lite.data import words as pictures
from cfm_lite.data.captions import (
    COLOURS,
    KINDS,
    OPPOSITE,
    RELATIONS,
    SIZES,
    Scene,
    Thing,
    encode,
    parse,
    sentence,
    shows,
)
from cfm_lite.errors import CFMError, ConfigError
from cfm_lite.evaluate.reader import reader_for
from cfm_lite.guidance import retarget_shuffle
from cfm_lite.paths import PATHS
from cfm_lite.runs.sampling import noise_of, settings_of, solve, velocity_of
from cfm_lite.widgets._widget import STATIC, Choice, Explorer

__all__ = ["words"]

SHELF = STATIC / "words-shelf.png"
COLUMNS = len(COLOURS)  # of the shelf: its pictures stand row by row
PUSHES = (0.05, 0.2, 0.35)
START = parse("a red seven left of a blue star")


class Words(Explorer):
    """`size`, `colour` and `kind` are those of the first thing, those with a 2 of the second one,
    which lies where `relation` says; `seed` is that of the noise. Guidance moves away from the
    first thing in the colour `negative`, or, without one, from the empty caption. `weight` is λ:
    the velocity is that of plain FM, mapped to the optimum of VeCoR with shuffled colours.
    """

    face = "words"
    size = Choice("", ("", *SIZES))
    colour = Choice("red", COLOURS)
    kind = Choice("seven", KINDS)
    relation = Choice("left", ("", *RELATIONS))
    size2 = Choice("", ("", *SIZES))
    colour2 = Choice("blue", COLOURS)
    kind2 = Choice("star", KINDS)
    guidance = Choice(2.0, (1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
    seed = Choice(0, range(10))
    negative = Choice("", ("", *COLOURS))
    weight = Choice(0.0, (0.0, *PUSHES))
    picture = traitlets.Dict().tag(sync=True)  # what Python drew last, and its key

    def __init__(self, **values: Any) -> None:
        super().__init__(_data(), **values)
        self.observe(lambda _: self._draw(), self.controls)
        self._draw()

    @property
    def scene(self) -> Scene:
        """What the caption speaks of."""
        first = Thing(self.kind, self.colour, self.size or None)
        if not self.relation:
            return Scene((first,))
        return Scene((first, Thing(self.kind2, self.colour2, self.size2 or None)), self.relation)

    def set(self, **values: Any) -> "Words":
        with self.hold_trait_notifications():  # several values are one picture
            super().set(**values)
        return self

    def set_state(self, sync_data: dict[str, Any]) -> None:
        try:
            super().set_state(sync_data)
        except ConfigError as error:  # the page sent it, so the page says it
            self.picture = {"problem": str(error)}

    def _draw(self) -> None:
        asked = self.scene, self.guidance, self.seed, self.negative, self.weight
        if _key(*asked) in self._given["shelf"]:
            self.picture = {}
            return
        try:
            self.picture = {"key": _key(*asked), **_drawn(*asked)}
        except CFMError as error:
            self.picture = {"problem": str(error)}


def words(
    prompt: str = "a red seven left of a blue star",
    *,
    guidance: float = 2.0,
    seed: int = 0,
    negative: str = "",
    weight: float = 0.0,
) -> Words:
    """Explore what the shipped network draws for a caption: its things, colours, sizes and how they
    lie; guidance, the noise by its `seed`, the colour that guidance moves away from, and λ, the
    `weight` of a push away from shuffled colours.

    The network was trained by plain FM. For a λ above 0 its velocity is mapped to the optimum of
    VeCoR with a channel shuffle (`guidance.retarget_shuffle`).

    The newest picture stands on the left, and under each what the reader reads in it. One thing
    with the first noise needs no kernel; Python draws the others. Raises ConfigError for a wrong
    value, and for a prompt with an unknown word, without a thing, or with more than two.

    >>> words("a pink cross").colour
    'pink'
    """
    scene = parse(prompt)
    values: dict[str, Any] = {"relation": scene.relation or ""}
    for thing, slot in zip(scene.things, ("", "2")):
        values |= {f"{name}{slot}": part or "" for name, part in thing._asdict().items()}
    return Words(**values, guidance=guidance, seed=seed, negative=negative, weight=weight)


def _key(scene: Scene, guidance: float, seed: int, negative: str, weight: float) -> str:
    """The name of a picture: the page makes the same one of its values."""
    things = [part or "" for thing in scene.things for part in (thing.size, *thing[1::-1])]
    return ",".join(
        [scene.relation or "", *things, f"{guidance:g}", str(seed), negative, f"{weight:g}"]
    )


@functools.cache
def _shelved() -> dict[tuple[float, float], list[Scene]]:
    """What stands on the shelf at each guidance and λ: no negative, and the first noise."""
    one = [Scene((Thing(kind, colour),)) for kind, colour in itertools.product(KINDS, COLOURS)]
    two = [START._replace(relation=relation) for relation in RELATIONS]
    pushed = two + [Scene((Thing("star", colour),)) for colour in COLOURS]
    return {(scale, 0.0): one + two for scale in (1.0, 2.0)} | {(2.0, w): pushed for w in PUSHES}


@functools.cache
def _run() -> runs.Run:
    return pretrained.run_of("words")


def _sampled(
    scenes: list[Scene], guidance: float, seed: int = 0, away: str = "", weight: float = 0.0
) -> Tensor:
    """Pictures (N, 3, 32, 32) of the shipped network, all from one noise."""
    run = _run()
    settings = settings_of(run, 1, seed=seed, guidance=guidance, negative=away or None)
    x0 = noise_of((3, pictures.SIDE, pictures.SIDE), 1, seed).expand(len(scenes), -1, -1, -1)
    velocity = velocity_of(run, settings, encode([sentence(scene) for scene in scenes]))
    velocity = retarget_shuffle(velocity, weight) if weight else velocity
    path = PATHS[run.recipe.path]
    return run.images(solve(velocity, x0, settings.steps, settings.solver, path, Generator()))


@functools.lru_cache(maxsize=256)
def _drawn(
    scene: Scene, guidance: float, seed: int, negative: str, weight: float
) -> dict[str, Any]:
    """A picture for the page, and what is read in it."""
    away = ""
    if negative:
        first = scene.things[0]._replace(colour=negative)
        away = sentence(scene._replace(things=(first, *scene.things[1:])))
    x = _sampled([scene], guidance, seed, away, weight)
    return {"png": _png(_pixels(x)), **next(_told(x, [scene]))}


def _told(x: Tensor, asked: list[Scene]) -> Iterator[dict[str, Any]]:
    """For each picture of `x` (N, 3, 32, 32) what was asked, what the reader reads, and whether
    that is the same.
    """
    for scene, seen in zip(asked, reader_for().read(x)):
        right = shows(scene, seen)
        if seen.relation and scene.relation in ("right", "below"):  # told from the same side
            seen = Scene(seen.things[::-1], OPPOSITE[seen.relation])
        first = sentence(Scene(seen.things[:1]))
        rest = sentence(seen).removeprefix(first).strip()
        yield {"caption": sentence(scene), "read": [first, rest] if rest else [first]} | {
            "right": right
        }


def _pixels(x: Tensor) -> Image.Image:
    """Pictures (N, 3, 32, 32) as one image, `COLUMNS` in a row."""
    columns = min(len(x), COLUMNS)
    blank = x.new_zeros(-len(x) % columns, *x.shape[1:])
    tiles = torch.cat([x, blank]).unflatten(0, (-1, columns))  # (rows, columns, 3, 32, 32)
    flat = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray(((flat + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def _png(image: Image.Image, **more: Any) -> str:
    file = io.BytesIO()
    image.save(file, "png", optimize=True, **more)
    return base64.b64encode(file.getvalue()).decode()


@functools.cache
def _shelf() -> dict[tuple[Scene, float, float], Tensor]:
    """The pictures (3, 32, 32) of the shelf, each for a scene, a guidance and λ."""
    asked = [(scene, *how) for how, scenes in _shelved().items() for scene in scenes]
    with Image.open(SHELF) as image:
        flat = torch.from_numpy(np.array(image.convert("RGB")))
    tiles = flat.unflatten(0, (-1, pictures.SIDE)).unflatten(2, (-1, pictures.SIDE))
    return dict(zip(asked, tiles.permute(0, 2, 4, 1, 3).flatten(0, 1) / 127.5 - 1))


@functools.cache
def _data() -> dict[str, Any]:
    """What the page has without Python: the choices, the shelf, and what is read on it."""
    names = [name for name, trait in vars(Words).items() if isinstance(trait, Choice)]
    told = _told(torch.stack([*_shelf().values()]), [scene for scene, *_ in _shelf()])
    return {
        "choices": {name: list(getattr(Words, name).options) for name in names},
        "start": {name: getattr(Words, name).default_value for name in names},
        "shelf": {
            _key(scene, scale, 0, "", push): found
            for (scene, scale, push), found in zip(_shelf(), told)
        },
        "film": [_key(scene, 2.0, 0, "", 0.0) for scene in _shelved()[2.0, 0.0][-len(RELATIONS) :]],
        "png": base64.b64encode(SHELF.read_bytes()).decode(),
    }


def main() -> None:
    """Draw the shelf with the shipped network, in few colours."""
    x = torch.cat([_sampled(scenes, how[0], weight=how[1]) for how, scenes in _shelved().items()])
    # 256 colours by their bits: a median cut would spend them on the background
    few = _pixels(x).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    note = PngImagePlugin.PngInfo()
    note.add_text("weights", _run().weights or "")
    SHELF.write_bytes(base64.b64decode(_png(few, pnginfo=note)))
    print(f"{SHELF.name}: {len(x)} pictures, {SHELF.stat().st_size:,} bytes")


if __name__ == "__main__":  # the recorded command
    main()
