"""The one place where images become latents and latents become images.

    z = (mean + std * noise - shift) * scale,        image = decode(z / scale + shift)

`Scaling` is that pair of maps, and nothing else in the library knows the numbers. Convention: images are uint8 (B, 3, H, W) at
the border of the library and floats in [-1, 1] inside; moments are (B, 2, C, h, w), mean then standard deviation, unscaled.
Reference: Rombach et al. 2022 (arXiv:2112.10752), whose 0.18215 makes the latents' standard deviation about 1.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite.checks import check_number
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.lazy import optional

__all__ = ["VAES", "Codec", "Scaling", "open_codec", "tiny_vae"]

VAES = {"sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema", "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse"}
_MODULE = "diffusers.models.autoencoders.autoencoder_kl"


@dataclass(frozen=True)
class Scaling:
    """z = (latent - shift) * scale and its inverse; `scale` is not 0."""

    scale: float = 0.18215
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_number("shift", self.shift, -math.inf, math.inf)
        if not check_number("scale", self.scale, -math.inf, math.inf):
            raise ConfigError("scale is 0, which leaves nothing of the latents; Stable Diffusion's is 0.18215.")

    def scaled(self, latent: Tensor) -> Tensor:
        """The latent (B, C, h, w) as the model sees it."""
        return (latent - self.shift) * self.scale

    def unscaled(self, z: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return z / self.scale + self.shift

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """A scaled latent (B, C, h, w) of moments (B, 2, C, h, w): mean + std * noise, or the mean without noise."""
        mean, std = moments.unbind(1)
        return self.scaled(mean if noise is None else torch.addcmul(mean, std, noise))


class Codec:
    """A frozen autoencoder with its scaling; `source` is the name or folder that it came from."""

    def __init__(self, vae: nn.Module, source: str, scaling: Scaling | None = None) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        self.source = source
        config = self.vae.config
        self.scaling = scaling or Scaling(float(config.scaling_factor), float(config.get("shift_factor") or 0.0))

    @property
    def channels(self) -> int:
        """The channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def factor(self) -> int:
        """How many pixels a side one latent position stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every weight and of the scaling: latents of one codec are decoded by no other."""
        digest = hashlib.sha256(json.dumps([self.scaling.scale, self.scaling.shift]).encode())
        for name, value in sorted(self.vae.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Codec":
        """The same codec, its network moved to `device`."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Unscaled moments (B, 2, C, h, w) float32 of uint8 images (B, 3, H, W); ConfigError unless H and W fit the network."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ConfigError(f"images is {tuple(images.shape)} of {images.dtype}; a codec takes uint8 (B, 3, H, W).")
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ConfigError(f"images are {tuple(images.shape[2:])} pixels; both sides must be multiples of {self.factor}.")
        law = self.vae.encode(images.to(self.vae.device, self.vae.dtype) / 127.5 - 1).latent_dist
        return torch.stack([law.mean, law.std], 1).float()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The scaled mean latent (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.scaling.scaled(self.vae.encode(x.to(self.vae.dtype)).latent_dist.mean.float())

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32, about [-1, 1], of scaled latents (B, C, h, w)."""
        return self.vae.decode(self.scaling.unscaled(z).to(self.vae.device, self.vae.dtype)).sample.float()

    def pixels(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 of scaled latents, on the host; rounded to the nearest level."""
        return self.decode(z).add_(1).mul_(127.5).round_().clamp_(0, 255).to("cpu", torch.uint8)


def tiny_vae(seed: int = 0, latent_channels: int = 4) -> nn.Module:
    """A random AutoencoderKL of 65,000 parameters with Stable Diffusion's layout (8 pixels per latent position, 4 channels).

    Its images mean nothing: it is for tests and for trying out the path. Equal seeds give equal networks, and the global
    generator is left alone. Raises ConfigError without diffusers.
    """
    kind = optional(_MODULE, "imagenet").AutoencoderKL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            mid_block_add_attention=False,
        )


def open_codec(source: str = "sd-vae-ft-ema", *, device: torch.device | str = "cpu", fingerprint: str | None = None) -> Codec:
    """The codec called "sd-vae-ft-ema" or "sd-vae-ft-mse" (fetched once, then cached), in a local folder, or "tiny" (random).

    Raises ConfigError without diffusers, and DataError where the weights cannot be had or differ from `fingerprint`.
    """
    codec = Codec(tiny_vae() if source == "tiny" else _pretrained(source), source).to(device)
    if fingerprint is not None and codec.fingerprint != fingerprint:
        raise DataError(
            f"the VAE {source!r} is not the one that made the latents: its fingerprint is {codec.fingerprint[:12]}, theirs "
            f"{fingerprint[:12]}. Give the right one with --vae, or prepare the latents again."
        )
    return codec


def _pretrained(source: str) -> nn.Module:
    kind = optional(_MODULE, "imagenet").AutoencoderKL
    local = Path(source).is_dir()
    if not local and source not in VAES:
        raise DataError(f"the VAE is {source!r}; it must be {', '.join(map(repr, VAES))}, 'tiny', or a folder in diffusers' layout.")
    try:
        return kind.from_pretrained(source if local else VAES[source], local_files_only=local, use_safetensors=True)
    except Exception as error:  # no file, no network, another kind of model: the hub has a type for each
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the VAE {source!r} cannot be had ({reason}). Go online once, or give a local folder with --vae FOLDER."
        ) from error
