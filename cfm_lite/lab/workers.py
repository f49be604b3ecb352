"""Where jobs run: in this process one after the other, or in parallel processes with one thread
each.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cfm_lite.errors import CFMError, DistributedError
from cfm_lite.lab.jobs import Job, run_job
from cfm_lite.models.classifier import one_thread
from cfm_lite.runs import Terminated

__all__ = ["Outcome", "in_process", "in_workers"]

Tick = Callable[[int, float], None]  # (job number, share done)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `error` is what was raised, empty if all went well."""

    label: str
    error: str = ""
    stopped: bool = False


def in_process(
    jobs: Sequence[Job], parts: Path, device: str, keep: str, workers: int, tick: Tick
) -> Iterator[Outcome]:
    """Run `jobs` here, one after the other. A CPU uses one thread, so the numbers equal those of
    workers.
    """
    with one_thread():
        for number, job in enumerate(jobs):
            outcome = _attempt(
                job, parts, device, keep, lambda share, number=number: tick(number, share)
            )
            tick(number, 1.0)
            yield outcome


def in_workers(
    jobs: Sequence[Job], parts: Path, device: str, keep: str, workers: int, tick: Tick
) -> Iterator[Outcome]:
    """Run `jobs` in up to `workers` processes. Leaving the loop early, by an interrupt, ends them
    in seconds.

    Raises DistributedError if a process dies.
    """
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=_start, initargs=(events,)
    )
    try:
        left = {
            pool.submit(_work, number, job, parts, device, keep): number
            for number, job in enumerate(jobs)
        }
        for future in _as_they_end(list(left)):
            with contextlib.suppress(queue.Empty):
                while True:
                    tick(*events.get_nowait())
            if future is not None:
                tick(left.pop(future), 1.0)
                yield _result(future)
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()  # a training saves first, if it has a folder
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_they_end(
    futures: Collection[Future[Outcome]], seconds: float = 0.2
) -> Iterator[Future[Outcome] | None]:
    """Each future when it is done, and None whenever none was for so many seconds.

    A thread waits for them, because an interrupt reaches the main thread alone. In the middle of
    concurrent.futures.wait it would leave locks of futures taken; the thread of the pool would then
    wait for these, and the end of the pool for that thread.
    """
    done: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()

    def listen() -> None:
        for future in as_completed(futures):
            done.put(future)

    threading.Thread(target=listen, daemon=True).start()
    left = len(futures)
    while left:
        try:
            future = done.get(timeout=seconds)
        except queue.Empty:
            yield None
        else:
            left -= 1
            yield future


def _result(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise DistributedError(
            "a worker died, perhaps because memory ran out; try again with fewer --workers."
        ) from error


def _attempt(
    job: Job, parts: Path, device: str, keep: str, report: Callable[[float], None]
) -> Outcome:
    """Run a job. Its own errors are an outcome, an interrupt is not."""
    try:
        run_job(job, parts, device, keep=keep, report=report)
    except CFMError as error:
        return Outcome(job.label, f"{type(error).__name__}: {error}")
    except Exception:
        return Outcome(job.label, traceback.format_exc())
    return Outcome(job.label)


class _Worker:
    """The state of this process, if it is a worker."""

    events: Any = None
    busy = False
    stopping = False


def _start(events: Any) -> None:
    """Make this process a worker with one thread. It handles SIGTERM; Ctrl-C goes to the parent
    alone.
    """
    torch.set_num_threads(1)
    _Worker.events = events
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, _stop)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # no worker outlives its parent
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    _Worker.stopping = True
    if _Worker.busy:
        raise Terminated


def _work(number: int, job: Job, parts: Path, device: str, keep: str) -> Outcome:
    if _Worker.stopping:
        return Outcome(job.label, stopped=True)
    _Worker.busy = True
    try:
        return _attempt(job, parts, device, keep, lambda share: _Worker.events.put((number, share)))
    except (KeyboardInterrupt, Terminated):
        _Worker.stopping = True  # a training handles the signal itself, so `_stop` was not called
        return Outcome(job.label, stopped=True)
    finally:
        _Worker.busy = False
