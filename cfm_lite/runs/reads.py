"""Which fields of a recipe its method, its network or its data never read."""

from collections.abc import Iterable, Mapping, Sequence

from cfm_lite.data.datasets import each_image_set
from cfm_lite.errors import ConfigError
from cfm_lite.losses import WITH_TAU
from cfm_lite.methods import METHODS
from cfm_lite.runs.imagenet import ALIGNED, CAPTIONED, ImageNet
from cfm_lite.runs.recipe import Recipe, cooldown_steps

__all__ = ["BOOST", "OF_SAMPLES", "READS", "check_read", "idle_fields", "unread"]

# the fields that belong to a method; all others are those of every training
READS: Mapping[str, tuple[str, ...]] = {"": ()} | {
    name: method.reads for name, method in METHODS.items()
}
# fields that only samples read; a boost is part of what an arm of the lab is
OF_SAMPLES = ("solver", "sample_steps", "guidance")
BOOST = ("boost", "boost_power")
_OF_NETWORKS = {  # fields that only some networks read
    "num_heads": ("sit", "unet", "mmdit"),
    "patch_size": ("sit", "unet", "mmdit"),
    **dict.fromkeys(("qk_norm", "learn_sigma"), ("sit",)),
    "levels": ("unet",),
}
_ELSEWHERE = {  # recipes of the full scale: fields that something else decides
    "dataset": "the command names it, as in cfm-lite scale train mscoco",
    "model": "it follows from the network; choose one with --model",
    "network": "it is only the name of the network; choose one with --model",
    "accumulate": "the batch is split as memory allows; choose with --micro-batch",
}


def idle_fields(recipe: Recipe) -> set[str]:
    """The fields of methods that are not the recipe's own.

    >>> sorted(idle_fields(Recipe(method="vecor")))[:4]
    ['align', 'align_block', 'block', 'spread']
    """
    mine = {*READS[recipe.method], *READS[recipe.also]}
    return {name for names in READS.values() for name in names} - mine


def unread(recipe: Recipe, names: Iterable[str]) -> dict[str, str]:
    """{field: why} for those of `names` that change neither the training by `recipe` nor its
    samples.

    >>> unread(Recipe(method="fm"), ["lr", "boost_power"])
    {'boost_power': 'boost is 0; set boost too, such as boost=0.05'}
    """
    full = isinstance(recipe, ImageNet)
    idle = idle_fields(recipe)
    found: dict[str, str] = {}
    for name in names:
        if full and name in _ELSEWHERE:
            found[name] = _ELSEWHERE[name]
        elif full and name in ("align_block", "teacher"):
            if not recipe.align:
                found[name] = (
                    f"only recipes with align > 0 read it, such as the presets {_and(ALIGNED)}"
                )
        elif full and name == "align":
            continue  # it switches REPA on
        elif name in idle:
            found[name] = (
                f"the method {recipe.method!r} does not read it; "
                f"it is read only by {_and([m for m in READS if name in READS[m]])}"
            )
        elif name == "tau" and recipe.variant not in WITH_TAU:
            found[name] = (
                f"the variant {recipe.variant!r} has no temperature; only {_and(WITH_TAU)} have one"
            )
        elif name == "schedule" and recipe.schedule != "cosine" and not recipe.cooldown:
            found[name] = (
                "there is no cooldown over which the learning rate would fall; set cooldown too, "
                "such as cooldown=0.2"
            )
        elif (
            name == "coupling"
            and recipe.coupling != "independent"
            and 1 in (recipe.shard, recipe.batch)
        ):
            found[name] = (
                "a shard of one row has only one pairing; set shard and batch to 2 or more"
            )
        elif name == "boost_power" and not recipe.boost:
            found[name] = "boost is 0; set boost too, such as boost=0.05"
        elif name == "cooldown" and recipe.schedule == "constant":
            found[name] = "the schedule is constant; set schedule=linear or cosine"
        elif name == "schedule" and not recipe.cooldown and recipe.warmup >= recipe.steps:
            found[name] = (
                f"warmup={recipe.warmup} takes all {recipe.steps} steps, and cosine falls from the "
                "warm-up on; set more steps, or a shorter warmup"
            )
        elif name in ("cooldown", "schedule") and recipe.cooldown and cooldown_steps(recipe) < 2:
            found[name] = (
                f"cooldown={recipe.cooldown:g} of {recipe.steps} steps is at most one step, over "
                "which the learning rate does not fall; set more steps, or a larger cooldown"
            )
        elif recipe.model not in _OF_NETWORKS.get(name, (recipe.model,)):
            found[name] = (
                f"the network {recipe.model!r} does not read it; "
                f"it is a field of {_and(_OF_NETWORKS[name])}{_way_to(name, recipe)}"
            )
    return found


def _way_to(name: str, recipe: Recipe) -> str:
    """How to get a network that reads the field `name`, or why the data set has none."""
    if recipe.dataset in each_image_set(0, 0, 0, 0):
        return f" (--set model={_OF_NETWORKS[name][0]})"
    if recipe.dataset == "words" or recipe.dataset in CAPTIONED:
        return f", and {recipe.dataset!r} has captions, which only mmdit takes"
    if isinstance(recipe, ImageNet):
        return ""  # there the network follows from --model
    return f", and {recipe.dataset!r} holds points, which only mlp takes"


def check_read(recipe: Recipe, names: Iterable[str]) -> None:
    """Raise ConfigError for the first of `names`, given with --set, that this recipe never
    reads.

    >>> check_read(Recipe(method="vecor"), ["weight", "lr"])  # both are read
    """
    for name, why in unread(recipe, names).items():
        raise ConfigError(f"--set {name} would change nothing: {why}. Leave it out.")


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 2 else names)
