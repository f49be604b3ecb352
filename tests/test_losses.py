"""losses.py, the velocity half: the numbers of DeltaFM and REPA, closed forms of the optimum,
weights, keep, wrong arguments.
"""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cfm_lite import paths
from cfm_lite.errors import ConfigError
from cfm_lite.losses import (
    align,
    contrastive_flow_matching,
    flow_matching,
    repulsion,
    squared_error,
    vecor,
)
from tests.reference import case, cases, settings

TRIPLETS = [
    name
    for name in cases("deltafm_triplet")
    if name.startswith(("random_", "class_conditioned_lam", "forced_"))
]
CALLS = cases("deltafm_triplet", "call_")
REPA_CALLS = cases("repa_siloss", "call_")


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def keep_of(setting):
    """DeltaFM's `dont_contrast_on_unconditional`: rows with the null label are not contrasted, and
    the mean is over the others.
    """
    labels = case("deltafm_triplet", "inputs")[setting["labels"]]
    null = settings("deltafm_triplet")["inputs"]["null_class_idx"]
    return labels != null if setting["exclude_null"] else None


# agreement with the official code


@pytest.mark.parametrize("name", TRIPLETS)
def test_contrastive_loss_agrees_with_deltafm(name):
    f, inputs, setting = (
        case("deltafm_triplet", name),
        case("deltafm_triplet", "inputs"),
        settings("deltafm_triplet")[name],
    )
    v, u, u_neg, keep, weight = (
        inputs["pred"],
        inputs["target"],
        inputs["target"][f["neg_idx"]],
        keep_of(setting),
        setting["lam"],
    )
    v.requires_grad_()
    counted = torch.ones(len(v)).double() if keep is None else keep * (len(v) / keep.sum())
    close(squared_error(v, u), f["flow_loss"])
    close(squared_error(v, u_neg) * counted, f["contrastive_loss"])
    separately = flow_matching(v, u) - weight * repulsion(v, u_neg, keep, rescale=True)
    close(separately, f["loss_mean"])
    losses = [separately]
    if (
        weight < 1
    ):  # a weight of 1 has no minimum: the library refuses it, the official code does not
        losses.append(contrastive_flow_matching(v, u, u_neg, weight, keep, rescale=True))
        close(losses[1], f["loss_mean"])
    if "grad_pred_of_loss_mean" in f:
        close(flow_matching(v, u), f["flow_loss_mean"])
        close(repulsion(v, u_neg, keep, rescale=True), f["contrastive_loss_mean"])
        for loss in losses:
            close(torch.autograd.grad(loss, v)[0], f["grad_pred_of_loss_mean"])


@pytest.mark.parametrize("name", CALLS)
def test_whole_deltafm_step_agrees_after_turning_time_around(name):
    f, setting = case("deltafm_triplet", name), settings("deltafm_triplet")[name]
    tolerance = 1e-5 if setting["dtype"] == "float32" else 1e-10
    # REPA's t = 1 is noise: t -> 1 - t, v -> -v
    x_t, u = paths.PATHS[setting["path"]].interpolate(f["noises"], f["images"], 1 - f["t"])
    v, u_neg = -f["model_output"], u[f["neg_idx"]]
    keep = keep_of(setting)
    close(x_t, f["x_t"], tolerance)
    close(squared_error(v, u), f["flow_loss"], tolerance)
    close(squared_error(v, u_neg) * keep * (len(v) / keep.sum()), f["contrastive_loss"], tolerance)
    close(
        contrastive_flow_matching(v, u, u_neg, setting["lam"], keep, rescale=True),
        f["loss_mean"],
        tolerance,
    )
    close(align(f["zs_tilde"], f["zs"]), f["proj_loss"], tolerance)


@pytest.mark.parametrize("name", REPA_CALLS)
def test_flow_and_alignment_agree_with_repa(name):
    f, setting = case("repa_siloss", name), settings("repa_siloss")[name]
    _, u = paths.PATHS[setting["path"]].interpolate(f["noises"], f["images"], 1 - f["t"])
    close(squared_error(-f["model_output"], u), f["denoising_loss"])
    close(flow_matching(-f["model_output"], u), f["denoising_loss_mean"])
    encoders = range(setting["n_encoders"])
    projected = [f[f"zs_tilde{e}"].requires_grad_() for e in encoders]
    loss = sum(align(projected[e], f[f"zs{e}"]) for e in encoders) / len(encoders)
    close(loss, f["proj_loss"])
    for e, grad in enumerate(torch.autograd.grad(loss, projected)):
        close(grad, f[f"grad_zs_tilde{e}"])


# the optimum and the value


@pytest.mark.parametrize("k", [1, 2, 3])
def test_optimum_is_an_affine_target(k):
    u, u_neg, weight = normal(4, 3, 2), normal(k, 4, 3, 2, seed=1), 0.15
    best = ((u - weight * u_neg.sum(0)) / (1 - weight * k)).requires_grad_()
    loss = vecor(best, u, u_neg, weight)
    (grad,) = torch.autograd.grad(loss, best)
    close(grad, torch.zeros_like(grad))
    # completing the square: the least value, which may be negative
    least = (
        u.square().mean()
        - weight * u_neg.square().mean((1, 2, 3)).sum()
        - (1 - weight * k) * best.detach().square().mean()
    )
    close(loss.detach(), least)
    assert vecor(best + 0.1 * normal(4, 3, 2, seed=2), u, u_neg, weight) > least


def test_loss_falls_without_bound_from_weight_times_k_above_one():
    u, u_neg, ray = normal(4, 3), normal(2, 4, 3, seed=1), normal(4, 3, seed=2)
    values = [flow_matching(s * ray, u) - 0.6 * repulsion(s * ray, u_neg) for s in (1e1, 1e2, 1e3)]
    assert values[0] > values[1] > values[2]
    assert values[2] < -1e4


def test_zero_network_starts_at_one_minus_weight_times_flow_matching():
    u = normal(8, 2, 3)
    for weight in (0.05, 0.4):
        close(
            contrastive_flow_matching(torch.zeros_like(u), u, u.roll(1, 0), weight),
            (1 - weight) * flow_matching(torch.zeros_like(u), u),
        )


def test_weight_zero_is_plain_flow_matching_bit_for_bit():
    v, u = (
        normal(8, 5, dtype=torch.float32).requires_grad_(),
        normal(8, 5, seed=1, dtype=torch.float32),
    )
    plain = flow_matching(v, u)
    (grad,) = torch.autograd.grad(plain, v)
    for loss in (
        contrastive_flow_matching(v, u, torch.full_like(u, math.nan), 0.0),
        vecor(v, u, u.expand(3, 8, 5), 0),
    ):
        assert torch.equal(loss, plain)
        assert torch.equal(torch.autograd.grad(loss, v)[0], grad)


@pytest.mark.parametrize("rescale", [False, True])
def test_k_negatives_are_summed_with_and_without_keep(rescale):
    v, u_neg = normal(4, 3), normal(5, 4, 3, seed=1)
    every = torch.ones(4, dtype=torch.bool)
    close(repulsion(v, u_neg, every, rescale), sum(flow_matching(v, one) for one in u_neg))
    close(repulsion(v, u_neg), sum(flow_matching(v, one) for one in u_neg))


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3, 4), (40, 60, 40)])
@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("rescale", [False, True])
def test_one_pass_equals_the_two_losses(shape, k, rescale):
    v, u = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    u_neg = normal(*([] if k is None else [k]), *shape, seed=2)
    for keep in (None, torch.arange(shape[0]) % 2 == 0):
        together = contrastive_flow_matching(v, u, u_neg, 0.15, keep, rescale)
        apart = flow_matching(v, u) - 0.15 * repulsion(v, u_neg, keep, rescale)
        close(together, apart.detach(), 1e-12)
        close(
            torch.autograd.grad(2.5 * together, v)[0], torch.autograd.grad(2.5 * apart, v)[0], 1e-12
        )


def test_gradients_agree_with_finite_differences():
    v, u, u_neg = normal(4, 3).requires_grad_(), normal(4, 3, seed=1), normal(2, 4, 3, seed=2)
    keep = torch.tensor([True, False, True, True])
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda v: contrastive_flow_matching(v, u, u_neg, 0.2, keep, True), v)
        assert check(lambda v: vecor(v, u, u_neg, 0.2), v)
    loss = contrastive_flow_matching(v, u, u_neg, 0.2, keep, True)
    with_graph, alone = (
        torch.autograd.grad(loss, v, create_graph=g, retain_graph=True)[0] for g in (True, False)
    )
    close(with_graph.detach(), alone, 1e-12)
    assert torch.autograd.gradcheck(lambda v: repulsion(v, u_neg, keep), v)
    assert torch.autograd.gradcheck(squared_error, (v, u.requires_grad_()))
    assert torch.autograd.gradcheck(
        align, (normal(2, 3, 4).requires_grad_(), normal(2, 3, 4, seed=1))
    )


# keep


def test_keep_leaves_rows_out_of_value_and_gradient():
    v, u_neg, keep = (
        normal(6, 3).requires_grad_(),
        normal(6, 3, seed=1),
        torch.tensor([1, 0, 1, 1, 0, 1]),
    )
    rows = squared_error(v, u_neg).detach()
    close(repulsion(v, u_neg, keep.bool()), rows[keep.bool()].sum() / 6)
    close(repulsion(v, u_neg, keep.float(), rescale=True), rows[keep.bool()].mean())
    (grad,) = torch.autograd.grad(repulsion(v, u_neg, keep.bool()), v)
    assert torch.equal(grad[~keep.bool()], torch.zeros(2, 3, dtype=grad.dtype))
    assert (grad[keep.bool()] != 0).all()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("nothing", [math.nan, math.inf])
@pytest.mark.parametrize("k", [(), (2,)])
def test_what_stands_in_a_row_without_a_negative_does_not_matter(k, nothing, rescale):
    v, u_neg = normal(6, 3).requires_grad_(), normal(*k, 6, 3, seed=1)
    keep = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    without = u_neg.clone()
    without[..., ~keep, :] = nothing
    losses = [repulsion(v, wrong, keep, rescale) for wrong in (u_neg, without)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, v)[0] for loss in losses))
    assert u_neg.isfinite().all()


@pytest.mark.parametrize("rescale", [False, True])
def test_no_kept_row_gives_exactly_zero(rescale):
    v, u, u_neg, none = (
        normal(4, 3).requires_grad_(),
        normal(4, 3, seed=1),
        normal(4, 3, seed=2),
        torch.zeros(4, dtype=torch.bool),
    )
    loss = repulsion(v, u_neg, none, rescale)
    (grad,) = torch.autograd.grad(loss, v)
    assert loss == 0
    assert torch.equal(grad, torch.zeros_like(v))
    close(
        contrastive_flow_matching(v, u, u_neg, 0.3, none, rescale),
        flow_matching(v, u).detach(),
        1e-15,
    )


def test_negatives_are_summed_over_k():
    v, u_neg = normal(4, 3), normal(3, 4, 3, seed=1)
    close(repulsion(v, u_neg), sum(repulsion(v, wrong) for wrong in u_neg))
    close(repulsion(v, u_neg[0]), repulsion(v, u_neg[:1]))


# weights


@pytest.mark.parametrize("weight", [1, 1.0, 1.5, -0.1, math.nan, math.inf, "0.05", True, None])
def test_weight_outside_zero_to_one_is_refused(weight):
    v, u = normal(4, 3), normal(4, 3, seed=1)
    for loss in (contrastive_flow_matching, vecor):
        with pytest.raises(ConfigError, match="weight is"):
            loss(v, u, u.roll(1, 0), weight)


def test_weight_times_k_is_bounded_by_one_and_the_message_says_how():
    v, u, u_neg = normal(4, 3), normal(4, 3, seed=1), normal(4, 4, 3, seed=2)
    with pytest.raises(
        ConfigError,
        match=r"weight is 0\.25 with K = 4, so λK = 1\. .* Use a weight below 0\.25",
    ):
        vecor(v, u, u_neg, 0.25)
    with pytest.raises(ConfigError, match="K = 4"):
        contrastive_flow_matching(v, u, u_neg, 0.3)
    with pytest.warns(UserWarning, match="1/"):
        assert vecor(v, u, u_neg, 0.25 - 1e-9).isfinite()


def test_from_half_on_one_warning_names_the_factor():
    v, u = normal(4, 3), normal(4, 3, seed=1)
    with pytest.warns(UserWarning, match=r"1/\(1 - λK\) = 2\.$"):
        contrastive_flow_matching(v, u, u.roll(1, 0), 0.5)
    contrastive_flow_matching(
        v, u, u.roll(1, 0), 0.5
    )  # said once: a second warning would be an error here
    contrastive_flow_matching(v, u, u.roll(1, 0), 0.49)
    contrastive_flow_matching(v, u, u.roll(1, 0), np.float32(0.05))


# alignment


def test_alignment_lies_between_minus_one_and_one_and_ignores_length():
    a = normal(2, 3, 5)
    close(align(a, 7 * a), -1.0)
    close(align(a, -a), 1.0)
    close(
        align(a * normal(2, 3, 1, seed=1).abs(), normal(2, 3, 5, seed=2)),
        align(a, normal(2, 3, 5, seed=2)),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 3000.0])
def test_alignment_is_finite_for_zero_tiny_and_huge_vectors(dtype, scale):
    a = torch.ones(2, 3, 768).mul(scale).to(dtype).requires_grad_()
    loss = align(a, torch.ones(2, 3, 768))
    loss.backward()
    assert a.grad.isfinite().all()
    close(loss.detach(), -1.0 if a.detach().any() else 0.0, 1e-6)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_alignment_takes_under_100_operations_at_any_batch_size():
    calls = []
    for batch in (2, 256):
        a, b = normal(batch, 4, 8).requires_grad_(), normal(batch, 4, 8, seed=1)
        with Count() as count:
            align(a, b).backward()
        calls.append(count.calls)
    assert calls[0] == calls[1]
    assert 10 < calls[0] <= 100


# dtypes, graphs, compilation


def losses_of(v, u, u_neg):
    return (
        flow_matching(v, u),
        repulsion(v, u_neg),
        contrastive_flow_matching(v, u, u_neg),
        vecor(v, u, u_neg[None]),
        align(v, u),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_is_computed_in_float32(dtype, tolerance):
    exact = [normal(16, 4, 8, seed=s) for s in range(3)]
    for low, true in zip(losses_of(*(x.to(dtype) for x in exact)), losses_of(*exact)):
        assert low.dtype == torch.float32
        assert abs(low - true) < tolerance
    v = exact[0].to(dtype).requires_grad_()
    contrastive_flow_matching(v, exact[1].to(dtype), exact[2].to(dtype)).backward()
    assert v.grad.dtype == dtype
    large = torch.full((2, 1024), 200.0, dtype=torch.float16)  # squares overflow float16
    assert flow_matching(large, -large) == 160_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_the_wider_one_wins(dtype):
    v, u, u_neg = (normal(4, 3, 2, seed=s, dtype=dtype) for s in range(3))
    assert {loss.dtype for loss in losses_of(v, u, u_neg)} == {dtype}
    assert flow_matching(v, u.double()).dtype == torch.float64
    assert contrastive_flow_matching(v, u.double(), u_neg.bfloat16()).dtype == torch.float64


def test_targets_receive_no_gradient_and_nothing_is_mutated():
    v, u, u_neg = (normal(4, 3, 2, seed=s).requires_grad_() for s in range(3))
    copies = [x.detach().clone() for x in (v, u, u_neg)]
    for loss in losses_of(v, u, u_neg):
        assert torch.autograd.grad(loss, (v, u, u_neg), allow_unused=True)[1:] == (None, None)
    assert all(torch.equal(x, copy) for x, copy in zip((v, u, u_neg), copies))


def test_memory_layout_does_not_matter():
    v, u, u_neg = (normal(4, 3, 5, 6, seed=s) for s in range(3))
    strange = [
        v.to(memory_format=torch.channels_last),
        u.flip(0).flip(0),
        u_neg.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    strange[0].requires_grad_()
    loss = contrastive_flow_matching(*strange)
    close(loss.detach(), contrastive_flow_matching(v, u, u_neg))
    loss.backward()
    close(
        strange[0].grad,
        torch.autograd.grad(contrastive_flow_matching(v.requires_grad_(), u, u_neg), v)[0],
    )


def test_compiled_losses_agree_in_one_graph():
    v, u, u_neg = (normal(4, 3, 2, seed=s).requires_grad_(s == 0) for s in range(3))
    compiled = torch.compile(losses_of, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(v, u, u_neg), losses_of(v, u, u_neg)):
        close(a.detach(), b.detach(), 1e-12)
        close(torch.autograd.grad(a, v, retain_graph=True)[0], torch.autograd.grad(b, v)[0], 1e-12)


def test_nothing_is_read_back_from_a_device():
    v, u, u_neg = (
        torch.empty(4, 3, 2, device="meta").requires_grad_(s == 0) for s in range(3)
    )  # reading a meta tensor raises
    for loss in (*losses_of(v, u, u_neg), repulsion(v, u_neg, torch.ones(4, device="meta"), True)):
        loss.backward()


# wrong arguments


@pytest.mark.parametrize("loss", [squared_error, flow_matching, align])
def test_unequal_empty_or_integer_tensors_are_refused(loss):
    with pytest.raises(ConfigError, match=r"\(4, 3\).*\(4, 1\)"):
        loss(normal(4, 3), normal(4, 1))
    with pytest.raises(ConfigError, match="not empty"):
        loss(normal(0, 3), normal(0, 3))
    with pytest.raises(ConfigError, match="dtype"):
        loss(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"\(B, \*dims\)"):
        loss(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize(
    "shape", [(3,), (4, 2), (3, 3), (2, 4, 2), (0, 4, 3), (2, 2, 4, 3), (1, 3)]
)
def test_negatives_of_a_wrong_shape_are_refused(shape):
    for call in (
        lambda n: repulsion(normal(4, 3), n),
        lambda n: vecor(normal(4, 3), normal(4, 3), n),
    ):
        with pytest.raises(ConfigError, match="u_neg"):
            call(torch.zeros(shape))


def test_keep_of_a_wrong_shape_or_with_weights_is_refused():
    v, u_neg = normal(4, 3), normal(4, 3, seed=1)
    for keep in (torch.ones(3), torch.ones(4, 1), torch.ones(())):
        with pytest.raises(ConfigError, match="keep has shape"):
            repulsion(v, u_neg, keep)
    for value in (0.5, math.nan, 2.0):
        with pytest.raises(ConfigError, match="0 and 1"):
            contrastive_flow_matching(v, v, u_neg, 0.1, torch.tensor([1.0, 0.0, 1.0, value]))


@pytest.mark.parametrize("name", ["v", "u", "u_neg", "keep"])
@pytest.mark.parametrize("odd", [True, 1.0, "text", [1.0]])
def test_what_is_no_tensor_is_refused_by_its_name(name, odd):
    given = {key: torch.randn(3, 2) for key in ("v", "u", "u_neg")} | {"keep": torch.ones(3)}
    with pytest.raises(ConfigError, match=f"^{name} "):
        contrastive_flow_matching(**given | {name: odd})
