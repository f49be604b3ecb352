"""The command line: cfm-lite demo | train | sample | evaluate | compare | prepare | export.

Each command is a typed dataclass; its docstring is its help. An error of cfm_lite is one line on
stderr and its exit code (2 wrong argument, 3 data, 4 checkpoint, 5 divergence, 6 disk full; 130 and
143 after Ctrl-C and SIGTERM); --debug shows where.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from cfm_lite._internal.places import check_file
from cfm_lite._internal.terminal import run_command
from cfm_lite.cli.arguments import Common, FullScale, names_of, parse_settings, show
from cfm_lite.errors import ConfigError

__all__ = ["Compare", "Demo", "Evaluate", "Export", "Prepare", "Sample", "Train", "main"]

Suite = Literal["toy", "digits", "mnist", "cifar10"]
Name = Literal["toy", "digits", "digits_sit", "mnist", "cifar10", "imagenet"]
Data = Literal["digits", "mnist", "cifar10", "cifar10-jpeg75", "imagenet"]


def _given(value: Any, otherwise: Any) -> Any:
    """`value`, or `otherwise` where none was given: a 0 is not none, it is refused later."""
    return otherwise if value is None else value


def _on_the_cpu(device: str, what: str) -> None:
    """Raise ConfigError for a device that would not be used."""
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"--device {device} would change nothing: {what} on the CPU; leave it out."
        )


@dataclass
class Demo(Common):
    """Train FM, ΔFM, VeCoR and dispersive on real digits from one starting point, draw, and print a
    table (90 s on two cores).
    """

    out: Path = Path("runs/demo")
    """Where samples.png, fields.png, quality_vs_steps.png and metrics.json go."""

    def work(self) -> None:
        from cfm_lite.demo import demo

        print(demo(self.out, seed=self.seed, device=self.device, quick=self.quick))


@dataclass
class Train(Common):
    """Train one recipe with one method; leaves config.json, log.jsonl, checkpoints and samples.png
    in its folder.
    """

    recipe: Positional[Name] = "digits"
    method: str = "fm"
    """fm, delta_fm, vecor, vecor_latent, dispersive or contrastive. For imagenet a preset: sit, delta_fm, vecor, dispersive,
    dispersive_torch, repa, repa_delta_fm or repa_vecor."""
    steps: int | None = None
    """Training steps (default: the recipe's)."""
    set: tuple[str, ...] = ()
    """Any other recipe field, as name=value: --set lr=1e-3 weight=0.1 perturb=cutmix."""
    out: Path | None = None
    """The run's folder (default: runs/RECIPE-METHOD-SEED)."""
    resume: bool | Literal["auto"] = False
    """Go on from the newest valid checkpoint in the folder; --resume auto starts where there is none yet."""
    save_every: int | None = None
    """Steps between checkpoints (default: 1000, for imagenet 10000)."""
    sample_every: int = 0
    """Steps between pictures of samples of the average, samples-step-N.png in the run's folder (0: only at the end)."""
    batch: int | None = None
    """The batch, over all ranks and micro-batches (default: the recipe's)."""
    full: Annotated[FullScale, arg(name="")] = field(default_factory=FullScale)
    """For imagenet."""

    def work(self) -> None:
        if self.quick:
            self.refuse(["steps"], "and --quick both say how many steps; give one of them.")
        if self.recipe == "imagenet":
            self._run_imagenet()
            return
        self.refuse(
            names_of(FullScale),
            f"is for train imagenet, and this is train {self.recipe}; leave it out.",
        )
        from cfm_lite import runs
        from cfm_lite.cli.actions import drawing, sample_run
        from cfm_lite.data.datasets import dataset
        from cfm_lite.runs.reads import check_read
        from cfm_lite.runs.recipe import recipe

        changes, by_hand = self._changes({"steps": 50 if self.quick else self.steps})
        chosen = recipe(self.recipe, **changes)
        check_read(chosen, by_hand)
        folder = runs.home_for(
            self.out or Path("runs") / f"{self.recipe}-{chosen.method}-{chosen.seed}", self.resume
        )
        data = dataset(chosen.dataset)
        device = runs.pick_device(self.device)
        how = {
            "save_every": _given(self.save_every, 1000),
            "sample_every": self.sample_every,
            "draw": drawing(chosen, data, folder),
        }
        done = runs.train(chosen, data, device=device, out=folder, resume=self.resume, **how)
        print(f"{done.summary}; the run is in {folder}")
        print("samples in {} and {}".format(*sample_run(folder, None, 100, self.device)))

    def _changes(
        self, flags: dict[str, Any], kind: type | None = None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Recipe fields from --set and from options of their own, and the names in --set;
        ConfigError for what both give.
        """
        changes, given = parse_settings(self.set, kind), self.given
        by_hand = tuple(changes)
        for name, value in {
            "method": self.method,
            "seed": self.seed,
            "batch": self.batch,
            **flags,
        }.items():
            flag = name if name in given else "quick" if name == "steps" and self.quick else None
            if flag and name in changes:
                raise ConfigError(
                    f"--set {name} and --{flag} both give the {name}; give one of them."
                )
            if flag or (name in ("method", "seed") and name not in changes):
                changes[name] = value
        return changes, by_hand

    def _run_imagenet(self) -> None:
        from cfm_lite.runs.imagenet import ImageNet
        from cfm_lite.scale.commands import train_command
        from cfm_lite.scale.official import is_file_of_weights

        full = self.full
        if full.dry_run:
            self.refuse(
                ["resume", "save_every", "sample_every", "log", "log_every"],
                "would do nothing: --dry-run saves and logs nothing; leave it out.",
            )
        else:
            self.refuse(
                ["price"], "is what a device-hour costs, which --dry-run tells; give --dry-run too."
            )
            self.refuse(
                ["ranks"],
                "is for --dry-run: a run has as many ranks as torchrun starts; leave it out, or "
                "give --dry-run too.",
            )
        if full.start is None or not is_file_of_weights(full.start):
            self.refuse(
                ["format"],
                "says whose official file --start is, and there is none; leave it out, or give "
                "--start FILE.",
            )
        changes, by_hand = self._changes(
            {"steps": 20 if self.quick else self.steps, "size": full.size}, ImageNet
        )
        if "method" not in by_hand:
            changes.pop("method")  # it is the preset's name
        how = {
            "resume": self.resume, "micro_batch": full.micro_batch, "compile": full.compiles, "parallel": full.parallel,
            "checkpointing": full.checkpointing, "images": full.images, "features": full.features, "teacher": full.teacher,
            "start": full.start, "format": full.format, "log": full.log, "by_hand": by_hand,
            "save_every": _given(self.save_every, 10_000), "sample_every": self.sample_every, "log_every": full.log_every,
            "dry_run": full.dry_run, "price": full.price, "ranks": full.ranks,
        }  # fmt: skip
        show(
            train_command(
                self.method, full.model, full.latents, self.out, self.device, changes, **how
            )
        )


@dataclass
class Sample(Common):
    """Draw samples from a trained run: an npz with samples and labels, and a picture."""

    checkpoint: Path = Path("runs/digits-fm-0")
    """A run's folder, or one of its checkpoints."""
    num: int = 100
    """How many samples; a folder of samples for imagenet grows to them, and only what is missing is drawn."""
    labels: str = "turn"
    """Which classes: turn, one after the other; random, as in the papers; or some, such as 3,7, in turn."""
    steps: int | None = None
    """Steps of the solver (default: the recipe's)."""
    solver: Literal["euler", "midpoint", "heun", "rk4"] | None = None
    """The fixed-step solver (default: the recipe's)."""
    guidance: float | None = None
    """Scale of classifier-free guidance (default: the recipe's; 1 is none)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The times, 0 noise to 1 data, between which guidance acts."""
    sde: bool = False
    """Euler-Maruyama on the SDE instead of an ODE solver."""
    debias: bool = False
    """Undo the bias of delta_fm or vecor."""
    average: Literal["ema", "ema2", "model"] = "ema"
    """Which network: the average, the second average of a run that kept one (--set ema2=0.99), or the model itself."""
    out: Path | None = None
    """The npz file (default: samples.npz in the run's folder); for imagenet a folder (default: samples/ there)."""
    batch: int = 64
    """imagenet: images drawn at once; it decides the noise, the number of ranks does not."""
    vae: str | None = None
    """imagenet: where the VAE of the latents is now (default: the name or folder it had)."""
    format: Literal["sit", "repa"] = "sit"
    """imagenet: where --checkpoint is an official file, whose it is: sit, or repa (DeltaFM's too)."""
    model: str = "SiT-XL/2"
    """imagenet: and what is in it."""

    def work(self) -> None:
        from cfm_lite import runs
        from cfm_lite._internal.checks import check_count
        from cfm_lite.cli.actions import sample_run
        from cfm_lite.runs.imagenet import imagenet
        from cfm_lite.scale.official import is_file_of_weights

        check_count("num", self.num)
        if self.quick:
            self.refuse(["num"], "and --quick both say how many samples; give one of them.")
        if self.sde:
            self.refuse(
                ["solver"], "is for an ODE, and --sde is the solver of the SDE; give one of them."
            )
        official = is_file_of_weights(self.checkpoint)
        recipe = imagenet("sit") if official else runs.saved_recipe(self.checkpoint)
        if official:
            self.refuse(
                ["average"],
                f"chooses among the networks of a run of ours, and {self.checkpoint} holds one "
                "network; leave it out.",
            )
        else:
            self.refuse(
                ["format", "model"],
                f"says what an official file holds, and {self.checkpoint} is a run of ours; leave "
                "it out.",
            )
        scale = _given(self.guidance, recipe.guidance)
        if scale == 1:
            self.refuse(
                ["interval"],
                "is where guidance acts, and a scale of 1 is none; give another --guidance too.",
            )
        if recipe.dataset == "imagenet":
            self._run_imagenet(recipe)
            return
        self.refuse(
            ["batch", "vae"],
            f"is for runs on imagenet, and {self.checkpoint} is a run on {recipe.dataset}; leave "
            "it out.",
        )
        changes = {
            "solver": self.solver,
            "guidance": self.guidance,
            "sample_steps": self.steps,
            "seed": self.seed,
        }
        how = {
            "sde": self.sde,
            "interval": self.interval,
            "debias": self.debias,
            "labels": self.labels,
            "average": self.average,
        }
        paths = sample_run(
            self.checkpoint, self.out, 20 if self.quick else self.num, self.device, **how, **changes
        )
        print("samples in {} and {}".format(*paths))

    def _run_imagenet(self, recipe: Any) -> None:
        from cfm_lite.scale.commands import sample_command

        settings: dict[str, Any] = {
            "num": 16 if self.quick else self.num, "seed": self.seed, "solver": "sde" if self.sde else self.solver or recipe.solver,
            "steps": _given(self.steps, recipe.sample_steps), "guidance": _given(self.guidance, recipe.guidance),
            "interval": self.interval, "debias": self.debias, "batch": self.batch, "labels": self.labels, "average": self.average,
        }  # fmt: skip
        show(
            sample_command(
                self.checkpoint,
                self.out,
                self.device,
                self.vae,
                self.format,
                self.model,
                **settings,
            )
        )


@dataclass
class Evaluate(Common):
    """Measure samples with the data set's judge: accuracy, Fréchet distance, precision, recall,
    nearest-neighbour ratio.

    With --reference: FID, sFID, inception score, precision and recall on the features of
    Inception-v3.
    """

    samples: Path = Path("runs/digits-fm-0/samples.npz")
    """An npz written by cfm-lite sample, its folder, or the run; for imagenet also a folder of images, flat or not."""
    reference: Path | None = None
    """imagenet: what to measure against: statistics of a whole set (mu, sigma, mu_s, sigma_s, as ADM, pytorch-fid and EDM save
    them), images (arr_0 of an npz, a folder, a tar), or both in one npz."""
    inception: str | None = None
    """imagenet: a file with Inception-v3's weights (default: fetched once), or standin for a random network."""
    out: Path | None = None
    """Where the rows go (default: metrics.json beside the samples)."""

    def work(self) -> None:
        self.refuse(
            ["seed", "quick"],
            "would change nothing: samples are measured without drawing anything; leave it out.",
        )
        from cfm_lite.runs import samples_of

        self.samples = samples_of(self.samples)
        if self.out is not None:
            check_file(
                self.out,
                (".json",),
                inputs=[path for path in (self.samples, self.reference) if path is not None],
            )
        if self.reference is not None:
            from cfm_lite.scale.commands import evaluate_command

            print(
                evaluate_command(
                    self.samples, self.reference, self.inception, self.out, self.device
                )
            )
            return
        self.refuse(
            ["inception"],
            "is read only with --reference, for the metrics of imagenet; give that too, or leave "
            "it out.",
        )
        _on_the_cpu(self.device, "these samples are measured")
        from cfm_lite.cli.actions import evaluate_file
        from cfm_lite.evaluate.card import told

        rows, path = evaluate_file(self.samples, self.out)
        print("\n".join(told(rows[0])))
        for row in rows:
            print(f"{row['metric']:<16} {row['value']:.4f}")
        print(f"rows in {path}")


@dataclass
class Compare(Common):
    """Run a paired experiment over several seeds, and report differences to FM with their
    intervals.

    It can be stopped at any time; the same command goes on. Groups are core and the suite's
    ablations, such as weight.
    """

    suite: Positional[Suite | None] = None
    """toy, digits, mnist or cifar10 (default: digits; with --report all that is there)."""
    group: tuple[str, ...] = ("core",)
    """Which tables to fill: core, any of the suite's ablations, or all."""
    seeds: int | None = None
    """How many seeds, counted from --seed (default: the group's own number)."""
    arms: tuple[str, ...] = ()
    """Only these arms of the groups, such as fm fm_scaled delta_fm (default: all)."""
    workers: int | None = None
    """Jobs at once on a CPU, each with one thread (default: as many as there are cores; with --quick 1)."""
    set: tuple[str, ...] = ()
    """Recipe fields that all arms share, as name=value: --set steps=500 weight=0.1."""
    out: Path = Path("data/results")
    """Where SUITE.json, SUITE.GROUP.json and SUITE.info.json go."""
    list: bool = False
    """Only list the jobs that are left, with about how long they take."""
    costs: bool = False
    """Only time a training step of each arm of the core, all in turn in one process, into SUITE.costs.json."""
    report: bool = False
    """Only print the report of a suite; without one write README.md and the figures of all suites from the JSON files alone."""

    def work(self) -> None:
        from cfm_lite._internal.checks import check_count
        from cfm_lite.cli.actions import compare_suite, report_suite, time_steps

        if self.report:
            self.refuse(
                names_of(Compare, "suite", "out", "report", "debug"),
                "would change nothing: --report only reads what is there.",
            )
            print(report_suite(self.suite, self.out))
            return
        suite = self.suite or "digits"
        changes = parse_settings(self.set)
        own = sorted({"dataset", "method", "seed", "sample_steps"} & set(changes))
        if own:
            raise ConfigError(
                f"--set {own[0]} cannot be given here: the suite decides it. Use --seed and "
                "--seeds, or another suite."
            )
        if self.costs:
            self.refuse(
                ["group", "seeds", "arms", "workers", "list", "seed"],
                "would change nothing: --costs times the core's arms in turn.",
            )
            print(
                time_steps(suite, self.out, device=self.device, changes=changes, quick=self.quick)
            )
            return
        seeds = (
            None
            if self.seeds is None
            else range(self.seed, self.seed + check_count("seeds", self.seeds))
        )
        chosen = {
            "groups": self.group,
            "seeds": seeds,
            "first_seed": self.seed,
            "arms": self.arms,
            "changes": changes,
        }
        how = {
            "quick": self.quick,
            "device": self.device,
            "workers": self.workers,
            "only_list": self.list,
            "command": self.command,
        }
        print(compare_suite(suite, out=self.out, **chosen, **how))

    @property
    def command(self) -> str:
        """The command line that does the same, without folders."""
        words = ["cfm-lite compare", self.suite or "digits"]
        for name in ("group", "seeds", "arms", "set", "seed", "quick"):
            value, default = getattr(self, name), Compare.__dataclass_fields__[name].default
            if value != default:
                words += [
                    f"--{name}",
                    *(
                        map(str, value)
                        if isinstance(value, tuple)
                        else []
                        if value is True
                        else [str(value)]
                    ),
                ]
        return " ".join(words)


@dataclass
class Export(Common):
    """Write the averaged network of an ImageNet run as a file for the official programs of SiT or
    REPA (DeltaFM).
    """

    checkpoint: Path = Path("runs/imagenet-SiT-XL-2-vecor-0")
    """A run's folder, or one of its checkpoints."""
    format: Literal["sit", "repa"] = "sit"
    """For which program: sit, or repa (DeltaFM's too), whose time and velocity run the other way."""
    out: Path = Path("exported.safetensors")
    """A .safetensors, or a .pt with the key "ema"."""

    def work(self) -> None:
        self.refuse(
            ["seed", "quick"],
            "would change nothing: weights are written as they are; leave it out.",
        )
        _on_the_cpu(self.device, "weights are written")
        from cfm_lite.scale.official import export_run

        print(f"{self.format} weights in {export_run(self.checkpoint, self.format, self.out)}")


@dataclass
class Prepare(Common):
    """Fetch a data set, or check that its files are whole; for imagenet, encode a folder of images.

    Several processes may work at once (torchrun starts them), and a stopped one goes on where it
    was.
    """

    dataset: Positional[Data] = "mnist"
    images: Path | None = None
    """imagenet: a folder of class folders, a tar of one, or a tar of one tar a class (default: the 63 samples under CFM_LITE_DATA)."""
    out: Path | None = None
    """imagenet: where the latents go."""
    size: int = 256
    """imagenet: pixels a side, 256 or 512."""
    vae: str = "sd-vae-ft-ema"
    """imagenet: sd-vae-ft-ema, sd-vae-ft-mse, any of diffusers as OWNER/NAME (a pipeline's as OWNER/NAME/vae), a folder in
    diffusers' layout, or tiny (random, for trying out)."""
    batch: int = 32
    """imagenet: images encoded at once."""
    rows: int = 1024
    """imagenet: images per shard."""
    workers: int = 4
    """imagenet: threads that decode images."""
    latents: Path | None = None
    """imagenet: encode REPA's features of the images of these latents, with the teacher, in place of latents."""
    teacher: str | None = None
    """imagenet, with --latents: a file with the teacher's weights, or random (default: timm's DINOv2-B, fetched once)."""
    mirrors: int = 1
    """imagenet, with --latents: 2 encodes the mirror images too, which REPA's recipes do not use."""

    def work(self) -> None:
        self.refuse(
            ["seed", "quick"],
            "would change nothing: data are prepared without drawing anything; leave it out.",
        )
        if self.dataset != "imagenet":
            self.refuse(
                names_of(Prepare, "dataset", *names_of(Common)),
                f"is for prepare imagenet, and this is prepare {self.dataset}.",
            )
            _on_the_cpu(self.device, "nothing is computed; files are fetched")
        elif self.out is None:
            raise ConfigError(
                "there is no place for the latents or features; give a folder with --out FOLDER."
            )
        elif self.latents is None:
            self.refuse(
                ["teacher", "mirrors"],
                "is for the teacher's features of some latents; give --latents LATENTS too.",
            )
        else:
            self.refuse(
                ["size", "vae", "rows", "workers"],
                "is for latents, and with --latents features are made; leave it out.",
            )
        if self.latents is not None and self.out is not None:
            from cfm_lite.scale.commands import features_command

            settings = {"mirrors": self.mirrors, "batch": self.batch}
            print(
                features_command(
                    self.latents, self.images, self.out, self.device, self.teacher, **settings
                )
            )
            return
        if self.out is not None:
            from cfm_lite.scale.commands import prepare_command

            settings = {
                "size": self.size,
                "batch": self.batch,
                "rows": self.rows,
                "workers": self.workers,
            }
            print(prepare_command(self.images, self.out, self.device, self.vae, **settings))
            return
        from cfm_lite.data import cifar10, digits, mnist

        if self.dataset in cifar10.NAMES:
            path = cifar10.download() if self.dataset == "cifar10" else None
            splits = [len(cifar10.load(split, name=self.dataset)[0]) for split in ("train", "test")]
            print(
                f"{self.dataset}: {splits[0]} + {splits[1]} images, "
                f"verified{f', in {path}' if path else ''}"
            )
            return
        if self.dataset == "digits":
            print(
                f"digits: {len(digits.load('all')[0])} images ship inside scikit-learn; nothing to "
                "fetch."
            )
            return
        folder = mnist.download()
        print(
            f"mnist: {len(mnist.load('train')[0])} + {len(mnist.load('test')[0])} images, "
            f"verified, in {folder}"
        )


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Export, subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (and, called as a script, exits with it)."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = (
        words[1:] if words[:1] == ["--"] else words
    )  # torchrun ... -m cfm_lite.cli -- sample --num 9: keeps torchrun off our options
    return run_command(Command, _resume_with_a_value(words), __doc__)


def _resume_with_a_value(words: Sequence[str]) -> list[str]:
    """`words` with --resume alone, and --no-resume, spelled out: a switch that may also be given as
    `--resume auto`.
    """
    switches = {"--resume": "True", "--no-resume": "False"}
    values = ("auto", "True", "False")
    found: list[str] = []
    for word, following in zip(words, [*words[1:], ""]):
        alone = word in switches and not (word == "--resume" and following in values)
        found += ["--resume", switches[word]] if alone else [word]
    return found
