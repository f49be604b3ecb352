"""`cfm-lite demo`: the whole library on real handwritten digits, in 90 seconds on two cores.

Four methods are trained from one starting point with paired draws. Two controls are sampled from FM
without training. A judge that saw only held-out digits measures all of them. On a CPU each method
has its own process with one thread: small matrices gain little from a second thread. Last, a
network that ships draws larger digits, those of MNIST.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfm_lite import guidance, pretrained, samplers, viz
from cfm_lite import lab as experiments
from cfm_lite._internal.places import expanded
from cfm_lite.data import mnist, toy
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.errors import DistributedError
from cfm_lite.evaluate.judges import Judge, judge_for
from cfm_lite.lab import ARMS, Row
from cfm_lite.methods import FIRST
from cfm_lite.models.classifier import one_thread
from cfm_lite.runs import facts, make_folder, pick_device, train, write_json
from cfm_lite.runs.folder import check_kind
from cfm_lite.runs.recipe import Recipe, recipe
from cfm_lite.runs.sampling import noise_of
from cfm_lite.viz import METHOD_LABELS

__all__ = ["GOALS", "SHIPPED", "SHOWN", "demo", "shipped_pictures", "table"]

SHOWN = ("fm", "fm_scaled", "fm_retargeted", *FIRST[1:])
NFES = (2, 4, 8, 16, 50)
# the MNIST networks that ship, as they are drawn: {title: (network, guidance)}
SHIPPED = {"FM": ("mnist_unet_fm", 1.0), "FM, guidance 2": ("mnist_unet_fm", 2.0)}
# at least; at most, times the real data's own; at least
GOALS = {"accuracy": 0.985, "frechet": 2.0, "nearest_ratio": 0.9}


@dataclass(frozen=True)
class Job:
    """One method to train, and the arms to sample from it."""

    recipe: Recipe
    arms: tuple[str, ...]
    device: str
    samples: int
    bar: int  # the line of its progress bar


@dataclass(frozen=True)
class Done:
    """The result of a job: flat rows, {arm: two images of each class}, and the seconds of
    training.
    """

    rows: list[Row]
    images: dict[str, Tensor]
    seconds: float


def demo(out: str | Path, *, seed: int = 0, device: str = "auto", quick: bool = False) -> str:
    """Run the demo, write its files to `out`, and return the table to print.

    The files are samples.png, fields.png, quality_vs_steps.png, pictures.png, metrics.json (flat
    rows) and config.json.

    Raises ConfigError for an unknown device, or a folder that holds something else.
    """
    with one_thread():
        where, _ = pick_device(device), recipe("digits", seed=seed)
        return _demo(make_folder(check_kind(expanded(out), "the demo")), where, seed, quick)


def _demo(out: Path, where: torch.device, seed: int, quick: bool) -> str:
    base = recipe("digits", seed=seed, **({"steps": 20} if quick else {}))
    methods = list(dict.fromkeys(ARMS[name].trained for name in SHOWN))
    arms = {m: tuple(name for name in SHOWN if ARMS[name].trained == m) for m in methods}
    n = 100 if quick else 1000
    jobs = [Job(base.changed(method=m), arms[m], str(where), n, i) for i, m in enumerate(methods)]
    steps = 4 if quick else 50
    if where.type == "cpu" and not quick:
        found = _work(jobs, out, steps)
    else:
        found = [_run(job) for job in jobs]
        _draw_untrained(out, steps)
    done = dict(zip(methods, found))
    rows = [row for name in SHOWN for row in done[ARMS[name].trained].rows if row["method"] == name]
    data, judge = dataset("digits"), judge_for("digits")
    write_json(out / "metrics.json", rows)
    images = {name: image for part in done.values() for name, image in part.images.items()}
    _draw(images, data, rows, out)
    trained = {
        m: {"seconds": done[m].seconds, "recipe": job.recipe.as_dict()}
        for m, job in zip(methods, jobs)
    }
    told = {
        "accuracy": judge.accuracy,
        "fingerprint": judge.fingerprint,
        "trained_on": "the held-out half of the digits",
    }
    config = {"runs": trained, "judge": told, "goals": GOALS, "quick": quick, "facts": facts(where)}
    write_json(out / "config.json", config)
    drawn = ("samples.png", "fields.png", "quality_vs_steps.png", "pictures.png")
    pictures = [str(out / name) for name in drawn]
    note = "quick: the numbers mean nothing\n" if quick else ""
    return f"\n{note}{table(rows, judge)}\n\n" + "\n".join(pictures)


def _work(jobs: Sequence[Job], out: Path, steps: int) -> list[Done]:
    """Run the jobs side by side, one per core, each with one thread. An interrupt ends them all at
    once. Whoever is free first draws what needs no training.

    Raises DistributedError if a process dies, and what a job raises.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_one_thread, initargs=(context.RLock(),)
    )
    try:
        done = pool.map(_run, jobs)
        drawn = pool.submit(_draw_untrained, out, steps)
        found = list(done)
        drawn.result()
        return found
    except BaseException as error:
        for child in multiprocessing.active_children():  # else they would train to the end first
            child.kill()
        if isinstance(error, BrokenProcessPool):
            raise DistributedError(
                "a training process died, perhaps because memory ran out; close other programs "
                "and run again."
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread(lock: Any) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(lock)  # the bars of several processes share one terminal


def _run(job: Job) -> Done:
    """Train one method, sample its arms with every number of steps, and measure them."""
    data, judge = dataset("digits"), judge_for("digits")
    run = train(
        job.recipe,
        data,
        device=job.device,
        bar=job.bar,
        label=METHOD_LABELS[job.recipe.method],
    )
    labels, _ = _two_of_each(data)
    rows, images = [], {}
    for name in job.arms:
        rows += experiments.rows_of(ARMS[name], run, data, judge, nfes=NFES, n=job.samples)
        images[name] = experiments.draw_samples(
            ARMS[name], run, data, labels, run.recipe.sample_steps, run.recipe.seed
        )
    return Done(rows, images, run.seconds)


def _two_of_each(data: DataSet) -> tuple[Tensor, Tensor]:
    """Each label twice, and two held-out images of each class."""
    labels = torch.arange(data.num_classes, device="cpu").repeat_interleave(2)
    real = torch.stack(
        [data.held_x1[data.held_y == c][i] for c in range(data.num_classes) for i in range(2)]
    )
    return labels, real


def _draw(images: dict[str, Tensor], data: DataSet, rows: Sequence[Row], out: Path) -> None:
    """The two pictures of what was trained: ten classes per method, and quality against steps."""
    labels, real = _two_of_each(data)
    columns = [str(int(label)) if i % 2 == 0 else "" for i, label in enumerate(labels)]
    shown = {"real": real} | {name: images[name] for name in SHOWN}
    viz.save(viz.image_grid(shown, columns), out / "samples.png")
    viz.save(viz.quality_vs_steps(rows), out / "quality_vs_steps.png")


def _draw_untrained(out: Path, steps: int) -> None:
    """The exact fields in the plane, and what the networks that ship draw in `steps` steps."""
    viz.save(viz.fields_figure(toy.mixture("two_classes")), out / "fields.png")
    viz.save(
        viz.image_grid(shipped_pictures(torch.arange(10, device="cpu"), steps)),
        out / "pictures.png",
    )


@torch.no_grad()
def shipped_pictures(y: Tensor, steps: int) -> dict[str, Tensor]:
    """{title: images (N, 1, 28, 28) for labels `y` (N,)} of each of SHIPPED, from the same noise.

    The first title is "real", if the files of MNIST are there.
    """
    rows: dict[str, Tensor] = {}
    if mnist.available():
        images, labels = mnist.load("test")
        waiting = {int(c): iter(images[labels == c]) for c in y.unique()}
        rows["real"] = torch.stack([next(waiting[int(c)]) for c in y])
    noise = noise_of((1, 28, 28), len(y), 0)
    times = torch.linspace(0, 1, steps + 1, dtype=noise.dtype, device="cpu")
    for title, (name, scale) in SHIPPED.items():
        velocity = guidance.cfg(pretrained.load(name), y, scale)
        rows[title] = samplers.sample(velocity, noise, times, samplers.euler)
    return rows


def table(rows: Sequence[Row], judge: Judge) -> str:
    """Accuracy, Fréchet distance and nearest-neighbour ratio at 50 evaluations. A star marks a
    missed goal.
    """
    at = {(row["method"], row["metric"]): row["value"] for row in rows if row["nfe"] == max(NFES)}
    real = at["fm", "frechet_real"]
    heads = (f"{name:>10}" for name in ("accuracy", "Fréchet", "nearest", " precision", "recall"))
    lines = [f"{'50 Euler steps':<26}{''.join(heads)}"]
    for name in SHOWN:
        values = {
            metric: at[name, metric]
            for metric in ("accuracy", "frechet", "nearest_ratio", "precision", "recall")
        }
        misses = {
            "accuracy": values["accuracy"] < GOALS["accuracy"],
            "frechet": values["frechet"] > GOALS["frechet"] * real,
            "nearest_ratio": values["nearest_ratio"] < GOALS["nearest_ratio"],
        }
        star = {metric: "*" if missed else " " for metric, missed in misses.items()}
        lines.append(
            f"{METHOD_LABELS[name]:<26}{values['accuracy']:>9.1%}{star['accuracy']}"
            f"{values['frechet']:>9.2f}{star['frechet']}"
            f"{values['nearest_ratio']:>9.2f}{star['nearest_ratio']}"
            f"{values['precision']:>10.2f}{values['recall']:>10.2f}"
        )
    bound = f"≤ {GOALS['frechet'] * real:.2f}"
    lines.append(f"{'goal':<26}{'≥ 98.5%':>9} {bound:>9} {'≥ 0.90':>9}")
    star = "* misses the goal. " if any("*" in line for line in lines) else ""
    lines.append(
        f"{star}One seed: no difference here is significant. The judge is right on "
        f"{judge.accuracy:.1%} of unseen digits."
    )
    return "\n".join(lines)
