"""The guard: a run whose numbers went wrong is stopped, and its parameters stay good.

A flag stays on the device. It gates the fused optimizer (`found_inf`) and the average, so that
nothing moves on a bad step or after it, and no step waits for the device. At the next logged step
the flag is read and `DivergenceError` raised. On the CPU, where a read costs nothing, that happens
at once. A run can also diverge with finite numbers: at logged steps the largest flow-matching error
so far is compared with `runaway`^2 times the first one.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import widest
from cfm_lite.engine import sharded
from cfm_lite.errors import DivergenceError

__all__ = ["Guard"]


class Guard:
    """Watches the values of each step; `error` names the one that may run away, or is None.

    >>> guard = Guard(torch.device("cpu"), None, None, [])
    >>> try:
    ...     guard.watch(7, {"loss": torch.tensor(math.nan)})
    ... except DivergenceError as error:
    ...     print(str(error)[:28])
    loss is not finite at step 7
    """

    def __init__(
        self,
        device: torch.device,
        error: str | None,
        runaway: float | None,
        averages: list[nn.Module],
    ) -> None:
        self.at_once = device.type == "cpu"  # where reading a number costs no synchronisation
        self.saved: Path | None = None  # the last good checkpoint
        self._error, self._runaway, self._averages = error, runaway, averages
        self._names: list[str] = []  # of what `_bad` counts
        # the first and the largest, on the device
        self._errors: tuple[Tensor, Tensor] | None = None
        # 1 as long as all is well: the fused optimizer reads a float32
        self._ok = torch.ones((), device=device, dtype=torch.float32)
        # step and term of the first bad step
        self._bad = torch.full((2,), -1, device=device, dtype=torch.long)

    @property
    def ok(self) -> Tensor | None:
        """The gate on the device, 1 or 0; None where a bad step is raised at once."""
        return None if self.at_once else self._ok

    @property
    def errors(self) -> list[float] | None:
        """The first and the largest error so far, for a checkpoint; None before there is one."""
        return None if self._errors is None else torch.stack(self._errors).tolist()

    def remember(self, errors: list[float] | None) -> None:
        """Go on from a checkpoint and its `errors`; an old one has none, and the next is the first.

        A bad step after that checkpoint is forgotten.

        >>> guard = Guard(torch.device("cpu"), "error", 2.0, [])
        >>> guard.remember([1.0, 3.0])
        >>> guard.errors
        [1.0, 3.0]
        """
        place, self._errors = self._ok.device, None
        self._ok, self._bad = torch.ones_like(self._ok), torch.full_like(self._bad, -1)
        if errors is not None:
            first, largest = torch.tensor(errors, device=place, dtype=widest(place))
            self._errors = first, largest

    def watch(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep the first step with a value that is not finite; on the CPU raise DivergenceError."""
        if self.at_once:
            bad = [name for name, value in values.items() if not math.isfinite(value.item())]
            if bad:
                raise self._divergence(step, next((name for name in bad if name != "loss"), "loss"))
        else:
            finite = torch.stack([torch.isfinite(value) for value in values.values()])
            now = torch.stack([torch.full_like(self._bad[0], step), finite.long().argmin()])
            self._bad = torch.where(finite.all() | (self._bad[0] >= 0), self._bad, now)
            self._ok = (self._bad[0] < 0).float()  # 0 lets nothing move until the error is raised
            self._names = list(values)
        if self._error is not None:
            error = values[self._error]
            # the variance of the noise is 1: a smaller first error allows no less
            first, largest = self._errors or (error.clamp_min(1.0), error)
            self._errors = first, torch.maximum(largest, error)

    def check(self, step: int, lr: float) -> None:
        """Read the kept step, the averages and the largest error; DivergenceError if one is bad."""
        bad, which = self._bad.tolist()
        if bad >= 0:
            raise self._divergence(bad, self._names[which])
        for module in self._averages:
            if not _is_finite(module.parameters()):
                name = next(name for name, p in module.named_parameters() if not _is_finite([p]))
                raise DivergenceError(
                    f"the average of {name} is not finite at step {step}, and {self._kept()}. "
                    "Resume from there."
                )
        if self._runaway is None or self._errors is None:
            return
        first, largest = torch.stack(self._errors).tolist()
        if largest > (limit := self._runaway**2 * first):
            raise DivergenceError(
                f"flow_matching rose to {largest:.3g} by step {step}. The limit is {limit:.3g}: "
                f"{self._runaway:g}^2 times its first value. The numbers are finite, but the run "
                f"diverges, and {self._kept()}. Lower the learning rate ({lr:.3g}) or the weight "
                "of the repelling term. A Trainer of your own allows it with runaway=None."
            )

    def _kept(self) -> str:
        if self.saved is None:
            return "no checkpoint was saved yet"
        return f"the last good checkpoint is {self.saved}"

    def _divergence(self, step: int, what: str) -> DivergenceError:
        return DivergenceError(
            f"{what} is not finite at step {step}; the parameters and the average are those of "
            f"step {step - 1}, and {self._kept()}. Lower the learning rate or the term's weight, "
            "or look at the batch."
        )


def _is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every entry is finite, also of tensors that lie in parts on several ranks.

    It is also False if their norm is too large to be a number.
    """
    numbers = [x for x in tensors if x.is_floating_point() and x.itemsize > 1]  # others always are
    return math.isfinite(sharded.full(nn.utils.get_total_norm(numbers)))
