"""The small network: its two formulas, its labels, and that it learns."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfm_lite.errors import ConfigError
from cfm_lite.models import MLP, count_parameters, timestep_features

KINDS = {"plain": {"data_shape": 2}, "residual": {"data_shape": (1, 8, 8), "residual": True}}


def random_mlp(**settings) -> MLP:
    """An MLP whose output layer is random too."""
    model = MLP(**{"hidden_size": 16, "num_classes": 10, **settings})
    torch.nn.init.normal_(model.output.weight)
    torch.nn.init.normal_(model.output.bias)
    return model


def batch(
    model: MLP, size: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(size, *model.data_shape, dtype=dtype),
        torch.rand(size, dtype=dtype),
        torch.randint(0, 11, (size,)),
    )


def test_plain_network_is_its_formula():
    model = random_mlp(depth=3)
    x, t, y = batch(model)
    one_hot = F.one_hot(
        y, 11
    ).float()  # a label vector in the first layer is a one-hot code beside x
    first = torch.cat([model.input.weight, model.y_embedder.embedding_table.weight.T], dim=1)
    h = F.silu(torch.cat([x, t[:, None], one_hot], dim=1) @ first.T + model.input.bias)
    for block in list(model.blocks)[1:]:
        h = F.silu(block[0](h))
    torch.testing.assert_close(model(x, t, y), model.output(h), rtol=1e-5, atol=1e-5)


def test_residual_network_is_its_formula():
    model = random_mlp(**KINDS["residual"], depth=2)
    x, t, y = batch(model)
    h = (
        model.input(x.flatten(1))
        + model.t_embedder.mlp(timestep_features(t))
        + model.y_embedder.embedding_table.weight[y]
    )
    for block in model.blocks:
        h = h + block.fc2(F.silu(block.fc1(block.norm(h))))
    torch.testing.assert_close(
        model(x, t, y).flatten(1), model.output(model.norm(h)), rtol=1e-5, atol=1e-5
    )


def test_plain_network_in_two_dimensions_is_3_64_64_64_2():
    assert (
        count_parameters(MLP())
        == (sum(a * b + b for a, b in ((3, 64), (64, 64), (64, 64), (64, 2))),) * 2
    )


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_exactly_zero_before_training(kind):
    model = MLP(**KINDS[kind], num_classes=10)
    x, t, y = batch(model)
    assert model(x, t, y).shape == x.shape
    assert not model(x, t, y).any()


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_hidden_layers(kind):
    model = random_mlp(**KINDS[kind], depth=3)
    x, t, y = batch(model)
    v, features = model.forward_features(x, t, y, blocks=(3, 1, 2, 2))
    assert list(features) == [1, 2, 3]
    assert all(h.shape == (6, model.hidden_size) for h in features.values())
    torch.testing.assert_close(v, model(x, t, y), rtol=0, atol=0)
    torch.testing.assert_close(model.blocks[2](features[2]), features[3])
    torch.testing.assert_close(model.output(model.norm(features[3])).reshape(x.shape), v)


def test_an_image_is_its_flat_vector():
    image, flat = (
        random_mlp(data_shape=(1, 8, 8), residual=True),
        random_mlp(data_shape=64, residual=True),
    )
    flat.load_state_dict(image.state_dict())
    x, t, y = batch(image)
    torch.testing.assert_close(image(x, t, y).flatten(1), flat(x.flatten(1), t, y), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_is_the_null_label(kind):
    model = random_mlp(**KINDS[kind])
    x, t, _ = batch(model)
    null = torch.full((6,), 10)
    torch.testing.assert_close(model(x, t), model(x, t, null), rtol=0, atol=0)
    assert not torch.allclose(model(x, t), model(x, t, null - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_null_row_a_label_is_needed(kind):
    model = random_mlp(**KINDS[kind], class_dropout_prob=0.0)
    x, t, y = batch(model)
    assert model(x, t, y % 10).shape == x.shape
    with pytest.raises(ConfigError, match="class_dropout_prob"):
        model(x, t)
    with pytest.raises(ConfigError, match=r"\[0, 9\]"):
        model(x, t, y * 0 + 10)


def test_no_classes_at_all_is_an_unconditional_model():
    model = random_mlp(num_classes=0)
    x, t, _ = batch(model)
    torch.testing.assert_close(
        model(x, t), model(x, t, torch.zeros(6, dtype=torch.long)), rtol=0, atol=0
    )
    assert not any("y_embedder" in name for name in model.state_dict())
    with pytest.raises(ConfigError, match=r"\[0, 0\]"):
        model(x, t, torch.ones(6, dtype=torch.long))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_meet_and_nothing_is_mutated(kind):
    model = random_mlp(**KINDS[kind])
    given = batch(model)
    before = [z.clone() for z in given]
    alone = torch.cat([model(*(z[i : i + 1] for z in given)) for i in range(6)])
    torch.testing.assert_close(alone, model(*given), rtol=1e-4, atol=1e-5)
    assert model(*(z[:0] for z in given)).shape == (0, *model.data_shape)
    for old, new in zip(before, given):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_of_the_weights_passes_through(kind):
    for dtype in (torch.float32, torch.float64):
        model = random_mlp(**KINDS[kind]).to(dtype)
        x, t, y = batch(model, dtype=dtype)
        assert model(x, t, y).dtype == dtype
        assert model(x, t.float(), y).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_to_bfloat16_is_near_float32(kind):
    model = random_mlp(**KINDS[kind])
    x, t, y = batch(model)
    v = model(x, t, y)
    for inputs in (x, x.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(
                model(inputs, t, y).float(), v, rtol=0, atol=0.03 * v.abs().max().item()
            )


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_parameter(kind):
    model = random_mlp(**KINDS[kind])
    x, t, y = batch(model, 64)
    model(x, t, y).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_plain_network_learns_the_exact_velocity_of_a_gaussian():
    # x1 ~ N(m, s^2) on the linear path has E[u | x_t] = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 -
    # t)^2) (x_t - t m)
    mean, std = torch.tensor([1.0, -0.5]), 0.5
    model = MLP(hidden_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(250):
        x0, t = torch.randn(256, 2), torch.rand(256)
        x1 = mean + std * torch.randn(256, 2)
        x_t = (1 - t[:, None]) * x0 + t[:, None] * x1
        loss = (model(x_t, t) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    slope = (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2)
    exact = mean + slope[:, None] * (x_t - t[:, None] * mean)
    assert (model(x_t, t) - exact).square().mean() < 0.06 * exact.square().mean()


def test_residual_network_learns_a_field_for_each_label():
    # the velocity to the centre of class y is (c_y - x_t) / (1 - t)
    model = MLP(8, hidden_size=32, depth=2, num_classes=4, residual=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    centres = torch.randn(4, 8)
    for _ in range(250):
        x0, t, y = torch.randn(256, 8), torch.rand(256), torch.randint(0, 4, (256,))
        x_t = (1 - t[:, None]) * x0 + t[:, None] * centres[y]
        loss = (model(x_t, t, y) - (centres[y] - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15 * (1 + centres.square().mean())  # of the loss of a zero field


@pytest.mark.parametrize("kind", KINDS)
def test_config_builds_the_same_model_again(kind):
    model = random_mlp(**KINDS[kind], depth=2)
    again = MLP(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    given = batch(model)
    torch.testing.assert_close(again(*given), model(*given), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_shape": 0}, "data_shape"),
        ({"data_shape": ()}, "data_shape"),
        ({"data_shape": (1, 2.5)}, "data_shape"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"depth": 0}, "depth"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": None}, "num_classes"),
        ({"class_dropout_prob": -0.1}, "class_dropout_prob"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MLP(**settings)


X, T, Y = torch.randn(4, 2), torch.rand(4), torch.randint(0, 11, (4,))


@pytest.mark.parametrize(
    ("x", "t", "y", "message"),
    [
        (X[:, :1], T, Y, r"\(B, 2\)"),
        (X[0], T, Y, r"\(B, 2\)"),
        (X[:, None], T, Y, r"\(B, 2\)"),
        (X.long(), T, Y, "floating"),
        (X.double(), T, Y, "torch.float64"),
        (X, T[:, None], Y, r"\(B,\)"),
        (X, T[:1], Y, r"\(B,\)"),
        (X, 0.3, Y, "float"),
        (X, T - 1, Y, r"\[0, 1\]"),
        (X, T * float("nan"), Y, r"\[0, 1\]"),
        (X, T, Y[:1], "one label per row"),
        (X, T, Y.float(), "integers"),
        (X, T, Y * 0 + 11, r"\[0, 10\]"),
        (X, T, Y * 0 - 1, r"\[0, 10\]"),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_inputs_that_do_not_fit_are_refused(x, t, y, message, residual):
    with pytest.raises(ConfigError, match=message):
        MLP(2, num_classes=10, residual=residual)(x, t, y)


@pytest.mark.parametrize("blocks", [(0,), (4,), (True,), "1", 1])
def test_block_numbers_run_from_one_to_depth(blocks):
    with pytest.raises(ConfigError, match="1 to 3"):
        MLP(2, num_classes=10).forward_features(X, T, Y, blocks=blocks)
