"""cfm-lite scale prepare | train | sample: what only many images or many devices need.

torchrun starts a command on several devices; the batch stays the same.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from cfm_lite.cli.arguments import (
    OnDevice,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    show,
)
from cfm_lite.cli.sample import Sample
from cfm_lite.cli.train import Training
from cfm_lite.errors import ConfigError

__all__ = ["ScalePrepare", "ScaleSample", "ScaleTrain"]


@dataclass
class ScalePrepare(OnDevice):
    """Encode a folder of images to latents, or with --latents their images to REPA's features.

    Several processes may work at once, if torchrun starts them. A stopped one continues where it
    was.
    """

    again: ClassVar[str] = "The same command resumes it."

    images: OptionalPath = None
    """A folder of class folders, a tar of it, or of one tar a class (default: the 63 samples)."""
    out: OptionalPath = None
    """The folder for the latents or the features."""
    captions: OptionalPath = None
    """Captions of the images, in place of classes: MS-COCO's JSON, JSON lines with the keys
    file_name and text (or image and caption), or a TSV of caption and file."""
    size: int = 256
    """Pixels a side, such as 256 or 512."""
    vae: str = "sd-vae-ft-ema"
    """sd-vae-ft-ema, sd-vae-ft-mse, OWNER/NAME of diffusers, a folder, or tiny (for trials)."""
    batch: int = 32
    """Images encoded at once."""
    rows: int = 1024
    """Images per shard."""
    workers: int = 4
    """Threads that decode images."""
    latents: OptionalPath = None
    """Encode REPA's features of the images of these latents, in place of latents."""
    teacher: OptionalText = None
    """With --latents: a file of the teacher's weights, or random (default: timm's DINOv2-B)."""
    mirrors: int = 1
    """With --latents: 2 also encodes the mirror images. REPA's recipes do not use them."""

    def work(self) -> None:
        if self.out is None:
            raise ConfigError(
                "there is no place for the latents or features; give a folder with --out FOLDER."
            )
        from cfm_lite.scale import commands

        if self.latents is None:
            self.refuse(
                ["teacher", "mirrors"],
                "is for the teacher's features of some latents; give --latents LATENTS too.",
            )
            names = ("captions", "size", "batch", "rows", "workers")
            settings = {name: getattr(self, name) for name in names}
            show(commands.prepare_command(self.images, self.out, self.device, self.vae, **settings))
            return
        self.refuse(
            ["captions", "size", "vae", "rows", "workers"],
            "is for latents, and with --latents features are made; leave it out.",
        )
        settings = {"mirrors": self.mirrors, "batch": self.batch}
        show(
            commands.features_command(
                self.latents, self.images, self.out, self.device, self.teacher, **settings
            )
        )


def _presets(default: str) -> str:
    from cfm_lite.runs.imagenet import PRESETS  # for --help alone

    return f"(one of {', '.join(PRESETS)}; default: {default})"


@dataclass
class ScaleTrain(Training):
    """Train on latents with a paper's preset, on as many devices as torchrun started."""

    recipe: Positional[Literal["imagenet", "mscoco", "cc3m"]] = "imagenet"
    """The data: imagenet, a SiT by classes; mscoco or cc3m, an MMDiT by captions."""
    method: Annotated[str, arg(help_behavior_hint=_presets)] = "sit"
    """The preset of a paper."""
    latents: OptionalPath = None
    """The folder that cfm-lite scale prepare wrote."""
    model: OptionalText = None
    """SiT-S, -B, -L or -XL with /2, /4 or /8, or MMDiT (default: SiT-XL/2, of captions MMDiT);
    SiT-Ti/2 and MMDiT-Ti/2 are tiny, for trials."""
    size: OptionalInt = None
    """Pixels a side, 256 or 512 (default: the latents')."""
    dry_run: bool = False
    """Check everything and try ten steps; print speed, memory and the time of the whole run."""
    log: Literal["json", "tensorboard"] = "json"
    """tensorboard writes its files beside log.jsonl."""
    log_every: int = 100
    """Steps between logged lines."""
    price: OptionalFloat = None
    """With --dry-run: the price of an hour of one device, to print that of the run."""
    ranks: OptionalInt = None
    """With --dry-run: the number of devices of the run (default: those that the dry run has)."""
    micro_batch: OptionalInt = None
    """Images in a forward pass of one rank, in whole shards (default: as many as fit)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks: ddp copies everything to each, fsdp (FSDP2) shares it among them."""
    checkpointing: bool = False
    """Compute blocks twice: needs a fifth of the memory for activations, and a third more time."""
    images: OptionalPath = None
    """For repa: the folder of images that the latents were made of."""
    features: OptionalPath = None
    """For repa, in place of the images: what cfm-lite scale prepare --latents wrote."""
    start: OptionalPath = None
    """Fine-tune an official file (.pt, .pth, .safetensors; see --format), or a run of cfm_lite."""
    format: Literal["sit", "repa"] = "sit"
    """The program that wrote the file of --start: sit or repa (also DeltaFM)."""
    teacher: OptionalText = None
    """For repa: a file of the teacher's weights, or random (default: timm's, downloaded once)."""
    text: OptionalText = None
    """For captions: their encoder, a CLIP on the hub or in a folder (default: ViT-L/14)."""

    def work(self) -> None:
        from cfm_lite.runs import is_file_of_weights
        from cfm_lite.runs.imagenet import ImageNet
        from cfm_lite.scale.commands import train_command

        self.refuse_two_lengths()
        if self.dry_run:
            self.refuse(
                ["resume", "save_every", "sample_every", "log", "log_every"],
                "would do nothing: --dry-run saves and logs nothing; leave it out.",
            )
        else:
            self.refuse(
                ["price"], "is the price of a device-hour, for --dry-run only; give --dry-run too."
            )
            self.refuse(
                ["ranks"],
                "is for --dry-run: a run has as many ranks as torchrun starts; leave it out, or "
                "give --dry-run too.",
            )
        if self.start is None or not is_file_of_weights(self.start):
            self.refuse(
                ["format"],
                "names the program that wrote the official file of --start, and no such file was "
                "given; leave it out, or give --start FILE.",
            )
        steps = 20 if self.quick else self.steps
        changes, by_hand = self.changes({"steps": steps, "size": self.size}, ImageNet)
        how = {
            name: getattr(self, name)
            for name in (
                *("dry_run", "price", "ranks", "log", "start", "format", "resume", "micro_batch"),
                "text",
                *("parallel", "checkpointing", "images", "features", "teacher"),
                *("sample_every", "log_every"),
            )
        }
        how["compile"] = self.compiles
        how["save_every"] = 10_000 if self.save_every is None else self.save_every
        how["by_hand"] = by_hand
        show(
            train_command(
                self.recipe,
                self.method,
                self.model,
                self.latents,
                self.out,
                self.device,
                changes,
                **how,
            )
        )


@dataclass
class ScaleSample(Sample):
    """Draw samples as `sample` does, with the options that many images and official files need."""

    again: ClassVar[str] = "The same command resumes it."
    grows: ClassVar[bool] = True

    batch: OptionalInt = None
    """Samples drawn at once (default: 1000, for latents 64). For latents it changes the noise."""
    vae: OptionalText = None
    """The place of the VAE of the latents, if it has moved."""
    format: Literal["sit", "repa"] = "sit"
    """The program that wrote the official file of --checkpoint: sit or repa (also DeltaFM)."""
    model: str = "SiT-XL/2"
    """The network in the official file."""
    captions: OptionalPath = None
    """For a run on captions: a captions file (see scale prepare); one random caption an image."""
    text: OptionalText = None
    """The place of the encoder of the captions, if it has moved."""

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        if self.captions is None:
            return self.prompt
        if self.prompt:
            raise ConfigError("--prompt and --captions both say what to draw; give one of them.")
        from cfm_lite.data.latents.captions import one_each

        said = one_each(self.captions, self.seed)
        if self.num is not None and self.num > len(said):
            raise ConfigError(
                f"--num is {self.num:,} and {self.captions} has captions of {len(said):,} images, "
                f"one sample each; use --num {len(said)} at most."
            )
        return said

    def opened(self, device: Any) -> Any:
        read = "is for a run whose captions a text encoder reads"
        if "checkpoint" not in self.given:
            self.refuse(["captions"], f"{read}; give its folder with --checkpoint RUN.")
        run = super().opened(device)
        if run.spec.text is None:  # first: the captions are none that it can read
            self.refuse(
                ["captions"],
                f"{read}, and {self.checkpoint} is a run on {run.recipe.dataset}; leave it out.",
            )
        return run

    @property
    def by_itself(self) -> int:
        return super().by_itself or len(self.prompts)

    @property
    def at_once(self) -> int | None:
        return self.batch

    @property
    def official(self) -> dict[str, Any]:
        return {"format": self.format, "network": self.model, "text": self.text}

    @property
    def where_vae(self) -> str | None:
        return self.vae

    def refuse_idle(self, run: Any, settings: Any) -> None:
        super().refuse_idle(run, settings)
        if run.place is not None:
            self.refuse(
                ["format", "model"],
                f"says what an official file holds, and {self.checkpoint} is a run of cfm_lite; "
                "leave it out.",
            )
        if run.spec.vae is None:
            self.refuse(
                ["vae"],
                f"is for runs on latents, and {self.checkpoint} is a run on {run.recipe.dataset}; "
                "leave it out.",
            )
