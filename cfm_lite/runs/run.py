"""One run of a recipe, and its files: config.json, log.jsonl, checkpoints/step-N/.

A line of the log holds step, loss, every term, grad_norm and lr. It also holds measurements:
seconds since the start, images_per_second, memory (the most bytes so far) and, if the device's peak
is known, mfu.

On Ctrl-C or SIGTERM a run finishes its step, saves and stops. It can be resumed bit for bit.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import cfm_lite
from cfm_lite._internal.checks import check_choice, check_count, load_weights, parse_json
from cfm_lite._internal.files import hash_of_file
from cfm_lite._internal.places import OWN, AnyPath, check_folder, expanded
from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.data.latents.shards import parse_npy
from cfm_lite.data.shared import owned
from cfm_lite.engine import checkpoint
from cfm_lite.engine.average import share_of_start
from cfm_lite.engine.parallel import World, ranks_of_environment
from cfm_lite.errors import CFMError, CheckpointError, ConfigError, DataError, ResumeMismatchError
from cfm_lite.models import load_official
from cfm_lite.runs.imagenet import MODELS, imagenet
from cfm_lite.runs.recipe import Recipe, build_model, build_trainer, from_dict
from cfm_lite.runs.segments import check_same_data, check_same_recipe, new_config, note_on_schedule
from cfm_lite.runs.spec import Spec, spec_of
from cfm_lite.runs.throughput import Clock, utilisation
from cfm_lite.training import Trainer

__all__ = [
    "Located",
    "Run",
    "facts",
    "goes_on",
    "home_for",
    "is_file_of_weights",
    "located",
    "peak_memory",
    "pick_device",
    "read_config",
    "read_mean",
    "samples_of",
    "saved_recipe",
    "train",
    "write_json",
]

CONFIG = "config.json"
# the networks in a checkpoint, and how their names begin
AVERAGES = {"ema": "ema.", "ema2": "ema2.", "model": "objective.model."}
_NAMES = {"ema": "the average", "ema2": "the average", "model": "the model"}
MEAN = "latent_mean.npy"  # E[x1] of the latents that a run was trained on
VAE = "sd-vae-ft-ema"  # what the official programs decode with unless they are told otherwise


@dataclass
class Run:
    """A trained recipe. `model` is the averaged network, `log` one dict per logged step, `first`
    the step it started from.

    A run that was opened also knows its `place`, its `average`, the hash of its `weights`, and the
    `data` in its config.json.
    """

    recipe: Recipe
    model: nn.Module
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)
    first: int = 0
    spec: Spec | None = None
    place: "Located | None" = None
    average: str = "ema"
    weights: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: AnyPath,
        *,
        average: str = "ema",
        device: torch.device | str = "cpu",
        format: str = "sit",
        network: str = "SiT-XL/2",
    ) -> "Run":
        """The run that `path` means (see `located`), at the named checkpoint or the newest whole
        one.

        `average` is "ema", "ema2" (the second average of a run that kept one), or "model" (the
        trained parameters). `path` may also be an official file: `format` ("sit" or "repa") and
        `network` say what it holds. Raises CheckpointError if there is no run, and ConfigError for
        a wrong setting.
        """
        check_choice("average", average, AVERAGES)
        if is_file_of_weights(expanded(path)):
            return _official(expanded(path), average, torch.device(device), format, network)
        home, step = located(path)
        # a checkpoint without its run holds the recipe too
        config = read_config(path) if step is None or (home / CONFIG).exists() else {}
        place = Located(home, Located(home, step).checkpoint)
        saved = checkpoint.load(place.checkpoint)
        recipe = from_dict(saved.state["config"])
        if config and recipe.dataset != from_dict(config["recipe"]).dataset:
            raise CheckpointError(
                f"{place.checkpoint} is a checkpoint of a run on {recipe.dataset}; it lies in the "
                "wrong folder."
            )
        spec = spec_of(config, recipe)
        model = build_model(recipe, spec)
        load_weights(model, _averaged(saved, average), f"{_NAMES[average]} in {saved.path}")
        digest = str(json.loads((saved.path / checkpoint.MANIFEST).read_bytes())["self"])
        kept: dict[str, Any] = {"spec": spec, "place": place, "average": average}
        kept |= {
            "weights": digest,
            "data": config["data"] if isinstance(config.get("data"), dict) else {},
        }
        return cls(recipe, model.to(device).eval(), saved.step, first=saved.step, **kept)

    @property
    def summary(self) -> str:
        """What a command prints: how far the run came, or that there was nothing left to do."""
        if self.first == self.step > 0:
            return f"all {self.step} steps were done before"
        warm = getattr(self.recipe, "ema_warmup", True)
        start = share_of_start(self.recipe.ema, warm, self.step)
        note = (
            f" (the average still holds {start:.0%} of its start: train longer, or --set "
            "ema_warmup=true)"
            if start > 0.05
            else ""
        )
        return f"{self.step} steps, {self.seconds:.1f} s{note}"

    def mean(self) -> Tensor:
        """E[x1] of the training data: the file that a run on latents keeps, else that of its data
        set.

        DataError if it is missing.
        """
        if self.spec is None or self.spec.vae is None:
            return dataset(self.recipe.dataset).mean
        file = None if self.place is None else self.place.folder / MEAN
        if file is None or not file.exists():
            raise DataError(
                f"the mean of the latents is not known: {file or 'the run'} is missing. Copy "
                "mean.npy of the latents there."
            )
        return read_mean(file, str(self.data.get("mean")))


def _averaged(saved: checkpoint.Checkpoint, average: str) -> dict[str, Tensor]:
    """The weights of one of a checkpoint's networks, under the model's own names."""
    prefix = AVERAGES[average]
    found = {
        name.removeprefix(prefix): value
        for name, value in saved.weights.items()
        if name.startswith(prefix)
    }
    if not found and average == "ema2":
        raise CheckpointError(
            f"{saved.path} keeps no second average; use --average ema or model, or train with "
            "--set ema2=0.9999."
        )
    return found


def _official(path: Path, average: str, device: torch.device, format: str, network: str) -> Run:
    """An official file as a run. Its latents are those of sd-vae-ft-ema."""
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}. Give a run's folder, or a file of weights."
        )
    if average != "ema":
        raise ConfigError(
            f"--average {average} is for runs of ours: {path} holds one network. Leave it out."
        )
    check_choice("model", network, MODELS)
    model = load_official(path, format=format, **MODELS[network])
    side = model.input_size
    recipe = imagenet(
        "sit", model=network, size=8 * side, learn_sigma=model.learn_sigma, qk_norm=model.qk_norm
    )
    spec = Spec((model.in_channels, side, side), model.num_classes, vae=VAE)
    return Run(recipe, model.to(device).eval(), spec=spec, weights=hash_of_file(path))


def is_file_of_weights(path: Path) -> bool:
    """True for the name of a single file of weights, as the official programs write. Files in a run
    are none.
    """
    return (
        path.suffix in (".pt", ".pth", ".safetensors")
        and not path.is_dir()
        and not (path.parent / checkpoint.MANIFEST).exists()
    )


def read_mean(file: Path, digest: str) -> Tensor:
    """The mean (C, h, w) in a file. DataError unless its SHA-256 is `digest`."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{file} is damaged: its SHA-256 differs from config.json's. Copy mean.npy of the "
            "latents there."
        )
    return torch.from_numpy(parse_npy(content, file))


def pick_device(name: str = "auto") -> torch.device:
    """The device called "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "mps".

    ConfigError if this machine does not have it. If torchrun started several processes, each takes
    its own GPU (`World.place`).
    """
    check_choice("device", name, ("auto", "cpu", "cuda", "mps"))
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if present["cuda"] else "cpu"
    if not present[name]:
        raise ConfigError(
            f"device is {name!r}, which this machine or this build of torch does not have; use "
            "--device cpu."
        )
    device = torch.device(name)
    return World(*ranks_of_environment()).place(device) if name == "cuda" else device


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
) -> Run:
    """Train a recipe on a data set, with a progress bar on line `bar`. Config, log and checkpoints
    go to `out`.

    `resume` is True (resume from the newest checkpoint in `out`), False (start), or "auto" (resume
    if there is a checkpoint, else start). `trainer` and `source` replace those of the recipe;
    `source` is a function from the first step to an iterator of batches. `about` is written into
    config.json. `listen` is called with every logged line. Every `sample_every` steps (0: never)
    `draw` is called on every rank, with the averaged model and the step. Only rank 0 writes and
    shows.

    Raises ConfigError if `out` holds a run and `resume` is not set, or if another process trains
    there. Raises ResumeMismatchError if `out` holds another run (see `segments`), DistributedError,
    and what `Trainer.run` raises.
    """
    save_every = check_count("save_every", save_every)
    log_every = check_count("log_every", log_every)
    sample_every = check_count("sample_every", sample_every, low=0)
    if draw and sample_every > recipe.steps:
        raise ConfigError(
            f"sample_every is {sample_every} and there are {recipe.steps} steps: nothing would be "
            "drawn. Use fewer, or 0."
        )
    device = torch.device(device)
    trainer = trainer or build_trainer(recipe, build_model(recipe, data).to(device))
    trainer.log_every = log_every
    world = trainer.world
    folder = None if out is None else Path(out)
    about = {
        **({"data": data.about} if folder and isinstance(data, DataSet) else {}),
        **(about or {}),
    }
    spec = spec or (
        Spec(data.shape, data.num_classes, data.condition) if isinstance(data, DataSet) else None
    )
    if spec:
        about["spec"] = spec.as_dict()
    source = source or (
        lambda step: batches(
            data.x1.to(device), data.y.to(device), size=recipe.batch, seed=recipe.seed, start=step
        )
    )
    with contextlib.ExitStack() as held:
        held.enter_context(_undone_if_refused(folder if world.is_main else None, trainer))
        if folder and world.share(lambda: _prepare(held, folder, recipe, device, resume, about)):
            trainer.resume(
                folder / "checkpoints",
                accept=lambda saved: check_same_recipe(folder / "checkpoints", saved, recipe),
            )
            world.agree("the checkpoint", trainer.step)
            if recipe.steps < trainer.step:
                done = f"{folder} has done {trainer.step} steps"
                raise ResumeMismatchError(
                    f"{done} and steps is {recipe.steps}; give {trainer.step} or more."
                )
            world.on_main(lambda: _go_on(folder, recipe, trainer.step, device, about))
        run = Run(recipe, trainer.ema, trainer.step, first=trainer.step, spec=spec)
        began = time.perf_counter()
        stop = held.enter_context(_stop_requests())
        write, spent = held.enter_context(
            _log_file(folder if world.is_main else None, trainer.step, listen)
        )
        shown = held.enter_context(_bar(recipe, trainer, progress and world.is_main, bar, label))
        held.enter_context(world.watching(lambda: _kept(trainer, folder)))
        for step in _steps(run, trainer, source, shown, write, Clock(recipe.batch, spent)):
            run.step = step
            if draw and sample_every and step % sample_every == 0:
                _look(draw, trainer.ema, step)
            due = step == recipe.steps or step % save_every == 0
            halt = (device.type == "cpu" or due or step % log_every == 0) and world.any(
                bool(stop), device
            )
            if folder and (due or halt):
                trainer.save(folder / "checkpoints", config=recipe.as_dict())
            if halt:
                raise stop[0] if stop else Terminated()
    run.seconds = time.perf_counter() - began
    return run


def _look(draw: Callable[[nn.Module, int], None], model: nn.Module, step: int) -> None:
    """Draw samples on the way. If that fails, there is only a note: the training is worth more."""
    training = model.training
    try:
        draw(model.eval(), step)
    except CFMError as error:
        warnings.warn(f"no samples at step {step}: {error}", UserWarning, stacklevel=2)
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


def goes_on(folder: str | Path, resume: bool | str = "auto") -> bool:
    """Whether a run resumes from a checkpoint in `folder`: `resume` itself, or for "auto" whether
    one exists.

    A run that was killed before its first save has none, so it starts again. A run whose
    checkpoints are all damaged has some, so it is never silently started again. Raises ConfigError
    unless `resume` is True, False or "auto".
    """
    if isinstance(resume, bool):
        return resume
    check_choice("resume", resume, ("auto",))
    return checkpoint.exists(Path(folder) / "checkpoints")


def _kept(trainer: Trainer, folder: Path | None) -> Path | None:
    """The checkpoint to resume from. What rank 0 saved last counts, even if it died right
    afterwards.
    """
    if folder and checkpoint.exists(folder / "checkpoints"):
        return trainer.last_good or folder / "checkpoints"
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
        with clock.paused():  # what the caller does between steps, such as saving, is no training
            yield trainer.step


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: torch's on a GPU, else this process's in main memory (0 if
    unknown).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # absent on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


class Located(NamedTuple):
    """A run's `folder`, which holds config.json, and the checkpoint that was named; None for the
    newest.
    """

    folder: Path
    step: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that was named, or the newest whole one. CheckpointError if there is
        none.
        """
        if self.step is not None:
            return self.step
        inner = self.folder / "checkpoints"
        return checkpoint.latest(inner if inner.is_dir() else self.folder)


def located(path: AnyPath) -> Located:
    """The run that `path` means: its folder, its checkpoints/, one of its step-* folders, or a file
    in any of these.

    `path` may be relative, hold `~`, `.` and `..`, end in a slash, or be a link. Only names are
    read. A path that is no run is returned as it is, and the caller refuses it.
    """
    given = expanded(path)
    for view in (
        Path(os.path.abspath(given)),
        Path(os.path.realpath(given)),
    ):  # the checkpoints of a run may be a link to another disk
        ours = (
            view.parent / checkpoint.MANIFEST
        ).exists() or view.name in OWN  # an exported file may lie in the run's folder too
        place = view.parent if ours and view.is_file() else view
        step = place if _is_step(place) else None
        home = place.parent if step else place
        home = home.parent if home.name == "checkpoints" and not (home / CONFIG).exists() else home
        if (home / CONFIG).exists():
            return Located(home, step)
    return Located(given, given if _is_step(given) else None)


def samples_of(path: AnyPath) -> Path:
    """The samples.npz that `path` means: a file, one in a folder, or one of a run (see `located`).

    Any other path is returned as it is: the caller reads it as a folder of images, or refuses it.
    """
    given, home = expanded(path), located(path).folder
    if given.is_file() and given.suffix == ".npz":
        return given
    places = [given, *([home, home / "samples"] if (home / CONFIG).exists() else [])]
    return next(
        (place / "samples.npz" for place in places if (place / "samples.npz").is_file()), given
    )


def home_for(out: AnyPath, resume: bool | str = False, *, inputs: Iterable[Path] = ()) -> Path:
    """The folder where a run may be kept or resumed. Nothing is made.

    Raises ConfigError for a place inside another run, for a folder of latents or samples, for one
    of `inputs` and for the name of a file. Raises DataError if nothing can be written there.
    """
    place, path = located(out), expanded(out)
    if (place.folder / CONFIG).exists() and place.folder != Path(os.path.abspath(path)):
        newest = Located(place.folder).checkpoint if resume and place.step else None
        if not resume or (newest and not newest.samefile(place.step or newest)):
            raise ConfigError(
                f"--out is {path}, which lies inside the run {place.folder}; give that folder, or "
                "another."
            )
        path = place.folder
    for name in ("index.json", "plan.json", "settings.json"):
        if (path / name).exists():
            raise ConfigError(
                f"{path} holds latents, features or samples (there is {name}); choose another "
                "--out."
            )
    if (path / CONFIG).exists() and not _is_config_of_run(path / CONFIG):
        raise ConfigError(f"{path / CONFIG} is no run's and would be lost; choose another --out.")
    return check_folder(path, inputs=inputs)


def _is_config_of_run(file: Path) -> bool:
    try:
        return "recipe" in json.loads(file.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        # a damaged config.json counts as a run's: opening the run then explains the damage
        return True


def _is_step(folder: Path) -> bool:
    return (folder / checkpoint.MANIFEST).exists() or (
        re.fullmatch(r"step-\d+(-r\d+)?", folder.name) is not None
    )


def read_config(path: AnyPath) -> dict[str, Any]:
    """The config.json of a run (see `located`), checked to hold a recipe. CheckpointError if there
    is none.
    """
    file = located(path).folder / CONFIG
    try:
        config = parse_json(file.read_bytes())
        from_dict(config["recipe"])
        return dict(config)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is no run: {file} is missing. Give the folder that cfm-lite train wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Give the folder that cfm-lite train wrote."
        ) from error


def saved_recipe(path: AnyPath) -> Recipe:
    """The recipe in the config.json of a run (see `located`); CheckpointError if there is none."""
    return from_dict(read_config(path)["recipe"])


def facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, commit, machine, device."""
    return {
        "cfm_lite": cfm_lite.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if torch.device(device).type == "cuda"
        else str(device),
        "commit": _commit(),
    }


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as JSON, whole or not at all. Numbers that are not finite become null, as JSON
    has none.
    """
    path = Path(path)
    checkpoint.write_bytes(
        path, (json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n").encode()
    )
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _processor() -> str:
    """The processor's name from Linux, else from Python."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _commit() -> str | None:
    """The commit of the checkout that this file stands in, or None for an installed package."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    return None


def make_folder(folder: str | Path) -> Path:
    """The folder, made if it is missing. DataError, before any work, if it cannot be made or
    written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except (OSError, CheckpointError) as error:
        raise DataError(
            f"cannot make or write {folder}: {getattr(error, 'strerror', None) or error}. Choose "
            "another --out."
        ) from error
    return folder


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
            f"{folder} is no run: it does not exist. Leave --resume out, or give --resume auto."
        )
    make_folder(folder)
    held.enter_context(owned(folder))
    if goes_on(folder, resume):  # asked once the folder is ours: nobody else saves there any more
        before = _config(folder)
        check_same_recipe(folder, before.get("recipe", {}), recipe) if before else None
        check_same_data(folder, before.get("data", {}), about.get("data", {}))
        return True
    if checkpoint.exists(folder / "checkpoints"):
        raise ConfigError(
            f"{folder} already holds a run; add --resume to resume it, or choose another --out."
        )
    write_json(
        folder / "config.json", {"recipe": recipe.as_dict(), **about, "facts": facts(device)}
    )
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
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    spent = max((json.loads(line).get("seconds") or 0.0 for line in kept), default=0.0)
    checkpoint.write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
    with open(path, "a", encoding="utf-8") as file:
        yield (
            lambda line: (file.write(json.dumps(_finite(line)) + "\n"), file.flush(), hear(line)),
            spent,
        )


def _whole_lines(path: Path) -> Iterator[str]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            json.loads(line)
            yield line


class Terminated(SystemExit):
    """Raised for SIGTERM after the run was saved. Exit code 143."""

    def __init__(self) -> None:
        super().__init__(143)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[BaseException]]:
    """A list that fills when Ctrl-C or SIGTERM asks to stop. A second request stops at once.

    Under torchrun the third request does. A terminal and SLURM signal every process, and torchrun
    then passes the signal on: two signals are one request. They must not cut off a save that has
    begun.
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
