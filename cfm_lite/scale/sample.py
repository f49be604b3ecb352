"""Images from a trained run, in one npz as ADM's evaluator reads it.

    SAMPLES/  settings.json   part-00000.npy ...
              ->  samples.npz (arr_0 (N, H, W, 3) uint8, arr_1 labels)  samples.png

For a run on captions arr_1 holds the number of each image's caption in settings.json.

Part p holds samples p * batch, ... and depends on (seed, p) alone. So any number of ranks gives the
same images, a stopped run continues, and a finished folder can grow: only missing parts are drawn.
Samples of other settings are never mixed in, because settings.json is compared first.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from cfm_lite import runs
from cfm_lite._internal.files import replacing
from cfm_lite._internal.places import check_folder, expanded
from cfm_lite.data.latents.codec import Codec, open_codec
from cfm_lite.data.latents.shards import npy
from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.evaluate.images import opened
from cfm_lite.models.text import note_cut
from cfm_lite.runs import Run, Spec
from cfm_lite.runs.imagenet import ImageNet
from cfm_lite.runs.recipe import from_dict
from cfm_lite.runs.sampling import (
    SAMPLES,
    SETTINGS,
    Settings,
    draw_part,
    labels_of,
    recorded,
    said_in,
    velocity_of,
)

__all__ = ["count_samples", "drawing", "sample_imagenet"]

ON_THE_WAY = 16  # samples that are drawn while a run trains


def sample_imagenet(
    source: str | Path | Run,
    out: str | Path,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    vae: str | None = None,
    progress: bool = True,
) -> Path:
    """Draw the missing ones of `settings.num` samples, and return the npz. A larger npz stays as it
    is.

    `source` is a run's folder, one of its checkpoints, or an open `Run`. `vae` is a new place of
    the VAE that made the latents. Raises CheckpointError, DataError for another VAE, and
    ConfigError if `out` holds samples of other settings; then nothing is written.
    """
    out, device = check_folder(expanded(out)), world.place(torch.device(device))
    run = source if isinstance(source, Run) else Run.open(source, device=device)
    if run.spec is None or run.spec.vae is None:
        raise ConfigError(
            f"the run on {run.recipe.dataset} has no latents to decode; draw it with cfm-lite "
            "sample, into an npz."
        )
    # an impossible setting is refused here, before anything is written
    velocity_of(run, settings, labels_of(run, settings, 0).to(device))
    record, spec = recorded(run, settings), run.spec
    world.on_main(lambda: _check_same(out, record))
    world.agree("the samples' settings", record)
    done = count_samples(out)
    if settings.num <= done:
        return out / SAMPLES
    codec = open_codec(vae or run.spec.vae, device=device, fingerprint=spec.vae_fingerprint)
    if spec.text and world.is_main:
        note_cut(run.encoder, said_in(settings))
    world.on_main(lambda: runs.write_json(out / SETTINGS, record))
    # whole parts are kept; a short last part is drawn again, because a network's rounding depends
    # on the size of its batch
    kept = done // settings.batch
    mine = [part for part in range(kept, settings.parts) if part % world.size == world.rank]
    with tqdm(
        total=len(mine), desc="sample", unit="part", disable=not (progress and world.is_main)
    ) as bar:
        for part in mine:
            if not _is_done(_part(out, part), settings.count(part)):
                images = _draw(run, codec, settings, part)
                checkpoint.write_bytes(_part(out, part), npy(images))
            bar.update()
    world.barrier()
    world.on_main(lambda: _gather(out, run, settings, kept))
    return out / SAMPLES


def count_samples(out: str | Path) -> int:
    """The number of samples in the npz of a folder; 0 if it is missing or damaged."""
    try:
        with opened(Path(out) / SAMPLES) as (_, shape):
            return int(shape[0])
    except Exception:  # not there, or damaged in any way: all is drawn again
        return 0


def _check_same(out: Path, record: dict[str, Any]) -> None:
    """Raise ConfigError unless `out` is empty or holds samples of these settings, of any number."""
    file = out / SETTINGS
    mine = json.loads(json.dumps(record))
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(
                f"{out} is not empty and holds no samples of cfm_lite; choose another --out."
            )
        return
    try:
        theirs = {
            "labels": "turn",
            "average": "ema",
            "prompts": [],
            "negative": "",
            **json.loads(file.read_text(encoding="utf-8")),
        }
        # an older file lacks newer fields: they have their defaults
        theirs["recipe"] = json.loads(json.dumps(from_dict(theirs["recipe"]).as_dict()))
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


def _is_done(path: Path, rows: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) == rows
    except Exception:  # not there, or damaged in any way: it is drawn again
        return False


def _draw(run: Run, codec: Codec, settings: Settings, part: int) -> np.ndarray:
    """The images (n, H, W, 3) uint8 of one part."""
    return _pixels(codec, draw_part(run, settings, part))


def drawing(
    recipe: ImageNet,
    spec: Spec,
    codec: Codec | None,
    out: str | Path,
    *,
    show: Callable[[np.ndarray, int], None] | None = None,
    prompts: Sequence[str] = (),
    encoder: Any = None,
    data: Mapping[str, Any] | None = None,
) -> Callable[[nn.Module, int], None]:
    """A function of a model and a step that writes OUT/samples-step-N.png, from the same noise each
    time.

    `runs.train` calls it on every rank, because under FSDP a forward pass needs all of them. A rank
    without a `codec` writes nothing. `show` is called with the images (16, H, W, 3) uint8 and the
    step. For a run on captions the pictures are of `prompts`, read by `encoder`.
    `data` is what config.json says of the run's data.
    """
    how = (recipe.seed, recipe.solver, recipe.sample_steps, recipe.guidance)
    settings = Settings(ON_THE_WAY, *how, batch=ON_THE_WAY, prompts=tuple(prompts))

    def draw(model: nn.Module, step: int) -> None:
        run = Run(recipe, model, step, spec=spec, encoder=encoder, data=data or {})
        z = draw_part(run, settings, 0)
        if codec is not None:
            images = _pixels(codec, z)
            _picture(images, Path(out) / f"samples-step-{step:08d}.png")
            if show:
                show(images, step)

    return draw


def _pixels(codec: Codec, z: Tensor) -> np.ndarray:
    with torch.autocast(z.device.type, torch.bfloat16, enabled=z.device.type == "cuda"):
        pixels = [codec.pixels(piece) for piece in z.split(16)]
    return torch.cat(pixels).permute(0, 2, 3, 1).contiguous().numpy()


def _kept(path: Path, parts: int, batch: int) -> Iterator[bytes]:
    """The first whole parts of an npz of `cfm-lite scale sample`.

    The rest is read too, because only its end verifies the checksum.
    """
    if not parts:
        return
    try:
        with opened(path) as (member, shape):
            size = batch * int(np.prod(shape[1:]))
            for _ in range(parts):
                yield member.read(size)
            while member.read(size):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Remove it and draw the samples again."
        ) from None


def _gather(out: Path, run: Run, settings: Settings, kept: int = 0) -> None:
    """Join `kept` parts of the old npz and the new parts, part by part, so 50,000 images need
    little memory.

    The old npz is replaced in one step, and then the parts are removed.
    """
    paths = [_part(out, part) for part in range(kept, settings.parts)]
    shape = (settings.num, *np.load(paths[0], mmap_mode="r", allow_pickle=False).shape[1:])
    if settings.prompts:
        labels = torch.arange(settings.num, device="cpu") % len(settings.prompts)
    else:
        labels = torch.cat([labels_of(run, settings, part) for part in range(settings.parts)])
    try:
        with (
            replacing(out / SAMPLES) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                write_header: Any = np.lib.format.write_array_header_1_0
                write_header(member, header)
                for content in _kept(out / SAMPLES, kept, settings.batch):
                    member.write(content)
                for path in paths:
                    member.write(np.load(path, allow_pickle=False).tobytes())
            archive.writestr("arr_1.npy", npy(labels.numpy().astype(np.int64)))
    except OSError as error:
        raise checkpoint.explained(error, out, int(np.prod(shape))) from error
    with opened(out / SAMPLES) as (member, _):
        first = member.read(32 * int(np.prod(shape[1:])))
    _picture(np.frombuffer(first, np.uint8).reshape(-1, *shape[1:]), out / "samples.png")
    for path in out.glob("part-*.npy"):
        path.unlink()


def _picture(images: np.ndarray, path: Path) -> None:
    """The first images in rows of eight."""
    n, height, width, _ = images.shape
    columns = min(8, n)
    sheet = Image.new("RGB", (columns * width, -(-n // columns) * height))
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (i % columns * width, i // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    checkpoint.write_bytes(path, buffer.getvalue())
