"""SiT against the official program: names, sizes, initial values, activations and outputs; then its
own promises.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from cfm_lite.errors import ConfigError
from cfm_lite.models import SIT_CONFIGS, SiT, count_parameters, timestep_features
from cfm_lite.models.embed import sincos_1d, sincos_2d
from cfm_lite.models.sit import attend
from tests.networks import kept_bytes
from tests.reference import HERE, case, cases, settings

IO = "models/models_io"
OFFICIAL = ["sit_learnsigma", "sit_nosigma", "sit_patch4"]
COUNTS = json.loads((HERE / "models/param_counts.json").read_text())
KEYS = json.loads((HERE / "models/state_dict_keys.json").read_text())
TINY = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 3,
    "hidden_size": 24,
    "depth": 3,
    "num_heads": 4,
    "num_classes": 10,
}


def official(name: str) -> SiT:
    model = SiT(**settings(IO)[name]["config"])
    model.load_state_dict(safetensors.torch.load_file(HERE / f"models/{name}.safetensors"))
    return model.requires_grad_(False)


def tiny(**changes) -> SiT:
    """A SiT whose every weight is random, so that nothing is hidden behind a zero gate."""
    model = SiT(**{**TINY, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(size: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(size, 3, 8, 8, dtype=dtype),
        torch.rand(size, dtype=dtype),
        torch.randint(0, 11, (size,)),
    )


@contextmanager
def listening(**modules: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each named module returned in its last call."""
    heard: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _, __, out, name=name: heard.__setitem__(name, out))
        for name, m in modules.items()
    ]
    yield heard
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", OFFICIAL)
def test_velocity_agrees_with_the_official_program(name):
    model, numbers = official(name), case(IO, name)
    torch.testing.assert_close(
        model(numbers["x"], numbers["t"], numbers["y"]), numbers["out"], rtol=1e-5, atol=1e-5
    )
    model.double()
    v = model(numbers["x"].double(), numbers["t"].double(), numbers["y"])
    torch.testing.assert_close(
        v, numbers["out_f64"], rtol=0, atol=2e-8
    )  # the last bit of float32 time features, over machines


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_activation_agrees_with_the_official_program(name):
    model, numbers = official(name), case(IO, name)
    named = {
        "patch_embed": model.x_embedder,
        "t_emb": model.t_embedder,
        "y_emb": model.y_embedder,
        "final_layer": model.final_layer,
    }
    named |= {"block0_attn_out": model.blocks[0].attn, "block0_mlp_out": model.blocks[0].mlp}
    with listening(**named) as heard:
        _, features = model.forward_features(
            numbers["x"], numbers["t"], numbers["y"], blocks=range(1, model.depth + 1)
        )
    heard |= {f"block{number - 1}": h for number, h in features.items()}
    assert len(heard) == sum(key.startswith("act_") and "f64" not in key for key in numbers)
    for key, value in heard.items():
        torch.testing.assert_close(value, numbers[f"act_{key}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OFFICIAL)
def test_features_agree_with_the_official_program_in_float64(name):
    model, numbers = official(name).double(), case(IO, name)
    _, features = model.forward_features(
        numbers["x"].double(), numbers["t"].double(), numbers["y"], blocks=range(1, model.depth + 1)
    )
    for number, h in features.items():
        torch.testing.assert_close(h, numbers[f"act_f64_block{number - 1}"], rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_guidance_is_three_channels_of_the_two_halves(name):
    model, numbers = official(name), case(IO, name)
    half = numbers["cfg_x"][:3]
    out = model(torch.cat([half, half]), numbers["cfg_t"], numbers["cfg_y"])
    torch.testing.assert_close(
        out, numbers["cfg_plain_forward_of_duplicated_half"], rtol=1e-5, atol=1e-5
    )
    labelled, null = out.chunk(2)
    guided = null + settings(IO)[name]["cfg_scale"] * (labelled - null)
    expected = torch.cat([torch.cat([guided, guided])[:, :3], out[:, 3:]], dim=1)
    torch.testing.assert_close(expected, numbers["cfg_out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(half, numbers["cfg_t"][3:]), null)


@pytest.mark.parametrize("name", cases("embeddings", "time_dim"))
def test_time_features_agree_with_the_official_program(name):
    numbers, how = case("embeddings", name), settings("embeddings")[name]
    features = timestep_features(numbers["t"], how["dim"], how["max_period"])
    within = numbers["t"] <= 1  # beyond 1, at angles near 1000, float32 arguments differ by 1e-4
    torch.testing.assert_close(features[within], numbers["emb"][within], rtol=0, atol=1e-6)
    torch.testing.assert_close(features, numbers["emb"], rtol=0, atol=2e-4)
    torch.testing.assert_close(
        features[within].double(), numbers["emb_exact_float64"][within], rtol=0, atol=1e-6
    )
    assert timestep_features(numbers["t"].double()).dtype == torch.float32


def test_position_tables_agree_with_the_official_program():
    for name in ("pos_D48_G4", "pos_D384_G16", "pos_D96_G7"):
        how = settings("embeddings")[name]
        torch.testing.assert_close(
            sincos_2d(how["dim"], how["grid"]), case("embeddings", name)["pos"], rtol=0, atol=1e-12
        )
    line = case("embeddings", "pos_1d")
    torch.testing.assert_close(sincos_1d(line["positions"], 48), line["emb"], rtol=0, atol=1e-12)
    prefixed = case("embeddings", "pos_cls")["pos"]  # two rows of zeros come first
    torch.testing.assert_close(F.pad(sincos_2d(48, 4), (0, 0, 2, 0)), prefixed, rtol=0, atol=1e-12)


@cache
def empty(name: str, learn_sigma: bool = False, qk_norm: bool = False) -> SiT:
    """One of the official sizes, without memory."""
    with torch.device("meta"):
        return SiT(**SIT_CONFIGS[name], learn_sigma=learn_sigma, qk_norm=qk_norm)


@pytest.mark.parametrize("entry", KEYS)
def test_parameter_names_and_shapes_are_the_official_ones(entry):
    name = next(name for name in SIT_CONFIGS if f"{name} " in entry)
    model = empty(name, "learn_sigma=True" in entry, "qk_norm=True" in entry)
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: shape for key, shape in KEYS[entry].items() if not key.startswith("projectors.")}
    if (
        name == "SiT-S/2" and "REPA" in entry
    ):  # there the official head is 768 wide by mistake and cannot run
        ours, theirs = (
            {k: v for k, v in keys.items() if not k.startswith("final_layer")}
            for keys in (ours, theirs)
        )
    assert ours == theirs


@pytest.mark.parametrize("name", SIT_CONFIGS)
def test_parameter_counts_are_the_official_ones(name):
    for entry, counts in COUNTS["willisma_SiT"].items():
        if entry.startswith(f"{name}|"):
            assert count_parameters(empty(name, "learn_sigma=True" in entry)) == (
                counts["total"],
                counts["trainable"],
            )
    runnable = [
        e
        for e in COUNTS["REPA_DeltaFM_SiT"]
        if e.startswith(f"{name}|") and ("-S" not in name or "fixed" in e)
    ]
    assert len(runnable) == 4
    for entry in runnable:
        counts, ours = (
            COUNTS["REPA_DeltaFM_SiT"][entry],
            count_parameters(empty(name, False, "qk_norm=True" in entry)),
        )
        assert ours[0] == counts["without_projectors"]
        assert (ours[0] + counts["projectors"], ours[1] + counts["projectors"]) == (
            counts["total"],
            counts["trainable"],
        )


def test_configs_name_every_official_size():
    assert set(SIT_CONFIGS) == {entry.split("|")[0] for entry in COUNTS["willisma_SiT"]}


def test_output_is_exactly_zero_and_every_block_the_identity_before_training():
    model, (x, t, y) = SiT(**TINY), batch()
    v, features = model.forward_features(x, t, y, blocks=(1, 2, 3))
    assert v.shape == x.shape
    assert not v.any()
    for h in features.values():
        torch.testing.assert_close(h, model.x_embedder(x) + model.pos_embed)


def test_initial_values_have_the_official_laws():
    model = SiT(**{**TINY, "hidden_size": 192, "num_classes": 100, "qk_norm": True})
    qkv, patches = model.blocks[1].attn.qkv.weight, model.x_embedder.proj.weight
    for weight, fan_in, fan_out in (
        (qkv, 192, 576),
        (patches, 12, 192),
    ):  # Xavier: uniform within sqrt(6 / (in + out))
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    for weight in (
        model.t_embedder.mlp[0].weight,
        model.t_embedder.mlp[2].weight,
        model.y_embedder.embedding_table.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for block in model.blocks:
        assert not block.adaLN_modulation[1].weight.any()
        assert (block.attn.q_norm.weight == 1).all()
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    torch.testing.assert_close(model.pos_embed[0], sincos_2d(192, 4).float())


def test_training_reaches_every_trainable_parameter():
    model, (x, t, y) = SiT(**TINY, qk_norm=True), batch(32)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(dict(model.named_parameters())) - set(trained) == {"pos_embed"}
    for _ in range(4):  # the head opens first, then the gates, then what is behind them
        loss = (model(x, t, y) - torch.randn_like(x)).square().mean()
        grads = torch.autograd.grad(loss, list(trained.values()))
        with torch.no_grad():
            for p, g in zip(trained.values(), grads):
                p -= g / (g.norm() + 1e-9)
    still = [name for name, g in zip(trained, grads) if not g.abs().sum() > 0]
    # a bias of the keys shifts all scores of a query alike, which the softmax does not see
    assert set(still) <= {f"blocks.{k}.attn.k_norm.bias" for k in range(3)}


@pytest.mark.parametrize(
    ("size", "patch", "channels"), [(8, 2, 1), (28, 4, 1), (32, 2, 4), (32, 4, 3)]
)
def test_digits_mnist_latents_and_cifar_have_their_sizes(size, patch, channels):
    model = SiT(size, patch, channels, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    x = torch.randn(2, channels, size, size)
    v, features = model.forward_features(x, torch.rand(2), torch.tensor([0, 9]), blocks=[2])
    assert v.shape == x.shape
    assert features[2].shape == (2, (size // patch) ** 2, model.hidden_size)


def test_unpatchify_puts_every_value_where_its_patch_was():
    model = SiT(input_size=6, patch_size=2, in_channels=3, hidden_size=8, depth=1, num_heads=2)
    image = torch.arange(2 * 3 * 36.0).reshape(2, 3, 6, 6)
    tokens = (
        F.unfold(image, 2, stride=2).unflatten(1, (3, 4)).permute(0, 3, 2, 1).flatten(2)
    )  # (B, T, p * p * C), channels last
    torch.testing.assert_close(model.unpatchify(tokens), image)


def test_no_label_is_the_null_label():
    model, (x, t, _) = tiny(), batch()
    null = torch.full((5,), 10)
    torch.testing.assert_close(model(x, t), model(x, t, null), rtol=0, atol=0)
    assert not torch.allclose(model(x, t), model(x, t, null - 1))


def test_the_model_never_drops_a_label():
    model, (x, t, y) = tiny(class_dropout_prob=1.0).train(), batch(64)
    y = y % 10
    torch.testing.assert_close(model(x, t, y), model.eval()(x, t, y), rtol=0, atol=0)
    assert not torch.allclose(model(x, t, y), model(x, t))


def test_without_a_null_row_a_label_is_needed():
    model, (x, t, y) = tiny(class_dropout_prob=0.0), batch()
    assert model.y_embedder.embedding_table.weight.shape[0] == 10
    assert model(x, t, y % 10).shape == x.shape
    with pytest.raises(ConfigError, match="class_dropout_prob"):
        model(x, t)
    with pytest.raises(ConfigError, match=r"\[0, 9\]"):
        model(x, t, torch.full((5,), 10))


def test_no_classes_at_all_is_an_unconditional_model():
    for probability in (0.0, 0.1):
        model, (x, t, _) = tiny(num_classes=0, class_dropout_prob=probability), batch()
        torch.testing.assert_close(
            model(x, t), model(x, t, torch.zeros(5, dtype=torch.long)), rtol=0, atol=0
        )


def test_rows_of_a_batch_do_not_meet_and_one_row_is_enough():
    model, (x, t, y) = tiny(), batch()
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, model(x, t, y), rtol=1e-4, atol=1e-4)
    assert model(x[:0], t[:0], y[:0]).shape == (0, 3, 8, 8)


def test_features_leave_the_velocity_as_it_is_and_nothing_is_mutated():
    model, given = tiny(), batch()
    before = [x.clone() for x in given]
    v, features = model.forward_features(*given, blocks=(3, 1, 3))
    assert sorted(features) == [1, 3]
    torch.testing.assert_close(v, model(*given), rtol=0, atol=0)
    torch.testing.assert_close(
        v,
        model.unpatchify(
            model.final_layer(
                features[3], model.t_embedder(given[1]) + model.y_embedder(given[2], v)
            )
        ),
    )
    for old, new in zip(before, given):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_weights_passes_through(dtype):
    model, (x, t, y) = tiny(qk_norm=True).to(dtype), batch(dtype=dtype)
    v, features = model.forward_features(x, t, y, blocks=[1])
    assert v.dtype == features[1].dtype == dtype


@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_to_bfloat16_is_near_float32_forwards_and_backwards(qk_norm):
    model, (x, t, y) = tiny(qk_norm=qk_norm), batch(16)
    for p in model.parameters():
        p.data.mul_(0.5)  # within the range where a network is trained
    wanted = torch.autograd.grad(model(x, t, y).square().mean(), model.blocks[0].attn.qkv.weight)[0]
    for inputs in (x, x.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v = model(inputs, t, y)
            with torch.no_grad():
                torch.testing.assert_close(
                    model(inputs, t, y).float(), v.float(), rtol=0, atol=0.03 * v.abs().max().item()
                )
        torch.testing.assert_close(
            v.float(), model(x, t, y), rtol=0, atol=0.03 * v.abs().max().item()
        )
        got = torch.autograd.grad(v.float().square().mean(), model.blocks[0].attn.qkv.weight)[0]
        assert F.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.99


def test_attention_is_the_softmax_of_scaled_products():
    q, k, v = torch.randn(3, 2, 4, 7, 6, dtype=torch.float64)
    expected = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) / 6**0.5, dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected)
    half = [z.bfloat16().requires_grad_() for z in (q, k, v)]
    torch.testing.assert_close(attend(*half).double(), expected, rtol=0, atol=0.03)
    torch.testing.assert_close(
        attend(*[z.detach() for z in half]).double(), expected, rtol=0, atol=0.03
    )


@pytest.mark.parametrize("half", [False, True])
def test_checkpointing_changes_neither_velocity_features_nor_gradients(half):
    model, given, kept = tiny(), batch(), []
    for model.checkpointing in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            v, features = model.forward_features(*given, blocks=(1, 3))
        loss = v.float().square().mean() + features[1].float().mean() * features[3].float().var()
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        kept.append([v, *features.values(), *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*kept))


def test_checkpointing_keeps_only_the_inputs_of_the_blocks():
    model = SiT(8, 2, 3, hidden_size=32, depth=4, num_heads=4, num_classes=10)
    assert kept_bytes(model, batch(), again=True) < 0.25 * kept_bytes(model, batch())


def test_checkpointing_compiles_in_one_graph_and_agrees():
    model, (x, t, y), graphs = tiny(), batch(), []
    model.checkpointing = True

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)(x, t, y)
    torch.testing.assert_close(compiled, model(x, t, y))
    grads = [
        torch.autograd.grad(v.square().mean(), model.blocks[0].mlp.fc1.weight)[0]
        for v in (compiled, model(x, t, y))
    ]
    torch.testing.assert_close(*grads)
    assert len(graphs) == 1


def test_time_frequencies_survive_casts_and_empty_storage():
    wanted = SiT(**TINY).t_embedder.frequencies
    with torch.device("meta"):
        model = SiT(**TINY)
    for changed in (
        model.to_empty(device="cpu"),
        SiT(**TINY).bfloat16(),
        SiT(**TINY).double(),
        SiT(**TINY).half().float(),
    ):
        torch.testing.assert_close(changed.t_embedder.frequencies, wanted, rtol=0, atol=0)
        assert "t_embedder.frequencies" not in changed.state_dict()
    model.initialize_weights()
    assert not model(*batch()).any()


def test_config_builds_the_same_model_again():
    model = tiny(learn_sigma=True, mlp_ratio=2.0, qk_norm=True)
    again = SiT(**model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(*(b := batch())), model(*b), rtol=0, atol=0)
    assert json.loads(json.dumps(model.config)) == model.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 25}, "num_heads 4"),
        ({"hidden_size": 6, "num_heads": 3}, "multiple of 4"),
        ({"input_size": 9}, "patch_size 2"),
        ({"depth": 0}, "depth"),
        ({"depth": 2.0}, "depth"),
        ({"num_heads": True}, "num_heads"),
        ({"num_classes": -1}, "num_classes"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob"),
        ({"class_dropout_prob": float("nan")}, "class_dropout_prob"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SiT(**{**TINY, **changes})


X, T, Y = torch.randn(5, 3, 8, 8), torch.rand(5), torch.randint(0, 11, (5,))


@pytest.mark.parametrize(
    ("x", "t", "y", "message"),
    [
        (X[:, :2], T, Y, r"\(B, 3, 8, 8\)"),
        (X[..., :6], T, Y, r"\(B, 3, 8, 8\)"),
        (X[0], T, Y, r"\(B, 3, 8, 8\)"),
        (X.long(), T, Y, "floating"),
        (X.double(), T, Y, "torch.float64"),
        (X.half(), T, Y, r"give data \.to\(torch\.float32\)"),
        (X, T[:, None], Y, r"\(B,\)"),
        (X, T[:4], Y, r"\(B,\)"),
        (X, 0.5, Y, "float"),
        (X, T + 1, Y, r"\[0, 1\]"),
        (X, T * float("nan"), Y, r"\[0, 1\]"),
        (X, T.round().long(), Y, "floating"),
        (X, T, Y[:4], "one label per row"),
        (X, T, Y[:, None], "one label per row"),
        (X, T, Y.float(), "integers"),
        (X, T, Y * 0 + 11, r"\[0, 10\]"),
        (X, T, Y * 0 - 1, r"\[0, 10\]"),
        (X, T, 3, "int"),
        (X, T, Y.to("meta"), "device"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, t, y, message):
    with pytest.raises(ConfigError, match=message):
        SiT(**TINY)(x, t, y)


@pytest.mark.parametrize("blocks", [(0,), (4,), (-1,), (1.0,), (True,), "1", 2, (1, None)])
def test_block_numbers_run_from_one_to_depth(blocks):
    with pytest.raises(ConfigError, match="1 to 3"):
        SiT(**TINY).forward_features(X, T, Y, blocks=blocks)
