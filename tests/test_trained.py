"""Small networks, trained for seconds, approach the closed-form optimum of their own objective."""

import math

import pytest
import torch

from cfm_lite import objective, theory
from cfm_lite.data import toy
from cfm_lite.data.batches import batches
from cfm_lite.draws import keyed_generator
from cfm_lite.models import MLP
from cfm_lite.paths import COSINE, LINEAR
from cfm_lite.training import Trainer
from tools import figure3

MIXTURE = toy.mixture("two_classes")
X1, Y1 = toy.two_classes(20_000, generator=keyed_generator("cpu", 0, "train"))
WEIGHT = 0.3


def train(build, steps=600):
    torch.manual_seed(0)
    trainer = Trainer(
        build(MLP(2, 64, 4, num_classes=2)),
        lr=6e-3,
        ema_decay=0.99,
        schedule=lambda step: min(1.0, 2 * (1 - step / steps)),
    )
    for _ in trainer.run(batches(X1, Y1, size=384), steps):
        pass
    return trainer.ema


def error(model, method, path=LINEAR, weight=WEIGHT):
    """E|v - v*|^2 / E|v*|^2 over positions and times of the path itself, both classes."""
    g = keyed_generator("cpu", 1, "probe")
    x1, y = MIXTURE.sample(8000, generator=g)
    x1 = x1.float()
    t = 0.02 + 0.96 * torch.rand(8000, generator=g)
    x_t, _ = path.interpolate(torch.randn(x1.shape, generator=g), x1, t)
    best = theory.optimal_velocity(MIXTURE, x_t, t, y, method=method, weight=weight, path=path)
    with torch.no_grad():
        return float((model(x_t, t, y) - best).square().mean() / best.square().mean())


@pytest.mark.parametrize(
    ("method", "build"),
    [
        ("fm", lambda m: objective.fm(m)),
        ("delta_fm", lambda m: objective.delta_fm(m, WEIGHT)),
        ("vecor", lambda m: objective.vecor(m, WEIGHT)),
    ],
)
def test_a_trained_network_is_near_its_own_optimum_and_far_from_the_others(method, build):
    model = train(build)
    errors = {other: error(model, other) for other in ("fm", "delta_fm", "vecor")}
    assert errors[method] < 0.02
    assert all(value > 3 * errors[method] for other, value in errors.items() if other != method), (
        errors
    )


def test_on_the_cosine_path_too():
    assert (
        error(train(lambda m: objective.delta_fm(m, WEIGHT, path=COSINE)), "delta_fm", COSINE)
        < 0.02
    )


def test_figure_3_doubles_the_gap_of_the_target_and_more_than_doubles_that_of_the_endpoints():
    assert figure3.target_gap(0.0) == pytest.approx(1.0879, abs=1e-3)
    assert figure3.target_gap(0.5) == pytest.approx(2.1758, abs=2e-3)
    assert figure3.endpoint_gap(figure3.exact(0.0)) == pytest.approx(1.088, abs=2e-3)
    assert figure3.endpoint_gap(figure3.exact(0.5)) == pytest.approx(
        1.0879 * (1 + math.pi / 2), abs=5e-3
    )
