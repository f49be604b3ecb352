"""Diagnostics of an arm: how straight its paths are, how short its velocities, what its features
became.

    deficit(t) = E|v(x_t, t, y)| / E|u_t|    below 1 for a conditional mean,
                                             and 1/(1 - lambda) times as large for scaled FM

In the plane the exact distribution is known. There the field, the ends of the paths and the classes
are compared with it.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cfm_lite import metrics, samplers
from cfm_lite.data import toy
from cfm_lite.data.datasets import DataSet
from cfm_lite.draws import keyed_generator
from cfm_lite.lab.arms import Arm, balanced_labels, velocity
from cfm_lite.paths import PATHS
from cfm_lite.runs import Run
from cfm_lite.runs.recipe import SOLVERS
from cfm_lite.runs.sampling import noise_of

__all__ = ["TIMES", "field_values", "path_values"]

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
ROWS = 512  # held-out rows for velocities and features
PATHS_SEEN = 256  # samples whose whole path is kept
EXACT_STEPS = 100  # Heun steps of the exact flow; its error is far below that of any network here


@torch.no_grad()
def path_values(
    arm: Arm, run: Run, data: DataSet, samples: Tensor, y: Tensor, steps: int, solver: str
) -> dict[str, float]:
    """{metric: value} of the paths to `samples` (N, *dims) with labels `y` (N,).

    The ODE solvers have straightness. In the plane there are also drift (how much less likely the
    path is than the exact one, in nats), trajectory_error (the mean distance to the exact flow's
    end for the same noise) and class_separation (the distance of the two class means over the exact
    one).
    """
    values: dict[str, Any] = {}
    x0, mixture = noise_of(data.shape, len(y), run.recipe.seed, run.dtype), data.mixture
    if solver != "sde":
        few = slice(min(PATHS_SEEN, len(y)))
        x = x0[few].to(run.device)
        ts = torch.linspace(0, 1, steps + 1, dtype=x.dtype, device="cpu")
        states = [
            x.cpu()
            for x in samplers.trajectory(velocity(arm, run, data, y[few]), x, ts, SOLVERS[solver])
        ]
        values["straightness"] = metrics.straightness(states)
        if mixture is not None:
            values["drift"] = metrics.drift(
                states,
                mixture,
                path=PATHS[run.recipe.path],
                generator=keyed_generator("cpu", 0, "drift"),
            )
    if mixture is not None:
        exact = _exact_ends(data.name, len(y), run.recipe.seed, run.recipe.path)
        values["trajectory_error"] = (samples - exact).norm(dim=1).mean()
        values["class_separation"] = _separation(samples, y) / _separation(
            data.held_x1, data.held_y
        )
    return {name: float(value) for name, value in values.items()}


@cache
def _exact_ends(name: str, n: int, seed: int, path: str) -> Tensor:
    """Where the exact flow of a mixture takes the noise of `n` samples with labels in turn."""
    mixture = toy.mixture(name)
    x0 = noise_of(tuple(mixture.means.shape[1:]), n, seed)
    y = balanced_labels(int(mixture.labels.max()) + 1, n)
    flow = lambda x, t: mixture.velocity(x, t, y, PATHS[path])  # noqa: E731
    ts = torch.linspace(0, 1, EXACT_STEPS + 1, dtype=x0.dtype, device="cpu")
    return samplers.sample(flow, x0, ts)


def _separation(x: Tensor, y: Tensor) -> Tensor:
    """The mean distance between the means of two classes."""
    means = torch.stack([x[y == c].mean(0).flatten() for c in y.unique()])
    return torch.pdist(means).mean()


@torch.no_grad()
def field_values(arm: Arm, run: Run, data: DataSet) -> dict[str, float]:
    """{metric: value} of an arm's velocity and network, at held-out data with the same noise for
    all arms.

    These are velocity_deficit, the mean of velocity_deficit_at_T over five times; in the plane
    field_error, the relative distance to the exact velocity; and for arms that are sampled as
    trained, feature_norm and feature_rank of the recipe's `block`.
    """
    x1, y = data.held_x1[:ROWS], data.held_y[:ROWS]
    device, path = run.device, PATHS[run.recipe.path]
    g = keyed_generator("cpu", 0, "diagnostics")
    values, errors, v = {}, [], velocity(arm, run, data, y)
    for time in TIMES:
        t = torch.full((len(x1),), time, dtype=torch.float32, device=x1.device)
        x_t, u_t = path.interpolate(_noise(run, x1, g), x1, t)
        mine = v(x_t.to(device), t.to(device)).cpu()
        values[f"velocity_deficit_at_{time:g}"] = float(metrics.velocity_deficit(mine, u_t))
        if data.mixture is not None:
            exact = data.mixture.velocity(x_t, t, y, path)
            errors.append((mine - exact).square().sum() / exact.square().sum())
    values["velocity_deficit"] = sum(values.values()) / len(TIMES)
    if errors:
        values["field_error"] = float(torch.stack(errors).mean().sqrt())
    return values | ({} if arm.changes else _feature_values(run, x1, y, g))


def _feature_values(
    run: Run, x1: Tensor, y: Tensor, generator: torch.Generator
) -> dict[str, float]:
    device, model, block = run.device, run.model, run.recipe.block
    t = torch.rand(len(x1), generator=generator, device="cpu", dtype=torch.float32)
    x_t, _ = PATHS[run.recipe.path].interpolate(_noise(run, x1, generator), x1, t)
    at = (x_t.to(device), t.to(device), y.to(device))
    _, features = model.forward_features(*at, blocks=(block,))  # pyright: ignore[reportCallIssue]
    h = features[block].flatten(1).cpu()
    return {
        "feature_norm": float(h.norm(dim=1).mean()),
        "feature_rank": float(metrics.effective_rank(h)),
    }


def _noise(run: Run, x1: Tensor, generator: torch.Generator) -> Tensor:
    """Noise like `x1`, drawn in float32, as the network of `run` takes it."""
    noise = torch.randn(x1.shape, generator=generator, device="cpu", dtype=torch.float32)
    return noise.to(run.dtype)
