"""Every public function and class with arguments that it takes: where the calls of test_inputs.py
start from.

`CALLS` maps a name to a function of a generator that returns the arguments by name; elsewhere.py
lists what is not called, and why. A test holds both against `__all__` of every module, so that a
new function has to be added to one of them.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cfm_lite
from cfm_lite import draws, negatives, objective, perturbations, samplers, terms
from cfm_lite.data import captions, digits, toy
from cfm_lite.models import MLP, SiT, export_official
from cfm_lite.paths import COSINE, LINEAR, VP, FlowSample
from cfm_lite.runs.imagenet import imagenet
from cfm_lite.runs.recipe import recipe

Arguments = dict[str, Any]


def public() -> dict[str, Any]:
    """{full name: object} of every function and class that a module lists in `__all__`, each object
    once, where it is defined.
    """
    found: dict[int, tuple[str, Any]] = {}
    for info in pkgutil.walk_packages(cfm_lite.__path__, "cfm_lite."):
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if (
                callable(value)
                and getattr(value, "__module__", "").startswith("cfm_lite")
                and hasattr(value, "__name__")
            ):
                found.setdefault(
                    id(value),
                    (f"{value.__module__}.{value.__name__}".removeprefix("cfm_lite."), value),
                )
    return dict(sorted(found.values()))


class Draws:
    """Small tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def pick(self, *options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def times(self, n: int) -> Tensor:
        return 0.05 + 0.9 * torch.rand(n, generator=self.generator)

    def labels(self, n: int, classes: int = 3) -> Tensor:
        return torch.randint(classes, (n,), generator=self.generator)

    def fresh(self) -> torch.Generator:
        return torch.Generator().manual_seed(7)

    def sample(self, *dims: int) -> FlowSample:
        x0, x1, t = self.normal(4, *dims), self.normal(4, *dims), self.times(4)
        return FlowSample(x0, x1, t, *LINEAR.interpolate(x0, x1, t), self.labels(4))


with torch.random.fork_rng(devices=[]):
    _SIT = SiT(
        input_size=4,
        patch_size=2,
        in_channels=1,
        hidden_size=8,
        depth=1,
        num_heads=2,
        num_classes=3,
    )


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return -x


def _model(classes: int = 3) -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP(2, 8, 2, classes)


def _grid(d: Draws) -> Tensor:
    return d.pick(
        torch.linspace(0, 1, 4),
        torch.linspace(1, 0, 4),
        torch.linspace(0, 1, 3, dtype=torch.float64),
    )


def _images(d: Draws) -> Tensor:
    return d.normal(4, d.pick(2, 3), 6, 6)


def _features(d: Draws) -> Tensor:
    return d.normal(4, 5)


def _pair(d: Draws) -> Arguments:
    return {"a": d.normal(4, 3), "b": d.normal(4, 3)}


def _rows(d: Draws, *names: str) -> Arguments:
    return {name: d.normal(d.pick(6, 8), 3) for name in names}


def _linear(d: Draws) -> Arguments:
    return {
        "velocity": velocity,
        "weight": 0.1,
        "expected": 0.5 * torch.eye(2),
        "k": 2,
        "space": d.pick("latent", "velocity"),
    }


def _spectrum(d: Draws) -> Arguments:
    a, b = (x @ x.mT for x in d.normal(2, 3, 3).double())
    return {"mean1": d.normal(3), "cov1": a, "mean2": d.normal(3), "cov2": b}


def _mixture_of(d: Draws) -> Arguments:
    return {
        "weights": [0.4, 0.6],
        "means": d.normal(2, 2),
        "stds": d.pick([0.3, 0.1], torch.ones(2)),
        "labels": d.pick(None, [0, 1]),
    }


def _optimal(d: Draws) -> Arguments:
    method = d.pick("fm", "delta_fm", "vecor")
    return {
        "mixture": toy.mixture("two_classes"),
        "x": d.normal(4, 2),
        "t": d.times(4),
        "y": d.pick(None, d.labels(4, 2)),
        "method": method,
        "weight": 0.1,
        "k": d.pick(1, 2) if method == "vecor" else 1,
        "path": d.pick(LINEAR, COSINE),
    }


def _toy(d: Draws) -> Arguments:
    return {"n": d.pick(1, 5), "generator": d.fresh()}


def _drift(d: Draws) -> Arguments:
    return {
        "trajectory": d.normal(3, 4, 2),
        "mixture_or_data": toy.mixture("two_classes"),
        "ts": d.pick(None, torch.tensor([0.0, 0.4, 0.9])),
    }


def _rows_of_results() -> list[dict[str, Any]]:
    return [
        {"method": m, "seed": s, "metric": "frechet", "nfe": 4, "value": 1.0 + s}
        for m in ("fm", "vecor")
        for s in range(3)
    ]


CALLS: dict[str, Callable[[Draws], Arguments]] = {
    "engine.average.Average": lambda d: {"model": _model(), "decay": 0.9, "warmup": True},
    "cli.arguments.parse_settings": lambda d: {"settings": ["lr=1e-3", "weight=0.1"]},
    "course.pick": lambda d: {"full": 10, "fast": 2},
    "data.batches.batches": lambda d: {
        "x1": d.normal(5, 2),
        "y": d.pick(None, d.labels(5)),
        "size": 3,
        "seed": 1,
        "start": 2,
    },
    "data.batches.row_numbers": lambda d: {"count": 5, "size": 3, "seed": 1, "start": 2},
    "data.datasets.dataset": lambda d: {
        "name": d.pick("digits", "moons", "gaussians"),
        "points": 20,
        "limit": d.pick(None, 5),
    },
    "data.digits.indices": lambda d: {"split": d.pick(*digits.SPLITS)},
    "data.digits.load": lambda d: {"split": d.pick("judge_test", "train")},
    **{f"data.toy.{name}": _toy for name in toy.TOYS},
    "data.toy.from_figure3": lambda d: {"x": d.normal(4, 2)},
    "data.toy.to_figure3": lambda d: {"x": d.normal(4, 2)},
    "data.captions.decode": lambda d: {"y": captions.encode(["a red one"])},
    "data.captions.parse": lambda d: {"caption": "a red one"},
    "data.words.load": lambda d: {"split": "train", "n": 2, "seed": 0},
    "data.toy.load": lambda d: {"name": d.pick(*toy.TOYS), "n": 4, "generator": d.fresh()},
    "data.toy.mixture": lambda d: {"name": d.pick(*toy.MIXTURES)},
    "draws.class_labels": lambda d: {
        "labels": d.pick("turn", "random", "2,0"),
        "num_classes": 3,
        "n": 4,
        "first": 2,
        "generator": d.fresh(),
    },
    "draws.drop_conditions": lambda d: {
        "y": d.normal(4, 3),
        "p": 0.5,
        "null": d.normal(4, 3),
        "generator": d.fresh(),
    },
    "draws.drop_labels": lambda d: {
        "y": d.labels(6),
        "p": d.pick(0.0, 0.5, 1.0),
        "null": 3,
        "generator": d.fresh(),
    },
    "draws.independent": lambda d: {
        "x0": d.normal(4, 2),
        "x1": d.normal(4, 2),
        "y": d.pick(None, d.labels(4)),
    },
    "draws.minibatch_ot": lambda d: {
        "x0": d.normal(4, 2),
        "x1": d.normal(4, 2),
        "y": d.pick(None, d.labels(4)),
    },
    "draws.keyed_generator": lambda d: {"device": d.pick("cpu", None)},
    "draws.uniform_time": lambda d: {"n": 5, "generator": d.fresh(), "device": d.pick(None, "cpu")},
    "draws.logit_normal_time": lambda d: {
        "n": 5,
        "mean": 0.5,
        "std": 2.0,
        "generator": d.fresh(),
        "device": d.pick(None, "cpu"),
    },
    "draws.lognormal_time": lambda d: {
        "n": 5,
        "path": d.pick(LINEAR, COSINE),
        "generator": d.fresh(),
        "device": d.pick(None, "cpu"),
    },
    "lab.statistics.differences": lambda d: {
        "rows": _rows_of_results(),
        "metric": "frechet",
        "nfe": 4,
        "base": "fm",
    },
    "lab.statistics.report": lambda d: {"rows": _rows_of_results(), "metric": "frechet", "nfe": 4},
    "guidance.cfg": lambda d: {
        "model": _model(),
        "y": d.pick(1, d.labels(4)),
        "scale": d.pick(1, 2.5),
        "interval": (0.2, 0.8),
    },
    "guidance.conditional": lambda d: {"model": _model(), "y": d.pick(None, 1, d.labels(4))},
    "guidance.debias": lambda d: {
        "velocity": velocity,
        "weight": 0.1,
        "mean_velocity": d.normal(2),
        "interval": (0, 1),
    },
    "guidance.debias_shuffle": lambda d: {
        "velocity": velocity,
        "weight": 0.1,
        "k": 2,
        "exclude_identity": True,
        "interval": (0, 0.5),
    },
    "guidance.guide": lambda d: {
        "good": velocity,
        "bad": velocity,
        "scale": 1.5,
        "interval": (0.1, 0.9),
    },
    "guidance.rescale": lambda d: {"velocity": velocity, "factor": d.pick(1.1, lambda t: t)},
    "guidance.rescale_in_time": lambda d: {
        "velocity": velocity,
        "alpha": 0.5,
        "beta": 2.0,
    },
    "guidance.retarget": lambda d: {
        "velocity": velocity,
        "weight": 0.1,
        "mean_velocity": d.normal(2),
    },
    "guidance.retarget_shuffle": lambda d: {
        "velocity": velocity,
        "weight": 0.1,
        "k": 2,
        "exclude_identity": True,
    },
    "samplers.log_prob": lambda d: {
        "velocity": velocity,
        "x1": d.normal(2, 2),
        "ts": torch.linspace(1, 0, 3),
        "step": samplers.euler,
        "grad": False,
        # the exact trace draws nothing
        **d.pick(
            {"trace": d.pick(None, "exact")},
            {"trace": "hutchinson", "n_probes": 2, "generator": d.fresh()},
        ),
    },
    "guidance.debias_linear": lambda d: {**_linear(d), "path": d.pick(LINEAR, COSINE)},
    "guidance.retarget_linear": lambda d: {**_linear(d), "path": d.pick(LINEAR, COSINE)},
    "losses.align": lambda d: {"projected": d.normal(3, 4, 5), "target": d.normal(3, 4, 5)},
    "losses.contrastive": lambda d: {
        "h": _features(d),
        "h_positive": _features(d),
        "variant": d.pick("infonce_l2", "infonce_cosine", "hinge", "covariance"),
        "tau": 0.5,
        "margin": 1.0,
        "w": 0.5,
        "normalize_by_dim": True,
        "distance": d.pick("sq_l2", "l2"),
    },
    "losses.contrastive_flow_matching": lambda d: {
        "v": d.normal(4, 3),
        "u": d.normal(4, 3),
        "u_neg": d.normal(4, 3),
        "weight": 0.05,
        "keep": d.pick(None, torch.ones(4)),
        "rescale": True,
    },
    "losses.dispersive": lambda d: {
        "h": _features(d),
        "variant": d.pick("infonce_l2", "infonce_cosine", "hinge", "covariance"),
        "tau": 0.5,
        "margin": 1.0,
        "normalize_by_dim": True,
        "include_diagonal": d.pick(True, False),
        "distance": d.pick("sq_l2", "l2"),
    },
    "losses.flow_matching": lambda d: {"v": d.normal(4, 3), "u": d.normal(4, 3)},
    "losses.repulsion": lambda d: {
        "v": d.normal(4, 3),
        "u_neg": d.normal(2, 4, 3),
        "keep": d.pick(None, torch.ones(4)),
        "rescale": False,
    },
    "losses.squared_error": _pair,
    "losses.vecor": lambda d: {
        "v": d.normal(4, 3),
        "u": d.normal(4, 3),
        "u_neg": d.normal(2, 4, 3),
        "weight": 0.05,
    },
    "metrics.accuracy": lambda d: {"logits": d.normal(6, 3), "y": d.labels(6)},
    "metrics.drift": lambda d: {**_drift(d), "generator": d.fresh()},
    "metrics.drift_by_time": lambda d: {
        **_drift(d),
        "path": LINEAR,
        "n_reference": 50,
        "generator": d.fresh(),
    },
    "metrics.effective_rank": lambda d: {"h": d.normal(5, 3)},
    "metrics.frechet": lambda d: _rows(d, "features_a", "features_b"),
    "metrics.frechet_distance": _spectrum,
    "metrics.frechet_to": lambda d: {
        "features": d.normal(d.pick(2, 9), 3),
        "mean": d.normal(3),
        "covariance": _spectrum(d)["cov1"],
    },
    "metrics.moments": lambda d: {"features": d.normal(6, 3)},
    "metrics.inception_score": lambda d: {"logits": d.normal(6, 3), "splits": d.pick(1, 2)},
    "metrics.mmd": lambda d: {**_rows(d, "a", "b"), "bandwidths": d.pick(None, 1.0, [0.5, 1.0])},
    "metrics.nearest_distances": lambda d: _rows(d, "x", "reference"),
    "metrics.nearest_ratio": lambda d: _rows(d, "fake", "train", "real"),
    "metrics.neighbour_radii": lambda d: {"x": d.normal(6, 3), "k": 2},
    "metrics.precision_recall": lambda d: {**_rows(d, "real", "fake"), "k": 2},
    "metrics.sliced_wasserstein": lambda d: {
        **_rows(d, "a", "b"),
        "n_projections": 5,
        "generator": d.fresh(),
    },
    "metrics.straightness": lambda d: {"trajectory": d.normal(3, 4, 2)},
    "metrics.velocity_deficit": lambda d: {"v": d.normal(4, 3), "u": d.normal(4, 3)},
    "models.embed.count_parameters": lambda d: {"model": _model()},
    "models.embed.timestep_features": lambda d: {
        "t": d.times(4),
        "dim": d.pick(6, 7),
        "max_period": 100.0,
    },
    "models.mlp.MLP": lambda d: {
        "data_shape": d.pick(2, (1, 4, 4)),
        "hidden_size": 8,
        "depth": 2,
        "num_classes": 3,
        "class_dropout_prob": 0.1,
        "residual": d.pick(True, False),
    },
    "models.official.load_official": lambda d: {
        "state_dict_or_path": export_official(_SIT, format="sit"),
        "format": "sit",
        "num_heads": 2,
        "hidden_size": 8,
        "depth": 1,
    },
    "models.sit.SiT": lambda d: {
        "input_size": 4,
        "patch_size": 2,
        "in_channels": 1,
        "hidden_size": 8,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "class_dropout_prob": 0.1,
        "num_classes": 3,
        "learn_sigma": False,
        "qk_norm": True,
    },
    "models.mmdit.MMDiT": lambda d: {
        "input_size": 4,
        "patch_size": 2,
        "in_channels": 1,
        "hidden_size": 8,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "context_dim": 4,
        "context_length": 3,
        "vocab_size": d.pick(0, 5),
        "zero_init": d.pick(True, False),
    },
    "models.unet.UNet": lambda d: {
        "input_size": 8,
        "in_channels": 1,
        "channels": (8, 16),
        "num_res_blocks": 1,
        "patch_size": 2,
        "num_heads": 2,
        "num_classes": 3,
        "class_dropout_prob": 0.1,
    },
    "negatives.Perturbed": lambda d: {
        "transform": perturbations.channel_shuffle,
        "space": "latent",
        "path": LINEAR,
        "k": 2,
        "codec": None,
    },
    "negatives.in_batch": lambda d: {"sample": d.sample(2), "generator": d.fresh()},
    "negatives.in_batch_mean": lambda d: {"data_mean": d.normal(2)},
    "negatives.other_class": lambda d: {"sample": d.sample(2), "generator": d.fresh()},
    "negatives.other_condition": lambda d: {"sample": d.sample(2), "generator": d.fresh()},
    "negatives.perturbed": lambda d: {
        "transform": perturbations.channel_shuffle,
        "space": "velocity",
        "path": COSINE,
        "k": 1,
        "codec": None,
    },
    "objective.Objective": lambda d: {
        "model": _model(),
        "path": LINEAR,
        "terms": (terms.FlowMatching(), terms.Repulsion(0.1)),
        "time": torch.rand,
        "couple": draws.independent,
        "label_dropout": 0.1,
        "shard": d.pick(None, 4),
    },
    "objective.delta_fm": lambda d: {
        "model": _model(),
        "weight": 0.05,
        "negatives": negatives.other_class,
        "contrast_null": False,
        "shard": 4,
    },
    "objective.dispersive": lambda d: {
        "model": _model(),
        "weight": 0.5,
        "tau": 0.5,
        "block": d.pick(None, 1),
        "variant": "hinge",
    },
    "objective.fm": lambda d: {"model": _model(), "label_dropout": 0.2, "path": VP},
    "objective.vecor": lambda d: {
        "model": _model(),
        "weight": 0.05,
        "k": 2,
        "perturb": perturbations.additive_noise,
        "space": "velocity",
        "codec": None,
        "path": LINEAR,
    },
    "paths.Path.interpolate": lambda d: {
        "x0": d.normal(4, 2),
        "x1": d.normal(4, 2),
        "t": d.times(4),
    },
    "paths.Path.endpoints": lambda d: {"x": d.normal(4, 2), "v": d.normal(4, 2), "t": d.times(4)},
    "paths.Path.score": lambda d: {"x": d.normal(4, 2), "v": d.normal(4, 2), "t": d.times(4)},
    "paths.Path.velocity_from_score": lambda d: {
        "x": d.normal(4, 2),
        "score": d.normal(4, 2),
        "t": d.times(4),
    },
    "paths.Path.velocity_from_data": lambda d: {
        "x": d.normal(4, 2),
        "x1": d.normal(4, 2),
        "t": d.times(4),
    },
    "paths.Path.velocity_from_noise": lambda d: {
        "x": d.normal(4, 2),
        "x0": d.normal(4, 2),
        "t": d.times(4),
    },
    "perturbations.additive_noise": lambda d: {
        "x": d.normal(4, 3),
        "std": 0.5,
        "generator": d.fresh(),
    },
    "perturbations.channel_shuffle": lambda d: {
        "x": d.normal(4, d.pick(2, 3, 9)),
        "per_sample": True,
        "exclude_identity": d.pick(True, False),
        "generator": d.fresh(),
    },
    "perturbations.color_jitter": lambda d: {
        "x": _images(d),
        "contrast": 0.4,
        "brightness": 0.2,
        "generator": d.fresh(),
    },
    "perturbations.crop_resize": lambda d: {
        "x": _images(d),
        "side": (0.5, 0.8),
        "generator": d.fresh(),
    },
    "perturbations.cutmix": lambda d: {"x": _images(d), "area": (0.3, 0.5), "generator": d.fresh()},
    "perturbations.expected_map": lambda d: {
        "transform": perturbations.crop_resize,
        "shape": (1, 3, 3),
        "draws": 3,
        "seed": 1,
    },
    "perturbations.gaussian_blur": lambda d: {
        "x": _images(d),
        "sigma": (0.5, 1.0),
        "generator": d.fresh(),
    },
    "runs.recipe.from_dict": lambda d: {"fields": {"lr": 1e-3, "depth": 2}},
    "runs.imagenet.imagenet": lambda d: {"method": "vecor", "model": "SiT-Ti/2", "lr": 1e-4},
    "runs.imagenet.versus": lambda d: {"method": "repa_vecor"},
    "runs.recipe.recipe": lambda d: {"name": "digits", "lr": 1e-3, "batch": 64},
    "runs.recipe.Recipe": lambda d: dict(recipe("digits").as_dict()),
    "runs.imagenet.ImageNet": lambda d: dict(imagenet("vecor", model="SiT-Ti/2").as_dict()),
    "runs.machine.pick_device": lambda d: {"name": d.pick("auto", "cpu")},
    "samplers.diffusion_coefficient": lambda d: {
        "t": d.times(4),
        "diffusion": d.pick(*samplers.DIFFUSIONS),
        "path": LINEAR,
        "norm": 1.0,
    },
    "samplers.evaluations": lambda d: {
        "solver": d.pick(*samplers.EVALUATIONS),
        "steps": 3,
        "guidance": 1.5,
        "interval": (0.2, 0.8),
    },
    "samplers.sample": lambda d: {
        "velocity": d.pick(velocity, _model()),
        "x": d.normal(4, 2),
        "ts": _grid(d),
        "step": samplers.heun,
    },
    "samplers.sample_adaptive": lambda d: {
        "velocity": velocity,
        "x": d.normal(4, 2),
        "t0": 0.0,
        "t1": 1.0,
        "rtol": 1e-3,
        "atol": 1e-3,
    },
    "samplers.sample_sde": lambda d: {
        "velocity": velocity,
        "x": d.normal(4, 2),
        "ts": torch.linspace(0, 0.96, 4),
        "path": LINEAR,
        "diffusion": "sigma",
        "norm": 1.0,
        "last_step": d.pick("mean", "euler", "tweedie"),
        "last_step_size": 0.04,
        **d.pick({"generator": d.fresh()}, {"noise": d.normal(3, 4, 2)}),
    },
    "samplers.trajectory": lambda d: {
        "velocity": velocity,
        "x": d.normal(4, 2),
        "ts": _grid(d),
        "step": samplers.rk4,
    },
    "terms.Contrastive": lambda d: {
        "weight": 0.5,
        "block": 1,
        "variant": "hinge",
        "tau": 0.5,
        "views": "restricted",
        "max_gap": 0.1,
        "name": None,
    },
    "terms.Dispersive": lambda d: {
        "weight": 0.5,
        "block": 1,
        "variant": "hinge",
        "tau": 0.5,
        "name": None,
    },
    "terms.ConditionRepulsion": lambda d: {
        "weight": 0.5,
        "negatives": negatives.other_condition,
        "contrast_null": True,
        "name": None,
        "rescale": False,
    },
    "terms.FlowMatching": lambda d: {"weight": 1.0, "name": d.pick(None, "fit")},
    "terms.Repulsion": lambda d: {
        "weight": 0.5,
        "negatives": negatives.in_batch,
        "contrast_null": True,
        "name": None,
        "rescale": False,
    },
    "theory.GaussianMixture": _mixture_of,
    "theory.GaussianMixture.sample": lambda d: {"n": 5, "generator": d.fresh()},
    **{
        f"theory.GaussianMixture.{name}": lambda d: {
            "x": d.normal(4, 2),
            "t": d.times(4),
            "y": d.pick(None, d.labels(4, 2)),
            "path": d.pick(LINEAR, COSINE, VP),
        }
        for name in ("log_prob", "velocity", "score", "responsibilities")
    },
    "theory.mean_negative": lambda d: {
        "mixture": toy.mixture("two_classes"),
        "x": d.normal(4, 2),
        "t": d.times(4),
        "y": None,
        "method": d.pick("delta_fm", "vecor"),
        "path": LINEAR,
    },
    "theory.optimal_velocity": _optimal,
    "engine.average.share_of_start": lambda d: {
        "decay": 0.9,
        "warmup": d.pick(True, False),
        "updates": 3,
    },
    "training.Trainer": lambda d: {
        "objective": objective.fm(_model()),
        "lr": 1e-3,
        "clip": d.pick(None, 1.0),
        "ema_decay": 0.9,
        "ema_warmup": True,
        "ema2_decay": d.pick(0.0, 0.5),
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "seed": 1,
        "accumulate": 1,
        "precision": "bf16",
        "log_every": 5,
        "compile": False,
        "runaway": d.pick(None, 20.0),
    },
    "engine.settings.warmup": lambda d: {"steps": d.pick(0, 10)},
    "viz.style.method_style": lambda d: {"name": d.pick("fm", "mine")},
    "viz.style.method_title": lambda d: {"name": d.pick("fm", "mine")},
    "viz.artists.grid_points": lambda d: {"limits": (-1, 1, -1, 1), "n": 3, "inset": True},
    "viz.artists.evaluate": lambda d: {"velocity": velocity, "x": np.zeros((3, 2)), "t": 0.5},
    "viz.artists.arrow_scale": lambda d: {
        "vectors": [d.normal(3, 2)],
        "limits": (-1, 1, -1, 1),
        "n": 5,
        "longest": 2.0,
    },
    "viz.artists.density_map": lambda d: {
        "density": lambda x: -x.square().sum(1),
        "limits": (-1, 1, -1, 1),
        "n": 4,
    },
    "viz.artists.likely": lambda d: {"log_density": np.zeros((4, 4))},
    "viz.artists.mass_levels": lambda d: {"log_density": np.zeros((4, 4)), "masses": (0.5, 0.9)},
    "course.figures.tokens.patches": lambda d: {"image": d.normal(1, 4, 4), "patch_size": 2},
}
METHODS_OF = {"paths.Path": LINEAR, "theory.GaussianMixture": toy.mixture("two_classes")}
# these draw from the global generator, as torch's own modules do, and say so
DRAWS_GLOBALLY = {"models.mlp.MLP", "models.sit.SiT", "models.official.load_official"} | {
    "models.mmdit.MMDiT",
    "models.unet.UNet",
}


def target(name: str) -> Callable[..., Any]:
    """What `name` of CALLS calls: a public object, or a method of one of METHODS_OF."""
    owner, _, method = name.rpartition(".")
    if owner in METHODS_OF:
        return getattr(METHODS_OF[owner], method)
    return PUBLIC[name]


def finish(result: Any) -> Any:
    """Iterators do their work when asked: take a few items."""
    if isinstance(result, Iterator):
        return [item for item, _ in zip(result, range(5))]
    return result


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors_of(v)]
    if isinstance(value, nn.Module):
        return [*value.parameters()]
    return []


PUBLIC = public()
# what a message may name instead of the argument: what it must agree with, or a name that reads
# better
ALSO: dict[str, tuple[str, ...]] = {
    "bandwidths": ("bandwidth",),
    "y": ("labels", "label"),
    "name": ("dataset", "recipe", "device", "method", "toy"),
    "x": ("velocity", "state", "noise has"),
    "trajectory": ("states",),
    "null": ("labels",),
    "metrics.accuracy.logits": ("y has", "labels span"),
    "state_dict_or_path": ("suffix", "state dict"),
    "mean1": ("mean of length",),
    "mean2": ("mean of length",),
    "norm": ("velocity there",),
    "transform": ("perturb",),
    "fields": ("recipe",),
    "settings": ("--set",),
}
# functions of the caller's own: what goes wrong inside them is theirs
FUNCTIONS = {"velocity", "step", "model", "density", "good", "bad", "transform"}
