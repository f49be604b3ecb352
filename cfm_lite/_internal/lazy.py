"""Imports what is slow or optional when it is needed: the compiler, timm, torchvision, torchdiffeq.

A missing package gives one line that names the extra to install.
"""

import importlib
import importlib.util
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch

from cfm_lite.errors import ConfigError

__all__ = ["optional", "outside_graphs", "random_kept"]

_MISSING_OPERATOR = re.compile(r"operator torchvision::(\w+) does not exist")
_DECLARED = re.compile(r"""register_fake\(\s*["']torchvision::(\w+)["']""")
P = ParamSpec("P")
T = TypeVar("T")
_libraries: list[torch.library.Library] = []  # a declaration lives as long as its Library object


@contextmanager
def random_kept() -> Iterator[None]:
    """Import others' packages inside: some draw from Python's own generator when they load."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def outside_graphs(function: Callable[P, T]) -> Callable[P, T]:
    """`torch.compiler.disable`, which would load the whole compiler at import. That takes as long
    as torch itself.

    torch's own lazy form is one that the compiler never looks into. One written here would be
    compiled with its caller, and fail where that is the first call. A torch without it is slower.
    """
    lazily: Any = getattr(torch, "_disable_dynamo", torch.compiler.disable)
    return lazily(function)


@random_kept()
def optional(module: str, extra: str) -> ModuleType:
    """The imported `module`, which `pip install 'cfm-lite[extra]'` provides.

    Raises ConfigError if it, or a package that it needs, is not installed or cannot be imported.
    """
    before = set(sys.modules)
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        operator = _missing_operator(error)
        if operator is None:
            raise _failure(module, extra, error) from error
    _declare_operators(operator)
    _forget_half_imported(module, before)
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise _failure(module, extra, error) from error


def _missing_operator(error: BaseException | None) -> str | None:
    """The operator that torchvision lacks, if that is why an import failed.

    Packages between it and us (transformers, diffusers) wrap its error in their own.
    """
    while error is not None:
        if found := _MISSING_OPERATOR.search(str(error)):
            return found[1]
        error = error.__cause__ or error.__context__
    return None


def _failure(module: str, extra: str, error: Exception) -> ConfigError:
    remedy = f"pip install 'cfm-lite[{extra}]'"
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(f"{error.name or module} is not installed: {remedy}")
    return ConfigError(
        f"{module} is installed but cannot be imported ({error}). Reinstall it beside this torch: "
        f"{remedy}"
    )


def _declare_operators(missing: str) -> None:
    """Declare the compiled operators that torchvision describes on import, if they are absent.

    With a CPU build of torch and the ordinary (CUDA) build of torchvision, torchvision's compiled
    library does not load. torchvision accepts that, except for a few operators whose shape function
    it registers in any case. The import then fails, and timm's with it, although both need only
    torchvision's Python part. A declaration without a kernel is enough: a call of such an operator
    still raises torchvision's own message.
    """
    spec = importlib.util.find_spec("torchvision")
    source = (
        Path(spec.origin).with_name("_meta_registrations.py") if spec and spec.origin else Path()
    )
    described = _DECLARED.findall(source.read_text(encoding="utf-8")) if source.is_file() else []
    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for name in {missing, *described}:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _forget_half_imported(module: str, before: set[str]) -> None:
    """Drop what the failed attempt left in `sys.modules`, so that the next one starts clean."""
    for name in set(sys.modules) - before:
        top = name.partition(".")[0]
        # a package that failed is gone itself, and leaves its parts
        if top in (module.partition(".")[0], "torchvision") or top not in sys.modules:
            del sys.modules[name]
