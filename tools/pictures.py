"""Pictures as networks draw them, beside real ones, with what the judge says of them.

    python -m tools.pictures [--samples 10000]              the shipped networks, on MNIST
    python -m tools.pictures --run FOLDER ... [--guidance 2]    networks of runs, on their data set

It writes pictures.json and pictures.png in data/results; for runs they have the name of their data
set at the end, and the bare pictures go to a third file, .tiles.png. The first run is measured with
guidance, too. Real rows are as many as samples, from the test images; `frechet_real` holds as many
training images against them. --redraw takes the rows that are there, and measures nothing.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cfm_lite import metrics, pretrained, viz
from cfm_lite.data import cifar10
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.demo import SHIPPED, shipped_pictures
from cfm_lite.evaluate.measures import measure
from cfm_lite.lab import ARMS, Row, balanced_labels, judge_of
from cfm_lite.lab.arms import draw_samples
from cfm_lite.lab.measures import row_base
from cfm_lite.lab.store import read_json, write_rows
from cfm_lite.methods import METHODS
from cfm_lite.runs import Run
from tools.report.results import number

RESULTS = Path(__file__).parent.parent / "data" / "results"
STEPS, NEAR = 50, 1000  # Euler steps; samples whose nearest training image is looked for
SHOWN = ("accuracy", "frechet", "frechet_real", "precision", "recall", "nearest_ratio")
COLOUR = "_cifar10-jpeg75"  # the end of the names of the files about colour
SEEN = 2  # pictures of each class in the figure of a run


def networks(folders: Sequence[Path], scale: float) -> dict[str, tuple[str, Run]]:
    """{title: (name, run with its guidance)} of the shipped networks, or of the runs in `folders`."""
    if not folders:
        found = [
            (title, name, pretrained.run_of(name), guidance)
            for title, (name, guidance) in SHIPPED.items()
        ]
    else:
        opened = [(folder.name, Run.open(folder)) for folder in folders]
        labels = [METHODS[run.recipe.method].label for _, run in opened]
        told = [
            (label if labels.count(label) == 1 else f"{label} ({name})", name, run)
            for label, (name, run) in zip(labels, opened)
        ]
        label, name, run = told[0]
        found = [(f"{label}, guidance {scale:g}", name, run, scale)]
        found = [(*told[0], 1.0), *found, *((*one, 1.0) for one in told[1:])]
    return {
        title: (name, replace(run, recipe=run.recipe.changed(guidance=guidance)))
        for title, name, run, guidance in found
    }


def measured(title: str, name: str, run: Run, data: DataSet, samples: int) -> list[Row]:
    """The rows of one network, with `samples` samples."""
    y = balanced_labels(data.num_classes, samples)
    x = draw_samples(ARMS["fm"], run, data, y, STEPS)
    values = measure(x, y, data, judge_of(run.recipe.dataset))
    near = metrics.nearest_ratio(x[:NEAR], data.x1, data.held_x1[:NEAR])
    base = row_base(run.recipe.method, run.recipe, samples, STEPS)
    base |= {"network": name, "title": title}
    values |= {"nearest_ratio": float(near)}
    return [{**base, "metric": metric, "value": value} for metric, value in values.items()]


def titled(rows: list[Row]) -> dict[str, str]:
    """{title: the same, with the distance that its rows tell}."""
    return {
        row["title"]: f"{row['title']}, {STEPS} NFE, Fréchet {number(row['value'])}"
        for row in rows
        if row["metric"] == "frechet"
    }


def table(end: str = "", name: str = "MNIST", way: str = "") -> str:
    """What was measured, as Markdown: of the shipped network, or of the runs whose rows have the
    data set at the `end` of their file's name; `way` is what the command had to be told.
    """
    rows = read_json(RESULTS / f"pictures{end}.json")
    values = {(row["title"], row["metric"]): row["value"] for row in rows}
    lines = [
        f"| {name} | right class | Fréchet | real against real | precision | recall | nearest |",
        "|---|---|---|---|---|---|---|",
    ]
    for title in dict.fromkeys(row["title"] for row in rows):
        a, f, r, p, c, n = (values[title, metric] for metric in SHOWN)
        lines.append(f"| {title} | {a:.1%} | {f:.2f} | {r:.2f} | {p:.2f} | {c:.2f} | {n:.2f} |")
    source = (
        f"{rows[0]['samples']:,} samples with {STEPS} Euler steps against as many test images; "
        "precision and recall of 2,000. Nearest is the distance to the nearest training image over "
        "that of real images: below 0.9 it would be memory. Measured by "
        f"`python -m tools.pictures{way}`; rows in `data/results/pictures{end}.json`."
    )
    return "\n".join([*lines, "", source])


def colour_table() -> str:
    """What was measured of a run of the recipe `cifar10`."""
    rows = read_json(RESULTS / f"pictures{COLOUR}.json")
    way = f" --samples {rows[0]['samples']} --run FOLDER"
    return table(COLOUR, f"CIFAR-10, {rows[0]['steps']:,} steps", way)


def figure(rows: list[Row]) -> viz.Picture:
    """Ten classes of MNIST, real and drawn by the shipped networks."""
    images = shipped_pictures(torch.arange(10), STEPS)
    told = titled(rows)
    return viz.image_grid({told.get(name, name): x for name, x in images.items()})


def tiles_of(runs: Mapping[str, Run], data: DataSet) -> dict[str, Tensor]:
    """SEEN pictures of each class, the first ones of each row: real, and drawn by runs."""
    y = torch.arange(data.num_classes).repeat_interleave(SEEN)
    first = [torch.nonzero(data.held_y == c)[:SEEN, 0] for c in range(data.num_classes)]
    drawn = {title: draw_samples(ARMS["fm"], run, data, y, STEPS) for title, run in runs.items()}
    return {"real": data.held_x1[torch.cat(first)], **drawn}


def save_tiles(images: Mapping[str, Tensor], file: Path) -> None:
    """One row of bare pictures for each entry, with their own pixels."""
    rows = [torch.cat(list(x), dim=2) for x in images.values()]  # (C, H, n W) each
    pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(file, optimize=True)


def stored_tiles(file: Path, rows: int, columns: int) -> list[Tensor]:
    """The rows of `save_tiles`, each (columns, C, H, W) in [-1, 1]."""
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image)).reshape(*image.size[::-1], -1)
    return [
        torch.stack(row.permute(2, 0, 1).chunk(columns, dim=2)) / 127.5 - 1
        for row in pixels.chunk(rows)
    ]


def figure_of(rows: list[Row], tiles: Mapping[str, Tensor], data: DataSet) -> viz.Picture:
    """The `tiles`, with their classes and distances."""
    told = titled(rows)
    images = {told.get(title, title): x for title, x in tiles.items()}
    in_words = data.name in cifar10.NAMES
    classes = cifar10.CLASSES if in_words else range(data.num_classes)
    names = [name for name in classes for _ in range(SEEN)]
    return viz.image_grid(images, names, column_title="" if in_words else "class", cell=0.5)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, help="of each network (10,000)")
    parser.add_argument(
        "--run", type=Path, nargs="+", default=[], help="folders of cfm-lite train, of one data set"
    )
    parser.add_argument("--guidance", type=float, help="the second scale of the first run (2)")
    parser.add_argument("--redraw", action="store_true", help="the picture of rows that are there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="another folder")
    options, rows = parser.parse_args(words), []
    if options.guidance is not None and not options.run:
        parser.error("--guidance is for a run; give --run FOLDER, or leave it out")
    if options.redraw and options.samples is not None:
        parser.error("--redraw measures nothing; leave --samples out")
    found = networks(options.run, options.guidance or 2.0)
    name, *others = dict.fromkeys(run.recipe.dataset for _, run in found.values())
    if others:
        parser.error(f"the runs are of {name} and {others[0]}; give runs of one data set")
    data, end = dataset(name), f"_{name}" if options.run else ""
    if options.redraw:
        rows = read_json(options.out / f"pictures{end}.json")
        if unknown := found.keys() - titled(rows).keys():
            parser.error(
                f"no row tells of {sorted(unknown)[0]}; measure it first, without --redraw"
            )
    for title, (network, run) in ({} if options.redraw else found).items():
        for row in measured(title, network, run, data, options.samples or 10_000):
            print(f"{title:<16} {row['metric']:<14} {row['value']:.4f}", flush=True)
            rows.append(row)
        write_rows(options.out / f"pictures{end}.json", rows)  # what is measured is kept
    if options.run:
        tiles = tiles_of({title: run for title, (_, run) in found.items()}, data)
        save_tiles(tiles, options.out / f"pictures{end}.tiles.png")
    drawn = figure_of(rows, tiles, data) if options.run else figure(rows)
    viz.save(drawn, options.out / f"pictures{end}.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
