"""The one scale between images, moments and latents."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfm_lite.data.latents.codec import VAES, Codec, Scaling, open_codec, tiny_vae
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.models import SiT
from cfm_lite.negatives import perturbed
from cfm_lite.objective import vecor
from cfm_lite.perturbations import crop_resize
from tests.networks import without_hub


@pytest.fixture(scope="module")
def codec():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_codec("tiny")


def test_scaling_and_its_inverse():
    z = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    scaling = Scaling(0.3, 0.7)
    torch.testing.assert_close(scaling.unscaled(scaling.scaled(z)), z, rtol=0, atol=1e-14)
    assert Scaling().scale == 0.18215


def test_a_draw_is_mean_plus_std_times_noise_then_scaled():
    moments = torch.rand(5, 2, 4, 3, 3)
    noise = torch.randn(5, 4, 3, 3)
    expected = (moments[:, 0] + moments[:, 1] * noise - 0.1) * 2
    torch.testing.assert_close(Scaling(2.0, 0.1).draw(moments, noise), expected)
    torch.testing.assert_close(Scaling(2.0, 0.1).draw(moments), (moments[:, 0] - 0.1) * 2)


@pytest.mark.parametrize(
    "wrong", [{"scale": 0.0}, {"scale": float("nan")}, {"shift": float("inf")}, {"scale": "x"}]
)
def test_a_scale_that_is_no_scale_is_refused(wrong):
    with pytest.raises(ConfigError):
        Scaling(**wrong)


def test_moments_are_those_of_the_network(codec):
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    moments = codec.moments(images)
    assert moments.shape == (2, 2, 4, 4, 4)
    law = codec.vae.encode(images / 127.5 - 1).latent_dist
    torch.testing.assert_close(moments[:, 0], law.mean)
    torch.testing.assert_close(moments[:, 1], law.std)


def test_encode_and_decode_use_the_scale_once_each(codec):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = codec.encode(x)
    latent = codec.vae.encode(x).latent_dist.mean
    torch.testing.assert_close(z, latent * 0.18215)
    torch.testing.assert_close(
        codec.decode(z), codec.vae.decode(latent).sample, rtol=1e-4, atol=1e-5
    )


def test_pixels_are_the_nearest_levels(codec):
    z = torch.randn(2, 4, 4, 4)
    expected = ((codec.decode(z) + 1) * 127.5).round().clamp(0, 255)
    assert codec.pixels(z).dtype == torch.uint8
    assert torch.equal(codec.pixels(z).float(), expected)


def test_equal_seeds_give_equal_networks_and_leave_the_global_generator_alone(codec):
    before = torch.random.get_rng_state()
    again, other = Codec(tiny_vae(0), "tiny"), Codec(tiny_vae(1), "tiny")
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.fingerprint == codec.fingerprint != other.fingerprint


def test_the_fingerprint_counts_the_scale(codec):
    assert Codec(codec.vae, "tiny", Scaling(0.5)).fingerprint != codec.fingerprint


def test_another_vae_than_the_latents_is_refused(codec):
    with pytest.raises(DataError, match="not the one that made the latents"):
        open_codec("tiny", fingerprint="0" * 64)
    assert open_codec("tiny", fingerprint=codec.fingerprint).fingerprint == codec.fingerprint


def test_a_local_folder_is_opened_and_an_unknown_name_is_refused(codec, tmp_path):
    codec.vae.save_pretrained(tmp_path / "vae")
    assert open_codec(str(tmp_path / "vae")).fingerprint == codec.fingerprint
    with pytest.raises(DataError, match="sd-vae-ft-ema"):
        open_codec("sd-vae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="--vae FOLDER"):
        open_codec(str(tmp_path / "empty"))
    assert set(VAES) == {"sd-vae-ft-ema", "sd-vae-ft-mse"}


NAMES = {  # what is given, what the hub is asked for, and the one spelling that latents remember
    "sd-vae-ft-ema": ("stabilityai/sd-vae-ft-ema", None, "sd-vae-ft-ema"),
    "sd-vae-ft-mse": ("stabilityai/sd-vae-ft-mse", None, "sd-vae-ft-mse"),
    "stabilityai/sd-vae-ft-mse": ("stabilityai/sd-vae-ft-mse", None, "sd-vae-ft-mse"),
    "stabilityai/sdxl-vae": ("stabilityai/sdxl-vae", None, "stabilityai/sdxl-vae"),
    "some-one/a_model-1.5/vae": ("some-one/a_model-1.5", "vae", "some-one/a_model-1.5/vae"),
    "some-one/a_model-1.5:vae": ("some-one/a_model-1.5", "vae", "some-one/a_model-1.5/vae"),
    "some-one/a_model-1.5/parts/vae": (
        "some-one/a_model-1.5",
        "parts/vae",
        "some-one/a_model-1.5/parts/vae",
    ),
}


HEAD = SimpleNamespace(commit_hash="0" * 40)  # of a file that the hub gives


@pytest.fixture
def hub(monkeypatch):
    """What the hub is asked for; it gives a random VAE of 16 channels with a shift, as newer ones
    have.
    """
    kind, asked = type(tiny_vae()), []

    def fetch(name, **how):
        asked.append((name, how.get("subfolder"), how["use_safetensors"]))
        vae = tiny_vae(latent_channels=16)
        vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
        return vae

    monkeypatch.setattr(kind, "from_pretrained", fetch)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: HEAD)
    return asked


@pytest.mark.parametrize(
    ("name", "config"),
    [("me/none", "me/none/resolve/main/"), ("me/none/vae", "me/none/resolve/main/vae/")],
)
def test_a_name_that_the_hub_does_not_give_is_asked_for_once_and_refused_in_one_line(
    name, config, monkeypatch
):
    asked = without_hub(monkeypatch)
    with pytest.raises(DataError, match=r"me/none.*no route to the hub.*--vae FOLDER") as error:
        open_codec(name)
    assert "\n" not in str(error.value)
    assert [url.endswith(f"{config}config.json") for url in asked] == [True]


def test_a_page_that_answers_in_place_of_the_hub_is_no_hub(monkeypatch):
    without_hub(monkeypatch)
    page = SimpleNamespace(commit_hash=None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: page)
    with pytest.raises(DataError, match=r"me/none.*is not the hub.*--vae FOLDER"):
        open_codec("me/none")


@pytest.mark.parametrize("given", NAMES)
def test_any_name_of_diffusers_is_asked_for_and_its_config_decides_channels_scale_and_shift(
    given, hub
):
    name, part, spelled = NAMES[given]
    codec = open_codec(given)
    assert hub == [(name, part, True)]
    assert codec.source == spelled
    assert (codec.channels, codec.factor, codec.scaling) == (16, 8, Scaling(0.3611, 0.1159))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(
        codec.encode(x), (codec.vae.encode(x).latent_dist.mean - 0.1159) * 0.3611
    )
    assert open_codec(codec.source).source == spelled


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("sd-vae-ft-emma", "'sd-vae-ft-ema'"),
        ("sd_vae_ft_mse", "'sd-vae-ft-mse'"),
        ("tinny", "'tiny'"),
        ("quite another", None),
        ("./a/b", None),
        ("/a/b", None),
        ("a/b/../c", None),
        ("", None),
        ("a/b/c:d", None),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest_and_nobody_is_asked(given, near, hub):
    with pytest.raises(DataError, match=r"OWNER/NAME .*there is no such folder\.") as error:
        open_codec(given)
    assert ("Did you mean" in str(error.value)) == (near is not None)
    assert near is None or near in str(error.value)
    assert hub == []


def test_a_local_folder_is_found_by_any_of_its_names_and_of_a_pipeline_the_vae_is_taken(
    codec, tmp_path, monkeypatch
):
    codec.vae.save_pretrained(tmp_path / "pipe" / "vae")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("pipe", "pipe/vae", "./pipe", "~/pipe/vae", str(tmp_path / "pipe")):
        found = open_codec(given)
        assert found.fingerprint == codec.fingerprint
        assert found.source == str(tmp_path / "pipe" / "vae")


def test_another_kind_of_model_and_weights_that_are_not_all_there_are_one_line(codec, tmp_path):
    codec.vae.save_pretrained(tmp_path / "vae")
    config, weights = (
        tmp_path / "vae" / "config.json",
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
    )
    plain, kept = config.read_text(), load_file(weights)
    save_file(
        {name: value for name, value in kept.items() if name != "decoder.conv_in.bias"}, weights
    )
    with pytest.raises(DataError, match=r"lacks 1 weights, such as decoder\.conv_in\.bias"):
        open_codec(str(tmp_path / "vae"))
    save_file({name: value.to(torch.int8) for name, value in kept.items()}, weights)
    with pytest.raises(DataError, match=r"holds integers, .*torch\.int8 and \d+ more\. Fetch"):
        open_codec(str(tmp_path / "vae"))
    save_file(kept, weights)
    for kind in ("AutoencoderTiny", "VQModel", "UNet2DModel"):
        config.write_text(plain.replace("AutoencoderKL", kind))
        with pytest.raises(DataError, match=f"is of the kind {kind}; only AutoencoderKL is read"):
            open_codec(str(tmp_path / "vae"))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32).byte(), torch.zeros(1, 3, 30, 32).byte()],
)
def test_images_that_do_not_fit_are_refused(codec, images):
    with pytest.raises(ConfigError):
        codec.moments(images)


def test_image_space_negatives_pass_through_the_codec(codec):
    model = SiT(4, 2, 4, 16, 1, 1, num_classes=3)
    objective = vecor(model, perturb=crop_resize, space="image", codec=codec)
    total, values = objective.at(0, 0)(torch.randn(4, 4, 4, 4), torch.tensor([0, 1, 2, 0]))
    assert torch.isfinite(total)
    assert values["repulsion"] > 0
    assert perturbed(crop_resize, space="image", codec=codec).codec is codec
