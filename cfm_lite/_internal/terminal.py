"""How a command uses the terminal: safe streams, notes for warnings, one line for each error.

The exit code is that of the error (2 wrong argument, 3 data, 4 checkpoint, 5 divergence, 6 disk
full), and 130 after Ctrl-C.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import tyro
from tyro.conf import FlagCreatePairsOff

from cfm_lite.errors import CFMError, DataError, DistributedError

__all__ = ["Notes", "fail", "run_command"]

NARROWEST = 40  # columns; the layout of the help in a single one would never end


class Notes:
    """Shows each warning once, as a short note."""

    shown: ClassVar[set[str]] = set()

    @classmethod
    def show(cls, message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in cls.shown:
            cls.shown.add(text)
            print(f"cfm-lite: note: {text}", file=sys.stderr)


def run_command(commands: Any, words: Sequence[str], description: str | None) -> int:
    """Run the command that `words` name; returns the exit code.

    `commands` is a union of dataclasses with `run`. With --debug an error shows its traceback.
    """
    debug, words = "--debug" in words, [word for word in words if word != "--debug"]
    _make_streams_safe()
    try:
        try:
            return _run(_parsed(commands, words, description), debug)
        finally:
            sys.stdout.flush()  # a closed reader is noticed here, and not when Python ends
    except OSError as error:  # a closed pipe, such as `| head`, or a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0 if isinstance(error, BrokenPipeError) else fail(error)
    except Exception:  # a bug, or --debug
        _leave_for_torchrun(traceback.format_exc())
        raise


def _leave_for_torchrun(text: str, later: bool = False) -> None:
    """Write why this rank failed into the file from which torchrun prints its last message.

    Without it torchrun prints 30 lines without the reason. `later` says that another rank failed
    before, and is the cause. The file is that of torch.distributed.elastic's `@record`, which would
    import torch for a mistyped option, and show a traceback.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        when = str(int(time.time()) + later)  # torchrun counts in seconds
        said = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": when}}
        with contextlib.suppress(OSError), open(file, "w", encoding="utf-8") as record:
            json.dump({"message": said}, record)


def _say_error(text: str, later: bool = False) -> None:
    """The one line of an error, with the rank where it is not the first."""
    rank = os.environ.get("RANK", "0")
    line = f"cfm-lite{'' if rank == '0' else f' [rank {rank}]'}: error: {text}"
    print(line, file=sys.stderr)
    _leave_for_torchrun(line, later)


def _make_streams_safe() -> None:
    """Make every stream usable: closed, without Unicode, or very narrow.

    A closed one drops what is printed, one without Unicode shows question marks, and a narrow one
    counts as wider.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def _parsed(commands: Any, words: Sequence[str], description: str | None) -> Any:
    """One of `commands` from `words`.

    For a wrong argument tyro's box of many lines becomes one line, and the process exits with 2.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command = tyro.cli(
                commands,
                args=words,
                prog="cfm-lite",
                description=description,
                config=(FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code:
            text = _in_one_line(said.getvalue())
            if re.fullmatch(r"Unrecognized options: --[^.]*\S+\.", text) and "train" in words[:2]:
                text += " Fields of a recipe are set with --set NAME=VALUE."
            named = " ".join(words[: 2 if words[:1] == ["scale"] else 1])
            command = (
                f"cfm-lite {named}" if named and "The commands are" not in text else "cfm-lite"
            )
            _say_error(f"{text} See {command} --help.")
        raise
    _refuse_empty_paths(words, command)
    _refuse_twice(words, command)
    # an option counts as given, even with the value of its default
    command.words = frozenset(_option(word, command) for word in words if word.startswith("--"))
    return command


def _refuse_empty_paths(words: Sequence[str], command: Any) -> None:
    """Exit with 2 for a path without a letter: it would mean the current folder."""
    for word, following in zip(words, [*words[1:], None]):
        name, equals, value = word.partition("=")
        if not name.startswith("--") or (value if equals else following) != "":
            continue
        if isinstance(getattr(command, _option(name, command), None), Path):
            _say_error(
                f"{name} is empty, as an unset variable is. Give a path; the current folder is '.'."
            )
            raise SystemExit(2)


def _refuse_twice(words: Sequence[str], command: Any) -> None:
    """Exit with 2 for an option that stands there twice: tyro would forget the first one."""
    seen: set[str] = set()
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name == "--":
            continue
        if name in seen:
            several = isinstance(getattr(command, _option(name, command), None), tuple)
            once = "with all its values behind it" if several else "with the value that is meant"
            _say_error(
                f"{name} is given twice, and only the last would count. Give it once, {once}."
            )
            raise SystemExit(2)
        seen.add(name)


def _option(word: str, command: Any) -> str:
    """The field that --some-option, --some_option=value or --no-resume sets.

    --no-compile is a field of its own.
    """
    name = word[2:].partition("=")[0].replace("-", "_")
    return name if hasattr(command, name) else name.removeprefix("no_")


def _in_one_line(box: str) -> str:
    rows = [row.strip("│|╭╮╰╯ ") for row in box.splitlines()[1:]]  # the first one is a title
    text = " ".join(row for row in rows if row.strip("─- "))
    text = re.sub(
        r"no type matching (?:{None}\|)?(\S+) could be instantiated from \[(.*?)\]",
        r"\2 is not of type \1",
        text,
    )
    text = re.sub(r"'None', |, 'None'", "", text)  # what a choice is that was not made
    said = re.split(
        r" (?:Got errors|Perhaps you meant|Argument helptext|Available subcommands|For full "
        r"helptext)\b",
        text,
    )[0]
    meant = re.search(r"Perhaps you meant: (\S+)", text)
    commands = re.search(r"Available subcommands: (.*?) For full", text)
    other = re.search(r"misplaced options: (\S+) \(applied to ([^)]*)\)", text)
    hint = f" The commands are {commands[1]}." if commands else ""
    if meant:
        hint = f" Did you mean {meant[1]}?"
    if other:  # an option of another command, such as of scale train in train
        said = f"{other[2]} has no option {other[1]}"
        full = f"cfm-lite scale {other[2].split()[-1]}"
        hint = f" {full} has it." if f"in {full} --help" in text else ""
    return said.rstrip(".") + "." + hint


def _run(command: Any, debug: bool) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = Notes.show
            command.run()
    except KeyboardInterrupt:
        print(f"cfm-lite: stopped. {command.again}".rstrip(), file=sys.stderr)
        return 130
    except (CFMError, OSError, MemoryError, RuntimeError) as error:
        if debug or _explained(error) is None:
            raise
        return fail(error)
    return 0


def fail(error: Exception) -> int:
    """Say what went wrong, in one line; the exit code."""
    _say_error(str(_explained(error)), later=isinstance(error, DistributedError))
    if isinstance(error, CFMError):
        return error.exit_code
    return DataError.exit_code if isinstance(error, OSError) else 1


def _explained(error: Exception) -> str | None:
    """What to say of an error that is not a bug: one of cfm_lite, of a file, or of too little
    memory.
    """
    if isinstance(error, CFMError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return (
            f"{error.filename or 'what was to be printed'}: {error.strerror or error}. Give "
            "another path."
        )
    text = str(error)
    # by name, because the second is torch's, which is not imported here
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    if named or "allocate memory" in text or "not enough memory" in text:
        return (
            f"there is not enough memory ({text.splitlines()[0] if text else 'none left'}). Use a "
            "smaller batch or a smaller model."
        )
    return None
