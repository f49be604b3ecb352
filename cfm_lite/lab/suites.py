"""What each suite compares: the arms of its core, and its ablations."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cfm_lite.lab.ablations import ablations, values
from cfm_lite.lab.arms import ARMS, EVALUATIONS
from cfm_lite.lab.groups import Group, Suite, euler
from cfm_lite.lab.jobs import Trial
from cfm_lite.lab.measures import Sampling
from cfm_lite.methods import METHODS

__all__ = ["SUITES", "trials"]

_STEPS = (2, 4, 8, 16, 50)
_APART = ("vecor_image", "contrastive")  # methods that are measured in groups of their own


def _core(pair: str, teacher: bool = True) -> tuple[str, ...]:
    """FM, what needs no training, every method with its way back, and one pair of methods."""
    shown = [
        name
        for name, arm in ARMS.items()
        if not arm.fields
        and arm.trained not in _APART
        and (teacher or "teacher" not in METHODS[arm.trained].needs)
    ]
    return (*shown, pair)


_POINTS, _IMAGES = _core("pair_dispersive", teacher=False), _core("pair")
_NOT_CROP = (
    "cutmix",
    "gaussian_blur",
    "color_jitter",
    "additive_noise",
)  # and one channel cannot be shuffled

SUITES = {
    "toy": Suite(
        "toy",
        "two_classes",
        {"core": Group(_POINTS, 5, euler(*_STEPS))}
        | ablations(
            seeds=3,
            vecor=("vecor_latent", "vecor"),
            perturbations=("additive_noise",),
            width=128,
            blocks=(2, 3),
            steps=(500, 1000),
            pairs=(),
        ),
        {"shard": 128},  # a quarter of the batch: the dispersive loss takes all pairs of a shard
    ),
    "digits": Suite(
        "digits",
        "digits",
        {
            "core": Group(_IMAGES, 8, euler(*_STEPS)),
            "sit": Group(
                _IMAGES,
                3,
                euler(*_STEPS),
                recipe="digits_sit",
                changes={"batch": 128, "steps": 1000},
            ),
            "image": Group(
                ("fm", "vecor_image"),
                5,
                euler(8, 50),
                values("perturb", ("crop_resize", *_NOT_CROP)),
                changes={"dataset": "digits_pca"},
            ),
        }
        | ablations(
            seeds=5,
            vecor=("vecor", "vecor_latent"),
            perturbations=_NOT_CROP,
            width=256,
            blocks=(2, 3),
            steps=(325, 650, 2600),
            pairs=tuple(
                name for name, arm in ARMS.items() if "also" in arm.fields and name != "pair"
            ),
        ),
    ),
    "mnist": Suite(
        "mnist",
        "mnist",
        {
            "core": Group(
                _IMAGES, 3, (*euler(2, 4, 8, 16, samples=2000), *euler(50, samples=10_000))
            )
        },
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
        keep=True,
    ),
    "cifar10": Suite(
        "cifar10",
        "cifar10",
        {
            "core": Group(
                _IMAGES, 3, (*euler(2, 4, 8, 16, samples=2000), *euler(50, samples=10_000))
            )
        },
        keep=True,
        stand_in="cifar10-jpeg75",
        # on one core it takes five minutes for each seed, and once, before, the judge and the
        # teacher of REPA twenty
        miniature={
            **{
                "hidden_size": 32,
                "depth": 2,
                "num_heads": 2,
                "patch_size": 8,
                "block": 1,
                "align_block": 1,
                "precision": "float32",
            },
            **{"batch": 32, "shard": 32, "steps": 40, "warmup": 0},
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
    """Every trial of a group, by variant, then seed, then arm; `arms` keeps only those, `quick` a
    small version of each.
    """
    mine, base = SUITES[suite].groups[group], SUITES[suite].base(group, changes)
    ways = tuple(dict.fromkeys(_adapted(way, changes, quick) for way in mine.samplings))
    for variant, given in mine.variants.items():
        fields = {name: value for name, value in given.items() if not (quick and name == "steps")}
        for seed in seeds:
            for name in mine.arms:
                if not arms or name in arms:
                    arm = ARMS[name]
                    yield Trial(
                        group,
                        variant,
                        name,
                        base.changed(
                            **{**arm.fields, **fields, "method": arm.trained, "seed": seed}
                        ),
                        ways,
                    )


def _adapted(way: Sampling, changes: Mapping[str, Any], quick: bool) -> Sampling:
    """`way` with the solver and the guidance of `changes`, where they are given; at most 200
    samples if `quick`.
    """
    solver = changes.get("solver", way.solver)
    calls = EVALUATIONS[solver]
    nfe = max(1, way.nfe // calls) * calls
    return Sampling(
        solver,
        nfe,
        changes.get("guidance", way.guidance),
        min(way.samples, 200) if quick else way.samples,
    )
