"""MNIST as the shipped networks draw it, beside real pictures, with what the judge says of them.

    python -m tools.pictures [--samples 10000]

It writes data/results/pictures.json and pictures.png. Real rows are as many as samples, from the
test images; `frechet_real` holds as many training images against them.
"""

import argparse
from pathlib import Path

import torch

from cfm_lite import metrics, pretrained, viz
from cfm_lite.data.datasets import dataset
from cfm_lite.demo import SHIPPED, shipped_pictures
from cfm_lite.evaluate.measures import measure
from cfm_lite.lab import ARMS, Row, balanced_labels, judge_of
from cfm_lite.lab.arms import draw_samples
from cfm_lite.lab.measures import row_base
from cfm_lite.lab.results import number
from cfm_lite.lab.store import write_rows
from cfm_lite.runs import Run

RESULTS = Path(__file__).parent.parent / "data" / "results"
STEPS, NEAR = 50, 1000  # Euler steps; samples whose nearest training image is looked for


def measured(title: str, samples: int) -> list[Row]:
    """The rows of one of SHIPPED, with `samples` samples."""
    name, scale = SHIPPED[title]
    data, model, y = dataset("mnist"), pretrained.load(name), balanced_labels(10, samples)
    run = Run(model.recipe.changed(guidance=scale), model)
    x = draw_samples(ARMS["fm"], run, data, y, STEPS)
    values = measure(x, y, data, judge_of("mnist"))
    near = metrics.nearest_ratio(x[:NEAR], data.x1, data.held_x1[:NEAR])
    base = row_base("fm", run.recipe, samples, STEPS) | {"network": name, "title": title}
    values |= {"nearest_ratio": float(near)}
    return [{**base, "metric": metric, "value": value} for metric, value in values.items()]


def figure(rows: list[Row]) -> viz.Picture:
    """Ten classes, real and drawn; each title tells the Fréchet distance of its rows."""
    found = {(row["title"], row["metric"]): row["value"] for row in rows}
    told = {
        title: f"{title}, {STEPS} NFE, Fréchet {number(found[title, 'frechet'])}"
        for title in SHIPPED
        if (title, "frechet") in found
    }
    images = shipped_pictures(torch.arange(10), STEPS)
    return viz.image_grid({told.get(name, name): x for name, x in images.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    samples, rows = parser.parse_args().samples, []
    torch.set_num_threads(1)
    for title in SHIPPED:
        for row in measured(title, samples):
            print(f"{title:<16} {row['metric']:<14} {row['value']:.4f}", flush=True)
            rows.append(row)
        write_rows(RESULTS / "pictures.json", rows)  # what is measured is kept
    viz.save(figure(rows), RESULTS / "pictures.png")


if __name__ == "__main__":
    main()
