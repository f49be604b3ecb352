"""Images to latents and back.

    z = (mean + std * noise - shift) * scale,        image = decode(z / scale + shift)

Only `Scaling` knows these two maps and their numbers. Outside the codec images are uint8 (B, 3, H,
W), inside they are floats in [-1, 1]. Moments are (B, 2, C, h, w): mean, then standard deviation,
unscaled. Reference: Rombach et al. 2022 (arXiv:2112.10752); its scale 0.18215 makes the latents'
standard deviation about 1.
"""

import contextlib
import difflib
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal import hub
from cfm_lite._internal.checks import check_number, full_precision, promote
from cfm_lite._internal.files import fingerprint
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import made_in_float32, seeded
from cfm_lite.errors import ConfigError, DataError

__all__ = ["VAES", "Codec", "Scaling", "open_codec", "tiny_vae"]

# short names of VAEs with Stable Diffusion's layout, and theirs on the hub
VAES = {"sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema", "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_MODULE = "diffusers.models.autoencoders.autoencoder_kl"


@dataclass(frozen=True)
class Scaling:
    """z = (latent - shift) * scale and its inverse; `scale` is not 0."""

    scale: float = 0.18215
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_number("shift", self.shift, -math.inf, math.inf)
        if not check_number("scale", self.scale, -math.inf, math.inf):
            raise ConfigError(
                "scale is 0, which leaves nothing of the latents; Stable Diffusion's is 0.18215."
            )

    def scaled(self, latent: Tensor) -> Tensor:
        """The latent (B, C, h, w) as the model sees it."""
        return (latent - self.shift) * self.scale

    def unscaled(self, z: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return z / self.scale + self.shift

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """A scaled latent (B, C, h, w) of moments (B, 2, C, h, w): mean + std * noise. Without
        noise, the mean.
        """
        mean, std = moments.unbind(1)
        return self.scaled(mean if noise is None else torch.addcmul(mean, std, noise))


class Codec:
    """A frozen autoencoder with its scaling. `source` is the name or folder that it came from.

    It computes in the dtype of its weights (float32 by default), also under autocast. In bf16
    pixels would be off by up to four levels.
    """

    def __init__(self, vae: nn.Module, source: str, scaling: Scaling | None = None) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        self.source = source
        config = self.vae.config
        self.scaling = scaling or Scaling(
            float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        )

    @property
    def channels(self) -> int:
        """The channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def factor(self) -> int:
        """How many pixels a side one latent position covers."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights and the scaling. Latents are decoded only by the codec that made
        them.
        """
        weights = {name: value.float() for name, value in self.vae.state_dict().items()}
        scaling = json.dumps([self.scaling.scale, self.scaling.shift])
        return fingerprint(weights, scaling, shapes=False)

    def to(self, device: torch.device | str) -> "Codec":
        """The same codec, its network moved to `device`."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    @full_precision()
    def moments(self, images: Tensor) -> Tensor:
        """Unscaled moments (B, 2, C, h, w) float32 of uint8 images (B, 3, H, W).

        ConfigError unless H and W fit the network.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ConfigError(
                f"images is {tuple(images.shape)} of {images.dtype}; a codec takes uint8 (B, 3, H, "
                "W)."
            )
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ConfigError(
                f"images are {tuple(images.shape[2:])} pixels; both sides must be multiples of "
                f"{self.factor}."
            )
        posterior = self.vae.encode(
            images.to(self.vae.device, self.vae.dtype) / 127.5 - 1
        ).latent_dist
        return torch.stack([posterior.mean, posterior.std], 1).float()

    @torch.no_grad()
    @full_precision()
    def encode(self, x: Tensor) -> Tensor:
        """The scaled mean latent (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.scaling.scaled(self.vae.encode(x.to(self.vae.dtype)).latent_dist.mean.float())

    @torch.no_grad()
    @full_precision()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32, about [-1, 1], of scaled latents (B, C, h, w)."""
        return self.vae.decode(
            self.scaling.unscaled(promote(z)).to(self.vae.device, self.vae.dtype)
        ).sample.float()

    def pixels(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 of scaled latents, rounded to the nearest level, on the
        host.
        """
        return self.decode(z).add_(1).mul_(127.5).round_().clamp_(0, 255).to("cpu", torch.uint8)


@made_in_float32()
def tiny_vae(seed: int = 0, latent_channels: int = 4) -> nn.Module:
    """A random AutoencoderKL of 65,000 parameters in Stable Diffusion's layout, for tests and
    trials.

    A latent position covers 8 pixels and has 4 channels. The images mean nothing. Equal seeds give
    equal networks, and the global generator stays as it was. Raises ConfigError without diffusers.
    """
    kind = optional(_MODULE, "imagenet").AutoencoderKL
    with seeded(seed):
        return kind(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            mid_block_add_attention=False,
        )


def open_codec(
    source: str = "sd-vae-ft-ema",
    *,
    device: torch.device | str = "cpu",
    fingerprint: str | None = None,
) -> Codec:
    """The codec called `source`: a short name (VAES), "tiny" (random), OWNER/NAME of diffusers, or
    a folder.

    The VAE of a whole pipeline is OWNER/NAME/vae (or OWNER/NAME:vae); in a local folder it is
    found. Downloads are cached. Channels, scale and shift come from the config. Raises ConfigError
    without diffusers. Raises DataError for a wrong name, and for weights that cannot be loaded, are
    no AutoencoderKL of RGB images, or differ from `fingerprint`.
    """
    where = _resolved(source)
    codec = (
        Codec(tiny_vae(), "tiny")
        if where is None
        else Codec(_pretrained(source, *where), _spelled(*where))
    )
    codec = codec.to(device)
    if fingerprint is not None and codec.fingerprint != fingerprint:
        raise DataError(
            f"the VAE {source!r} is not the one that made the latents: its fingerprint is "
            f"{codec.fingerprint[:12]}, theirs "
            f"{fingerprint[:12]}. Give the right one with --vae, or prepare the latents again."
        )
    return codec


def _resolved(source: str) -> tuple[str, str | None] | None:
    """(folder or name on the hub, subfolder in it); None for the random one. DataError for a wrong
    name.
    """
    if source == "tiny":
        return None
    if (found := hub.folder_of(source)) is not None:
        folder = Path(found)
        inside = not (folder / "config.json").exists() and (folder / "vae" / "config.json").exists()
        return found, "vae" if inside else None
    if source in VAES:
        return VAES[source], None
    name, _, part = source.partition(":")
    owner, _, rest = name.partition("/")
    name, _, deeper = rest.partition("/")
    if all(
        _NAME.fullmatch(word)
        for word in (owner, name, *filter(None, f"{part}/{deeper}".split("/")))
    ) and not (part and deeper):
        return f"{owner}/{name}", part or deeper or None
    near = difflib.get_close_matches(source, [*VAES, "tiny"], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise DataError(
        f"the VAE is {source!r}; it must be {', '.join(map(repr, VAES))}, 'tiny', a name of "
        "diffusers as OWNER/NAME (with /vae for a "
        f"pipeline's), or a folder in diffusers' layout, and there is no such folder.{hint}"
    )


def _spelled(name: str, part: str | None) -> str:
    """One spelling for each VAE, so that two names of one VAE count as the same."""
    short = {long: short for short, long in VAES.items()}
    return f"{name}/{part}" if part else short.get(name, name)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the hub's remark on an argument of diffusers' own, which it ignores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
        yield


@_quietly()
@made_in_float32()
def _pretrained(source: str, name: str, part: str | None) -> nn.Module:
    kind = optional(_MODULE, "imagenet").AutoencoderKL
    local = Path(name).is_dir()
    inside = {} if part is None else {"subfolder": part}
    refused = "" if local else hub.refusal(name, "imagenet", part)
    how = {"low_cpu_mem_usage": False, "output_loading_info": True}
    how["local_files_only"] = local or bool(refused)
    failure: Exception | None = None
    loaded: Any = None
    try:
        loaded = kind.from_pretrained(name, use_safetensors=True, **how, **inside)
    except Exception as error:
        # a missing file, no network, wrong shapes: the hub raises another type for each
        failure = error
    found = _kind_of(kind, name, inside)
    if found != kind.__name__:
        raise DataError(
            f"the VAE {source!r} is of the kind {found}; only {kind.__name__} is read. Give "
            "another with --vae."
        )
    if failure is not None:
        reason = refused or " ".join(str(failure).split())[:200]
        near = difflib.get_close_matches(name, VAES.values(), n=1, cutoff=0.8)
        hint = (
            f" Did you mean {near[0]!r}?"
            if near and near[0] != name
            else ""
            if part
            else " A pipeline's VAE is NAME/vae."
        )
        raise DataError(
            f"the VAE {source!r} is not available ({reason}). Go online once, or give a local "
            f"folder with --vae FOLDER.{hint}"
        ) from failure
    vae, about = loaded if isinstance(loaded, tuple) else (loaded, {})
    file = "/".join(filter(None, (part, "diffusion_pytorch_model.safetensors")))
    if flaw := hub.flaw(vae, about, name, file, "imagenet"):
        raise DataError(f"the VAE {source!r} {flaw}. Fetch it again, or give another with --vae.")
    if vae.config.in_channels != 3:
        raise DataError(
            f"the VAE {source!r} encodes {vae.config.in_channels} channels; images have 3. Give "
            "another with --vae."
        )
    return vae


def _kind_of(kind: Any, name: str, inside: dict[str, str]) -> str:
    """The model class in the config, if the config is on this machine."""
    try:
        return str(
            kind.load_config(name, local_files_only=True, **inside).get(
                "_class_name", kind.__name__
            )
        )
    except Exception:  # not there: the weights are not either, and that is said
        return str(kind.__name__)
