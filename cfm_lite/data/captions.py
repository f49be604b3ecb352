"""Sentences about one or two things: what they mean, how they are said, and as word numbers.

    "a red seven left of a blue star"
        <->  Scene((Thing("seven", "red"), Thing("star", "blue")), "left")
        <->  word numbers (16,) int64

A size that the sentence does not name may be either. Some combinations are held out: no training
picture shows them (`is_held_out`), so that what a network makes of them was never seen by it.
"""

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cfm_lite._internal.checks import check_tensor
from cfm_lite.errors import ConfigError

__all__ = [
    "COLOURS",
    "DIGITS",
    "FORMS",
    "KINDS",
    "LENGTH",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "VOCABULARY",
    "Scene",
    "Thing",
    "decode",
    "encode",
    "is_held_out",
    "parse",
    "sentence",
    "shows",
]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "star", "cross")
KINDS = (*DIGITS, *SHAPES)
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
RELATIONS = ("left", "right", "above", "below")  # the first thing lies there of the second
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

# what else a word may be called; the first name is the one that scenes hold
SYNONYMS = {
    **{name: (str(number),) for number, name in enumerate(DIGITS)},
    **{"circle": ("disc",), "square": ("box",), "cross": ("plus",)},
    **{"small": ("little",), "large": ("big",), "purple": ("violet",)},
}
_MEANS = {other: name for name, others in SYNONYMS.items() for other in others}
_SAID = {  # where the first thing lies, before the second is named
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_PLACED = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
# the word of a relation, however it is said
_RELATED = {**{name: name for name in RELATIONS}, "over": "above", "under": "below"}
_ONE = ("{a}", "there is {a}", "here is {a}", "a picture of {a}", "we see {a}")
_TWO = (
    "{a} {where} {b}",
    "there is {a} {where} {b}",
    "{where} {b} is {a}",
    "a picture of {a} {where} {b}",
    "{b} with {a} {placed}",
)
FORMS = len(_TWO)

_PHRASES = (*_ONE, *_TWO, *itertools.chain(*_SAID.values()), *_PLACED.values(), "a", "an")
VOCABULARY = (
    "",  # no word: the end of a caption, and the empty caption
    *sorted(
        {word for phrase in _PHRASES for word in phrase.split() if "{" not in word}
        | {*KINDS, *COLOURS, *SIZES, *_MEANS}
    ),
)
LENGTH = 16  # of a caption in words, blanks at its end
_NUMBER = {word: number for number, word in enumerate(VOCABULARY)}


class Thing(NamedTuple):
    """One of KINDS in one of COLOURS, in one of SIZES or, with None, in either.

    >>> Thing("seven", "red")
    Thing(kind='seven', colour='red', size=None)
    """

    kind: str
    colour: str
    size: str | None = None


class Scene(NamedTuple):
    """One thing, or two of which the first lies `relation` of the second.

    >>> Scene((Thing("seven", "red"), Thing("star", "blue")), "left").relation
    'left'
    """

    things: tuple[Thing, ...]
    relation: str | None = None


def sentence(scene: Scene, form: int = 0, synonyms: Sequence[int] = ()) -> str:
    """The caption of a scene in one of FORMS forms.

    `synonyms` are whole numbers that choose other names for the words of the scene, in turn; 0 is
    the usual name.

    >>> sentence(Scene((Thing("seven", "red"), Thing("star", "blue")), "left"))
    'a red seven left of a blue star'
    """
    picks = itertools.chain(synonyms, itertools.repeat(0))

    def called(word: str) -> str:
        names = (word, *SYNONYMS.get(word, ()))
        return names[next(picks) % len(names)]

    said = []
    for thing in scene.things:
        words = [called(word) for word in (thing.size, thing.colour, thing.kind) if word]
        said.append(f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}")
    if scene.relation is None:
        return _ONE[form % FORMS].format(a=said[0])
    names = _SAID[scene.relation]
    where, placed = names[next(picks) % len(names)], _PLACED[scene.relation]
    return _TWO[form % FORMS].format(a=said[0], b=said[1], where=where, placed=placed)


def parse(caption: str) -> Scene:
    """The scene that a caption speaks of: `parse(sentence(scene, ...))` is `scene`.

    Other sentences are read too. Size and colour stand before their thing, in either order. The
    relation stands between two things or before both ("left of a star is a seven"); after both it
    needs "its" or "it" ("a star with a seven to its left"). All other words carry no meaning.

    Raises ConfigError for unknown words, each with one that is near, for a caption without words,
    for one that names no thing, more than two, or two without their relation, and for words that
    contradict each other or belong to no thing.

    >>> parse("left of a blue star is a red 7").things[0]
    Thing(kind='seven', colour='red', size=None)
    """
    words = [_MEANS.get(word, word) for word in _words(caption)]
    things: list[Thing] = []
    said: dict[str, str] = {}  # of the next thing
    related, at, turned = "", 0, False

    def refused(what: str) -> ConfigError:
        return ConfigError(f"the caption {caption!r} {what}")

    def nothing_waits() -> None:
        if said:
            raise refused(
                f"has {' and '.join(map(repr, said.values()))} before no thing; say size and "
                "colour before their thing, such as 'a small red seven'."
            )

    for place, word in enumerate(words):
        if word in SIZES or word in COLOURS:
            part = "size" if word in SIZES else "colour"
            if said.setdefault(part, word) != word:
                raise refused(
                    f"gives a thing the {part}s {said[part]!r} and {word!r}; give it one."
                )
        elif word in KINDS:
            if "colour" not in said:
                raise refused(
                    f"has no colour before {word!r}; say one there, such as '{COLOURS[0]} {word}'. "
                    f"Colours are {', '.join(COLOURS)}."
                )
            things.append(Thing(word, **said))
            said.clear()
        elif word in _RELATED:
            nothing_waits()
            if related:
                raise refused(f"says {related!r} and {word!r}; say once how the things lie.")
            related, at = word, len(things)
            # "to its left", "above it", "left of it"
            turned = words[place - 1 : place] == ["its"] or "it" in words[place + 1 : place + 3]
    nothing_waits()
    if not 1 <= len(things) <= 2 or (len(things) == 2) != bool(related):
        raise refused(
            f"names {len(things)} things"
            + (" and no relation" if len(things) == 2 else "")
            + "; name one, such as 'a red seven', or two and how they lie, such as 'a red seven "
            "left of a blue star'."
        )
    if related and (turned if at == 0 else at == 2 and not turned):
        raise refused(
            f"does not say of which thing the other lies {related!r}; say it such as 'a red seven "
            "left of a blue star', or 'a blue star with a red seven to its left'."
        )
    # "left of a star is a seven", "a star with a seven to its left"
    if related and (at == 0 or turned):
        things.reverse()
    return Scene(tuple(things), _RELATED.get(related))


def _words(caption: str) -> list[str]:
    """The words of a caption; ConfigError for an unknown one, for too many, and for none."""
    if not isinstance(caption, str):
        raise ConfigError(f"the caption has type {type(caption).__name__}; it must be text.")
    words, unknown = [], []
    for token in "".join(c if _in_words(c) else " " for c in caption.lower()).split():
        parts = re.findall(r"\d+|[^\d'’]+", token)  # "red7" is two words
        if not all(part in _NUMBER for part in parts):
            unknown.append(token.strip("'’"))
        words += parts
    if unknown:
        raise ConfigError(f"the caption {caption!r} has the {_told(list(dict.fromkeys(unknown)))}")
    if not words:
        raise ConfigError("the caption is empty; say what to draw, such as 'a red seven'.")
    if len(words) > LENGTH:
        raise ConfigError(
            f"the caption {caption[:60]!r} has {len(words)} words; a caption has {LENGTH} at most."
        )
    return words


def _told(unknown: Sequence[str]) -> str:
    """The unknown words, and what may be meant, or which words there are."""
    told = f"unknown word{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}; "
    near = [word for each in unknown for word in _near(each)]
    if near:
        told += f"did you mean {', '.join(map(repr, near))}?"
    if len(near) == len(unknown):
        return told
    lists = {"colours": COLOURS, "things": KINDS, "sizes": SIZES}
    known = "; ".join(f"{what} are {', '.join(names)}" for what, names in lists.items()) + "."
    return f"{told} {known.capitalize()}" if near else told + known


def _near(word: str) -> list[str]:
    """The known word that `word` is spelt like, if there is one."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    # no words without a meaning: "white" is no misspelt "with"
    meant = (*KINDS, *COLOURS, *SIZES, *_MEANS, *_RELATED)
    return difflib.get_close_matches(plain, meant, n=1, cutoff=0.75)


def _in_words(c: str) -> bool:
    """Letters of all scripts, their accents, digits, apostrophes and emoji; no other signs."""
    return c.isalnum() or c in "'’" or (not c.isascii() and unicodedata.category(c)[0] in "MS")


def encode(captions: Iterable[str]) -> Tensor:
    """Captions as word numbers (B, 16) int64, blanks (0) at the end.

    Raises ConfigError for an unknown word, for too many, and for none.

    >>> encode(["a red seven"])[0, :4]
    tensor([11, 42, 45,  0])
    """
    told = list(captions) if isinstance(captions, Iterable) else [captions]
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in told):
        raise ConfigError(f"captions is {captions!r:.60}; it must be a list of texts.")
    rows = [[_NUMBER[word] for word in _words(caption)] for caption in told]
    y = torch.zeros(len(rows), LENGTH, dtype=torch.long, device="cpu")
    for row, numbers in zip(y, rows):
        row[: len(numbers)] = torch.tensor(numbers, device="cpu")
    return y


def decode(y: Tensor) -> list[str]:
    """The captions of word numbers `y` (B, L); the inverse of `encode`.

    Raises ConfigError for numbers that are no words, or not (B, L).

    >>> decode(encode(["a red seven"]))
    ['a red seven']
    """
    check_tensor(y=y)
    rows = y.tolist() if y.dim() == 2 and not (y.is_floating_point() or y.is_complex()) else [[-1]]
    if not all(0 <= number < len(VOCABULARY) for row in rows for number in row):
        raise ConfigError(
            f"y has shape {tuple(y.shape)} and dtype {y.dtype}; captions are word numbers (B, L), "
            f"whole, from 0 to {len(VOCABULARY) - 1}."
        )
    return [" ".join(VOCABULARY[number] for number in row if number) for row in rows]


def shows(asked: Scene, seen: Scene) -> bool:
    """Whether a picture of `seen` shows what `asked` says, from whichever thing one looks.

    Things, colours and the relation must agree, and the sizes that it names.

    >>> seven, star = Thing("seven", "red", "small"), Thing("star", "blue", "large")
    >>> shows(parse("a blue star right of a red seven"), Scene((seven, star), "left"))
    True
    """
    if len(asked.things) != len(seen.things):
        return False
    pairs = [(asked.relation, asked.things)]
    if asked.relation:
        pairs.append((OPPOSITE[asked.relation], asked.things[::-1]))
    return any(
        relation == seen.relation
        and all(
            (a.kind, a.colour) == (b.kind, b.colour) and a.size in (None, b.size)
            for a, b in zip(things, seen.things)
        )
        for relation, things in pairs
    )


def is_held_out(scene: Scene) -> bool:
    """Whether no training picture shows a thing or a pair of this scene.

    Held out are one colour of each digit, and a tenth of the pairs of kinds, each in one direction.

    >>> [colour for colour in COLOURS if is_held_out(Scene((Thing("seven", colour),)))]
    ['blue']
    """
    if any(_rare(thing) for thing in scene.things):
        return True
    if scene.relation is None:
        return False
    first, second = (KINDS.index(thing.kind) for thing in scene.things)
    if scene.relation in ("right", "below"):
        first, second = second, first
    upright = scene.relation in ("above", "below")
    return (7 * first + 3 * second + 5 * upright) % 10 == 0


def _rare(thing: Thing) -> bool:
    kind = KINDS.index(thing.kind)
    return thing.kind in DIGITS and COLOURS.index(thing.colour) == 3 * kind % len(COLOURS)
