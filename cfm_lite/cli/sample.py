"""cfm-lite sample: samples of any run, and a picture of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from cfm_lite.cli.arguments import (
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Seeded,
    show,
)
from cfm_lite.errors import ConfigError

__all__ = ["Sample"]


@dataclass
class Sample(Seeded):
    """Draw samples from a trained run: an npz with samples and labels, and a picture.

    Points and small images go into one file. Images of a run on latents go into a folder, and it
    grows when you ask for more.
    """

    grows: ClassVar[bool] = False  # then the first texts alone are a beginning

    checkpoint: Path = Path("runs/digits-fm-0")
    """A run's folder, one of its checkpoints, or an official file of weights. With only --prompt:
    the network that ships."""
    prompt: Annotated[tuple[str, ...], arg(metavar="TEXT", help_behavior_hint="")] = ()
    """What to draw, for a run on captions: --prompt "a red seven" "a pink two above a blue
    star"."""
    negative: OptionalText = None
    """What the pictures should not show, for a run on captions: --negative "a blue star"."""
    num: OptionalInt = None
    """How many samples (default: 100; with --prompt 4 of each). In a folder only missing ones are
    drawn."""
    labels: str = "turn"
    """The classes: turn (one after the other), random, or some in turn, such as 3,7."""
    steps: OptionalInt = None
    """Steps of the solver (default: the recipe's)."""
    solver: Annotated[
        Literal["euler", "midpoint", "heun", "rk4", "sde"] | None,
        arg(metavar="SOLVER", help_behavior_hint=""),
    ] = None
    """For an ODE: euler, midpoint, heun or rk4; sde is Euler-Maruyama (default: the recipe's)."""
    guidance: OptionalFloat = None
    """Scale of classifier-free guidance (default: the recipe's; 1 means no guidance)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The times between which guidance acts: 0 is noise, 1 is data."""
    debias: bool = False
    """Undo the change that repulsion makes to the velocity: aim at FM's optimum again."""
    average: Literal["ema", "ema2", "model"] = "ema"
    """The network: ema (average), ema2 (for a run with --set ema2=0.99), or model (not
    averaged)."""
    out: OptionalPath = None
    """The npz, or a folder for latents (default: samples.npz or samples/ in the run's folder; of
    the network that ships, in the current one). For captions of pixels also FILE.png: only the
    picture."""

    def work(self) -> None:
        from cfm_lite import runs
        from cfm_lite._internal.checks import check_count
        from cfm_lite.engine.parallel import joined
        from cfm_lite.runs.sampling import in_parts, settings_of

        if self.num is not None:
            check_count("num", self.num)
            if self.num < len(self.prompt) and not self.grows:
                raise ConfigError(
                    f"--num is {self.num} and --prompt has {len(self.prompt)} texts; use --num "
                    f"{len(self.prompt)} at least, or leave it out."
                )
        if self.quick:
            self.refuse(["num"], "and --quick both say how many samples; give one of them.")
        where = runs.pick_device(self.device)
        with joined(where) as world:
            run = self.opened(world.place(where))
            few = 16 if in_parts(run) else 20
            settings = settings_of(
                run,
                max(few, len(self.prompt)) if self.quick else self.num or self.by_itself or 100,
                seed=self.seed,
                solver=self.solver,
                steps=self.steps,
                guidance=self.guidance,
                interval=self.interval,
                debias=self.debias,
                labels=self.labels,
                prompts=self.prompts,
                negative=self.negative,
                batch=self.at_once,
            )
            self.refuse_idle(run, settings)
            if in_parts(run):
                from cfm_lite.scale.commands import sample_command

                show(
                    sample_command(run, self.checkpoint, self.out, settings, world, self.where_vae)
                )
                return
            from cfm_lite.cli.samples import sample_file

            show(world.on_main(lambda: sample_file(run, self.out, settings)))

    def opened(self, device: Any) -> Any:
        """The run of --checkpoint; with --prompt and without --checkpoint the shipped network."""
        from cfm_lite import pretrained, runs

        if not self.prompt:
            self.refuse(["prompt"], "needs a text to draw, such as --prompt 'a red seven'.")
        if self.prompt and "checkpoint" not in self.given:
            self.refuse(
                ["average", "format", "model", "text", "vae"],
                "is for a run or a file of weights, and without --checkpoint the network that "
                "ships draws; leave it out.",
            )
            return pretrained.run_of("words", device)
        if "checkpoint" not in self.given:
            self.refuse(
                ["negative"],
                "is for pictures of captions; give --prompt TEXT too, or a run on captions with "
                "--checkpoint RUN.",
            )
        official = self.official
        if not runs.is_file_of_weights(self.checkpoint):  # then `refuse_idle` says so
            official = {name: official[name] for name in official if name == "text"}
        return runs.Run.open(self.checkpoint, average=self.average, device=device, **official)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is drawn, for a run on captions."""
        return self.prompt

    @property
    def by_itself(self) -> int:
        """How many samples the captions ask for without --num; 0 without captions."""
        return 4 * len(self.prompt)

    @property
    def at_once(self) -> int | None:
        """How many samples are drawn at once, if `scale sample` says so."""
        return None

    @property
    def official(self) -> dict[str, Any]:
        """What an official file holds. `scale sample` asks; here it is a SiT-XL/2."""
        return {}

    @property
    def where_vae(self) -> str | None:
        """The new place of the VAE of the latents, if it has moved."""
        return None

    def refuse_idle(self, run: Any, settings: Any) -> None:
        """Raise ConfigError for an option that would do nothing with this run."""
        if run.spec is not None and run.spec.condition == "captions":
            self.refuse(
                ["labels"], "is for a run on classes, and this one draws captions; give --prompt."
            )
        else:
            self.refuse(
                ["prompt", "negative"],
                "is for a run on captions, and this one has classes; give --labels.",
            )
        if settings.guidance == 1:
            self.refuse(
                ["interval", "negative"],
                "has no effect, because a scale of 1 means no guidance; give another --guidance "
                "too.",
            )
