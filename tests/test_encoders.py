"""REPA's teachers: frozen, fed as REPA feeds them, one vector per patch."""

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfm_lite.errors import CheckpointError, ConfigError, UntrustedFileError
from cfm_lite.models import Encoder, teacher
from tests.networks import same_parameters, without_hub

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = "vit_tiny_patch16_224"


class Pixels(nn.Module):
    """Stands in for a vision transformer: one prefix token of zeros, then the mean colour of each 2
    x 2 patch.
    """

    num_prefix_tokens, num_features = 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = SimpleNamespace(img_size=(8, 8), grid_size=(4, 4))
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.9)

    def forward_features(self, x: Tensor) -> Tensor:
        tokens = F.avg_pool2d(self.dropout(x * self.scale), 2).flatten(2).transpose(1, 2)
        return F.pad(tokens, (0, 0, 1, 0))


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return teacher(TINY, grid=2, pretrained=False)


def test_images_are_normalised_then_resized_then_cut_into_tokens():
    images = torch.rand(2, 3, 20, 12)
    shaped = [torch.tensor(value).reshape(1, 3, 1, 1) for value in (MEAN, STD)]
    resized = F.interpolate((images - shaped[0]) / shaped[1], size=(8, 8), mode="bicubic")
    expected = F.avg_pool2d(resized, 2).flatten(2).transpose(1, 2)  # without the prefix
    encoder = Encoder(Pixels(), MEAN, STD)
    torch.testing.assert_close(encoder(images), expected)
    assert (encoder.dim, encoder.grid) == (3, 4)


def test_an_encoder_stays_frozen_in_evaluation_mode():
    encoder = Encoder(Pixels(), MEAN, STD)
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not encoder(images).requires_grad
    torch.testing.assert_close(encoder(images), encoder(images), rtol=0, atol=0)


def test_half_precision_images_are_computed_in_the_precision_of_the_encoder():
    images = torch.rand(2, 3, 8, 8).half()
    encoder = Encoder(Pixels(), MEAN, STD)
    torch.testing.assert_close(encoder(images), encoder(images.float()), rtol=0, atol=0)


@pytest.mark.parametrize("size", [20, 32, 64])
def test_a_timm_transformer_gives_grid_by_grid_tokens_from_any_image(tiny, size):
    assert tiny(torch.rand(1, 3, size, size)).shape == (1, tiny.grid**2, tiny.dim) == (1, 4, 192)


def test_a_timm_transformer_is_its_own_forward_pass(tiny):
    images = torch.rand(2, 3, 32, 32)
    tokens = tiny.vit.forward_features(
        (images - tiny.mean) / tiny.std
    )  # already 2 patches of 16 a side
    torch.testing.assert_close(tiny(images), tokens[:, 1:])


def test_patches_of_fourteen_and_register_tokens_are_understood():
    encoder = teacher("vit_small_patch14_reg4_dinov2.lvd142m", grid=3, pretrained=False)
    assert encoder.size == (42, 42)
    assert encoder.vit.num_prefix_tokens == 5
    assert encoder(torch.rand(1, 3, 48, 48)).shape == (1, 9, 384)
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor(STD))


def test_weights_come_from_a_local_file_and_follow_the_grid(tiny, tmp_path):
    file = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(tiny.vit.state_dict(), file)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(TINY, grid=2, checkpoint=file)(images), tiny(images))
    larger = teacher(TINY, grid=3, checkpoint=file)  # position table resampled
    torch.testing.assert_close(
        larger.vit.blocks[0].mlp.fc1.weight, tiny.vit.blocks[0].mlp.fc1.weight
    )
    assert larger(images).shape == (2, 9, 192)


def test_a_file_without_all_weights_is_refused(tiny, tmp_path):
    state = {name: value for name, value in tiny.vit.state_dict().items() if "blocks.3" not in name}
    told = r"vit\.safetensors does not hold .*blocks\.3.*\. Give another file .*--teacher FILE"
    for content, message in ((state, told), ({}, "holds no weights")):
        safetensors.torch.save_file(content, tmp_path / "vit.safetensors")
        with pytest.raises(CheckpointError, match=message):
            teacher(TINY, grid=2, checkpoint=tmp_path / "vit.safetensors")


def test_a_file_of_integers_is_refused(tiny, tmp_path):
    file = tmp_path / "vit.safetensors"
    state = {name: value.to(torch.int8) for name, value in tiny.vit.state_dict().items()}
    safetensors.torch.save_file(state, file)
    with pytest.raises(CheckpointError, match=r"vit\.safetensors holds integers.*torch\.int8"):
        teacher(TINY, grid=2, checkpoint=file)
    double = {name: value.double() for name, value in tiny.vit.state_dict().items()}
    safetensors.torch.save_file(double, file)
    assert same_parameters(teacher(TINY, grid=2, checkpoint=file), tiny)


def test_a_file_that_could_run_code_is_refused(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "vit.pth")
    with pytest.raises(UntrustedFileError):
        teacher(TINY, grid=2, checkpoint=tmp_path / "vit.pth")


@pytest.mark.parametrize("name", ["vit_tinny_patch16_224", "resnet18", "no such model"])
def test_a_name_that_is_no_transformer_of_timm_is_refused(name):
    with pytest.raises(ConfigError, match=r"vit_\w+"):
        teacher(name, pretrained=False)


def test_a_tag_without_weights_is_refused():
    with pytest.raises(CheckpointError, match="no_such_tag"):
        teacher(f"{TINY}.no_such_tag", grid=2)


@pytest.mark.parametrize("grid", [0, -1, 2.0, None])
def test_a_grid_that_cannot_be_is_refused(grid):
    with pytest.raises(ConfigError, match="grid"):
        teacher(TINY, grid=grid, pretrained=False)


def test_a_network_without_patches_is_refused():
    with pytest.raises(ConfigError, match="Linear"):
        Encoder(nn.Linear(2, 2), MEAN, STD)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 1, 8, 8), r"\(B, 3, H, W\)"),
        (torch.rand(3, 8, 8), r"\(B, 3, H, W\)"),
        (torch.rand(2, 3, 8, 8) * 255, "255"),
        (torch.rand(2, 3, 8, 8) - 1, r"\[0, 1\]"),
        (torch.full((2, 3, 8, 8), float("nan")), r"\[0, 1\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floating"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ConfigError, match=message):
        Encoder(Pixels(), MEAN, STD)(images)


def test_weights_that_the_hub_does_not_give_are_asked_for_once_and_refused_in_one_line(monkeypatch):
    asked = without_hub(monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"no weights .*no route to the hub.*checkpoint="
    ) as e:
        teacher(TINY, grid=2)
    assert "\n" not in str(e.value)
    assert len(asked) == 1


def test_weights_that_were_fetched_before_need_no_hub(tiny, monkeypatch, tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tiny.vit.state_dict(), file)
    without_hub(monkeypatch)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda place, name: str(tmp_path / name) if place.startswith(f"timm/{TINY}.") else None,
    )
    assert same_parameters(teacher(TINY, grid=2), tiny)
