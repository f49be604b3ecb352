"""The work of `cfm-lite scale prepare | train | sample`, on as many ranks as torchrun started."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cfm_lite import runs
from cfm_lite._internal.checks import check_choice, check_number
from cfm_lite._internal.places import inside
from cfm_lite.data import archive, images
from cfm_lite.data.latents import Latents, Pictures, shards
from cfm_lite.data.latents.captions import captioned, keep_left_out
from cfm_lite.data.latents.codec import open_codec
from cfm_lite.data.latents.features import encode_features
from cfm_lite.data.latents.prepare import prepare
from cfm_lite.engine.parallel import World, joined, ranks_of_environment
from cfm_lite.errors import ConfigError
from cfm_lite.models import SiT
from cfm_lite.models.text import CLIP, ClipText, note_cut
from cfm_lite.runs import Run
from cfm_lite.runs.folder import check_kind
from cfm_lite.runs.imagenet import ALIGNED, CAPTIONED, ImageNet, imagenet, versus
from cfm_lite.runs.reads import check_read
from cfm_lite.runs.recipe import check_speed
from cfm_lite.runs.sampling import Settings
from cfm_lite.scale.dry_run import dry_run as try_out
from cfm_lite.scale.official import start_from
from cfm_lite.scale.sample import count_samples, sample_imagenet
from cfm_lite.scale.train import Options, check_fit, opened_teacher, train_imagenet

__all__ = [
    "LOGS",
    "features_command",
    "prepare_command",
    "sample_command",
    "train_command",
]

LOGS = ("json", "tensorboard")


def prepare_command(
    source: Path | None,
    out: Path,
    device: str,
    vae: str,
    captions: Path | None,
    **settings: Any,
) -> str:
    """Encode a folder (or a tar) of images, by default the 63 samples. Returns what to print.

    With a file of `captions` the images are those that it names, and have captions, not classes.

    Raises ConfigError for captions without images and for a folder that holds something else, and
    DataError for images that cannot be read.
    """
    rank, world, _ = ranks_of_environment()
    given = [path for path in (source, captions) if path is not None]
    check_kind(out, "latents or features", inputs=given)
    _check_outside(out, source)
    if captions is not None and source is None:
        raise ConfigError("--captions needs images; give their folder with --images DIR.")
    if captions is None:
        found, without = images.find(source or archive.samples(), shards.left_out(out)), {}
    else:
        found, without = captioned(captions, str(source))
    codec = open_codec(vae, device=runs.pick_device(device))
    index = prepare(found, out, codec, rank=rank, world=world, **settings)
    if index is None:
        return _waits(rank, world, out)
    told = keep_left_out(out, without)
    left_out = f"\n{told}" if told else ""
    for key, reason in index["skipped"][:10]:
        there = os.path.lexists(found.root / key)
        left_out += f"\nleft out {key}: {reason if there else 'it is not there any more'}"
    said = sum(len(file.captions) for file in found.files)
    holds = f"with {said:,} captions" if said else f"of {len(index['classes'])} classes"
    mean, std = (
        " ".join(f"{x:+.3f}" for x in index[name]) for name in ("channel_mean", "channel_std")
    )
    return (
        f"{index['rows_total']} images {holds} at {index['size']} "
        f"pixels, both mirrors, in {out}\n"
        f"scaled latents {tuple(index['shape'])}: channel means {mean}, deviations {std}{left_out}"
    )


def _check_outside(out: Path, images: Path | None) -> None:
    """ConfigError for an `out` among the `images`, where the next command would find a class."""
    if images is not None and inside(out, images):
        raise ConfigError(
            f"--out is {out}, which is inside of --images {images}; it would count as a class "
            f"there. Choose another --out, such as {images.resolve().parent / 'latents'}."
        )


def _waits(rank: int, world: int, out: Path) -> str:
    return f"rank {rank} of {world} is done; the last one to finish writes the index of {out}"


def features_command(
    latents: Path, source: Path | None, out: Path, device: str, weights: str | None, **settings: Any
) -> str:
    """Encode the images of some latents with REPA's teacher. Returns what to print.

    Raises ConfigError for a folder that holds something else, and DataError for images that are not
    those of the latents.
    """
    rank, world, _ = ranks_of_environment()
    given = [path for path in (latents, source) if path is not None]
    check_kind(out, "latents or features", inputs=given)
    _check_outside(out, source)
    data, name = Latents(latents), imagenet("repa").teacher
    encoder: Any = opened_teacher(name, data.shape[-1] // 2, weights).to(runs.pick_device(device))
    source = source or archive.samples()
    _look_at(data, source)
    index = encode_features(data, source, encoder, name, out, rank=rank, world=world, **settings)
    if index is None:
        return _waits(rank, world, out)
    return (
        f"{len(data)} images, {encoder.grid**2} tokens of {encoder.dim} numbers each by {name}, in "
        f"{out}"
    )


def _look_at(latents: Latents, folder: Path) -> None:
    """Raise DataError early unless the first image of the latents is in `folder`."""
    if len(latents):
        Pictures(latents, folder, workers=1)(
            torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool)
        )


def recipe_of(
    method: str,
    model: str,
    device: torch.device,
    changes: Mapping[str, Any],
    dataset: str = "imagenet",
) -> ImageNet:
    """The preset with the command line's changes. On a CPU the default precision is float32."""
    chosen = imagenet("sit" if method == "fm" else method, model=model, dataset=dataset)
    plain = {} if device.type == "cuda" else {"precision": "float32"}
    return chosen.changed(**{**plain, **changes})


def train_command(
    dataset: str,
    method: str,
    model: str | None,
    latents: Path | None,
    out: Path | None,
    device: str,
    changes: Mapping[str, Any],
    *,
    dry_run: bool,
    price: float | None,
    ranks: int | None,
    log: str,
    start: Path | None,
    text: str | None,
    format: str,
    by_hand: Sequence[str],
    **how: Any,
) -> str | None:
    """Train one preset, or only try it. Returns what to print, None on ranks other than 0.

    `how` are fields of `Options`. `by_hand` names the `changes` given with --set, which the run
    must read.

    Raises ConfigError, before any work, for no latents without a dry run, for settings that nothing
    reads, and as `train_imagenet` does.
    """
    check_choice("log", log, LOGS)
    where = runs.pick_device(device)
    if latents is None and not dry_run:
        raise ConfigError(
            "there are no latents; give the folder that cfm-lite scale prepare wrote with "
            "--latents, or try --dry-run."
        )
    data = None if latents is None else Latents(latents)
    model = model or ("MMDiT" if dataset in CAPTIONED else "SiT-XL/2")
    begin = None if start is None else start_from(start, format, model)
    network = None if begin is None else begin.model
    recipe = recipe_of(method, model, where, {**_known(data, network), **changes}, dataset)
    _check_given(recipe, data, how, by_hand, price, text)
    name = f"{dataset}-{model.replace('/', '-')}-{method}-{recipe.seed}"
    given = (latents, start, how.get("images"), how.get("features"))
    inputs = [path for path in given if path is not None]
    folder = runs.home_for(out or Path("runs") / name, how.get("resume", False), inputs=inputs)
    if how.get("images") is not None:
        # unpack a tar, or refuse a wrong folder, before the work begins
        layout = images.layout if data is None else data.folder_of
        how["images"] = layout(how["images"])
    if data is not None:
        check_fit(recipe, data)
    with joined(where) as world:
        if data is not None and dataset in CAPTIONED:
            # a network that was trained before reads by the encoder that it was trained with
            opened = ClipText if begin is None else begin.open_text
            data.text = opened(text or CLIP).to(world.place(where))
            if world.is_main:
                note_cut(data.text, [said for told in data.captions for said in told])
        if world.is_main:
            check_speed(recipe.precision, where)
        board = log == "tensorboard"
        options = Options(folder, where, world, tensorboard=board, start=network, **how)
        if data is None or dry_run:
            report = try_out(recipe, data, options, price=price, ranks=ranks)
            return "\n".join([report, "", *_table(method, dataset)]) if world.is_main else None
        done = train_imagenet(recipe, data, options)
        return f"{done.summary}; the run is in {folder}" if world.is_main else None


def _known(data: Latents | None, network: Any) -> dict[str, Any]:
    """The fields of a recipe that its latents and the network that it starts from decide."""
    known: dict[str, Any] = {} if data is None else {"size": data.size}
    if isinstance(network, SiT):
        # another value given by hand is refused later
        known |= {name: getattr(network, name) for name in ("learn_sigma", "qk_norm")}
    return known


def _check_given(
    recipe: ImageNet,
    data: Latents | None,
    how: Mapping[str, Any],
    by_hand: Sequence[str],
    price: float | None,
    text: str | None,
) -> None:
    """ConfigError for what the run would not read, and for a wrong price."""
    check_read(recipe, by_hand)
    _check_teacher(recipe, data, how)
    if price is not None:
        check_number("price", price, 0, float("inf"))
    if text is not None and recipe.dataset not in CAPTIONED:
        raise ConfigError(
            f"--text is the encoder of captions, and {recipe.dataset} has classes; leave it out."
        )


def _check_teacher(recipe: ImageNet, data: Latents | None, how: Mapping[str, Any]) -> None:
    """ConfigError for options of REPA's teacher that nothing would read, DataError for missing
    images.
    """
    given = [name for name in ("images", "features", "teacher") if how.get(name) is not None]
    if given and not recipe.align:
        raise ConfigError(
            f"--{given[0]} is for a teacher, and this recipe aligns with none; leave it out, or "
            f"choose --method {' or '.join(ALIGNED)}."
        )
    if "features" in given and len(given) > 1:
        raise ConfigError(
            f"--{next(name for name in given if name != 'features')} and --features both say what "
            "the teacher sees; give one."
        )
    if "images" in given:
        if data is None:
            raise ConfigError(
                "--images is the folder from which latents were made; give --latents too, or leave "
                "it out."
            )
        _look_at(data, how["images"])


def _table(method: str, dataset: str) -> list[str]:
    head = ("setting", "paper", "the preset at full scale")
    rows = [head, *versus("sit" if method == "fm" else method, dataset)]
    return [f"{setting:<20} {paper:<78} {here}" for setting, paper, here in rows]


def sample_command(
    run: Run, checkpoint: Path, out: Path | None, settings: Settings, world: World, vae: str | None
) -> str | None:
    """Sample a run on latents into a folder. None on ranks other than 0."""
    folder = out or (run.place.folder if run.place else checkpoint.parent) / "samples"
    before = count_samples(folder)
    path = sample_imagenet(run, folder, settings, device=run.device, world=world, vae=vae)
    if not world.is_main:
        return None
    if before >= settings.num:
        return (
            f"{before} samples are in {path} already, {settings.num} were asked for: "
            "nothing was drawn"
        )
    drawn = min(settings.num, len(settings.prompts))  # the others come when the folder grows
    said = f", of {drawn:,} caption{'s' if drawn > 1 else ''}" if drawn else ""
    return f"{settings.num} samples in {path}{said}" + (
        f", {before} of them from before" if before else ""
    )
