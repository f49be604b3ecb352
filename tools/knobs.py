"""What each setting of the recipe `mnist` buys: short trainings that differ in one setting each.

    python -m tools.knobs [--steps 4000]     writes data/results/knobs.json (ten minutes a setting)

All have the seed of the recipe and see as many images. Runs and rows are kept in build/knobs, and the
same command resumes them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cfm_lite.data.datasets import dataset
from cfm_lite.lab import ARMS, Row, Sampling, judge_of
from cfm_lite.lab.measures import sample_rows
from cfm_lite.lab.store import read_json, write_rows
from cfm_lite.runs import Run, train
from cfm_lite.runs.recipe import Recipe, recipe

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "data" / "results" / "knobs.json"
SHORT, SAMPLES = 4000, 2000
AS_IT_IS = "the recipe"
KNOBS: dict[str, dict[str, Any]] = {
    AS_IT_IS: {},
    "times uniform": {"time": "uniform", "time_mean": 0.0},
    "label dropout 0.1": {"label_dropout": 0.1},
    "batch 64, half the steps, rate 0.003": {"batch": 64, "lr": 3e-3, "ema": 0.998, "warmup": 100},
    "24 channels": {"hidden_size": 24},
    "twice the rate": {"lr": 4e-3},
}
NO_AVERAGE = "no average"  # of weights: the network itself, after the training as it is


def chosen(knob: str, steps: int) -> Recipe:
    """The recipe of MNIST for `steps` steps of its own batch, with one setting changed.

    >>> chosen("batch 64, half the steps, rate 0.003", 100).steps
    50
    """
    mine = recipe("mnist", precision="float32")
    images = steps * mine.batch
    changed = mine.changed(**KNOBS[knob])
    return changed.changed(steps=images // changed.batch)


def measured(knob: str, run: Run, out: Path) -> list[Row]:
    """The rows of one training, kept beside it."""
    kept = out / f"{knob.replace(' ', '_')}.json"
    if not kept.exists():
        name = run.recipe.dataset
        way = Sampling(samples=SAMPLES)
        found = sample_rows(ARMS["fm"], run, dataset(name), judge_of(name), way)
        write_rows(kept, [{"knob": knob, **row} for row in found])
    return read_json(kept)


def table() -> str:
    """What was measured, as Markdown."""
    rows = read_json(ROWS)
    values = {(row["knob"], row["metric"]): row["value"] for row in rows}
    real, steps = values[AS_IT_IS, "frechet_real"], rows[0]["steps"]
    lines = [
        f"| {steps:,} steps of 32 images, or as many images | accuracy | Fréchet | recall |",
        "|---|---|---|---|",
    ]
    for knob in dict.fromkeys(row["knob"] for row in rows):
        a, f, r = (values[knob, metric] for metric in ("accuracy", "frechet", "recall"))
        lines.append(f"| {knob} | {a:.1%} | {f:.2f} | {r:.3f} |")
    source = (
        f"One seed; {rows[0]['samples']:,} samples with {rows[0]['nfe']} Euler steps, without "
        f"guidance; real against real has a Fréchet distance of {real:.2f} at as many. "
        "`python -m tools.knobs`; rows in `data/results/knobs.json`."
    )
    return "\n".join([*lines, "", source])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=SHORT, help=f"of 32 images ({SHORT})")
    options, rows = parser.parse_args(words), []
    for knob in KNOBS:
        mine = chosen(knob, options.steps)
        out = ROOT / "build" / "knobs" / f"{options.steps}" / knob.replace(" ", "_")
        run = train(mine, dataset("mnist"), out=out, resume="auto", label=knob)
        rows += measured(knob, run, out)
        if knob == AS_IT_IS:
            rows += measured(NO_AVERAGE, Run.open(out, average="model"), out)
        write_rows(ROWS, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
