"""Pictures from words: what a caption is, joint attention, wrong colours, the reader, and what the
network draws.
"""

import itertools
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from cfm_lite import viz
from cfm_lite.data import captions, words
from cfm_lite.data.captions import COLOURS, DIGITS, KINDS, RELATIONS, SIZES, Scene, Thing
from cfm_lite.evaluate import reader
from cfm_lite.models import MMDiT
from cfm_lite.runs.recipe import build_model, recipe
from cfm_lite.runs.spec import Spec
from cfm_lite.viz.style import new_figure
from cfm_lite.widgets import _words
from slides.figures.common import HALF, WIDE, figure, record
from slides.figures.part3 import box, canvas, link

GREY = "#4d4d4d"
ONE_FONT = 0.113  # inches of a letter of 14 points, about
STORY = "a red seven left of a blue star"


def gallery(
    rows: Sequence[Sequence[Tensor]],
    below: Sequence[Sequence[str]],
    *,
    side: float,
    gap: float = 0.3,
    lines: int = 2,
    names: Sequence[str] = (),
    colours: Sequence[Sequence[str]] = (),
) -> viz.Picture:
    """Rows of pictures (3, 32, 32), with words below each, and `names` left of the rows."""
    left = 0.1 + ONE_FONT * max(map(len, names), default=0)
    across, down = side + gap, side + 0.24 * lines + 0.12
    width = left + len(rows[0]) * across - gap + 0.1
    picture = new_figure(max(width, WIDE), len(rows) * down, layout=None)
    left += max(WIDE - width, 0) / 2
    wide, high = picture.get_size_inches()
    for r, row in enumerate(rows):
        top = high - r * down
        for k, image in enumerate(row):
            at = left + k * across
            panel = picture.add_axes((at / wide, (top - side) / high, side / wide, side / high))
            panel.imshow(
                ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="none"
            )
            panel.axis("off")
            room = max(int((across - 0.05) / ONE_FONT), 6)
            text = "\n".join(textwrap.fill(line, room) for line in below[r][k].split("\n"))
            colour = colours[r][k] if colours else viz.TRUTH
            picture.text(
                (at + side / 2) / wide, (top - side - 0.07) / high, text, ha="center", va="top",
                fontsize=14, color=colour, linespacing=1.15,
            )  # fmt: skip
        if names:
            picture.text(
                (left - 0.15) / wide, (top - side / 2) / high, names[r], ha="right", va="center",
                fontsize=14,
            )  # fmt: skip
    return picture


def shelved(scenes: Sequence[Scene], guidance: float = 2.0) -> list[Tensor]:
    """What the network of the explorer drew for the scenes, all from one noise."""
    return [_words._shelf()[scene, guidance] for scene in scenes]


def read(images: Sequence[Tensor], scenes: Sequence[Scene]) -> tuple[list[str], list[str]]:
    """What the reader reads, and green where that is what was asked."""
    told = [*_words._told(torch.stack([*images]), [*scenes])]
    said = [unsized(" ".join(one["read"])) for one in told]
    said = [
        text if len(captions.parse(text).things) <= len(scene.things) else "two things"
        for text, scene in zip(said, scenes)
    ]
    return (
        [f"{'✓' if one['right'] else '✕'} {text}" for one, text in zip(told, said)],
        [viz.ATTRACT if one["right"] else viz.REPEL for one in told],
    )


def unsized(caption: str) -> str:
    """A caption without its sizes: short enough for the room below a picture."""
    things, relation = captions.parse(caption)
    return captions.sentence(Scene(tuple(t._replace(size=None) for t in things), relation))


def real(n: int, split: str = "seen", two: bool | None = None) -> tuple[list[Tensor], list[str]]:
    """Real pictures and their captions; with `two` those of two things, or of one."""
    shown = words.load(split, 200)
    rows = [i for i, scene in enumerate(shown.scenes) if two in (None, len(scene.things) == 2)]
    return [shown.x1[i] for i in rows[:n]], [shown.captions[i] for i in rows[:n]]


@figure("words_relations")
def words_relations() -> viz.Picture:
    """One sentence, four relations: what a picture of each looks like."""
    rng = np.random.default_rng(5)
    large = captions.parse("a large red seven left of a large blue star")
    scenes = [large._replace(relation=relation) for relation in RELATIONS]
    images = [torch.from_numpy(words.render(scene, rng)) * 2 - 1 for scene in scenes]
    asked = [unsized(captions.sentence(scene)) for scene in scenes]
    return gallery([images], [asked], side=2.05, gap=0.22)


@figure("words_counts")
def words_counts() -> viz.Picture:
    """How many scenes a label and a sentence can name; and how large the networks are."""
    small = build_model(recipe("words"), Spec((3, words.SIDE, words.SIDE), 0, "captions"))
    with torch.device("meta"):
        large = MMDiT()
    for name, model in {"MMDiT_words": small, "MMDiT": large}.items():
        record("weights", name, sum(p.numel() for p in model.parameters()), dataset="words")
    one = len(KINDS) * len(COLOURS) * (len(SIZES) + 1)
    counts = {
        "a digit's label": len(DIGITS),
        "one thing, its colour, its size": one,
        "a class of ImageNet": 1000,
        "two things and how they lie": one * one * len(RELATIONS),
    }
    record("scenes", "one_thing", one, dataset="words")
    record("scenes", "two_things", counts["two things and how they lie"], dataset="words")
    picture, ((panel,),) = viz.panels(1, 1, width=WIDE, height=3.1)
    colours = [viz.DATA_OTHER, viz.DATA, viz.DATA_OTHER, viz.DATA]
    panel.barh(list(counts), list(counts.values()), color=colours, height=0.62)
    for i, count in enumerate(counts.values()):
        panel.text(count * 1.2, i, f"{count:,}", va="center", fontsize=14)
    panel.set(xscale="log", xlabel="conditions that can be told apart", xlim=(1, 2e7))
    panel.tick_params(labelsize=14)
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    return picture


@figure("words_tokens")
def words_tokens() -> viz.Picture:
    """A caption as 16 word numbers, and each number as a learnt vector."""
    numbers = captions.encode([STORY])[0].tolist()
    said = [*STORY.split(), *[""] * (len(numbers) - len(STORY.split()))]
    picture, panel = canvas(height=3.5)
    wide = 22.4 / len(numbers)
    rng = np.random.default_rng(0)
    for k, (word, number) in enumerate(zip(said, numbers)):
        x = 0.3 + (k + 0.5) * wide
        colour = viz.TRUTH if word else "#b5b5b5"
        panel.text(x, 8.1, word, ha="center", va="center", fontsize=14, color=colour)
        box(panel, x, 6.5, str(number), color=viz.DATA if word else "#b5b5b5",
            width=wide * 0.86, height=1.1, size=14)  # fmt: skip
        if k < len(STORY.split()):
            link(panel, (x, 5.8), (x, 4.7), viz.MODEL, mutation_scale=12, linewidth=1.5)
        column = rng.uniform(-1, 1, 6) if word else np.zeros(6)
        for i, value in enumerate(column):
            share = 0.5 + 0.35 * value
            panel.add_patch(
                Rectangle((x - 0.35, 1.6 + 0.48 * i), 0.7, 0.44,
                                      facecolor=viz.MODEL, alpha=float(share), linewidth=0)
            )  # fmt: skip
    panel.text(11.5, 0.7, "each number: a learnt vector, and a learnt code of its place",
               ha="center", va="center", fontsize=14, color=viz.MODEL)  # fmt: skip
    return picture


@figure("words_attention")
def words_attention() -> viz.Picture:
    """Two streams with weights of their own, and one attention over both."""
    picture, panel = canvas(height=4.0)
    text, image, top, low = viz.DATA, viz.MODEL, 7.6, 2.6
    rows = (
        (top, text, "caption,\n16 words", "16 tokens"),
        (low, image, "picture,\n64 patches", "64 tokens"),
    )
    for y, colour, name, _ in rows:
        box(panel, 1.7, y, name, color=colour, width=3.1, height=2.2, size=14)
        box(panel, 6.5, y, "q, k, v", color=colour, width=2.7, height=1.6, size=14)
        link(panel, (3.3, y), (5.1, y), colour)
        link(panel, (7.9, y), (9.4, y), colour)
        link(panel, (13.2, y), (14.7, y), colour)
        box(panel, 16.2, y, "MLP", color=colour, width=2.7, height=1.6, size=14)
        link(panel, (17.6, y), (19.4, y), colour)
    box(panel, 11.3, (top + low) / 2, "one attention\nover all\n80 tokens", color=GREY,
        width=3.7, height=7.6, size=14)  # fmt: skip
    box(panel, 21.1, top, "next\nblock", color=text, width=3.1, height=2.2, size=14)
    box(
        panel, 21.1, low, "next block,\nin the end $v$", color=image, width=3.3, height=2.2, size=14
    )
    panel.text(
        6.5, (top + low) / 2, "own weights", ha="center", va="center", fontsize=14, color=GREY
    )
    panel.text(
        16.2, (top + low) / 2, "own weights", ha="center", va="center", fontsize=14, color=GREY
    )
    return picture


@figure("words_real")
def words_real() -> viz.Picture:
    """Pictures of the data set, as training sees them."""
    images, said = real(8)
    return gallery([images[:4], images[4:]], [said[:4], said[4:]], side=0.95, gap=1.2, lines=4)


@figure("words_guidance")
def words_guidance() -> viz.Picture:
    """The same noise and captions, without guidance and with it."""
    scenes = [
        Scene((Thing(kind, colour),))
        for kind, colour in zip(("seven", "two", "star", "five", "cross", "eight"), COLOURS)
    ]
    rows, told, colours = [], [], []
    for guidance in (1.0, 2.0):
        rows.append(shelved(scenes, guidance))
        said, ink = read(rows[-1], scenes)
        told.append(said)
        colours.append(ink)
    names = ["w = 1", "w = 2"]
    return gallery(rows, told, side=1.05, gap=0.3, lines=2, names=names, colours=colours)


@figure("words_other_caption")
def words_other_caption() -> viz.Picture:
    """A pair to follow, and another pair of the batch, whose velocity ΔFM pushes away from."""
    images, said = real(5, two=True)
    told = [[f"attract: {said[0]}", *(f"repel: {one}" for one in said[1:4])]]
    inks = [[viz.ATTRACT, *[viz.REPEL] * 3]]
    return gallery([images[:4]], told, side=1.7, gap=0.55, lines=4, colours=inks)


@figure("words_shuffled")
def words_shuffled() -> viz.Picture:
    """What the reader reads where the three colour channels have changed places."""
    rng = np.random.default_rng(1)
    scene = captions.parse(f"large {STORY[2:].replace('a blue', 'a large blue')}")
    image = torch.from_numpy(words.render(scene, rng)) * 2 - 1
    orders = list(itertools.permutations(range(3)))
    shown = [image[list(order)] for order in orders]
    seen = reader.reader_for().read(torch.stack(shown))
    said = [unsized(captions.sentence(scene)) for scene in seen]
    names = ["".join("RGB"[c] for c in order) for order in orders]
    told = [[f"{name}: {one}" for name, one in zip(names, said)]]
    inks = [[viz.ATTRACT, *[viz.REPEL] * 5]]
    return gallery([shown], told, side=1.3, gap=0.24, lines=4, colours=inks)


@figure("words_reader")
def words_reader() -> viz.Picture:
    """How much of real pictures the reader reads rightly, and how often it says no."""
    judge, parts = reader.reader_for(), {"right": "everything"}
    parts |= {"kinds": "things", "colours": "colours", "sizes": "sizes", "relation": "relation"}
    values: dict[str, list[float]] = {
        name: [] for name in (*parts.values(), "one wrong word: refused")
    }
    for split in ("seen", "held_out"):
        shown = words.load(split, 1000, seed=2)
        score = reader.score_of(judge, shown.x1, shown.scenes)._asdict()
        for part, name in parts.items():
            values[name].append(record(part, "reader", score[part], dataset="words", prompts=split))
        no = reader.rejected(judge, shown.x1, shown.scenes)
        values["one wrong word: refused"].append(
            record("rejected", "reader", no, dataset="words", prompts=split)
        )
    picture, ((panel,),) = viz.panels(1, 1, width=WIDE, height=3.4)
    for k, (name, colour) in enumerate(
        {"combinations of training": viz.DATA, "held-out combinations": viz.REPEL}.items()
    ):
        shares = [100 * pair[k] for pair in values.values()]
        rows = [row + 0.34 * (k - 0.5) for row in range(len(shares))]
        panel.plot(shares, rows, "os"[k], color=colour, markersize=11, label=name, clip_on=False)
    for row, pair in enumerate(values.values()):
        said = " and ".join(f"{100 * share:.1f}" for share in pair)
        panel.text(100.15, row, f"{said} %", va="center", fontsize=14)
    panel.set_yticks(range(len(values)), list(values), fontsize=14)
    panel.set(
        xlabel="% of 1,000 real pictures each",
        xlim=(98, 100),
        ylim=(5.5, -0.5),
        xticks=(98, 98.5, 99, 99.5, 100),
    )
    panel.tick_params(labelsize=14)
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return picture


@figure("words_held_out")
def words_held_out() -> viz.Picture:
    """Real digits in every colour; a cross stands where training shows none."""
    rng = np.random.default_rng(3)
    picture, ((panel,),) = viz.panels(1, 1, width=HALF[0], height=HALF[1])
    for row, colour in enumerate(COLOURS):
        for column, kind in enumerate(DIGITS):
            scene = Scene((Thing(kind, colour, "large"),))
            where = (column + 0.04, column + 0.96, row + 0.96, row + 0.04)
            if captions.is_held_out(scene):
                panel.plot(
                    column + 0.5, row + 0.5, "x", markersize=13, markeredgewidth=3, color=viz.REPEL
                )
                continue
            image = torch.from_numpy(words.render(scene, rng))
            centre = reader.find(image[None] * 2 - 1).centre[0, 0].tolist()
            left, top = (min(max(int(c) - 8, 0), words.SIDE - 16) for c in centre)
            part = image[:, top : top + 16, left : left + 16].permute(1, 2, 0).numpy()
            panel.imshow(part, extent=where, interpolation="none")
    panel.set(xlim=(0, 10), ylim=(8, 0), aspect="equal")
    panel.set_xticks([k + 0.5 for k in range(10)], [str(k) for k in range(10)], fontsize=14)
    panel.set_yticks([k + 0.5 for k in range(8)], list(COLOURS), fontsize=14)
    panel.tick_params(length=0)
    panel.grid(False)
    for side in panel.spines.values():
        side.set_visible(False)
    return picture


@figure("words_never_seen")
def words_never_seen() -> viz.Picture:
    """The ten digits in the colour that training never shows, by the network."""
    all_things = [Scene((Thing(*pair),)) for pair in itertools.product(KINDS, COLOURS)]
    score = reader.score_of(reader.reader_for(), torch.stack(shelved(all_things)), all_things)
    for part in ("right", "kinds", "colours"):
        record(part, "network", getattr(score, part), dataset="words", guidance=2)
    pairs = itertools.product(DIGITS, COLOURS)
    scenes = [
        scene
        for kind, colour in pairs
        if captions.is_held_out(scene := Scene((Thing(kind, colour),)))
    ]
    asked = [captions.sentence(scene) for scene in scenes]
    images = shelved(scenes)
    said, inks = read(images, scenes)
    told = [f"{a}\n{b}" for a, b in zip(asked, said)]
    rows = (slice(0, 5), slice(5, 10))
    return gallery([images[r] for r in rows], [told[r] for r in rows], side=1.02, gap=0.78, lines=3,
                   colours=[inks[r] for r in rows])  # fmt: skip
