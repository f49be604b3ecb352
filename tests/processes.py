"""Processes for tests: forked ones, which import nothing again and cost a tenth of a second, and
new interpreters.
"""

import contextlib
import functools
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
    """The process id of a child that does `work` and is gone, with its exit code if it gives one,
    and 99 after an error.
    """
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


ROOT = Path(__file__).parents[1]


@dataclass
class Ranks:
    """Processes that were started as ranks of one world."""

    children: list[int]
    outputs: list[Path]

    def wait(self, seconds: float = 240) -> list[int]:
        """The exit code of each rank, minus the signal for those that were killed; what is left
        after `seconds`, which only end a hang, is killed: None.
        """
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
        return [path.read_text(errors="replace") if path.exists() else "" for path in self.outputs]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        os.kill(self.children[rank], number)


_HELD: list[socket.socket] = []  # as long as this process lives


def reserved_port() -> int:
    """A port of this machine for a server that a test starts: nobody else is given it while this
    process lives.

    A port that is only asked for and closed again may be given to another process before the server
    binds it. Here the socket stays bound. A server may still bind and listen there, because both
    sides set SO_REUSEADDR and this one does not listen.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return held.getsockname()[1]


def ranks(
    works: Sequence[Callable[[], object]],
    folder: Path,
    port: int | None = None,
    timeout: float = 20,
    **environment: str,
) -> Ranks:
    """Start one forked process per work, as the ranks of a world on this machine."""
    port = port or reserved_port()
    shared = {
        "WORLD_SIZE": str(len(works)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CFM_LITE_TIMEOUT": str(timeout),
    }
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


def interpreters(
    work: str, n: int, folder: Path, *words: str, timeout: float = 60, **environment: str
) -> Ranks:
    """Start `work`, "module:function" of a world and of `words`, in n new interpreters, as torchrun
    starts ranks.

    Forked ranks share what the first process drew and hashed: its random state, the order of its
    sets, the maps of compiled code.
    """
    module, _, function = work.partition(":")
    code = f"import sys; from {module} import {function}; from tests.processes import joining; sys.exit(joining({function}, sys.argv[1:]))"
    port = reserved_port()
    shared = {
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CFM_LITE_TIMEOUT": str(timeout),
    }
    outputs = [folder / f"rank-{port}-{rank}.txt" for rank in range(n)]
    children = []
    for rank, output in enumerate(outputs):
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "PYTHONHASHSEED": str(rank + 1),
            "PYTHONPATH": str(ROOT),
        }
        environ = os.environ | shared | own | environment
        start = functools.partial(
            os.execve, sys.executable, [sys.executable, "-c", code, *words], environ
        )
        children.append(forked(start, output))
    return Ranks(children, outputs)


def joining(work: Callable[..., object], words: Sequence[str]) -> int:
    """What each of the `interpreters` does."""
    import torch

    from cfm_lite.engine.parallel import joined

    torch.set_num_threads(1)
    with joined() as world:
        work(world, *words)
    return 0
