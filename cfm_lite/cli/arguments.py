"""What several commands share: common options, and settings written as name=value."""

import abc
import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from cfm_lite._internal.places import expanded
from cfm_lite.errors import ConfigError

__all__ = [
    "Common",
    "OnDevice",
    "OptionalFloat",
    "OptionalInt",
    "OptionalPath",
    "OptionalText",
    "Seeded",
    "Texts",
    "names_of",
    "parse_settings",
    "show",
]

# no hint: None means nothing to a reader, and the help texts say what the default does
OptionalInt = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
OptionalText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], arg(help_behavior_hint="")]


@dataclass
class Common(abc.ABC):
    """A command. `run` expands paths that start with `~`, then calls `work`."""

    words: ClassVar[frozenset[str]] = frozenset()  # the options that stand on the command line
    again: ClassVar[str] = ""  # what resumes the command after Ctrl-C

    def run(self) -> None:
        """Expand `~` in every path, then do the command's `work`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path) or (isinstance(value, str) and value.startswith("~")):
                setattr(self, field.name, type(value)(expanded(value)))
        self.work()

    @abc.abstractmethod
    def work(self) -> None:
        """What the command does. Paths are expanded already."""

    @property
    def given(self) -> set[str]:
        """The names of the given options: on the command line, or with a value other than the
        default.
        """
        return {
            field.name
            for field in dataclasses.fields(self)
            if field.name in self.words or getattr(self, field.name) != field.default
        }

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise ConfigError with the reason `why` for the first given option of `names`: it would
        do nothing.
        """
        given = self.given
        for name in names:
            if name in given:
                raise ConfigError(f"--{name.replace('_', '-')} {why}")


@dataclass
class OnDevice(Common):
    """A command that computes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute: auto takes CUDA if there is one, else the CPU; mps only when asked for."""


@dataclass
class Seeded(OnDevice):
    """A command that draws random numbers."""

    seed: int = 0
    """The seed of the starting point, the batches, the noise and the samples."""
    quick: bool = False
    """A small run that only shows that everything works. Its numbers mean nothing."""


def names_of(kind: type, *but: str) -> list[str]:
    """The names of the options of a dataclass, without those in `but`."""
    return [field.name for field in dataclasses.fields(kind) if field.name not in but]


def show(text: str | None) -> None:
    """Print the result of a command. Ranks other than 0 print nothing."""
    if text is not None:
        print(text)


def parse_settings(settings: Sequence[str], kind: type | None = None) -> dict[str, Any]:
    """{field: value} of "name=value" texts, in the field's own type.

    ConfigError for an unknown name or a value that cannot be read.
    """
    from cfm_lite._internal.checks import check_choice
    from cfm_lite.runs.recipe import Recipe

    kinds = {field.name: type(field.default) for field in dataclasses.fields(kind or Recipe)}
    found: dict[str, Any] = {}
    if not isinstance(settings, list | tuple) or not all(
        isinstance(text, str) for text in settings
    ):
        raise ConfigError(f"settings is {settings!r:.60}; it must be a list of texts, name=value.")
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} has no '='; write name=value, such as lr=1e-3.")
        check_choice("recipe field", name, kinds)
        if name in found:
            raise ConfigError(f"--set names {name!r} twice; give it once.")
        try:
            found[name] = _BOOLS[value.lower()] if kinds[name] is bool else kinds[name](value)
            if kinds[name] is str and value.startswith("~"):
                found[name] = str(expanded(value))
        except (ValueError, KeyError):
            example = getattr((kind or Recipe)(), name)
            raise ConfigError(
                f"--set {name}={value!r}: {name} must be of type {kinds[name].__name__}, such as "
                f"{name}={example}."
            ) from None
    return found


_BOOLS = {"true": True, "false": False}
