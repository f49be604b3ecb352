"""Training on prepared latents, on any number of ranks."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite import runs
from cfm_lite._internal.files import fingerprint
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import seeded
from cfm_lite.data.latents import Latents, part_of, prefetch
from cfm_lite.data.latents.codec import open_codec
from cfm_lite.data.latents.features import TeacherFeatures
from cfm_lite.engine import checkpoint
from cfm_lite.engine.compiled import is_compiled
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.errors import ConfigError, ResumeMismatchError
from cfm_lite.models import count_parameters, teacher
from cfm_lite.objective import Alignment
from cfm_lite.runs import Run, Spec, read_config
from cfm_lite.runs.folder import MEAN
from cfm_lite.runs.imagenet import (
    Given,
    ImageNet,
    build_imagenet_trainer,
    preset_of,
)
from cfm_lite.runs.recipe import build_model
from cfm_lite.scale.budget import Split, free_memory, split_batch
from cfm_lite.scale.sample import ON_THE_WAY, drawing
from cfm_lite.training import Trainer

__all__ = ["Options", "opened_teacher", "train_imagenet"]

Batches = Callable[[int], Iterator[tuple[Any, ...]]]


@dataclass(frozen=True)
class Options:
    """How a run is computed and where it is kept. Nothing here changes its numbers."""

    out: Path
    device: torch.device | str = "cpu"
    world: World = ALONE
    parallel: str = "ddp"
    resume: bool | str = False  # or "auto": if there is a checkpoint
    micro_batch: int | None = None
    compile: bool | None = None  # None: on CUDA
    checkpointing: bool = False  # blocks are computed twice: less memory, a third more work
    images: Path | None = None  # for a teacher: the folder that the latents were made of
    features: Path | None = None  # or what the teacher saw in them, computed before
    teacher: str | None = None  # a file with its weights, or "random"; None downloads timm's
    start: Any = None  # fine-tune this network
    save_every: int = 10_000
    log_every: int = 100
    sample_every: int = 0  # steps between pictures of samples on the way; 0 is none
    tensorboard: bool = False
    progress: bool = True


def train_imagenet(recipe: ImageNet, latents: Latents, options: Options) -> Run:
    """Train a recipe on latents, from the start or from the newest checkpoint in `options.out`.

    Raises ConfigError for latents of another size, for a batch that is larger than the set or does
    not split into whole shards on the ranks, and for an existing run. Raises ResumeMismatchError
    for a run on other latents, and DistributedError.
    """
    world, out = options.world, options.out
    check_fit(recipe, latents, world.size)
    if world.share(lambda: runs.resumes(out, options.resume)):
        _check_same_latents(out, latents)
    device = world.place(torch.device(options.device))
    start = {} if options.start is None else {"start": fingerprint(options.start.state_dict())}
    trainer, split = trainer_for(recipe, latents, options, device)
    index = latents.index
    spec = Spec(
        latents.shape,
        latents.num_classes,
        latents.condition,
        vae=index["vae"],
        vae_fingerprint=index["fingerprint"],
        **_about_text(latents),
    )
    read_by = {"text_fingerprint": spec.text_fingerprint} if spec.text else {}
    about = {**_about(latents), **_about_teacher(trainer), **start, **read_by}
    how = {
        "parallel": options.parallel,
        "compile": trainer.compiled,
        "checkpointing": options.checkpointing,
    }
    world.agree("the run", [recipe.as_dict(), latents.fingerprint, spec.text_fingerprint])
    board = _TensorBoard(out) if options.tensorboard and world.is_main else None
    looks = options.sample_every
    draw = _drawing(recipe, spec, latents, options, device, board, about) if looks else None
    with contextlib.closing(board) if board else contextlib.nullcontext():
        return runs.train(
            recipe,
            latents,
            trainer=trainer,
            source=_source(recipe, latents, options, device),
            about={"preset": preset_of(recipe), "data": about, "split": str(split), "how": how},
            listen=board.listen if board else None,
            device=device,
            out=out,
            resume=options.resume,
            save_every=options.save_every,
            log_every=options.log_every,
            sample_every=options.sample_every,
            draw=draw,
            spec=spec,
            progress=options.progress,
            label=recipe.network,
        )


def check_fit(recipe: ImageNet, latents: Latents, ranks: int = 1) -> None:
    """Raise ConfigError if the latents have another size or condition than the recipe, or the batch
    does not fit them and `ranks`.
    """
    if (latents.condition == "captions") != (recipe.model == "mmdit"):
        name = "mscoco" if latents.condition == "captions" else "imagenet"
        raise ConfigError(
            f"the latents in {latents.folder} have {latents.condition}, and {recipe.network} on "
            f"{recipe.dataset} takes others; use cfm-lite scale train {name}, or other latents."
        )
    if recipe.size != latents.size:
        raise ConfigError(
            f"the recipe is for {recipe.size} pixels and {latents.folder} holds latents of "
            f"{latents.size}; use --size {latents.size}."
        )
    part_of(recipe.batch, ranks, recipe.shard, len(latents))


def trainer_for(
    recipe: ImageNet, data: Any, options: Options, device: torch.device, ranks: int | None = None
) -> tuple[Trainer, Split]:
    """The trainer on this rank, and how the batch is split. ConfigError if the settings do not fit
    together.

    `data` has the shape and the classes. `ranks` (default: those of the world) share the batch: a
    dry run on one device can stand for one of many.
    """
    size = options.world.size if ranks is None else ranks
    if options.parallel == "fsdp" and size == 1:
        raise ConfigError(
            "parallel is 'fsdp', which needs several processes, and there is one; use torchrun, or "
            "ddp."
        )
    model: Any = options.start or build_model(recipe, data)
    _check_network(model, recipe, data)
    parameters = count_parameters(model)[0]
    free = min(options.world.gather(free_memory(device)))
    model.checkpointing = options.checkpointing
    split = split_batch(
        recipe,
        data.shape[-1],
        parameters,
        free,
        size,
        options.micro_batch,
        compile=is_compiled(options.compile, model, device),
        checkpointing=options.checkpointing,
        fsdp=options.parallel == "fsdp",
    )
    built = build_imagenet_trainer(
        recipe.changed(accumulate=split.accumulate),
        data,
        device=device,
        teacher=_teacher(recipe, data, options, device) if recipe.align else None,
        world=options.world,
        parallel=options.parallel if options.world.size > 1 else "ddp",
        compile=options.compile,
        model=model,
    )
    return built, split


def _check_network(model: Any, recipe: ImageNet, data: Any) -> None:
    """Raise ConfigError unless the network has the condition of the data and the recipe's form."""
    if recipe.model == "mmdit":
        _check_text(model, data)
    elif model.num_classes != data.num_classes:
        raise ConfigError(
            f"the model has {model.num_classes} classes and the latents {data.num_classes}; "
            "fine-tune on data of the same classes."
        )
    differ = [
        name
        for name in ("learn_sigma", "qk_norm")
        if getattr(model, name, False) != getattr(recipe, name)
    ]
    if differ:
        fields = " ".join(f"{name}={str(getattr(model, name)).lower()}" for name in differ)
        raise ConfigError(
            f"the model has {fields}, which the recipe does not have; give --set {fields}, or "
            "another model."
        )


def _check_text(model: Any, data: Any) -> None:
    """Raise ConfigError unless the network takes the features of the data's text encoder. Give it
    those of the empty caption.
    """
    takes = (model.context_length, model.context_dim)
    if takes != tuple(data.text_shape):
        raise ConfigError(
            f"the network takes features of captions {takes}, and the text encoder gives "
            f"{tuple(data.text_shape)}; give the one that it was trained with, with --text."
        )
    if isinstance(data, Latents) and data.text is not None:
        model.null_context.copy_(data.text([""])[0])


def check_seen(recipe: ImageNet, options: Options) -> None:
    """Raise ConfigError for a recipe with a teacher, if nothing is given that the teacher sees."""
    if recipe.align and options.images is None and options.features is None:
        raise ConfigError(
            "the method aligns with a teacher, which needs the images: give their folder with "
            "--images DIR, or the teacher's features with --features DIR."
        )


def _teacher(
    recipe: ImageNet, data: Any, options: Options, device: torch.device
) -> nn.Module | Given:
    """The frozen teacher, or a `Given` if its features were computed before."""
    if options.features is not None:
        if not isinstance(data, Latents):
            return Given(data.feature_dim)
        found = features_of(recipe, data, options.features)
        return Given(found.dim, found.index["weights"])
    if isinstance(data, Latents):
        check_seen(recipe, options)
    grid = data.shape[-1] // recipe.patch_size
    return opened_teacher(recipe.teacher, grid, options.teacher, recipe.seed).to(device)


def opened_teacher(name: str, grid: int, given: str | None, seed: int = 0) -> nn.Module:
    """The teacher of timm called `name`, with the weights that were `given` (see `Options`)."""
    weights = None if given in (None, "random") else given
    with seeded(seed):  # a random one is the same on every rank, and after a stop
        return teacher(name, grid=grid, pretrained=given != "random", checkpoint=weights)


def features_of(recipe: ImageNet, latents: Latents, folder: Path) -> TeacherFeatures:
    """The features of the latents' images. ConfigError unless teacher, tokens and mirrors are the
    recipe's.
    """
    found, grid = TeacherFeatures(folder, latents), latents.shape[-1] // recipe.patch_size
    if found.teacher != recipe.teacher:
        raise ConfigError(
            f"{folder} holds features of {found.teacher!r}, the recipe's teacher is "
            f"{recipe.teacher!r}; use --set teacher={found.teacher}."
        )
    if found.grid != grid:
        raise ConfigError(
            f"{folder} holds {found.grid} x {found.grid} tokens and {recipe.network} has {grid} x "
            f"{grid}; encode them again."
        )
    if recipe.mirror and found.mirrors == 1:
        raise ConfigError(
            f"{folder} holds no mirror images and the recipe mirrors; use --set mirror=False, or "
            "encode with --mirrors 2."
        )
    return found


def _source(recipe: ImageNet, latents: Latents, options: Options, device: torch.device) -> Batches:
    """The latents' batches on the device, read ahead by a thread."""
    settings: dict[str, Any] = {
        **{"size": recipe.batch, "seed": recipe.seed, "shard": recipe.shard},
        **{"mirror": recipe.mirror, "rank": options.world.rank, "world": options.world.size},
    }
    if recipe.align and options.features:
        settings["features"] = features_of(recipe, latents, options.features)
    elif recipe.align:
        settings["images"] = options.images

    def source(start: int) -> Iterator[tuple[Any, ...]]:
        options.world.on_main(lambda: _keep_mean(options.out, latents))
        for batch in prefetch(functools.partial(latents.batches, start=start, **settings)):
            yield tuple(_move(x, device) for x in batch)

    return source


def _move(x: Tensor, device: torch.device) -> Tensor:
    # features of captions are made on the device
    there = x.device.type == device.type
    return x if there else x.pin_memory().to(device, non_blocking=True)


def _about(latents: Latents) -> dict[str, Any]:
    """What sampling needs to know of the latents, and what resuming compares."""
    index = latents.index
    return {
        "latents": str(latents.folder),
        "fingerprint": latents.fingerprint,
        "mean": index["files"]["mean.npy"],
        "shape": list(latents.shape),
        "size": latents.size,
        "num_classes": latents.num_classes,
        "classes": list(latents.classes),
        "images": len(latents),
        "vae": index["vae"],
        "vae_fingerprint": index["fingerprint"],
    }


def _about_text(latents: Latents) -> dict[str, Any]:
    """What a spec says of the text encoder; empty without one."""
    text: Any = latents.text
    if text is None:
        return {}
    return {
        "text": text.place,
        "text_fingerprint": text.fingerprint,
        "text_shape": latents.text_shape,
    }


def _about_teacher(trainer: Trainer) -> dict[str, Any]:
    """{"teacher": the hash of its weights}; empty without a teacher."""
    for term in trainer.objective.terms.values():
        if isinstance(term, Alignment):
            seen: Any = term._teacher[0]
            return {
                "teacher": seen.weights
                if isinstance(seen, Given)
                else fingerprint(getattr(seen, "teacher", seen).state_dict())
            }
    return {}


def _keep_mean(out: Path, latents: Latents) -> None:
    """Copy E[x1] of the latents into the run. Debiasing ΔFM needs it when the latents are gone."""
    checkpoint.write_bytes(out / MEAN, (latents.folder / "mean.npy").read_bytes())


def _check_same_latents(out: Path, latents: Latents) -> None:
    before = read_config(out).get("data") or {}
    if before.get("fingerprint") != latents.fingerprint:
        raise ResumeMismatchError(
            f"the run in {out} was trained on the latents {before.get('latents')} "
            f"({str(before.get('fingerprint'))[:12]}); {latents.folder} holds "
            f"others ({latents.fingerprint[:12]}). Give the same latents, or start a new run."
        )


def _drawing(
    recipe: ImageNet,
    spec: Spec,
    latents: Latents,
    options: Options,
    device: torch.device,
    board: "_TensorBoard | None",
    about: Mapping[str, Any],
) -> Callable[[nn.Module, int], None]:
    """The function that draws samples on the way. Rank 0 opens the VAE for it, before training
    starts.
    """
    codec = options.world.on_main(
        lambda: open_codec(str(spec.vae), device=device, fingerprint=spec.vae_fingerprint)
    )
    prompts = [told[0] for told in latents.captions[:ON_THE_WAY]] if spec.text else []
    return drawing(
        recipe,
        spec,
        codec,
        options.out,
        show=board.show if board else None,
        prompts=prompts,
        encoder=latents.text,
        data=about,
    )


class _TensorBoard:
    """Writes log lines and pictures for TensorBoard, on rank 0 only.

    The file is opened with the first line, so a refused run leaves none.
    """

    def __init__(self, out: Path) -> None:
        self.folder, self._writer = out / "tensorboard", None
        optional("tensorboard", "imagenet")

    def _at(self, step: int) -> Any:
        """torch's SummaryWriter. Points from `step` on, which a killed run wrote, are hidden."""
        if self._writer is None:
            self._writer = optional("torch.utils.tensorboard", "imagenet").SummaryWriter(
                str(self.folder), purge_step=step
            )
        return self._writer

    def listen(self, line: Mapping[str, float]) -> None:
        """Every number of a line of the log."""
        for name, value in line.items():
            if name != "step":
                self._at(int(line["step"])).add_scalar(name, value, int(line["step"]))

    def show(self, images: Any, step: int) -> None:
        """Samples (N, H, W, 3) uint8 of one step."""
        self._at(step).add_images("samples", images, step, dataformats="NHWC")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
