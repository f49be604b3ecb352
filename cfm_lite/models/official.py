"""Loads and writes the checkpoints of the official SiT, REPA and DeltaFM programs.

    v_SiT(x, t) = -v_REPA(x, 1 - t)

Convention: a loaded model is an ordinary SiT in this library's time (t = 0 noise, t = 1 data). REPA
and DeltaFM run time the other way. The weights are changed once, and exactly, so that `forward`
needs no change:

    sign:   the head's weight and bias are negated
    time:   cos((1 - t) w) = cos w cos tw + sin w sin tw
            sin((1 - t) w) = sin w cos tw - cos w sin tw,
            a fixed reflection of the time features, folded into the first Linear that reads them

Both are their own inverse: the same function converts in either direction.
"""

import argparse
import inspect
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cfm_lite._internal.checks import (
    check_choice,
    check_count,
    check_number,
    listed,
    misfits,
    promote,
)
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.errors import (
    CFMError,
    CheckpointCorruptError,
    CheckpointError,
    ConfigError,
    UntrustedFileError,
)
from cfm_lite.models.embed import time_frequencies
from cfm_lite.models.sit import SIT_CONFIGS, SiT

__all__ = ["FORMATS", "export_official", "load_official", "read_weights"]

FORMATS = ("sit", "repa")  # "repa" is DeltaFM's too
_HEAD, _TIME, _PATCH = "final_layer.linear", "t_embedder.mlp.0.weight", "x_embedder.proj.weight"
_LABELS, _INNER, _NORM = (
    "y_embedder.embedding_table.weight",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.attn.q_norm.weight",
)
_DIMS = {
    "pos_embed": 3,
    _PATCH: 4,
    _TIME: 2,
    _LABELS: 2,
    _INNER: 2,
    f"{_HEAD}.weight": 2,
    f"{_HEAD}.bias": 1,
}
_REFUSED = (
    "{path} was not loaded: it holds {what}, which could run code. Ask its author for a "
    ".safetensors file."
)


def load_official(
    state_dict_or_path: Mapping[str, Any] | AnyPath, *, format: str, **config: Any
) -> SiT:
    """A SiT in our convention, on the host, from an official state dict or a file of one.

    A training file {"ema": ..., "model": ...} gives its "ema". Floats of a file become float32. Of
    a state dict, float64 stays and shorter floats become float32. Projectors are dropped; the
    model's `dropped_keys` lists them.

    Args:
        state_dict_or_path: the file may be .safetensors, .pt or .pth.
        format: "sit", or "repa" (DeltaFM's too).
        config: SiT's keyword arguments. The sizes are read off the weights, and these must agree.
            Only `num_heads` cannot be read off, unless the file is one of `SIT_CONFIGS` or has
            qk_norm. `encoder_depth` places the `decoder_blocks` of REPA's oldest files.

    Raises:
        ConfigError: names or sizes that do not fit.
        CheckpointError: there is no such file.
        CheckpointCorruptError: the file is damaged.
        UntrustedFileError: the file holds more than data.

    >>> small = SiT(input_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2)
    >>> load_official(export_official(small, format="repa"), format="repa", num_heads=2).depth
    1
    """
    check_choice("format", format, FORMATS)
    is_file = isinstance(state_dict_or_path, str | os.PathLike)
    content = read_weights(state_dict_or_path) if is_file else state_dict_or_path
    # how a file was saved does not tell how it is used, and a network of ours is float32
    weights = _weights(content, Tensor.float if is_file else promote)
    state, dropped = _official_names(weights, config.pop("encoder_depth", None))
    with torch.device("meta"):  # no memory, no random numbers: the file gives every parameter
        model = SiT(**_read_config(state, config))
    _check_fit(state, model)
    model.load_state_dict(_reverse(state) if format == "repa" else state, assign=True)
    model.dropped_keys = dropped
    return model


def export_official(model: SiT, *, format: str) -> dict[str, Tensor]:
    """A copy of the weights under the official names, for the program named by `format`.

    It is the inverse of `load_official`, without the projectors. REPA's model has no learn_sigma
    head: "repa" drops that half of it, which changes no velocity. "sit" keeps the head that the
    model has, so SiT's program needs learn_sigma=False for a model from a REPA file.

    Raises:
        ConfigError: `model` is not a SiT.

    >>> small = SiT(input_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2)
    >>> export_official(small, format="sit")["pos_embed"].shape
    torch.Size([1, 4, 8])
    """
    check_choice("format", format, FORMATS)
    if not isinstance(model, SiT):
        raise ConfigError(
            f"the model is a {type(model).__name__}; only a SiT has an official format. Pass the "
            "SiT that it wraps."
        )
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if format == "sit":
        return state
    if model.learn_sigma:
        for name in (f"{_HEAD}.weight", f"{_HEAD}.bias"):
            channels = state[name].unflatten(0, (model.patch_size**2, model.out_channels))
            state[name] = channels[:, : model.in_channels].flatten(0, 1).clone()
    return _reverse(state)


def read_weights(path: AnyPath) -> dict[str, Any]:
    """The content of a .safetensors, .pt or .pth file, which is never allowed to run code.

    Raises:
        ConfigError: another suffix.
        CheckpointError: the file cannot be read.
        CheckpointCorruptError: the file is damaged.
        UntrustedFileError: it asks for more than tensors and plain containers.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "weights.pt")
    >>> torch.save({"a": torch.zeros(1)}, path)
    >>> read_weights(path)
    {'a': tensor([0.])}
    """
    path = expanded(path)
    check_choice(f"the suffix of {path.name}", path.suffix, (".safetensors", ".pt", ".pth"))
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}. Give the path of a checkpoint that is on this machine."
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return _read_pickled(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else "something beside tensors"
        raise UntrustedFileError(_REFUSED.format(path=path, what=what)) from error
    except (CFMError, MemoryError):
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except Exception as error:  # a damaged archive or pickle fails in a dozen ways
        raise CheckpointCorruptError(
            f"{path} is damaged or incomplete ({error or type(error).__name__}). Fetch it again."
        ) from error


def _read_pickled(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(6)
    # how torch.save begins: an archive, or formerly a fixed number
    if not head.startswith((b"PK", b"\x80\x02\x8a\nl\xfc")):
        if head.startswith(b"\x80"):
            raise UntrustedFileError(_REFUSED.format(path=path, what="a bare pickle"))
        raise CheckpointCorruptError(
            f"{path} is not a torch checkpoint: it begins with {head!r}. Fetch it again."
        )
    if head.startswith(b"PK"):  # torch itself does not check the checksums that it wrote
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointCorruptError(
                f"{path} is damaged: the sum of {damaged} differs. Fetch it again, or save it with "
                "compute_crc32."
            )
    # official training files keep their settings in a Namespace, which holds values and no code
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _weights(content: Any, as_float: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A copy of the state dict in `content`, floats `as_float`, without the prefixes of wrappers.

    It may stand in the entry "ema", "model" or "state_dict".
    """
    for key in ("ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(
            "state_dict_or_path must be a state dict (names and tensors) or a file, not "
            f"{content!r:.80}."
        )
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ConfigError(f"these entries of the state dict are not tensors: {listed(strangers)}.")
    # integers stay: `_check_fit` refuses them by their dtype
    plain = {_plain(str(name)): value.detach() for name, value in content.items()}
    return {
        name: (as_float(value) if value.is_floating_point() else value).cpu().clone()
        for name, value in plain.items()
    }


def _plain(name: str) -> str:
    # torch.compile renames a model or its blocks, and DistributedDataParallel a model
    return re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))


def _official_names(
    state: dict[str, Tensor], encoder_depth: int | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(the state without projectors and with every block under `blocks`, the names dropped)."""
    dropped = tuple(name for name in state if name.startswith("projectors."))
    kept = {name: value for name, value in state.items() if name not in dropped}
    depth = _count_blocks(kept)
    first = depth if encoder_depth is None else check_count("encoder_depth", encoder_depth, low=0)
    named = {
        re.sub(r"^decoder_blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + first}", name): value
        for name, value in kept.items()
    }
    if len(named) < len(kept):
        raise ConfigError(
            f"encoder_depth={first} puts decoder_blocks where there are blocks: there are "
            f"{depth}. Leave it out."
        )
    return named, dropped


def _count_blocks(state: Mapping[str, Tensor]) -> int:
    return len({found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))})


def _read_config(state: dict[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """SiT's keyword arguments, read off the shapes; ConfigError if `given` says something else."""
    unfit = [name for name, dims in _DIMS.items() if name not in state or state[name].dim() != dims]
    if unfit:
        raise ConfigError(
            f"this is not a SiT: {listed(unfit)} missing or of a wrong shape. It has {len(state)} "
            f"tensors: {listed(state)}."
        )
    (hidden, channels, patch, _), rows = state[_PATCH].shape, state[_LABELS].shape[0]
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "depth": _count_blocks(state),
    }
    found["input_size"] = patch * math.isqrt(state["pos_embed"].shape[1])
    has_null = check_number("class_dropout_prob", given.get("class_dropout_prob", 0.1), 0, 1) > 0
    found["num_classes"] = rows - has_null
    found["learn_sigma"] = state[f"{_HEAD}.bias"].shape[0] == 2 * channels * patch**2
    found["qk_norm"] = _NORM in state
    if found["qk_norm"]:
        found["num_heads"] = hidden // state[_NORM].shape[0]
    inner = state[_INNER].shape[0]
    ratio = inner / hidden
    exact = int(ratio * hidden) == inner  # else rounding would lose one
    found["mlp_ratio"] = ratio if exact else math.nextafter(ratio, math.inf)
    for name, value in given.items():
        check_choice("the setting", name, inspect.signature(SiT).parameters)
        if name in found and not (type(value) in (bool, int, float) and value == found[name]):
            raise ConfigError(
                f"{name}={value!r:.60} contradicts the weights, which have {name}={found[name]!r}. "
                "Leave it out, or name their network (cfm-lite scale sample --model)."
            )
    config = found | given
    if "num_heads" not in config:
        config["num_heads"] = _usual_heads(hidden, found["depth"])
    return config


def _usual_heads(hidden: int, depth: int) -> int:
    for sizes in SIT_CONFIGS.values():
        if (sizes["hidden_size"], sizes["depth"]) == (hidden, depth):
            return sizes["num_heads"]
    raise ConfigError(
        f"the weights do not tell the number of heads (hidden_size {hidden}, depth {depth}): pass "
        "num_heads=..."
    )


def _check_fit(state: dict[str, Tensor], model: SiT) -> None:
    """The state must have the model's names and shapes and only finite numbers."""
    problems = [misfits(model.state_dict(), state)]
    infinite = [name for name, value in state.items() if not value.isfinite().all()]
    problems += [f"{len(infinite)} not finite: {listed(infinite)}"] if infinite else []
    if any(problems):
        raise ConfigError(
            f"the state dict does not fit a SiT of {model.config}: "
            f"{'; '.join(filter(None, problems))}. Give the weights as its program saved them."
        )


def _reverse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of (x, t) -> -v(x, 1 - t); its own inverse."""
    weight = state[_TIME]
    w = time_frequencies(weight.shape[1]).double()
    cosine, sine = weight.double().chunk(2, dim=1)  # the columns for cos(t w) and for sin(t w)
    pair = cosine * w.cos() + sine * w.sin(), cosine * w.sin() - sine * w.cos()
    turned = torch.cat(pair, dim=1)
    head = {name: -state[name] for name in (f"{_HEAD}.weight", f"{_HEAD}.bias")}
    return {**state, **head, _TIME: turned.to(weight.dtype)}
