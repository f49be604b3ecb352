"""Networks whose features measure images: the Inception-v3 of FID (2015), and a small stand-in for
tests.

An `Extractor` maps uint8 images (B, 3, H, W) to pooled features (FID, precision, recall), spatial
features (sFID) and logits (inception score). sFID's 2,023 numbers are the first 7 channels of the
17 x 17 map after the first branch of the block that TensorFlow calls mixed_6.

Reference: Heusel et al. 2017 (arXiv:1706.08500); Nash et al. 2021 (arXiv:2103.03841); ADM's
evaluator (Dhariwal and Nichol 2021). Agreement with ADM's evaluator was not tested here.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, full_precision, in_one_line, integers, not_finite
from cfm_lite._internal.files import fingerprint, hash_of_file
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import made_in_float32, seeded
from cfm_lite.data.root import cache_root, impatient, scratch
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.models.official import read_weights

__all__ = ["Extractor", "Features", "StandIn", "inception", "open_extractor"]

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256_HEAD = "6726825d"
SPATIAL_CHANNELS = 7


class Features(NamedTuple):
    """pool (N, D), spatial (N, S) and logits (N, K), float32 on the host.

    >>> Features(torch.zeros(5, 64), torch.zeros(5, 2023), torch.zeros(5, 16)).pool.shape
    torch.Size([5, 64])
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor


class Extractor(Protocol):
    """Features of uint8 images (B, 3, H, W).

    `prefix` begins the names of metrics that are not the published ones. `widths` are the numbers
    of features for FID and sFID.

    >>> extractor: Extractor = StandIn()
    >>> extractor.prefix
    'standin_'
    """

    name: str
    prefix: str
    fingerprint: str
    widths: Mapping[str, int]

    def __call__(self, images: Tensor) -> Features:
        """The features of `images`, uint8 (B, 3, H, W)."""
        ...


class Inception:
    """torch-fidelity's port of the TensorFlow graph, with a hook where sFID reads.

    Raises ConfigError for images that are not uint8 (B, 3, H, W).
    """

    name, prefix = "inception-v3-compat", ""
    widths: Mapping[str, int] = MappingProxyType({"fid": 2048, "sfid": 2023})

    def __init__(self, network: nn.Module, device: torch.device | str) -> None:
        self.network, self.device = network.to(device), device
        self.fingerprint = fingerprint(network.state_dict(), shapes=False)
        self._map: Tensor | None = None
        block: Any = network.get_submodule("Mixed_6d.branch1x1")
        block.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._map = output

    @torch.no_grad()
    @full_precision()
    def __call__(self, images: Tensor) -> Features:
        pool, logits = self.network(check_images(images).to(self.device))
        kept: Any = self._map
        return Features(pool.float().cpu(), _spatial(kept).float().cpu(), logits.float().cpu())


class StandIn:
    """A random network of fixed seed in Inception's place, for tests and trials.

    It has 64 pooled features, 2,023 spatial ones and 16 logits. Equal images have equal features.
    Its numbers mean nothing, so its metrics are called standin_*.

    Raises ConfigError for a seed below 0, and for images that are not uint8 (B, 3, H, W).

    >>> StandIn()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).pool.shape
    torch.Size([2, 64])
    """

    name, prefix = "stand-in", "standin_"
    widths: Mapping[str, int] = MappingProxyType({"fid": 64, "sfid": 2023})

    @made_in_float32()
    def __init__(self, seed: int = 0, device: torch.device | str = "cpu") -> None:
        with seeded(check_count("seed", seed, low=0)):
            self.body = nn.Sequential(
                nn.Conv2d(3, 32, 5, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU()
            )
            self.head = nn.Linear(64, 16)
        self.network = nn.ModuleList([self.body, self.head]).to(device).eval().requires_grad_(False)
        self.device, self.fingerprint = device, fingerprint(self.network.state_dict(), shapes=False)

    @torch.no_grad()
    @full_precision()
    def __call__(self, images: Tensor) -> Features:
        x = F.interpolate(
            check_images(images).to(self.device).float() / 127.5 - 1,
            size=(107, 107),
            mode="bilinear",
            antialias=True,
        )
        features = self.body(x)  # (B, 64, 17, 17)
        pool = features.mean((2, 3))
        return Features(pool.cpu(), _spatial(features).cpu(), self.head(pool).cpu())


def _spatial(features: Tensor) -> Tensor:
    """What sFID reads of a map (B, C, 17, 17): (B, 17 * 17 * 7)."""
    return features[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def check_images(images: Tensor) -> Tensor:
    """`images`; ConfigError unless they are uint8 (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ConfigError(
            f"images is {tuple(images.shape)} of {images.dtype}; features are computed from uint8 "
            "(B, 3, H, W)."
        )
    return images


@made_in_float32()
def inception(file: str | Path | None = None, device: torch.device | str = "cpu") -> Inception:
    """Inception-v3 from the weights in `file`, or downloaded once and cached (91 MB).

    Raises ConfigError without torch-fidelity (extra `eval`), DataError if the weights cannot be
    downloaded, CheckpointError if they do not fit. No code in the file is run.
    """
    kind = optional(
        "torch_fidelity.feature_extractor_inceptionv3", "eval"
    ).FeatureExtractorInceptionV3
    path = Path(file) if file is not None else _fetched()
    state = read_weights(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "weights.pth")  # ours, so the port may unpickle it
            network = kind(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                str(Path(folder) / "weights.pth"),
            )
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no weights of Inception-v3 ({in_one_line(error)}). Give {WEIGHTS} of "
            "torch-fidelity."
        ) from error
    whole, wild = integers(network.state_dict(), state), not_finite(state)
    if wrong := whole or wild:
        held = "integers" if whole else "NaN or infinities"
        raise CheckpointError(
            f"{path} holds {held} where Inception-v3 has weights ({wrong[0]}). Give {WEIGHTS} of "
            "torch-fidelity."
        )
    return Inception(network, device)


def _fetched() -> Path:
    folder = cache_root() / "inception"
    path = folder / WEIGHTS
    if path.is_file() and hash_of_file(path).startswith(SHA256_HEAD):
        return path
    try:
        with scratch(folder, "Inception's weights") as place, impatient():
            path = place / WEIGHTS
            # it writes beside the path, and moves there what has the right hash
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256_HEAD)
    except Exception as error:  # the network fails in many types; all mean the same to the reader
        raise DataError(
            f"the weights of Inception-v3 cannot be fetched ({error}). Get {URL} and give it with "
            "--inception FILE."
        ) from None
    return path


def open_extractor(source: str | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Inception-v3 with its published weights (None) or those in a file, or "standin" for the
    random stand-in.

    >>> open_extractor("standin").name
    'stand-in'
    """
    return StandIn(device=device) if source == "standin" else inception(source, device)
