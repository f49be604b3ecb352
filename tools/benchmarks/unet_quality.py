"""What a network has learnt of MNIST after equal seconds of training: the seconds until the Fréchet
distance of its samples is 2.0, as a ratio to those of each other network of `unet`.

    python -m tools.benchmarks unet_quality --seconds 1200

It takes hours, so it runs only if it is named. All is as in the recipe `mnist`; its learning rate
goes by the share of the seconds that are spent. (The SiT starts from the rate of its own recipe.)
The networks train in turn, each a part of its seconds at a time, so that other work on the machine
slows all alike. After every part 2,000 samples, drawn at 50 Euler steps, are held against the
10,000 test images in the judge's features, outside these seconds; a line of JSON tells the value.
Every network is saved in build/unet_quality after its part: a run that was stopped starts there.
Remove the folder to begin anew.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from cfm_lite import metrics
from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.evaluate.judges import assess, judge_for
from cfm_lite.lab import ARMS, balanced_labels
from cfm_lite.lab.arms import draw_samples
from cfm_lite.runs import Run
from cfm_lite.runs.recipe import build_trainer
from cfm_lite.training import warmup
from tools.benchmarks.harness import ROOT, Clock, NotRun, Row
from tools.benchmarks.unet import NAMES, RECIPE, SIT, all_cores, networks, on_threads

PARTS, SAMPLES, STEPS, REACHED, GOAL = 6, 2000, 50, 2.0, 0.5
RATES = {"sit": SIT.lr}  # the learning rates of networks that have one of their own
FOLDER = ROOT / "build" / "unet_quality"
Curve = list[tuple[float, float]]  # seconds of training, the Fréchet distance then


def rows(clock: Clock) -> Iterator[Row | NotRun]:
    """One row for each other network, with the goal for those of other libraries."""
    models, missing = networks()
    yield from missing
    data, distance = dataset("mnist"), distance_on_mnist()
    trainings = {name: Training(name, x, data, clock.seconds) for name, x in models.items()}
    for part in range(1, PARTS + 1):
        for training in trainings.values():
            training.run(part, distance)
    curves = {name: training.curve for name, training in trainings.items()}
    for other in list(models)[1:]:
        yield compared(curves, other)


def compared(curves: Mapping[str, Curve], other: str) -> Row | NotRun:
    """Our seconds to the goal over those of another network, which has all of them where it does
    not get there: the ratio is at most the one that is told.
    """
    name = f"U-Net on MNIST, time to Fréchet {REACHED:g}: over {NAMES[other]}"
    ends = ", ".join(f"{side} {curves[side][-1][1]:.2f}" for side in ("ours", other))
    seconds = curves["ours"][-1][0]
    note = f"Fréchet after {seconds:.0f} s of training each: {ends}; {SAMPLES} samples, {STEPS} NFE"
    ours, theirs = reached(curves["ours"]), reached(curves[other])
    if ours is None:
        return NotRun(name, f"ours does not get there. {note}")
    if theirs is None:
        theirs, note = curves[other][-1][0], f"at most this: {other} does not get there. {note}"
    goal = None if other == "sit" else GOAL
    times = {"ours": ours, other: theirs}
    return Row(name, ours / theirs, ours / theirs, "<=", goal, times=times, note=note)


def reached(curve: Curve) -> float | None:
    """The first time at which the distance is REACHED, its logarithm taken as linear between two
    measurements; None if it never is.
    """
    before = None
    for seconds, value in curve:
        if value <= REACHED:
            if before is None:
                return seconds
            share = math.log(before[1] / REACHED) / math.log(before[1] / value)
            return before[0] + share * (seconds - before[0])
        before = seconds, value
    return None


def distance_on_mnist() -> Callable[[nn.Module], float]:
    """A function that draws from a network, and gives the Fréchet distance to the test images."""
    data, judge = dataset("mnist"), judge_for("mnist")
    real, y = assess(judge, data.held_x1)[1], balanced_labels(data.num_classes, SAMPLES)

    @torch.no_grad()
    def distance(model: nn.Module) -> float:
        with on_threads(all_cores()):  # it is no part of what is timed, and takes long enough
            x = draw_samples(ARMS["fm"], Run(RECIPE, model.eval()), data, y, STEPS)
        return float(metrics.frechet(assess(judge, x)[1], real))

    return distance


class Training:
    """One network and the seconds that it was trained for; it starts where its folder ends."""

    def __init__(self, name: str, model: nn.Module, data: DataSet, seconds: float) -> None:
        self.name, self.data, self.seconds = name, data, seconds
        self.spent, self.curve = 0.0, Curve()
        self.folder = FOLDER / f"{seconds:g}s" / name
        self.trainer = build_trainer(RECIPE.changed(lr=RATES.get(name, RECIPE.lr)), model)
        self.trainer.schedule = self.rate
        if self.folder.exists():
            self.trainer.resume(self.folder, accept=self._resumed)

    def rate(self, step: int) -> float:
        """The recipe's factor on the learning rate, of seconds in place of steps."""
        left = max(0.0, 1 - self.spent / self.seconds)
        return warmup(RECIPE.warmup)(step) * min(1.0, left / RECIPE.cooldown)

    def run(self, part: int, distance: Callable[[nn.Module], float]) -> None:
        """Train to the end of a part, measure, print and save; nothing if that is done already."""
        if len(self.curve) >= part:
            return
        before, since, until = self.spent, time.perf_counter(), part * self.seconds / PARTS
        source = batches(self.data.x1, self.data.y, size=RECIPE.batch, start=self.trainer.step)
        for _ in self.trainer.run(source, steps=10**9):
            self.spent = before + time.perf_counter() - since
            if self.spent >= until:
                break
        self.curve.append((self.spent, distance(self.trainer.ema)))
        seconds, value = self.curve[-1]
        told = {"network": self.name, "seconds": seconds, "step": self.trainer.step}
        print(json.dumps(told | {"frechet": value}), flush=True)
        self.trainer.save(self.folder, config={"curve": self.curve}, keep=1)

    def _resumed(self, config: Mapping[str, Any]) -> None:
        self.curve = [(seconds, value) for seconds, value in config["curve"]]
        self.spent = self.curve[-1][0]
