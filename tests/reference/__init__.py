"""Loads the numeric reference fixtures (README.md beside this file)."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


@cache
def settings(name: str) -> dict:
    """{case: settings} of one fixture file, for example `settings("samplers_sit")`."""
    return json.loads((HERE / f"{name}.json").read_text())


@cache
def _arrays(name: str) -> dict[str, dict[str, np.ndarray]]:
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        for key in file.files:
            case, array = key.split("/", 1)
            cases.setdefault(case, {})[array] = file[key]
    return cases


def cases(name: str, prefix: str = "") -> list[str]:
    """The names of the cases in a fixture file, in order."""
    return [case for case in _arrays(name) if case.startswith(prefix)]


def case(name: str, which: str) -> dict[str, Tensor]:
    """{array: tensor} of one case, copied, so that a test cannot change another's numbers."""
    return {key: torch.from_numpy(np.array(value)) for key, value in _arrays(name)[which].items()}
