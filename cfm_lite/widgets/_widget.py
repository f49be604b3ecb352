"""What every explorer is in a notebook: a widget whose page computes and draws by itself.

The page's engine (cfm_lite/widgets/js, built into static/explorers.js) is a widget of its own. All
explorers of a notebook share it, so that a saved notebook holds its code once. What a hand moves is
told to Python at most ten times a second; what Python sets moves the picture at once.
"""

import base64
import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets

from cfm_lite._internal.checks import check_choice, check_number, plain
from cfm_lite.data import toy
from cfm_lite.errors import ConfigError
from cfm_lite.theory import EXACT, GaussianMixture
from cfm_lite.widgets._networks import packed

__all__ = ["Explorer", "described"]

STATIC = Path(__file__).parent / "static"
MOST = 64  # components, or arrows in a row: more would not move at sixty pictures a second
PATHS = ("linear", "cosine", "vp")
TRAINED = tuple(f"toy_{name}" for name in EXACT)  # the shipped networks of the plane


class Control(traitlets.TraitType):
    """What a hand and Python can set; a wrong value is a ConfigError."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.tag(sync=True, echo_update=False)  # what came from the page is not sent back to it


class Number(Control):
    """A number between `low` and `high`."""

    def __init__(self, value: float, low: float, high: float, open_high: bool = False) -> None:
        super().__init__(value)
        self.bounds, self.open_high = (low, high), open_high

    def validate(self, obj: Any, value: Any) -> float:
        return check_number(str(self.name), value, *self.bounds, open_high=self.open_high)


class Weight(Number):
    """λ: from 0 to below 1, where the loss loses its minimum."""

    def __init__(self, value: float = 0.35) -> None:
        super().__init__(value, 0, 1, open_high=True)


class Whole(Number):
    """A whole number between `low` and `high`."""

    def validate(self, obj: Any, value: Any) -> int:
        number = super().validate(obj, value)
        if number != math.floor(number):
            raise ConfigError(f"{self.name} is {value}; it must be a whole number.")
        return int(number)


class Choice(Control):
    """One of `options`, or of what they are for the explorer at hand."""

    def __init__(self, value: Any, options: Iterable[Any] | Callable[[Any], Iterable[Any]]) -> None:
        super().__init__(value)
        self.options = options

    def validate(self, obj: Any, value: Any) -> Any:
        options = list(self.options(obj) if callable(self.options) else self.options)
        value = plain(value)
        if isinstance(value, str) and options and isinstance(options[0], str):
            check_choice(str(self.name), value, options)
        # asked first: an array is neither in a list nor outside it
        single = isinstance(value, str | int | float) and not isinstance(value, bool)
        if not single or value not in options:
            raise ConfigError(
                f"{self.name} is {value!r:.40}; it must be one of {', '.join(map(str, options))}."
            )
        return options[options.index(value)]  # 1 where 1.0 was given


class Flag(Control):
    """True or False."""

    def __init__(self, value: bool = False) -> None:
        super().__init__(value)

    def validate(self, obj: Any, value: Any) -> bool:
        value = plain(value)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name} is {value!r:.40}; it must be True or False.")
        return value


class Interval(Control):
    """Two times, 0 <= low <= high <= 1."""

    def __init__(self) -> None:
        super().__init__((0.0, 1.0))

    def validate(self, obj: Any, value: Any) -> tuple[float, float]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ConfigError(f"{self.name} is {value!r:.40}; it must be two times (low, high).")
        low, high = (check_number(str(self.name), time, 0, 1) for time in value)
        if low > high:
            raise ConfigError(f"{self.name} is ({low:g}, {high:g}); low must not be above high.")
        return low, high


class Shared(ipywidgets.Widget):
    """Text that all explorers of a notebook share: it stands there once."""

    content = traitlets.Unicode().tag(sync=True)


_shared: dict[str, Shared] = {}


def shared(name: str) -> Shared:
    """The engine or the networks, as a widget that lives as long as the kernel."""
    found = _shared.get(name)
    if found is None or found.comm is None:  # closed, as by Widget.close_all()
        found = _shared[name] = Shared(content=_content(name))
    return found


@functools.cache
def _content(name: str) -> str:
    if name == "engine":
        return (STATIC / "explorers.js").read_text(encoding="utf-8")
    return json.dumps({network: packed(network) for network in TRAINED})


class Explorer(anywidget.AnyWidget):
    """An explorer: its controls are attributes that can be read, set and observed.

    `w.weight = 0.3` moves the picture; `w.observe(f, "weight")` hears what a hand does. A wrong
    value raises ConfigError. Where no JavaScript runs, a picture of its start stands.
    """

    _esm = (STATIC / "notebook.js").read_text(encoding="utf-8")
    _face = traitlets.Unicode().tag(sync=True)
    _data = traitlets.Dict().tag(sync=True)
    _engine = traitlets.Instance(Shared).tag(sync=True, **ipywidgets.widget_serialization)
    _networks = traitlets.Instance(Shared, allow_none=True).tag(
        sync=True, **ipywidgets.widget_serialization
    )
    face = ""  # its name in the page's engine
    asks_networks = False

    def __init__(self, data: dict[str, Any] | None = None, **values: Any) -> None:
        self._given = data or {}
        for name in values:
            check_choice("control", name, self.controls)
        super().__init__(
            _face=self.face,
            _data=self._given,
            _engine=shared("engine"),
            _networks=shared("networks") if self.asks_networks else None,
            **values,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # a misspelled control would be kept and do nothing
        if not (name.startswith("_") or hasattr(type(self), name)):
            check_choice("control", name, self.controls)
        super().__setattr__(name, value)

    @property
    def controls(self) -> list[str]:
        """The names of what can be set."""
        return sorted(n for n, trait in self.traits().items() if isinstance(trait, Control))

    @property
    def values(self) -> dict[str, Any]:
        """The value of every control."""
        return {name: getattr(self, name) for name in self.controls}

    @property
    def png(self) -> bytes:
        """The picture that stands where no JavaScript runs: the explorer at its start."""
        return (STATIC / f"{self._face}.png").read_bytes()

    def set(self, **values: Any) -> "Explorer":
        """Set controls by name, as a hand would; ConfigError for an unknown name or a wrong value,
        and nothing is changed then.
        """
        for name, value in values.items():
            check_choice("control", name, self.controls)
            self.traits()[name]._validate(self, value)
        with self.hold_sync():
            for name, value in values.items():
                setattr(self, name, value)
        return self

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and for whoever runs no JavaScript a picture."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = {
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": f"{type(self).__name__}({', '.join(self.controls)})",
        }
        return dict(data) | picture, metadata


def described(mixture: Any) -> dict[str, Any]:
    """A mixture of the plane as the page reads it; ConfigError for another dimension, or for more
    components than can be shown.
    """
    if not isinstance(mixture, GaussianMixture):
        raise ConfigError(
            f"mixture has type {type(mixture).__name__}; it must be a GaussianMixture."
        )
    components, dim = mixture.means.shape
    if dim != 2:
        raise ConfigError(f"mixture has {dim} dimensions; an explorer shows a plane, so 2.")
    if components > MOST:
        raise ConfigError(
            f"mixture has {components} components; at most {MOST} can be shown. Merge near ones."
        )
    found = {"weights": mixture.weights, "means": mixture.means, "labels": mixture.labels}
    spread = (
        ("stds", mixture.stds) if mixture.stds is not None else ("covariances", mixture.covariances)
    )
    return {name: np.asarray(value).tolist() for name, value in (*found.items(), spread)}


def shown(mixture: Any) -> dict[str, Any]:
    """`described`, and the two-class toy for None."""
    return described(toy.mixture("two_classes") if mixture is None else mixture)


def classes(data: dict[str, Any]) -> list[int]:
    """The labels of the mixture that a page has; of the two-class toy where it was given none."""
    mixture = data.get("mixture", {"labels": [0, 1], "weights": [1, 1]})
    return sorted({y for y, w in zip(mixture["labels"], mixture["weights"]) if w > 0})


def one_class(explorer: Explorer) -> list[int]:
    """The classes that an explorer can show."""
    return classes(explorer._given)


def class_or_all(explorer: Explorer) -> list[int]:
    """The same, and -1 for all of them."""
    return [-1, *one_class(explorer)]
