"""The command line: cfm-lite demo | train | sample | evaluate | compare | prepare.

Each command is a typed dataclass; its docstring is its help. An error of cfm_lite is one line on stderr and its exit code
(2 wrong argument, 3 data, 4 checkpoint, 5 divergence, 6 disk full; 130 and 143 after Ctrl-C and SIGTERM); --debug shows where.
"""

import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional, subcommand

from cfm_lite.errors import CFMError, ConfigError

__all__ = ["Compare", "Demo", "Evaluate", "Prepare", "Sample", "Train", "main"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Suite = Literal["toy", "digits", "mnist"]
Name = Literal["toy", "digits", "digits_sit", "mnist"]
Data = Literal["digits", "mnist"]


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


@dataclass
class Demo(Common):
    """Train FM, ΔFM, VeCoR and dispersive on real digits from one starting point, draw, and print a table (90 s on two cores)."""

    out: Path = Path("runs/demo")
    """Where samples.png, fields.png, quality_vs_steps.png and metrics.json go."""

    def run(self) -> None:
        from cfm_lite.demo import demo

        print(demo(self.out, seed=self.seed, device=self.device, quick=self.quick))


@dataclass
class Train(Common):
    """Train one recipe with one method; leaves config.json, log.jsonl, checkpoints and samples.png in its folder."""

    recipe: Positional[Name] = "digits"
    method: str = "fm"
    """fm, delta_fm, vecor, vecor_latent, dispersive or contrastive."""
    steps: int | None = None
    """Training steps (default: the recipe's)."""
    set: tuple[str, ...] = ()
    """Any other recipe field, as name=value: --set lr=1e-3 weight=0.1 perturb=cutmix."""
    out: Path | None = None
    """The run's folder (default: runs/RECIPE-METHOD-SEED)."""
    resume: bool = False
    """Go on from the newest valid checkpoint in the folder."""
    save_every: int = 1000
    """Steps between checkpoints."""

    def run(self) -> None:
        from cfm_lite import runs
        from cfm_lite.data.datasets import dataset
        from cfm_lite.recipes import recipe

        changes = parse_settings(self.set) | {"method": self.method, "seed": self.seed}
        if self.steps is not None or self.quick:
            changes["steps"] = self.steps if self.steps is not None else 50
        chosen = recipe(self.recipe, **changes)
        folder = self.out or Path("runs") / f"{self.recipe}-{self.method}-{self.seed}"
        data = dataset(chosen.dataset)
        device = runs.pick_device(self.device)
        done = runs.train(chosen, data, device=device, out=folder, resume=self.resume, save_every=self.save_every)
        print(f"{done.step} steps, {done.seconds:.1f} s; the run is in {folder}")
        from cfm_lite.commands import sample_run

        print("samples in {} and {}".format(*sample_run(folder, None, 100, self.device)))


@dataclass
class Sample(Common):
    """Draw samples from a trained run: an npz with samples and labels, and a picture."""

    checkpoint: Path = Path("runs/digits-fm-0")
    """A run's folder, or one of its checkpoints."""
    num: int = 100
    """How many samples, the classes in turn."""
    steps: int | None = None
    """Steps of the solver (default: the recipe's)."""
    solver: Literal["euler", "midpoint", "heun", "rk4"] | None = None
    """The fixed-step solver (default: the recipe's)."""
    guidance: float | None = None
    """Scale of classifier-free guidance (default: the recipe's; 1 is none)."""
    out: Path | None = None
    """The npz file (default: samples.npz in the run's folder)."""

    def run(self) -> None:
        from cfm_lite.commands import sample_run

        changes = {"solver": self.solver, "guidance": self.guidance, "sample_steps": self.steps, "seed": self.seed}
        paths = sample_run(self.checkpoint, self.out, 20 if self.quick else self.num, self.device, **changes)
        print("samples in {} and {}".format(*paths))


@dataclass
class Evaluate(Common):
    """Measure samples with the data set's judge: accuracy, Fréchet distance, precision, recall, nearest-neighbour ratio."""

    samples: Path = Path("runs/digits-fm-0/samples.npz")
    """An npz written by cfm-lite sample."""
    out: Path | None = None
    """Where the rows go (default: metrics.json beside the samples)."""

    def run(self) -> None:
        from cfm_lite.commands import evaluate_file

        rows, path = evaluate_file(self.samples, self.out)
        for row in rows:
            print(f"{row['metric']:<16} {row['value']:.4f}")
        print(f"rows in {path}")


@dataclass
class Compare(Common):
    """Run a paired experiment over several seeds, resumable, and report differences to FM with their intervals."""

    suite: Positional[Suite] = "digits"
    seeds: int = 3
    """How many seeds, counted from --seed."""
    arms: tuple[str, ...] = ()
    """Only these arms of the suite, such as fm fm_scaled delta_fm (default: all)."""
    set: tuple[str, ...] = ()
    """Recipe fields that all arms share, as name=value: --set steps=500 weight=0.1."""
    out: Path = Path("data/results")
    """Where SUITE.json and SUITE.info.json go."""
    report: bool = False
    """Only print the report of what is there."""

    def run(self) -> None:
        from cfm_lite.commands import compare_suite

        changes = parse_settings(self.set)
        own = sorted({"dataset", "method", "seed"} & set(changes))
        if own:
            raise ConfigError(f"--set {own[0]} cannot be given here: the suite decides it. Use --seed and --seeds, or another suite.")
        settings = {"arms": self.arms, "changes": changes, "quick": self.quick, "only_report": self.report}
        print(compare_suite(self.suite, self.seed, self.seeds, self.out, self.device, **settings))


@dataclass
class Prepare(Common):
    """Fetch a data set, or check that its files are whole."""

    dataset: Positional[Data] = "mnist"

    def run(self) -> None:
        from cfm_lite.data import digits, mnist

        if self.dataset == "digits":
            print(f"digits: {len(digits.load('all')[0])} images ship inside scikit-learn; nothing to fetch.")
            return
        folder = mnist.download()
        print(f"mnist: {len(mnist.load('train')[0])} + {len(mnist.load('test')[0])} images, verified, in {folder}")


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Prepare, subcommand("prepare")]
)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """{field: value} of "name=value" texts, in the field's own type; ConfigError for an unknown name or an unreadable value."""
    from cfm_lite.checks import check_choice
    from cfm_lite.recipes import Recipe

    kinds = {field.name: type(field.default) for field in dataclasses.fields(Recipe)}
    found: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} has no '='; write name=value, such as lr=1e-3.")
        check_choice("recipe field", name, kinds)
        if name in found:
            raise ConfigError(f"--set names {name!r} twice; give it once.")
        try:
            found[name] = kinds[name](value)
        except ValueError:
            raise ConfigError(f"--set {name}={value!r} is no {kinds[name].__name__}; such as {name}={_example(name)}.") from None
    return found


def _example(name: str) -> Any:
    from cfm_lite.recipes import Recipe

    return getattr(Recipe(), name)


class Parsed:
    """Keeps the process quiet about warnings that a person at a terminal has no use for."""

    shown: ClassVar[set[str]] = set()

    @classmethod
    def show(cls, message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in cls.shown:
            cls.shown.add(text)
            print(f"cfm-lite: note: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (and, called as a script, exits with it)."""
    command = tyro.cli(Command, args=argv, prog="cfm-lite", description=__doc__)  # exits with 2 on a wrong argument
    try:
        with warnings.catch_warnings():
            warnings.showwarning = Parsed.show
            command.run()
    except CFMError as error:
        if command.debug:
            raise
        print(f"cfm-lite: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cfm-lite: stopped; a run of cfm-lite train was saved, and --resume goes on with it", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
