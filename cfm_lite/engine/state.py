"""The state of a training in a checkpoint: what is saved, and what must be equal to resume.

A run that resumes gives the bits of one that never stopped, on a CPU and on any number of ranks. If
the network draws itself, as with dropout, the number of ranks must stay the same.
Settings of older editions are read here, too.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import platform
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

import cfm_lite
from cfm_lite import paths
from cfm_lite._internal.checks import listed, plain, warn_once
from cfm_lite._internal.places import expanded
from cfm_lite.engine import checkpoint, sharded
from cfm_lite.engine.average import Average
from cfm_lite.engine.guard import Guard
from cfm_lite.engine.parallel import World
from cfm_lite.errors import ConfigError, ResumeMismatchError
from cfm_lite.objective import Objective

__all__ = ["State"]

_OLD = (  # what a file of an older edition is asked for: no optimizer moves these
    "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "maximize",
)  # fmt: skip
_NUMBERS = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes, beside the step; `averages` by their names in a checkpoint.

    `settings` are the numbers of the trainer that must be equal to resume.

    >>> import tempfile
    >>> from cfm_lite import models, objective
    >>> fm = objective.fm(models.MLP(2))
    >>> sgd = torch.optim.SGD(fm.parameters(), lr=0.1)
    >>> guard = Guard(torch.device("cpu"), None, None, [])
    >>> state = State(fm, {"ema": Average(fm.model, 0.9)}, sgd, {"seed": 0}, guard)
    >>> state.save(tempfile.mkdtemp(), 1, {}, World(), keep=1).name
    'step-00000001'
    """

    objective: Objective
    averages: Mapping[str, Average]
    optimizer: torch.optim.Optimizer
    settings: Mapping[str, Any]
    guard: Guard
    # whether the network drew from torch's own generators in any step so far; empty before
    drew: list[bool] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=lambda: [0])  # how many it was asked
    # the settings of the objective before the first step, as those of the optimizer: a term that
    # counts its calls has others later
    start: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        objective = self.objective
        drawn = {"time": objective.time_distribution, "couple": objective.couple}
        self.start.update(_plain({"terms": dict(objective.terms), **drawn}))
        for group in self.optimizer.param_groups:
            for name, value in group.items():
                if name != "params" and not _is_json(_plain_of_group(value)):
                    raise ConfigError(
                        f"the optimizer has the option {name}, a {type(value).__name__}, which a "
                        "checkpoint cannot hold; it must be a number, a text, or lists of them."
                    )

    def noting(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """`step(batch)`; it notes whether torch's own generators have moved, as by dropout.

        Dropout may begin late, so it is asked again: in the first ten steps and in every tenth one,
        because to read the states takes a few hundredths of a small step.
        """
        count = self.steps[0]
        self.steps[0] += 1
        if any(self.drew) or (count >= 10 and count % 10):
            return step(batch)
        before, found = self._states(), step(batch)
        self.drew[:] = [before != self._states()]
        return found

    @functools.cached_property
    def _device(self) -> torch.device:
        return next(self.objective.parameters()).device  # a walk, as long as reading the states

    def _states(self) -> dict[str, bytes]:
        """The states of the CPU's generator and of the device's."""
        # a mode that counts sees only what the network does; to leave none takes the longest here
        active = _get_current_dispatch_mode() is not None
        with _disable_current_modes() if active else contextlib.nullcontext():
            states = {"cpu": torch.get_rng_state()}
            if self._device.type == "cuda":
                states["cuda"] = torch.cuda.get_rng_state(self._device)
            return {kind: state.numpy().tobytes() for kind, state in states.items()}

    def _generators(self) -> dict[str, str]:
        """The same as text."""
        return {
            kind: base64.b64encode(zlib.compress(state)).decode()
            for kind, state in self._states().items()
        }

    def _set_generators(self, states: Mapping[str, str]) -> None:
        device = next(self.objective.parameters()).device
        for kind, text in states.items():
            packed = bytearray(zlib.decompress(base64.b64decode(text)))
            state = torch.frombuffer(packed, dtype=torch.uint8)
            if kind == "cpu":
                torch.set_rng_state(state)
            elif kind == device.type:
                torch.cuda.set_rng_state(state, device)

    def save(
        self, directory: str | Path, step: int, config: Mapping[str, Any], world: World, keep: int
    ) -> Path:
        """Write a checkpoint on rank 0 (collective); its path, on other ranks `directory`."""
        weights: dict[str, Tensor] = {}
        for prefix, module in self._modules().items():
            weights |= {f"{prefix}{k}": v for k, v in sharded.weights(module).items()}
        inner = sharded.optimizer_state(self.objective, self.optimizer)
        tensors = {
            f"{i}.{k}": v
            for i, entry in inner["state"].items()
            for k, v in entry.items()
            if isinstance(v, Tensor)
        }
        kept, lost = _numbers_of(inner["state"])
        if lost:
            warn_once(
                f"the optimizer keeps {listed(lost)}, which a checkpoint does not hold: a resumed "
                "run begins without it. Keep a tensor or a number for each parameter."
            )
        # of each rank, and only where the network draws: the seed decides all other draws
        generators = world.gather(self._generators() if any(self.drew) else None)
        state = {
            "seed": self.settings["seed"],
            "averaged": self.averages["ema"].n_averaged,
            "errors": self.guard.errors,
            "generators": generators if any(generators) else None,
            "groups": [
                {name: _plain_of_group(value) for name, value in group.items()}
                for group in inner["param_groups"]
            ],
            **({"numbers": kept} if kept else {}),
            "settings": self._settings(),
            "config": _as_json(config),
            "versions": {
                "cfm_lite": cfm_lite.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        written = world.on_main(
            lambda: checkpoint.save(directory, step, weights, tensors, state, keep=keep)
        )
        return written or expanded(directory)

    def load(
        self, directory: str | Path, accept: Callable[[Mapping[str, Any]], None], world: World
    ) -> tuple[int, Path]:
        """Load a checkpoint, or the newest valid one of a folder (collective); its step and path.

        Raises what `accept` raises for its config, and ResumeMismatchError that lists what differs.
        """
        path = expanded(directory)
        if not (path / checkpoint.MANIFEST).exists():
            path = checkpoint.latest(path)
        dealt = sharded.is_sharded(self.objective)
        device = next(self.objective.parameters()).device
        saved = checkpoint.load(path, "cpu" if dealt else device)
        accept(saved.state.get("config") or {})
        self._check_same(saved)
        for prefix, module in self._modules().items():
            mine = {
                k.removeprefix(prefix): v for k, v in saved.weights.items() if k.startswith(prefix)
            }
            sharded.load_weights(module, mine)
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.optimizer.items():
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
        for index, numbers in saved.state.get("numbers", {}).items():
            entries.setdefault(int(index), {}).update(numbers)
        state = {"state": entries, "param_groups": saved.state["groups"]}
        sharded.load_optimizer(self.objective, self.optimizer, state)
        for average in self.averages.values():
            average.n_averaged = saved.state["averaged"]
        self.guard.remember(saved.state.get("errors"))
        # an old checkpoint has none, and one of fewer ranks none for this rank
        mine = (saved.state.get("generators") or [])[world.rank : world.rank + 1]
        if any(mine):
            self._set_generators(mine[0])
            self.drew[:] = [True]
        return saved.step, path

    def _modules(self) -> dict[str, nn.Module]:
        """The modules with weights, by the prefix of their names."""
        averages = {f"{name}.": average.module for name, average in self.averages.items()}
        return {"objective.": self.objective, **averages}

    def _settings(self) -> dict[str, Any]:
        """What must be equal to resume: with a different value it would be another run."""
        objective = self.objective
        return {
            **self.start,
            "network": {  # diffusers begins what is no setting with a low line
                name: value
                for name, value in _numbers_in(getattr(objective.model, "config", None)).items()
                if not name.startswith("_")
            },
            "path": _plain(objective.path),
            "label_dropout": objective.label_dropout,
            "shard": objective.shard,
            "optimizer": type(self.optimizer).__name__,
            **_plain(self.settings),
        }

    def _check_same(self, saved: checkpoint.Checkpoint) -> None:
        mine = said_once(json.loads(json.dumps(self._settings())))
        theirs = said_once(_completed(saved.state, mine))
        diff = [
            f"{k}: another order of the optimizer's parameters"
            if k == "parameters"  # the list would fill a page
            else f"{k}: saved {theirs.get(k)!r}, now {mine[k]!r}"
            for k in mine
            if mine[k] != theirs.get(k)
        ]
        have = {f"objective.{k}": tuple(v.shape) for k, v in self.objective.state_dict().items()}
        stored = {k: tuple(v.shape) for k, v in saved.weights.items() if k.startswith("objective.")}
        diff += [
            f"{k}: saved {stored.get(k)}, now {have.get(k)}"
            for k in sorted(have.keys() | stored.keys())
            if have.get(k) != stored.get(k)
        ]
        needed = ("seed", "averaged", "groups", "settings", "step")
        diff += [f"{key} is missing" for key in needed if key not in saved.state]
        if diff:
            raise ResumeMismatchError(
                f"{saved.path} belongs to another run: {'; '.join(diff[:6])}. Start a new run, or "
                "give the settings of the old one."
            )


def _completed(state: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint, completed if it is an old one.

    A missing setting is read from the optimizer's groups. Else it had only one possible value, or
    was not saved.
    """
    groups, saved = state.get("groups", []), _with_objects(state.get("settings", {}), mine)
    in_groups = {name: [group.get(name) for group in groups] for name in _OLD if name in mine}
    return {**mine, **in_groups, "ema2_decay": 0.0, **saved}


def _with_objects(saved: Any, mine: Any) -> Any:
    """`saved`, with the settings in `mine` of objects that are called: once only their names were
    saved.
    """
    if isinstance(saved, str):
        method = isinstance(mine, list) and len(mine) == 2 and mine[0] == saved
        return mine if method or (isinstance(mine, dict) and mine.get("kind") == saved) else saved
    if isinstance(mine, dict) and isinstance(saved, dict):
        return {name: _with_objects(value, mine.get(name)) for name, value in saved.items()}
    return saved


def said_once(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that name the path once; the first edition wrote its functions at every place."""
    path = settings.get("path")

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(v) for v in value]
        if not isinstance(value, dict):
            return value
        if value.get("kind") == "Path":
            return value["name"]
        found = {k: named(v) for k, v in value.items()}
        if found.get("kind") == "Perturbed" and (
            found["path"] is None or found["space"] == "velocity"
        ):
            found["path"] = path  # in velocity space it is not used
        return found

    found = named(settings)
    # the first edition's times were linear where no path was given
    if isinstance(found.get("time"), list) and found["time"][1:] == [[], {"path": "linear"}]:
        found["time"] = found["time"][0]
    return found


def _plain(value: Any) -> Any:
    """Settings as plain JSON values: dataclasses by field, paths and functions by name."""
    if isinstance(value, paths.Path):
        if paths.PATHS.get(value.name) == value:
            return value.name
        t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device="cpu")
        numbers = torch.cat([value.alpha(t), value.sigma(t)]).tolist()
        return [value.name, [round(number, 6) for number in numbers]]  # two may have one name
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {
            f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if inspect.ismethod(value):
        return [value.__qualname__, _plain(value.__self__)]
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    value = plain(value)
    if value is None or isinstance(value, _NUMBERS):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=repr)
    if isinstance(value, Tensor | np.ndarray):
        numbers = torch.as_tensor(value).detach().cpu().contiguous()
        digest = hashlib.sha256(numbers.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"kind": f"{numbers.dtype} {tuple(numbers.shape)}", "sha256": digest}
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    # of any other object, such as a codec, what can be compared
    return {"kind": type(value).__name__, **_numbers_in(getattr(value, "__dict__", {}))}


def _numbers_in(settings: Any) -> dict[str, Any]:
    """The numbers and texts of a mapping; of a network's config they tell what no weight shows."""
    found = ((k, plain(v)) for k, v in settings.items()) if isinstance(settings, Mapping) else ()
    return {k: v for k, v in found if isinstance(v, _NUMBERS) and k != "training"}


def _plain_of_group(value: Any) -> Any:
    """An option of an optimizer, which a resumed run gets back: not shortened as a setting is."""
    return [_plain_of_group(v) for v in value] if isinstance(value, tuple | list) else plain(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _as_json(config: Any) -> Any:
    """`config` as JSON gives it back; ConfigError names what it cannot hold."""
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"config has type {type(config).__name__}; it must be a mapping, such as a dict."
        )
    kept: dict[str, Any] = {}
    for name, value in config.items():
        try:
            kept |= json.loads(json.dumps({name: value}, default=_number))
        except (TypeError, ValueError):
            raise ConfigError(
                f"config holds {name}, a {type(value).__name__}; a checkpoint keeps it as JSON, so "
                "it must be numbers, texts, lists and dicts of them. Give str() of it."
            ) from None
    return kept


def _number(value: Any) -> Any:
    """A number of NumPy or torch as Python's own; TypeError for anything else."""
    number = plain(value)
    if number is value:
        raise TypeError
    return number


def _numbers_of(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What an optimizer keeps beside tensors, such as a count of steps, for each parameter that has
    any; and what of it no file can hold.
    """
    kept: dict[str, Any] = {}
    lost: dict[str, None] = {}
    for i, entry in state.items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                continue
            if value is None or isinstance(plain(value), _NUMBERS):
                kept.setdefault(str(i), {})[name] = plain(value)
            else:
                lost[f"{name}, a {type(value).__name__}"] = None
    return kept, list(lost)
