"""Flow matching that also learns where not to go: train it, sample it, measure it.

Begin with `cfm-lite demo`. `cfm-lite COMMAND --help` lists the options of a command. An error is
one line on stderr, and its exit code says the kind: 2 wrong argument, 3 data, 4 checkpoint, 5
divergence, 6 disk full; 130 and 143 after Ctrl-C and SIGTERM. With --debug it shows the traceback.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

from tyro.conf import subcommand

from cfm_lite._internal.terminal import fail, run_command
from cfm_lite.cli.compare import Compare
from cfm_lite.cli.demo import Demo
from cfm_lite.cli.evaluate import Evaluate
from cfm_lite.cli.export import Export
from cfm_lite.cli.prepare import Prepare
from cfm_lite.cli.sample import Sample
from cfm_lite.cli.scale import ScalePrepare, ScaleSample, ScaleTrain
from cfm_lite.cli.train import Train
from cfm_lite.errors import ConfigError

__all__ = [
    "Compare",
    "Demo",
    "Evaluate",
    "Export",
    "Prepare",
    "Sample",
    "ScalePrepare",
    "ScaleSample",
    "ScaleTrain",
    "Train",
    "main",
]

# each command is a dataclass in a file of its own, whose docstring is its help
Scale = Annotated[
    Annotated[ScalePrepare, subcommand("prepare")]
    | Annotated[ScaleTrain, subcommand("train")]
    | Annotated[ScaleSample, subcommand("sample")]
    | Annotated[Export, subcommand("export")],
    subcommand(
        "scale",
        description="What only ImageNet or many devices need: latents, presets, official files.",
    ),
]
Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Export, subcommand("export")]
    | Scale
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. The installed script exits with it."""
    words = list(sys.argv[1:] if argv is None else argv)
    # torchrun ... -m cfm_lite.cli -- sample: keeps torchrun off our options
    if words[:1] == ["--"]:
        words = words[1:]
    if words[:2] in (["train", "imagenet"], ["prepare", "imagenet"]):  # the first edition's
        new = " ".join(["cfm-lite scale", words[0], *words[2:]])
        return fail(
            ConfigError(f"cfm-lite {words[0]} imagenet is cfm-lite scale {words[0]} now: {new}")
        )
    if "--sde" in words:
        return fail(ConfigError("--sde is --solver sde now."))
    if words[:1] == ["compare"] and "--costs" in words:
        new = "python -m tools.costs SUITE"
        return fail(ConfigError(f"--costs is {new} now, in a clone: it times training steps."))
    return run_command(Command, _resume_with_a_value(words), __doc__)


def _resume_with_a_value(words: Sequence[str]) -> list[str]:
    """`words` with plain --resume and --no-resume spelled out, because --resume may also be given
    as `--resume auto`.
    """
    switches = {"--resume": "True", "--no-resume": "False"}
    values = ("auto", "True", "False")
    found: list[str] = []
    for word, following in zip(words, [*words[1:], ""]):
        alone = word in switches and not (word == "--resume" and following in values)
        found += ["--resume", switches[word]] if alone else [word]
    return found
