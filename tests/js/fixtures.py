"""Numbers of the Python library that the explorers' engine must agree with, as JSON.

Written when the tests run, so that they are never those of an older library.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfm_lite import guidance, losses, metrics, pretrained, samplers, theory, widgets
from cfm_lite.data import captions, toy
from cfm_lite.models import MLP
from cfm_lite.paths import PATHS
from cfm_lite.widgets import _words
from cfm_lite.widgets._networks import packed

F64 = torch.float64
FACES = [name for name in widgets.__all__ if name not in ("Explorer", "alive")]


def _plane() -> dict[str, dict[str, Any]]:
    two = toy.mixture("two_classes")
    return {
        "two_classes": {
            "weights": two.weights.tolist(),
            "means": two.means.tolist(),
            "stds": two.stds.tolist(),
            "labels": two.labels.tolist(),
        },
        "tilted": {
            "weights": [0.2, 0.5, 0.3, 0.0],
            "means": [[-2.0, 0.5], [1.0, -1.5], [3.0, 2.0], [9.0, 9.0]],
            "covariances": [
                [[0.5, 0.3], [0.3, 0.4]],
                [[0.1, 0.0], [0.0, 0.9]],
                [[1.2, -0.8], [-0.8, 0.9]],
                [[1.0, 0.0], [0.0, 1.0]],
            ],
            "labels": [3, 0, 3, 0],
        },
        "far": {"weights": [1, 3], "means": [[40.0, -7.0], [-30.0, 2.0]], "stds": [0.05, 2.0]},
    }


def mixture(described: dict[str, Any]) -> theory.GaussianMixture:
    tensors = {
        name: torch.tensor(value) if name == "labels" else torch.tensor(value, dtype=F64)
        for name, value in described.items()
    }
    return theory.GaussianMixture(**tensors)


def _rows(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=F64)


def _jacobian(m: theory.GaussianMixture, x: Tensor, t: float, y: Any, path: Any) -> Tensor:
    x = x.clone().requires_grad_()
    v = m.velocity(x, _rows(t, x), y, path)
    return torch.stack(
        [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)], 1
    )


def _mixtures() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(3)
    cases = []
    for (name, described), path in product(_plane().items(), PATHS.values()):
        m = mixture(described)
        x = torch.randn(24, 2, generator=g, dtype=F64) * (12 if name == "far" else 2.5)
        for t, label in product((0.0, 0.03, 0.5, 0.96, 1.0), (None, int(m.classes[0]))):
            y, at = None if label is None else torch.full((len(x),), label), _rows(t, x)
            case = {
                "mixture": described,
                "path": path.name,
                "t": t,
                "label": -1 if label is None else label,
                "x": x.flatten().tolist(),
                "log_prob": m.log_prob(x, at, y, path).tolist(),
                "velocity": m.velocity(x, at, y, path).flatten().tolist(),
                "score": m.score(x, at, y, path).flatten().tolist(),
                "mean": m.mean(None if y is None else y[:1]).flatten().tolist(),
                "jacobian": _jacobian(m, x, t, y, path).flatten().tolist(),
                "optima": [],
            }
            for method, weight, k in (
                ("fm", 0.3, 1),
                ("delta_fm", 0.35, 1),
                ("delta_fm", 0.2, 4),
                ("vecor", 0.35, 2),
            ):
                found = theory.optimal_velocity(
                    m, x, at, y, method=method, weight=weight, k=k, path=path
                )
                entry = {
                    "method": method,
                    "weight": weight,
                    "k": k,
                    "velocity": found.flatten().tolist(),
                }
                case["optima"].append(entry)
            cases.append(case)
    return cases


def _guided() -> list[dict[str, Any]]:
    described = _plane()["two_classes"]
    m = mixture(described)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(4), dtype=F64) * 2
    y = torch.zeros(16, dtype=torch.long)

    def good(x: Tensor, t: Tensor) -> Tensor:
        return m.velocity(x, t, y)

    def bad(x: Tensor, t: Tensor) -> Tensor:
        return m.velocity(x, t)

    mean = m.mean()
    fields = {
        "guide": guidance.guide(good, bad, 2.5, (0.25, 0.75)),
        "none": guidance.guide(good, bad, 1.0),
        "rescale": guidance.rescale(good, 1.4),
        "time_scaled": guidance.rescale(good, lambda t: 1 + 0.5 * (1 - t) ** 2),
        "retarget": guidance.retarget(good, 0.35, mean),
        "debias": guidance.debias(good, 0.35, mean, (0.0, 0.5)),
        "retarget_shuffle": guidance.retarget_shuffle(good, 0.2, 2),
        "retarget_all_shuffles": guidance.retarget_shuffle(good, 0.2, 2, False),
        "debias_shuffle": guidance.debias_shuffle(good, 0.35, interval=(0.5, 1.0)),
    }
    return [
        {
            "mixture": described,
            "field": name,
            "t": t,
            "mean": mean.tolist(),
            "x": x.flatten().tolist(),
            "velocity": field(x, _rows(t, x)).flatten().tolist(),
        }
        for (name, field), t in product(fields.items(), (0.1, 0.25, 0.5, 0.8))
    ]


def _walks() -> list[dict[str, Any]]:
    described = _plane()["two_classes"]
    m, g = mixture(described), torch.Generator().manual_seed(6)
    x = torch.randn(12, 2, generator=g, dtype=F64)
    x1, _ = m.sample(50, generator=g)
    x0 = torch.randn(50, 2, generator=g, dtype=F64)
    cases = []
    for solver, steps in product(("euler", "midpoint", "heun", "rk4"), (1, 7)):
        ts = torch.linspace(0, 1, steps + 1, dtype=F64)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return theory.optimal_velocity(m, x, t, method="delta_fm", weight=0.35)

        states = torch.stack(list(samplers.trajectory(velocity, x, ts, getattr(samplers, solver))))
        drift = torch.stack(
            [
                -m.log_prob(s, _rows(t, s)).mean()
                + m.log_prob((1 - t) * x0 + t * x1.double(), _rows(t, x0)).mean()
                for s, t in zip(states, ts.tolist())
            ]
        )
        cases.append(
            {
                "mixture": described,
                "solver": solver,
                "steps": steps,
                "x": x.flatten().tolist(),
                "x0": x0.flatten().tolist(),
                "x1": x1.double().flatten().tolist(),
                "states": states.flatten(1).tolist(),
                "straightness": metrics.straightness(states).item(),
                "drift": drift.tolist(),
                "evaluations": list(samplers.evaluations(solver, steps, 2.0, (0.25, 0.75))),
            }
        )
    return cases


def _noisy() -> list[dict[str, Any]]:
    described = _plane()["two_classes"]
    m, g = mixture(described), torch.Generator().manual_seed(7)
    x = torch.randn(8, 2, generator=g, dtype=F64)
    noise = torch.randn(6, 8, 2, generator=g, dtype=F64)
    cases = []
    for path, diffusion, last in (
        *(("linear", name, "mean") for name in samplers.DIFFUSIONS if name != "sbdm"),
        ("vp", "sbdm", "tweedie"),
        ("cosine", "sigma", "euler"),
        ("linear", "sigma", None),
    ):
        ts = torch.linspace(0, 0.96, 7, dtype=F64)
        end = samplers.sample_sde(
            lambda x, t, path=path: m.velocity(x, t, None, PATHS[path]),
            x, ts, PATHS[path], diffusion, 0.7, last, noise=noise,
        )  # fmt: skip
        cases.append(
            {
                "mixture": described,
                "path": path,
                "diffusion": diffusion,
                "norm": 0.7,
                "last": last,
                "x": x.flatten().tolist(),
                "noise": noise.flatten(1).tolist(),
                "end": end.flatten().tolist(),
            }
        )
    return cases


def _networks() -> list[dict[str, Any]]:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(8)) * 2
    cases = []
    for name in ("toy_fm", "toy_delta_fm", "toy_vecor"):
        model = pretrained.load(name)
        for t, label in product((0.0, 0.4, 1.0), (None, 1)):
            y = None if label is None else torch.full((len(x),), label)
            with torch.no_grad():
                v = model(x, torch.full((len(x),), t), y)
            cases.append(
                {
                    "name": name,
                    "t": t,
                    "label": -1 if label is None else label,
                    "x": x.double().flatten().tolist(),
                    "velocity": v.double().flatten().tolist(),
                }
            )
    return cases


def _dispersive() -> list[dict[str, Any]]:
    h = torch.randn(12, 9, generator=torch.Generator().manual_seed(9), dtype=F64) * 0.6 + 1
    cases = []
    for variant, tau in product(losses.VARIANTS, (0.25, 1.0)):
        here = h.clone().requires_grad_()
        loss = losses.dispersive(here, variant, tau)
        (slope,) = torch.autograd.grad(loss, here)
        cases.append(
            {
                "variant": variant,
                "tau": tau,
                "rows": len(h),
                "h": h.flatten().tolist(),
                "loss": loss.item(),
                "slope": slope.flatten().tolist(),
                "rank": metrics.effective_rank(h).item(),
            }
        )
    return cases


def _gradients() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(10)
    rows, cases = 6, []
    for classes, weight in ((2, 0.35), (0, 0.0)):
        model = MLP(2, hidden_size=7, depth=3, num_classes=classes).double()
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g, dtype=F64) * 0.4
        x, u, other = (torch.randn(rows, 2, generator=g, dtype=F64) for _ in range(3))
        t = torch.rand(rows, generator=g, dtype=F64)
        y = torch.randint(classes + 1, (rows,), generator=g) if classes else None
        v = model(x, t, y)
        loss = losses.flow_matching(v, u) - weight * losses.flow_matching(v, other)
        loss.backward()
        weights = model.state_dict(keep_vars=True).values()
        cases.append(
            {
                "sizes": {"hidden": 7, "depth": 3, "classes": classes},
                "weight": weight,
                "weights": torch.cat([w.detach().flatten() for w in weights]).tolist(),
                "slope": torch.cat([w.grad.flatten() for w in weights]).tolist(),
                "loss": loss.item(),
                "x": x.flatten().tolist(),
                "t": t.tolist(),
                "y": [-1] * rows if y is None else [-1 if c == classes else c for c in y.tolist()],
                "u": u.flatten().tolist(),
                "other": other.flatten().tolist(),
            }
        )
    return cases


def _keys() -> list[dict[str, Any]]:
    """The page's values beside the name that Python gives their picture."""
    one = {"relation": "", "size": "", "colour": "cyan", "kind": "two", "guidance": 1.0, "seed": 0}
    one |= {"size2": "small", "colour2": "red", "kind2": "cross", "negative": ""}
    one |= {"weight": 0.0}
    two = one | {
        "relation": "below",
        "size": "large",
        "guidance": 1.5,
        "seed": 9,
        "negative": "red",
        "weight": 0.35,
    }
    scenes = (captions.parse(told) for told in ("cyan two", "large cyan two below small red cross"))
    return [
        {
            "values": v,
            "key": _words._key(scene, v["guidance"], v["seed"], v["negative"], v["weight"]),
        }
        for v, scene in zip((one, two), scenes)
    ]


def write(folder: Path) -> None:
    """Write fixtures.json, networks.json, and what Python gives each explorer: given.json."""
    cases = {
        "mixtures": _mixtures(),
        "guided": _guided(),
        "walks": _walks(),
        "noisy": _noisy(),
        "networks": _networks(),
        "dispersive": _dispersive(),
        "gradients": _gradients(),
        "keys": _keys(),
    }
    (folder / "fixtures.json").write_text(json.dumps(cases), encoding="utf-8")
    names = ("toy_fm", "toy_delta_fm", "toy_vecor")
    networks = {name: packed(name) for name in names}
    (folder / "networks.json").write_text(json.dumps(networks), encoding="utf-8")
    given = {name: getattr(widgets, name)()._data for name in FACES}
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
