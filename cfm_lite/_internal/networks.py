"""What a network must take and give to be trained here.

    v = model(x, t, y)                    or, without conditions, model(x, t); v is shaped like x
    v, features = model.forward_features(x, t, y, blocks)    features: {block from 1: (B, T, D)}

`num_classes` counts the labels; the label `num_classes` is the null label, which a dropped row
gets. With `condition = "captions"` y is a caption, and `null_condition(y)` gives the empty ones.
Everything that can be seen before the first step is found when an objective or a trainer is
made. docs/own_network.md shows four networks of other libraries, and one of captions.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import (
    HALF,
    as_labels,
    check_callable,
    check_labels,
    check_tensor,
    is_whole,
    plain,
    seen,
)
from cfm_lite.errors import ConfigError

__all__ = [
    "as_features",
    "as_velocity_of",
    "asked",
    "check_caption",
    "check_keywords",
    "check_labels_of",
    "check_model",
    "classes_of",
    "evaluating",
    "has_null",
    "made_in_float32",
    "needs_labels",
    "null_condition",
    "null_label",
    "other_dtype",
    "seeded",
    "takes",
    "takes_captions",
    "takes_labels",
]

_GUIDE = "docs/own_network.md shows how to wrap a network."
_TIMES = ("t", "ts", "time", "times", "timestep", "timesteps", "sigma", "sigmas", "noise_labels")


def check_model(model: nn.Module, blocks: Sequence[int] = (), label_dropout: float = 0.0) -> None:
    """`model` must have the form that the top of this file shows; ConfigError says what is missing.

    `blocks` are those whose features are read. With `label_dropout` > 0 a model with labels needs a
    row for the null label, and one with captions a `null_condition`.
    """
    inner = _unwrapped(model)
    name = type(inner).__name__
    names = _names(inner.forward)
    if names is not None and not (_binds(inner.forward, 3) or _binds(inner.forward, 2)):
        raise ConfigError(
            f"{name}.forward({', '.join(names)}) cannot be called as model(x, t, y): a network "
            "takes x (B, *dims), times t (B,) and, if it has num_classes, labels y (B,), and "
            f"returns a velocity like x. {_GUIDE}"
        )
    if names and len(names) > 1 and names[0].lower() in _TIMES and names[1].lower() not in _TIMES:
        raise ConfigError(
            f"{name}.forward takes {names[0]!r} first; here a network is called as model(x, t, y). "
            f"{_GUIDE}"
        )
    classes = classes_of(model)
    if classes is not None and (
        not isinstance(classes, int) or isinstance(classes, bool) or classes < 0
    ):
        raise ConfigError(
            f"{name}.num_classes is {classes!r:.60}; it must be the number of classes, a whole "
            "number, or None without labels."
        )
    if classes and label_dropout > 0 and not has_null(model):
        raise ConfigError(
            f"label_dropout is {label_dropout:g} but the model has no null label: give its label "
            f"table {classes + 1} rows, one more than num_classes (class_dropout_prob > 0 in the "
            "networks of cfm_lite), or set label_dropout=0."
        )
    if label_dropout > 0 and takes_captions(model) and _own_null(inner) is None:
        raise _without_null(inner, "set label_dropout=0")
    if not blocks:
        return
    features = getattr(model, "forward_features", None)
    if not callable(features):
        raise ConfigError(
            f"a term reads block {blocks[0]}, and {name} has no forward_features(x, t, y, blocks), "
            f"which returns (velocity, {{block from 1: features (B, T, D)}}). {_GUIDE}"
        )
    if _names(features) is not None and not _binds(features, 3, "blocks"):
        raise ConfigError(
            f"{name}.forward_features({', '.join(_names(features) or ())}) must take (x, t, y, "
            f"blocks), with blocks a sequence of numbers from 1. {_GUIDE}"
        )


def takes_labels(model: Any) -> bool:
    """False for a network that can only be called as model(x, t)."""
    function = _called(model)
    return _names(function) is None or _binds(function, 3)


def needs_labels(model: Any) -> bool:
    """True for a network that cannot be called without a third argument."""
    function = _called(model)
    return _names(function) is not None and not _binds(function, 2)


def _called(model: Any) -> Any:
    model = _unwrapped(model)
    return model.forward if isinstance(model, nn.Module) else model


def classes_of(model: Any) -> Any:
    """What a model says of how many classes it has; None where it says nothing."""
    return plain(getattr(_unwrapped(model), "num_classes", None))


def has_null(model: Any) -> bool:
    """False for a model that says so, or whose one table has just a row for each class."""
    model = _unwrapped(model)
    said = _said_null(model)
    if said is not None:
        return bool(said)
    if not getattr(model, "class_dropout_prob", 1.0):
        return False
    parts = model.modules() if isinstance(model, nn.Module) else ()
    tables = [part for part in parts if isinstance(part, nn.Embedding)]
    return len(tables) != 1 or tables[0].num_embeddings != classes_of(model)


def _said_null(model: Any) -> Any:
    """The attribute `has_null` of a model or of its y_embedder; None where neither has one."""
    owner = model if hasattr(model, "has_null") else getattr(model, "y_embedder", None)
    return getattr(owner, "has_null", None)


def null_label(model: Any) -> int | None:
    """The label of the null row; None where the model names no number of classes.

    ConfigError where the model says that it has no such row.
    """
    model = _unwrapped(model)
    if takes_captions(model) or not hasattr(model, "num_classes"):
        return None
    null, said = plain(model.num_classes), _said_null(model)
    if not null or (said is not None and not said):
        raise ConfigError(
            f"the model has num_classes = {null} and no null label, which classifier-free guidance "
            "needs. Train one with class_dropout_prob > 0, or use a scale of 1."
        )
    return null


def takes_captions(model: Any) -> bool:
    """True for a network whose condition is a caption: tokens (B, L) or features (B, L, D)."""
    return getattr(_unwrapped(model), "condition", "labels") == "captions"


def null_condition(model: Any, y: Tensor) -> Tensor:
    """What a dropped row gets, for each row of `y`: an empty caption, or `num_classes`."""
    model = _unwrapped(model)
    own = _own_null(model)
    if own is None:
        if takes_captions(model):
            raise _without_null(model, "give a negative caption or a scale of 1")
        return torch.full_like(y, plain(model.num_classes))
    null: Any = own(y) if callable(own) else own
    like = isinstance(null, Tensor) and null.shape == y.shape and is_whole(null) == is_whole(y)
    if not like:
        raise ConfigError(
            f"{type(model).__name__}.null_condition gives {_kind(null)}; it must be a function of "
            f"y that gives what dropped rows get, of the shape {tuple(y.shape)} and kind of y. "
            f"{_GUIDE}"
        )
    return null


def _own_null(model: Any) -> Any:
    return getattr(model, "null_condition", None)


def _without_null(model: Any, instead: str) -> ConfigError:
    return ConfigError(
        f'{type(model).__name__} has condition = "captions" and no null_condition(y), which gives '
        f"an empty caption for each row, shaped like y. Add it, or {instead}. {_GUIDE}"
    )


def check_caption(y: Any, x: Tensor | None = None, name: str = "y") -> Tensor:
    """`y`, called `name`, with one caption for each row of `x`: word numbers (B, L), as int64, or
    features (B, L, D).
    """
    rows, y = "B" if x is None else x.shape[0], as_labels(y)
    good = isinstance(y, Tensor) and (y.dim() == 2 if is_whole(y) else y.dim() == 3)
    if not good or y.is_complex() or (x is not None and len(y) not in (1, rows)):
        raise ConfigError(
            f"{name} has {seen(y)}; this model takes a caption for each row of x: word numbers "
            f"({rows}, L), whole, or the features of an encoder ({rows}, L, D)."
        )
    return y


def check_labels_of(model: Any, y: Any, name: str = "y") -> Any:
    """`y`, called `name`, as int64 labels (B,) for `model`, as one int for every row, or None; or
    as captions.
    """
    check_callable(model=model)
    y = y if isinstance(y, Tensor) else plain(y)
    if y is None:
        return None
    if not takes_labels(model):
        raise ConfigError(
            f"labels were given and {type(model).__name__} takes only (x, t); give y=None, or a "
            "model that takes y."
        )
    if takes_captions(model):
        return check_caption(y, None, name)
    highest = classes_of(model)
    highest = highest if isinstance(highest, int) else 2**62
    if not isinstance(y, int) or isinstance(y, bool):
        return check_labels(y, None, highest, name)
    if abs(y) >= 2**62:
        raise ConfigError(f"{name} is {hex(y):.20}...; labels span [0, {highest}].")
    check_labels(torch.tensor([y], device="cpu"), None, highest, name)
    return y


def _unwrapped(model: Any) -> Any:
    """The network in what DDP, DataParallel, FSDP and torch.compile put around it.

    Their own forward takes anything, and only some hand on the network's attributes.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
            continue
        parts = model._modules
        # asked by `in`: the parts of a scripted or traced network have no `get`
        name = "_orig_mod" if "_orig_mod" in parts else "_fsdp_wrapped_module"
        if name not in parts:
            break
        model = parts[name]
    return model


def asked(model: Any, y: Any, call: functools.partial[Any]) -> Any:
    """What `call()` of a network, on a state x and with the condition `y`, gives; ConfigError where
    it fails for a reason that is known. x is the first argument of the partial.
    """
    # a compiled graph cannot hold a try
    if torch.compiler.is_compiling():
        return call()
    try:
        return call()
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        reason = _explained(model, error, call.args[0], y)
        if reason is None:
            raise
        raise reason from error


def _explained(model: Any, error: Exception, x: Tensor, y: Any) -> ConfigError | None:
    """What `error` means, which a new network raised; None where there is no more to say."""
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    weight = next((p for p in weights if p.is_floating_point()), x)
    # torch words it in a dozen ways
    if x.dtype != weight.dtype and isinstance(error, RuntimeError) and "type" in str(error):
        return other_dtype(x, weight)
    classes = classes_of(model)
    of_none = isinstance(error, AttributeError | TypeError) and "NoneType" in str(error)
    if y is None and classes and of_none:
        return ConfigError(
            f"{type(model).__name__} failed ({error}) without labels, and it has num_classes = "
            f"{classes}: give y, whole numbers (B,) in [0, {classes - 1}], or let it take y=None. "
            f"{_GUIDE}"
        )
    out_of_table = isinstance(error, IndexError) or "Class values must be smaller" in str(error)
    labelled = isinstance(y, Tensor) and isinstance(classes, int)
    if out_of_table and labelled and bool((y == classes).any()):
        return ConfigError(
            f"{type(model).__name__} failed ({error}) on the null label {classes}, which dropped "
            f"rows get: give its label table {classes + 1} rows, or set label_dropout=0. {_GUIDE}"
        )
    return None


def other_dtype(x: Tensor, weight: Tensor) -> ConfigError:
    """The error of a state `x` that has another dtype than the weights of the network.

    >>> str(other_dtype(torch.zeros(1).double(), torch.zeros(1)))
    'x has dtype torch.float64 and the weights torch.float32: give data .to(torch.float32).'
    """
    # half precision is no way out: a state is float32 at least
    how = "call .float() on the model" if weight.dtype in HALF else f"give data .to({weight.dtype})"
    return ConfigError(f"x has dtype {x.dtype} and the weights {weight.dtype}: {how}.")


def as_velocity_of(output: Any, x: Tensor) -> Tensor:
    """`output` itself, a real tensor shaped like `x`; ConfigError says what to return instead."""
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the model returned {_kind(output)}; model(x, t, y) must return the velocity, a "
            f"tensor {tuple(x.shape)}. {_instead(output)}"
        )
    if output.shape != x.shape:
        twice = output.dim() == x.dim() > 1 and output.shape[1] == 2 * x.shape[1]
        half = " It has twice the channels: return the first half, v.chunk(2, dim=1)[0]."
        hint = half if twice else ""
        raise ConfigError(
            f"the velocity has shape {tuple(output.shape)} for x {tuple(x.shape)}; both must be "
            f"(B, *dims).{hint}"
        )
    if not output.is_floating_point():
        raise ConfigError(
            f"the velocity has dtype {output.dtype}; it must be real floating-point numbers."
        )
    return output


def as_features(output: Any, x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """(velocity, {block: (B, T, D) or (B, D)}) of what forward_features returned for `blocks`.

    A map (B, D, H, W) becomes tokens (B, H W, D).
    """
    if not isinstance(output, tuple) or len(output) != 2:
        raise ConfigError(
            f"forward_features returned {_kind(output)}; it must return (velocity, "
            f"{{block from 1: features}}). {_GUIDE}"
        )
    v, features = as_velocity_of(output[0], x), output[1]
    if not isinstance(features, Mapping):
        raise ConfigError(
            f"forward_features returned its features as {_kind(features)}; it must be a mapping "
            f"{{block: features}}, blocks counted from 1."
        )
    keys = [plain(key) for key in features]
    missing = [block for block in blocks if block not in keys]
    if missing or 0 in keys:
        raise ConfigError(
            f"forward_features was asked for the blocks {list(blocks)} and returned {keys[:8]}; it "
            "must return each of them by its number, and the first block is 1."
        )
    by_number = dict(zip(keys, features.values()))
    return v, {block: _as_tokens(by_number[block], x, block) for block in blocks}


def _as_tokens(h: Any, x: Tensor, block: int) -> Tensor:
    check_tensor(**{f"the features of block {block}": h})
    if h.dim() not in (2, 3, 4) or len(h) != len(x) or not h.is_floating_point():
        raise ConfigError(
            f"the features of block {block} have shape {tuple(h.shape)} and dtype {h.dtype} for x "
            f"{tuple(x.shape)}; they must be floating, (B, T, D), (B, D), or a map (B, D, H, W)."
        )
    return h.flatten(2).mT if h.dim() == 4 else h


def check_keywords(
    name: str,
    function: Callable[..., Any],
    call: str,
    positional: int,
    keywords: Sequence[str] = (),
) -> None:
    """`function` must take so many values in order and these keywords; `call` shows how."""
    if not callable(function):
        raise ConfigError(f"{name} is {function!r:.60}; it must be a function, called as {call}.")
    if _names(function) is not None and not _binds(function, positional, *keywords):
        given = f"({', '.join(_names(function) or ())})"
        draws = ", and must draw only from that generator, so that a run can be resumed"
        drawn = draws if "generator" in keywords else ""
        better = getattr(function, "__name__", name).replace("<lambda>", name)
        raise ConfigError(
            f"{name} takes {given}; it is called as {call}{drawn}. Write def "
            f"{better}{call[call.index('(') :]}."
        )


def takes(function: Callable[..., Any], argument: str) -> bool:
    """True for a function that has an argument of this name."""
    return argument in (_names(function) or ())


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode for a module in training mode; afterwards each submodule has its own mode back."""
    if not (isinstance(model, nn.Module) and model.training):
        yield
        return
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights made in this block come from `seed` alone; global generators stay as they are."""
    place = torch.get_default_device()  # where weights are made: mostly the CPU
    there = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(there, device_type="cuda"):
        # torch.manual_seed would reset the generator of every GPU as well, for good: all ranks
        # would then have the masks of one dropout
        torch.default_generator.manual_seed(seed)
        if there:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def made_in_float32() -> Iterator[None]:
    """Weights made in this block are float32, whatever torch's default type is, and autograd can
    follow them, also if the caller is in inference mode.

    For networks that measure or are read from a file. Many are remembered, and so outlive the
    caller's mode. It is a decorator too.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    inside = torch.is_inference_mode_enabled()
    try:
        with torch.inference_mode(False) if inside else nullcontext():
            yield
    finally:
        torch.set_default_dtype(default)


def _binds(function: Callable[..., Any], positional: int, *keywords: str) -> bool:
    try:
        inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(keywords))
    except (TypeError, ValueError):
        return False
    return True


def _names(function: Callable[..., Any]) -> list[str] | None:
    """The names of its arguments, or None for a built-in function that does not say."""
    try:
        return [
            name
            for name, p in inspect.signature(function).parameters.items()
            if p.kind is not p.VAR_KEYWORD
        ]
    except (TypeError, ValueError):
        return None


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (
        f" of {len(value)}" if isinstance(value, tuple | list) else ""
    )


def _instead(output: Any) -> str:
    """What to return instead."""
    if isinstance(getattr(output, "sample", None), Tensor):
        return "Return output.sample."
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return (
            "Return only its first entry, if that is the velocity; features belong to "
            "forward_features."
        )
    if isinstance(output, Mapping):
        return f"Return the entry that is the velocity; the names are {list(output)[:6]}."
    fields = [
        name for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)
    ]
    return f"Return output.{fields[0]}." if fields else _GUIDE
