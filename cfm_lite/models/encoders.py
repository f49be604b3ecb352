"""REPA's teachers: a frozen vision transformer that turns images into one feature vector per patch.

    tokens = ViT(resize(normalise(images)))

Images lie in [0, 1]. They are normalised before the bicubic resize, as REPA does. The encoder sees
images of (grid * patch size) pixels a side. So it has grid x grid tokens, as many as the SiT that
is aligned with it. Reference: Yu et al. 2024 (REPA, arXiv:2410.06940),
appendix on the encoders.
"""

import difflib
import re
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cfm_lite._internal import hub
from cfm_lite._internal.checks import (
    check_count,
    check_floating,
    in_one_line,
    integers,
    listed,
    on_host,
    promote,
)
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import made_in_float32
from cfm_lite._internal.places import AnyPath
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.models.official import read_weights

__all__ = ["Encoder", "teacher"]

_DINO = "vit_base_patch14_dinov2.lvd142m"


class Encoder(nn.Module):
    """Patch tokens (B, T, dim) of images (B, 3, H, W) in [0, 1], from a frozen network.

    Class and register tokens are left out. `dim` is the feature width and `grid` the number of
    tokens a side, so T = grid * grid. It never has a gradient or a training mode.

    Args:
        vit: a vision transformer of timm.
        mean, std: three numbers each, those that it was trained with.

    Raises:
        ConfigError: a network without patch tokens.

    >>> encoder = teacher("vit_tiny_patch16_224", grid=2, pretrained=False)
    >>> encoder(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 4, 192])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if not hasattr(vit, "num_prefix_tokens") or not hasattr(vit, "patch_embed"):
            raise ConfigError(
                f"{type(vit).__name__} is not a vision transformer: an encoder needs patch tokens. "
                "Choose a ViT."
            )
        self.vit: Any = vit.eval().requires_grad_(False)
        self.dim: int = self.vit.num_features
        self.size: tuple[int, int] = self.vit.patch_embed.img_size
        self.grid: int = self.vit.patch_embed.grid_size[0]
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).reshape(3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).reshape(3, 1, 1), persistent=False
        )

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens features"]:
        """Tokens of images in [0, 1], of any height and width; ConfigError for anything else."""
        check_floating(images=images)
        if images.dim() != 4 or images.shape[1] != 3:
            raise ConfigError(
                f"images has shape {tuple(images.shape)}; an encoder takes (B, 3, H, W), colours "
                "in [0, 1]."
            )
        if on_host(images) and images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ConfigError(
                f"images span [{images.min():.4g}, {images.max():.4g}]; an encoder takes [0, 1]. "
                "Divide bytes by 255."
            )
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        x = F.interpolate(x, size=self.size, mode="bicubic")
        return self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]

    def train(self, mode: bool = True) -> "Encoder":
        """Stays in evaluation mode, whatever the objective that holds it does."""
        return super().train(False)


@made_in_float32()
def teacher(
    name: str = _DINO,
    *,
    grid: int = 16,
    pretrained: bool = True,
    checkpoint: AnyPath | None = None,
) -> Encoder:
    """timm's vision transformer `name`, frozen, with `grid` tokens a side.

    A SiT has input_size / patch_size tokens a side. The weights are timm's (fetched once, then
    cached), those of the local file `checkpoint`, or random with `pretrained=False`. Position
    tables are resampled to the grid.

    Raises:
        ConfigError: an unknown name, or timm is not installed.
        CheckpointError: the weights cannot be had, or do not fit.

    >>> teacher("vit_tiny_patch16_224", grid=2, pretrained=False).dim
    192
    """
    timm = optional("timm", "imagenet")
    patch = re.search(r"patch(\d+)", name)
    if not patch or not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("*patch*"), n=3)
        raise ConfigError(
            f"the teacher is {name!r}; it must be a vision transformer of timm, such as "
            f"{', '.join(near) or _DINO!r}."
        )
    size = check_count("grid", grid) * int(patch[1])
    # the classifier is kept, although it is not used: without it timm would accept a file in which
    # weights are missing
    given = checkpoint
    try:
        if pretrained and checkpoint is None:
            checkpoint = _fetched_before(timm, name)
        content = {} if checkpoint is None else _content(checkpoint)
        overlay = {"state_dict": content} if content else {}
        vit = timm.create_model(
            name, pretrained or bool(overlay), img_size=size, pretrained_cfg_overlay=overlay
        )
    except (OSError, RuntimeError, ValueError) as error:
        why, how = in_one_line(error), "with --teacher FILE or teacher(..., checkpoint=PATH)"
        raise CheckpointError(
            f"no weights for the teacher {name!r} ({why}). Give a file {how}, or go online once."
            if given is None
            else f"{given} does not hold the weights of the teacher {name!r} ({why}). Give another "
            f"file {how}."
        ) from error
    if whole := integers(vit.state_dict(), content):  # timm takes them for weights
        raise CheckpointError(
            f"{checkpoint} holds integers, which are no weights: {listed(whole)}. Give a file of "
            f"the teacher {name!r} in floats."
        )
    return Encoder(vit, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])


def _fetched_before(timm: Any, name: str) -> str | None:
    """The file of timm's weights on this machine if the hub does not give them now, else None.

    Raises OSError, with the hub's reason, if there is none.
    """
    place = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not place or not (refused := hub.refusal(place, "imagenet")):
        return None
    file = hub.kept(place, "model.safetensors", "imagenet")
    if file is None:
        raise OSError(refused)
    return file


def _content(checkpoint: AnyPath) -> dict[str, Any]:
    content = read_weights(checkpoint)
    if not content:  # timm would take this for "no file given" and fetch its own
        raise CheckpointError(f"{checkpoint} holds no weights.")
    return {
        name: promote(x) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in content.items()
    }
