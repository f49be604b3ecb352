"""What `cfm-lite sample`, `evaluate` and `compare` do: from a run's folder to samples, from samples to rows, from seeds to a report."""

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfm_lite import experiments, runs, viz
from cfm_lite.checkpoint import write_bytes
from cfm_lite.checks import check_choice, check_count, parse_json
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.errors import DataError
from cfm_lite.experiments import ARMS, Row
from cfm_lite.experiments.costs import ROUNDS
from cfm_lite.experiments.readme import quality_figure, write_report
from cfm_lite.experiments.sweep import Plan
from cfm_lite.recipes import Recipe, from_dict
from cfm_lite.runs import Run

__all__ = ["compare_suite", "evaluate_file", "picture", "report_suite", "sample_run", "time_steps"]

LIMIT = 2**32  # bytes of samples in one file


def sample_run(folder: str | Path, out: str | Path | None, num: int, device: str, **changes: Any) -> tuple[Path, Path]:
    """Draw `num` samples from a run's averaged model; returns the npz (x, y, settings) and the picture beside it.

    `changes` are recipe fields that decide the samples (solver, sample_steps, guidance, seed); None keeps the run's own.
    Raises CheckpointError where there is no run and ConfigError for a wrong setting.
    """
    check_count("num", num)
    folder = Path(folder)
    trained = runs.saved_recipe(folder if (folder / "config.json").exists() else folder.parent.parent)
    data = dataset(trained.dataset)
    recipe, model, step = runs.load_model(folder, data)
    recipe = recipe.changed(**{name: value for name, value in changes.items() if value is not None})
    run = Run(recipe, model.to(runs.pick_device(device)))
    y = experiments.balanced_labels(data.num_classes, num)
    x = experiments.draw_samples(ARMS[_arm(recipe)], run, data, y, recipe.sample_steps, recipe.seed)
    path = Path(out) if out else (folder if folder.is_dir() else folder.parent) / "samples.npz"
    _save_samples(path, x, y, recipe, step)
    return path, picture(x, y, data, path.with_suffix(".png"))


def _arm(recipe: Recipe) -> str:
    return recipe.method if recipe.method in ARMS else "fm"


def _save_samples(path: Path, x: Tensor, y: Tensor, recipe: Recipe, step: int) -> None:
    buffer = io.BytesIO()
    settings = json.dumps({"recipe": recipe.as_dict(), "step": step})
    np.savez_compressed(buffer, x=x.numpy(), y=y.numpy(), settings=np.array(settings))
    write_bytes(path, buffer.getvalue())


def load_samples(path: str | Path) -> tuple[Tensor, Tensor, Recipe]:
    """(x, y, recipe) of a file that `sample_run` wrote; DataError if it is missing, damaged or another kind of file."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LIMIT:
            raise DataError(f"it unpacks to {size:,} bytes, the limit is {LIMIT:,}")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            x, y, settings = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]), parse_json(str(file["settings"]))
        recipe = from_dict(settings["recipe"])
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Run cfm-lite sample first, or give the right file.") from None
    except Exception as error:  # a damaged archive or header fails in every way that zlib and Python's own parser can
        raise DataError(f"{path} holds no samples of cfm-lite sample ({error}). Draw them again.") from None
    if len(x) != len(y) or not torch.isfinite(x).all():
        raise DataError(f"{path} holds {len(x)} samples and {len(y)} labels, or values that are not finite. Draw them again.")
    return x, y, recipe


def evaluate_file(path: str | Path, out: str | Path | None = None) -> tuple[list[Row], Path]:
    """Measure the samples in an npz; returns flat rows and the metrics.json that they were written to."""
    x, y, recipe = load_samples(path)
    data = dataset(recipe.dataset)
    values = experiments.measure(x, y, data, experiments.judge_of(recipe.dataset))
    base = experiments.row_base(_arm(recipe), recipe, len(x), recipe.sample_steps)
    rows = [{**base, "metric": name, "value": value} for name, value in values.items()]
    return rows, runs.write_json(Path(out) if out else Path(path).with_name("metrics.json"), rows)


def picture(x: Tensor, y: Tensor, data: DataSet, path: Path, shown: int = 100) -> Path:
    """samples.png: rows of ten classes for images, a cloud over the held-out data for points."""
    if x.dim() > 2:
        columns = min(len(x), data.num_classes)
        whole = min(len(x), shown) // columns
        rows = {f"sample {i + 1}": x[i * columns : (i + 1) * columns] for i in range(whole)}
        return viz.save(viz.image_grid(rows, [int(label) for label in y[:columns]]), path)
    return viz.save(viz.point_samples({"samples": x}, data=data.held_x1[:2000]), path)


def compare_suite(
    suite: str,
    *,
    out: str | Path,
    groups: Sequence[str] = (),
    device: str = "auto",
    workers: int | None = None,
    only_list: bool = False,
    command: str = "",
    **chosen: Any,
) -> str:
    """Run what is missing of a suite's groups ("all" is every group) and return the report, or the list of jobs if `only_list`.

    `chosen` are seeds, first_seed, arms, changes and quick, as `experiments.plan` takes them.
    """
    check_choice("suite", suite, experiments.SUITES)
    where = runs.pick_device(device)
    every = tuple(experiments.SUITES[suite].groups)
    settings = {"out": out, "groups": every if "all" in groups else groups or ("core",), "device": str(where), **chosen}
    many = check_count("workers", workers) if workers is not None else _side_by_side(bool(chosen.get("quick")))
    if only_list:
        return listing(experiments.plan(suite, **settings), many)
    experiments.compare(suite, workers=many, command=command, **settings)
    return report_suite(suite, out)


def _side_by_side(quick: bool) -> int:
    """As many jobs as there are cores, but for a quick sweep, whose jobs are shorter than the start of a process."""
    return 1 if quick else os.cpu_count() or 1


def listing(plan: Plan, workers: int) -> str:
    """The jobs of a plan that are not done, with about how long they take together."""
    seconds = plan.seconds()
    lines = [f"{job.key}  about {second:6.0f} s  {job.label}" for job, second in zip(plan.jobs, seconds)]
    every = {trial.key for trial in plan.trials}
    done = len(every) - sum(len(job.trials) for job in plan.jobs)
    total = f"{done} of {len(every)} trials are done; {len(plan.jobs)} jobs are left, about "
    return "\n".join([*lines, f"{total}{sum(seconds) / workers / 60:.0f} min with {workers} workers"])


def time_steps(suite: str, out: str | Path, *, device: str = "auto", changes: Mapping[str, Any], quick: bool = False) -> str:
    """Write SUITE.costs.json, and return it as a table; `quick` takes the miniature's settings and few rounds."""
    check_choice("suite", suite, experiments.SUITES)
    chosen = {**(experiments.SUITES[suite].miniature if quick else {}), **changes}
    rows = experiments.training_costs(suite, device=str(runs.pick_device(device)), rounds=3 if quick else ROUNDS, changes=chosen)
    store = experiments.Store(runs.make_folder(out), suite)
    store.write_costs(rows)
    lines = [
        f"{row['method']:<24}{1000 * row['value']:8.1f} ms {row['relative']:6.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in rows
    ]
    return "\n".join([f"{'a training step of':<24}{'median':>11}   over FM's, and quartiles", *lines, str(store.costs_path)])


def report_suite(suite: str | None, out: str | Path) -> str:
    """The text report of a suite's core, and its figure beside the rows; without a suite, README.md and the figures of all.

    A miniature is called one, and has no figure.
    """
    if suite is None:
        return "\n".join(map(str, write_report(out)))
    path = Path(out) / f"{suite}.json"
    rows = experiments.read_json(path)
    steps = max(row["nfe"] for row in rows)
    measured = {row["metric"] for row in rows}
    shown = [metric for metric in ("frechet", "sliced_wasserstein", "accuracy", "recall") if metric in measured]
    where, miniature = [str(path)], any(row.get("miniature") for row in rows)
    if not miniature:
        where.append(str(viz.save(quality_figure(suite, rows), path.with_suffix(".png"))))
    head = ["A miniature, which shows that everything runs; its numbers mean nothing."] if miniature else []
    return "\n\n".join([*head, *(experiments.report(rows, metric, steps) for metric in shown), "\n".join(where)])
