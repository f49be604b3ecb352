"""The full scale, in latent space: the papers' recipes by name, at 256 and 512 pixels.

    imagenet("vecor", model="SiT-XL/2")          ImageNet, by its classes
    imagenet("repa_vecor", model="MMDiT")        MS-COCO, by its captions; dataset="cc3m" is CC3M

Recipe, objective and Trainer are those of the digits. The global batch is a setting; micro-batch,
accumulation and ranks only decide how it is computed. `shard` is the papers' batch per device:
negatives and dispersive batches stay inside it. `versus` lists our differences from the papers,
with the reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite import methods
from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite.data.batches import fitting
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.errors import ConfigError
from cfm_lite.methods import METHODS
from cfm_lite.models import SIT_CONFIGS, SiT
from cfm_lite.objective import Objective
from cfm_lite.runs.recipe import (
    FULL_SCALE,
    Recipe,
    Shaped,
    build_model,
    build_objective,
    build_trainer,
)
from cfm_lite.training import Trainer

__all__ = [
    "ALIGNED",
    "MODELS",
    "PRESETS",
    "TEXT_MODELS",
    "Given",
    "ImageNet",
    "build_imagenet_trainer",
    "imagenet",
    "preset_of",
    "versus",
]

# SiT-Ti/2 is ours, for trials on a laptop
_TINY = {"depth": 2, "hidden_size": 64, "patch_size": 2, "num_heads": 2}
MODELS: dict[str, dict[str, int]] = {**SIT_CONFIGS, "SiT-Ti/2": _TINY}
TEXT_MODELS: dict[str, dict[str, int]] = {  # the networks of captions
    "MMDiT": {"depth": 24, "hidden_size": 768, "patch_size": 2, "num_heads": 24},
    "MMDiT-Ti/2": _TINY,
}


@dataclass(frozen=True)
class ImageNet(Recipe):
    """A `Recipe` with what only the full scale has; `block` and `align_block` count from 1.

    Raises ConfigError for a network that does not fit the data set, a size below 1, and a batch
    that is no multiple of the shard.

    >>> ImageNet(batch=256, shard=32).network
    'SiT-XL/2'
    """

    dataset: str = "imagenet"
    model: str = "sit"
    network: str = "SiT-XL/2"  # its sizes stand in hidden_size, depth, num_heads and patch_size
    learn_sigma: bool = False
    size: int = 256  # pixels a side
    mirror: bool = True  # half of the rows are mirror images
    ema_warmup: bool = False
    align: float = 0.0  # REPA's weight; 0 is none
    align_block: int = 8
    teacher: str = "vit_base_patch14_dinov2.lvd142m"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dataset, str):  # another name is refused where the data are opened
            check_choice("dataset", self.dataset, FULL_SCALE)
        check_choice("network", self.network, MODELS | TEXT_MODELS)
        if (self.network in TEXT_MODELS) != (self.dataset in CAPTIONED):
            fit = TEXT_MODELS if self.dataset in CAPTIONED else MODELS
            raise ConfigError(
                f"the network is {self.network!r}, and {self.dataset} has "
                f"{'captions' if self.dataset in CAPTIONED else 'classes'}. Use --model with one "
                f"of {', '.join(fit)}."
            )
        object.__setattr__(self, "size", check_count("size", self.size))
        if self.batch % self.shard:
            hints = ", or ".join(fitting(self.batch, self.shard))
            raise ConfigError(
                f"batch is {self.batch}, which is not a multiple of shard = {self.shard}. Use "
                f"{hints}."
            )


# SiT (Ma et al. 2024) and what its official program sets
_SIT: dict[str, Any] = {
    "perturb": "channel_shuffle",
    "batch": 256,
    "shard": 32,
    "steps": 7_000_000,
    "lr": 1e-4,
    "clip": 0.0,
    "ema": 0.9999,
    "precision": "bf16",
    "sample_steps": 250,
}
# REPA's program, on which ΔFM and VeCoR were trained: gradients are clipped, images are not
# mirrored, 400,000 steps
_REPA: dict[str, Any] = {**_SIT, "steps": 400_000, "clip": 1.0, "mirror": False}
_ALIGN: dict[str, Any] = {**_REPA, "align": 0.5, "align_block": 8}
PRESETS: dict[str, dict[str, Any]] = {
    "sit": _SIT,
    "delta_fm": {**_REPA, "method": "delta_fm", "weight": 0.05},
    "vecor": {**_REPA, "method": "vecor", "weight": 0.05, "k": 1},
    "dispersive": {
        **_SIT,
        "steps": 400_000,
        "method": "dispersive",
        "spread": 0.5,
        "tau": 0.5,
        "shard": 16,
    },
    "dispersive_torch": {
        **_SIT,
        "steps": 400_000,
        "method": "dispersive",
        "spread": 0.25,
        "tau": 1.0,
    },
    "repa": _ALIGN,
    "repa_delta_fm": {**_ALIGN, "method": "delta_fm", "weight": 0.05},
    "repa_vecor": {**_ALIGN, "method": "vecor", "weight": 0.05, "k": 1},
}
# REPA's text-to-image program; VeCoR crops and resizes there, with guidance 2, and ΔFM's runs on
# CC3M took 400,000 steps, with guidance 1.5
_TEXT: dict[str, Any] = {
    **{"model": "mmdit", "perturb": "crop_resize", "steps": 150_000, "clip": 1.0},
    **{"mirror": False, "sample_steps": 50, "guidance": 2.0},
}
CAPTIONED: dict[str, dict[str, Any]] = {
    "mscoco": {**_TEXT, "dataset": "mscoco"},
    "cc3m": {**_TEXT, "dataset": "cc3m", "steps": 400_000, "guidance": 1.5},
}
ALIGNED = [name for name, settings in PRESETS.items() if "align" in settings]
_TRY: dict[str, Any] = {
    "batch": 32,
    "shard": 8,
    "steps": 200,
    "lr": 1e-3,
    "ema": 0.99,
    "precision": "float32",
    "sample_steps": 25,
}


def imagenet(method: str = "sit", *, model: str = "SiT-XL/2", **changes: Any) -> ImageNet:
    """The preset called `method` for the network `model`, with some fields changed.

    SiT-Ti/2 and MMDiT-Ti/2 are our own; they take small batches and few steps. For an unknown
    name, ConfigError names the nearest.

    >>> recipe = imagenet("vecor", model="SiT-B/2")
    >>> recipe.weight, recipe.hidden_size
    (0.05, 768)
    """
    check_choice("method", method, PRESETS)
    check_choice("model", model, MODELS | TEXT_MODELS)
    sizes, settings = (MODELS | TEXT_MODELS)[model], dict(PRESETS[method])
    if model in TEXT_MODELS:
        settings |= CAPTIONED.get(changes.get("dataset", "mscoco"), {})
    if model.endswith("-Ti/2"):
        settings |= _TRY
    depth = sizes["depth"]
    settings["block"] = depth if method == "dispersive_torch" else max(1, depth // 4)
    settings["align_block"] = min(depth, int(settings.get("align_block", 8)))
    return ImageNet(network=model, **sizes, **settings).changed(**changes)


def preset_of(recipe: ImageNet) -> str:
    """The name of the preset that a recipe was made from.

    Among the presets with its method and alignment, it is the one with the most equal fields. If
    there is none, the name is the method's, with "repa_" in front if the recipe aligns.

    >>> preset_of(imagenet("repa_vecor", lr=2e-4))
    'repa_vecor'
    """
    plain = f"{'repa_' if recipe.align else ''}{recipe.method}"
    of_kind = {
        name: settings
        for name, settings in PRESETS.items()
        if settings.get("method", "fm") == recipe.method
        and bool(settings.get("align")) == bool(recipe.align)
    }
    shared = {
        name: sum(getattr(recipe, field) == value for field, value in settings.items())
        for name, settings in of_kind.items()
    }
    return max(shared, key=lambda name: shared[name]) if shared else plain


def build_imagenet_objective(recipe: ImageNet, model: SiT, teacher: Any = None) -> Objective:
    """The objective of a recipe. With `align` > 0 it aligns with `teacher`, which must have the
    model's grid.

    Raises ConfigError for an alignment without a teacher.
    """
    plain = build_objective(recipe, model)
    if not recipe.align:
        return plain
    if teacher is None:
        raise ConfigError(
            f"align is {recipe.align:g} and there is no teacher; give the images with --images "
            "DIR, or features with --features DIR."
        )
    sees = teacher if isinstance(teacher, Given) else _Bytes(teacher)
    needed = methods.Needed(teacher=sees, hidden_size=recipe.hidden_size)
    return plain.plus(*METHODS["repa"].terms(recipe, needed))


@dataclass(frozen=True)
class Given:
    """Stands for a teacher whose features (B, T, dim) were computed before. They come with the
    batch.

    >>> Given(dim=768)(torch.zeros(2, 256, 768, dtype=torch.half)).dtype
    torch.float32
    """

    dim: int
    weights: str = ""  # the hash of the teacher's own

    def __call__(self, features: Tensor) -> Tensor:
        return features.float()


class _Bytes:
    """A teacher of images in [0, 1], made to take uint8 images (B, 3, H, W)."""

    def __init__(self, teacher: Any) -> None:
        self.teacher, self.dim = teacher, teacher.dim

    def __call__(self, images: Tensor) -> Tensor:
        return self.teacher(images.float() / 255)


def build_imagenet_trainer(
    recipe: ImageNet,
    data: Shaped,
    *,
    device: torch.device | str = "cpu",
    teacher: Any = None,
    world: World = ALONE,
    parallel: str = "ddp",
    compile: bool | None = None,
    model: nn.Module | None = None,
) -> Trainer:
    """The trainer of a recipe, on `model` (such as an official one to fine-tune) or on a new
    network.

    >>> from types import SimpleNamespace
    >>> data = SimpleNamespace(shape=(4, 32, 32), num_classes=1000)
    >>> trainer = build_imagenet_trainer(imagenet("vecor", model="SiT-Ti/2"), data)
    >>> list(trainer.objective.terms)
    ['flow_matching', 'repulsion']
    """
    network: Any = (model or build_model(recipe, data)).to(device)
    built = build_imagenet_objective(recipe, network, teacher).to(device)
    return build_trainer(
        recipe,
        network,
        built=built,
        ema_warmup=recipe.ema_warmup,
        world=world,
        parallel=parallel,
        compile=compile,
    )


_VERSUS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "": (
        (
            "arithmetic",
            "TF32 (SiT), fp16 with a loss scale (REPA, ΔFM)",
            "bf16 autocast, parameters and losses float32",
        ),
        ("optimizer", "AdamW 1e-4, no weight decay", "the same, fused"),
        (
            "latents",
            "encoded in every step (SiT), or stored without mirror images (REPA)",
            "stored, both mirrors encoded",
        ),
        ("label dropout", "0.1 (REPA's legacy switch drops twice: 0.19)", "0.1"),
    ),
    "sit": (("steps", "1,400 epochs of 5,004 steps", "7,000,000"), ("mirror images", "yes", "yes")),
    "delta_fm": (
        ("weight", "0.05 in the README; the program's default of 1.0 diverges", "0.05"),
        (
            "negatives",
            "another row of the GPU's 32",
            "another row of the shard of 32, whatever the GPU holds",
        ),
    ),
    "vecor": (
        (
            "negatives",
            "random channel shuffle in velocity space, K = 1, weight 0.05; no official code",
            "the same",
        ),
        (
            "shuffle",
            "per sample or batch, with or without the identity: not published",
            "per sample, never the identity",
        ),
    ),
    "dispersive": (
        ("weight, tau, block", "0.5, 0.5, a quarter of the depth (JAX)", "the same"),
        ("batch of the loss", "16 per device", "shard = 16"),
    ),
    "dispersive_torch": (
        ("weight, tau, block", "0.25, 1, the last (PyTorch)", "the same"),
        ("batch of the loss", "32 per device", "shard = 32"),
    ),
    "repa": (
        (
            "weight, block",
            "0.5, 8 for every size",
            "the same; the last block where there are fewer than 8",
        ),
        (
            "teacher",
            "DINOv2-B on 224 pixels, position table resampled",
            "timm's DINOv2-B, the same",
        ),
    ),
    "captions": (
        (
            "steps",
            "MS-COCO: 400,000 in the program, 150,000 by its author's advice; CC3M: 400,000 (ΔFM)",
            "150,000 and 400,000",
        ),
        (
            "captions",
            "CLIP ViT-L/14, 77 x 768, kept in float32; one of an image's at random in every step",
            "the same encoder and draw, encoded in every step",
        ),
        ("drawn from", "the network itself", "its average"),
    ),
    "sit captions": (),
    "vecor captions": (
        (
            "negatives",
            "crop and resize, by a note of its table; its parameters are not published",
            "crop_resize in velocity space, K = 1, weight 0.05",
        ),
    ),
}


def versus(method: str, dataset: str = "imagenet") -> list[tuple[str, str, str]]:
    """(setting, in the paper, here) for a preset; ConfigError for an unknown name.

    >>> [here for setting, paper, here in versus("delta_fm") if setting == "weight"]
    ['0.05']
    """
    check_choice("method", method, PRESETS)
    check_choice("dataset", dataset, FULL_SCALE)
    parts = ["repa", method.removeprefix("repa_")] if method.startswith("repa_") else [method]
    if dataset in CAPTIONED:
        parts = ["captions", *(f"{part} captions" for part in parts)]
        parts = [part if part in _VERSUS else part.removesuffix(" captions") for part in parts]
    return [row for part in ("", *parts) for row in _VERSUS[part]]
