"""What several commands share: common options, those of the full scale, and settings written as
name=value.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tyro.conf import FlagCreatePairsOff

from cfm_lite._internal.places import expanded
from cfm_lite.errors import ConfigError

__all__ = ["Common", "Device", "FullScale", "names_of", "parse_settings", "show"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Log = Literal["json", "tensorboard"]


@dataclass
class Common:
    device: Device = "auto"
    """Where to compute: auto takes CUDA where there is one; mps is opt-in."""
    seed: int = 0
    """Decides the starting point, the batches, the noise and the samples."""
    quick: bool = False
    """A small version that shows that everything works; its numbers mean nothing."""
    debug: bool = False
    """Show the traceback of an error."""

    words: ClassVar[frozenset[str]] = frozenset()  # the options that stand on the command line

    def run(self) -> None:
        """Expand `~` in every path, then do the command's `work`."""
        for part, name, _ in self._options():
            value = getattr(part, name)
            if isinstance(value, Path) or (isinstance(value, str) and value.startswith("~")):
                setattr(
                    part,
                    name,
                    type(value)(expanded(value)) if isinstance(value, str) else expanded(value),
                )
        self.work()

    def work(self) -> None:
        """What the command does; paths are expanded by then."""
        raise NotImplementedError

    @property
    def given(self) -> set[str]:
        """The names of the options that were given: on the command line, or as a value that is not
        the default.
        """
        return {
            name
            for part, name, default in self._options()
            if name in self.words or getattr(part, name) != default
        }

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise ConfigError that says `why` for the first of the options `names` that was given: it
        would do nothing.
        """
        given = self.given
        for name in names:
            if name in given:
                raise ConfigError(f"--{name.replace('_', '-')} {why}")

    def _options(self) -> Iterator[tuple[Any, str, Any]]:
        """(the object that holds it, name, default) of every option, those of the full scale too."""
        for part in (self, getattr(self, "full", None)):
            for field in dataclasses.fields(part) if part is not None else ():
                if field.name != "full":
                    yield part, field.name, field.default


@dataclass
class FullScale:
    """What only `train imagenet` reads. Start it with torchrun for several GPUs: the batch stays
    the same.
    """

    latents: Path | None = None
    """The folder that cfm-lite prepare imagenet wrote."""
    model: str = "SiT-XL/2"
    """SiT-S, -B, -L or -XL with /2, /4 or /8; SiT-Ti/2 is tiny, for trying out."""
    size: int | None = None
    """Pixels a side, 256 or 512 (default: the latents')."""
    dry_run: bool = False
    """Check everything, train ten steps on made data, print throughput, memory and the time of the whole run."""
    log: Log = "json"
    """tensorboard writes its files beside log.jsonl."""
    log_every: int = 100
    """Steps between logged lines."""
    price: float | None = None
    """With --dry-run: what an hour of one device costs, to say what the run will."""
    ranks: int | None = None
    """With --dry-run: on how many devices the run will be (default: those that the dry run is started on)."""
    micro_batch: int | None = None
    """Images in one forward pass of one rank, whole shards (default: as many as fit into memory)."""
    compile: FlagCreatePairsOff[bool] = False
    """Compile the network block by block: half a minute at the start, faster steps. On a GPU this is the default."""
    no_compile: FlagCreatePairsOff[bool] = False
    """Leave it as it is on a GPU too."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks: ddp keeps everything on each of them, fsdp deals parameters, moments and average to them (FSDP2)."""
    checkpointing: bool = False
    """Keep only each block's input and run the block again in the backward pass: a fifth of the memory, a third more work."""
    images: Path | None = None
    """For repa: the folder of images that the latents were made of."""
    features: Path | None = None
    """For repa, in place of the images: what cfm-lite prepare imagenet --latents LATENTS wrote."""
    start: Path | None = None
    """Fine-tune this: an official file (.pt, .pth or .safetensors, see --format), or a run of ours."""
    format: Literal["sit", "repa"] = "sit"
    """Whose file --start is: sit, or repa (DeltaFM's too)."""
    teacher: str | None = None
    """For repa: a file with the teacher's weights, or random (default: timm's, fetched once)."""

    @property
    def compiles(self) -> bool | None:
        """What --compile and --no-compile say, None where neither is given. ConfigError for both."""
        if self.compile and self.no_compile:
            raise ConfigError("--compile and --no-compile are both given; give one of them.")
        return self.compile or (False if self.no_compile else None)


def names_of(kind: type, *but: str) -> list[str]:
    """The names of the options of a dataclass, without those in `but`."""
    return [field.name for field in dataclasses.fields(kind) if field.name not in but]


def show(text: str | None) -> None:
    """Print what a command says; ranks other than 0 say nothing."""
    if text is not None:
        print(text)


def parse_settings(settings: Sequence[str], kind: type | None = None) -> dict[str, Any]:
    """{field: value} of "name=value" texts, in the field's own type; ConfigError for an unknown
    name or an unreadable value.
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
                f"--set {name}={value!r} is no {kinds[name].__name__}; such as {name}={example}."
            ) from None
    return found


_BOOLS = {"true": True, "false": False}
