"""The U-Net: shapes and numbers of its levels, what it promises before training, every transform of
torch.func, what it refuses; and that it learns."""

import itertools
import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jvp, vmap

from cfm_lite import objective
from cfm_lite.data import digits, teachers
from cfm_lite.data.batches import batches
from cfm_lite.errors import ConfigError
from cfm_lite.models import UNet, count_parameters
from cfm_lite.models.unet_sizes import check_sizes
from cfm_lite.runs import recipe as recipes
from cfm_lite.runs.recipe import build_objective, build_trainer, precision_on, recipe
from cfm_lite.training import Trainer

TINY = {"input_size": 8, "in_channels": 3, "channels": (8, 16), "num_heads": 2, "num_classes": 4}


def tiny(**changes) -> UNet:
    """A U-Net whose every weight is random, so that nothing is hidden behind a zero."""
    torch.manual_seed(0)
    model = UNet(**{**TINY, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(size=3, side=8, channels=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(size, channels, side, side, generator=g, dtype=dtype),
        torch.rand(size, generator=g, dtype=dtype),
        torch.randint(0, 5, (size,), generator=g),
    )


@pytest.mark.parametrize(
    ("side", "channels", "patch", "widths"),
    [
        (8, 1, 1, (8,)),
        (16, 3, 2, (8, 16)),
        (28, 1, 2, (8, 8)),
        (32, 4, 1, (8, 8, 16)),
        (64, 3, 4, (16, 8)),
    ],
)
def test_sides_channels_and_levels(side, channels, patch, widths):
    model = UNet(side, channels, widths, 2, patch, 2, num_classes=4)
    x, t, y = batch(2, side, channels)
    assert not model(x, t, y).any()  # exactly 0 before training
    last = model.depth
    assert last == 4 * len(widths) + 2
    v, features = model.forward_features(x, t, y, blocks=range(1, last + 1))
    assert v.shape == x.shape
    assert v.is_contiguous()
    for number, h in features.items():
        grid, width = model.grid(number)
        assert h.shape == (2, grid * grid, width)
    assert model.grid(1) == model.grid(last) == (side // patch, widths[0])
    lowest = (side // patch // 2 ** (len(widths) - 1), widths[-1])
    assert model.grid(last // 2) == model.grid(last // 2 + 1) == lowest


def test_a_block_is_its_skip_before_training():
    model, (x, t, y) = UNet(**TINY), batch()
    _, features = model.forward_features(x, t, y, blocks=(1, 2))
    stem = model.stem(F.pixel_unshuffle(x, 2))
    torch.testing.assert_close(features[1], stem.flatten(2).mT)


def test_rows_do_not_see_each_other_but_every_pixel_sees_every_other():
    model, (x, t, y) = tiny().double(), batch(dtype=torch.float64)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x, t, y), alone)
    moved = x.clone()
    moved[0, 0, 0, 0] += 1
    change = (model(moved, t, y) - model(x, t, y)).abs().amax(1)
    assert (change[0] > 0).all()
    assert not change[1:].any()


def test_time_and_label_reach_the_velocity_and_no_label_is_the_null_label():
    model, (x, t, y) = tiny(), batch()
    v = model(x, t, y)
    for other in (model(x, t.roll(1), y), model(x, t, (y + 1) % 4)):
        assert not torch.equal(v, other)
    torch.testing.assert_close(model(x, t), model(x, t, torch.full_like(y, 4)), rtol=0, atol=0)


def test_config_builds_the_same_model_again():
    model, given = tiny(num_res_blocks=2, patch_size=1), batch()
    again = UNet(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(*given), model(*given), rtol=0, atol=0)


def test_every_transform_of_torch_func_agrees_with_plain_autograd():
    model, (x, t, y) = tiny().double(), batch(dtype=torch.float64)

    def loss(x):
        return model(x, t, y).square().sum()

    free = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(free), free, create_graph=True)
    torch.testing.assert_close(grad(loss)(x), slope)
    torch.testing.assert_close(jvp(loss, (x,), (x,)), (loss(x), (slope * x).sum()))
    curved = torch.func.grad(lambda x: (grad(loss)(x) * x.detach()).sum())(x)
    product = jvp(grad(loss), (x,), (x,))[1]
    torch.testing.assert_close(product, curved)
    several = torch.stack([x, x.roll(1, 0)])
    torch.testing.assert_close(
        vmap(lambda x: model(x, t, y))(several), torch.stack([model(a, t, y) for a in several])
    )
    weights = dict(model.named_parameters())

    def of_row(weights, x, t, y):
        return functional_call(model, weights, (x[None], t[None], y[None])).square().sum()

    each = vmap(grad(of_row), (None, 0, 0, 0))(weights, x, t, y)
    loss(x).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


def test_half_precision_and_one_compiled_graph():
    model, given, graphs = tiny(), batch(), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*given)
    torch.testing.assert_close(half.float(), model(*given), rtol=0.1, atol=0.1)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.testing.assert_close(torch.compile(model, backend=backend)(*given), model(*given))
    assert len(graphs) == 1


def test_auto_precision_is_what_the_device_computes_fast():
    model = UNet(**TINY)
    for said in ("bf16", "float32"):
        assert precision_on(model, said) == said
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert precision_on(model, "auto") == ("bf16" if fast else "float32")
    trainer = build_trainer(recipe("digits", hidden_size=8, precision="auto"), model)
    assert trainer.precision == precision_on(model, "auto")


@pytest.mark.parametrize(("major", "precision"), [(7, "float32"), (8, "bf16")])
def test_auto_precision_on_a_gpu_is_bf16_only_where_it_is_in_hardware(
    major, precision, monkeypatch
):
    """A T4 or V100 (capability 7) emulates bf16, which torch counts as supported, and is slow."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major)
    )
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.version, "hip", None)
    weight = SimpleNamespace(device=torch.device("cuda"))
    assert precision_on(SimpleNamespace(parameters=lambda: iter([weight])), "auto") == precision


@pytest.mark.parametrize("fast", [False, True])
def test_bf16_on_a_processor_without_it_is_said_to_be_slow(fast, monkeypatch):
    monkeypatch.setattr(recipes, "_cpu_has_bf16", lambda: fast)
    cpu, half = torch.device("cpu"), recipe("mnist_sit").precision
    with warnings.catch_warnings(record=True, action="always") as said:
        recipes.check_speed(half, cpu)
        recipes.check_speed(half, torch.device("cuda"))
        recipes.check_speed(recipe("mnist").precision, cpu)  # auto
    assert [str(one.message).split("; ")[1] for one in said] == (
        [] if fast else ["--set precision=float32 is faster here."]
    )


def test_it_learns_the_digits():
    x, y = digits.load("train")
    torch.manual_seed(0)
    trainer = Trainer(objective.fm(UNet(8, 1, (16, 32))), lr=3e-3)
    losses = [float(log["loss"]) for log in trainer.run(batches(x, y, size=64), 60)]
    assert sum(losses[-15:]) < 0.7 * sum(losses[:5]) * 3  # 1.62 a step, then 0.97


def test_every_method_trains_it_and_repa_finds_its_grid(monkeypatch):
    monkeypatch.setattr(teachers, "teacher_for", teachers.SmallTeacher)  # untrained
    given = recipe(
        "digits",
        model="unet",
        hidden_size=8,
        levels=2,
        depth=1,
        num_heads=2,
        align_block=3,
        block=2,
    )
    x, y = digits.load("train")
    for method in ("delta_fm", "vecor_latent", "dispersive", "repa"):
        model = UNet(8, 1, (8, 16), 1, 2, 2)
        built = build_objective(given.changed(method=method), model)
        assert torch.isfinite(built(x[:8], y[:8])[0])
    assert built.terms["alignment"].projector[0].in_features == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 7}, "8 to 64 pixels"),
        ({"input_size": 128}, "8 to 64 pixels"),
        ({"input_size": 10}, "divide by 4.*images of 12"),
        ({"channels": (8, 12)}, "12.*multiple of 8.*such as 16"),
        ({"channels": ()}, r"such as \(32, 64\)"),
        ({"channels": 8}, r"such as \(32, 64\)"),
        ({"channels": (8, True)}, "channels"),
        ({"num_heads": 3}, "num_heads is 3"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"patch_size": 0}, "patch_size"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        UNet(**{**TINY, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("heads", [1, 8, 32])
def test_every_remedy_for_levels_that_do_not_fit_works(heads):
    """What stands behind "Use" is tried, for every side and many networks."""
    seen = set()
    for side, levels, patch, width in itertools.product(
        range(8, 65), (1, 2, 4, 5, 7), (1, 2, 3, 28), (8, 16, 32)
    ):
        tried = {"input_size": side, "in_channels": 1, "patch_size": patch, "num_heads": heads}
        tried["channels"] = (width,) * levels if levels != 2 else (32, width)
        error = refusal(tried)
        if error and "num_heads is" not in error:
            assert "it must be a multiple" in error or "1 x 1 pixels" in error
            for remedy in error.split(" Use ")[1].rstrip(".").split(" or "):
                seen.add(re.sub(r"\d+", "N", remedy))
                assert refusal(changed(tried, remedy)) is None, (tried, remedy)
    assert len(seen) > (1 if heads == 32 else 4)


def refusal(tried):
    try:
        check_sizes(TINY | {"num_res_blocks": 1, "class_dropout_prob": 0.1} | tried)
    except ConfigError as error:
        return str(error)


def changed(tried, remedy):
    told = {
        what: int(n) for what, n in re.findall(r"(images of|patch_size|num_heads) (\d+)", remedy)
    }
    levels, last = (re.search(rf"(\d+) {what}", remedy) for what in ("level", "channels there"))
    widths = tried["channels"][: int(levels[1])] if levels else tried["channels"]
    return tried | {
        "input_size": told.get("images of", tried["input_size"]),
        "patch_size": told.get("patch_size", tried["patch_size"]),
        "num_heads": told.get("num_heads", tried["num_heads"]),
        "channels": (*widths[:-1], int(last[1])) if last else widths,
    }


@pytest.mark.parametrize(
    "sizes",
    [
        {"input_size": 8, "channels": (8,) * 4},
        {"input_size": 28, "patch_size": 28, "channels": (8,)},
    ],
)
def test_a_group_of_one_number_is_refused_and_two_are_not(sizes):
    tried = TINY | {"patch_size": 1} | sizes
    with pytest.raises(ConfigError, match=r"one number there.*Use 16 channels there"):
        UNet(**tried)
    wide = tried | {"channels": (*tried["channels"][:-1], 16)}
    x, t, y = batch(1, tried["input_size"])
    assert UNet(**wide).train()(x, t, y).shape == x.shape


@pytest.mark.parametrize("patch", [1, 2])
def test_an_empty_batch_gives_an_empty_result(patch):
    model = UNet(8, 1, channels=(8, 16), patch_size=patch)
    v, features = model.forward_features(torch.zeros(0, 1, 8, 8), torch.zeros(0), blocks=(1, 3))
    assert v.shape == (0, 1, 8, 8)
    assert features[1].shape == (0, (8 // patch) ** 2, 8)
    assert features[3].shape == (0, (4 // patch) ** 2, 16)


X, T, Y = batch()


@pytest.mark.parametrize(
    ("x", "t", "y", "message"),
    [
        (X[:, :2], T, Y, r"\(B, 3, 8, 8\)"),
        (X[..., :6], T, Y, r"\(B, 3, 8, 8\)"),
        (X.long(), T, Y, "floating"),
        (X.double(), T, Y, "torch.float64"),
        (X, T + 1, Y, r"\[0, 1\]"),
        (X, T, Y * 0 + 5, r"\[0, 4\]"),
        (X, T, Y[:2], "one label per row"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, t, y, message):
    with pytest.raises(ConfigError, match=message):
        UNet(**TINY)(x, t, y)


def test_a_block_that_is_not_there_is_refused():
    for call in (
        lambda: UNet(**TINY).grid(7),
        lambda: UNet(**TINY).forward_features(X, T, Y, (0,)),
    ):
        with pytest.raises(ConfigError, match="1 to 6"):
            call()


def test_the_recipe_gives_each_level_twice_the_channels():
    _, trained = count_parameters(UNet(28, 1, (32, 64)))
    assert 400_000 < trained < 700_000
