"""The training of a run, and the files that it leaves: config.json, log.jsonl, checkpoints/step-N/.

A line of the log holds step, loss, every term, grad_norm and lr. It also holds measurements:
seconds since the start, images_per_second, memory (the most bytes so far) and, if the device's peak
is known, mfu.

On Ctrl-C or SIGTERM a run finishes its step, saves and stops. It can be resumed bit for bit.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cfm_lite._internal.checks import check_count, parse_json
from cfm_lite._internal.places import expanded
from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import DataSet
from cfm_lite.data.shared import owned
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CFMError, CheckpointError, ConfigError, DataError, ResumeMismatchError
from cfm_lite.runs.folder import CHECKPOINTS, CONFIG, make_folder
from cfm_lite.runs.machine import check_batch, facts, finite, peak_memory, write_json
from cfm_lite.runs.recipe import Recipe, build_model, build_trainer, check_null
from cfm_lite.runs.run import Run
from cfm_lite.runs.segments import check_same_data, check_same_recipe, new_config, note_on_schedule
from cfm_lite.runs.spec import Spec
from cfm_lite.runs.throughput import Clock, utilisation
from cfm_lite.training import Trainer

__all__ = ["Terminated", "resumes", "train"]


def train(
    recipe: Recipe,
    data: Any,
    *,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    resume: bool | str = False,
    save_every: int = 1000,
    log_every: int = 50,
    progress: bool = True,
    bar: int = 0,
    label: str = "",
    trainer: Trainer | None = None,
    source: Callable[[int], Iterator[Any]] | None = None,
    about: Mapping[str, Any] | None = None,
    listen: Callable[[Mapping[str, float]], None] | None = None,
    sample_every: int = 0,
    draw: Callable[[nn.Module, int], None] | None = None,
    spec: Spec | None = None,
    compile: bool | None = None,
) -> Run:
    """Train a recipe on a data set, with a progress bar on line `bar`. Config, log and checkpoints
    go to `out`.

    `resume` is True (resume from the newest checkpoint in `out`), False (start), or "auto" (resume
    if there is a checkpoint, else start). `trainer` and `source` replace those of the recipe;
    `source` is a function from the first step to an iterator of batches. `about` is written into
    config.json. `listen` is called with every logged line. Every `sample_every` steps (0: never)
    `draw` is called on every rank, with the averaged model and the step. `compile` is that of
    `Trainer`. Only rank 0 writes and shows.

    Raises ConfigError if `out` holds a run and `resume` is not set, if another process trains
    there, for guidance without `label_dropout`, and for what cannot act: `sample_every` without
    `draw`, `resume=True` without `out`, `compile` beside a `trainer`.
    Raises ResumeMismatchError if `out` holds another run (see `segments`), DistributedError, and
    what `Trainer.run` raises.

    >>> from cfm_lite.data.datasets import dataset
    >>> short = Recipe(dataset="moons", hidden_size=8, depth=1, batch=32, steps=2)
    >>> train(short, dataset("moons", points=64), progress=False).step
    2
    """
    save_every = check_count("save_every", save_every)
    log_every = check_count("log_every", log_every)
    sample_every = check_count("sample_every", sample_every, low=0)
    _check_acts(recipe, out, resume, sample_every, draw)
    if "start" not in (about or {}).get("data", {}):
        check_null(recipe, recipe.guidance)
    device = torch.device(device)
    # absolute: the current folder may change between two steps
    folder = None if out is None else expanded(out).absolute()
    if source is None and isinstance(data, DataSet):
        check_batch(recipe.batch, data.shape, device)
    if trainer and compile is not None:
        raise ConfigError(
            f"compile is {compile!r:.60} beside a trainer, which has its own; leave compile out."
        )
    trainer = trainer or build_trainer(
        recipe, build_model(recipe, data).to(device), compile=compile
    )
    trainer.log_every, world = log_every, trainer.world
    about = {**({"how": {"compile": True}} if trainer.compiled else {}), **(about or {})}
    spec, about = _described(data, spec, about, folder)
    source = source or functools.partial(_rows_of, data, recipe, device)
    mine = folder if world.is_main else None
    with contextlib.ExitStack() as held:
        held.enter_context(_undone_if_refused(mine, trainer))
        if folder:
            _begin(held, folder, recipe, trainer, device, resume, about)
        run = Run(recipe, trainer.ema, trainer.step, first=trainer.step, spec=spec)
        began = time.perf_counter()
        stop = held.enter_context(_stop_requests())
        write, spent = held.enter_context(_log_file(mine, trainer.step, listen))
        shown = held.enter_context(_bar(recipe, trainer, progress and world.is_main, bar, label))
        held.enter_context(world.watching(lambda: _kept(trainer, folder)))
        for step in _steps(run, trainer, source, shown, write, Clock(recipe.batch, spent)):
            run.step = step
            if draw and sample_every and step % sample_every == 0:
                _look(draw, trainer.ema, step)
            due = step == recipe.steps or step % save_every == 0
            looks = due or device.type == "cpu" or step % log_every == 0
            halt = looks and world.any(bool(stop), device)
            if folder and (due or halt):
                trainer.save(folder / CHECKPOINTS, config=recipe.as_dict())
            if halt:
                raise stop[0] if stop else Terminated()
    run.seconds = time.perf_counter() - began
    return run


def _check_acts(
    recipe: Recipe, out: str | Path | None, resume: bool | str, sample_every: int, draw: Any
) -> None:
    """ConfigError for what would change nothing."""
    _check_resume(resume)
    if sample_every and draw is None:
        raise ConfigError(
            f"sample_every is {sample_every} and there is no draw: nothing would be drawn. Give "
            "draw, or leave sample_every out."
        )
    if resume is True and out is None:
        raise ConfigError(
            "resume is True and there is no out: there is no run to resume. Give its folder, or "
            "leave resume out."
        )
    if draw and sample_every > recipe.steps:
        raise ConfigError(
            f"sample_every is {sample_every} and there are {recipe.steps} steps: nothing would be "
            "drawn. Use a smaller sample_every, or 0."
        )


def _described(
    data: Any, spec: Spec | None, about: Mapping[str, Any], folder: Path | None
) -> tuple[Spec | None, dict[str, Any]]:
    """The spec of a run on `data`, and what its config.json says beside the recipe."""
    told: dict[str, Any] = {}
    if isinstance(data, DataSet):
        told = {"data": data.about} if folder else {}
        spec = spec or Spec(data.shape, data.num_classes, data.condition)
    return spec, {**told, **about, **({"spec": spec.as_dict()} if spec else {})}


def _rows_of(
    data: DataSet, recipe: Recipe, device: torch.device, start: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of a data set from step `start` on."""
    return batches(
        data.x1.to(device), data.y.to(device), size=recipe.batch, seed=recipe.seed, start=start
    )


def _begin(
    held: contextlib.ExitStack,
    folder: Path,
    recipe: Recipe,
    trainer: Trainer,
    device: torch.device,
    resume: bool | str,
    about: Mapping[str, Any],
) -> None:
    """Take the folder for a new run, or resume the one that it holds."""
    world = trainer.world
    if not world.share(lambda: _prepare(held, folder, recipe, device, resume, about)):
        return
    trainer.resume(
        folder / CHECKPOINTS,
        accept=lambda saved: check_same_recipe(folder / CHECKPOINTS, saved, recipe),
    )
    world.agree("the checkpoint", trainer.step)
    if recipe.steps < trainer.step:
        raise ResumeMismatchError(
            f"{folder} has done {trainer.step} steps and steps is {recipe.steps}; give "
            f"{trainer.step} or more."
        )
    world.on_main(lambda: _go_on(folder, recipe, trainer.step, device, about))


def _look(draw: Callable[[nn.Module, int], None], model: nn.Module, step: int) -> None:
    """Draw samples on the way. If that fails, there is only a note: the training is worth more."""
    training = model.training
    try:
        draw(model.eval(), step)
    except Exception as error:  # also a full disk, or what a draw of one's own raises
        told = str(error) if isinstance(error, CFMError) else repr(error)
        warnings.warn(f"no samples at step {step}: {told}", UserWarning, stacklevel=2)
    finally:
        model.train(training)


@contextlib.contextmanager
def _undone_if_refused(folder: Path | None, trainer: Trainer) -> Iterator[None]:
    """If a run is refused before its first step, remove the files and folders that it made."""
    if folder is None:
        yield
        return
    before = set(folder.iterdir()) if folder.is_dir() else set()
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        yield
    except (ConfigError, DataError, CheckpointError):
        if trainer.step == 0:
            for path in (set(folder.iterdir()) if folder.is_dir() else set()) - before:
                path.unlink() if path.is_file() else None
            with contextlib.suppress(OSError):  # somebody else's file is in it by now
                for path in missing:
                    path.rmdir()
        raise


def resumes(folder: str | Path, resume: bool | str = "auto") -> bool:
    """Whether a run resumes from a checkpoint in `folder`: `resume` itself, or for "auto" whether
    one exists.

    A run that was killed before its first save has none, so it starts again. A run whose
    checkpoints are all damaged has some, so it is never silently started again. Raises ConfigError
    unless `resume` is True, False or "auto", and CheckpointError if it cannot be seen.

    >>> import tempfile
    >>> resumes(tempfile.mkdtemp())  # no checkpoint there
    False
    """
    _check_resume(resume)
    if isinstance(resume, bool):
        return resume
    return checkpoint.exists(expanded(folder) / CHECKPOINTS)


def _check_resume(resume: Any) -> None:
    if not isinstance(resume, bool) and resume != "auto":
        raise ConfigError(f"resume is {resume!r:.60}; it must be True, False or 'auto'.")


def _kept(trainer: Trainer, folder: Path | None) -> Path | None:
    """The checkpoint to resume from. What rank 0 saved last counts, even if it died right
    afterwards.
    """
    if folder and checkpoint.exists(folder / CHECKPOINTS):
        return trainer.last_good or folder / CHECKPOINTS
    return trainer.last_good


def _bar(recipe: Recipe, trainer: Trainer, progress: bool, line: int, label: str) -> Any:
    """A progress bar; in a terminal several of them have a line each, in a log file a line every
    few seconds is enough.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=recipe.steps,
        initial=trainer.step,
        desc=f"{label or recipe.method:<21}",
        unit="step",
        disable=not progress,
        mininterval=0.2 if terminal else 5.0,
        position=line if terminal else None,
    )


def _steps(
    run: Run,
    trainer: Trainer,
    source: Callable[[int], Iterator[Any]],
    bar: Any,
    write: Any,
    clock: Clock,
) -> Iterator[int]:
    """Train to the recipe's last step. Yields the step count, and reads the log when it is due."""
    recipe, device = run.recipe, trainer.parameters[0].device
    if trainer.step >= recipe.steps:
        return
    for log in trainer.run(source(trainer.step), recipe.steps - trainer.step):
        clock.tick()
        if trainer.step % trainer.log_every == 0 or trainer.step == recipe.steps:
            read = {
                name: float(value) for name, value in log.items()
            }  # waits for the device, so the clock is read after it
            read |= {"lr": trainer.lr, **clock.read(), "memory": float(peak_memory(device))}
            mfu = utilisation(
                run.model, read["images_per_second"] / trainer.world.size, device, trainer.precision
            )
            read |= {} if mfu is None else {"mfu": mfu}
            run.log.append(read)
            write(read)
            rate, memory = f"{read['images_per_second']:.0f}", f"{read['memory'] / 2**30:.1f} GiB"
            bar.set_postfix(
                {"loss": f"{read['loss']:.4f}", "images/s": rate, "memory": memory}, refresh=False
            )
        bar.update()
        with clock.paused():  # what the caller does between steps, such as saving, does not count
            yield trainer.step


def _prepare(
    held: contextlib.ExitStack,
    folder: Path,
    recipe: Recipe,
    device: torch.device,
    resume: bool | str,
    about: Mapping[str, Any],
) -> bool:
    """Lock the folder until `held` is left. Write config.json, or return True if the run
    resumes.
    """
    if resume is True and not folder.exists():  # refused before the folder is made
        raise CheckpointError(
            f"{folder} is not a run: it does not exist. Leave --resume out, or give --resume auto."
        )
    make_folder(folder)
    held.enter_context(owned(folder))
    if resumes(folder, resume):  # asked under the lock: nobody else saves there any more
        before = _config(folder)
        check_same_recipe(folder, before.get("recipe", {}), recipe) if before else None
        check_same_data(folder, before.get("data", {}), about.get("data", {}))
        return True
    if checkpoint.exists(folder / CHECKPOINTS):
        raise ConfigError(
            f"{folder} already holds a run; add --resume to resume it, or choose another --out."
        )
    write_json(folder / CONFIG, {"recipe": recipe.as_dict(), **about, "facts": facts(device)})
    return False


def _go_on(
    folder: Path, recipe: Recipe, step: int, device: torch.device, about: Mapping[str, Any]
) -> None:
    """Update config.json, with a new segment after a change. Say if the learning rate of past steps
    moves.
    """
    before = _config(folder)
    note = note_on_schedule(before.get("recipe", {}), recipe, step)
    if note:
        warnings.warn(note, UserWarning, stacklevel=3)
    now = new_config(before, recipe, step, about, facts(device))
    if now != before:
        write_json(folder / CONFIG, now)


def _config(folder: Path) -> dict[str, Any]:
    """The config.json of a run that is resumed. Empty if it is missing or damaged: checkpoints hold
    enough.
    """
    try:
        config = parse_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("recipe"), dict) else {}


@contextlib.contextmanager
def _log_file(
    folder: Path | None, step: int, listen: Callable[[Mapping[str, float]], None] | None = None
) -> Iterator[tuple[Callable[[Mapping[str, float]], Any], float]]:
    """(a function that appends one line to log.jsonl, the seconds of the existing lines).

    Lines after `step`, which a killed run left, are dropped first.
    """
    hear = listen or (lambda line: None)
    if folder is None:
        yield hear, 0.0
        return
    path = folder / "log.jsonl"
    kept = [(text, line) for text, line in _whole_lines(path) if line["step"] <= step]
    seconds = [line.get("seconds") for _, line in kept]
    spent = max((s for s in seconds if isinstance(s, (int, float))), default=0.0)
    checkpoint.write_bytes(path, "".join(f"{text}\n" for text, _ in kept).encode())
    with open(path, "a", encoding="utf-8") as file:
        yield (
            lambda line: (file.write(json.dumps(finite(line)) + "\n"), file.flush(), hear(line)),
            spent,
        )


def _whole_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(text, content) of each line that is a whole JSON object with a step."""
    if path.exists():
        for raw in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                text = raw.decode()
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), (int, float)):
                    yield text, line


class Terminated(SystemExit):
    """Raised for SIGTERM after the run was saved. Exit code 143.

    >>> Terminated().code
    143
    """

    def __init__(self) -> None:
        super().__init__(143)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[BaseException]]:
    """A list that fills when Ctrl-C or SIGTERM asks to stop. A second request stops at once.

    Under torchrun only the third request stops at once. A terminal and SLURM signal every process,
    and torchrun then passes the signal on: two signals are one request. They must not cut off a
    save that has begun.
    """
    requests: list[BaseException] = []
    enough = 2 if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def ask(number: int, frame: FrameType | None) -> None:
        error: BaseException = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        if len(requests) >= enough:
            raise error
        requests.append(error)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
