"""cfm-lite train: one recipe, one method, one run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from cfm_lite.cli.arguments import OptionalInt, OptionalPath, Seeded, Texts, parse_settings
from cfm_lite.errors import ConfigError

__all__ = ["Train", "Training"]


@dataclass
class Training(Seeded):
    """The options of every training, of `train` and of `scale train`."""

    again: ClassVar[str] = "The same command with --resume resumes it."

    steps: OptionalInt = None
    """Training steps (default: the recipe's)."""
    set: Texts = ()
    """Other recipe fields, as name=value: --set lr=1e-3 weight=0.1 perturb=cutmix."""
    out: OptionalPath = None
    """The run's folder (default: in runs/, named by recipe, method and seed)."""
    resume: bool | Literal["auto"] = False
    """Resume from the newest checkpoint in the folder; auto starts if there is none."""
    save_every: OptionalInt = None
    """Steps between checkpoints (default: 1000; scale train 10000)."""
    sample_every: int = 0
    """Steps between pictures of samples, samples-step-N.png (0: only at the end)."""
    batch: OptionalInt = None
    """The batch, over all ranks and micro-batches (default: the recipe's)."""
    compile: FlagCreatePairsOff[bool] = False
    """Compile the network: a minute or more, then faster steps. Transformers on a GPU are compiled
    by default."""
    no_compile: FlagCreatePairsOff[bool] = False
    """Do not compile on a GPU."""

    @property
    def compiles(self) -> bool | None:
        """True for --compile, False for --no-compile, else None. ConfigError for both."""
        if self.compile and self.no_compile:
            raise ConfigError("--compile and --no-compile are both given; give one of them.")
        return self.compile or (False if self.no_compile else None)

    def changes(
        self, flags: dict[str, Any], kind: type | None = None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Recipe fields from --set and from the options in `flags`, and the names in --set.

        ConfigError for a field that both give.
        """
        found, given = parse_settings(self.set, kind), self.given
        by_hand = tuple(found)
        for name, value in {"seed": self.seed, "batch": self.batch, **flags}.items():
            flag = name if name in given else "quick" if name == "steps" and self.quick else None
            if flag and name in found:
                raise ConfigError(
                    f"--set {name} and --{flag} both give the {name}; give one of them."
                )
            if flag or (name in ("method", "seed") and name not in found):
                found[name] = value
        return found, by_hand

    def refuse_two_lengths(self) -> None:
        """ConfigError for --quick with --steps."""
        if self.quick:
            self.refuse(["steps"], "and --quick both say how many steps; give one of them.")


def _methods(default: str) -> str:
    from cfm_lite.methods import METHODS  # for --help alone: torch takes a second to load

    return f"(one of {', '.join(METHODS)}; default: {default})"


@dataclass
class Train(Training):
    """Train one recipe with one method. Its folder gets config.json, log.jsonl, checkpoints and
    samples.png.
    """

    recipe: Positional[
        Literal[
            "toy",
            "digits",
            "digits_sit",
            "mnist",
            "fashion_mnist",
            "mnist_sit",
            "cifar10",
            "cifar10_sit",
            "words",
        ]
    ] = "digits"
    """The recipe: data set, network and settings."""
    method: Annotated[str, arg(help_behavior_hint=_methods)] = "fm"
    """The method: what is added to flow matching."""

    def work(self) -> None:
        from cfm_lite import runs
        from cfm_lite.cli.samples import SHOWN, drawing, sample_file
        from cfm_lite.data.datasets import dataset
        from cfm_lite.runs.reads import check_read
        from cfm_lite.runs.recipe import check_speed, recipe
        from cfm_lite.runs.sampling import settings_of

        self.refuse_two_lengths()
        steps = 50 if self.quick else self.steps
        changes, by_hand = self.changes({"method": self.method, "steps": steps})
        chosen = recipe(self.recipe, **changes)
        check_read(chosen, by_hand)
        check_speed(chosen.precision, runs.pick_device(self.device))
        folder = runs.home_for(
            self.out or Path("runs") / f"{self.recipe}-{chosen.method}-{chosen.seed}", self.resume
        )
        data = dataset(chosen.dataset)
        done = runs.train(
            chosen,
            data,
            device=runs.pick_device(self.device),
            out=folder,
            resume=self.resume,
            save_every=1000 if self.save_every is None else self.save_every,
            sample_every=self.sample_every,
            draw=drawing(chosen, data, folder),
            compile=self.compiles,
        )
        print(f"{done.summary}; the run is in {folder}")
        run = runs.Run.open(folder, device=runs.pick_device(self.device))
        print(sample_file(run, None, settings_of(run, SHOWN, seed=chosen.seed)))
