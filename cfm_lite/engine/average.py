"""The average of a model over its own training, which is what one samples from.

    ema <- ema + rate (model - ema),   rate = 1 - decay,   with `warmup` 1 - min(decay, (1 + n) / (10 + n)) after n updates

The count stays on the host and the gate on the device, so that an update reads nothing back and is
a handful of kernels. Reference: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's
ExponentialMovingAverage.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, check_flag, check_module, check_number
from cfm_lite._internal.networks import copied

__all__ = ["Average", "share_of_start"]


class Average:
    """`module`, a copy of the model that follows it; `n_averaged` counts the updates, of which the
    first copies.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        check_module(model=model)
        decay = check_number("decay", decay, 0.0, 1.0, open_high=True)
        check_flag(warmup=warmup)
        self.module = copied(model).requires_grad_(False)
        self.decay, self.warmup, self.n_averaged = decay, warmup, 0
        self._pairs: tuple[nn.Module, Any] | None = None

    @property
    def rate(self) -> float:
        """How far the next update goes towards the model, in (0, 1]."""
        n = self.n_averaged
        if n == 0:
            return 1.0
        return 1 - (min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, ok: Tensor | None = None) -> None:
        """Move towards the parameters of `model` and take over its buffers; nothing moves where
        `ok`, a scalar on its device, is 0.
        """
        (ema, params), buffers = self._found(model)
        if (
            self.n_averaged == 0
        ):  # a bad step left the model as it was, so the first copy needs no gate
            torch._foreach_copy_(ema, params)
        else:
            lerp(ema, params, self.rate, ok)
        for mine, theirs in buffers:
            mine.copy_(theirs)
        self.n_averaged += 1

    def _found(
        self, model: nn.Module
    ) -> tuple[tuple[list[Tensor], list[Tensor]], list[tuple[Tensor, Tensor]]]:
        """Both lists of parameters and the pairs of buffers. They are looked up once, because
        walking through the modules can take longer than averaging.
        """
        if self._pairs is None or self._pairs[0] is not model:
            pairs = [
                (_local(mine), _local(theirs))
                for mine, theirs in zip(self.module.parameters(), model.parameters())
            ]
            for mine, theirs in pairs:  # one kernel walks both in the order of their memory
                if mine.stride() != theirs.stride():
                    mine.data = torch.empty_like(theirs).copy_(mine)
            # frozen integers or 8-bit numbers have no mean: they are taken over, as buffers are
            means = [
                (mine, theirs)
                for mine, theirs in pairs
                if mine.is_floating_point() and mine.itemsize > 1
            ]
            others = [
                (mine, theirs)
                for mine, theirs in pairs
                if not (mine.is_floating_point() and mine.itemsize > 1)
            ]
            ema, params = ([pair[i] for pair in means] for i in (0, 1))
            self._pairs = (
                model,
                ((ema, params), [*others, *zip(self.module.buffers(), model.buffers())]),
            )
        return self._pairs[1]


def share_of_start(decay: float, warmup: bool, updates: int) -> float:
    """How much of the network's start is still in the average after `updates`, in [0, 1]: the
    product of all decays so far.

    0.999 without warm-up keeps 37 % for 1,000 steps: what one samples is then mostly untrained.
    """
    check_number("decay", decay, 0.0, 1.0, open_high=True)
    check_flag(warmup=warmup)
    check_count("updates", updates, low=0)
    if not updates or not warmup:
        return decay ** max(0, updates - 1)  # the first update copies
    share = 1.0
    for n in range(1, updates):
        if share < 1e-12:
            break
        share *= min(decay, (1 + n) / (10 + n))
    return share


def lerp(ema: list[Tensor], params: list[Tensor], rate: float, ok: Tensor | None = None) -> None:
    """ema += rate * (params - ema) in place, list by list; with the gate `ok` (0 or 1, on the
    tensors' device) times `ok`.
    """
    if ok is None:
        torch._foreach_lerp_(ema, params, rate)
    elif ok.device.type in _FUSED:
        _gated(ema, params, rate, 1.0 - ok)
    else:
        torch._foreach_lerp_(ema, params, [rate * ok] * len(ema))


_FUSED = ("cpu", "cuda")


def _gated(ema: list[Tensor], params: list[Tensor], rate: float, found_inf: Tensor) -> None:
    """One kernel for many tensors that reads the gate on the device, which `_foreach_lerp_` cannot.

    It is the one of fused SGD: p - rate (p - g) with weight decay 1 and the sign of g turned is the
    same line as a lerp.
    """
    for dtype in {p.dtype for p in ema}:
        pairs = [(e, p) for e, p in zip(ema, params) if e.dtype == dtype]
        torch._fused_sgd_(
            [e for e, _ in pairs], [p for _, p in pairs], [],
            weight_decay=1.0, momentum=0.0, lr=rate, dampening=0.0, nesterov=False, maximize=True, is_first_step=False, found_inf=found_inf,
        )  # fmt: skip


def _local(p: Any) -> Tensor:
    return (
        p.to_local() if hasattr(p, "to_local") else p
    )  # of a DTensor a rank averages its own part
