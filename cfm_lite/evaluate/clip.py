"""CLIP score: how well images fit their captions, in the features of a frozen CLIP.

    score = mean of 100 max(cos(image features, text features), 0)

Images lie in [0, 1] and are resized, cropped and normalised as CLIP's own preprocessing does.
Reference: Hessel et al. 2021 (CLIPScore, arXiv:2104.08718), without its factor of 2.5.
"""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cfm_lite._internal.checks import check_floating, full_precision
from cfm_lite._internal.networks import made_in_float32
from cfm_lite.errors import ConfigError
from cfm_lite.models.text import CLIP, check_texts, open_clip

__all__ = ["ClipScore"]


class ClipScore(nn.Module):
    """The score in [0, 100] of each image (B, 3, H, W) in [0, 1] under its caption.

    Args:
        place: a name on the Hugging Face hub, or a folder with config, weights, tokenizer and the
            image processor's settings.

    Raises:
        ConfigError: transformers is not installed, or not one caption for each image.
        CheckpointError: there is no such CLIP.
    """

    mean: Tensor
    std: Tensor

    @made_in_float32()
    def __init__(self, place: str | os.PathLike[str] = CLIP) -> None:
        super().__init__()
        self.place = os.fspath(place)
        self.tokenizer, self.clip = open_clip(self.place, "CLIPModel")
        # CLIP's own mean and deviation of each channel
        self.register_buffer("mean", torch.tensor([0.48145466, 0.4578275, 0.40821073]))
        self.register_buffer("std", torch.tensor([0.26862954, 0.26130258, 0.27577711]))

    @torch.no_grad()
    @full_precision()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], captions: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """The score of each image.

        Raises ConfigError for images of another shape, and unless there is a caption for each.
        """
        check_floating(images=images)
        told = check_texts(captions)
        if images.dim() != 4 or images.shape[1] != 3 or len(images) != len(told):
            raise ConfigError(
                f"images has shape {tuple(images.shape)} and there are {len(told)} captions; give "
                "images (B, 3, H, W) in [0, 1] and a caption for each."
            )
        size = self.clip.config.vision_config.image_size
        short = min(images.shape[-2:])
        scaled = [max(size, round(side * size / short)) for side in images.shape[-2:]]
        x = F.interpolate(images.float(), scaled, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - size) // 2 for side in scaled)
        x = x[:, :, top : top + size, left : left + size]
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        tokens = self.tokenizer(told, truncation=True, padding=True, return_tensors="pt")
        seen = self.clip(pixel_values=x, **tokens.to(x.device))
        return 100 * F.cosine_similarity(seen.image_embeds, seen.text_embeds).clamp(min=0)
