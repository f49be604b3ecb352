"""torch.func and forward-mode autograd on every loss, on the theory, the paths and the models: what
a plain loop gives.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close

from cfm_lite import guidance, losses, samplers, theory
from cfm_lite.models import MLP, SiT
from cfm_lite.paths import COSINE, LINEAR, VP

B = 5


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KEEP = torch.tensor([True, False, True, True, False])
TIMES = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
LABELS = torch.arange(B) % 2
# a function of the tensors that follow it; the first of them is differentiated
CALLS = {
    "squared_error": (
        lambda a, b: losses.squared_error(a, b).sum(),
        normal(B, 3),
        normal(B, 3, seed=1),
    ),
    "flow_matching": (losses.flow_matching, normal(B, 3), normal(B, 3, seed=1)),
    "repulsion": (losses.repulsion, normal(B, 3), normal(2, B, 3, seed=1)),
    "repulsion, kept": (
        lambda v, n, keep: losses.repulsion(v, n, keep, True),
        normal(B, 3),
        normal(B, 3, seed=1),
        KEEP,
    ),
    "contrastive_flow_matching": (
        losses.contrastive_flow_matching,
        normal(B, 3),
        normal(B, 3, seed=1),
        normal(B, 3, seed=2),
    ),
    "contrastive_flow_matching, kept": (
        lambda v, u, n, keep: losses.contrastive_flow_matching(v, u, n, 0.05, keep, True),
        *(normal(B, 3), normal(B, 3, seed=1), normal(2, B, 3, seed=2), KEEP.double()),
    ),
    "vecor": (losses.vecor, normal(B, 2, 2), normal(B, 2, 2, seed=1), normal(3, B, 2, 2, seed=2)),
    "align": (losses.align, normal(B, 2, 3), normal(B, 2, 3, seed=1)),
    **{
        f"dispersive {variant} {options}": (
            lambda h, v=variant, o=options: losses.dispersive(h, v, margin=3.0, **o),
            normal(B, 4),
        )
        for variant in losses.VARIANTS
        for options in (
            {},
            {"include_diagonal": False, "distance": "l2"},
            {"normalize_by_dim": False},
        )
    },
    **{
        f"contrastive {variant} {options}": (
            lambda h, other, v=variant, o=options: losses.contrastive(
                h, other, v, margin=3.0, w=0.5, **o
            ),
            *(normal(B, 4), normal(B, 4, seed=1)),
        )
        for variant in losses.VARIANTS
        for options in ({}, {"distance": "l2", "normalize_by_dim": False})
    },
}
MIX = theory.GaussianMixture([0.4, 0.6], [[0.0, 1.0], [2.0, -1.0]], [0.5, 0.7])
FULL = theory.GaussianMixture(
    [0.4, 0.6],
    [[0.0, 1.0], [2.0, -1.0]],
    covariances=[[[1.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 2.0]]],
)
for path in (LINEAR, COSINE, VP):
    for name in ("log_prob", "velocity", "score"):
        for mixture in (MIX, FULL):
            CALLS[f"{name} on {path.name}, {'stds' if mixture is MIX else 'covariances'}"] = (
                lambda x, t, y, m=mixture, n=name, p=path: getattr(m, n)(x, t, y, p).sum(),
                *(normal(B, 2), TIMES, LABELS),
            )
    CALLS[f"optimal_velocity on {path.name}"] = (
        lambda x, t, p=path: (
            theory.optimal_velocity(MIX, x, t, method="vecor", k=2, path=p).square().sum()
        ),
        *(normal(B, 2), TIMES),
    )
    for name in (
        "interpolate",
        "endpoints",
        "score",
        "velocity_from_score",
        "velocity_from_data",
        "velocity_from_noise",
    ):

        def converted(a, b, t, name=name, path=path):
            found = getattr(path, name)(a, b, t)
            return sum(
                part.square().sum() for part in (found if isinstance(found, tuple) else (found,))
            )

        CALLS[f"{name} on {path.name}"] = (converted, normal(B, 2), normal(B, 2, seed=1), TIMES)


def network(kind):
    torch.manual_seed(0)
    model = (
        MLP(4, 6, 2, 2, residual=True)
        if kind == "residual MLP"
        else MLP(4, 6, 2, 2)
        if kind == "MLP"
        else SiT(2, 1, 1, 8, 2, 2, 2.0, 0.1, 2)
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    model.checkpointing = True
    return model.double()


NETWORKS = {kind: network(kind) for kind in ("MLP", "residual MLP", "SiT")}
for kind, model in NETWORKS.items():
    shape = (B, 1, 2, 2) if kind == "SiT" else (B, 4)
    CALLS[kind] = (
        lambda x, t, y, m=model: m(x, t, y).square().sum(),
        normal(*shape),
        TIMES,
        LABELS,
    )
    CALLS[f"{kind}, guided and walked"] = (
        lambda x, m=model: (
            samplers.sample(guidance.cfg(m, 1, 1.5, (0.2, 0.9)), x, torch.linspace(0, 1, 3))
            .square()
            .sum()
        ),
        normal(*shape),
    )
FLAT = [name for name in CALLS if "walked" in name]  # `sample` gives no gradient

EVERY = pytest.mark.parametrize("name", CALLS)
SMOOTH = pytest.mark.parametrize("name", [name for name in CALLS if name not in FLAT])


def plain_gradient(f, x, *rest):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x, *rest), x)[0]


@SMOOTH
def test_first_derivatives_by_every_transform_are_those_of_plain_autograd(name):
    f, x, *rest = CALLS[name]
    expected, tangent = plain_gradient(f, x, *rest), torch.ones_like(x).cumsum(0)

    def of(x):
        return f(x, *rest)

    assert_close(grad(of)(x), expected)
    assert_close(jacrev(of)(x), expected)
    assert_close(jacfwd(of)(x), expected)
    assert_close(vjp(of, x)[1](torch.ones((), dtype=x.dtype))[0], expected)
    assert_close(jvp(of, (x,), (tangent,)), (of(x), (expected * tangent).sum()))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(of(forward_ad.make_dual(x, tangent)))
    assert_close(dual.tangent, (expected * tangent).sum())


@SMOOTH
def test_second_derivatives_agree_forward_and_backward(name):
    f, x, *rest = CALLS[name]

    def of(x):
        return f(x, *rest)

    twice = jacrev(jacrev(of))(x)
    assert_close(hessian(of)(x), twice)
    if (
        "SiT" in name
    ):  # outside of torch.func its attention is one fused kernel, which has no second derivative
        return
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of(x), x, create_graph=True)
    if not slope.requires_grad:
        assert not twice.any()
        return
    rows = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    (at_once,) = torch.autograd.grad(slope, x, rows, is_grads_batched=True)
    assert_close(at_once.reshape(twice.shape), twice)


@EVERY
def test_a_batch_of_calls_is_the_calls_one_by_one(name):
    """vmap over each argument alone and over all of them, and per-call gradients."""
    f, *given = CALLS[name]
    several = [torch.stack([a.roll(k, 0) if k else a for k in range(3)]) for a in given]
    for which in [(i,) for i in range(len(given))] + [tuple(range(len(given)))]:
        arguments = [several[i] if i in which else a for i, a in enumerate(given)]
        places = tuple(0 if i in which else None for i in range(len(given)))
        expected = [
            f(*(a[k] if i in which else a for i, a in enumerate(arguments))) for k in range(3)
        ]
        assert_close(vmap(f, places)(*arguments), torch.stack(expected))
        if name not in FLAT:
            slopes = [
                plain_gradient(f, *(a[k] if i in which else a for i, a in enumerate(arguments)))
                for k in range(3)
            ]
            assert_close(vmap(grad(f), places)(*arguments), torch.stack(slopes))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CALLS
        if name.startswith(("contrastive inf", "contrastive_f", "dispersive", "align"))
    ],
)
def test_many_gradients_at_once_are_those_one_by_one(name):
    """is_grads_batched runs vmap over the backward pass alone."""
    f, x, *rest = CALLS[name]
    x, seeds = x.clone().requires_grad_(), torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)
    (several,) = torch.autograd.grad(f(x, *rest), x, seeds, is_grads_batched=True)
    assert_close(several, seeds.reshape(3, *[1] * x.dim()) * plain_gradient(f, x, *rest))


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_the_parameters_row_by_row(kind):
    model, (_, x, t, y) = NETWORKS[kind], CALLS[kind]
    parameters, target = dict(model.named_parameters()), torch.ones_like(x)

    def loss(parameters, x, t, y, u):
        v = functional_call(model, parameters, (x[None], t[None], y[None]))
        return losses.contrastive_flow_matching(v, u[None], 2 * u[None], 0.1)

    several = vmap(grad(loss), (None, 0, 0, 0, 0))(parameters, x, t, y, target)
    for row in range(2):
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        one = torch.autograd.grad(
            loss(parameters, x[row], t[row], y[row], target[row]), list(trained.values())
        )
        for name, expected in zip(trained, one):
            assert_close(several[name][row], expected, msg=name)
