"""Small networks that ship with the package, so that explorers run without any training.

cfm_lite/checkpoints/NAME.safetensors holds the averaged weights of one recipe in half precision,
with the recipe and a fingerprint of both in its header. The recorded command that makes them all:
python -m cfm_lite.pretrained; with names, only those. It can be stopped: the runs lie in
runs/pretrained, and the same command resumes them.
"""

import copy
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from cfm_lite import runs
from cfm_lite._internal.checks import check_choice, check_device, load_weights
from cfm_lite._internal.files import fingerprint
from cfm_lite._internal.networks import made_in_float32
from cfm_lite.data.datasets import dataset
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import CheckpointCorruptError, CheckpointError
from cfm_lite.methods import FIRST
from cfm_lite.runs.recipe import Recipe, build_model, from_dict, recipe
from cfm_lite.theory import EXACT

__all__ = ["RECIPES", "folder", "load", "make", "run_of"]

HOME = Path("runs/pretrained")  # where main's runs lie
_DIGITS = {"hidden_size": 192}
# about eight minutes on one core: 16 tokens, small batches, and more times near the middle, where
# the field is hard to learn
_MNIST: dict[str, Any] = {
    "hidden_size": 80,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 7,
    "batch": 32,
    "steps": 10_000,
}
_MNIST |= {"lr": 5e-3, "cooldown": 0.6, "time": "logit_normal", "precision": "float32"}
RECIPES: dict[str, Recipe] = {
    **{f"toy_{method}": recipe("toy", method=method, weight=0.35) for method in EXACT},
    **{f"digits_{method}": recipe("digits", method=method, **_DIGITS) for method in FIRST},
    "mnist_fm": recipe("mnist_sit", **_MNIST),
    "words": recipe("words", steps=22_000),
    "mnist_unet_fm": recipe("mnist", precision="float32"),
}


def folder() -> Path:
    """Where the shipped networks lie: cfm_lite/checkpoints.

    >>> folder().name
    'checkpoints'
    """
    return Path(__file__).parent / "checkpoints"


def load(name: str) -> nn.Module:
    """The network called `name` (see RECIPES), in eval mode, float32 and frozen.

    `load(name).recipe` is what trained it. There is one object per name and process.

    Raises:
        ConfigError: an unknown name.
        CheckpointError: the file is missing.
        CheckpointCorruptError: its content is not what its header says.

    >>> load("toy_fm").recipe.method
    'fm'
    """
    check_choice("checkpoint", name, RECIPES)  # before the cache, which cannot ask for a list
    return _loaded(name)


@functools.cache
def _loaded(name: str) -> nn.Module:
    path = folder() / f"{name}.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path}; install cfm_lite again, or make it: python -m "
            f"cfm_lite.pretrained {name}."
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointCorruptError(
            f"{path} is damaged ({error}); install cfm_lite again, or git checkout it."
        ) from None
    if header.pop("fingerprint", None) != fingerprint(weights, json.dumps(header, sort_keys=True)):
        raise CheckpointCorruptError(
            f"{path} is damaged: its content differs from its fingerprint; install cfm_lite again."
        )
    trained = from_dict(json.loads(header["recipe"]))
    spec = runs.Spec(
        tuple(json.loads(header["shape"])),
        int(header["num_classes"]),
        header.get("condition", "labels"),
    )
    with made_in_float32():
        model: Any = build_model(trained, spec)
    load_weights(model, weights, path)
    model.recipe, model.spec = trained, spec
    return model.requires_grad_(False).eval()


def run_of(name: str, device: torch.device | str = "cpu") -> runs.Run:
    """The network called `name` on a device, as a run that can be sampled.

    Raises ConfigError for a device that this machine does not have.

    >>> run_of("toy_fm").spec.shape
    (2,)
    """
    model: Any = copy.deepcopy(load(name)).to(check_device(device))
    weights = fingerprint(model.state_dict())
    return runs.Run(model.recipe, model, model.recipe.steps, spec=model.spec, weights=weights)


def make(name: str, into: Path, *, out: Path | None = None, **changes: Any) -> Path:
    """Train the network called `name` and write it to INTO/NAME.safetensors.

    The run goes to the folder `out`, and is resumed if one is there. `changes` are fields of its
    recipe.

    Raises ConfigError for an unknown name or field.
    """
    check_choice("checkpoint", name, RECIPES)
    chosen = RECIPES[name].changed(**changes)
    data = dataset(chosen.dataset)
    run = runs.train(chosen, data, label=name, out=out, resume="auto")
    weights = {key: value.half().contiguous() for key, value in run.model.state_dict().items()}
    header = {
        "recipe": json.dumps(chosen.as_dict()),
        "shape": json.dumps(list(data.shape)),
        "num_classes": str(data.num_classes),
        "condition": data.condition,
    }
    path = into / f"{name}.safetensors"
    named = fingerprint(weights, json.dumps(header, sort_keys=True))
    write_bytes(path, safetensors.torch.save(weights, header | {"fingerprint": named}))
    return path


def main(names: Sequence[str]) -> None:
    """Make the networks called `names`, or all of them; an unknown name is refused at once."""
    for name in names:
        check_choice("checkpoint", name, RECIPES)
    torch.set_num_threads(1)
    for name in names or RECIPES:
        print(make(name, folder(), out=HOME / name))


if __name__ == "__main__":  # the recorded command
    main(sys.argv[1:])
