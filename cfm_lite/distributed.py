"""Several processes as one run: torchrun starts them, gloo (CPU) or nccl (GPU) joins them, DDP averages their gradients.

    gradient of the global batch = mean over ranks of the gradients of their parts

The ranks of a `World` hold whole shards of each batch, and all draws are keyed by the shard, so a run is the same on any number
of them. Rank 0 alone writes. A rank that dies, hangs or disagrees ends the others with DistributedError; what was saved stays.
Reference: PyTorch's torchrun and DistributedDataParallel.
"""

import contextlib
import datetime
import hashlib
import inspect
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfm_lite.checks import check_number
from cfm_lite.errors import CFMError, ConfigError, DistributedError

__all__ = ["ALONE", "TIMEOUT", "World", "joined", "ranks_of_environment"]

TIMEOUT = "CFM_LITE_TIMEOUT"  # seconds that a rank waits for the others; default 300
_TALK = re.compile(r"gloo|nccl|connection|peer|time[d ]*out|socket|store|rank|address|broken pipe", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """`size` processes, of which this one is number `rank`, and number `local` on its machine. All methods are collective."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """The device of this rank: one GPU each, in the order of the local ranks. ConfigError where a machine has too few."""
        if device.type != "cuda" or self.size == 1:
            return device
        if self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {self.local} of this machine has no GPU: there are {torch.cuda.device_count()}. Lower --nproc-per-node."
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective itself, or in DDP where there are several ranks; every rank then starts from rank 0's parameters."""
        if self.size == 1:
            return objective
        unused = any(getattr(term, "weight", 1) == 0 for term in getattr(objective, "modules_of_terms", {}).values())
        kind: Any = nn.parallel.DistributedDataParallel
        # buffers are equal and constant, so they need no message a step; torch 2.13 renamed the switch
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(kind).parameters else "broadcast_buffers"
        return kind(objective, gradient_as_bucket_view=True, find_unused_parameters=unused, **{buffers: False})

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each scalar averaged over the ranks, in one message and without a host read; not finite on one is not finite on all."""
        if self.size == 1:
            return dict(values)
        together = torch.stack([value.double() for value in values.values()]) / self.size
        dist.all_reduce(together)
        return {name: mean.to(values[name].dtype) for name, mean in zip(values, together.unbind())}

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """True on every rank if it is on one of them."""
        if self.size == 1:
            return flag
        seen = torch.tensor([float(flag)], device=device if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen.item())

    def agree(self, what: str, value: Any) -> None:
        """Raise DistributedError on every rank, naming those that differ, unless all hold the same JSON `value`."""
        mine = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        found = self.gather(mine)
        others = [rank for rank, theirs in enumerate(found) if theirs != found[0]]
        if others:
            raise DistributedError(f"{what} differs between rank 0 and rank {others[0]}; start all ranks with the same command and code.")

    def gather(self, value: Any) -> list[Any]:
        """The small plain value of every rank, in order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self.gather(None)

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 while the others wait; its result there, None elsewhere. If it fails, all ranks raise that error."""
        result, error = None, None
        if self.is_main:
            try:
                result = work()
            except CFMError as failed:
                error = failed
        found = self.gather((type(error).__name__, str(error)) if error else None)[0]
        if error:
            raise error
        if found:
            raise DistributedError(f"rank 0 failed, and so all ranks stop: {found[0]}: {found[1]}")
        return result

    def share(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 alone, as `on_main` does; its small plain result on every rank."""
        return self.gather(self.on_main(work))[0]

    @contextlib.contextmanager
    def watching(self, kept: Callable[[], Any] = lambda: None) -> Iterator[None]:
        """Turn what torch raises when another rank is gone into DistributedError that names the checkpoint `kept()`."""
        try:
            yield
        except CFMError:
            raise
        except RuntimeError as error:
            if self.size == 1 or not _TALK.search(str(error)):
                raise
            saved = f"the last checkpoint is {kept()}; --resume goes on from it" if kept() else "no checkpoint was saved yet"
            raise DistributedError(f"rank {self.rank} lost the others: {_first_line(error)} One of them died or hangs; {saved}.") from error


ALONE = World()

# Never freed: where DDP is the last to hold a group, as in an error's traceback, it frees it under the interpreter's lock, for which
# gloo's threads may wait, while it waits for them (pytorch issue 56297).
_GROUPS: list[Any] = []


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text[:200].rstrip(".") + "."


def ranks_of_environment() -> tuple[int, int, int]:
    """(rank, size, local rank) that torchrun, or a scheduler that sets the same variables, gave this process; (0, 1, 0) without.

    Raises DistributedError for variables that are incomplete or contradict each other.
    """
    names = ("RANK", "WORLD_SIZE")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return 0, 1, 0
    try:
        rank, size = (int(given[name]) for name in names)
        local = int(os.environ.get("LOCAL_RANK", rank))
    except (KeyError, ValueError):
        raise DistributedError(
            f"the environment has {given}; RANK and WORLD_SIZE must both be whole numbers. Start with torchrun."
        ) from None
    if not 0 <= rank < size:
        raise DistributedError(f"RANK is {rank} and WORLD_SIZE {size}; the rank must lie in [0, {size - 1}]. Start with torchrun.")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise DistributedError(f"WORLD_SIZE is {size} but {' and '.join(missing)} are not set. Start with torchrun, which sets them.")
    return rank, size, local


@contextlib.contextmanager
def joined(device: torch.device | str = "cpu") -> Iterator[World]:
    """The world that this process was started in, joined for the length of the block; `ALONE` without torchrun.

    Raises DistributedError where the ranks do not find each other within CFM_LITE_TIMEOUT seconds, such as for a port taken.
    """
    rank, size, local = ranks_of_environment()
    if size == 1:
        yield ALONE
        return
    timeout = check_number(TIMEOUT, _number(os.environ.get(TIMEOUT, "300")), 0, 1e6, open_low=True)
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    world = World(rank, size, local)
    if backend == "nccl":
        world.place(torch.device(device))
    _meet(backend, rank, size, timeout)
    _GROUPS.append(dist.group.WORLD)
    try:
        with world.watching():
            yield world
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _meet(backend: str, rank: int, size: int, timeout: float) -> None:
    """Join the process group, in a thread: whoever holds a taken port may never answer, and torch's own timeout does not see that."""
    failed: list[Exception] = []

    def join() -> None:
        try:
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout))
        except Exception as error:  # shown below, in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(2 * timeout + 5)
    if not failed and not thread.is_alive():
        return
    reason = _first_line(failed[0]) if failed else f"no answer for {2 * timeout + 5:g} s."
    raise DistributedError(
        f"rank {rank} of {size} cannot join the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason} Is the port "
        "taken, or a rank missing? Choose another with torchrun --master-port, and start as many ranks as --nproc-per-node says."
    ) from (failed[0] if failed else None)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
