"""What `cfm-lite sample`, `evaluate` and `compare` do: from a run's folder to samples, from samples
to rows, from seeds to a report.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfm_lite import guidance, runs, viz
from cfm_lite import lab as experiments
from cfm_lite._internal.checks import check_choice, check_count, parse_json
from cfm_lite._internal.places import check_file, check_folder, expanded
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.draws import class_labels, keyed_generator
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.evaluate.card import card_of
from cfm_lite.lab import ARMS, Row
from cfm_lite.lab.costs import ROUNDS
from cfm_lite.lab.readme import quality_figure, write_report
from cfm_lite.lab.suites import trials as trials_of
from cfm_lite.lab.sweep import Plan
from cfm_lite.methods import debiasing
from cfm_lite.runs import Run
from cfm_lite.runs.reads import READS, unread
from cfm_lite.runs.recipe import Recipe, from_dict

__all__ = ["compare_suite", "evaluate_file", "picture", "report_suite", "sample_run", "time_steps"]

LIMIT = 2**32  # bytes of samples in one file


def sample_run(
    folder: str | Path,
    out: str | Path | None,
    num: int,
    device: str,
    *,
    sde: bool = False,
    interval: tuple[float, float] = (0.0, 1.0),
    debias: bool = False,
    labels: str = "turn",
    average: str = "ema",
    **changes: Any,
) -> tuple[Path, Path]:
    """Draw `num` samples from a run's averaged model; returns the npz (x, y, settings) and the
    picture beside it.

    `folder` is a run or one of its checkpoints, `changes` are recipe fields that decide the samples
    (solver, sample_steps, guidance, seed); None keeps the run's own. `interval` limits guidance,
    `sde` and `debias` are those of `cfm-lite sample`, `labels` is as in `class_labels`, and
    `average` as in `runs.load_model`. Raises CheckpointError where there is no run, ConfigError for
    a wrong setting or a file that would be lost, DataError where nothing can be written; all before
    anything is drawn.
    """
    num = check_count("num", num)
    guidance.check_interval(interval)
    trained = runs.saved_recipe(folder)
    recipe = trained.changed(
        **{name: value for name, value in changes.items() if value is not None}
    )
    if sde and recipe.sample_steps < 2:
        raise ConfigError(
            f"steps is {recipe.sample_steps}; the SDE takes at least 2, the last of them without "
            "noise."
        )
    arm = debiasing(recipe) if debias else ARMS[recipe.method]
    path = check_file(
        expanded(out) if out else runs.located(folder).folder / "samples.npz", (".npz",)
    )
    check_file(path.with_suffix(".png"), (".png",))
    _check_replaceable(path)
    data = dataset(trained.dataset)
    y = class_labels(
        labels, data.num_classes, num, generator=keyed_generator("cpu", recipe.seed, "labels")
    )
    _, model, step = runs.load_model(folder, data, average)
    run = Run(recipe, model.to(runs.pick_device(device)))
    how = {"solver": "sde" if sde else recipe.solver, "interval": interval}
    x = experiments.draw_samples(arm, run, data, y, recipe.sample_steps, recipe.seed, **how)
    _save_samples(
        path,
        x,
        y,
        {
            "recipe": recipe.as_dict(),
            "step": step,
            **how,
            "debias": debias,
            "labels": labels,
            "average": average,
        },
    )
    return path, picture(x, y, data, path.with_suffix(".png"))


def drawing(
    recipe: Recipe, data: DataSet, folder: str | Path, num: int = 100
) -> Callable[[nn.Module, int], None]:
    """A function of a model and a step that writes FOLDER/samples-step-N.png, as `runs.train` takes
    it: the same noise each time.
    """
    y = experiments.balanced_labels(data.num_classes, num)

    def draw(model: nn.Module, step: int) -> None:
        x = experiments.draw_samples(
            ARMS[recipe.method], Run(recipe, model), data, y, recipe.sample_steps, recipe.seed
        )
        picture(x, y, data, Path(folder) / f"samples-step-{step:08d}.png")

    return draw


def _check_replaceable(path: Path) -> None:
    """Raise ConfigError for an npz that `sample_run` did not write: it may be somebody's data."""
    if not path.exists():
        return
    try:
        with zipfile.ZipFile(path) as archive:
            ours = {"x.npy", "y.npy", "settings.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return  # a half-written or damaged file: what it held is lost already
    if not ours:
        raise ConfigError(
            f"{path} holds no samples of cfm-lite sample and would be lost; choose another --out."
        )


def _save_samples(path: Path, x: Tensor, y: Tensor, settings: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=x.numpy(), y=y.numpy(), settings=np.array(json.dumps(settings)))
    write_bytes(path, buffer.getvalue())


def load_samples(path: str | Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(x, y, settings) of a file that `sample_run` wrote, or of the samples.npz in a folder; the
    recipe is settings["recipe"].

    Raises DataError if it is missing, damaged or another kind of file.
    """
    path = _npz_of(path)
    if path.is_dir():
        raise DataError(
            f"{path} is a folder without a samples.npz. Give one of cfm-lite sample, or for images "
            "what to measure them against, "
            "with --reference."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LIMIT:
            raise DataError(f"it unpacks to {size:,} bytes, the limit is {LIMIT:,}")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if "arr_0" in file:
                raise DataError(
                    "it holds images, arr_0, which are measured against others: give those with "
                    "--reference"
                )
            x, y, settings = (
                torch.from_numpy(file["x"]),
                torch.from_numpy(file["y"]),
                parse_json(str(file["settings"])),
            )
        from_dict(settings["recipe"])
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing. Run cfm-lite sample first, or give the right file."
        ) from None
    except Exception as error:  # a damaged archive or header fails in every way that zlib and Python's own parser can
        raise DataError(
            f"{path} holds no samples of cfm-lite sample ({error}). Draw them again."
        ) from None
    if len(x) != len(y) or not torch.isfinite(x).all():
        raise DataError(
            f"{path} holds {len(x)} samples and {len(y)} labels, or values that are not finite. "
            "Draw them again."
        )
    return x, y, settings


def _npz_of(path: str | Path) -> Path:
    """The npz itself, or the samples.npz in a folder."""
    path = expanded(path)
    return path / "samples.npz" if (path / "samples.npz").exists() else path


def evaluate_file(path: str | Path, out: str | Path | None = None) -> tuple[list[Row], Path]:
    """Measure the samples in an npz; returns flat rows, each with its card, and the metrics.json
    that they were written to.
    """
    x, y, settings = load_samples(path)
    target = check_file(
        expanded(out) if out else _npz_of(path).with_name("metrics.json"), (".json",)
    )
    name = from_dict(settings["recipe"]).dataset
    data, judge = dataset(name), experiments.judge_of(name)
    values = experiments.measure(x, y, data, judge)
    by = (
        {"features": "coordinates", "features_hash": None}
        if judge is None
        else {"features": f"judge of {judge.dataset}", "features_hash": judge.fingerprint}
    )
    card = card_of(settings, samples=len(x), reference=f"held-out rows of {data.name}", **by)
    held = experiments.reference_rows(len(x), data, judge)
    card |= {
        "codec": type(data.codec).__name__ if data.codec else None,
        "reference_kind": "rows",
        "reference_images": len(held),
    }
    card |= {
        "reference_hash": hashlib.sha256(held.contiguous().numpy().tobytes()).hexdigest(),
        "reference_holds": f"{len(held):,} of {len(data.held_x1):,}",
    }
    return (
        rows := [{**card, "metric": name, "value": value} for name, value in values.items()]
    ), runs.write_json(target, rows)


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
    """Run what is missing of a suite's groups ("all" is every group) and return the report, or the
    list of jobs if `only_list`.

    `chosen` are seeds, first_seed, arms, changes and quick, as `experiments.plan` takes them.
    """
    check_choice("suite", suite, experiments.SUITES)
    out, where = check_folder(expanded(out)), runs.pick_device(device)
    if workers is not None and where.type != "cpu":
        raise ConfigError(
            f"--workers would change nothing: on {where.type} the jobs run one after the other; "
            "leave it out."
        )
    every = tuple(experiments.SUITES[suite].groups)
    settings = {
        "out": out,
        "groups": every if "all" in groups else groups or ("core",),
        "device": str(where),
        **chosen,
    }
    _check_changes(suite, settings)
    many = (
        check_count("workers", workers)
        if workers is not None
        else _side_by_side(bool(chosen.get("quick")))
    )
    if only_list:
        return listing(experiments.plan(suite, **settings), many)
    experiments.compare(suite, workers=many, command=command, **settings)
    return report_suite(suite, out)


def _check_changes(suite: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a recipe field that no trial of these groups reads, or that each of
    them sets itself.
    """
    changes = settings.get("changes") or {}
    if not changes:
        return

    def trials(given: Mapping[str, Any]) -> list[Any]:
        seeds, quick, arms = (
            settings.get("seeds") or (0,),
            bool(settings.get("quick")),
            settings.get("arms", ()),
        )
        whole = {**(experiments.SUITES[suite].miniature if quick else {}), **given}
        how = {"seeds": seeds[:1], "arms": arms, "changes": whole, "quick": quick}
        return [trial for group in settings["groups"] for trial in trials_of(suite, group, **how)]

    for group in settings["groups"]:
        check_choice("group", group, experiments.SUITES[suite].groups)
    keys = [trial.key for trial in trials(changes)]
    for name, value in changes.items():
        before = trials({field: given for field, given in changes.items() if field != name})
        same = all(
            getattr(trial.recipe, name) == value for trial in before
        )  # what the suite has anyway
        idle = name not in READS["vecor"] and all(
            unread(trial.recipe, [name]) for trial in before
        )  # controls read those of VeCoR
        if keys and not same and (idle or keys == [trial.key for trial in before]):
            groups = ", ".join(settings["groups"])
            raise ConfigError(
                f"--set {name} would change nothing in {groups}: no arm there reads it, or each "
                "sets its own. Leave it out."
            )


def _side_by_side(quick: bool) -> int:
    """As many jobs as there are cores, but for a quick sweep, whose jobs are shorter than the start
    of a process.
    """
    return 1 if quick else os.cpu_count() or 1


def listing(plan: Plan, workers: int) -> str:
    """The jobs of a plan that are not done, with about how long they take together."""
    seconds = plan.seconds()
    lines = [
        f"{job.key}  about {second:6.0f} s  {job.label}" for job, second in zip(plan.jobs, seconds)
    ]
    every = {trial.key for trial in plan.trials}
    done = len(every) - sum(len(job.trials) for job in plan.jobs)
    total = f"{done} of {len(every)} trials are done; {len(plan.jobs)} jobs are left, about "
    return "\n".join(
        [*lines, f"{total}{sum(seconds) / workers / 60:.0f} min with {workers} workers"]
    )


def time_steps(
    suite: str,
    out: str | Path,
    *,
    device: str = "auto",
    changes: Mapping[str, Any],
    quick: bool = False,
) -> str:
    """Write SUITE.costs.json, and return it as a table; `quick` takes the miniature's settings and
    few rounds.
    """
    check_choice("suite", suite, experiments.SUITES)
    out = check_folder(expanded(out))
    chosen = {**(experiments.SUITES[suite].miniature if quick else {}), **changes}
    rows = experiments.training_costs(
        suite, device=str(runs.pick_device(device)), rounds=3 if quick else ROUNDS, changes=chosen
    )
    store = experiments.Store(runs.make_folder(out), suite)
    store.write_costs(rows)
    lines = [
        f"{row['method']:<24}{1000 * row['value']:8.1f} ms {row['relative']:6.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}]"
        for row in rows
    ]
    return "\n".join(
        [
            f"{'a training step of':<24}{'median':>11}   over FM's, and quartiles",
            *lines,
            str(store.costs_path),
        ]
    )


def report_suite(suite: str | None, out: str | Path) -> str:
    """The text report of a suite's core, and its figure beside the rows; without a suite, README.md
    and the figures of all.

    A miniature is called one, and has no figure.
    """
    out = check_folder(expanded(out))
    if suite is None:
        return "\n".join(map(str, write_report(out)))
    path = Path(out) / f"{suite}.json"
    rows = experiments.read_json(path)
    steps = max(row["nfe"] for row in rows)
    measured = {row["metric"] for row in rows}
    shown = [
        metric
        for metric in ("frechet", "sliced_wasserstein", "accuracy", "recall")
        if metric in measured
    ]
    where, miniature = [str(path)], any(row.get("miniature") for row in rows)
    if not miniature:
        where.append(str(viz.save(quality_figure(suite, rows), path.with_suffix(".png"))))
    head = (
        ["A miniature, which shows that everything runs; its numbers mean nothing."]
        if miniature
        else []
    )
    return "\n\n".join(
        [*head, *(experiments.report(rows, metric, steps) for metric in shown), "\n".join(where)]
    )
