"""Official checkpoints at the command line: fine-tune them, sample them, and write our runs in
their formats.

    --start FILE --format sit|repa      a .pt, .pth or .safetensors of SiT, REPA or DeltaFM; or one of our runs

Time and sign are turned once, when a file is read or written (`models.official`); nothing in it may
run code.
"""

import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cfm_lite._internal.checks import check_choice
from cfm_lite._internal.places import check_file, expanded
from cfm_lite.data.latents.shards import digest_file
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.models import SiT, export_official, load_official
from cfm_lite.models.official import FORMATS
from cfm_lite.runs.imagenet import MODELS, imagenet
from cfm_lite.scale.sample import Trained, open_run

__all__ = ["export_run", "is_file_of_weights", "open_any", "start_from"]

SUFFIXES = (".pt", ".pth", ".safetensors")
VAE = "sd-vae-ft-ema"  # what the official programs decode with unless they are told otherwise


def is_file_of_weights(path: Path) -> bool:
    """True for the name of a single file of weights, as the official programs write them; a run is
    a folder, and so are its own.
    """
    return (
        path.suffix in SUFFIXES
        and not path.is_dir()
        and not (path.parent / checkpoint.MANIFEST).exists()
    )


def start_from(path: Path, format: str, network: str) -> SiT:
    """The SiT in an official file, or the average of one of our ImageNet runs, to be fine-tuned.

    Raises ConfigError where its sizes are not those of `network`, CheckpointError,
    UntrustedFileError.
    """
    check_choice("model", network, MODELS)
    check_choice("format", format, FORMATS)
    path = expanded(path)
    if is_file_of_weights(path):
        return load_official(path, format=format, **MODELS[network])
    trained = open_run(path, torch.device("cpu"))
    if trained.recipe.network != network:
        raise ConfigError(
            f"{path} is a {trained.recipe.network}, and {network} is to be trained; give --model "
            f"{trained.recipe.network}."
        )
    model: Any = trained.model
    return model.train().requires_grad_(True)


def open_official(path: Path, format: str, network: str, device: torch.device) -> Trained:
    """An official file as a run that can be sampled; its latents are those of sd-vae-ft-ema."""
    check_choice("model", network, MODELS)
    model = load_official(path, format=format, **MODELS[network])
    side = model.input_size
    about = {
        "shape": [model.in_channels, side, side],
        "num_classes": model.num_classes,
        "vae": VAE,
        "vae_fingerprint": None,
    }
    recipe = imagenet(
        "sit", model=network, size=8 * side, learn_sigma=model.learn_sigma, qk_norm=model.qk_norm
    )
    return Trained(recipe, model.to(device).eval(), 0, about, digest_file(path), None)


def export_run(run: Path, format: str, out: Path) -> Path:
    """Write the average of an ImageNet run as an official file: .safetensors, or .pt with the key
    "ema". Returns its path.

    Raises ConfigError for another suffix or a file that something else needs, CheckpointError where
    there is no run or no room.
    """
    check_choice("format", format, FORMATS)
    run, out = expanded(run), check_file(expanded(out), (".safetensors", ".pt"), inputs=(run,))
    if is_file_of_weights(run):
        raise CheckpointError(
            f"{run} is a file of weights already; export takes the folder of an ImageNet run, or "
            "one of its checkpoints."
        )
    trained = open_run(run, torch.device("cpu"))
    model: Any = trained.model
    state = {
        name: value.contiguous() for name, value in export_official(model, format=format).items()
    }
    checkpoint.write_bytes(
        out,
        safetensors.torch.save(state) if out.suffix == ".safetensors" else _pickled({"ema": state}),
    )
    return out


def _pickled(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def open_any(
    path: Path, format: str, network: str, device: torch.device, average: str = "ema"
) -> Trained:
    """A run of ours, or an official file, to be sampled; CheckpointError where there is neither."""
    if is_file_of_weights(path):
        if not path.is_file():
            raise CheckpointError(
                f"there is no file {path}. Give a run's folder, or a file of weights."
            )
        if average != "ema":
            raise ConfigError(
                f"--average {average} is for runs of ours: {path} holds one network. Leave it out."
            )
        return open_official(path, format, network, device)
    return open_run(path, device, average)
