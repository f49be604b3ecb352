"""Paths: the official numbers, the derivatives, the conversions between velocity, score and noise,
and wrong arguments.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cfm_lite.errors import ConfigError
from cfm_lite.paths import COSINE, LINEAR, PATHS, VP, FlowSample, Path
from tests.reference import case, cases, settings

EVERY = pytest.mark.parametrize("path", [LINEAR, COSINE, VP], ids=lambda path: path.name)
OFFICIAL = {"Linear": LINEAR, "GVP": COSINE, "VP": VP, "linear": LINEAR, "cosine": COSINE}
SIT = pytest.mark.parametrize("which", ["Linear", "GVP", "VP"])
NAMES = ("alpha", "sigma", "d_alpha", "d_sigma")
TIMES = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)


def official(seen: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert_close(seen, expected, atol=tolerance, rtol=tolerance)


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(13, *shape, dtype=dtype), torch.randn(13, *shape, dtype=dtype)


@SIT
@pytest.mark.parametrize("name", NAMES)
def test_coefficients_agree_with_sit(which: str, name: str) -> None:
    official(
        getattr(OFFICIAL[which], name)(case("sit_paths", "inputs")["t"]),
        case("sit_paths", which)[name],
    )


@SIT
def test_position_and_velocity_agree_with_sit(which: str) -> None:
    given, reference = case("sit_paths", "inputs"), case("sit_paths", which)
    x_t, u_t = OFFICIAL[which].interpolate(given["x0_noise"], given["x1_data"], given["t"])
    official(x_t, reference["x_t"])
    official(u_t, reference["u_t"])


@SIT
def test_conversions_agree_with_sit(which: str) -> None:
    path, given, reference = OFFICIAL[which], case("sit_paths", "inputs"), case("sit_paths", which)
    t = given["t"]
    official(path.score(given["x"], given["velocity"], t), reference["score_from_velocity"])
    official(
        path.score(given["x_4d"], given["velocity_4d"], t), reference["score_from_velocity_4d"]
    )
    official(
        path.velocity_from_score(given["x"], given["score"], t), reference["velocity_from_score"]
    )
    official(path.endpoints(given["x"], given["velocity"], t)[0], reference["noise_from_velocity"])


@SIT
def test_the_drift_of_sit_follows_from_the_coefficients(which: str) -> None:
    path, given, reference = OFFICIAL[which], case("sit_paths", "inputs"), case("sit_paths", which)
    t = given["t"]
    ratio = path.d_alpha(t) / path.alpha(t)
    official(ratio, reference["d_alpha_over_alpha"])
    official(-ratio[:, None] * given["x"], reference["compute_drift_first"])
    official(
        ratio * path.sigma(t) ** 2 - path.half_variance_rate(t), reference["compute_drift_second"]
    )


@pytest.mark.parametrize("which", cases("sit_paths", "train_"))
def test_training_losses_agree_with_sit(which: str) -> None:
    given, about = case("sit_paths", which), settings("sit_paths")[which]
    path, t, out = OFFICIAL[about["path"]], given["t"], given["model_output"]
    x_t, u_t = path.interpolate(given["x0"], given["x1"], t)
    official(x_t, given["x_t"])
    sigma = path.sigma(t)
    pull = path.d_alpha(t) / path.alpha(t) * sigma**2 - path.half_variance_rate(t)
    weight = {
        None: torch.ones_like(t),
        "velocity": (pull / sigma) ** 2,
        "likelihood": pull / sigma**2,
    }[about["loss_weight"]]
    residual = {
        "velocity": out - u_t,
        "noise": out - given["x0"],
        "score": out * sigma[:, None, None, None] + given["x0"],
    }
    loss = weight * residual[about["prediction"]].square().flatten(1).mean(1)
    official(loss, given["loss"], 1e-10 if about["loss_weight"] is None else 1e-8)


@pytest.mark.parametrize("which", ["linear", "cosine"])
def test_interpolation_agrees_with_repa_in_reversed_time(which: str) -> None:
    path, grid, reference = (
        PATHS[which],
        case("repa_siloss", "grid"),
        case("repa_siloss", f"interp_{which}"),
    )
    ours = 1 - grid["t"]
    for name in NAMES:
        sign = -1 if name.startswith("d_") else 1  # dt_ours = -dt_REPA
        official(sign * getattr(path, name)(ours), reference[name])
    x_t, u_t = path.interpolate(grid["eps"], grid["x0"], ours)
    official(x_t, reference["x_t"])
    official(-u_t, reference["target"])


@pytest.mark.parametrize("which", cases("repa_siloss", "call_"))
def test_denoising_loss_agrees_with_repa_in_reversed_time(which: str) -> None:
    given, about = case("repa_siloss", which), settings("repa_siloss")[which]
    x_t, u_t = PATHS[about["path"]].interpolate(given["noises"], given["images"], 1 - given["t"])
    official(x_t, given["x_t"])
    loss = (given["model_output"] + u_t).square().flatten(1).mean(1)
    official(loss, given["denoising_loss"])
    official(loss.mean(), given["denoising_loss_mean"])


@EVERY
@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_derivatives_are_the_derivatives_of_the_coefficients(path: Path, name: str) -> None:
    _, derivative = torch.func.jvp(getattr(path, name), (TIMES,), (torch.ones_like(TIMES),))
    assert_close(getattr(path, f"d_{name}")(TIMES), derivative, atol=1e-12, rtol=1e-12)


@EVERY
def test_half_variance_rate_is_half_the_derivative_of_sigma_squared(path: Path) -> None:
    _, derivative = torch.func.jvp(
        lambda t: path.sigma(t) ** 2 / 2, (TIMES,), (torch.ones_like(TIMES),)
    )
    assert_close(path.half_variance_rate(TIMES), derivative, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("path", [COSINE, VP], ids=lambda path: path.name)
def test_cosine_and_vp_preserve_variance(path: Path) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), atol=1e-15, rtol=0)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_paths_end_exactly_in_noise_and_data(path: Path, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    start = math.exp(-0.25 * 19.9 - 0.05) if path is VP else 0.0  # VP never quite forgets the data
    assert path.alpha(ends).tolist() == pytest.approx([start, 1], abs=0, rel=1e-6)
    assert path.sigma(ends).tolist() == pytest.approx([math.sqrt(1 - start**2), 0], abs=0, rel=1e-6)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_endpoints_invert_interpolate(path: Path, dtype: torch.dtype) -> None:
    x0, x1 = batch(2, 3, dtype=dtype)
    t = torch.linspace(0.05, 0.95, 13, dtype=dtype)
    back = path.endpoints(*path.interpolate(x0, x1, t), t)
    tolerance = (
        1e-10 if dtype == torch.float64 else 2e-3 if path is VP else 1e-5
    )  # VP's early positions hardly hold the data
    assert_close(back, (x0, x1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda path: path.name)
@pytest.mark.parametrize("time", [0.0, 1.0])
def test_endpoints_are_exact_at_both_ends(path: Path, time: float) -> None:
    x0, x1 = torch.randint(-8, 8, (5, 4)).float(), torch.randint(-8, 8, (5, 4)).float()
    t = torch.full((5,), time)
    x_t, u_t = path.interpolate(x0, x1, t)
    assert torch.equal(x_t, x1 if time else x0)
    back = path.endpoints(x_t, u_t, t)
    assert_close(back, (x0, x1), atol=0 if path is LINEAR else 1e-5, rtol=0)


@EVERY
def test_score_and_velocity_invert_each_other(path: Path) -> None:
    x, v = batch(2, 2)
    assert_close(
        path.velocity_from_score(x, path.score(x, v, TIMES), TIMES), v, atol=1e-9, rtol=1e-9
    )
    assert_close(
        path.score(x, path.velocity_from_score(x, v, TIMES), TIMES), v, atol=1e-9, rtol=1e-9
    )


@EVERY
def test_velocity_is_rebuilt_from_the_endpoints_that_it_implies(path: Path) -> None:
    x, v = batch(3)
    x0, x1 = path.endpoints(x, v, TIMES)
    position, velocity = path.interpolate(x0, x1, TIMES)
    assert_close((position, velocity), (x, v), atol=1e-9, rtol=1e-9)
    assert_close(path.score(x, v, TIMES), -x0 / path.sigma(TIMES)[:, None], atol=1e-9, rtol=1e-9)


def test_linear_conversions_have_their_textbook_form() -> None:
    x, v = batch(3)
    t = TIMES[:, None]
    assert_close(LINEAR.endpoints(x, v, TIMES), (x - t * v, x + (1 - t) * v))
    assert_close(LINEAR.score(x, v, TIMES), (t * v - x) / (1 - t))


def test_score_of_pure_noise_is_minus_the_position() -> None:
    x, v = batch(3)
    assert torch.equal(LINEAR.score(x, v, torch.zeros(13)), -x)


def test_vp_score_is_finite_at_the_data_although_its_velocity_coefficient_is_not() -> None:
    x, v = batch(3)
    end = torch.ones(13, dtype=torch.float64)
    near = torch.full_like(end, 1 - 1e-9)
    assert VP.d_sigma(end).isinf().all()
    assert_close(VP.score(x, v, end), VP.score(x, v, near), atol=1e-5, rtol=1e-5)
    assert_close(
        VP.velocity_from_score(x, v, end), VP.velocity_from_score(x, v, near), atol=1e-5, rtol=1e-5
    )


@EVERY
def test_time_never_broadcasts_along_the_features(path: Path) -> None:
    x0, x1, t = torch.randn(4, 4), torch.randn(4, 4), torch.tensor([0.1, 0.4, 0.6, 0.9])
    for convert in (path.interpolate, path.endpoints):
        rows = [torch.cat(convert(x0[i : i + 1], x1[i : i + 1], t[i : i + 1])) for i in range(4)]
        assert_close(torch.stack(convert(x0, x1, t), 1), torch.stack(rows))
    for convert in (path.score, path.velocity_from_score):
        assert_close(
            convert(x0, x1, t),
            torch.cat([convert(x0[i : i + 1], x1[i : i + 1], t[i : i + 1]) for i in range(4)]),
        )


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_promoted_and_the_rest_keeps_its_type(
    path: Path, dtype: torch.dtype
) -> None:
    x0, x1 = torch.randn(3, 2).to(dtype), torch.randn(3, 2).to(dtype)
    wanted = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    for t in (torch.rand(3), torch.rand(3, dtype=torch.float64), torch.rand(3).half()):
        results = [
            *path.interpolate(x0, x1, t),
            *path.endpoints(x0, x1, t),
            path.score(x0, x1, t),
            path.velocity_from_score(x0, x1, t),
        ]
        assert {x.dtype for x in results} == {wanted}


@EVERY
def test_nothing_is_mutated_and_no_randomness_is_used(path: Path) -> None:
    x0, x1 = batch(2)
    before, state = (x0.clone(), x1.clone(), TIMES.clone()), torch.get_rng_state()
    path.interpolate(x0, x1, TIMES)
    path.endpoints(x0, x1, TIMES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(now, then) for now, then in zip((x0, x1, TIMES), before))


@EVERY
def test_no_value_is_read_back_from_a_device(path: Path) -> None:
    """Tensors on the meta device have no values: any reading of one would raise."""
    x, t = torch.zeros(3, 2, device="meta"), torch.zeros(3, device="meta")
    assert path.interpolate(x, x, t)[0].is_meta
    assert path.endpoints(x, x, t)[0].is_meta
    assert path.velocity_from_score(x, path.score(x, x, t), t).is_meta


@EVERY
def test_a_batch_of_one_and_flat_data_are_allowed(path: Path) -> None:
    for shape in [(1,), (1, 1), (1, 3, 2, 2), (0, 2)]:
        x = torch.randn(shape)
        assert path.interpolate(x, x, torch.full(shape[:1], 0.5))[0].shape == shape


GOOD = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("x0", "x1", "t", "says"),
    [
        (torch.zeros(2, 4), GOOD, torch.zeros(2), r"x0 \(2, 4\), x1 \(2, 3\)"),
        (GOOD, GOOD, torch.zeros(3), r"shape \(3,\).*\(2,\)"),
        (GOOD, GOOD, torch.zeros(2, 1), r"shape \(2, 1\)"),
        (GOOD, GOOD, torch.tensor(0.5), r"torch.full"),
        (GOOD, GOOD, 0.5, "type float"),
        (GOOD, GOOD, torch.zeros(2, dtype=torch.int64), "int64"),
        (GOOD, GOOD, torch.tensor([0.0, 1.01]), r"1.01.*\[0, 1\]"),
        (GOOD, GOOD, torch.tensor([-0.01, 1.0]), r"-0.01.*\[0, 1\]"),
        (GOOD, GOOD, torch.tensor([0.0, math.nan]), "nan"),
        (GOOD.long(), GOOD.long(), torch.zeros(2), "int64.*float"),
        (torch.tensor(0.0), torch.tensor(0.0), torch.zeros(1), r"t has shape \(1,\)"),
    ],
)
def test_wrong_arguments_are_named(x0: Tensor, x1: Tensor, t: Tensor, says: str) -> None:
    for method in (LINEAR.interpolate, LINEAR.endpoints, LINEAR.score, LINEAR.velocity_from_score):
        with pytest.raises(ConfigError, match=says if x0.shape == x1.shape else "shapes differ"):
            method(x0, x1, t)
    with pytest.raises(ConfigError, match=says):
        LINEAR.interpolate(x0, x1, t)


def test_a_path_of_ones_own_needs_only_the_four_coefficients() -> None:
    square = Path("square", lambda t: t**2, lambda t: 1 - t**2, lambda t: 2 * t, lambda t: -2 * t)
    x0, x1 = batch(2)
    assert_close(
        square.endpoints(*square.interpolate(x0, x1, TIMES), TIMES),
        (x0, x1),
        atol=1e-10,
        rtol=1e-10,
    )
    assert_close(square.half_variance_rate(TIMES), -2 * TIMES * (1 - TIMES**2))


# the ends of time


def _smooth(t: Tensor) -> Tensor:
    return 3 * t**2 - 2 * t**3


def _smooth_d(t: Tensor) -> Tensor:
    return 6 * t * (1 - t)


SQUARE = Path(
    "square", lambda t: t**2, lambda t: 1 - t, lambda t: 2 * t, lambda t: -torch.ones_like(t)
)
SMOOTH = Path("smooth", _smooth, lambda t: _smooth(1 - t), _smooth_d, lambda t: -_smooth_d(t))
ROOTS = Path(
    "roots", torch.sqrt, lambda t: 1 - t, lambda t: 0.5 / t.sqrt(), lambda t: -torch.ones_like(t)
)  # d_alpha(0) is infinite
SLOW = Path(
    "slow", lambda t: t, lambda t: (1 - t) ** 2, torch.ones_like, lambda t: 2 * (t - 1)
)  # sigma = d_sigma = 0 at t = 1
FALLING = Path(
    "falling",
    lambda t: t,
    lambda t: (1 - t).sqrt(),
    torch.ones_like,
    lambda t: -0.5 / (1 - t).sqrt(),
)
ALL = (LINEAR, COSINE, VP, SQUARE, SMOOTH, ROOTS, SLOW, FALLING)


def _result(
    path: Path, end: float, convert: Callable[..., Tensor], *given: Tensor
) -> Tensor | None:
    """What the conversion gives, or None where it names the path and the time."""
    said: list[str] = []
    try:
        return convert(*given)
    except ConfigError as error:
        said.append(str(error))
    assert f"path {path.name!r} at t = {end:g}, where alpha = " in said[0]
    return None


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_an_end_of_time_a_conversion_is_its_limit_or_names_path_and_time(
    path: Path, end: float, dtype: torch.dtype
) -> None:
    """No NaN anywhere: rows at the end stand beside rows inside, which must not change either."""
    x0, x1 = (
        torch.randn(3, 2, dtype=dtype, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    t = torch.tensor([0.3, end, 0.7], dtype=dtype)
    near = torch.tensor([0.3, abs(end - 1e-6), 0.7], dtype=torch.float64)
    x, v = path.interpolate(x0, x1, t)
    exact = path.interpolate(x0.double(), x1.double(), near)
    v = torch.where(
        v.isfinite(), v, 0
    )  # of an infinite velocity nothing can be told; of a finite one its end is 0
    calls = {
        "endpoints": (lambda x, v, t: torch.stack(path.endpoints(x, v, t)), v, exact[1]),
        "score": (path.score, v, exact[1]),
        "velocity_from_score": (
            path.velocity_from_score,
            *(x0 if end else -x0.to(s) / path.sigma(s)[:, None] for s in (t, near)),
        ),
        "velocity_from_data": (path.velocity_from_data, x1, x1),
        "velocity_from_noise": (path.velocity_from_noise, x0, x0),
    }
    for name, (convert, given, nearly) in calls.items():
        found = _result(path, end, convert, x, given, t)
        if found is None:
            continue
        assert not found.isnan().any(), name
        inside = torch.tensor([True, False, True])
        assert torch.equal(found[..., inside, :], convert(x[inside], given[inside], t[inside])), (
            name
        )
        at, limit = (
            found[..., 1, :].double(),
            convert(exact[0], nearly.to(exact[0]), near)[..., 1, :],
        )
        if (
            at.isfinite().all()
            and path.d_alpha(t).isfinite().all()
            and path.d_sigma(t).isfinite().all()
        ):
            assert_close(at, limit, atol=2e-3, rtol=2e-3, msg=name)


@pytest.mark.parametrize("path", [SQUARE, SMOOTH, ROOTS], ids=lambda path: path.name)
def test_the_score_of_a_path_that_starts_without_data_is_that_of_its_noise(path: Path) -> None:
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    t, v = torch.zeros(4, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    score = path.score(x, v, t)
    assert torch.equal(score, -x)
    (slope,) = torch.autograd.grad(score.sum(), x)
    assert torch.equal(
        slope, -torch.ones_like(x)
    )  # a NaN in a branch that is not taken would show here
    if path is not ROOTS:  # whose velocity is infinite unless the data are 0
        with pytest.raises(
            ConfigError,
            match=rf"x1 from a velocity is not defined on path '{path.name}' at t = 0, .* 0\.001\.",
        ):
            path.endpoints(x, v, t)


def test_vp_ends_in_the_data_themselves() -> None:
    x, v, t = torch.randn(4, 2), torch.randn(4, 2), torch.ones(4)
    assert torch.equal(VP.endpoints(x, v, t)[1], x)
    assert torch.equal(VP.endpoints(x, v, t)[0], torch.zeros(4, 2))


@EVERY
def test_predictions_of_data_and_of_noise_give_the_velocity_whose_endpoints_they_are(
    path: Path,
) -> None:
    x, given = batch(2, 3)
    for convert, which in ((path.velocity_from_noise, 0), (path.velocity_from_data, 1)):
        v = convert(x, given, TIMES)
        assert_close(path.endpoints(x, v, TIMES)[which], given, atol=1e-9, rtol=1e-9)
    x0, x1 = batch(2, 3)
    x_t, u_t = path.interpolate(x0, x1, TIMES)
    assert_close(path.velocity_from_data(x_t, x1, TIMES), u_t, atol=1e-8, rtol=1e-8)
    assert_close(path.velocity_from_noise(x_t, x0, TIMES), u_t, atol=1e-8, rtol=1e-8)


def test_textbook_forms_of_the_predictions_on_the_linear_path() -> None:
    x, given = batch(2)
    t = TIMES[:, None]
    assert_close(LINEAR.velocity_from_data(x, given, TIMES), (given - x) / (1 - t))
    assert_close(LINEAR.velocity_from_noise(x, given, TIMES), (x - given) / t)
    start, end = torch.zeros(13), torch.ones(13)
    assert_close(LINEAR.velocity_from_data(x, given, start), given - x)
    assert_close(LINEAR.velocity_from_noise(x, given, end), x - given)
    with pytest.raises(
        ConfigError,
        match=r"velocity from data is not defined on path 'linear' at t = 1, .* Use .* 0\.999\.",
    ):
        LINEAR.velocity_from_data(x, given, end)
    with pytest.raises(
        ConfigError,
        match=r"velocity from noise is not defined on path 'linear' at t = 0, .* Use .* 0\.001\.",
    ):
        LINEAR.velocity_from_noise(x, given, start)
    assert (
        LINEAR.velocity_from_data(x, given, torch.full((13,), 0.999)).isfinite().all()
    )  # the remedy


def test_a_path_without_its_finite_product_is_asked_for_it() -> None:
    with pytest.raises(
        ConfigError,
        match=r"sigma d_sigma is not defined on path 'falling' at t = 1.*Give the path its sigma_d_sigma",
    ):
        FALLING.half_variance_rate(torch.tensor([0.5, 1.0]))
    helped = dataclasses.replace(FALLING, sigma_d_sigma=lambda t: torch.full_like(t, -0.5))
    x, v = batch(2)
    assert helped.score(x, v, torch.ones(13, dtype=torch.float64)).isfinite().all()


def test_paths_are_found_by_name_and_cannot_be_changed() -> None:
    assert {name: path.name for name, path in PATHS.items()} == {
        "linear": "linear",
        "cosine": "cosine",
        "vp": "vp",
    }
    with pytest.raises(AttributeError):
        LINEAR.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_labels_of_a_flow_sample_are_optional() -> None:
    x = torch.zeros(1, 2)
    assert FlowSample(x, x, torch.zeros(1), x, x).y is None
