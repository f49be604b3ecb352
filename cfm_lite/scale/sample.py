"""Images from a trained run: noise keyed by part, ODE or SDE, guidance, VAE, uint8; and one npz as
ADM's evaluator reads it.

    SAMPLES/  settings.json   part-00000.npy ...  ->  samples.npz (arr_0 (N, H, W, 3) uint8, arr_1 labels)  samples.png

Part p holds samples p * batch, ... and depends on (seed, p) alone, so any number of ranks gives the
same images, and a run that was stopped goes on where it was. A finished folder grows: more samples
are asked for, and only the missing parts are drawn. Samples of other settings are never mixed in:
settings.json is compared first.
"""

import io
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from cfm_lite import guidance, runs, samplers
from cfm_lite._internal.checks import check_choice, check_count, check_number, plain
from cfm_lite._internal.places import check_folder, expanded
from cfm_lite.data.latents.codec import Codec, open_codec
from cfm_lite.draws import check_labels_word, class_labels, keyed_generator
from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.guidance import Velocity
from cfm_lite.methods import debiasing
from cfm_lite.paths import PATHS
from cfm_lite.runs.imagenet import ImageNet
from cfm_lite.runs.recipe import SOLVERS, from_dict
from cfm_lite.scale.train import read_about, read_mean

__all__ = [
    "Settings",
    "Trained",
    "count_samples",
    "drawing",
    "open_run",
    "run_of",
    "sample_imagenet",
]

SAMPLES, SETTINGS = "samples.npz", "settings.json"


@dataclass(frozen=True)
class Settings:
    """What decides the samples; `steps` are network evaluations for the SDE and solver steps for
    the ODE.
    """

    num: int
    seed: int = 0
    solver: str = "euler"  # of the ODE; "sde" is Euler-Maruyama
    steps: int = 250
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    debias: bool = False
    batch: int = 64
    labels: str = "turn"  # the classes in turn, "random", or some of them such as "3,7"

    def __post_init__(self) -> None:
        for name, low in (("num", 1), ("seed", 0), ("steps", 1), ("batch", 1)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), low))
        check_choice("solver", self.solver, (*SOLVERS, "sde"))
        check_number("guidance", self.guidance, -float("inf"), float("inf"))
        object.__setattr__(self, "guidance", plain(self.guidance))
        guidance.check_interval(self.interval)
        check_labels_word(self.labels)
        if self.solver == "sde" and self.steps < 2:
            raise ConfigError(
                f"steps is {self.steps}; the SDE takes at least 2, the last of them without noise."
            )


@dataclass(frozen=True)
class Trained:
    """A run that can be sampled: its averaged network, and what was said of its data."""

    recipe: ImageNet
    model: nn.Module
    step: int
    about: dict[str, Any]
    weights: str  # the checkpoint's own hash
    mean: Tensor | None
    average: str = "ema"  # which of the checkpoint's: see `runs.load_model`

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of one latent."""
        return tuple(self.about["shape"])

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return int(self.about["num_classes"])


class _Shape:
    def __init__(self, about: dict[str, Any]) -> None:
        self.shape, self.num_classes = tuple(about["shape"]), int(about["num_classes"])


def run_of(folder: str | Path) -> Path:
    """The folder of the run that `folder` is, or is a checkpoint of; see `runs.located`."""
    return runs.located(folder).folder


def open_run(folder: str | Path, device: torch.device, average: str = "ema") -> Trained:
    """The newest checkpoint of an ImageNet run, or the step-* folder given; CheckpointError where
    there is none.
    """
    place = runs.located(folder)
    home = place.folder
    named = runs.saved_recipe(home)
    if not isinstance(named, ImageNet):
        raise CheckpointError(
            f"{home} is a run on {named.dataset}, not on ImageNet's latents; give the folder of "
            "such a run."
        )
    about, where = read_about(home), place.checkpoint
    recipe, model, step = runs.load_model(where, _Shape(about), average)
    if not isinstance(recipe, ImageNet):
        raise CheckpointError(
            f"{where} is a checkpoint of a run on {recipe.dataset}; it lies in the wrong folder."
        )
    digest = str(json.loads((where / checkpoint.MANIFEST).read_bytes())["self"])
    return Trained(recipe, model.to(device), step, about, digest, read_mean(home, about), average)


def sample_imagenet(
    source: str | Path | Trained,
    out: str | Path,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    vae: str | None = None,
    progress: bool = True,
) -> Path:
    """Draw what is missing of `settings.num` samples; returns the npz, which keeps what it held
    where that was more.

    `source` is a run's folder, one of its checkpoints, or what was opened already. `vae` replaces
    the name or folder of the VAE, which must be the one that made the latents. Raises
    CheckpointError, DataError for another VAE, ConfigError where `out` holds samples of other
    settings; then nothing is written.
    """
    out, device = check_folder(expanded(out)), world.place(torch.device(device))
    trained = source if isinstance(source, Trained) else open_run(source, device)
    _velocity(
        trained, settings, _labels(settings, 0, trained.num_classes).to(device), device
    )  # what cannot be done is said now
    record = {
        **asdict(settings),
        "interval": list(settings.interval),
        "weights": trained.weights,
        "step": trained.step,
    }
    record["average"] = trained.average
    record |= {
        "recipe": trained.recipe.as_dict(),
        "vae": trained.about["vae"],
        "vae_fingerprint": trained.about["vae_fingerprint"],
    }
    world.on_main(lambda: _check_same(out, record))
    world.agree("the samples' settings", record)
    done = count_samples(out)
    if settings.num <= done:
        return out / SAMPLES
    codec = open_codec(
        vae or trained.about["vae"], device=device, fingerprint=trained.about["vae_fingerprint"]
    )
    world.on_main(lambda: runs.write_json(out / SETTINGS, record))
    kept = (
        done // settings.batch
    )  # whole parts; one that was cut short is drawn again, for a network rounds by the size of its batch
    mine = [part for part in range(kept, _parts(settings)) if part % world.size == world.rank]
    with tqdm(
        total=len(mine), desc="sample", unit="part", disable=not (progress and world.is_main)
    ) as bar:
        for part in mine:
            if not _is_done(_part(out, part), _count(settings, part)):
                checkpoint.write_bytes(
                    _part(out, part), _npy(_draw(trained, codec, settings, part, device))
                )
            bar.update()
    world.barrier()
    world.on_main(lambda: _gather(out, settings, trained.num_classes, kept))
    return out / SAMPLES


def count_samples(out: str | Path) -> int:
    """How many samples the npz in a folder of samples holds; 0 where there is none, or a damaged
    one.
    """
    try:
        with _opened(Path(out) / SAMPLES) as (_, shape):
            return int(shape[0])
    except Exception:  # not there, or damaged in any way: all is drawn again
        return 0


def _check_same(out: Path, record: dict[str, Any]) -> None:
    """Raise ConfigError where `out` holds anything but samples of these settings; how many does not
    matter.
    """
    file = out / SETTINGS
    mine = json.loads(json.dumps(record))
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(
                f"{out} is not empty and holds no samples of ours; choose another --out."
            )
        return
    try:
        theirs = {
            "labels": "turn",
            "average": "ema",
            **json.loads(file.read_text(encoding="utf-8")),
        }
        theirs["recipe"] = json.loads(
            json.dumps(from_dict(theirs["recipe"]).as_dict())
        )  # fields that came later are at their defaults
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{file} is damaged ({error}). Remove {out} and draw the samples again."
        ) from None
    differs = sorted(
        name
        for name in mine.keys() | theirs.keys()
        if mine.get(name) != theirs.get(name) and name != "num"
    )
    if differs:
        raise ConfigError(
            f"{out} holds samples of other settings ({', '.join(differs)} differ); choose another "
            "--out, or remove it."
        )


def _part(out: Path, part: int) -> Path:
    return out / f"part-{part:05d}.npy"


def _parts(settings: Settings) -> int:
    return -(-settings.num // settings.batch)


def _labels(settings: Settings, part: int, classes: int) -> Tensor:
    """The labels (n,) of one part; those drawn at random depend on (seed, part) alone, however many
    rows are asked for.
    """
    n, generator = (
        _count(settings, part),
        keyed_generator("cpu", settings.seed, "samples' labels", part),
    )
    return class_labels(
        settings.labels, classes, settings.batch, first=part * settings.batch, generator=generator
    )[:n]


def _count(settings: Settings, part: int) -> int:
    return min(settings.batch, settings.num - part * settings.batch)


def _is_done(path: Path, rows: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) == rows
    except Exception:  # not there, or damaged in any way: it is drawn again
        return False


def _draw(
    trained: Trained, codec: Codec, settings: Settings, part: int, device: torch.device
) -> np.ndarray:
    """The images (n, H, W, 3) uint8 of one part."""
    return _pixels(codec, _latents(trained, settings, part, device), device)


def _latents(trained: Trained, settings: Settings, part: int, device: torch.device) -> Tensor:
    """What is decoded to the images of one part, (n, C, h, w)."""
    y = _labels(settings, part, trained.num_classes).to(device)
    noise = torch.randn(
        settings.batch,
        *trained.shape,
        generator=keyed_generator("cpu", settings.seed, "samples", part),
        dtype=torch.float32,
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return _solver(settings, part, trained)(
            _velocity(trained, settings, y, device), noise[: len(y)].to(device)
        )


def drawing(
    recipe: ImageNet,
    about: Mapping[str, Any],
    codec: Codec | None,
    out: str | Path,
    *,
    device: torch.device,
    num: int = 16,
    show: Callable[[np.ndarray, int], None] | None = None,
) -> Callable[[nn.Module, int], None]:
    """A function of a model and a step that writes OUT/samples-step-N.png, as `runs.train` takes
    it: the same noise each time.

    Every rank computes them, for under FSDP a forward pass takes all; one without a `codec` writes
    nothing. `show` is given the images (num, H, W, 3) uint8 and the step.
    """
    settings = Settings(
        num, recipe.seed, recipe.solver, recipe.sample_steps, recipe.guidance, batch=num
    )

    def draw(model: nn.Module, step: int) -> None:
        z = _latents(Trained(recipe, model, step, dict(about), "", None), settings, 0, device)
        if codec is not None:
            images = _pixels(codec, z, device)
            _picture(images, Path(out) / f"samples-step-{step:08d}.png")
            if show:
                show(images, step)

    return draw


def _pixels(codec: Codec, z: Tensor, device: torch.device) -> np.ndarray:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        pixels = [codec.pixels(piece) for piece in z.split(16)]
    return torch.cat(pixels).permute(0, 2, 3, 1).contiguous().numpy()


def _solver(
    settings: Settings, part: int, trained: Trained
) -> Callable[[Velocity, Tensor], Tensor]:
    path = PATHS[trained.recipe.path]
    if settings.solver != "sde":
        ts = torch.linspace(0, 1, settings.steps + 1)
        return lambda velocity, x: samplers.sample(velocity, x, ts, SOLVERS[settings.solver])
    ts = torch.linspace(0, 1 - samplers.SDE_END, settings.steps)
    generator = keyed_generator("cpu", settings.seed, "samples' noise", part)
    return lambda velocity, x: samplers.sample_sde(velocity, x, ts, path, generator=generator)


def _velocity(trained: Trained, settings: Settings, y: Tensor, device: torch.device) -> Velocity:
    """The guided velocity; debiased, it aims at FM's optimum again."""
    velocity = guidance.cfg(trained.model, y, settings.guidance, settings.interval)
    if not settings.debias:
        return velocity
    mean = None if trained.mean is None else trained.mean.to(device)  # once, not at every step
    return debiasing(trained.recipe)(velocity, trained.recipe, replace(trained, mean=mean))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The images of an npz of ours as a stream, and their shape (N, H, W, 3)."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype != np.uint8 or len(shape) != 4:
            raise ValueError(f"arr_0 is {dtype} {shape}")
        yield member, shape


def _kept(path: Path, parts: int, batch: int) -> Iterator[bytes]:
    """The first whole parts of an npz of ours, then the rest unused, for only at its end is the sum
    compared.
    """
    if not parts:
        return
    try:
        with _opened(path) as (member, shape):
            size = batch * int(np.prod(shape[1:]))
            for _ in range(parts):
                yield member.read(size)
            while member.read(size):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Remove it and draw the samples again."
        ) from None


def _gather(out: Path, settings: Settings, classes: int, kept: int = 0) -> None:
    """Put `kept` parts of the npz there and the new ones into one, part by part, so that 50,000
    images need no memory.

    The old npz is replaced in one step; then the parts are removed.
    """
    paths = [_part(out, part) for part in range(kept, _parts(settings))]
    shape = (settings.num, *np.load(paths[0], mmap_mode="r", allow_pickle=False).shape[1:])
    labels = torch.cat(
        [_labels(settings, part, classes) for part in range(_parts(settings))]
    ).numpy()
    work = out / f".tmp-{uuid.uuid4().hex}"
    try:
        with zipfile.ZipFile(work, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)  # pyright: ignore[reportArgumentType]
                for content in _kept(out / SAMPLES, kept, settings.batch):
                    member.write(content)
                for path in paths:
                    member.write(np.load(path, allow_pickle=False).tobytes())
            archive.writestr("arr_1.npy", _npy(labels.astype(np.int64)))
        os.replace(work, out / SAMPLES)
    except OSError as error:
        raise checkpoint.explained(error, out, int(np.prod(shape))) from error
    finally:
        work.unlink(missing_ok=True)
    with _opened(out / SAMPLES) as (member, _):
        first = member.read(32 * int(np.prod(shape[1:])))
    _picture(np.frombuffer(first, np.uint8).reshape(-1, *shape[1:]), out / "samples.png")
    for path in out.glob("part-*.npy"):
        path.unlink()


def _picture(images: np.ndarray, path: Path, columns: int = 8) -> None:
    """The first images in rows of eight."""
    n, height, width, _ = images.shape
    columns = min(columns, n)
    sheet = Image.new("RGB", (columns * width, -(-n // columns) * height))
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (i % columns * width, i // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    checkpoint.write_bytes(path, buffer.getvalue())
