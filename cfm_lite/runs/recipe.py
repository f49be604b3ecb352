"""A frozen `Recipe` holds every setting of a run; config.json keeps it.

The same code trains the plane, the digits and ImageNet. Only the recipe differs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import nn

from cfm_lite import draws, samplers
from cfm_lite._internal.checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    plain,
    repulsion_weight,
    warn_once,
)
from cfm_lite._internal.networks import seeded
from cfm_lite.data import captions, teachers
from cfm_lite.data.datasets import codec_for
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.errors import ConfigError
from cfm_lite.losses import VARIANTS
from cfm_lite.methods import METHODS, PERTURBATIONS, TIMES, Needed, time_of
from cfm_lite.models import MLP, MMDiT, SiT, UNet
from cfm_lite.objective import FlowMatching, Objective, Repulsion
from cfm_lite.paths import PATHS
from cfm_lite.terms import Contrastive, Dispersive
from cfm_lite.training import PRECISIONS, Trainer, warmup

__all__ = [
    "METHODS",
    "PERTURBATIONS",
    "RECIPES",
    "SOLVERS",
    "Recipe",
    "build_model",
    "build_objective",
    "build_trainer",
    "from_dict",
    "recipe",
]

COUPLINGS = {"independent": draws.independent, "minibatch_ot": draws.minibatch_ot}
SOLVERS = {
    step.__name__: step for step in (samplers.euler, samplers.midpoint, samplers.heun, samplers.rk4)
}
MODELS = ("mlp", "sit", "unet", "mmdit")
FULL_SCALE = ("imagenet", "mscoco", "cc3m")  # data sets whose recipes are runs.imagenet's
AUTO = "auto"  # a precision: bf16 where the device computes it fast, else float32
# the factor on the learning rate while a fraction `left` of the cooldown is still to come
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
    "constant": lambda left: 1.0,
}

# the least of each field that counts something
_COUNTS = {
    **dict.fromkeys(("hidden_size", "depth", "num_heads", "patch_size", "levels"), 1),
    **dict.fromkeys(("k", "block"), 1),
    **dict.fromkeys(("align_block", "shard", "batch", "steps", "accumulate", "sample_steps"), 1),
    **{"warmup": 0, "seed": 0},
}
_NUMBERS = {  # the range of each other number
    **dict.fromkeys(("weight", "spread", "tau", "align", "weight_decay", "clip"), (0.0, math.inf)),
    **dict.fromkeys(("label_dropout", "beta1", "beta2", "cooldown", "ema", "ema2"), (0.0, 1.0)),
    **{"lr": (0.0, 1e6), "boost_power": (0.0, math.inf)},
    **dict.fromkeys(("guidance", "boost", "time_mean"), (-math.inf, math.inf)),
}
_ABOVE, _BELOW = ("tau", "lr"), ("beta1", "beta2", "ema", "ema2")  # the bound itself is refused


class Shaped(Protocol):
    """What a model must know of its data: the dims of one sample and the number of classes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of one sample, without the batch."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, from the data to the samples.

    Raises ConfigError for a name that is not known, a number out of range, λk >= 1, and a
    `time_mean` that nothing reads.

    >>> Recipe(dataset="moons", method="vecor").changed(weight=0.1).as_dict()["weight"]
    0.1
    """

    dataset: str = "digits"
    # the network: "mlp", "sit", "unet", or of captions "mmdit"
    model: str = "mlp"
    hidden_size: int = 256  # of a U-Net: channels of the finest level
    depth: int = 4  # blocks; of a U-Net: of each level, on each way
    num_heads: int = 4
    patch_size: int = 2
    levels: int = 2  # of a U-Net; each has half the side and twice the channels
    qk_norm: bool = False  # a LayerNorm on queries and keys; of a SiT
    # the method and its settings; each reads only its own
    method: str = "fm"
    weight: float = 0.05  # lambda of a repulsion
    k: int = 1
    perturb: str = "crop_resize"
    # weight of dispersive and contrastive; the covariance form sums over pairs of features, so it
    # needs about 0.5 / width^2
    spread: float = 0.5
    variant: str = "infonce_l2"
    tau: float = 0.5
    block: int = 1  # from 1; the papers take a quarter of the depth
    views: str = "independent"
    align: float = 0.5  # weight of repa
    align_block: int = 2  # from 1
    also: str = ""  # a second method, whose term is added
    # the draw
    path: str = "linear"
    time: str = "uniform"
    time_mean: float = 0.0  # of logit_normal, before the sigmoid; below 0 it favours noise
    coupling: str = "independent"
    label_dropout: float = 0.1
    shard: int = 32
    # the optimisation
    batch: int = 256
    steps: int = 1000
    lr: float = 2e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: int = 0  # steps over which lr rises linearly
    cooldown: float = 0.0  # the last fraction of the steps, over which lr falls to 0
    # how lr falls: "constant" never does; "cosine" with a cooldown of 0 falls from the warm-up on
    schedule: str = "linear"
    clip: float = 1.0
    ema: float = 0.999
    ema2: float = 0.0  # decay of a second average; 0 is none
    precision: str = "float32"
    accumulate: int = 1
    seed: int = 0
    # the samples
    solver: str = "euler"
    sample_steps: int = 50
    guidance: float = 1.0
    boost: float = 0.0  # the velocity times 1 + boost (1 - t)^boost_power
    boost_power: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("model", MODELS),
            ("method", METHODS),
            ("also", ("", *(name for name in METHODS if name != "fm"))),
            ("perturb", PERTURBATIONS),
            ("path", PATHS),
            ("time", TIMES),
            ("coupling", COUPLINGS),
            ("solver", SOLVERS),
            ("variant", VARIANTS),
            ("views", ("independent", "restricted")),
            ("precision", (*PRECISIONS, AUTO)),
            ("schedule", SCHEDULES),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in (f.name for f in dataclasses.fields(self) if isinstance(f.default, bool)):
            check_flag(**{name: getattr(self, name)})
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name, low in _COUNTS.items():
            object.__setattr__(self, name, check_count(name, getattr(self, name), low))
        for name, (low, high) in _NUMBERS.items():
            check_number(
                name,
                getattr(self, name),
                low,
                high,
                open_low=name in _ABOVE,
                open_high=name in _BELOW,
            )
            object.__setattr__(self, name, plain(getattr(self, name)))  # what config.json can hold
        repulsion_weight(self.weight, self.k)
        if self.time_mean and self.time != "logit_normal":
            raise ConfigError(
                f"time_mean is {self.time_mean:g}, and time is {self.time!r}; only logit_normal "
                "has a mean. Use time=logit_normal, or leave time_mean out."
            )
        if self.seed >= 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be below 2^63.")

    def changed(self, **changes: Any) -> Self:
        """A copy with some fields changed. For an unknown field, ConfigError names the nearest."""
        for name in changes:
            check_choice("recipe field", name, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for config.json."""
        return dataclasses.asdict(self)


def check_null(recipe: Recipe, scale: float) -> None:
    """ConfigError for guidance by `scale` where training by `recipe` never drops a condition."""
    if scale != 1 and not recipe.label_dropout:
        raise ConfigError(
            f"guidance is {scale:g}, and label_dropout is 0: the null condition, which guidance "
            "needs, is never trained. Use guidance 1, or train with label_dropout above 0, such as "
            "label_dropout=0.1."
        )


def build_model(recipe: Recipe, data: Shaped) -> nn.Module:
    """The network of a recipe for one data set, initialised from the recipe's seed.

    The global generator stays as it is.

    Raises ConfigError for what is no data set, captions without an MMDiT, an MMDiT without
    captions, and points with a network of images.

    >>> from types import SimpleNamespace
    >>> build_model(recipe("toy"), SimpleNamespace(shape=(2,), num_classes=2)).config["hidden_size"]
    128
    """
    if not (hasattr(data, "shape") and hasattr(data, "num_classes")):
        raise ConfigError(
            f"data is a {type(data).__name__}; it must be a data set, such as "
            f"dataset({recipe.dataset!r}) of cfm_lite.data.datasets, or another object with shape "
            "and num_classes."
        )
    condition = getattr(data, "condition", "labels")
    if (recipe.model == "mmdit") != (condition == "captions"):
        better = "the recipe words, or another model"
        raise ConfigError(
            f"model is {recipe.model!r}, and the condition of {recipe.dataset!r} is {condition}: "
            "data with captions need mmdit, and mmdit needs captions. Use "
            f"{'model=mmdit' if condition == 'captions' else better}."
        )
    points = len(data.shape) == 1
    if points and recipe.model != "mlp":
        raise ConfigError(
            f"model is {recipe.model!r}, which takes images, and the samples of {recipe.dataset!r} "
            f"are points of shape {tuple(data.shape)}. Use model=mlp, or images, such as the "
            f"recipe {'mnist' if recipe.model == 'unet' else 'digits_sit'}."
        )
    with seeded(recipe.seed):
        if recipe.model == "mlp":
            return MLP(
                data.shape, recipe.hidden_size, recipe.depth, data.num_classes, residual=not points
            )
        channels, side = data.shape[0], data.shape[-1]
        if recipe.model == "mmdit":
            return MMDiT(
                side,
                recipe.patch_size,
                channels,
                recipe.hidden_size,
                recipe.depth,
                recipe.num_heads,
                **_with_captions(recipe, data),
            )
        if recipe.model == "unet":
            widths = [recipe.hidden_size * 2**level for level in range(recipe.levels)]
            sizes = (widths, recipe.depth, recipe.patch_size, recipe.num_heads, data.num_classes)
            try:
                return UNet(side, channels, *sizes)
            except ConfigError as error:  # a recipe has no field channels
                told = ", ".join(map(str, widths))
                raise ConfigError(
                    f"hidden_size is {recipe.hidden_size}, so the channels are {told}: {error}"
                ) from None
        return SiT(
            input_size=side,
            patch_size=recipe.patch_size,
            in_channels=channels,
            hidden_size=recipe.hidden_size,
            depth=recipe.depth,
            num_heads=recipe.num_heads,
            num_classes=data.num_classes,
            qk_norm=recipe.qk_norm,
            learn_sigma=getattr(recipe, "learn_sigma", False),  # of ImageNet's alone
        )


def _with_captions(recipe: Recipe, data: Any) -> dict[str, Any]:
    """How a MMDiT takes captions: as features of a frozen encoder, or as word numbers; and what
    the small one has beside REPA's.
    """
    if recipe.dataset in FULL_SCALE:  # REPA's network, started as there
        length, dim = data.text_shape
        return {"context_length": length, "context_dim": dim}
    return {
        "context_dim": recipe.hidden_size,
        "context_length": captions.LENGTH,
        "vocab_size": len(captions.VOCABULARY),
        "zero_init": True,
        "rotary": True,
        "phrases": 2,
        "mlp_ratio": 3.5,
    }


def build_objective(recipe: Recipe, model: nn.Module) -> Objective:
    """The objective of a recipe on a model. ConfigError if the method's settings do not fit.

    >>> list(build_objective(recipe("toy", method="vecor"), MLP(2, num_classes=2)).terms)
    ['flow_matching', 'repulsion']
    """
    terms = [FlowMatching(), *_terms(recipe.method, recipe, model)]
    if recipe.also:
        # both methods may repel, and terms need different names: the second is called by its method
        terms += (
            dataclasses.replace(term, name=recipe.also) if isinstance(term, Repulsion) else term
            for term in _terms(recipe.also, recipe, model)
        )
    return Objective(
        model,
        PATHS[recipe.path],
        terms,
        time=time_of(recipe),
        couple=COUPLINGS[recipe.coupling],
        label_dropout=recipe.label_dropout,
        shard=recipe.shard,
    )


def _terms(name: str, recipe: Recipe, model: Any) -> tuple[Any, ...]:
    """What a method adds to flow matching, given what it needs of the data set and the network."""
    method = METHODS[name]
    needed = Needed(codec_for(recipe.dataset) if "codec" in method.needs else None)
    if "teacher" in method.needs:
        grid, width = _grid(model, recipe.align_block)
        teacher = _teacher(name, recipe, grid)
        needed = needed._replace(teacher=teacher, hidden_size=width, width=256)
    terms = method.terms(recipe, needed)
    for term in terms:
        if isinstance(term, Dispersive | Contrastive) and term.variant == "covariance":
            _check_spread(term, model)
    return terms


def _check_spread(term: Dispersive | Contrastive, model: Any) -> None:
    """The spread of another form, 0.5, would drown flow matching: this one is a sum over d features
    or over their d (d - 1) pairs.
    """
    side, width = _grid(model, term.block)
    d = side**2 * width
    usual = term.usual_weight("covariance", d) if isinstance(term, Dispersive) else 0.5 / d
    if term.weight > 100 * usual:
        raise ConfigError(
            f"spread is {term.weight:g}; variant=covariance is a sum, here of {d} features, and "
            f"its usual spread is {usual:.1g}. Use --set spread={usual:.1g}, at most 100 times "
            "that, or another variant."
        )


def _grid(model: Any, block: int) -> tuple[int, int]:
    """(side, width) of the grid of tokens after `block`; an MLP has one token."""
    if isinstance(model, UNet):
        return model.grid(block)
    return model.input_size // model.patch_size if isinstance(
        model, SiT | MMDiT
    ) else 1, model.hidden_size


def _teacher(name: str, recipe: Recipe, grid: int) -> teachers.Tokens:
    """The small teacher of the data set, on a grid of tokens of this side."""
    if recipe.dataset not in teachers.SETTINGS:
        raise ConfigError(
            f"{name} needs a teacher, and {recipe.dataset!r} has none; it works on "
            f"{', '.join(teachers.SETTINGS)}."
        )
    return teachers.Tokens(teachers.teacher_for(recipe.dataset), grid)


def build_trainer(
    recipe: Recipe,
    model: nn.Module,
    *,
    built: Objective | None = None,
    ema_warmup: bool = True,
    world: World = ALONE,
    parallel: str = "ddp",
    compile: bool | None = None,
) -> Trainer:
    """The trainer of a recipe on a model. `built` is its objective, if there is one already.

    A `clip` of 0 means no clipping.

    >>> build_trainer(recipe("toy", seed=3), MLP(2, num_classes=2)).step
    0
    """
    return Trainer(
        built or build_objective(recipe, model),
        world=world,
        parallel=parallel,
        compile=compile,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2),
        clip=recipe.clip or None,
        ema_decay=recipe.ema,
        ema_warmup=ema_warmup,
        ema2_decay=recipe.ema2,
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        precision=precision_on(model, recipe.precision),
        schedule=schedule_of(recipe),
    )


def precision_on(model: nn.Module, precision: str) -> str:
    """`precision`, or for "auto" the faster one on the device of `model`: bf16 on a GPU that has it
    and on a CPU with AVX512-BF16 or AMX, else float32. Most laptops compute bf16 slowly.
    """
    if precision != AUTO:
        return precision
    device = next(model.parameters()).device.type
    fast = {"cuda": _gpu_has_bf16, "cpu": _cpu_has_bf16}.get(device, lambda: False)
    return "bf16" if fast() else "float32"


def check_speed(precision: str, device: torch.device) -> None:
    """Warn where a training is to compute in bf16 and the processor has no instructions for it."""
    if precision == "bf16" and device.type == "cpu" and not _cpu_has_bf16():
        warn_once(
            "this processor computes bf16 several times more slowly than float32; --set "
            "precision=float32 is faster here."
        )


def _gpu_has_bf16() -> bool:
    # torch counts emulation as support: a T4 or V100 computes bf16 so, more slowly than float32
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def schedule_of(recipe: Recipe) -> Callable[[int], float]:
    """The factor on lr at each step.

    It rises linearly over `warmup` steps, stays 1, and falls to 0 over the last `cooldown` of them.
    """
    cool = cooldown_steps(recipe)
    if recipe.schedule == "cosine" and not recipe.cooldown:
        cool = recipe.steps - recipe.warmup
    return functools.partial(_rate, warmup(recipe.warmup), recipe.schedule, cool, recipe.steps)


def cooldown_steps(recipe: Recipe) -> int:
    """The number of steps in the recipe's `cooldown`."""
    return round(recipe.cooldown * recipe.steps)


def _rate(rise: Callable[[int], float], schedule: str, cool: int, steps: int, step: int) -> float:
    left = min(1.0, max(0.0, (steps - step) / cool)) if cool > 0 else 1.0  # 0 after the end
    return rise(step) * (SCHEDULES[schedule](left) if cool > 0 else 1.0)


def from_dict(fields: Mapping[str, Any]) -> Recipe:
    """The inverse of `Recipe.as_dict`, also for ImageNet's recipes.

    For an unknown field, ConfigError names the nearest.

    >>> from_dict({"dataset": "moons", "steps": 500}).steps
    500
    """
    if not isinstance(fields, Mapping):
        raise ConfigError(
            f"fields has type {type(fields).__name__}; the fields of a recipe are a mapping of "
            "names to values."
        )
    kind = Recipe
    if fields.get("dataset") in FULL_SCALE:
        from cfm_lite.runs.imagenet import ImageNet as kind  # it builds on this file
    for name in fields:
        check_choice("recipe field", name, [field.name for field in dataclasses.fields(kind)])
    return kind(**fields)


def toy() -> Recipe:
    """Points in the plane: four Gaussians in two classes, whose exact field is known.

    It takes a minute on a laptop. VeCoR shuffles the coordinates: no other perturbation means
    anything for points.
    """
    return Recipe(
        dataset="two_classes",
        hidden_size=128,
        depth=3,
        perturb="channel_shuffle",
        batch=512,
        shard=512,
        steps=2000,
        cooldown=0.2,
        ema=0.995,
    )


def digits() -> Recipe:
    """The 8x8 digits of scikit-learn, with a residual MLP: about ten seconds a method on two cores.

    One channel cannot be shuffled, so VeCoR crops and resizes in latent space, here the pixels.
    1,300 steps are 370 epochs: with more steps, samples come too near to training images. Shards of
    128 cost less than shards of 32.
    """
    return Recipe(
        dataset="digits",
        hidden_size=256,
        depth=3,
        batch=256,
        shard=128,
        steps=1300,
        lr=2e-3,
        cooldown=0.3,
        ema=0.997,
    )


def digits_sit() -> Recipe:
    """The digits with a small SiT: 16 tokens of 2x2 pixels."""
    return digits().changed(
        model="sit", hidden_size=96, depth=4, num_heads=4, patch_size=2, lr=1e-3
    )


def mnist() -> Recipe:
    """MNIST with a small U-Net: half a million weights, on a laptop.

    Small batches, and times that favour the noise, where a digit takes shape: docs/models.md tells
    what each setting buys.
    """
    return Recipe(
        dataset="mnist",
        model="unet",
        hidden_size=32,
        depth=1,
        block=4,
        align_block=4,
        time="logit_normal",
        time_mean=-0.5,
        label_dropout=0.05,
        batch=32,
        steps=16_000,
        lr=2e-3,
        warmup=200,
        cooldown=0.5,
        ema=0.999,
        precision="auto",
    )


def fashion_mnist() -> Recipe:
    """Fashion-MNIST by the recipe of MNIST."""
    return mnist().changed(dataset="fashion_mnist")


def mnist_sit() -> Recipe:
    """MNIST with a small SiT: 49 tokens of 4x4 pixels.

    Estimated: an hour or two on two cores, minutes on a GPU.
    """
    return Recipe(
        dataset="mnist",
        model="sit",
        hidden_size=192,
        depth=6,
        num_heads=3,
        patch_size=4,
        batch=128,
        steps=6000,
        lr=1e-3,
        warmup=200,
        cooldown=0.2,
        precision="bf16",
    )


def cifar10() -> Recipe:
    """CIFAR-10 with a U-Net of three levels: an hour and a half on one core with AVX512-BF16.

    `dataset="cifar10-jpeg75"` trains on the JPEG pictures; with "-16" at the end they have half the
    side. VeCoR shuffles the three colours here. Without those instructions a core takes longer.
    """
    return Recipe(
        dataset="cifar10",
        model="unet",
        hidden_size=48,
        depth=1,
        levels=3,
        perturb="channel_shuffle",
        time="logit_normal",
        time_mean=-0.5,
        label_dropout=0.05,
        block=4,
        align_block=4,
        batch=32,
        steps=27_000,
        lr=2e-3,
        warmup=200,
        cooldown=0.5,
        ema=0.999,
        precision="auto",
    )


def cifar10_sit() -> Recipe:
    """CIFAR-10 in pixels, with a SiT of the width and depth of S/2.

    It needs a GPU: on a CPU a step takes seconds.
    """
    return Recipe(
        dataset="cifar10",
        model="sit",
        hidden_size=384,
        depth=12,
        num_heads=6,
        patch_size=2,
        perturb="channel_shuffle",
        block=3,
        align_block=4,
        batch=128,
        steps=100_000,
        lr=2e-4,
        warmup=1000,
        ema=0.9995,
        precision="bf16",
    )


def words() -> Recipe:
    """Pictures from words with a small MMDiT: 64 patches of 4x4 pixels beside 16 words.

    Captions matter most while a thing takes shape: times favour the noise.
    """
    return Recipe(
        dataset="words",
        model="mmdit",
        hidden_size=128,
        depth=4,
        num_heads=4,
        patch_size=4,
        perturb="channel_shuffle",
        time="logit_normal",
        time_mean=-1.5,
        batch=16,
        steps=13_000,
        lr=2e-3,
        warmup=100,
        beta2=0.99,
        cooldown=0.5,
        ema=0.999,
        precision="auto",
        sample_steps=20,
        guidance=2.0,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    preset.__name__: preset
    for preset in (
        *(toy, digits, digits_sit, mnist, fashion_mnist, mnist_sit, cifar10, cifar10_sit, words),
    )
}


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe called `name` with some fields changed.

    For an unknown name or field, ConfigError names the nearest.

    >>> recipe("digits", method="vecor", weight=0.1).weight
    0.1
    """
    check_choice("recipe", name, RECIPES)
    return RECIPES[name]().changed(**changes)
