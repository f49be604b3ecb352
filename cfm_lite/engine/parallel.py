"""Several processes as one run: torchrun starts them, gloo (CPU) or nccl (GPU) joins them.

    gradient of the global batch = mean over ranks of the gradients of their parts

DDP averages the gradients. The ranks of a `World` hold whole shards of each batch, and all draws
are keyed by the shard. So a run is the same on any number of ranks. Rank 0 alone writes. A rank
that dies, hangs or disagrees ends the others with DistributedError. Saved checkpoints stay.

Small values go through the store at which the ranks met, and so does waiting. Every rank writes a
beat there from a thread. So the others wait for a rank that works alone (it saves 10 GB to a slow
disk, hashes, gathers samples) as long as it beats. A dead or stopped rank is noticed within
CFM_LITE_TIMEOUT seconds, one that has ended at once. One case looks like slow work: a main thread
that hangs beside a living interpreter, as on a dead network disk. A line says every
CFM_LITE_TIMEOUT seconds which rank is waited for. Gradients and other tensors are exchanged by gloo
and nccl, with the same CFM_LITE_TIMEOUT. Reference: PyTorch's torchrun and DistributedDataParallel.
"""

import contextlib
import datetime
import inspect
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfm_lite._internal.checks import check_number
from cfm_lite._internal.files import hash_of_json
from cfm_lite.errors import CFMError, ConfigError, DistributedError

__all__ = ["ALONE", "TIMEOUT", "World", "joined", "ranks_of_environment"]

TIMEOUT = "CFM_LITE_TIMEOUT"  # seconds that a rank waits for the others; default 300
_TALK = re.compile(
    r"gloo|nccl|connection|peer|time[d ]*out|socket|store|rank|address|broken pipe", re.IGNORECASE
)


@dataclass(frozen=True)
class World:
    """`size` processes; this one is number `rank`, and number `local` on its machine.

    All methods are collective. Without a `link` small values go through the process group.

    >>> World().is_main, World().gather("what this rank says")
    (True, ['what this rank says'])
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    link: "Link | None" = field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """The device of this rank: one GPU each; ConfigError if the machine has too few."""
        if device.type != "cuda" or self.size == 1:
            return device
        if self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {self.local} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}. Lower --nproc-per-node."
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective itself, or in DDP if there are several ranks.

        DDP finds the ranks alike (`start_alike`); gloo could not send it every dtype.
        """
        if self.size == 1:
            return objective
        kind: Any = nn.parallel.DistributedDataParallel
        # buffers are equal and constant, so they need no message; torch 2.13 renamed the switch
        new, old = "forward_sync_buffers", "broadcast_buffers"
        buffers = new if new in inspect.signature(kind).parameters else old
        return kind(
            objective,
            gradient_as_bucket_view=True,
            init_sync=False,
            **{buffers: False},
        )

    @torch.no_grad()
    def start_alike(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0; FSDP shards what a rank holds."""
        if self.size == 1:
            return
        for tensor in (*module.parameters(), *module.buffers()):
            whole = tensor.detach().contiguous()
            if whole.numel():
                # bytes, because gloo does not know every dtype
                dist.broadcast(whole.reshape(-1).view(torch.uint8), 0)
                tensor.copy_(whole)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor averaged over the ranks, in one message and without a host read.

        One that is not finite on one rank is not finite on any.
        """
        if self.size == 1:
            return dict(values)
        flat = [value.double().flatten() for value in values.values()]
        together = torch.cat(flat) / self.size
        dist.all_reduce(together)
        means = together.split([len(value) for value in flat])
        return {
            name: mean.reshape(value.shape).to(value.dtype)
            for (name, value), mean in zip(values.items(), means)
        }

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """True on every rank if it is on one of them."""
        if self.size == 1:
            return flag
        seen = torch.tensor([float(flag)], device=device if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen.item())

    def agree(self, what: str, value: Any) -> None:
        """All ranks must hold the same JSON `value`; else all raise DistributedError."""
        found = self.gather(hash_of_json(value, default=str))
        others = [rank for rank, theirs in enumerate(found) if theirs != found[0]]
        if others:
            raise DistributedError(
                f"{what} differs between rank 0 and rank {others[0]}; start all ranks with the "
                "same command and code."
            )

    def gather(self, value: Any) -> list[Any]:
        """The small plain value (JSON) of every rank, in order; each living rank is waited for."""
        if self.size == 1:
            return [value]
        if self.link is not None:
            return self.link.gather(value)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self.gather(None)

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 while the others wait; its result there, None elsewhere.

        If it fails, all ranks raise an error.

        Raises the work's own error on rank 0, and DistributedError on the others.
        """
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
        """Turn torch's error about a lost rank into DistributedError that names `kept()`."""
        try:
            yield
        except CFMError:
            raise
        except RuntimeError as error:
            if self.size == 1 or not _TALK.search(str(error)):
                raise
            saved = "no checkpoint was saved yet"
            if kept():
                saved = f"the last checkpoint is {kept()}; --resume starts from it"
            why = self.link.difference() if self.link is not None else ""
            raise DistributedError(
                f"rank {self.rank} lost the others: {why} ({saved[0].upper()}{saved[1:]}.)"
                if why
                else f"rank {self.rank} lost the others: {_first_line(error)} One of them died or "
                f"hangs; {saved}."
            ) from error


class Lost(RuntimeError):
    """Another rank has ended, or gives no sign of life."""


class Link:
    """What a rank knows of the others through their store: small values, and who is alive.

    A rank counts as dead after `timeout` seconds without a beat. `hosts` says that the store ends
    with rank 0's process, as it does without torchrun. Rank 0 then stays until the others have read
    its last values. The store is asked from other threads than the main one: a host that was
    stopped never answers, and a question cannot be cancelled.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float, hosts: bool) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.timeout, self.hosts = timeout, hosts
        # what this rank tells with each beat, and what can be said of that of all
        self.tell: Callable[[], Any] = lambda: None
        self.explain: Callable[[list[Any]], str] = lambda told: ""
        self._turn = 0
        self._heard = time.monotonic()  # when the store last answered
        self._left = threading.Event()
        store.set(f"beat/{rank}", "0")
        self._heart = threading.Thread(target=self._beat, args=(store.clone(),), daemon=True)
        self._heart.start()

    def gather(self, value: Any) -> list[Any]:
        """The small plain value of every rank, in order. Raises Lost."""
        self._turn += 1
        return self._aside(lambda: self._exchange(json.dumps(value)))

    def difference(self) -> str:
        """What the ranks told with their last beats, explained; "" if one has told nothing."""

        def told() -> list[Any]:
            beats = [self.store.get(f"beat/{rank}") for rank in range(self.size)]
            return [json.loads(beat.decode().partition(" ")[2] or "null") for beat in beats]

        with contextlib.suppress(RuntimeError, ValueError):
            found = self._aside(told, min(2.0, self.timeout))
            found[self.rank] = self.tell()  # its beat is up to a second old
            return self.explain(found) if all(found) else ""
        return ""

    def leave(self, failed: bool = False) -> None:
        """Say that this rank ends, so that no other waits; the store's host leaves last."""
        self._left.set()
        stay = min(2.0, self.timeout) if failed else self.timeout
        with contextlib.suppress(RuntimeError):
            self._aside(lambda: self._part(time.monotonic() + stay), stay + 1)

    def _exchange(self, mine: str) -> list[Any]:
        """Rank 0 collects the values and publishes all: each rank waits for one key at a time."""
        everyone = f"{self._turn}/all"
        if self.rank > 0:
            self.store.set(f"{self._turn}/{self.rank}", mine)
            return json.loads(self._wait(everyone, 0))
        keys = {f"{self._turn}/{other}": other for other in range(1, self.size)}
        found = [
            json.loads(mine),
            *(json.loads(self._wait(key, other)) for key, other in keys.items()),
        ]
        self.store.set(everyone, json.dumps(found))
        for old in (*keys, f"{self._turn - 1}/all"):
            self.store.delete_key(old)  # no rank needs it: all have asked for the next one
        return found

    def _part(self, end: float) -> None:
        self.store.set(f"left/{self.rank}", "")
        while self.hosts and self.rank == 0 and time.monotonic() < end:
            if all(self.store.check([f"left/{other}"]) for other in range(1, self.size)):
                return
            time.sleep(0.02)

    def _aside(self, work: Callable[[], Any], limit: float | None = None) -> Any:
        """The result of `work`, done in another thread.

        Raises Lost if the store is silent for `timeout` seconds, or after `limit` seconds.
        """
        found: list[Any] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                found.append(work())
            except BaseException as error:  # raised below, in the thread that waits
                failed.append(error)

        began = self._heard = time.monotonic()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        pause = 0.005
        while thread.is_alive():
            thread.join(pause)  # in pieces, so that a signal is handled
            pause = min(2 * pause, 0.2)
            now = time.monotonic()
            if thread.is_alive() and (
                now - began > limit if limit is not None else now - self._heard > self.timeout + 1
            ):
                raise Lost(
                    f"the store of the ranks has not answered for {now - self._heard:.0f} s; rank "
                    "0 may be dead."
                )
        if failed:
            raise failed[0]
        return found[0]

    def _beat(self, store: Any) -> None:
        count = 0
        while not self._left.wait(min(1.0, self.timeout / 10)):
            count += 1
            told = ""
            with contextlib.suppress(Exception):  # whatever it reads is being changed meanwhile
                told = json.dumps(self.tell())
            try:
                store.set(f"beat/{self.rank}", f"{count} {told}")
            except RuntimeError:  # the store is gone, and the ranks that wait notice it, too
                return

    def _wait(self, key: str, other: int) -> bytes:
        """The value that rank `other` puts at `key`, after any time; Lost if it dies before."""
        began = seen = time.monotonic()
        beat, pause, notes = b"", 0.001, 0
        while not self.store.check([key]):
            # the key is asked for again: both may have come since the first look
            if self.store.check([f"left/{other}"]) and not self.store.check([key]):
                raise Lost(f"rank {other} has ended.")
            last = self.store.get(f"beat/{other}") if self.store.check([f"beat/{other}"]) else b""
            now = self._heard = time.monotonic()
            if last != beat:
                beat, seen = last, now
            elif now - seen > self.timeout:
                raise Lost(f"rank {other} gave no sign of life for {self.timeout:g} s.")
            if now - began > (notes + 1) * self.timeout:
                notes += 1
                self._say(
                    f"rank {other} is alive and has worked alone for {now - began:.0f} s; rank "
                    f"{self.rank} waits for it."
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.25, self.timeout / 20)
        return self.store.get(key)

    def _say(self, text: str) -> None:
        if self.rank <= 1:  # one of those that wait is enough
            print(f"cfm-lite: note: {text}", file=sys.stderr, flush=True)


ALONE = World()

# Never freed. If DDP is the last to hold a group, as in an error's traceback, it frees it while it
# holds the interpreter's lock and waits for gloo's threads, which may wait for that lock (pytorch
# issue 56297).
_GROUPS: list[Any] = []


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text[:200].rstrip(".") + "."


def ranks_of_environment() -> tuple[int, int, int]:
    """(rank, size, local rank) from the variables of torchrun or a scheduler; else (0, 1, 0).

    Raises DistributedError for variables that are incomplete or contradict each other.

    >>> ranks_of_environment()  # without torchrun
    (0, 1, 0)
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
            f"the environment has {given}; RANK and WORLD_SIZE must both be whole numbers. Start "
            "with torchrun."
        ) from None
    if not 0 <= rank < size:
        raise DistributedError(
            f"RANK is {rank} and WORLD_SIZE {size}; the rank must lie in [0, {size - 1}]. Start "
            "with torchrun."
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise DistributedError(
            f"WORLD_SIZE is {size} but {' and '.join(missing)} are not set. Start with torchrun, "
            "which sets them."
        )
    return rank, size, local


@contextlib.contextmanager
def joined(device: torch.device | str = "cpu") -> Iterator[World]:
    """The world that this process was started in, joined for this block; `ALONE` without torchrun.

    Raises DistributedError if the ranks do not find each other within CFM_LITE_TIMEOUT seconds, as
    for a port that is in use.

    >>> with joined() as world:  # without torchrun
    ...     world.size
    1
    """
    rank, size, local = ranks_of_environment()
    if size == 1:
        yield ALONE
        return
    timeout = check_number(TIMEOUT, _number(os.environ.get(TIMEOUT, "300")), 0, 1e6, open_low=True)
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    if backend == "nccl":
        World(rank, size, local).place(torch.device(device))
    store = _meet(backend, rank, size, timeout)
    _GROUPS.append(dist.group.WORLD)
    # under torchrun the store belongs to the agent, and ends after the ranks
    hosts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # the count keeps the keys of two blocks apart
    store = dist.PrefixStore(f"cfm_lite/{len(_GROUPS)}", store.clone())
    link = Link(store, rank, size, timeout, hosts)
    world, failed = World(rank, size, local, link), True
    try:
        with world.watching():
            yield world
        failed = False
    finally:
        link.leave(failed)
        _part_with_group(seconds=min(5.0, timeout) if failed else None)


def _part_with_group(seconds: float | None) -> None:
    """Destroy the process group; after a failure in so many `seconds` at most.

    It would wait for a host that was stopped.
    """

    def destroy() -> None:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()

    if seconds is None:
        destroy()
        return
    thread = threading.Thread(target=destroy, daemon=True)
    thread.start()
    thread.join(seconds)


def _meet(backend: str, rank: int, size: int, timeout: float) -> Any:
    """Join the process group; the store at which the ranks met.

    It runs in a thread: a foreign program at that port may never answer, and torch's own timeout
    does not cover that.
    """
    failed: list[Exception] = []
    met: list[Any] = []
    limit = datetime.timedelta(seconds=timeout)

    def join() -> None:
        try:
            store, *_ = next(dist.rendezvous("env://", rank, size, timeout=limit))
            store.set_timeout(limit)
            prefixed = dist.PrefixStore("default_pg", store)
            dist.init_process_group(
                backend, store=prefixed, rank=rank, world_size=size, timeout=limit
            )
            met.append(store)
        except Exception as error:  # shown below, in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(2 * timeout + 5)
    if met:
        return met[0]
    reason = _first_line(failed[0]) if failed else f"no answer for {2 * timeout + 5:g} s."
    raise DistributedError(
        f"rank {rank} of {size} cannot join the others at "
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason} Is the port taken, or "
        "a rank missing? Choose another with torchrun --master-port, and start as many ranks as "
        "--nproc-per-node says."
    ) from (failed[0] if failed else None)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
