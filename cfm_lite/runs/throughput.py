"""How fast a run is, compared with its device: model FLOP utilisation, MFU.

    MFU = images/s on one device x FLOPs of one image's training step / the device's peak

The FLOPs count the network alone, forward and backward once. Recomputation by checkpointing, a
second view and a teacher are work, but they are not counted. Peaks are the makers' numbers for
dense products; the numbers with sparsity are twice as high. Reference: Chowdhery et al. 2022 (PaLM,
arXiv:2204.02311), appendix B.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from cfm_lite.models import SiT

__all__ = ["Clock", "peak_flops", "train_flops", "utilisation"]

# (name in torch.cuda.get_device_name, dense TFLOP/s in bf16, in TF32), from the makers' data sheets
_PEAKS: tuple[tuple[str, float, float], ...] = (
    (r"B200", 2250, 1125),
    (r"H200 NVL", 835.5, 417.5),
    (r"GH200|H200", 989.4, 494.7),
    (r"H100 PCIe", 756, 378),
    (r"H100 NVL", 835.5, 417.5),
    (r"(H100|H800) .*HBM3", 989.4, 494.7),
    (r"A100|A800", 312, 156),
    (r"A40", 149.7, 74.8),
    (r"A30", 165, 82),
    (r"A10", 125, 62.5),
    (r"L40S", 362, 183),
    (r"L40", 181, 90.5),
    (r"L4", 121, 60),
    (r"RTX 6000 Ada", 364.2, 182.1),
    (r"RTX A6000", 154.8, 77.4),
    (r"RTX 4090", 165.2, 82.6),
    (r"RTX 3090", 71, 35.6),
)


def peak_flops(device: str, precision: str) -> float | None:
    """The peak FLOP/s of the device called `device`, for "bf16" or "tf32". None if unknown, as for
    a MIG slice.

    >>> peak_flops("NVIDIA H200", "bf16")
    989400000000000.0
    """
    if precision not in ("bf16", "tf32") or re.search(r"\bMIG\b|\bLaptop\b|Max-Q", device):
        return None
    found = ((bf16, tf32) for name, bf16, tf32 in _PEAKS if re.search(rf"\b(?:{name})\b", device))
    return next((1e12 * (bf16 if precision == "bf16" else tf32) for bf16, tf32 in found), None)


def train_flops(model: nn.Module) -> int | None:
    """Floating-point operations of one image's training step; None unless the model is a SiT.

    They are twice the multiply-adds, and three times the forward pass.

    >>> train_flops(SiT(input_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2))
    37248
    """
    if not isinstance(model, SiT):
        return None
    width, tokens = model.hidden_size, (model.input_size // model.patch_size) ** 2
    inner, patch = int(width * model.mlp_ratio), model.patch_size**2
    # per token: queries, keys, values, projection; the MLP
    linear = 4 * width * width + 2 * width * inner
    # and attention; and the modulation
    block = tokens * linear + 2 * tokens * tokens * width + 6 * width * width
    ends = (
        tokens * width * patch * (model.in_channels + model.out_channels)
        + (256 + width) * width
        + 2 * width * width
    )
    return 6 * (model.depth * block + ends)


def utilisation(
    model: nn.Module, images_per_second: float, device: torch.device, precision: str
) -> float | None:
    """MFU in [0, 1] of a network that trains `images_per_second` on one device.

    None if the peak or the FLOPs are unknown.

    >>> print(utilisation(nn.Linear(2, 2), 100.0, torch.device("cpu"), "bf16"))  # no known peak
    None
    """
    if device.type != "cuda":
        return None
    kind = "tf32" if precision == "float32" and torch.backends.cuda.matmul.allow_tf32 else precision
    peak, flops = peak_flops(torch.cuda.get_device_name(device), kind), train_flops(model)
    return images_per_second * flops / peak if peak and flops else None


class Clock:
    """Seconds of a run over all its sittings, and images per second since the last reading.

    The rate leaves out pauses. It also leaves out the first step of a sitting, which compiles and
    fills caches, unless that is the only step. `spent` are the seconds of earlier sittings.

    >>> times = iter([0.0, 4.0, 6.0, 6.0])  # the first step takes 4 s, the second 2 s
    >>> clock = Clock(batch=32, now=lambda: next(times))
    >>> clock.tick(), clock.tick(), clock.read()
    (None, None, {'seconds': 6.0, 'images_per_second': 16.0})
    """

    def __init__(
        self, batch: int, spent: float = 0.0, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.batch, self._now = batch, now
        self._start = self._since = now()
        self._start -= spent
        self._steps, self._first = 0, True
        self._warm = self._since  # when the first step was over

    def tick(self) -> None:
        """Count one finished step."""
        self._steps += 1
        if self._first and self._steps == 1:
            self._warm = self._now()

    def read(self) -> dict[str, float]:
        """{"seconds", "images_per_second"}. The rate then starts again."""
        now = self._now()
        steps, since = (
            (self._steps - 1, self._warm)
            if self._first and self._steps > 1
            else (self._steps, self._since)
        )
        self._steps, self._since, self._first = 0, now, False
        return {
            "seconds": round(now - self._start, 3),
            "images_per_second": steps * self.batch / max(now - since, 1e-9),
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside counts for the seconds, but not for the rate."""
        before = self._now()
        yield
        gone = self._now() - before
        self._since += gone
        self._warm += gone
