"""Checks that every room shares: shapes, times, labels, and the one way a time `(B,)` meets a batch
`(B, *dims)`.

Shapes and dtypes are checked everywhere. Values are checked only where reading them costs no
synchronisation: on the host, and outside `torch.compile`.
"""

import contextlib
import difflib
import json
import math
import operator
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.func import debug_unwrap

from cfm_lite.errors import CheckpointError, ConfigError

HALF = (torch.float16, torch.bfloat16)
_warned: set[str] = set()


def on_host(x: Tensor) -> bool:
    """True where reading a value costs no device synchronisation and breaks no compiled graph, and
    torch.func does not hide it.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and debug_unwrap(x, recurse=False) is x
    )


def transformed(*tensors: object) -> bool:
    """True where torch.func (grad, vmap, jvp and what is made of them) or forward-mode autograd
    follows one of the tensors; what is no tensor is passed over, for a check to refuse.

    There only plain formulas are used: a kernel of our own would need a rule for each of them, and
    for each in each other.
    """
    if torch.compiler.is_compiling():
        return False
    return any(
        isinstance(x, Tensor)
        and (debug_unwrap(x, recurse=False) is not x or unpack_dual(x).tangent is not None)
        for x in tensors
    )


def expand(t: Tensor, x: Tensor) -> Tensor:
    """`t` (B,) shaped (B, 1, ...) so that it broadcasts over `x` (B, *dims)."""
    return t.reshape(-1, *([1] * (x.dim() - 1)))


def promote(x: Tensor) -> Tensor:
    """`x` in float32 if it came in a shorter floating type (16 or 8 bits) or as integers; float32
    and float64 stay as they are.
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Autocast off, on whatever device it is on: what is computed inside has the precision of its
    tensors. A decorator too.
    """
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        yield
        return
    with contextlib.ExitStack() as off:
        for kind in ("cpu", "cuda", "mps", "xpu", torch._C._get_privateuse1_backend_name()):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield


def check_tensor(**tensors: Any) -> None:
    """Raise ConfigError unless every value is a tensor that holds numbers; the keywords name them
    in the message.
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ConfigError(
                f"{name} has type {type(x).__name__}; it must be a tensor. Use "
                f"torch.as_tensor({name})."
            )


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ConfigError unless all are tensors of one shape; the keywords name them in the message."""
    check_tensor(**tensors)
    first, *others = tensors.values()
    if any(x.shape != first.shape for x in others):
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        seen = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ConfigError(f"shapes differ: {seen}. All must be equal, (B, *dims).")


def check_floating(**tensors: Tensor) -> None:
    """Raise ConfigError unless every value is a tensor of real floating-point numbers."""
    for name, x in tensors.items():
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            check_tensor(**{name: x})
            raise ConfigError(
                f"{name} has dtype {x.dtype}; a floating dtype is needed. Call {name}.float() "
                "first."
            )


def check_time(t: Tensor, x: Tensor) -> None:
    """Raise ConfigError unless `t` is a floating tensor (B,) with values in [0, 1], B the batch
    size of `x`.
    """
    check_tensor(x=x)
    if not isinstance(t, Tensor) or t.dim() != 1 or x.dim() < 1 or t.shape[0] != x.shape[0]:
        seen = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else f"type {type(t).__name__}"
        raise ConfigError(
            f"t has {seen}; it must be a tensor of shape (B,) = "
            f"({x.shape[0] if x.dim() else '?'},), one time per row of x "
            f"{tuple(x.shape)}. For one time everywhere use torch.full((B,), time)."
        )
    check_floating(t=t)
    if on_host(t) and t.numel():
        low, high = (
            bound.item() for bound in t.aminmax()
        )  # comparing numbers, not tensors: ten times faster
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise ConfigError(
                f"t spans [{low:.4g}, {high:.4g}]; times lie in [0, 1], 0 noise and 1 data."
            )


def as_labels(y: Any) -> Any:
    """Integers of any kind, in a tensor or an array of NumPy, as an int64 tensor; anything else as
    it is.
    """
    if not isinstance(y, Tensor) and isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        y = torch.from_numpy(y.astype(np.int64))
    if (
        not isinstance(y, Tensor)
        or y.is_floating_point()
        or y.is_complex()
        or y.dtype == torch.bool
    ):
        return y
    # before anything is computed: most operations lack the unsigned kinds, and a null label of 256
    # does not fit into uint8
    return y if y.dtype == torch.int64 else y.long()


def check_labels(y: Any, x: Tensor | None, highest: int) -> Tensor:
    """`y` (B,) as int64; ConfigError unless it holds integers, of any kind, in [0, highest]; B is
    that of `x`, any if x is None.
    """
    rows = "B" if x is None else x.shape[0] if x.dim() else "?"
    y = as_labels(y)
    if not isinstance(y, Tensor) or y.dim() != 1 or (x is not None and y.shape[0] != rows):
        seen = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise ConfigError(
            f"y has {seen}; it must be a tensor of shape ({rows},), one label per row of x."
        )
    check_tensor(y=y)
    if y.dtype != torch.int64:
        raise ConfigError(f"y has dtype {y.dtype}; labels are integers. Call y.long().")
    if on_host(y) and y.numel():
        low, high = (bound.item() for bound in y.aminmax())
        if low < 0 or high > highest:
            raise ConfigError(f"labels span [{low}, {high}]; the allowed range is [0, {highest}].")
    return y


def plain(value: Any) -> Any:
    """A number of NumPy, or an array or tensor of no dimension, as Python's own number; anything
    else as it is.
    """
    if type(value) in (
        int,
        float,
        bool,
        str,
    ):  # first: a compiled graph cannot ask whether a number is NumPy's
        return value
    numeric = isinstance(value, (np.generic, np.ndarray, Tensor)) and not value.ndim
    return value.item() if numeric and not getattr(value, "is_meta", False) else value


_NO_NUMBERS = (
    bool,
    str,
    bytes,
    np.ndarray,
)  # though Python or NumPy would turn some of them into one


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a float; ConfigError unless it is a finite number between `low` and `high`."""
    try:
        given = plain(value)
        number = math.nan if isinstance(given, _NO_NUMBERS) else float(given)
    except (
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
    ):  # the last two: 10**400, and a tensor of many numbers or none
        number = math.nan
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (above and below and math.isfinite(number)):
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high or math.isinf(high) else ']'}"
        raise ConfigError(f"{name} is {_short(value)}; it must be a number in {bounds}.")
    return number


def check_count(name: str, value: Any, low: int = 1) -> int:
    """`value` as an int; ConfigError unless it is a whole number of at least `low`, Python's,
    NumPy's or a tensor's.
    """
    try:
        given = plain(value)
        number = low - 1 if isinstance(given, (*_NO_NUMBERS, Tensor)) else operator.index(given)
    except (TypeError, RuntimeError):
        number = low - 1
    if not low <= number < 2**63:
        raise ConfigError(
            f"{name} is {_short(value)}; it must be a whole number of at least {low} (and below "
            "2^63)."
        )
    return number


def repulsion_weight(
    weight: Any, k: Any = 1, attract: float = 1.0, *, name: str = "weight"
) -> float:
    """`weight`, the λ of K = `k` wrong velocities, as a float; ConfigError unless 0 <= λK < `attract`.

    `attract` is the weight of flow matching. From λK = `attract` on the loss has no minimum.
    """
    number, k = check_number(name, weight, 0, math.inf), check_count("k", k)
    total = number * k
    if total and total >= attract:
        times = f" with K = {k}, so λK = {total:g}" if k > 1 else ""
        of = "" if attract == 1 else ", the weight of flow matching"
        raise ConfigError(
            f"{name} is {number:g}{times}. λK must stay below {attract:g}{of}: otherwise the loss has no minimum. Use a weight below "
            f"{attract / k:g} (the papers use 0.05)."
        )
    return number


def warn_of_gain(share: float) -> None:
    """Warn once where `share`, λK over the weight of flow matching, doubles the velocity or more."""
    if share >= 0.5:
        warn_once(
            f"λK is {share:g}: the optimal velocity is scaled by 1/(1 - λK) = {1 / (1 - share):.3g}."
        )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ConfigError that names the nearest right choice unless `value` is one of `choices`."""
    options = list(choices)
    if not isinstance(value, str) or value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{name} is {_short(value)}; it must be one of {', '.join(map(repr, options))}.{hint}"
        )


def check_generator(generator: Any, x: Tensor | None = None) -> None:
    """Raise ConfigError unless `generator` is None or a torch.Generator, on the kind of device
    where `x` is if that is given.
    """
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise ConfigError(
            f"generator has type {type(generator).__name__}; it must be a torch.Generator or None."
        )
    if generator is not None and x is not None and generator.device.type != x.device.type:
        raise ConfigError(
            f"generator is on {generator.device}, the data on {x.device}; make it with "
            f"torch.Generator({x.device.type!r})."
        )


def check_callable(**functions: Any) -> None:
    """Raise ConfigError unless every value is a function."""
    for name, function in functions.items():
        if not callable(function):
            raise ConfigError(f"{name} is {_short(function)}; it must be a function.")


def check_module(**modules: Any) -> None:
    """Raise ConfigError unless every value is a torch module."""
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{name} has type {type(module).__name__}; it must be a torch module."
            )


def check_flag(**flags: Any) -> None:
    """Raise ConfigError unless every value is True or False."""
    for name, flag in flags.items():
        if not isinstance(plain(flag), bool):
            raise ConfigError(f"{name} is {_short(flag)}; it must be True or False.")


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """How the tensors `given` differ from those `wanted`: counts and the first few names, in one
    line; "" where they fit.
    """
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names
    )


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Put `weights` into `module`; CheckpointError, in one line that names `source`, where they do
    not fit.
    """
    problems = misfits(module.state_dict(), weights)
    if problems:
        raise CheckpointError(
            f"{source} does not fit this {type(module).__name__}: {problems}. Give another file, "
            "or make it again."
        )
    module.load_state_dict(weights)


def in_one_line(error: Exception) -> str:
    """What `error` says, in one line: of torch's wall about a state dict the counts and the first
    few names, else the first line.
    """
    text = str(error).strip() or type(error).__name__
    names = {
        "missing": re.findall(
            r'"([^"]+)"', "".join(re.findall(r"Missing key\(s\) in state_dict: (.*)", text))
        ),
        "unknown": re.findall(
            r'"([^"]+)"', "".join(re.findall(r"Unexpected key\(s\) in state_dict: (.*)", text))
        ),
        "of another shape": re.findall(r"size mismatch for ([^:]+):", text),
    }
    counted = "; ".join(
        f"{len(found)} {what}: {listed(found)}" for what, found in names.items() if found
    )
    return counted or text.splitlines()[0][:200]


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds; ValueError for damage, and for a key that is given twice, for one of
    its values would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(
            f"it gives {next(name for name in names if names.count(name) > 1)!r} twice; give it "
            "once."
        )
    return found


def _short(value: Any) -> str:
    """How a message shows a wrong value: in one line, and not a thousand digits."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = " ".join(
        hex(value).split()
        if isinstance(value, int) and abs(value) >= 2**63
        else repr(value).split()
    )
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"


def warn_once(message: str) -> None:
    """Warn once per message and process."""
    if message not in _warned and not torch.compiler.is_compiling():
        _warned.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)
