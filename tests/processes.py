"""Forked processes for tests: nothing has to be imported again, so a rank costs a tenth of a second."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def forked(work: Callable[[], object], output: Path | None = None) -> int:
    """The process id of a child that does `work` and is gone, with its exit code if it gives one, and 99 after an error."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        if output is not None:
            with open(output, "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        result = work()
        status = result if isinstance(result, int) else 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 99
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclass
class Ranks:
    """Processes that were started as ranks of one world."""

    children: list[int]
    outputs: list[Path]

    def wait(self, seconds: float = 60) -> list[int]:
        """The exit code of each rank, minus the signal for those that were killed; what is left after `seconds` is killed: None."""
        codes: dict[int, int] = {}
        end = time.monotonic() + seconds
        while len(codes) < len(self.children) and time.monotonic() < end:
            for child in self.children:
                if child not in codes:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        codes[child] = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        for child in self.children:
            if child not in codes:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        if len(codes) < len(self.children):
            raise AssertionError(f"ranks still ran after {seconds} s: " + "\n".join(self.texts()))
        return [codes[child] for child in self.children]

    def texts(self) -> list[str]:
        """What each rank printed."""
        return [path.read_text(errors="replace") for path in self.outputs]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        os.kill(self.children[rank], number)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(works: Sequence[Callable[[], object]], folder: Path, port: int | None = None, timeout: float = 20, **environment: str) -> Ranks:
    """Start one forked process per work, as the ranks of a world on this machine."""
    port = port or free_port()
    shared = {"WORLD_SIZE": str(len(works)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CFM_LITE_TIMEOUT": str(timeout)}
    children, outputs = [], []
    for rank, work in enumerate(works):

        def start(rank: int = rank, work: Callable[[], object] = work) -> object:
            os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment)
            return work()

        outputs.append(folder / f"rank-{port}-{rank}.txt")
        children.append(forked(start, outputs[-1]))
    return Ranks(children, outputs)


@contextlib.contextmanager
def eventually(seconds: float = 30):
    """A function that waits until its condition holds, and fails after `seconds`."""
    end = time.monotonic() + seconds

    def wait(condition: Callable[[], object]) -> None:
        while not condition():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.01)

    yield wait
