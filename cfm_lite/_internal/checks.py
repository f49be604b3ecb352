"""The checks that stand at the door of public functions, and how a time (B,) meets a batch.

Shapes and dtypes are checked everywhere. Values are checked only where a read costs no
synchronisation: on the host, and outside `torch.compile`. Each check raises ConfigError, which
names the argument; some return the argument in its standard form.
"""

import contextlib
import difflib
import json
import math
import operator
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
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
    """Whether a value of `x` can be read without a device synchronisation or a broken graph.

    torch.func hides the values of what it transforms, so there the answer is False.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and debug_unwrap(x, recurse=False) is x
    )


def versions(*tensors: Tensor) -> list[int | None]:
    """How often each was written to; None where torch does not count."""
    return [None if part.is_inference() else part._version for part in tensors]


def check_unwritten(who: str, before: list[int | None], *tensors: Tensor) -> None:
    """ConfigError if a function of the caller has written into the `tensors` since `before`."""
    if versions(*tensors) != before:
        raise ConfigError(
            f"{who} wrote into what it was given, so the numbers are wrong. Compute new tensors "
            "there: x * 2 in place of x *= 2."
        )


@contextlib.contextmanager
def unwritten(who: str, *tensors: Tensor) -> Iterator[None]:
    """`check_unwritten` of what is called inside."""
    before = versions(*tensors)
    yield
    check_unwritten(who, before, *tensors)


def transformed(*tensors: object) -> bool:
    """Whether torch.func (grad, vmap, jvp, ...) or forward-mode autograd follows one of `tensors`.

    There only plain formulas are used: a kernel of our own would need a rule for each transform.
    What is not a tensor counts as not followed.
    """
    if torch.compiler.is_compiling():
        return False
    return any(
        isinstance(x, Tensor)
        and (debug_unwrap(x, recurse=False) is not x or unpack_dual(x).tangent is not None)
        for x in tensors
    )


def moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; the host waits only for what it will hold itself."""
    # a copy to the host that does not wait is read while the GPU still fills its memory
    return x.to(device, non_blocking=device.type != "cpu")


def expand(t: Tensor, x: Tensor) -> Tensor:
    """`t` (B,) shaped (B, 1, ...) so that it broadcasts over `x` (B, *dims)."""
    return t.reshape(-1, *([1] * (x.dim() - 1)))


def promote(x: Tensor) -> Tensor:
    """`x` in float32 if it holds integers or shorter floats; float32 and float64 stay."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Turn autocast off on every device: operations inside keep the precision of their tensors.

    It is a decorator too.
    """
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        yield
        return
    with contextlib.ExitStack() as off:
        for kind in ("cpu", "cuda", "mps", "xpu", torch._C._get_privateuse1_backend_name()):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield


def seen(x: Any) -> str:
    """How a message describes an argument of a wrong shape or kind."""
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"


def check_tensor(**tensors: Any) -> None:
    """Every value must be a tensor; the keywords name them in the message."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ConfigError(
                f"{name} has type {type(x).__name__}; it must be a tensor. Use "
                f"torch.as_tensor({name})."
            )


def check_same_shape(**tensors: Tensor) -> None:
    """All must be tensors of one shape."""
    check_tensor(**tensors)
    first, *others = tensors.values()
    if any(x.shape != first.shape for x in others):
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ConfigError(f"shapes differ: {shapes}. All must be equal, (B, *dims).")


def check_floating(**tensors: Tensor) -> None:
    """Every value must be a tensor of real floating-point numbers."""
    for name, x in tensors.items():
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            check_tensor(**{name: x})
            raise ConfigError(
                f"{name} has dtype {x.dtype}; a floating dtype is needed. Call {name}.float() "
                "first."
            )


def check_alike(**tensors: Tensor) -> None:
    """All must be floating tensors of one shape."""
    check_same_shape(**tensors)
    check_floating(**tensors)


def check_time(t: Tensor, x: Tensor) -> None:
    """`t` must be a floating tensor (B,) with values in [0, 1], B the batch size of `x`."""
    check_tensor(x=x)
    if not isinstance(t, Tensor) or t.dim() != 1 or x.dim() < 1 or t.shape[0] != x.shape[0]:
        raise ConfigError(
            f"t has {seen(t)}; it must be a tensor of shape (B,) = "
            f"({x.shape[0] if x.dim() else '?'},), one time per row of x {tuple(x.shape)}. For one "
            "time everywhere use torch.full((B,), time)."
        )
    check_floating(t=t)
    check_unit_interval(t=t)


def check_unit_interval(**times: Tensor) -> None:
    """Every entry must lie in [0, 1], where it can be read."""
    for name, t in times.items():
        if on_host(t) and t.numel():
            # numbers, not tensors: to compare them is ten times faster
            low, high = (bound.item() for bound in promote(t).aminmax())
            if not (low >= 0 and high <= 1):  # false for NaN too
                raise ConfigError(
                    f"{name} spans [{low:.4g}, {high:.4g}]; times lie in [0, 1], 0 noise and 1 "
                    "data."
                )


def check_interval(interval: Any) -> tuple[float, float]:
    """`interval` as two floats with 0 <= low <= high <= 1."""
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise ConfigError(
            f"interval is {interval!r}; it must be two numbers (low, high) with 0 <= low <= high "
            "<= 1."
        ) from None
    low = check_number("interval's low end", low, 0, 1)
    high = check_number("interval's high end", high, 0, 1)
    if low > high:
        raise ConfigError(
            f"interval is ({low:g}, {high:g}), with low above high; t runs from 0 (noise) to 1 "
            f"(data), so give ({high:g}, {low:g})."
        )
    return low, high


def is_finite(x: Tensor) -> bool:
    """Whether every entry of `x`, which is on the host, is finite."""
    x = x if x.element_size() > 1 else x.float()  # torch sums no floats of 8 bits
    # the sum is finite unless an entry is not, or it overflows; it costs a fifth of the full answer
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def as_numbers(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """`value` as a tensor of its own on the host; a list gets `dtype`, a tensor keeps its own."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        return torch.tensor(value, dtype=dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{name} cannot be read as numbers: {error}") from None


def check_rows(name: str, x: Any, at_least: int = 1) -> Tensor:
    """`x` (N, *dims) as (N, d) in float32 or float64: finite numbers in `at_least` rows."""
    if not isinstance(x, Tensor) or x.dim() < 1 or len(x) < at_least:
        raise ConfigError(
            f"{name} has {seen(x)}; a tensor (N, *dims) of at least {at_least} rows is needed."
        )
    check_floating(**{name: x})
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()  # MPS has no float64
    flat = promote(x).reshape(len(x), -1)
    if flat.shape[1] == 0:
        raise ConfigError(f"{name} has shape {tuple(x.shape)}; its rows are empty.")
    if on_host(flat) and not flat.isfinite().all():
        bad = int((~flat.isfinite()).any(dim=1).sum())
        raise ConfigError(
            f"{name} holds NaN or infinite numbers in {bad} of {len(flat)} rows; remove them, or "
            "find where they come from."
        )
    return flat


def check_same_width(**rows: Tensor) -> None:
    """All rows must have the same number of columns."""
    widths = {name: x.shape[1] for name, x in rows.items()}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(f"rows differ in width: {shown}. All must come from the same features.")


def check_state(x: Any, name: str = "x") -> Tensor:
    """`x` promoted from half precision: a floating tensor (B, *dims) of finite numbers."""
    if not isinstance(x, Tensor) or x.dim() < 1:
        raise ConfigError(f"{name} has {seen(x)}; it must be a tensor (B, *dims).")
    check_floating(**{name: x})
    if on_host(x) and not is_finite(x):
        raise ConfigError(
            f"{name} has entries that are not finite; the solver must start from finite numbers."
        )
    return promote(x)


def check_grid(ts: Any, *, ascending: bool = False) -> None:
    """`ts` must be floating times (n + 1,) in [0, 1] that rise, or fall, from each to the next."""
    if not isinstance(ts, Tensor) or ts.dim() != 1 or len(ts) < 2 or not ts.is_floating_point():
        dtype = f" and dtype {ts.dtype}" if isinstance(ts, Tensor) else ""
        raise ConfigError(
            f"ts has {seen(ts)}{dtype}; it must be a floating tensor (n + 1,) of at least 2 times: "
            "torch.linspace(0, 1, steps + 1)."
        )
    if not on_host(ts):
        return
    check_unit_interval(ts=ts)
    times = ts.tolist()
    rises = times[0] < times[-1]
    if not all((a < b) is rises and a != b for a, b in pairwise(times)):
        raise ConfigError(
            "ts changes direction or repeats a time; it must rise, or fall, from each entry to the "
            "next."
        )
    if ascending and not rises:
        raise ConfigError(
            f"ts falls from {times[0]:.4g} to {times[-1]:.4g}; here it must rise, from noise (0) "
            "to data (1)."
        )


def as_labels(y: Any) -> Any:
    """Integers of any kind, in a tensor or an array of NumPy, as an int64 tensor.

    Anything else is returned as it is.
    """
    if not isinstance(y, Tensor) and isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        y = torch.from_numpy(y.astype(np.int64))
    if not isinstance(y, Tensor) or not is_whole(y):
        return y
    # before any computation: most operations lack the unsigned types, and a null label of 256 does
    # not fit into uint8
    return y if y.dtype == torch.int64 else y.long()


def is_whole(y: Tensor) -> bool:
    """Whether the dtype of `y` is one of integers."""
    return not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def check_labels(y: Any, x: Tensor | None, highest: int, name: str = "y") -> Tensor:
    """`y` (B,), called `name`, as int64: integers in [0, highest], one per row of `x` unless that
    is None.
    """
    rows = "B" if x is None else x.shape[0] if x.dim() else "?"
    y = as_labels(y)
    if not isinstance(y, Tensor) or y.dim() != 1 or (x is not None and y.shape[0] != rows):
        raise ConfigError(
            f"{name} has {seen(y)}; it must be a tensor of shape ({rows},), one label per row of x."
        )
    if y.dtype != torch.int64:
        raise ConfigError(f"{name} has dtype {y.dtype}; labels are integers. Call {name}.long().")
    if on_host(y) and y.numel():
        low, high = (bound.item() for bound in y.aminmax())
        if low < 0 or high > highest:
            told = "labels" if name == "y" else f"the labels of {name}"
            raise ConfigError(f"{told} span [{low}, {high}]; the allowed range is [0, {highest}].")
    return y


def check_keep(name: str, keep: Any, rows: int) -> None:
    """`keep` must hold a flag for each of the `rows`: bool, or 0 and 1."""
    check_tensor(**{name: keep})
    if keep.shape != (rows,):
        raise ConfigError(
            f"{name} has shape {tuple(keep.shape)}; it must be ({rows},), one flag per row."
        )
    if keep.dtype != torch.bool and on_host(keep) and not ((keep == 0) | (keep == 1)).all():
        raise ConfigError(
            f"{name} holds values other than 0 and 1; it must be bool or 0/1. For weights, scale "
            "the loss instead."
        )


def plain(value: Any) -> Any:
    """NumPy's numbers, and arrays or tensors without dimensions, as Python's own numbers.

    Anything else is returned as it is.
    """
    # first: a compiled graph cannot ask whether a number is NumPy's
    if type(value) in (int, float, bool, str):
        return value
    numeric = isinstance(value, (np.generic, np.ndarray, Tensor)) and not value.ndim
    return value.item() if numeric and not getattr(value, "is_meta", False) else value


# no numbers here, although Python or NumPy would convert some of them
_NO_NUMBERS = (bool, str, bytes, np.ndarray)


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a float: a finite number between `low` and `high`."""
    try:
        given = plain(value)
        number = math.nan if isinstance(given, _NO_NUMBERS) else float(given)
    # the last two: 10**400, and a tensor with many entries or none
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (above and below and math.isfinite(number)):
        allowed = _within(low, high, open_low, open_high)
        raise ConfigError(f"{name} is {_short(value)}; it must be a {allowed}.")
    return number


def _within(low: float, high: float, open_low: bool, open_high: bool) -> str:
    """The numbers between `low` and `high` in words; an infinite end is none."""
    if math.isfinite(low) and math.isfinite(high):
        return f"number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    above = f" {'above' if open_low else 'of at least'} {low:g}" if math.isfinite(low) else ""
    below = f" {'below' if open_high else 'of at most'} {high:g}" if math.isfinite(high) else ""
    return f"finite number{above}{below}"


def check_count(name: str, value: Any, low: int = 1, high: int = 2**63 - 1) -> int:
    """`value` as an int: a whole number from `low` to `high`, of Python, NumPy or a tensor."""
    try:
        given = plain(value)
        number = low - 1 if isinstance(given, (*_NO_NUMBERS, Tensor)) else operator.index(given)
    except (TypeError, RuntimeError):
        number = low - 1
    if not low <= number <= high:
        most = "below 2^63" if high == 2**63 - 1 else f"at most {high}"
        raise ConfigError(
            f"{name} is {_short(value)}; it must be a whole number of at least {low} (and {most})."
        )
    return number


def repulsion_weight(weight: Any, k: Any = 1, attract: float = 1.0) -> float:
    """`weight`, the λ of K = `k` wrong velocities, as a float with 0 <= λK < `attract`.

    `attract` is the weight of flow matching. From λK = `attract` on the loss has no minimum.
    """
    number, k = check_number("weight", weight, 0, math.inf), check_count("k", k)
    total = number * k
    if total and total >= attract:
        times = f" with K = {k}, so λK = {total:g}" if k > 1 else ""
        of = "" if attract == 1 else ", the weight of flow matching"
        raise ConfigError(
            f"weight is {number:g}{times}. λK must stay below {attract:g}{of}: otherwise the loss "
            f"has no minimum. Use a weight below {attract / k:g} (the papers use 0.05)."
        )
    return number


def repulsion_total(weight: Any, k: Any) -> float:
    """λK of a weight and a number of wrong velocities, checked as in `repulsion_weight`."""
    return repulsion_weight(weight, k) * int(k)


def warn_of_gain(share: float) -> None:
    """Warn once if `share`, λK over the weight of flow matching, doubles the velocity or more."""
    if share >= 0.5:
        warn_once(
            f"λK is {share:g}: the optimal velocity is scaled by 1/(1 - λK) = "
            f"{1 / (1 - share):.3g}."
        )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """`value` must be one of `choices`; the message names the nearest one."""
    options = list(choices)
    if not isinstance(value, str) or value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{name} is {_short(value)}; it must be one of {', '.join(map(repr, options))}.{hint}"
        )


def check_generator(generator: Any, x: Tensor | None = None) -> None:
    """`generator` must be None or a torch.Generator, on the kind of device that `x` is on."""
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise ConfigError(
            f"generator has type {type(generator).__name__}; it must be a torch.Generator or None."
        )
    if generator is not None and x is not None and generator.device.type != x.device.type:
        raise ConfigError(
            f"generator is on {generator.device}, the data on {x.device}; make it with "
            f"torch.Generator({x.device.type!r})."
        )


def check_device(device: Any) -> torch.device:
    """`device` as one of torch's, on which a tensor can be made here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    # torch has an error of its own for each thing that may be missing
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"device is {_short(device)}, which torch cannot use here ({in_one_line(error):.80}); "
            "use one that this machine has, such as 'cpu'."
        ) from None
    return place


def check_callable(**functions: Any) -> None:
    """Every value must be a function."""
    for name, function in functions.items():
        if not callable(function):
            raise ConfigError(f"{name} is {_short(function)}; it must be a function.")


def check_module(**modules: Any) -> None:
    """Every value must be a torch module."""
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{name} has type {type(module).__name__}; it must be a torch module."
            )


def check_flag(**flags: Any) -> None:
    """Every value must be True or False."""
    for name, flag in flags.items():
        if not isinstance(plain(flag), bool):
            raise ConfigError(f"{name} is {_short(flag)}; it must be True or False.")


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """How the tensors `given` differ from those `wanted`, in one line; "" where they fit."""
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ],
        "of integers, which are no weights": integers(wanted, given),
        "not finite": not_finite(given),
    }
    return _counted(problems)


def integers(wanted: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    """Those tensors of `given` that hold no real numbers although they do in `wanted`, with dtypes.

    A counter, such as num_batches_tracked, is whole in both.

    >>> integers({"a": torch.ones(1)}, {"a": torch.ones(1, dtype=torch.int8)})
    ['a torch.int8']
    """
    return [
        f"{name} {x.dtype}"
        for name, x in given.items()
        if isinstance(x, Tensor)
        and not x.is_floating_point()
        and name in wanted
        and wanted[name].is_floating_point()
    ]


def not_finite(given: Mapping[str, Any]) -> list[str]:
    """Those tensors of `given` that hold NaN or an infinity.

    >>> not_finite({"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)})
    ['a']
    """
    return [
        name
        for name, x in given.items()
        if isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all()
    ]


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Put `weights` into `module`; CheckpointError that names `source` where they do not fit."""
    problems = misfits(module.state_dict(), weights)
    if problems:
        raise CheckpointError(
            f"{source} does not fit this {type(module).__name__}: {problems}. Give another file, "
            "or make it again."
        )
    module.load_state_dict(weights)


def in_one_line(error: Exception) -> str:
    """What `error` says, in one line; of torch's long text about a state dict, counts and names."""
    text = str(error).strip() or type(error).__name__

    def quoted(kind: str) -> list[str]:
        lines = re.findall(rf"{kind} key\(s\) in state_dict: (.*)", text)
        return re.findall(r'"([^"]+)"', "".join(lines))

    names = {
        "missing": quoted("Missing"),
        "unknown": quoted("Unexpected"),
        "of another shape": re.findall(r"size mismatch for ([^:]+):", text),
    }
    return _counted(names) or text.splitlines()[0][:200]


def _counted(names: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(some)} {what}: {listed(some)}" for what, some in names.items() if some)


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds; ValueError for a damaged text, and for a key that is given twice.

    Python's own reader would keep the last value of such a key, and lose the others.
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
    """How a message shows a wrong value: in one line, and shortened."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    large = isinstance(value, int) and abs(value) >= 2**63  # Python refuses to print many digits
    text = " ".join((hex(value) if large else repr(value)).split())
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"


def warn_once(message: str) -> None:
    """Warn once per message and process."""
    if message not in _warned and not torch.compiler.is_compiling():
        _warned.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)
