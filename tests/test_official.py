"""Official checkpoints in and out: the numbers of SiT and REPA, files of every kind, and what is
refused.
"""

import argparse
import os

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfm_lite.errors import CheckpointCorruptError, CheckpointError, ConfigError, UntrustedFileError
from cfm_lite.models import MLP, SiT, export_official, load_official
from tests.reference import HERE, case, settings

IO = "models/models_io"
SIT, REPA = ["sit_learnsigma", "sit_nosigma", "sit_patch4"], ["repa_plain", "repa_qknorm"]


def weights(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        key: value.to(dtype)
        for key, value in safetensors.torch.load_file(HERE / f"models/{name}.safetensors").items()
    }


def loaded(name: str, dtype: torch.dtype = torch.float32, **config) -> SiT:
    return load_official(
        weights(name, dtype), format=name.split("_")[0], **{"num_heads": 4, **config}
    ).requires_grad_(False)


def without_projectors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("projectors.")}


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol)


@pytest.mark.parametrize("name", SIT)
def test_a_sit_checkpoint_gives_the_official_velocity(name):
    numbers = case(IO, name)
    torch.testing.assert_close(
        loaded(name)(numbers["x"], numbers["t"], numbers["y"]), numbers["out"], rtol=1e-5, atol=1e-5
    )
    double = loaded(name, torch.float64)
    torch.testing.assert_close(
        double(numbers["x"].double(), numbers["t"], numbers["y"]),
        numbers["out_f64"],
        rtol=0,
        atol=2e-8,
    )


@pytest.mark.parametrize("name", REPA)
def test_a_repa_checkpoint_gives_minus_the_official_velocity_at_the_opposite_time(name):
    numbers = case(IO, name)
    v = loaded(name)(numbers["x"], 1 - numbers["t"], numbers["y"])
    torch.testing.assert_close(v, -numbers["out"], rtol=1e-5, atol=2e-5)
    v = loaded(name, torch.float64)(numbers["x"].double(), 1 - numbers["t"].double(), numbers["y"])
    torch.testing.assert_close(v, -numbers["out_f64"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", REPA)
def test_a_repa_checkpoint_gives_the_official_features(name):
    numbers, model = case(IO, name), loaded(name)
    heard: dict[str, Tensor] = {}
    named = {
        "patch_embed": model.x_embedder,
        "t_emb": model.t_embedder,
        "y_emb": model.y_embedder,
        "final_layer": model.final_layer,
    }
    named |= {"block0_attn_out": model.blocks[0].attn, "block0_mlp_out": model.blocks[0].mlp}
    for key, module in named.items():
        module.register_forward_hook(lambda _, __, out, key=key: heard.__setitem__(key, out))
    _, features = model.forward_features(
        numbers["x"], 1 - numbers["t"], numbers["y"], blocks=range(1, model.depth + 1)
    )
    heard |= {f"block{number - 1}": h for number, h in features.items()}
    heard["final_layer"] = -heard["final_layer"]
    assert len(heard) == sum(key.startswith("act_") and "f64" not in key for key in numbers)
    for key, value in heard.items():
        torch.testing.assert_close(value, numbers[f"act_{key}"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", REPA)
def test_the_official_projectors_read_the_features(name):
    numbers, state, how = case(IO, name), weights(name, torch.float64), settings(IO)[name]["config"]
    model, block = loaded(name, torch.float64), how["encoder_depth"]
    x, t = numbers["x"].double(), 1 - numbers["t"].double()
    _, features = model.forward_features(x, t, numbers["y"], blocks=range(1, model.depth + 1))
    for number, h in features.items():
        torch.testing.assert_close(h, numbers[f"act_f64_block{number - 1}"], rtol=0, atol=1e-6)
    for e in range(len(how["z_dims"])):
        h = features[block]
        for layer in (0, 2, 4):
            h = F.linear(
                F.silu(h) if layer else h,
                state[f"projectors.{e}.{layer}.weight"],
                state[f"projectors.{e}.{layer}.bias"],
            )
        torch.testing.assert_close(h, numbers[f"zs{e}_f64"], rtol=0, atol=1e-6)
        torch.testing.assert_close(h.float(), numbers[f"zs{e}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SIT + REPA)
def test_the_sizes_are_read_off_the_weights(name):
    config, how = loaded(name).config, settings(IO)[name]["config"]
    assert {key: config[key] for key in how if key in config} == {
        key: value for key, value in how.items() if key in config
    }


def test_projectors_are_dropped_and_listed():
    assert loaded("repa_plain").dropped_keys == tuple(
        name for name in weights("repa_plain") if name.startswith("projectors.")
    )
    assert len(loaded("repa_plain").dropped_keys) == 12
    assert loaded("sit_nosigma").dropped_keys == ()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", SIT + REPA)
def test_export_is_the_inverse_of_load(name, dtype, atol):
    format = name.split("_")[0]
    state = export_official(loaded(name, dtype), format=format)
    assert_same_state(state, without_projectors(weights(name, dtype)), atol)
    again = load_official(state, format=format, num_heads=4)
    assert_same_state(dict(again.state_dict()), dict(loaded(name, dtype).state_dict()), atol)


@pytest.mark.parametrize("name", SIT + REPA)
def test_an_export_to_repa_runs_time_the_other_way(name):
    model = loaded(name, torch.float64)
    state = export_official(model, format="repa")
    theirs = SiT(**{**model.config, "learn_sigma": False}).double()
    theirs.load_state_dict(
        state
    )  # REPA's network has SiT's layers, and its own meaning of time and sign
    x, t, y = (
        torch.randn(4, 4, 8, 8, dtype=torch.float64),
        torch.rand(4, dtype=torch.float64),
        torch.randint(0, 11, (4,)),
    )
    torch.testing.assert_close(-theirs(x, 1 - t, y), model(x, t, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        load_official(state, format="repa", num_heads=4)(x, t, y),
        model(x, t, y),
        rtol=0,
        atol=1e-12,
    )


def test_a_repa_model_exports_to_sit_without_a_sigma_half():
    model = loaded("repa_plain")
    assert not model.learn_sigma
    assert_same_state(export_official(model, format="sit"), dict(model.state_dict()))


def test_an_export_shares_no_memory_with_the_model():
    model = loaded("sit_nosigma")
    before = model.pos_embed.clone()
    for format in ("sit", "repa"):
        for value in export_official(model, format=format).values():
            value.zero_()
    torch.testing.assert_close(model.pos_embed, before, rtol=0, atol=0)
    assert model.final_layer.linear.weight.any()


def test_a_loaded_model_shares_no_memory_with_the_state_dict_and_draws_nothing():
    state = weights("repa_plain")
    before, generator = (
        {name: value.clone() for name, value in state.items()},
        torch.get_rng_state(),
    )
    model = load_official(state, format="repa", num_heads=4)
    assert torch.equal(torch.get_rng_state(), generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same_state(state, before)


def test_a_loaded_model_can_be_trained():
    model = load_official(weights("sit_nosigma"), format="sit", num_heads=4)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]
    model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2])).square().mean().backward()
    assert model.blocks[0].attn.qkv.weight.grad is not None


def test_a_training_file_gives_its_average():
    good, bad = (
        weights("sit_nosigma"),
        {name: value * 0 for name, value in weights("sit_nosigma").items()},
    )
    for content in (
        {"model": bad, "ema": good, "opt": {}},
        {"model": good, "opt": {}},
        {"state_dict": good},
    ):
        assert_same_state(
            dict(load_official(content, format="sit", num_heads=4).state_dict()), good
        )


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_the_prefixes_of_wrappers_are_removed(prefix):
    state = {prefix + name: value for name, value in weights("repa_qknorm").items()}
    assert_same_state(
        dict(load_official(state, format="repa").state_dict()),
        dict(loaded("repa_qknorm").state_dict()),
    )
    inner = {
        name.replace("blocks.0.", "blocks.0._orig_mod."): value
        for name, value in weights("sit_nosigma").items()
    }
    assert_same_state(
        dict(load_official(inner, format="sit", num_heads=4).state_dict()), weights("sit_nosigma")
    )


@pytest.mark.parametrize("encoder_depth", [None, 2])
def test_the_decoder_blocks_of_old_files_follow_the_encoder(encoder_depth):
    old = {
        name.replace("blocks.2.", "decoder_blocks.0."): value
        for name, value in weights("repa_plain").items()
    }
    config = {} if encoder_depth is None else {"encoder_depth": encoder_depth}
    model = load_official(old, format="repa", num_heads=4, **config)
    assert_same_state(dict(model.state_dict()), dict(loaded("repa_plain").state_dict()))
    with pytest.raises(ConfigError, match="encoder_depth=1"):
        load_official(old, format="repa", num_heads=4, encoder_depth=1)
    with pytest.raises(ConfigError, match=r"missing: blocks\.2\."):
        load_official(old, format="repa", num_heads=4, encoder_depth=3)


def test_half_precision_weights_become_float32():
    model = load_official(weights("sit_nosigma", torch.float16), format="sit", num_heads=4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(
        model.pos_embed, weights("sit_nosigma")["pos_embed"], rtol=1e-3, atol=1e-3
    )


def test_the_number_of_heads_is_known_for_official_sizes_and_with_qk_norm():
    assert load_official(weights("repa_qknorm"), format="repa").num_heads == 4
    with pytest.raises(ConfigError, match="num_heads"):
        load_official(weights("sit_nosigma"), format="sit")
    with torch.device("meta"):
        shapes = {
            name: value.shape
            for name, value in SiT(4, 2, 1, hidden_size=384, depth=12, num_heads=6, num_classes=1)
            .state_dict()
            .items()
        }
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    assert load_official(state, format="sit").num_heads == 6
    assert load_official(state, format="sit", num_heads=12).num_heads == 12


def test_a_table_without_a_null_row_is_one_without_label_dropout():
    model = loaded("sit_nosigma", class_dropout_prob=0.0)
    assert model.num_classes == 11
    assert not model.y_embedder.has_null


@pytest.mark.parametrize(
    "config",
    [
        {"learn_sigma": True},
        {"depth": 2},
        {"patch_size": 4},
        {"input_size": 16},
        {"num_classes": 11},
        {"hidden_size": 96},
        {"qk_norm": True},
        {"mlp_ratio": 2.0},
        {"in_channels": 8},
    ],
)
def test_a_setting_that_contradicts_the_weights_is_refused(config):
    with pytest.raises(ConfigError, match=f"{next(iter(config))}=.*contradicts the weights"):
        loaded("sit_nosigma", **config)


@pytest.mark.parametrize(
    "config", [{"widht": 3}, {"num_heads": 5}, {"num_heads": "four"}, {"class_dropout_prob": "no"}]
)
def test_a_setting_that_cannot_be_is_refused(config):
    with pytest.raises(ConfigError, match=next(iter(config))):
        loaded("sit_nosigma", **config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("pos_embed"), "pos_embed"),
        (lambda s: s.pop("blocks.1.attn.proj.bias"), r"missing: blocks\.1\.attn\.proj\.bias"),
        (lambda s: s.update(surplus=torch.zeros(1)), "unknown: surplus"),
        (lambda s: s.update({"blocks.7.attn.proj.bias": torch.zeros(48)}), "blocks.7"),
        (
            lambda s: s.update({"blocks.0.attn.qkv.bias": torch.zeros(3)}),
            r"another shape: blocks\.0\.attn\.qkv\.bias",
        ),
        (lambda s: s.update(pos_embed=torch.zeros(1, 15, 48)), "another shape: pos_embed"),
        (lambda s: s.update(pos_embed=torch.zeros(16, 48)), "pos_embed"),
        (
            lambda s: s["blocks.0.mlp.fc1.weight"].fill_(float("nan")),
            r"not finite: blocks\.0\.mlp\.fc1\.weight",
        ),
        (lambda s: s.update(step=3), "not tensors: step"),
        (lambda s: s.clear(), "state dict"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_with_its_names(change, message):
    state = weights("sit_nosigma")
    change(state)
    with pytest.raises(ConfigError, match=message):
        load_official(state, format="sit", num_heads=4)


@pytest.mark.parametrize(
    "name", ["pos_embed", "blocks.0.mlp.fc1.weight", "y_embedder.embedding_table.weight"]
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_integers_are_refused_with_their_name_and_dtype(tmp_path, name, dtype):
    state = weights("sit_nosigma")
    state[name] = state[name].to(dtype)
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    for given in (state, tmp_path / "whole.safetensors"):
        with pytest.raises(ConfigError, match=rf"no weights: {name} {dtype}\. Give the weights"):
            load_official(given, format="sit", num_heads=4)


@pytest.mark.parametrize("content", [None, 3, [1, 2]])
def test_what_is_no_state_dict_is_refused(content):
    with pytest.raises(ConfigError, match="state dict"):
        load_official(content, format="sit")


@pytest.mark.parametrize("format", ["SIT", "dit", None])
def test_an_unknown_format_is_refused(format):
    with pytest.raises(ConfigError, match="'sit', 'repa'"):
        load_official(weights("sit_nosigma"), format=format)
    with pytest.raises(ConfigError, match="'sit', 'repa'"):
        export_official(loaded("sit_nosigma"), format=format)


def test_only_a_sit_can_be_exported():
    for model in (MLP(), nn.Sequential(loaded("sit_nosigma"))):
        with pytest.raises(ConfigError, match="only a SiT"):
            export_official(model, format="sit")


# files


def test_every_kind_of_file_is_read(tmp_path):
    state = weights("repa_qknorm")
    training = {
        "model": state,
        "ema": state,
        "opt": {"lr": 1e-4},
        "args": argparse.Namespace(model="SiT-XL/2", seed=0),
        "steps": 3,
    }
    torch.save(state, tmp_path / "bare.pt")
    torch.save(training, tmp_path / "training.pth")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for file in (HERE / "models/repa_qknorm.safetensors", *sorted(tmp_path.iterdir())):
        for path in (file, str(file)):
            assert_same_state(
                dict(load_official(path, format="repa").state_dict()),
                dict(loaded("repa_qknorm").state_dict()),
            )


@pytest.mark.parametrize("name", ["sit_nosigma", "repa_plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_the_weights_of_a_file_become_float32(tmp_path, name, dtype):
    safetensors.torch.save_file(weights(name, dtype), tmp_path / "saved.safetensors")
    format = name.partition("_")[0]
    model = load_official(tmp_path / "saved.safetensors", format=format, num_heads=4)
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}
    if dtype == torch.float64:
        assert_same_state(dict(model.state_dict()), dict(loaded(name).state_dict()))


class Payload:
    """Would create a file when unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_not_loaded(tmp_path, zipped):
    torch.save(
        {"ema": Payload(str(tmp_path / "ran"))},
        tmp_path / "evil.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UntrustedFileError, match="mkdir"):
        load_official(tmp_path / "evil.pt", format="sit")
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_or_a_bare_pickle_is_not_loaded(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x04}q\x00.")
    for name in ("model.pt", "pickle.pt"):
        with pytest.raises(UntrustedFileError, match="safetensors"):
            load_official(tmp_path / name, format="sit")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "old.pt"])
def test_a_damaged_file_is_named_as_such(tmp_path, suffix):
    state, file = {"pos_embed": torch.randn(4096)}, tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=suffix == "pt")
    whole = file.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:-9],
        whole[:7],
        b"",
        b"<!DOCTYPE html>",
        b"hello world, this is no checkpoint",
    ):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointCorruptError, match=r"weights\."):
            load_official(file, format="sit")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "nothing.pt", tmp_path / "nothing.safetensors"):
        with pytest.raises(CheckpointError, match="nothing"):
            load_official(path, format="sit")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.pt"):
        load_official(tmp_path / "folder.pt", format="sit")


@pytest.mark.parametrize("name", ["weights.ckpt", "weights", "weights.npz"])
def test_another_suffix_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="safetensors"):
        load_official(tmp_path / name, format="sit")
