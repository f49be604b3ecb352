"""What each suite compares: the arms of its core, and a group of trials for each further question.

A group runs some arms over some seeds, for every variant of a recipe and every way of sampling. A
variant is a name and the recipe fields that it changes. Nothing is tuned per variant. Two things
are left out: the value that the core already has, and plain FM where the field means nothing to it.
`results` takes those rows from the core, whose seeds and samples are the same. Arms whose training
does not read the changed fields are trained once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cfm_lite.data import cifar10
from cfm_lite.lab.arms import ARMS, CONTROLS, EVALUATIONS
from cfm_lite.lab.jobs import Trial
from cfm_lite.lab.measures import Sampling
from cfm_lite.losses import VARIANTS
from cfm_lite.methods import METHODS
from cfm_lite.runs.recipe import Recipe, check_null, recipe

__all__ = ["SUITES", "Group", "Suite", "euler", "trials"]

Variants = Mapping[str, Mapping[str, Any]]


def euler(*nfes: int, samples: int = 1000) -> tuple[Sampling, ...]:
    """Euler sampling with each number of evaluations."""
    return tuple(Sampling("euler", nfe, 1.0, samples) for nfe in nfes)


@dataclass(frozen=True)
class Group:
    """`arms` over `seeds`, for every variant {name: recipe changes} and every way of sampling."""

    arms: tuple[str, ...]
    seeds: int
    samplings: tuple[Sampling, ...]
    variants: Variants = field(default_factory=lambda: {"": {}})
    recipe: str = ""  # another than the suite's
    changes: Mapping[str, Any] = field(default_factory=dict)
    first: int = 0  # its first seed; what is tuned takes seeds that no core reports


@dataclass(frozen=True)
class Suite:
    """The groups of one data set, "core" first.

    `keep` saves long trainings while they run, in the folder of the suite that it names: suites
    that only sample in other ways share them. `stand_in` is the data set to use if the files of
    `dataset` are missing; rows have the name of the one that was used. `miniature` holds the
    changes of a small sweep that only shows that everything runs.
    """

    recipe: str
    dataset: str
    groups: Mapping[str, Group]
    changes: Mapping[str, Any] = field(default_factory=dict)
    keep: str = ""
    stand_in: str = ""
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # fields of one arm
    miniature: Mapping[str, Any] = field(default_factory=lambda: {"steps": 40})

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of the core."""
        return self.groups["core"].arms

    @property
    def data(self) -> str:
        """The name of the data set that this machine can use."""
        if not self.stand_in or cifar10.available(self.dataset):
            return self.dataset
        return self.stand_in if cifar10.available(self.stand_in) else self.dataset

    def base(self, group: str, changes: Mapping[str, Any]) -> Recipe:
        """The recipe of plain FM in `group`, with the user's `changes`."""
        mine = self.groups[group]
        own = {} if mine.recipe else self.changes
        served = {"dataset": self.data} if self.stand_in else {}
        return recipe(mine.recipe or self.recipe, **{**own, **served, **mine.changes, **changes})


def _values(name: str, several: Iterable[Any]) -> Variants:
    """A variant for each value of a recipe field."""
    told = {f"{value:g}" if isinstance(value, float) else str(value): value for value in several}
    return {f"{name}={text}": {name: value} for text, value in told.items()}


def _ablations(
    seeds: int,
    *,
    vecor: Sequence[str],
    perturbations: Sequence[str],
    width: int,
    steps: Sequence[int],
    pairs: tuple[str, ...] = (),
) -> dict[str, Group]:
    """The groups beside a core whose network has `width` features.

    `vecor` are its arms of VeCoR, the best one last.
    """
    best, few_many = vecor[-1], euler(8, 50)
    affine = ("fm_scaled", "fm_retargeted", "delta_fm", "delta_fm_debiased")
    everyone = ("fm", *affine[:2], CONTROLS[best], "delta_fm", best, "dispersive")
    contrastive = ("dispersive", "contrastive_independent", "contrastive_restricted")
    forms: dict[str, dict[str, Any]] = {name: {"variant": name} for name in VARIANTS}
    forms["covariance"]["spread"] = 0.5 / width  # it is a sum over pairs of features
    table: dict[str, tuple[tuple[str, ...], Variants]] = {
        "perturbation": (tuple(vecor), _values("perturb", perturbations)),
        "weight": ((*affine, CONTROLS[best], best), _values("weight", (0.01, 0.1, 0.2, 0.35, 0.5))),
        "k": ((best,), _values("k", (2, 4))),
        "counterparts": (contrastive, forms),
        "tau": (("dispersive",), _values("tau", (0.1, 0.25, 1.0, 2.0))),
        "block": (("dispersive",), _values("block", (2, 3))),
        "spread": (("dispersive",), _values("spread", (0.05, 0.25, 1.0, 2.0))),
        "size": (everyone, _values("hidden_size", (width // 4, width // 2))),
        "length": (everyone, _values("steps", steps)),
    }
    groups = {
        name: Group(arms, seeds, few_many, several) for name, (arms, several) in table.items()
    }
    if pairs:
        groups["pairs"] = Group(pairs, seeds, few_many)
    scales = tuple(Sampling(guidance=scale) for scale in (1.0, 1.5, 2.0, 3.0, 4.0))
    groups["guidance"] = Group(("fm", *affine[1:], best), seeds, scales)
    least = {"euler": 1, "heun": 2, "sde": 2}  # evaluations that a solver can take
    solvers = tuple(
        Sampling(solver, nfe)
        for solver, low in least.items()
        for nfe in (1, 2, 4, 8, 16, 32, 64, 128)
        if nfe >= low
    )
    arms = ("fm", "fm_scaled", "delta_fm", best, "dispersive")
    return groups | {"solver": Group(arms, seeds, solvers)}


# methods that are measured in groups of their own
_APART = ("vecor_image", "contrastive", "contrast_by_condition")


def _core(*more: str, teacher: bool = True) -> tuple[str, ...]:
    """FM, the arms without training, every method and its debiased form, and some `more`."""
    shown = [
        name
        for name, arm in ARMS.items()
        if not arm.fields
        and arm.trained not in _APART
        and (teacher or "teacher" not in METHODS[arm.trained].needs)
    ]
    return (*shown, *more)


_POINTS, _IMAGES = _core("pair_dispersive", teacher=False), _core("pair")
# beside crop_resize; one channel cannot be shuffled
_PERTURBATIONS = ("cutmix", "gaussian_blur", "color_jitter", "additive_noise")
_CORE = euler(2, 4, 8, 16, 50)
# seen and held-out prompts in turn
_PROMPTS = Group(
    _core("fm_time_scaled", "contrast_by_condition"),
    3,
    (Sampling("euler", 20, 2.0, samples=2000),),
)
# contrast_by_condition trains in a guidance of 1 / (1 - 0.05), as there are many captions. So plain
# FM with that much more guidance is its control
_MORE_GUIDANCE = Group(("fm",), 3, (Sampling("euler", 20, round(2 / 0.95, 3), samples=2000),))
_LARGE = Group(_IMAGES, 3, (*euler(2, 4, 8, 16, samples=2000), *euler(50, samples=10_000)))
_SMALL_SIT = {"batch": 128, "steps": 1000}
# pictures of a U-Net: each trained method with its controls, its debiased form, and what a boost
# at the noise does to plain FM
_PICTURES = (
    "fm",
    "fm_scaled",
    "fm_time_scaled",
    "fm_retargeted",
    "fm_retargeted_latent",
    "delta_fm",
    "delta_fm_debiased",
    "vecor_latent",
    "vecor_latent_debiased",
    "dispersive",
    "repa",
)
_COLOURS = (*_PICTURES, "fm_retargeted_vecor", "vecor", "vecor_debiased")
_FEW_MANY = (*euler(4), *euler(50, samples=5000))
_TUNING = 100  # the first seed of what is tuned
_TINY = {"hidden_size": 8, "num_heads": 2, "batch": 16, "shard": 16, "steps": 20, "warmup": 0}


def _tuning(arms: tuple[str, ...], weights: Sequence[float]) -> dict[str, Group]:
    """Groups that choose λ for `arms`, and α and β of time-scaled FM, which needs no training."""
    boosts = {
        f"boost={a:g},boost_power={b:g}": {"boost": a, "boost_power": b}
        for a in (0.02, 0.05, 0.1)
        for b in (1.0, 2.0, 4.0)
    }
    ways = euler(50, samples=5000)
    return {
        "tuning": Group(arms, 1, ways, _values("weight", weights), first=_TUNING),
        "tuning_time": Group(("fm_time_scaled",), 1, ways, boosts, first=_TUNING),
    }


SUITES = {
    "toy": Suite(
        "toy",
        "two_classes",
        {"core": Group(_POINTS, 5, _CORE)}
        | _ablations(
            3,
            vecor=("vecor_latent", "vecor"),
            perturbations=("additive_noise",),
            width=128,
            steps=(500, 1000),
        ),
        {"shard": 128},  # a quarter of the batch: the dispersive loss takes all pairs of a shard
    ),
    "digits": Suite(
        "digits",
        "digits",
        {
            "core": Group(_IMAGES, 8, _CORE),
            "sit": Group(_IMAGES, 3, _CORE, recipe="digits_sit", changes=_SMALL_SIT),
            "image": Group(
                ("fm", "vecor_image"),
                5,
                euler(8, 50),
                _values("perturb", ("crop_resize", *_PERTURBATIONS)),
                changes={"dataset": "digits_pca"},
            ),
        }
        | _ablations(
            5,
            vecor=("vecor", "vecor_latent"),
            perturbations=_PERTURBATIONS,
            width=256,
            steps=(325, 650, 2600),
            pairs=tuple(
                name for name, arm in ARMS.items() if "also" in arm.fields and name != "pair"
            ),
        ),
    ),
    # the networks are good: what is left of a method then?
    "mnist": Suite(
        "mnist",
        "mnist",
        {"core": Group(_PICTURES, 5, _FEW_MANY)}
        | _tuning(("fm_scaled", "delta_fm", "vecor_latent"), (0.02, 0.05)),
        {"precision": "float32"},
        keep="mnist",
        miniature=_TINY,
    ),
    # the networks are far from done: an eighth of the training
    "mnist_short": Suite(
        "mnist",
        "mnist",
        {"core": Group(_PICTURES, 5, _FEW_MANY)}
        | _tuning(("fm_scaled", "delta_fm", "vecor_latent"), (0.02, 0.05, 0.1)),
        {"precision": "float32", "steps": 2000},
        keep="mnist_short",
        miniature=_TINY,
    ),
    # the networks of mnist once more, sampled with guidance
    "mnist_guidance": Suite(
        "mnist",
        "mnist",
        {
            "core": Group(
                (
                    "fm",
                    "fm_scaled",
                    "fm_time_scaled",
                    "fm_retargeted",
                    "delta_fm",
                    "delta_fm_debiased",
                    "vecor_latent",
                ),
                5,
                tuple(Sampling(guidance=scale, samples=2000) for scale in (1.5, 2.0, 3.0)),
            )
        },
        {"precision": "float32"},
        keep="mnist",
        miniature=_TINY,
    ),
    "mnist_sit": Suite(
        "mnist_sit",
        "mnist",
        {"core": _LARGE},
        # smaller than the recipe, and without bf16, which a CPU computes slowly
        {
            "hidden_size": 128,
            "depth": 3,
            "num_heads": 4,
            "patch_size": 7,
            "batch": 64,
            "steps": 4000,
            "lr": 3e-3,
            "precision": "float32",
        },
        keep="mnist_sit",
    ),
    # half of the recipe's length; VeCoR shuffles channels, as the recipe says
    "words": Suite(
        "words",
        "words",
        {"core": _PROMPTS, "guidance": _MORE_GUIDANCE},
        {"steps": 6500},
        keep="words",
        miniature={**_TINY, "hidden_size": 16, "depth": 2},
    ),
    # half the side and a narrow network: all seeds in four hours of one core. It is far from done.
    "cifar10": Suite(
        "cifar10",
        "cifar10-16",
        {"core": Group(_COLOURS, 3, _FEW_MANY)}
        | _tuning(("fm_scaled", "delta_fm", "vecor", "vecor_latent"), (0.02, 0.05, 0.1)),
        {"levels": 2, "hidden_size": 32, "steps": 5000, "precision": "float32"},
        keep="cifar10",
        stand_in="cifar10-jpeg75-16",
        miniature=_TINY,
    ),
    "cifar10_full": Suite(
        "cifar10_sit",
        "cifar10",
        {"core": _LARGE},
        keep="cifar10_full",
        stand_in="cifar10-jpeg75",
        # on one core: five minutes for each seed, and twenty minutes once for judge and teacher
        miniature={
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 8,
            "block": 1,
            "align_block": 1,
            "precision": "float32",
            "batch": 32,
            "shard": 32,
            "steps": 40,
            "warmup": 0,
        },
    ),
}


def trials(
    suite: str,
    group: str,
    *,
    seeds: Sequence[int],
    arms: Sequence[str] = (),
    changes: Mapping[str, Any],
    quick: bool = False,
) -> Iterator[Trial]:
    """Every trial of a group, by variant, then seed, then arm. A group adds its `first` to `seeds`.

    `arms` keeps only those arms. `quick` makes a small version of each trial.
    """
    mine, base = SUITES[suite].groups[group], SUITES[suite].base(group, changes)
    ways = tuple(dict.fromkeys(_adapted(way, changes, quick) for way in mine.samplings))
    for variant, given in mine.variants.items():
        fields = {name: value for name, value in given.items() if not (quick and name == "steps")}
        for seed in (mine.first + seed for seed in seeds):
            for arm in (ARMS[name] for name in mine.arms if not arms or name in arms):
                own = {
                    **arm.fields,
                    **SUITES[suite].tuned.get(arm.method, {}),
                    **fields,
                    "method": arm.trained,
                    "seed": seed,
                }
                chosen = base.changed(**own)
                for way in ways:
                    check_null(chosen, way.guidance)
                yield Trial(group, variant, arm.method, chosen, ways)


def _adapted(way: Sampling, changes: Mapping[str, Any], quick: bool) -> Sampling:
    """`way` with the solver and guidance that `changes` gives; at most 200 samples if `quick`."""
    solver = changes.get("solver", way.solver)
    calls = EVALUATIONS[solver]
    nfe = max(1, way.nfe // calls) * calls
    samples = min(way.samples, 200) if quick else way.samples
    return Sampling(solver, nfe, changes.get("guidance", way.guidance), samples)
