"""What the ideas are made of passes through a pickle: torch.save, spawned processes, copies."""

import copy
import functools
import io
import math
import pickle

import pytest
import torch

from cfm_lite import draws, guidance, negatives, objective, perturbations
from cfm_lite.lab import ARMS
from cfm_lite.models import MLP, SiT
from cfm_lite.objective import Alignment, Contrastive, Dispersive, Repulsion
from cfm_lite.paths import COSINE, LINEAR, VP, Path
from cfm_lite.runs.recipe import METHODS, build_model, build_objective, build_trainer, recipe
from cfm_lite.theory import GaussianMixture
from tests.networks import Tiny

X, T, Y = (
    torch.randn(6, 2, generator=torch.Generator().manual_seed(0)),
    torch.linspace(0.1, 0.9, 6),
    torch.arange(6) % 3,
)
MIX = GaussianMixture(
    [0.4, 0.6], [[0.0, 1.0], [2.0, -1.0]], covariances=torch.eye(2).expand(2, 2, 2)
)
SHRINK = 0.5 * torch.eye(2)


def teacher(x):
    return x[:, None]


def shrunk(t):
    return 1 - 0.1 * t


def through(thing):
    """`thing` as another process, a file and a copy see it."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return [
        pickle.loads(pickle.dumps(thing)),  # noqa: S301
        torch.load(file, weights_only=False),
        copy.deepcopy(thing),
    ]


@pytest.mark.parametrize("path", [LINEAR, COSINE, VP], ids=lambda path: path.name)
def test_a_path_of_the_library_comes_back_as_itself(path):
    assert all(other is path for other in [*through(path), copy.copy(path)])
    own = Path(path.name, math.sin, math.cos, math.cos, math.sin)
    assert all(other == own != path for other in through(own))


def objectives():
    yield objective.fm(Tiny(), time=draws.lognormal_time, path=COSINE)
    yield objective.vecor(
        Tiny(), k=2, perturb=perturbations.additive_noise, space="latent", path=VP
    )
    yield objective.delta_fm(
        Tiny(),
        negatives=negatives.other_class,
        couple=draws.minibatch_ot,
        time=functools.partial(draws.logit_normal_time, std=2.0),
    )
    yield objective.dispersive(Tiny()).plus(
        Contrastive(0.1, 2, views="restricted"),
        Dispersive(0.1, 1, "hinge", name="also"),
        Repulsion(0.1),
    )
    yield objective.fm(Tiny()).plus(Alignment(0.1, 1, 16, teacher, 2, width=8))


@pytest.mark.parametrize("number", range(5))
def test_an_objective_draws_and_weighs_the_same_after_a_pickle(number):
    built = list(objectives())[number]
    expected = built.at(1, 2)(X, Y)
    for other in through(built):
        total, values = other.at(1, 2)(X, Y)
        assert torch.equal(total, expected[0])
        assert values == expected[1]


def network():
    torch.manual_seed(0)
    model = MLP(2, 8, 2, 3)
    torch.nn.init.normal_(model.output.weight)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda m: guidance.conditional(m, Y),
        lambda m: guidance.cfg(m, Y, 2.0, (0.2, 0.8), channels=1),
        lambda m: guidance.cfg(MIX.velocity, 1, 1.5),
        lambda m: guidance.guide(m, MIX.velocity, 1.5, (0.3, 1)),
        lambda m: guidance.rescale(guidance.rescale(m, 1.1), shrunk),
        lambda m: guidance.debias(
            guidance.retarget(m, 0.1, torch.ones(2)), 0.2, torch.ones(2), (0, 0.5)
        ),
        lambda m: guidance.debias_shuffle(guidance.retarget_shuffle(m, 0.1, 2), 0.2),
        lambda m: guidance.debias_linear(
            guidance.retarget_linear(m, 0.1, SHRINK, path=COSINE), 0.2, SHRINK, space="velocity"
        ),
        lambda m: guidance.debias_linear(m, 0.1, SHRINK, path=COSINE),
    ],
)
def test_a_velocity_is_the_same_after_a_pickle(build):
    velocity = build(network())
    for other in through(velocity):
        assert torch.equal(other(X, T), velocity(X, T))


def test_a_mixture_is_the_same_after_a_pickle():
    for other in through(MIX):
        assert torch.equal(other.velocity(X, T, Y % 2, COSINE), MIX.velocity(X, T, Y % 2, COSINE))


@pytest.mark.parametrize("known", [METHODS, ARMS], ids=["methods", "arms"])
def test_methods_and_arms_come_back_as_they_were(known):
    for name, entry in known.items():
        assert {repr(other) for other in through(entry)} == {repr(entry)}, name


@pytest.mark.filterwarnings("ignore:space='image' without a codec")
@pytest.mark.parametrize("method", METHODS)
def test_what_a_recipe_builds_can_be_pickled(method):
    small = recipe(
        "digits",
        method=method,
        hidden_size=8,
        depth=2,
        block=1,
        time="lognormal",
        path="cosine",
        warmup=2,
        cooldown=0.5,
    )
    data = type("Shape", (), {"shape": (1, 8, 8), "num_classes": 10})
    built = build_objective(small, build_model(small, data))
    schedule = build_trainer(small, built.model, built=built).schedule
    for other in through((small, built, schedule)):
        assert other[0] == small
        assert [other[2](step) for step in (0, 5, small.steps - 1)] == [
            schedule(step) for step in (0, 5, small.steps - 1)
        ]
        x1 = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        assert torch.equal(other[1].at(0, 1)(x1, Y[:4])[0], built.at(0, 1)(x1, Y[:4])[0])


def test_a_spawned_process_gets_an_objective_on_a_transformer():
    """multiprocessing's own pickler, which spawn uses."""
    from multiprocessing.reduction import ForkingPickler

    built = objective.delta_fm(SiT(4, 2, 1, 8, 2, 2, num_classes=3), path=COSINE)
    other = pickle.loads(bytes(ForkingPickler.dumps(built)))  # noqa: S301
    x1 = torch.randn(6, 1, 4, 4)
    assert torch.equal(other.at(0, 1)(x1, Y)[0], built.at(0, 1)(x1, Y)[0])
