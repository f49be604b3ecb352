"""The average of a model over its own training: use it for sampling.

    ema <- ema + rate (model - ema)
    rate = 1 - decay, with `warmup` 1 - min(decay, (1 + n) / (10 + n)) after n updates

The count stays on the host and the gate on the device. So an update reads nothing back, and takes
few kernels. Reference: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's
ExponentialMovingAverage.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, check_flag, check_module, check_number
from cfm_lite.engine.trainable import copied

__all__ = ["Average", "share_of_start"]


class Average:
    """`module` is the average of a model.

    `n_averaged` counts its updates. The first update copies the model.

    Raises ConfigError for what is no module, a decay outside [0, 1), or a `warmup` that is no bool.

    >>> average = Average(nn.Linear(1, 1), decay=0.9)
    >>> average.update_parameters(nn.Linear(1, 1))
    >>> round(average.rate, 3)
    0.1
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        check_module(model=model)
        decay = check_number("decay", decay, 0.0, 1.0, open_high=True)
        check_flag(warmup=warmup)
        self.module = copied(model)
        for p in self.module.parameters():  # a scripted network refuses to do it as a whole
            p.requires_grad_(False)
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
        """Move towards the parameters of `model` and copy its buffers.

        No parameter moves if `ok`, a scalar on the device, is 0.
        """
        (ema, params), others, owners = self._found(model)
        # a bad step left the model as it was, so the first copy needs no gate
        if self.n_averaged == 0:
            torch._foreach_copy_(ema, params)
        else:
            lerp(ema, params, self.rate, ok)
        for mine, theirs in others:
            mine.copy_(theirs)
        for mine, theirs in owners:
            _copy_buffers(mine, theirs)
        self.n_averaged += 1

    def _found(self, model: nn.Module) -> Any:
        """Both lists of averaged parameters, the pairs of others, and those of modules with
        buffers, looked up once.

        A walk through the modules can take longer than the average itself.
        """
        if self._pairs is None or self._pairs[0] is not model:
            both = zip(self.module.parameters(), model.parameters())
            pairs = [(_local(mine), _local(theirs)) for mine, theirs in both]
            for mine, theirs in pairs:  # one kernel reads both in the order of their memory
                if mine.stride() != theirs.stride():
                    mine.data = torch.empty_like(theirs).copy_(mine)
            # frozen integers or 8-bit numbers have no mean: they are copied, as buffers are
            means = [pair for pair in pairs if _has_mean(pair[0])]
            others = [pair for pair in pairs if not _has_mean(pair[0])]
            ema, params = ([pair[i] for pair in means] for i in (0, 1))
            # the modules, not their buffers: `self.seen = self.seen + 1` makes another tensor
            owners = zip(*([m for m in x.modules() if m._buffers] for x in (self.module, model)))
            self._pairs = model, ((ema, params), others, [*owners])
        return self._pairs[1]


def share_of_start(decay: float, warmup: bool, updates: int) -> float:
    """The share of the network's start in the average after `updates`: the product of all decays.

    0.999 without warm-up keeps 37 % after 1,000 steps. Samples of such an average come from a
    network that is mostly untrained.

    Raises ConfigError for a decay outside [0, 1), or fewer than 0 updates.

    >>> round(share_of_start(0.999, warmup=False, updates=1000), 2)
    0.37
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
    """ema += rate * ok * (params - ema) in place; the gate `ok` is 0, 1 (on the device) or None."""
    if ok is None:
        torch._foreach_lerp_(ema, params, rate)
    elif ok.device.type in _FUSED:
        _gated(ema, params, rate, 1.0 - ok)
    else:
        torch._foreach_lerp_(ema, params, [rate * ok] * len(ema))


_FUSED = ("cpu", "cuda")


def _gated(ema: list[Tensor], params: list[Tensor], rate: float, found_inf: Tensor) -> None:
    """One kernel for many tensors that reads the gate on the device, which `_foreach_lerp_` cannot.

    It is fused SGD's: with weight decay 1 and the other sign of g, p - rate (p - g) is a lerp.
    """
    for dtype in {p.dtype for p in ema}:
        pairs = [(e, p) for e, p in zip(ema, params) if e.dtype == dtype]
        torch._fused_sgd_(
            [e for e, _ in pairs], [p for _, p in pairs], [], weight_decay=1.0, momentum=0.0,
            lr=rate, dampening=0.0, nesterov=False, maximize=True, is_first_step=False,
            found_inf=found_inf,
        )  # fmt: skip


def _copy_buffers(mine: nn.Module, theirs: nn.Module) -> None:
    for name, x in theirs._buffers.items():
        own = mine._buffers.get(name)
        if x is None or own is None or own.shape != x.shape or own.dtype != x.dtype:
            mine._buffers[name] = None if x is None else x.detach().clone()
        else:
            own.copy_(x)


def _has_mean(p: Tensor) -> bool:
    return p.is_floating_point() and p.itemsize > 1


def _local(p: Any) -> Tensor:
    return p.to_local() if hasattr(p, "to_local") else p  # a rank averages its part of a DTensor
