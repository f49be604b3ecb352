"""What the four commands do for ImageNet: prepare, train, sample, evaluate, each on as many ranks as torchrun started."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cfm_lite import runs
from cfm_lite.checks import check_choice
from cfm_lite.data import archive, images
from cfm_lite.data.codec import open_codec
from cfm_lite.data.latents import Latents
from cfm_lite.data.prepare import prepare
from cfm_lite.data.teacher_features import encode_features
from cfm_lite.distributed import joined, ranks_of_environment
from cfm_lite.errors import ConfigError
from cfm_lite.models import teacher
from cfm_lite.recipes.imagenet import ImageNet, imagenet, versus
from cfm_lite.scale.dry_run import dry_run as try_out
from cfm_lite.scale.evaluate import evaluate_samples
from cfm_lite.scale.features import open_extractor
from cfm_lite.scale.official import is_file_of_weights, open_any, start_from
from cfm_lite.scale.sample import Settings, run_of, sample_imagenet
from cfm_lite.scale.train import Options, train_imagenet

__all__ = ["LOGS", "evaluate_command", "features_command", "prepare_command", "sample_command", "train_command"]

LOGS = ("json", "tensorboard")


def prepare_command(source: Path | None, out: Path, device: str, vae: str, **settings: Any) -> str:
    """Encode a folder (or a tar) of images, by default the 63 samples; returns what to print."""
    rank, world, _ = ranks_of_environment()
    if source is not None and source.is_file():
        source = archive.unpacked(source)
    found = images.find(source or archive.samples())
    codec = open_codec(vae, device=runs.pick_device(device))
    index = prepare(found, out, codec, rank=rank, world=world, **settings)
    if index is None:
        return f"rank {rank} of {world} is done; the last one to finish writes the index of {out}"
    left_out = "".join(f"\nleft out {key}: {reason}" for key, reason in index["skipped"][:10])
    mean, std = (" ".join(f"{x:+.3f}" for x in index[name]) for name in ("channel_mean", "channel_std"))
    return (
        f"{index['rows_total']} images of {len(index['classes'])} classes at {index['size']} pixels, both mirrors, in {out}\n"
        f"scaled latents {tuple(index['shape'])}: channel means {mean}, deviations {std}{left_out}"
    )


def features_command(latents: Path, source: Path | None, out: Path, device: str, weights: str | None, **settings: Any) -> str:
    """Encode the images of some latents with REPA's teacher; returns what to print."""
    rank, world, _ = ranks_of_environment()
    if source is not None and source.is_file():
        source = archive.unpacked(source)
    data, name = Latents(latents), imagenet("repa").teacher
    known = None if weights in (None, "random") else weights
    encoder = teacher(name, grid=data.shape[-1] // 2, pretrained=weights != "random", checkpoint=known).to(runs.pick_device(device))
    index = encode_features(data, source or archive.samples(), encoder, name, out, rank=rank, world=world, **settings)
    if index is None:
        return f"rank {rank} of {world} is done; the last one to finish writes the index of {out}"
    return f"{len(data)} images, {encoder.grid**2} tokens of {encoder.dim} numbers each by {name}, in {out}"


def recipe_of(method: str, model: str, device: torch.device, changes: Mapping[str, Any]) -> ImageNet:
    """The preset with the command line's changes; on a CPU the arithmetic is float32 unless it is asked for."""
    chosen = imagenet("sit" if method == "fm" else method, model=model)
    plain = {} if device.type == "cuda" else {"precision": "float32"}
    return chosen.changed(**{**plain, **changes})


def train_command(
    method: str,
    model: str,
    latents: Path | None,
    out: Path | None,
    device: str,
    changes: Mapping[str, Any],
    *,
    dry_run: bool = False,
    price: float | None = None,
    log: str = "json",
    start: Path | None = None,
    format: str = "sit",
    **how: Any,
) -> str | None:
    """Train one preset, or only try it; returns what to print, None on ranks other than 0. `how` are fields of `Options`."""
    check_choice("log", log, LOGS)
    where = runs.pick_device(device)
    if latents is None and not dry_run:
        raise ConfigError("there are no latents; give the folder that cfm-lite prepare imagenet wrote with --latents, or try --dry-run.")
    data = None if latents is None else Latents(latents)
    recipe = recipe_of(method, model, where, {**({} if data is None else {"size": data.size}), **changes})
    begin = None if start is None else start_from(start, format, model)
    if begin is not None:  # what the file is decides, unless something else was asked for, which is refused
        recipe = recipe.changed(**{name: getattr(begin, name) for name in ("learn_sigma", "qk_norm") if name not in changes})
    folder = out or Path("runs") / f"imagenet-{model.replace('/', '-')}-{method}-{recipe.seed}"
    with joined(where) as world:
        options = Options(out=folder, device=where, world=world, tensorboard=log == "tensorboard", start=begin, **how)
        if data is None or dry_run:
            report = try_out(recipe, data, options, price=price)
            return "\n".join([report, "", *_table(method)]) if world.is_main else None
        done = train_imagenet(recipe, data, options)
        return f"{done.summary}; the run is in {folder}" if world.is_main else None


def _table(method: str) -> list[str]:
    rows = [("setting", "paper", "here"), *versus("sit" if method == "fm" else method)]
    return [f"{setting:<20} {paper:<78} {here}" for setting, paper, here in rows]


def sample_command(
    checkpoint: Path, out: Path | None, device: str, vae: str | None, format: str = "sit", model: str = "SiT-XL/2", **settings: Any
) -> str | None:
    """Sample an ImageNet run, or an official file; None on ranks other than 0."""
    where = runs.pick_device(device)
    folder = out or (checkpoint.parent if is_file_of_weights(checkpoint) else run_of(checkpoint)) / "samples"
    with joined(where) as world:
        trained = open_any(checkpoint, format, model, world.place(where))
        path = sample_imagenet(trained, folder, Settings(**settings), device=where, world=world, vae=vae)
        return f"{settings['num']} samples in {path}" if world.is_main else None


def evaluate_command(samples: Path, reference: Path, inception: str | None, out: Path | None, device: str) -> str:
    """Measure samples against a reference; returns the table to print."""
    extractor = open_extractor(inception, runs.pick_device(device))
    rows, path = evaluate_samples(samples, reference, extractor, out=out)
    note = "a random network stands in for Inception: these numbers mean nothing\n" if extractor.prefix else ""
    return note + "\n".join(f"{row['metric']:<30} {row['value']:.4f}" for row in rows) + f"\nrows in {path}"
