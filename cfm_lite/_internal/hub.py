"""Networks that others read: from the Hugging Face hub, or from a folder in its layout.

The hub is asked once whether it gives a model, before others ask for its files.

transformers, diffusers and timm ask for each possible file, five times, waiting longer each time.
So a wrong name, or a machine without a network, would be an error only after two minutes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor, nn

from cfm_lite._internal.checks import integers, listed, not_finite
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.places import AnyPath, expanded

__all__ = ["flaw", "folder_of", "kept", "refusal"]


def folder_of(place: AnyPath) -> str | None:
    """The whole path of `place` if it is a folder on this machine. None means a name on the hub.

    >>> folder_of("me/none")
    """
    folder = expanded(place)
    return str(folder.absolute()) if os.fspath(place) and os.path.isdir(folder) else None


def flaw(network: nn.Module, about: Mapping[str, Any], place: str, file: str, extra: str) -> str:
    """Why the weights in a `file` at `place` are not those of `network`, in a line; "" if they are.

    `about` is the loading info of transformers or diffusers, which made the network of them. They
    would leave what is missing, and what has another shape, at random, and take integers and NaN
    for weights.

    >>> about = {"missing_keys": ["weight", "bias"]}
    >>> flaw(nn.Linear(1, 1), about, "me/none", "model.safetensors", "text")
    'lacks 2 weights, such as bias'
    """
    lacks, other = sorted(about.get("missing_keys", ())), sorted(about.get("mismatched_keys", ()))
    if lacks:
        return f"lacks {len(lacks)} weights, such as {lacks[0]}"
    if other:
        name, has, wanted = other[0]
        return (
            f"has {len(other)} weights of another shape than its config.json tells, such as {name} "
            f"{tuple(has)}, not {tuple(wanted)}"
        )
    state = network.state_dict()
    if whole := integers(state, _odd(place, file, extra)):
        return f"holds integers, which are no weights: {listed(whole)}"
    wrong = not_finite(state)
    return f"holds weights that are not finite: {listed(wrong)}" if wrong else ""


def _odd(place: str, file: str, extra: str) -> dict[str, Tensor]:
    """The tensors of a `file`, or of the parts that its index lists, that hold no real numbers."""

    def path_of(name: str) -> str | None:
        path = os.path.join(place, name) if os.path.isdir(place) else kept(place, name, extra)
        return path if path and os.path.isfile(path) else None

    paths = [path_of(file)]
    if paths == [None] and (index := path_of(f"{file}.index.json")):
        inside = os.path.dirname(file)
        parts = json.loads(Path(index).read_text())["weight_map"].values()
        paths = [path_of(os.path.join(inside, part)) for part in sorted(set(parts))]
    found: dict[str, Tensor] = {}
    for path in filter(None, paths):
        with safetensors.safe_open(path, "pt") as content:
            names = content.keys()  # the file is not a mapping
            odd = [name for name in names if "F" not in content.get_slice(name).get_dtype()]
            found |= {name: content.get_tensor(name) for name in odd}
    # transformers leaves out the name of a tower
    return {name.partition(".")[2]: x for name, x in found.items()} | found


def refusal(name: str, extra: str, part: str | None = None) -> str:
    """Why the hub does not give the model `name`, in a line; "" if it does.

    `part` is a folder in it. Raises ConfigError without the packages of `extra`.
    """
    hub = optional("huggingface_hub", extra)
    try:
        found = hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json", subfolder=part))
    except Exception as error:  # no network, no such name, no access: each raises another type
        return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    # a network that asks for a login answers everything with a page
    return "" if found.commit_hash else "the server that answers is not the hub"


def kept(name: str, file: str, extra: str) -> str | None:
    """The path of a `file` of the model `name` in the hub's cache on this machine, if it is there.

    >>> kept("me/none", "model.safetensors", "text")
    """
    found = optional("huggingface_hub", extra).try_to_load_from_cache(name, file)
    return found if isinstance(found, str) else None  # it also says "the hub has none", no text
