"""`make test-shapes`: the shapes in the signatures of the ideas and the networks are enforced.

CFM_LITE_SHAPES=1 puts jaxtyping's import hook, with beartype, before the first import of cfm_lite.
Only correct calls can be tested so: a wrong one would meet the hook before our own error, and a
compiled graph or another process has no hook.
"""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ON = os.environ.get("CFM_LITE_SHAPES") == "1"
ROOMS = ("paths", "draws", "perturbations", "negatives", "losses", "theory", "guidance", "samplers", "metrics", "models")  # fmt: skip
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # 1 is a float too
_SKIPPED = re.compile(r"raises\(|compile|subprocess|make_fx|pickle|np\.float")


def enforce() -> None:
    """Install the hook, where it is asked for."""
    if ON:
        from jaxtyping import install_import_hook

        install_import_hook([f"cfm_lite.{room}" for room in ROOMS], CHECKER)


def can_check(item: pytest.Item) -> bool:
    """Whether a test makes correct calls alone, in this process, outside any compiled graph."""
    source = inspect.getsource(item.function)
    return "shapes: keep" in source or not _SKIPPED.search(source)  # pyright: ignore[reportAttributeAccessIssue]


def public(room: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions of a room's `__all__`, and the public methods of its classes."""
    module = importlib.import_module(f"cfm_lite.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                if method[0] != "_" and function.__module__ == module.__name__:
                    yield f"{name}.{method}", function
