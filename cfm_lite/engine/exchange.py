"""What the ranks exchange in a step: gradients, and one message with all that is small.

    message = losses, which parameters got no gradient here, which blocks were run here

A parameter that no rank used has no gradient then, as on one process: zeros would let momentum and
weight decay move it. FSDP gathers and exchanges block by block, and knows the blocks only by their
turn. Ranks that run other blocks would wait for each other, or take one block for another, which no
size tells if both are alike. The message finds that out. It costs no wait: a GPU's part of it is
read at logged steps, and where a parameter got no gradient.
"""

import contextlib
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite.engine import sharded
from cfm_lite.engine.parallel import World
from cfm_lite.errors import DistributedError

__all__ = ["Exchange"]

KEPT = 200  # steps of which an error can tell the blocks
SAME = (
    "with parallel='fsdp' all ranks must run the same blocks in the same order. Choose by what "
    "they share, such as the step, or use 'ddp'."
)
Ran = tuple[int, tuple[str, ...]]  # a step and its blocks, in the order in which they were run


class Exchange:
    """What one rank gives and takes; on one process it does nothing.

    `wrapped` is what `sharded.spread` gave, and `parameters` are those that are trained.
    """

    def __init__(self, world: World, wrapped: nn.Module, parameters: Sequence[Tensor]) -> None:
        self._world, self._wrapped, self._parameters = world, wrapped, parameters
        self._step = 0
        self._now: tuple[str, ...] = ()  # the blocks of this step so far
        self._begun: int | None = None  # what FSDP's order held when this forward pass began
        self._since: list[Ran] = []  # those of the steps that were not checked yet
        self._idle: list[int] = []  # numbers of the parameters without gradient in this step
        # on the device: how far the ranks were apart in one of those steps
        self._apart: Tensor | None = None
        self._order: list[Any] = []  # of FSDP: what was run since the last backward pass
        self._used: set[str] = set()  # of FSDP: names of parameters with a gradient in this step
        self._names: list[str] = []  # of FSDP: those of the parameters
        if sharded.is_sharded(wrapped):
            self._order = sharded.order_of(wrapped)
            self._names = [name for name, p in wrapped.named_parameters() if p.requires_grad]
            sharded.hear(wrapped, self._used)
            if world.link is not None:  # which outlives the network
                me = weakref.ref(self)
                world.link.tell = lambda: (here := me()) and here._tell()
                world.link.explain = _difference

    def follow(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward`, of which FSDP's blocks are noted."""
        if not sharded.is_sharded(self._wrapped):
            return forward

        def run(*args: Any) -> Any:
            self._begun = len(self._order)
            found = forward(*args)
            self._now, self._begun = (*self._so_far(), "the end"), None
            return found

        return run

    def micro_batch(
        self, step: int, first: bool, last: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Around each micro-batch of a step; gradients are exchanged with those of the `last`."""
        alone = self._world.size == 1
        return contextlib.nullcontext() if alone else self._exchanging(step, first, last)

    @contextlib.contextmanager
    def _exchanging(self, step: int, first: bool, last: bool) -> Iterator[None]:
        if first:
            self._step, self._now, self._begun = step, (), None
            self._used.clear()
        with sharded.exchanging(self._wrapped, self._parameters, last) as idle:
            yield
        # a backward pass gives some gradient: where none was heard of, nothing was heard at all
        heard = self._names if self._used else []
        self._idle = idle + [i for i, name in enumerate(heard) if name not in self._used]

    def add(
        self, log: dict[str, Tensor], values: Mapping[str, Tensor], share: float, terms: Any
    ) -> None:
        """Add to `log` what a micro-batch gave, which is `share` of the batch on this rank.

        The loss and the values of `terms` are means. All else counts rows, and is summed.
        """
        for name, value in values.items():
            # a count times the ranks is their sum, once `mean` has divided by them
            part = share if name == "loss" or name in terms else self._world.size
            log[name] = value if share == part == 1 else value * part + log.get(name, 0)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each scalar averaged over the ranks, after the last micro-batch of a step.

        A parameter that no rank has used loses its gradient. Raises DistributedError, on a CPU at
        once and else by `check`, if the ranks did not run the same blocks in the same order.
        """
        if self._world.size == 1:
            return dict(values)
        device = self._parameters[0].device
        idle = torch.zeros(len(self._parameters), device=device, dtype=torch.float64)
        for number in self._idle:
            idle[number].fill_(1.0)
        mine = zlib.crc32("\n".join(self._now).encode()) / 2**32
        ran = torch.full((), mine, device=device, dtype=torch.float64)
        found = self._world.mean({**values, "no gradient": idle, "blocks": ran})
        apart, idle = (found.pop("blocks") - mine).abs(), found.pop("no gradient")
        if sharded.is_sharded(self._wrapped):
            self._apart = apart if self._apart is None else torch.maximum(self._apart, apart)
            self._since = [*self._since[-KEPT:], (self._step, self._now)]
            if device.type == "cpu":
                self.check()
        for number, share in zip(self._idle, idle[self._idle].tolist() if self._idle else ()):
            if share > 1 - 0.5 / self._world.size:
                self._parameters[number].grad = None
        return found

    def check(self) -> None:
        """Raise DistributedError if the ranks ran other blocks since the last call (collective)."""
        since, apart = self._since, self._apart
        self._since, self._apart = since[-1:], None
        if apart is not None and apart.item() > 1e-12:
            raise DistributedError(
                _difference(self._world.gather(since))
                or f"by step {self._step} the ranks ran other blocks; {SAME}"
            )

    def _tell(self) -> list[Ran]:
        """The blocks of the last two steps so far; another thread asks."""
        now, running = self._so_far(), sharded.inside(self._wrapped)
        return [*self._since[-1:], (self._step, (*now, *running))]

    def _so_far(self) -> tuple[str, ...]:
        new = [] if self._begun is None else self._order[self._begun :]
        return (*self._now, *(getattr(part, "_module_fqn", "") or "the rest" for part in new))


def _difference(found: Sequence[Sequence[Any]]) -> str:
    """In which blocks two ranks went apart, and what to do; "" where they did not yet."""
    first = {step: names for step, names in found[0]}
    for rank, theirs in enumerate(found):
        for step, names in theirs:
            for mine, other in zip(first.get(step, ()), names):
                if mine != other:
                    return (
                        f"in step {step} rank 0 came to {mine} and rank {rank} to {other}; {SAME}"
                    )
    return ""
