"""From samples to flat rows: what is measured of each arm, against held-out data and in the
features of the data set's judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfm_lite import metrics
from cfm_lite._internal.checks import check_choice, check_count, check_number, plain
from cfm_lite.data.datasets import PIXELS, DataSet
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.judges import SETTINGS, Judge, assess, judge_for
from cfm_lite.lab.arms import EVALUATIONS, Arm, balanced_labels, draw_samples
from cfm_lite.lab.diagnostics import field_values, path_values
from cfm_lite.runs import Run
from cfm_lite.runs.recipe import Recipe
from cfm_lite.samplers import evaluations
from cfm_lite.theory import GaussianMixture

__all__ = [
    "Row",
    "Sampling",
    "field_rows",
    "judge_of",
    "measure",
    "reference_rows",
    "row_base",
    "rows_of",
    "sample_rows",
]

Row = dict[str, Any]
# real rows of each kind that samples are held against, or as many as there are samples; the digits
# have fewer
COMPARED = 1000
NEIGHBOURS = (
    2000  # rows of each kind whose neighbours are looked for: precision and recall take all pairs
)
ALL_PAIRS = (
    5000  # training rows up to which every sample is compared with every one, pixel by pixel
)


@dataclass(frozen=True)
class Sampling:
    """How an arm is sampled: the solver, its network evaluations per sample, the guidance scale,
    and how many samples.
    """

    solver: str = "euler"
    nfe: int = 50
    guidance: float = 1.0
    samples: int = 1000

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, EVALUATIONS)
        for name in ("samples", "nfe"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        check_number("guidance", self.guidance, 0, float("inf"))
        object.__setattr__(self, "guidance", plain(self.guidance))
        if self.nfe % EVALUATIONS[self.solver] or (self.solver == "sde" and self.nfe < 2):
            raise ConfigError(
                f"nfe is {self.nfe}, which {self.solver} cannot take: it needs "
                f"{EVALUATIONS[self.solver]} calls a step."
            )

    @property
    def steps(self) -> int:
        """Steps of the solver."""
        return self.nfe // EVALUATIONS[self.solver]

    @property
    def rows(self) -> int:
        """Rows that the network computes for all samples."""
        return self.samples * evaluations(self.solver, self.steps, self.guidance).rows


def judge_of(name: str) -> Judge | None:
    """The judge of an image set, or of the images that its latents stand for; points need none."""
    name = PIXELS.get(name, name)
    return judge_for(name) if name in SETTINGS else None


@torch.no_grad()
def measure(samples: Tensor, y: Tensor, data: DataSet, judge: Judge | None) -> dict[str, float]:
    """{metric: value} of samples (N, *dims) that were asked for with labels `y` (N,); latents are
    decoded first.

    With a judge: accuracy in [0, 1], Fréchet distance in its features against held-out rows (1,000,
    or N where N is larger), the Fréchet distance of as many training rows to them, precision and
    recall of at most 2,000 rows, and nearest_ratio (below 0.9: memorised), which larger sets than
    the digits leave out: it takes all pairs. Without one, for points: class accuracy under the
    exact posterior, sliced Wasserstein distance and MMD to the held-out points.
    """
    if judge is None:
        return _measure_points(samples, y, data)
    if data.codec is not None:
        samples, data = data.codec.decode(samples), data.images
    logits, fake = assess(judge, samples)
    real = assess(judge, reference_rows(len(samples), data, judge))[1]
    train_features = assess(judge, _some(data.x1, max(COMPARED, len(samples))))[1]
    accuracy = metrics.accuracy(logits, y)
    values = {
        "accuracy": accuracy,
        "frechet": metrics.frechet(fake, real),
        "frechet_real": metrics.frechet(train_features, real),
    }
    if len(data.x1) <= ALL_PAIRS:
        values["nearest_ratio"] = metrics.nearest_ratio(samples, data.x1, data.held_x1)
    values["precision"], values["recall"] = metrics.precision_recall(
        _some(real, NEIGHBOURS), fake[:NEIGHBOURS]
    )
    return {name: float(value) for name, value in values.items()}


def reference_rows(n: int, data: DataSet, judge: Judge | None) -> Tensor:
    """The held-out rows that `n` samples are held against: for points the first n, for images
    1,000, or n where that is more.
    """
    held = data.images.held_x1
    return held[:n] if judge is None else _some(held, max(COMPARED, n))


def _some(x: Tensor, count: int) -> Tensor:
    """`count` rows of real `x`, or all where it has fewer, evenly spaced: the halves of MNIST's
    test rows are by different writers.

    Samples are cut by taking the first rows instead: their labels run through the classes, and a
    stride would drop some of them.
    """
    n = min(count, len(x))
    return x[
        torch.arange(n) * len(x) // n
    ]  # exactly n, which a whole stride would give only where n divides len(x)


def _measure_points(samples: Tensor, y: Tensor, data: DataSet) -> dict[str, float]:
    g = keyed_generator("cpu", 0, "projections")
    real = reference_rows(len(samples), data, None)
    n = len(real)
    values = {
        "sliced_wasserstein": metrics.sliced_wasserstein(samples[:n], real, generator=g),
        "mmd": metrics.mmd(samples[:n], real),
    }
    if data.mixture is not None:
        values["accuracy"] = _posterior_accuracy(samples, y, data.mixture)
    return {name: float(value) for name, value in values.items()}


def _posterior_accuracy(samples: Tensor, y: Tensor, mixture: GaussianMixture) -> Tensor:
    """The fraction whose most likely class under the exact mixture (with class priors) is the one
    asked for.
    """
    ones = torch.ones(len(samples), dtype=samples.dtype)
    prior = torch.stack([mixture.weights[mixture.labels == c].sum().log() for c in mixture.classes])
    scores = torch.stack(
        [mixture.log_prob(samples, ones, torch.full_like(y, int(c))) for c in mixture.classes],
        dim=1,
    )
    return (
        torch.as_tensor(mixture.classes)[(scores + prior.to(samples.dtype)).argmax(1)]
        .eq(y)
        .float()
        .mean()
    )


def sample_rows(
    arm: Arm, run: Run, data: DataSet, judge: Judge | None, sampling: Sampling
) -> list[Row]:
    """Sample one arm in one way and measure it: flat rows. Raises DivergenceError where samples are
    not finite.
    """
    y = balanced_labels(data.num_classes, sampling.samples)
    recipe = run.recipe.changed(guidance=sampling.guidance)
    guided = Run(recipe, run.model)
    samples = draw_samples(
        arm, guided, data, y, sampling.steps, recipe.seed, solver=sampling.solver
    )
    base = row_base(arm.method, recipe, sampling.samples, sampling.steps, sampling.solver)
    values = measure(samples, y, data, judge) | path_values(
        arm, guided, data, samples, y, sampling.steps, sampling.solver
    )
    return [{**base, "metric": name, "value": value} for name, value in values.items()]


def field_rows(arm: Arm, run: Run, data: DataSet, sampling: Sampling) -> list[Row]:
    """What is measured of an arm without samples, as rows beside those of `sampling`."""
    recipe = run.recipe.changed(guidance=sampling.guidance)
    base = row_base(arm.method, recipe, sampling.samples, sampling.steps, sampling.solver)
    return [
        {**base, "metric": name, "value": value}
        for name, value in field_values(arm, Run(recipe, run.model), data).items()
    ]


def rows_of(
    arm: Arm, run: Run, data: DataSet, judge: Judge | None, *, nfes: Sequence[int], n: int
) -> list[Row]:
    """Sample one arm with the recipe's solver and each number of evaluations in `nfes`, and measure
    it: flat rows.
    """
    r, calls = run.recipe, EVALUATIONS[run.recipe.solver]
    ways = [Sampling(r.solver, max(1, nfe // calls) * calls, r.guidance, n) for nfe in nfes]
    return [row for way in ways for row in sample_rows(arm, run, data, judge, way)]


def row_base(method: str, recipe: Recipe, n: int, steps: int, solver: str | None = None) -> Row:
    """What a row says of where its value comes from; `steps` of the solver (the recipe's) become
    evaluations (nfe).
    """
    solver = solver or recipe.solver
    return {
        "method": method,
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "nfe": evaluations(solver, steps).nfe,
        "sampler": solver,
        "guidance": recipe.guidance,
        "samples": n,
    }
