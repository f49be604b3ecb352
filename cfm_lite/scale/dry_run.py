"""What a run will take, before it is begun: ten steps on made data at the real size, timed and measured."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cfm_lite import runs
from cfm_lite.data.latents import Latents
from cfm_lite.distributed import World
from cfm_lite.errors import DiskFullError
from cfm_lite.models import count_parameters
from cfm_lite.recipes.imagenet import ImageNet
from cfm_lite.scale.budget import Split, averages_of, peak_bytes, state_bytes
from cfm_lite.scale.train import Options, check_fit, features_of, trainer_for
from cfm_lite.training import Trainer

__all__ = ["Made", "dry_run"]


@dataclass(frozen=True)
class Made:
    """Stands in for latents in a dry run: normal numbers of the right shape."""

    shape: tuple[int, ...]
    num_classes: int
    feature_dim: int = 768  # of a teacher whose features were computed before


def dry_run(recipe: ImageNet, latents: Latents | None, options: Options, *, steps: int = 10, price: float | None = None) -> str:
    """Check everything that a run needs, train `steps` steps on made data, and say what the whole run will take.

    The latents, if given, are hashed in full. `price` is that of an hour of one rank's device. Raises what `train_imagenet`
    would, and DiskFullError where the checkpoints will not fit.
    """
    world = options.world
    if latents is not None:
        latents.verify()
        check_fit(recipe, latents, world.size)
    side = recipe.size // 8
    made = Made(latents.shape, latents.num_classes) if latents else Made((4, side, side), 1000)
    if latents and recipe.align and options.features:
        made = replace(made, feature_dim=features_of(recipe, latents, options.features).dim)
    device = world.place(torch.device(options.device))
    trainer, split = trainer_for(recipe, made, options, device)
    parameters = count_parameters(trainer.objective)[0]
    _check_room(options.out, parameters, averages_of(recipe))
    seconds = _timed(trainer, _made_batches(recipe, made, options.features is not None, world, device), steps, device)
    memory = max(world.gather(runs.peak_memory(device)))
    held = parameters // (world.size if options.parallel == "fsdp" else 1)
    how = {"compile": trainer.compiled, "checkpointing": options.checkpointing}
    predicted = peak_bytes(recipe, made.shape[-1], held, split, **how)
    return _report(recipe, made, (parameters, held), split, seconds, memory, predicted, price)


def _made_batches(recipe: ImageNet, made: Made, features: bool, world: World, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    rows = recipe.batch // world.size
    x1 = torch.randn(rows, *made.shape, device=device, dtype=torch.float32)
    y = torch.randint(made.num_classes, (rows,), device=device)
    third: tuple[Tensor, ...] = ()
    if recipe.align and features:
        tokens = (made.shape[-1] // recipe.patch_size) ** 2
        third = (torch.randn(rows, tokens, made.feature_dim, device=device).half(),)
    elif recipe.align:
        third = (torch.randint(256, (rows, 3, recipe.size, recipe.size), dtype=torch.uint8, device=device),)
    while True:
        yield (x1, y, *third)


def _timed(trainer: Trainer, batches: Iterator[Any], steps: int, device: torch.device) -> float:
    """The median seconds of a step, after the first two."""
    trainer.log_every = 1
    times, since = [], time.perf_counter()
    for log in trainer.run(batches, steps):
        float(log["loss"])  # waits for the device
        now = time.perf_counter()
        times.append(now - since)
        since = now
    return median(times[2:] or times)


def _check_room(out: Path, parameters: int, averages: int, kept: int = 4) -> None:
    """Checkpoints hold weights, averages and two moments; three are kept, and the next is written before the oldest goes."""
    needed = kept * (12 + 4 * averages) * parameters
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DiskFullError(f"{out} will need {needed:,} bytes for checkpoints and has {free:,} free. Make room, or choose another --out.")


def _report(
    recipe: ImageNet,
    made: Made,
    parameters: tuple[int, int],
    split: Split,
    seconds: float,
    memory: int,
    predicted: int,
    price: float | None,
) -> str:
    """`parameters`: how many there are, and of how many one rank keeps the state."""
    whole = recipe.steps * seconds
    name = f"{recipe.network}, {recipe.method}{' + repa' if recipe.align else ''}"
    lines = [
        f"{name}: {parameters[0]:,} parameters, latents {made.shape}, {made.num_classes} classes",
        f"batch {recipe.batch}: {split}",
        f"{recipe.batch / seconds:,.1f} images/s, {seconds * 1000:,.1f} ms a step (made data, {recipe.precision})",
        f"memory at its peak {memory / 2**30:.2f} GiB per rank ({predicted / 2**30:.2f} GiB of tensors were predicted), of which "
        f"{state_bytes(parameters[1], averages_of(recipe)) / 2**30:.2f} GiB are the trained state",
        f"{recipe.steps:,} steps will take {_duration(whole)}: {split.ranks * whole / 3600:,.1f} device-hours",
    ]
    if price is not None:
        lines.append(f"at {price:g} per device-hour that costs {price * split.ranks * whole / 3600:,.2f}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
