"""Official checkpoints at the command line: fine-tune them, sample them, and write runs in their
formats.

    --start FILE --format sit|repa      .pt, .pth or .safetensors of SiT, REPA or DeltaFM, or a run

Time and sign are converted once, when a file is read or written (`models.official`). No code in a
file is run.
"""

import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cfm_lite._internal.checks import check_choice
from cfm_lite._internal.places import check_file, expanded
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.models import export_official
from cfm_lite.models.official import FORMATS
from cfm_lite.runs import Run, is_file_of_weights, located, saved_recipe
from cfm_lite.runs.imagenet import ImageNet

__all__ = ["export_run", "start_from"]


def _on_imagenet(path: Path) -> Run:
    """The run in `path`. CheckpointError unless it is a run on ImageNet's latents."""
    named = saved_recipe(path)
    if not isinstance(named, ImageNet):
        raise CheckpointError(
            f"{located(path).folder} is a run on {named.dataset}, not on ImageNet's latents; give "
            "the folder of such a run."
        )
    return Run.open(path)


def start_from(path: Path, format: str, network: str) -> Run:
    """The run whose network is to be fine-tuned: an official file, or the average of one of our
    runs on latents.

    Raises ConfigError if its sizes are not those of `network`, CheckpointError, UntrustedFileError.
    """
    check_choice("format", format, FORMATS)
    path = expanded(path)
    if is_file_of_weights(path):
        trained = Run.open(path, format=format, network=network)
    else:
        trained = _on_imagenet(path)
    recipe: Any = trained.recipe
    if recipe.network != network:
        raise ConfigError(
            f"{path} is a {recipe.network}, and {network} is to be trained; give --model "
            f"{recipe.network}."
        )
    trained.model.train().requires_grad_(True)
    return trained


def export_run(run: Path, format: str, out: Path) -> Path:
    """Write the average of an ImageNet run as an official file, and return its path.

    The suffix is .safetensors, or .pt with the key "ema". Raises ConfigError for another suffix or
    a file in use, CheckpointError if there is no run or no room.
    """
    check_choice("format", format, FORMATS)
    run, out = expanded(run), check_file(expanded(out), (".safetensors", ".pt"), inputs=(run,))
    if is_file_of_weights(run):
        raise CheckpointError(
            f"{run} is a file of weights already; export takes the folder of an ImageNet run, or "
            "one of its checkpoints."
        )
    trained = _on_imagenet(run)
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
