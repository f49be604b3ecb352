"""Thousands of calls of the public functions with one argument made strange: the right result or a
documented error, nothing else.

Each call starts from arguments that fit (api.py) and replaces at most one of them. Afterwards no
argument may have changed and no global random state may have moved. The error must be one of
errors.py and name the argument.
"""

import copy
import math
import random
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cfm_lite._internal import checks
from cfm_lite.errors import CFMError
from tests.faults import api, counts
from tests.faults.elsewhere import ELSEWHERE


def _lambda(*args: Any) -> None:
    return None


# what no argument expects
ODD: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "text": "x",
    "empty text": "",
    "bytes": b"x",
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "-1": -1,
    "0": 0,
    "1": 1,
    "half": 0.5,
    "2.5": 2.5,
    "1e400 as int": 10**400,
    "-2^63": -(2**63),
    "2^64": 2**64,
    "1e30": 1e30,
    "complex": 1j,
    "empty list": [],
    "list": [1.0, 2.0],
    "texts": ["a", "b"],
    "empty dict": {},
    "dict": {"a": 1},
    "object": object(),
    "function": _lambda,
    "set": {1},
    "range": range(3),
    "array": np.zeros((4, 2)),
    "no entries": torch.zeros(0),
    "no columns": torch.zeros(4, 0),
    "scalar": torch.tensor(1.0),
    "nan scalar": torch.tensor(math.nan),
    "one": torch.zeros(1),
    "ints": torch.zeros(4, 2, dtype=torch.long),
    "bools": torch.zeros(4, dtype=torch.bool),
    "complex tensor": torch.zeros(4, 2, dtype=torch.complex64),
    "five axes": torch.zeros(4, 2, 2, 2, 2),
    "huge": torch.full((4, 2), 1e30),
    "module": nn.Identity(),
    "parameter": nn.Parameter(torch.zeros(4, 2)),
    "type": int,
    "labels too high": torch.full((4,), 99),
    "labels below 0": torch.full((4,), -1),
    "int8": torch.zeros(4, dtype=torch.int8),
}
# what one can do to a tensor that fits
BENT: dict[str, Any] = {
    "one row less": lambda x: x[:-1],
    "one axis more": lambda x: x[None],
    "flat": lambda x: x.flatten(),
    "no rows": lambda x: x[:0],
    "first row": lambda x: x[:1],
    "first column": lambda x: x[..., :1],
    "NaN in it": lambda x: _with(x, math.nan),
    "inf in it": lambda x: _with(x, math.inf),
    "all NaN": lambda x: x * math.nan if x.is_floating_point() else x,
    "as ints": lambda x: x.long(),
    "as bool": lambda x: x > 0,
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "times 1e20": lambda x: x * 1e20,
    "negative": lambda x: -x,
    "zero": lambda x: x * 0,
    "as list": lambda x: x.tolist(),
    "as array": lambda x: x.numpy(),
    "complex": lambda x: x + 0j,
}
# these change nothing of the values, so that the call must succeed
HARMLESS: dict[str, Any] = {
    "non-contiguous": lambda x: torch.stack([x, x], -1)[..., 0],
    "strided backwards and back": lambda x: x.flip(0).flip(0),
    "requires grad": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "expanded": lambda x: x[None].expand(2, *x.shape)[1],
}


def _with(x: Tensor, value: float) -> Tensor:
    if not x.is_floating_point() or not x.numel():
        return x
    return x.flatten().index_fill(0, torch.tensor([x.numel() // 2]), value).reshape(x.shape)


def states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002


def untouched(before: tuple[Any, ...]) -> bool:
    now = states()
    return (
        torch.equal(before[0], now[0]) and bool((before[1] == now[1]).all()) and before[2] == now[2]
    )


def snapshot(value: Any) -> Any:
    """What can be compared later; generators are meant to move, and functions have no state here."""
    if isinstance(value, Tensor):
        return value.detach().clone(), value.requires_grad, value.shape
    if isinstance(value, nn.Module):
        return {k: v.clone() for k, v in value.state_dict().items()}, value.training
    if isinstance(value, dict):
        return {k: snapshot(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [snapshot(v) for v in value]
    return (
        copy.copy(value)
        if isinstance(value, np.ndarray | set)
        else value
        if isinstance(value, int | float | str)
        else None
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and (
            a.device.type == "meta"
            or torch.equal(torch.nan_to_num(a, 3.0), torch.nan_to_num(b, 3.0))
        )
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b or a != a


def named(error: CFMError, name: str, argument: str) -> bool:
    """The message names the argument, or the one that it has to agree with."""
    words = str(error).lower().replace("_", " ")
    allowed = {argument, *api.ALSO.get(argument, ()), *api.ALSO.get(f"{name}.{argument}", ())}
    return any(word.lower().replace("_", " ") in words for word in allowed)


def call(name: str, seed: int, kind: str, number: int, argument: int) -> str:
    """One call; returns what became of it, or raises AssertionError with everything that is needed
    to see it again.
    """
    arguments = api.CALLS[name](api.Draws(seed))
    changed, bent = sorted(arguments)[argument % len(arguments)] if arguments else "", ""
    if kind == "odd" and arguments:
        bent = list(ODD)[number % len(ODD)]
        arguments[changed] = ODD[bent]
    elif kind != "good" and arguments:
        tensors = sorted(n for n, v in arguments.items() if isinstance(v, Tensor))
        if not tensors:
            return call(name, seed, "odd" if kind == "bent" else "good", number, argument)
        table = BENT if kind == "bent" else HARMLESS
        changed, bent = tensors[argument % len(tensors)], list(table)[number % len(table)]
        arguments[changed] = table[bent](arguments[changed])
    where = f"call({name!r}, {seed}, {kind!r}, {number}, {argument}): {changed} = {bent}"
    kept, before = snapshot(arguments), states()
    checks._warned.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = api.finish(api.target(name)(**arguments))
    except CFMError as error:
        if kind in ("good", "harmless") or not named(error, name, changed):
            raise AssertionError(
                f"{where}: this should work, or the message does not name {changed}: {error}"
            ) from error
        outcome = type(error).__name__
    except Exception as error:
        if changed in api.FUNCTIONS and callable(arguments[changed]):
            return "its own error"
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    else:
        outcome = "result"
        if kind in ("good", "harmless"):
            assert all(
                t.isfinite().all() for t in api.tensors_of(result) if t.is_floating_point()
            ), where
    assert equal(kept, snapshot(arguments)), f"{where}: an argument was changed"
    if name not in api.DRAWS_GLOBALLY and changed not in ("generator", "seed"):
        assert untouched(before), f"{where}: a global random state was touched"
    return outcome


def many(examples: int) -> Counter[str]:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(sorted(api.CALLS)),
        st.integers(0, 20),
        st.sampled_from(["good", "odd", "odd", "odd", "bent", "bent", "harmless"]),
        st.integers(0, 10_000),
        st.integers(0, 30),
    )
    def one(name: str, seed: int, kind: str, number: int, argument: int) -> None:
        seen[f"{kind}: {call(name, seed, kind, number, argument)}"] += 1

    one()
    return seen


def test_1000_calls_give_a_result_or_a_documented_error():
    seen = many(1000)
    assert sum(seen.values()) >= 1000
    assert seen["odd: ConfigError"] > 100


@pytest.mark.parametrize("name", sorted(api.CALLS))
def test_the_arguments_of_the_registry_fit(name):
    for seed in range(4):
        call(name, seed, "good", 0, 0)


@pytest.mark.faults
def test_10000_calls_give_a_result_or_a_documented_error():
    seen = many(10_000)
    counts.write(
        "api",
        calls=sum(seen.values()),
        bare_tracebacks=0,
        changed_arguments=0,
        touched_states=0,
        functions=len(api.CALLS),
        **seen,
    )
    assert sum(seen.values()) >= 10_000


@pytest.mark.faults
def test_every_argument_meets_every_odd_value():
    """Exhaustive where hypothesis samples: each argument of each function with each odd and each
    bent value.
    """
    seen: Counter[str] = Counter()
    for name in api.CALLS:
        arguments = api.CALLS[name](api.Draws(0))
        for argument in range(len(arguments)):
            for number in range(len(ODD)):
                seen[call(name, 0, "odd", number, argument)] += 1
        for argument in range(sum(isinstance(v, Tensor) for v in arguments.values())):
            for number in range(len(BENT)):
                seen[call(name, 0, "bent", number, argument)] += 1
            for number in range(len(HARMLESS)):
                seen[call(name, 0, "harmless", number, argument)] += 1
    counts.write("api_exhaustive", calls=sum(seen.values()), bare_tracebacks=0, **seen)


def test_every_public_function_and_class_is_called_here_or_stands_elsewhere_with_a_reason():
    elsewhere = [name for names in ELSEWHERE.values() for name in names.split()]
    known = set(api.CALLS) | set(elsewhere)
    methods = {name for name in api.CALLS if name.rpartition(".")[0] in api.METHODS_OF}
    assert sorted(set(api.PUBLIC) - known) == [], "add these to CALLS in tests/faults/api.py"
    assert sorted(known - set(api.PUBLIC) - methods) == [], "these are gone"
    assert len(elsewhere) == len(set(elsewhere))
    assert not set(api.CALLS) & set(elsewhere)


def test_the_harness_finds_a_changed_argument_a_touched_state_and_a_bare_error(monkeypatch):
    def careless(x):
        x += 1
        return x

    def drawing(x):
        return x + torch.rand(x.shape)

    for function, words in (
        (careless, "was changed"),
        (drawing, "state was touched"),
        (lambda x: x.nonsense, "AttributeError"),
    ):
        monkeypatch.setitem(api.PUBLIC, "data.toy.to_figure3", function)
        with pytest.raises(AssertionError, match=words):
            call("data.toy.to_figure3", 0, "good", 0, 0)
