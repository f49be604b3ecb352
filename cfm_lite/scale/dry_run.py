"""What a run will cost: ten steps on made-up data at the real size, timed and measured."""

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
from cfm_lite._internal.checks import check_count
from cfm_lite.data.latents import Latents
from cfm_lite.errors import ConfigError, DiskFullError
from cfm_lite.models import count_parameters
from cfm_lite.runs.imagenet import ImageNet
from cfm_lite.runs.recipe import check_null
from cfm_lite.scale.budget import Split, averages_of, peak_bytes, state_bytes
from cfm_lite.scale.train import Options, check_fit, check_seen, features_of, trainer_for
from cfm_lite.training import Trainer

__all__ = ["Made", "dry_run"]

CLIP_SHAPE = (77, 768)  # of the features of a caption by CLIP ViT-L/14


@dataclass(frozen=True)
class Made:
    """Stands in for latents in a dry run: normal numbers of the right shape."""

    shape: tuple[int, ...]
    num_classes: int
    feature_dim: int = 768  # of a teacher whose features were computed before
    condition: str = "labels"
    text_shape: tuple[int, ...] = ()  # (L, D) of the features of a caption


def dry_run(
    recipe: ImageNet,
    latents: Latents | None,
    options: Options,
    *,
    steps: int = 10,
    price: float | None = None,
    ranks: int | None = None,
) -> str:
    """Check everything that a run needs, train `steps` steps on made-up data, and estimate the
    whole run.

    If `latents` are given, they are hashed in full. `price` is what an hour of one device costs.
    `ranks` is the number of devices of the real run (default: those of the dry run); one process
    then computes one rank's part of each batch.

    Raises what `train_imagenet` would. Raises ConfigError if several ranks were started and `ranks`
    is another number, and for guidance without `label_dropout`. Raises DiskFullError if the
    checkpoints will not fit.
    """
    world = options.world
    ranks = world.size if ranks is None else check_count("ranks", ranks)
    if world.size not in (1, ranks):
        raise ConfigError(
            f"ranks is {ranks} and the dry run was started on {world.size}; leave it out, or start "
            "one process."
        )
    if options.start is None:
        check_null(recipe, recipe.guidance)
    if latents is not None:
        latents.verify()
        check_fit(recipe, latents, world.size)
        check_seen(recipe, options)
    side = recipe.size // 8
    made = Made(latents.shape, latents.num_classes) if latents else Made((4, side, side), 1000)
    if recipe.model == "mmdit":
        shape = latents.text_shape if latents else CLIP_SHAPE
        made = replace(made, num_classes=0, condition="captions", text_shape=shape)
    if latents and recipe.align and options.features:
        made = replace(made, feature_dim=features_of(recipe, latents, options.features).dim)
    device = world.place(torch.device(options.device))
    trainer, split = trainer_for(recipe, made, options, device, ranks)
    parameters = count_parameters(trainer.objective)[0]
    _check_room(options.out, parameters, averages_of(recipe))
    seconds = _timed(
        trainer,
        _made_batches(recipe, made, options.features is not None, ranks, device),
        steps,
        device,
    )
    memory = max(world.gather(runs.peak_memory(device)))
    fsdp = options.parallel == "fsdp"
    how = {"compile": trainer.compiled, "checkpointing": options.checkpointing, "fsdp": fsdp}
    predicted = peak_bytes(recipe, made.shape[-1], parameters, split, **how)
    kept = state_bytes(parameters, averages_of(recipe)) // (ranks if fsdp else 1)
    lines = _report(recipe, made, parameters, split, seconds, price)
    lines[3:3] = [
        _memory(predicted, kept, memory, ranks if fsdp and world.size == 1 else 1),
        _where(world.size, ranks),
    ]
    return "\n".join(lines)


def _made_batches(
    recipe: ImageNet, made: Made, features: bool, ranks: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    rows = recipe.batch // ranks
    x1 = torch.randn(rows, *made.shape, device=device, dtype=torch.float32)
    y = (
        torch.randn(rows, *made.text_shape, device=device)
        if made.text_shape
        else torch.randint(made.num_classes, (rows,), device=device)
    )
    third: tuple[Tensor, ...] = ()
    if recipe.align and features:
        tokens = (made.shape[-1] // recipe.patch_size) ** 2
        third = (torch.randn(rows, tokens, made.feature_dim, device=device).half(),)
    elif recipe.align:
        third = (
            torch.randint(
                256, (rows, 3, recipe.size, recipe.size), dtype=torch.uint8, device=device
            ),
        )
    while True:
        yield (x1, y, *third)


def _timed(trainer: Trainer, batches: Iterator[Any], steps: int, device: torch.device) -> float:
    """The median seconds of a step, without the first two."""
    trainer.log_every = 1
    times, since = [], time.perf_counter()
    for log in trainer.run(batches, steps):
        float(log["loss"])  # waits for the device
        now = time.perf_counter()
        times.append(now - since)
        since = now
    return median(times[2:] or times)


def _check_room(out: Path, parameters: int, averages: int) -> None:
    """DiskFullError unless four checkpoints fit: three are kept, and the next is written before the
    oldest goes.

    A checkpoint holds weights, averages and two moments.
    """
    needed = 4 * (12 + 4 * averages) * parameters
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DiskFullError(
            f"{out} will need {needed:,} bytes for checkpoints and has {free:,} free. Make room, "
            "or choose another --out."
        )


def _report(
    recipe: ImageNet, made: Made, parameters: int, split: Split, seconds: float, price: float | None
) -> list[str]:
    whole = recipe.steps * seconds
    name = f"{recipe.network}, {recipe.method}{' + repa' if recipe.align else ''}"
    shown = f"captions {made.text_shape}" if made.text_shape else f"{made.num_classes} classes"
    lines = [
        f"{name}: {parameters:,} parameters, latents {made.shape}, {shown}",
        f"batch {recipe.batch}: {split}",
        f"{recipe.batch / seconds:,.1f} images/s, {seconds * 1000:,.1f} ms a step (made data, "
        f"{recipe.precision})",
        f"{recipe.steps:,} steps will take {_duration(whole)}: {split.ranks * whole / 3600:,.1f} "
        "device-hours",
    ]
    if price is not None:
        lines.append(
            f"at {price:g} per device-hour that costs {price * split.ranks * whole / 3600:,.2f}"
        )
    return lines


def _memory(predicted: int, kept: int, measured: int, shared: int) -> str:
    """The line on memory. `shared` is the number of ranks that will share the state of one process
    here.
    """
    parts = f"{predicted / 2**30:.2f} GiB of tensors {'are' if shared > 1 else 'were'} predicted"
    state = f"of which {kept / 2**30:.2f} GiB are the trained state"
    if shared > 1:
        return (
            f"memory: {parts} per rank, {state} (one process holds that of all {shared} here, "
            f"{measured / 2**30:.2f} GiB at its peak)"
        )
    return f"memory at its peak {measured / 2**30:.2f} GiB per rank ({parts}), {state}"


def _where(started: int, ranks: int) -> str:
    """How many devices the numbers are for, and how many of them were tried."""
    if started == ranks > 1:
        return (
            f"all of this is for {ranks} ranks. All of them were measured here. Communication "
            "between ranks is included."
        )
    if ranks > 1:
        return (
            f"all of this is for {ranks} ranks. One rank was measured here. Communication between "
            "ranks is not included."
        )
    return (
        "all of this is for 1 rank. For more, give --ranks N, or start the dry run with torchrun, "
        "as you will start the run."
    )


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
