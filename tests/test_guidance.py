"""Guidance, re-targeting and its inverse: identities, exact theory, SiT's own numbers, calls,
devices, errors.
"""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfm_lite import samplers, theory
from cfm_lite._internal.checks import expand
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import (
    Guided,
    cfg,
    conditional,
    debias,
    debias_linear,
    debias_shuffle,
    guide,
    rescale,
    rescale_in_time,
    retarget,
    retarget_linear,
    retarget_shuffle,
)
from cfm_lite.models import MLP, SiT, load_official
from cfm_lite.paths import COSINE, LINEAR
from cfm_lite.paths import Path as FlowPath
from tests import reference
from tests.reference import case, settings

INTERVAL = (0.3, 0.7)


class Counting(nn.Module):
    """Three classes: v = (1 + y) x + t, and the sizes of the batches that it saw."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes, self.rows = num_classes, []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        y = torch.full((len(x),), self.num_classes, device=x.device) if y is None else y
        return (1 + expand(y, x)) * x + expand(t, x)


@pytest.fixture
def model() -> Counting:
    return Counting()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 2, dtype=torch.float64)


Y = torch.tensor([0, 1, 2, 1])


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def anything(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x) + expand(t, x)


def other(x: Tensor, t: Tensor) -> Tensor:
    return torch.cos(2 * x) - expand(t, x) * x


# ------------------------------------------------------------------------------------------------
# conditional


def test_conditional_is_the_model_with_its_labels(model: Counting, x: Tensor) -> None:
    t = times(0.1, 0.2, 0.3, 0.4)
    assert torch.equal(conditional(model, Y)(x, t), model(x, t, Y))
    assert torch.equal(conditional(model, 2)(x, t), model(x, t, torch.full((4,), 2)))
    assert torch.equal(conditional(model)(x, t), model(x, t))
    assert torch.equal(conditional(model, 3)(x, t), model(x, t))  # the null label


def test_conditional_evaluates_in_eval_mode_and_restores_each_submodule() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert not self.dropout.training
            raise RuntimeError("inside")

    model = Broken()
    with pytest.raises(RuntimeError, match="inside"):
        conditional(model)(torch.zeros(1, 2), torch.zeros(1))
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training


def test_half_precision_outputs_are_promoted(x: Tensor) -> None:
    for dtype in (torch.float16, torch.bfloat16):

        def half(
            x: Tensor, t: Tensor, y: Tensor | None = None, dtype: torch.dtype = dtype
        ) -> Tensor:
            return x.to(dtype)

        assert conditional(half)(x, times(0, 0, 0, 0)).dtype == torch.float32
        assert cfg(half, 1, 2.0)(x, times(0, 0, 0, 0)).dtype == torch.float32


# ------------------------------------------------------------------------------------------------
# guide and cfg


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.3, 1.0, 1.85, 4.0])
def test_guidance_extrapolates_between_its_two_velocities(
    model: Counting, x: Tensor, scale: float
) -> None:
    t = times(0.1, 0.2, 0.3, 0.4)
    good, bad = anything(x, t), other(x, t)
    torch.testing.assert_close(guide(anything, other, scale)(x, t), bad + scale * (good - bad))
    cond, null = model(x, t, Y), model(x, t)
    torch.testing.assert_close(cfg(model, Y, scale)(x, t), null + scale * (cond - null))
    torch.testing.assert_close(guide(anything, anything, scale)(x, t), good)


def test_scale_one_is_the_conditional_velocity_bit_for_bit_in_one_call(
    model: Counting, x: Tensor
) -> None:
    t = times(0.5, 0.5, 0.5, 0.5)
    assert torch.equal(cfg(model, Y, 1.0)(x, t), conditional(model, Y)(x, t))
    with pytest.raises(ConfigError, match="labels"):  # as at the other scales of a sweep
        cfg(model, Y, 1.0, negative=99)
    assert model.rows == [4, 4]
    assert guide(anything, other, 1) is anything


def test_both_velocities_come_from_one_call_and_only_inside_the_interval(
    model: Counting, x: Tensor
) -> None:
    velocity = cfg(model, Y, 2.0, INTERVAL)
    for t, rows in ((0.0, 4), (0.29, 4), (0.3, 8), (0.5, 8), (0.7, 8), (0.71, 4), (1.0, 4)):
        velocity(x, torch.full((4,), t))
        assert model.rows.pop() == rows
        assert not model.rows
    assert torch.equal(
        velocity(x, times(0.1, 0.1, 0.1, 0.1)), conditional(model, Y)(x, times(0.1, 0.1, 0.1, 0.1))
    )


def test_a_function_that_names_no_classes_is_asked_twice(x: Tensor) -> None:
    calls = []

    def function(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        calls.append(y is None)
        return x if y is None else 2 * x

    torch.testing.assert_close(cfg(function, Y, 3.0)(x, times(0, 0, 0, 0)), 4 * x)
    assert calls == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_bounds_on_grid_times_are_inside(dtype: torch.dtype) -> None:
    x = torch.ones(1, 2, dtype=dtype)
    for n in (10, 20, 50, 250):
        grids = (
            torch.linspace(0, 1, n + 1, dtype=dtype),
            1 - torch.linspace(1, 0, n + 1, dtype=dtype),
        )
        for ts, (i, j) in itertools.product(grids, ((n // 10, n // 2), (3 * n // 10, 7 * n // 10))):
            velocity = guide(lambda x, t: 2 * x, lambda x, t: x, 3.0, (i / n, j / n))
            inside = [k for k, t in enumerate(ts) if velocity(x, t[None])[0, 0] == 4]
            assert inside == list(range(i, j + 1))


def test_each_row_of_a_mixed_batch_has_its_own_time(model: Counting, x: Tensor) -> None:
    t = times(0.1, 0.3, 0.5, 0.9)
    makers = (
        lambda interval: cfg(model, Y, 2.0, interval),
        lambda interval: guide(anything, other, 2.0, interval),
        lambda interval: debias(anything, 0.2, x[0], interval),
        lambda interval: debias_shuffle(anything, 0.2, interval=interval),
    )
    for make in makers:
        mixed, always = make(INTERVAL)(x, t), make((0, 1))(x, t)
        never = make((1, 1))(x, t)
        torch.testing.assert_close(mixed, torch.stack([never[0], always[1], always[2], never[3]]))
        assert (always - never).abs().amin(0).max() > 1e-3


def test_official_guidance_of_three_channels_leaves_the_fourth_conditional() -> None:
    for name in ("sit_learnsigma", "sit_nosigma", "sit_patch4"):
        given, arrays = settings("models/models_io")[name], case("models/models_io", name)
        model = load_official(
            str(Path(reference.__file__).parent / "models" / given["weights"]),
            format="sit",
            num_heads=given["config"]["num_heads"],
        )
        half = len(arrays["cfg_x"]) // 2
        x, t, y = (arrays[key][:half] for key in ("cfg_x", "cfg_t", "cfg_y"))
        v = cfg(model, y, given["cfg_scale"], channels=3)(x, t)
        torch.testing.assert_close(v, arrays["cfg_out"][:half], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(v[:, 3], conditional(model, y)(x, t)[:, 3], rtol=1e-4, atol=1e-5)
        full = cfg(model, y, given["cfg_scale"])(x, t)
        torch.testing.assert_close(full[:, :3], v[:, :3])
        assert (full[:, 3] - v[:, 3]).abs().max() > 1e-2


def test_guidance_of_a_class_moves_samples_towards_it() -> None:
    mixture = theory.GaussianMixture(
        torch.ones(2),
        torch.tensor([[-1.0], [1.0]]),
        torch.tensor([0.5, 0.5]),
        labels=torch.tensor([0, 1]),
    )
    model = lambda x, t, y=None: mixture.velocity(x, t, y)  # noqa: E731
    x, ts = (
        torch.randn(200, 1, generator=torch.Generator().manual_seed(0)),
        torch.linspace(0, 1, 33),
    )
    means = [samplers.sample(cfg(model, 1, scale), x, ts).mean() for scale in (0.0, 1.0, 2.0)]
    assert means[0].abs() < 0.2
    assert means[1].item() == pytest.approx(1, abs=0.15)
    assert means[2] > means[1] + 0.2


# ------------------------------------------------------------------------------------------------
# devices


@pytest.mark.parametrize("step", [samplers.euler, samplers.heun, samplers.rk4])
def test_samplers_say_where_a_step_lies_so_a_device_skips_calls_too(
    model: Counting, step: samplers.Step
) -> None:
    calls_per_step = {samplers.euler: 1, samplers.heun: 2, samplers.rk4: 4}[step]
    x = torch.empty(4, 3, device="meta")  # has no values: reading one is an error
    inner = cfg(model, Y.to("meta"), 2.0, INTERVAL)
    velocity = debias_shuffle(rescale(inner, lambda t: 1 + t), 0.1, interval=(0.4, 0.6))
    samplers.sample(velocity, x, torch.linspace(0, 1, 21), step)
    # steps 0-5 and 14-19 lie outside but for their touching ends, 6-13 inside
    outside, touching = 5 * calls_per_step, calls_per_step
    assert model.rows[:outside] == [4] * outside
    assert model.rows[outside + touching : -(outside + touching)] == [8] * (8 * calls_per_step)
    assert model.rows[-outside:] == [4] * outside


def test_without_a_sampler_a_device_decides_row_by_row(model: Counting) -> None:
    x, t = torch.empty(4, 3, device="meta"), torch.empty(4, device="meta")
    for velocity in (
        cfg(model, Y, 2.0, INTERVAL),
        debias(anything, 0.1, torch.zeros(3), INTERVAL),
        guide(anything, other, 2.0, INTERVAL),
    ):
        assert velocity(x, t).device.type == "meta"
    assert model.rows == [8]


def test_restricting_changes_nothing_inside_the_range(x: Tensor) -> None:
    velocity = debias(guide(anything, other, 2.0, INTERVAL), 0.3, x[0], (0.5, 1))
    assert isinstance(velocity, Guided)
    for low, high in ((0, 0.2), (0.2, 0.4), (0.35, 0.45), (0.55, 0.65), (0.8, 1), (0, 1)):
        t = torch.linspace(low, high, 4, dtype=torch.float64)
        assert torch.equal(velocity.restrict(low, high)(x, t), velocity(x, t))


# ------------------------------------------------------------------------------------------------
# scaling, re-targeting and back


def test_rescaling_takes_a_number_or_a_function_of_time(x: Tensor) -> None:
    t = times(0.0, 0.2, 0.5, 1.0)
    v = anything(x, t)
    assert torch.equal(rescale(anything, 1.5)(x, t), 1.5 * v)
    torch.testing.assert_close(
        rescale(anything, lambda t: 1 + 0.1 * (1 - t) ** 2)(x, t),
        (1 + 0.1 * (1 - expand(t, x)) ** 2) * v,
    )
    torch.testing.assert_close(rescale(anything, lambda t: 2.0)(x, t), 2 * v)


@pytest.mark.parametrize("weight", [0.0, 0.05, 0.5, 0.9])
def test_debias_inverts_retarget(x: Tensor, weight: float) -> None:
    t = times(0.0, 0.2, 0.5, 1.0)
    means = (
        torch.randn(3, 2, dtype=torch.float64),
        torch.randn(4, 3, 2),
        lambda t: expand(t, x).cos() * x[0],
        lambda t: x[1],
    )
    for mean in means:
        there = retarget(anything, weight, mean)
        torch.testing.assert_close(debias(there, weight, mean)(x, t), anything(x, t))
        torch.testing.assert_close(
            retarget(debias(anything, weight, mean), weight, mean)(x, t), anything(x, t)
        )


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize(("weight", "k"), [(0.05, 1), (0.3, 3), (0.45, 2)])
@pytest.mark.parametrize("exclude_identity", [True, False])
def test_retarget_shuffle_is_the_optimum_under_all_permutations(
    channels: int, weight: float, k: int, exclude_identity: bool
) -> None:
    x, t = (
        torch.randn(5, channels, 2, 2, dtype=torch.float64),
        torch.full((5,), 0.4, dtype=torch.float64),
    )
    permutations = list(itertools.permutations(range(channels)))[
        exclude_identity:
    ]  # the identity comes first
    v = anything(x, t)
    mean = torch.stack([v[:, list(p)] for p in permutations]).mean(0)
    there = retarget_shuffle(anything, weight, k, exclude_identity)
    torch.testing.assert_close(there(x, t), (v - weight * k * mean) / (1 - weight * k))
    torch.testing.assert_close(debias_shuffle(there, weight, k, exclude_identity)(x, t), v)
    torch.testing.assert_close(
        there(x, t).mean(1), v.mean(1)
    )  # the mean over the channels is never biased


def test_shuffling_many_channels_has_a_finite_gain() -> None:
    x, t = torch.randn(2, 400, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    v = retarget_shuffle(anything, 0.1)(x, t)
    torch.testing.assert_close(debias_shuffle(lambda x, t: v, 0.1)(x, t), anything(x, t))
    assert math.isfinite(v.sum().item())


@pytest.mark.parametrize("path", [LINEAR, COSINE])
def test_exact_optima_are_debiased_to_flow_matching_and_reached_by_retargeting(
    path: FlowPath,
) -> None:
    means = torch.tensor(
        [[2.0, 0.5, -1.0], [-1.0, 1.5, 0.0], [0.3, -2.0, 1.0]], dtype=torch.float64
    )
    mixture = theory.GaussianMixture(
        torch.tensor([0.2, 0.3, 0.5]), means, torch.tensor([0.3, 0.6, 0.4])
    )
    x, t = torch.randn(20, 3, dtype=torch.float64), torch.linspace(0, 1, 20, dtype=torch.float64)
    field = lambda **kind: lambda x, t: theory.optimal_velocity(mixture, x, t, path=path, **kind)  # noqa: E731
    fm = field(method="fm")
    mean = mixture.weights.to(means) @ means  # E[u_neg] = (alpha(1) - alpha(0)) E[x1]
    for weight in (0.05, 0.4):
        delta = field(method="delta_fm", weight=weight)
        torch.testing.assert_close(debias(delta, weight, mean)(x, t), fm(x, t))
        torch.testing.assert_close(retarget(fm, weight, mean)(x, t), delta(x, t))
        for k in (1, 2):
            vecor = field(method="vecor", weight=weight, k=k)
            torch.testing.assert_close(debias_shuffle(vecor, weight, k)(x, t), fm(x, t))
            torch.testing.assert_close(retarget_shuffle(fm, weight, k)(x, t), vecor(x, t))


def test_debias_commutes_with_guidance_of_the_same_interval(model: Counting, x: Tensor) -> None:
    t, mean = times(0.1, 0.3, 0.5, 0.9), torch.randn(3, 2, dtype=torch.float64)
    good = conditional(model, Y)
    for change in (
        lambda v: debias(v, 0.3, mean, INTERVAL),
        lambda v: debias_shuffle(v, 0.2, 2, interval=INTERVAL),
    ):
        torch.testing.assert_close(
            change(guide(good, other, 1.8, INTERVAL))(x, t),
            guide(change(good), change(other), 1.8, INTERVAL)(x, t),
        )


def test_scaled_flow_matching_differs_from_the_optimum_by_the_mean_alone(x: Tensor) -> None:
    t, mean = times(0.1, 0.3, 0.5, 0.9), torch.randn(3, 2, dtype=torch.float64)
    gap = rescale(anything, 1 / 0.95)(x, t) - retarget(anything, 0.05, mean)(x, t)
    torch.testing.assert_close(gap, (0.05 / 0.95 * mean).expand_as(gap))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept_and_inputs_are_not_changed(dtype: torch.dtype) -> None:
    x, t, mean = (
        torch.randn(4, 3, dtype=dtype),
        torch.rand(4, dtype=dtype),
        torch.randn(3, dtype=torch.float64),
    )
    copies = [a.clone() for a in (x, t, mean)]
    velocities = (
        guide(anything, other, 2.0, INTERVAL),
        rescale(anything, lambda t: t.double()),
        retarget(anything, 0.1, mean),
        debias(anything, 0.1, mean, INTERVAL),
        retarget_shuffle(anything, 0.1),
        debias_shuffle(anything, 0.1),
    )
    assert {velocity(x, t).dtype for velocity in velocities} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip((x, t, mean), copies))


def test_velocities_have_gradients(model: Counting) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    velocity = debias_shuffle(rescale(cfg(model, Y, 2.5), 0.9), 0.1)
    velocity(x, torch.full((4,), 0.5)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


# ------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((0.7, 0.3), r"interval is \(0\.7, 0\.3\), with low above high.*give \(0\.3, 0\.7\)"),
        ((-0.1, 0.5), r"low end is -0\.1"),
        ((0.1, 1.5), r"high end is 1\.5"),
        ((0.1, float("nan")), "high end is nan"),
        ((0.1,), r"interval is \(0\.1,\); it must be two numbers"),
        (0.5, r"interval is 0\.5; it must be two numbers"),
    ],
)
def test_bad_intervals_are_refused(interval: object, message: str) -> None:
    makers = (
        lambda: cfg(Counting(), 0, 2.0, interval),  # pyright: ignore[reportArgumentType]
        lambda: guide(anything, other, 2.0, interval),  # pyright: ignore[reportArgumentType]
        lambda: debias(anything, 0.1, torch.zeros(2), interval),  # pyright: ignore[reportArgumentType]
        lambda: debias_shuffle(anything, 0.1, interval=interval),  # pyright: ignore[reportArgumentType]
    )
    for make in makers:
        with pytest.raises(ConfigError, match=message):
            make()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), None, "strong", True])
def test_bad_scales_are_refused(scale: object) -> None:
    for make in (
        lambda: cfg(Counting(), 0, scale),
        lambda: guide(anything, other, scale),
        lambda: rescale(anything, scale),
    ):  # pyright: ignore
        with pytest.raises(ConfigError, match=r"(scale|factor) is .*; it must be a finite number"):
            make()


@pytest.mark.parametrize(
    ("weight", "k", "message"),
    [
        (1.0, 1, r"weight is 1\. λK must stay below 1"),
        (0.5, 2, r"weight is 0\.5 with K = 2.*below 0\.5"),
        (-0.1, 1, r"weight is -0\.1"),
        (float("nan"), 1, "weight is nan"),
        (0.1, 0, "k is 0"),
        (0.1, 1.5, r"k is 1\.5"),
    ],
)
def test_weights_beyond_the_bound_are_refused(weight: float, k: int, message: str) -> None:
    for make in (retarget_shuffle, debias_shuffle):
        with pytest.raises(ConfigError, match=message):
            make(anything, weight, k)
    if k == 1:
        for make in (retarget, debias):
            with pytest.raises(ConfigError, match=message):
                make(anything, weight, torch.zeros(2))


def test_bad_means_factors_and_channels_are_refused(x: Tensor) -> None:
    t = times(0.1, 0.2, 0.3, 0.4)
    for make in (retarget, debias):
        with pytest.raises(ConfigError, match="mean_velocity has type float"):
            make(anything, 0.1, 0.5)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match="not finite"):
            make(anything, 0.1, torch.tensor([float("nan"), 1.0]))
        for mean in (torch.zeros(2), torch.zeros(5, 3, 2), lambda t: torch.zeros(4)):
            with pytest.raises(
                ConfigError,
                match=r"mean_velocity has shape .*; it must be \(3, 2\), or \(4, 3, 2\)",
            ):
                make(anything, 0.1, mean)(x, t)
    with pytest.raises(
        ConfigError, match=r"factor\(t\) has shape \(3,\); it must be \(B,\) = \(4,\)"
    ):
        rescale(anything, lambda t: torch.ones(3))(x, t)
    for make in (retarget_shuffle, debias_shuffle):
        for grey in (x[:, :1], x[:, 0, 0]):
            with pytest.raises(ConfigError, match="one channel in dim 1"):
                make(anything, 0.1)(grey, t)
    for channels in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="channels is"):
            cfg(Counting(), 0, 2.0, channels=channels)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="channels is 4; the velocity has 3"):
        cfg(Counting(), 0, 2.0, channels=4)(x, t)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 4]), r"labels span \[0, 4\]; the allowed range is \[0, 3\]"),
        (torch.tensor([-1, 0]), r"labels span \[-1, 0\]"),
        (5, r"labels span \[5, 5\]"),
        (-1, r"labels span \[-1, -1\]"),
        (torch.tensor([0.0, 1.0]), "dtype torch.float32; labels are integers"),
        (torch.tensor(1), r"y has shape \(\)"),
        (torch.tensor([[0, 1]]), r"y has shape \(1, 2\)"),
        ([0, 1], "y has type list"),
        (True, "y has type bool"),
        ("cat", "y has type str"),
    ],
)
def test_bad_labels_are_refused(y: object, message: str) -> None:
    for make in (conditional, lambda model, y: cfg(model, y, 2.0)):
        with pytest.raises(ConfigError, match=message):
            make(Counting(), y)  # pyright: ignore[reportArgumentType]


def test_labels_must_be_as_many_as_rows(x: Tensor) -> None:
    for velocity in (conditional(Counting(), Y[:3]), cfg(Counting(), Y[:3], 2.0)):
        with pytest.raises(ConfigError, match="y has 3 labels for 4 rows"):
            velocity(x, times(0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="y is None"):
        cfg(Counting(), None, 2.0)  # pyright: ignore[reportArgumentType]


def test_guidance_needs_a_null_label() -> None:
    sit = {
        "input_size": 4,
        "in_channels": 2,
        "hidden_size": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 3,
    }
    for model in (
        SiT(class_dropout_prob=0.0, **sit),
        MLP(2, num_classes=3, class_dropout_prob=0.0),
        MLP(2),
        Counting(num_classes=0),
    ):
        with pytest.raises(ConfigError, match="no null label"):
            cfg(model, 0, 1.5)
    x, t = torch.randn(2, 2), torch.rand(2)
    without = MLP(2, num_classes=3, class_dropout_prob=0.0)
    assert torch.equal(
        cfg(without, 1, 1.0)(x, t), conditional(without, 1)(x, t)
    )  # a scale of 1 needs none
    assert cfg(MLP(2, num_classes=3), 1, 1.5)(x, t).shape == x.shape


def test_what_cannot_be_called_is_no_velocity() -> None:
    for make in (
        lambda v: guide(v, other, 2.0),
        lambda v: guide(anything, v, 2.0),
        lambda v: rescale(v, 2.0),
        lambda v: debias_shuffle(v, 0.1),
    ):
        with pytest.raises(ConfigError, match=r"(velocity|good|bad) has type Tensor"):
            make(torch.zeros(2))


def test_time_scaling_is_strongest_at_the_noise_and_gone_at_the_data():
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
    for alpha, beta in ((0.3, 1.0), (-0.2, 2.5), (0.7, 0.0)):
        scaled = rescale_in_time(lambda x, t: 2 * x, alpha, beta)(x, t)
        torch.testing.assert_close(scaled, 2 * x * (1 + alpha * (1 - t) ** beta)[:, None])
    same = rescale_in_time(lambda x, t: 2 * x, 0.0)(x, t)
    assert torch.equal(same, 2 * x)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: guide(lambda x, t: x, v, 2.0),
        lambda v: guide(v, lambda x, t: x, 2.0),
        lambda v: debias(v, 0.1, torch.zeros(2)),
        lambda v: retarget(v, 0.1, torch.zeros(2)),
        lambda v: debias_shuffle(v, 0.1),
        lambda v: rescale(v, 2.0),
        lambda v: rescale(guide(lambda x, t: x, v, 2.0), 2.0),
        lambda v: debias_linear(v, 0.1, torch.eye(2), space="velocity"),
        lambda v: retarget_linear(v, 0.1, torch.eye(2), space="latent"),
    ],
)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, t: x[:1], r"the velocity has shape \(1, 2\) for x \(4, 2\)"),
        (lambda x, t: x[:, :1], r"the velocity has shape \(4, 1\) for x \(4, 2\)"),
        (lambda x, t: None, "the model returned None"),
        (lambda x, t: (x, t), "the model returned a tuple of 2"),
    ],
)
def test_a_part_of_another_shape_is_never_broadcast(change, wrong, message) -> None:
    with pytest.raises(ConfigError, match=message):
        change(wrong)(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: debias(v, 0.1, lambda t: None), r"mean_velocity\(t\) has type NoneType"),
        (lambda v: rescale(v, lambda t: None), r"factor\(t\) has type NoneType"),
        (lambda v: rescale(v, lambda t: "2"), r"factor\(t\) has type str"),
    ],
)
def test_a_function_of_time_that_gives_no_numbers_is_named(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        change(lambda x, t: x)(torch.zeros(4, 2), torch.zeros(4))
