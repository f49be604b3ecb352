"""The losses on batches that nobody wants: one row, one class, duplicates, tiny and huge norms,
half precision, nothing kept.
"""

import random

import pytest
import torch

from cfm_lite import losses
from tests.faults import counts

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST = {
    torch.float16: 1e3,
    torch.bfloat16: 1e4,
    torch.float32: 1e4,
    torch.float64: 1e4,
}  # 65504 is float16's


def batch(draw, generator):
    """A tensor (B, d) with a fault: equal rows, zero rows, one row, one feature, a norm from 1e-8
    to 1e4, a constant column.
    """
    rows, width = draw.choice([1, 2, 3, 8]), draw.choice([1, 2, 5, 16])
    dtype = draw.choice(DTYPES)
    x = torch.randn(rows, width, generator=generator)
    fault = draw.randrange(7)
    if fault == 0:
        x = x[:1].repeat(rows, 1)
    elif fault == 1:
        x[: (rows + 1) // 2] = 0
    elif fault == 2:
        x = torch.zeros(rows, width)
    elif fault == 3:
        x[:, 0] = 7.0
    elif fault == 4:
        x = x + 1000 * torch.randn(1, width, generator=generator)
        return x.to(dtype)
    scale = 10 ** draw.uniform(-8, 4)
    return (x * min(scale, LARGEST[dtype])).to(dtype)


def twin(x, draw, generator):
    """Another tensor of that shape: the same, its negative, or one of another norm."""
    kind = draw.randrange(3)
    if kind < 2:
        return (x if kind else -x).clone()
    other = torch.randn(x.shape, generator=generator) * 10 ** draw.uniform(-8, 3)
    return other.to(x.dtype)


def one_call(draw, generator, widen=False):
    """(what was called, its value, the gradient); with `widen` the same numbers as float32."""
    x = batch(draw, generator)
    x = (x.float() if widen else x).requires_grad_()
    rows = len(x)
    which = draw.randrange(7)
    keep = draw.choice(
        [None, torch.zeros(rows), torch.ones(rows, dtype=torch.bool), torch.arange(rows) % 2 == 0]
    )
    rescale = draw.random() < 0.5
    if which == 0:
        what, value = "flow_matching", losses.flow_matching(x, twin(x, draw, generator))
    elif which == 1:
        u_neg = torch.stack([twin(x, draw, generator) for _ in range(draw.choice([1, 3]))]).detach()
        what, value = "repulsion", losses.repulsion(x, u_neg, keep, rescale)
    elif which == 2:
        k = draw.choice([1, 3])
        u_neg = torch.stack([twin(x, draw, generator) for _ in range(k)]).detach()
        weight = draw.choice([0.0, 0.05, 0.48 / k])
        value = losses.contrastive_flow_matching(
            x, twin(x, draw, generator), u_neg, weight, keep, rescale
        )
        what = "contrastive_flow_matching"
    elif which == 3:
        variant = draw.choice(VARIANTS)
        options = {"include_diagonal": draw.random() < 0.5, "normalize_by_dim": draw.random() < 0.5}
        options |= {"distance": draw.choice(losses.DISTANCES), "tau": 10 ** draw.uniform(-2, 1)}
        what, value = f"dispersive {variant}", losses.dispersive(x, variant, **options)
    elif which == 4:
        variant = draw.choice(VARIANTS)
        other = twin(x, draw, generator).detach().requires_grad_(draw.random() < 0.5)
        what, value = (
            f"contrastive {variant}",
            losses.contrastive(x, other, variant, distance=draw.choice(losses.DISTANCES)),
        )
    elif which == 5:
        what, value = "align", losses.align(x[None], twin(x, draw, generator)[None])
    else:
        what, value = "squared_error", losses.squared_error(x, twin(x, draw, generator)).sum()
    value.backward()
    return what, value.detach(), x.grad


def many_calls(n, seed):
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    kinds, bad = {}, []
    for number in range(n):
        before = draw.getstate(), generator.get_state()
        what, value, grad = one_call(draw, generator)
        kinds[what] = kinds.get(what, 0) + 1
        fine = value.isfinite() and value.dtype in (torch.float32, torch.float64)
        if not fine or not (
            grad.isfinite().all() or (grad.dtype == torch.float16 and beyond_float16(*before))
        ):
            bad.append((number, what, float(value)))
    return kinds, bad


def beyond_float16(state, generator_state):
    """True if the gradient of that call is finite but larger than any float16, such as that of a
    cosine at a length of 1e-7.
    """
    draw, generator = random.Random(), torch.Generator()
    draw.setstate(state), generator.set_state(generator_state)
    grad = one_call(draw, generator, widen=True)[2]
    return bool(grad.isfinite().all() and grad.abs().max() > 65_000)


@pytest.mark.filterwarnings("ignore:a batch of one")
def test_3000_adversarial_calls_give_finite_losses_and_gradients():
    kinds, bad = many_calls(3000, seed=0)
    assert not bad, bad[:5]
    assert len(kinds) == 13


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:a batch of one")
@pytest.mark.parametrize("part", range(4))
def test_25000_adversarial_calls_four_times_give_finite_losses_and_gradients(part):
    kinds, bad = many_calls(25_000, seed=100 + part)
    counts.write(
        f"losses_{part}",
        calls=sum(kinds.values()),
        not_finite=len(bad),
        **{name.replace(" ", "_"): n for name, n in sorted(kinds.items())},
    )
    assert not bad, bad[:5]


@pytest.mark.parametrize("norm", [1e-18, 1e-8, 1e8, 1e15])
def test_far_beyond_the_promise_the_velocity_losses_are_finite_too(norm):
    v = (norm * torch.randn(8, 16)).requires_grad_()
    u, u_neg = norm * torch.randn(8, 16), norm * torch.randn(2, 8, 16)
    value = losses.contrastive_flow_matching(v, u, u_neg, 0.2)
    value.backward()
    assert value.isfinite()
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("norm", [1e-18, 1e-8, 1e8, 1e15])
def test_far_beyond_the_promise_the_feature_losses_are_finite_too(variant, norm):
    h = (norm * torch.randn(8, 16)).requires_grad_()
    value = losses.dispersive(h, variant) + losses.contrastive(
        h, h.detach().flip(0), variant if variant != "hinge" else "infonce_l2"
    )
    value.backward()
    assert value.isfinite()
    assert h.grad.isfinite().all()


def test_a_loss_that_is_not_finite_would_be_found():
    """The harness itself: a zero vector divided by its length is what a careless cosine does."""
    x = torch.zeros(2, 3, requires_grad=True)
    (x / x.norm()).sum().backward()
    assert not x.grad.isfinite().all()
