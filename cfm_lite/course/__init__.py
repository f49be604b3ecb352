"""What the notebooks share: the fast-mode switch, exercise checks, and numbers that stand in text
because a cell computed them.

CFM_LITE_FAST=1 shrinks the work of every notebook; it is read here and nowhere else. Exercises are
numbered NOTEBOOK.COUNT; what an answer must satisfy stands in the file of its notebook beside this
one, so that a check cell does not give it away.
"""

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from cfm_lite._internal.checks import check_choice
from cfm_lite._internal.lazy import optional
from cfm_lite.data.root import checkout
from cfm_lite.errors import ConfigError, DataError

__all__ = [
    "FAST",
    "check",
    "exercise",
    "exercises",
    "number",
    "pick",
    "picture",
    "results",
    "say",
    "show",
    "solved",
    "table",
]

FAST = os.environ.get("CFM_LITE_FAST", "0").lower() not in ("", "0", "false", "no")

T = TypeVar("T")
Answer = Any
_CHECKS: dict[str, Callable[[Answer], str | None]] = {}
_OURS: dict[str, Answer] = {}  # answers that later cells of a notebook need


def pick(full: T, fast: T) -> T:
    """`full`, or in fast mode `fast`: the size of everything that takes time in a notebook.

    >>> pick(1000, fast=10)
    1000
    """
    return fast if FAST else full


def exercise(
    number: str, *, ours: Answer = None
) -> Callable[[Callable[[Answer], str | None]], Callable[[Answer], str | None]]:
    """Register the check of exercise `number`, such as "4.2": a function of the answer that returns
    a hint, or None where it is right.

    Where a later cell needs the answer, `ours` is the one that `solved` falls back on.
    """

    def register(judge: Callable[[Answer], str | None]) -> Callable[[Answer], str | None]:
        if number in _CHECKS:
            raise ConfigError(f"exercise {number} has two checks; give each exercise one.")
        _CHECKS[number] = judge
        if ours is not None:
            _OURS[number] = ours
        return judge

    return register


def exercises() -> tuple[str, ...]:
    """The numbers of all exercises, in the order of the course."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("nb"):
            importlib.import_module(f"{__name__}.{module.name}")
    return tuple(sorted(_CHECKS, key=lambda number: [int(part) for part in number.split(".")]))


def check(number: str, answer: Answer) -> bool:
    """Print whether `answer` solves exercise `number`, with a hint where it does not; returns the
    verdict and never raises.

    An answer that is still `...` or None, that raises, or for which there is no check, is not
    right; the hint says which.

    >>> right = check("4.1", None)  # doctest: +ELLIPSIS
    ✗ Exercise 4.1: not answered yet...
    """
    hint = _hint(number, answer)
    print(f"✓ Exercise {number}: correct." if hint is None else f"✗ Exercise {number}: {hint}")
    return hint is None


def solved(number: str, answer: Answer) -> Answer:
    """`answer` where it solves exercise `number`, else the course's own answer.

    So the cells after an exercise run for a reader who skipped it.
    """
    if _hint(number, answer) is None:
        return answer
    if number not in _OURS:
        raise ConfigError(
            f"the course keeps no answer to exercise {number}; it has those of "
            f"{', '.join(sorted(_OURS))}."
        )
    print(f"(Exercise {number} is still open. This cell uses the course's own answer.)")
    return _OURS[number]


def _hint(number: str, answer: Answer) -> str | None:
    try:
        check_choice("exercise", number, exercises())
        if answer is None or answer is ...:
            return "not answered yet. Replace the ... in this cell, and run it again."
        return _CHECKS[number](answer)
    except DataError as error:  # a missing file is not the learner's mistake
        return f"not checked: {error}"
    except Exception as error:  # whatever a learner's code raises is a hint, never a stop
        reason = " ".join(str(error).split())
        if isinstance(error, TypeError | AttributeError) and (
            "NoneType" in reason or "ellipsis" in reason
        ):
            return (
                "your code returns None or still holds a `...`; return a tensor (or what the "
                "exercise asks for)."
            )
        return f"your code raised {type(error).__name__}: {reason[:300]}"


def number(value: Any) -> float:
    """An answer that is a number, or a tensor of one, as a float; TypeError for anything else.

    >>> number(2)
    2.0
    """
    if value is None or value is ...:
        raise TypeError(f"a {type(value).__name__} is not a number")  # `_hint` says what to do
    if isinstance(value, str | bytes):  # float() would read its digits
        raise TypeError("that is text, not a number; leave out the quotation marks.")
    return float(value)


def say(text: str, /, *values: Any, **named: Any) -> Any:
    """Markdown for the end of a cell: `text` whose {:.2f} and {name:.2f} are filled in.

    So a number in prose comes from the run.

    >>> say("The gap is {gap:.2f}.", gap=0.314).data
    'The gap is 0.31.'
    """
    return optional("IPython.display", "notebooks").Markdown(text.format(*values, **named))


def table(head: str, rows: Iterable[Sequence[Any]], *formats: str) -> Any:
    """A table as Markdown: `head` names the columns ("method | distance"), one row per row.

    Text stays as it is; a number is written with the format of its column, such as ".2f".
    """
    lines = [f"| {head} |", "|---" * len(formats) + "|"]
    for row in rows:
        cells = [
            value if isinstance(value, str) else format(value, spec)
            for value, spec in zip(row, formats, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return optional("IPython.display", "notebooks").Markdown("\n".join(lines))


def show(*figures: Any) -> None:
    """Display several figures or tables from one cell."""
    display = optional("IPython.display", "notebooks").display  # only where a notebook runs
    for figure in figures:
        display(figure)


def results(name: str) -> list[dict[str, Any]]:
    """The rows of data/results/NAME.json, which a recorded command measured; DataError where this
    is not a checkout or they are missing.
    """
    return _stored(f"{name}.json", json.loads)


def picture(name: str) -> Any:
    """The figure data/results/NAME.png, which a recorded command drew; DataError as `results`."""
    image = optional("IPython.display", "notebooks").Image
    return _stored(f"{name}.png", lambda content: image(content, width=900))


def _stored(name: str, read: Callable[[bytes], T]) -> T:
    repository = checkout()
    if repository is None:
        raise DataError(
            f"data/results/{name} is part of the repository, and this package was installed "
            "without a checkout. Clone the repository, then pip install -e ."
        )
    path = repository / "data" / "results" / name
    try:
        return read(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it belongs to the repository: git checkout "
            "data/results."
        ) from None
