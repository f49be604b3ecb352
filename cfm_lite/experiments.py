"""Paired experiments: methods x seeds x step counts, from one starting point, with the two controls that need no retraining.

*Scaled FM* is FM's velocity times 1/(1 - lambda), *re-targeted FM* the exact affine map (v - lambda E[u_neg]) / (1 - lambda).
What scaling reproduces is scaling, what re-targeting reproduces is re-targeting; only what is left is repulsion. Results are
flat rows, one per method x seed x setting x metric; means and intervals are computed from the rows, never stored.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from cfm_lite import guidance, metrics, samplers
from cfm_lite.checks import check_choice, check_count
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.guidance import Velocity
from cfm_lite.judges import Judge
from cfm_lite.paths import PATHS
from cfm_lite.recipes import Recipe, recipe
from cfm_lite.recipes.recipe import SOLVERS
from cfm_lite.runs import Run, facts, train, write_json
from cfm_lite.theory import GaussianMixture

__all__ = ["ARMS", "Arm", "Difference", "compare", "differences", "draw_samples", "measure", "report", "velocity"]

Row = dict[str, Any]
COMPARED = 1000  # real rows of each kind that samples are held against, as many as there are samples; the digits have fewer
ALL_PAIRS = 5000  # training rows up to which every sample is compared with every one, pixel by pixel
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}  # model calls per step


@dataclass(frozen=True)
class Arm:
    """A method as it is sampled: which training it uses, and what is done to the velocity afterwards."""

    method: str
    trained: str
    change: Callable[[Velocity, Recipe, Tensor], Velocity] = lambda v, recipe, mean: v


def _scaled(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.rescale(v, 1 / (1 - recipe.weight))


def _retargeted(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.retarget(v, recipe.weight, mean)


def _debiased(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.debias(v, recipe.weight, mean)


def _unshuffled(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.debias_shuffle(v, recipe.weight, recipe.k)


ARMS = {
    arm.method: arm
    for arm in (
        Arm("fm", "fm"),
        Arm("fm_scaled", "fm", _scaled),
        Arm("fm_retargeted", "fm", _retargeted),
        Arm("delta_fm", "delta_fm"),
        Arm("delta_fm_debiased", "delta_fm", _debiased),
        Arm("vecor", "vecor"),
        Arm("vecor_debiased", "vecor", _unshuffled),
        Arm("vecor_latent", "vecor_latent"),
        Arm("dispersive", "dispersive"),
    )
}


@dataclass(frozen=True)
class Suite:
    """The arms that a suite compares on one recipe's data."""

    recipe: str
    dataset: str
    arms: tuple[str, ...]


_CONTROLS = ("fm", "fm_scaled", "fm_retargeted", "delta_fm", "delta_fm_debiased")
SUITES = {  # one channel cannot be shuffled, and a crop means nothing on points
    "toy": Suite("toy", "two_classes", (*_CONTROLS, "vecor", "vecor_debiased", "dispersive")),
    "digits": Suite("digits", "digits", (*_CONTROLS, "vecor_latent", "dispersive")),
    "mnist": Suite("mnist", "mnist", (*_CONTROLS, "vecor_latent", "dispersive")),
}


def velocity(arm: Arm, run: Run, data: DataSet, y: Tensor) -> Velocity:
    """The velocity of one arm for labels `y` (B,): guided if the recipe says so, then changed as the arm says.

    The mean wrong velocity of in-batch negatives is (alpha(1) - alpha(0)) E[x1], from the training data.
    """
    recipe, path = run.recipe, PATHS[run.recipe.path]
    device = next(run.model.parameters()).device
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean = (data.x1.double().mean(0) * (path.alpha(ends)[1] - path.alpha(ends)[0])).to(data.x1.dtype)
    return arm.change(guidance.cfg(run.model, y.to(device), recipe.guidance), recipe, mean.to(device))


def draw_samples(arm: Arm, run: Run, data: DataSet, y: Tensor, steps: int, seed: int = 0, chunk: int = 1000) -> Tensor:
    """Samples (len(y), *dims) of one arm for labels `y`, from noise that depends on `seed` alone, so that arms are paired."""
    device = next(run.model.parameters()).device
    noise = torch.randn(len(y), *data.shape, generator=keyed_generator("cpu", seed, "sampling noise"))
    ts = torch.linspace(0, 1, steps + 1, device=device)
    step = SOLVERS[run.recipe.solver]
    parts = []
    for i in range(0, len(y), chunk):
        part = velocity(arm, run, data, y[i : i + chunk])
        parts.append(samplers.sample(part, noise[i : i + chunk].to(device), ts, step).cpu())
    return torch.cat(parts)


def balanced_labels(classes: int, n: int) -> Tensor:
    """`n` labels (n,) that run through the classes in turn."""
    return torch.arange(check_count("n", n)) % classes


def measure(samples: Tensor, y: Tensor, data: DataSet, judge: Judge | None) -> dict[str, float]:
    """{metric: value} of samples (N, *dims) that were asked for with labels `y` (N,).

    With a judge: accuracy in [0, 1], Fréchet distance, precision and recall in its features against (at most 1,000) held-out rows,
    the Fréchet distance of as many training rows to them, and nearest_ratio (below 0.9: memorised), which larger sets than the
    digits leave out: it takes all pairs. Without one, for points: class accuracy under the exact posterior, sliced Wasserstein
    distance and MMD to the held-out points.
    """
    if judge is None:
        return _measure_points(samples, y, data)
    with torch.no_grad():
        fake, real, train_features = (judge.features(x) for x in (samples, _some(data.held_x1), _some(data.x1)))
        accuracy = metrics.accuracy(judge(samples), y)
    values = {"accuracy": accuracy, "frechet": metrics.frechet(fake, real), "frechet_real": metrics.frechet(train_features, real)}
    if len(data.x1) <= ALL_PAIRS:
        values["nearest_ratio"] = metrics.nearest_ratio(samples, data.x1, data.held_x1)
    values["precision"], values["recall"] = metrics.precision_recall(real, fake)
    return {name: float(value) for name, value in values.items()}


def _some(x: Tensor) -> Tensor:
    """At most COMPARED rows of `x`, evenly spaced: the two halves of MNIST's test rows come from different groups of writers."""
    return x[:: -(-len(x) // COMPARED)]


def _measure_points(samples: Tensor, y: Tensor, data: DataSet) -> dict[str, float]:
    g = keyed_generator("cpu", 0, "projections")
    n = min(len(samples), len(data.held_x1))
    real = data.held_x1[:n]
    values = {"sliced_wasserstein": metrics.sliced_wasserstein(samples[:n], real, generator=g), "mmd": metrics.mmd(samples[:n], real)}
    if data.mixture is not None:
        values["accuracy"] = _posterior_accuracy(samples, y, data.mixture)
    return {name: float(value) for name, value in values.items()}


def _posterior_accuracy(samples: Tensor, y: Tensor, mixture: GaussianMixture) -> Tensor:
    """The fraction whose most likely class under the exact mixture (with class priors) is the one asked for."""
    ones = torch.ones(len(samples), dtype=samples.dtype)
    prior = torch.stack([mixture.weights[mixture.labels == c].sum().log() for c in mixture.classes])
    scores = torch.stack([mixture.log_prob(samples, ones, torch.full_like(y, int(c))) for c in mixture.classes], dim=1)
    return torch.as_tensor(mixture.classes)[(scores + prior.to(samples.dtype)).argmax(1)].eq(y).float().mean()


def rows_of(arm: Arm, run: Run, data: DataSet, judge: Judge | None, *, nfes: Sequence[int], n: int) -> list[Row]:
    """Sample one arm with each number of evaluations in `nfes` and measure it: flat rows."""
    y, out = balanced_labels(data.num_classes, n), []
    r = run.recipe
    for nfe in nfes:
        steps = max(1, nfe // EVALUATIONS[r.solver])
        samples = draw_samples(arm, run, data, y, steps, r.seed)
        base = row_base(arm.method, r, n, steps)
        out += [{**base, "metric": name, "value": value} for name, value in measure(samples, y, data, judge).items()]
    return out


def row_base(method: str, recipe: Recipe, n: int, steps: int) -> Row:
    """What a row says of where its value comes from; `steps` of the solver become evaluations (nfe)."""
    return {
        "method": method,
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "nfe": steps * EVALUATIONS[recipe.solver],
        "sampler": recipe.solver,
        "guidance": recipe.guidance,
        "samples": n,
    }


@dataclass(frozen=True)
class Difference:
    """The paired difference of one method to FM over the seeds: mean, standard deviation, 95 % bootstrap interval, number of pairs."""

    method: str
    metric: str
    nfe: int
    mean: float
    std: float
    low: float
    high: float
    seeds: int

    @property
    def clear(self) -> bool:
        """True where the interval exists and does not contain zero: only then is a winner named."""
        return self.seeds >= 2 and (self.low > 0 or self.high < 0)


def differences(rows: Sequence[Row], metric: str, nfe: int, *, base: str = "fm") -> list[Difference]:
    """For every method with seeds in common with `base`: the difference in `metric` at `nfe` evaluations.

    The interval is scipy's bias-corrected bootstrap over seeds (10,000 resamples, fixed seed); with fewer than two seeds it is NaN.
    """
    table: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == metric and row["nfe"] == nfe and row["value"] is not None:
            table.setdefault(row["method"], {})[row["seed"]] = row["value"]
    if base not in table:
        raise ConfigError(f"no rows of {base!r} for metric {metric!r} at nfe {nfe}; methods there: {sorted(table)}.")
    return [_difference(method, metric, nfe, values, table[base]) for method, values in table.items() if method != base]


def _difference(method: str, metric: str, nfe: int, values: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    d = np.array([values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())])
    low = high = std = float("nan")
    if len(d) >= 2:
        std = float(d.std(ddof=1))
        low = high = float(d.mean())
    if len(d) >= 2 and std > 0:
        kind = "BCa" if len(d) > 2 else "percentile"
        interval = stats.bootstrap((d,), np.mean, n_resamples=10_000, method=kind, rng=np.random.default_rng(0)).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Difference(method, metric, nfe, float(d.mean()) if len(d) else float("nan"), std, low, high, len(d))


def compare(
    suite: str,
    *,
    seeds: Sequence[int],
    out: str | Path,
    judge: Judge | None = None,
    arms: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    nfes: Sequence[int] = (2, 4, 8, 16, 50),
    n: int = 1000,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[Row]:
    """Run a suite's arms (or some of them) over `seeds`, each seed from one starting point; keep OUT/SUITE.json and SUITE.info.json.

    Finished (method, seed) pairs in an existing SUITE.json with the same settings are not run again, so it can be stopped at any
    time. Raises ConfigError for an unknown suite and DataError if the file there was made with other settings.
    """
    check_choice("suite", suite, SUITES)
    for name in arms:
        check_choice("arm", name, SUITES[suite].arms)
    base = recipe(SUITES[suite].recipe, **dict(changes or {}))
    data = dataset(base.dataset)
    path, info_path = Path(out) / f"{suite}.json", Path(out) / f"{suite}.info.json"
    info = {"suite": suite, "recipe": base.as_dict(), "nfes": list(nfes), "samples": n, "judge": judge.fingerprint if judge else None}
    rows = _kept_rows(path, info_path, info)
    for seed in seeds:
        runs: dict[str, Run] = {}
        for method in arms or SUITES[suite].arms:
            arm = ARMS[method]
            if any(row["method"] == method and row["seed"] == seed for row in rows):
                continue
            if arm.trained not in runs:
                mine = base.changed(method=arm.trained, seed=seed)
                runs[arm.trained] = train(mine, data, device=device, progress=progress, label=f"{arm.trained} seed {seed}")
            rows += rows_of(arm, runs[arm.trained], data, judge, nfes=nfes, n=n)
            write_json(path, rows)
    write_json(info_path, {**info, "facts": facts(device)})
    return rows


def _kept_rows(path: Path, info_path: Path, info: Mapping[str, Any]) -> list[Row]:
    if not path.exists():
        write_json(info_path, dict(info))
        return []
    before = read_json(info_path)
    changed = [key for key in info if before.get(key) != json.loads(json.dumps(info[key]))]
    if changed:
        raise DataError(f"{path} was made with other settings ({', '.join(changed)} differ); choose another --out, or remove it.")
    return read_json(path)


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; DataError names the file if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Run cfm-lite compare first, or give the right folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}. Remove it and run again.") from None


def report(rows: Sequence[Row], metric: str, nfe: int) -> str:
    """A text table of the paired differences to FM, which names no winner whose interval contains zero."""
    lines = [f"{metric} at {nfe} evaluations, difference to fm (95 % bootstrap interval over seeds)"]
    for d in differences(rows, metric, nfe):
        interval = f"[{d.low:+.4f}, {d.high:+.4f}]" if d.seeds >= 2 else "no interval: one seed"
        verdict = ("differs" if d.clear else "no clear difference") if d.seeds >= 2 else ""
        lines.append(f"  {d.method:<18} {d.mean:+.4f}  {interval}  n = {d.seeds}  {verdict}")
    return "\n".join(lines)
