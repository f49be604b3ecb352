"""What is promised, how often it was tried, and how often it failed: python -m tests.faults.table

Gathers the counts that `make test-faults` and `make test-mutants` left in build/faults into
data/results/trust.json, and prints them. A test that fails leaves no counts, and without all of
them there is no table. Where n random trials gave no failure, the rate of failure is below 3/n with
95 % confidence, for faults drawn as these were; a list that was gone through, such as every call or
every step, bounds nothing beyond itself.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfm_lite import runs
from tests.faults.counts import FOLDER

ROOT = Path(__file__).resolve().parent.parent.parent
Counts = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """One line of the table: `counted` turns the counts of the files NAME*.json into (trials,
    failures, what else was counted).
    """

    promise: str
    how: str
    files: str
    counted: Callable[[list[Counts]], tuple[int, int, str]]
    drawn: bool = True  # at random


def total(counts: list[Counts], *names: str) -> int:
    return sum(count[name] for count in counts for name in names)


def plain(
    trials: str, *failures: str, note: str = ""
) -> Callable[[list[Counts]], tuple[int, int, str]]:
    return lambda counts: (
        total(counts, trials),
        total(counts, *failures),
        note.format_map(counts[0]),
    )


def parts(trials: str, *failures: str) -> Callable[[list[Counts]], tuple[int, int, str]]:
    """Of one file that holds the counts of several kinds by name."""

    def counted(counts: list[Counts]) -> tuple[int, int, str]:
        kinds = list(counts[0].values())
        return (
            sum(kind[trials] for kind in kinds),
            sum(kind.get(name, 0) for kind in kinds for name in failures),
            f"{len(kinds)} kinds",
        )

    return counted


def _corruptions(counts: list[Counts]) -> tuple[int, int, str]:
    found = total(counts, "flips", "truncations", "zeroed")
    return (
        counts[0]["trials"],
        counts[0]["trials"] - found,
        "a third each: a flipped bit, a cut, a block of zeros",
    )


def _runaway(counts: list[Counts]) -> tuple[int, int, str]:
    c = counts[0]
    return (
        c["runaway"] + c["good"],
        c["runaway"] - c["stopped"] + c["false_alarms"],
        "half of them good; the rule was chosen on these",
    )


def _builders(counts: list[Counts]) -> tuple[int, int, str]:
    c = counts[0]["builders killed -9"]
    return c["killed"], c["different"], f"{c['inside a write']} inside a write"


def _downloads(counts: list[Counts]) -> tuple[int, int, str]:
    kinds = list(counts[0].values())
    return (
        len(kinds),
        sum(bool(kind["seen as whole"]) for kind in kinds),
        "cut, too long, another page, silent, hanging, ...",
    )


def _attacks(counts: list[Counts]) -> tuple[int, int, str]:
    kinds = list(counts[0].values())
    return (
        len(kinds),
        sum(bool(kind["ran"] or kind["wrote"] or kind["code"]) for kind in kinds),
        "pickles, archives, links, bombs, tags",
    )


PROMISES = (
    Promise(
        "a saved checkpoint survives kill -9, and the resumed run ends as an unbroken one",
        "killed at random instants",
        "kills",
        plain(
            "kills",
            "lost",
            "different",
            note="{inside} inside a save; a naive save lost {naive_lost} of {naive_kills}",
        ),
    ),
    Promise(
        "a failed save loses no older checkpoint",
        "each of its calls fails once, with three errors",
        "fault_points",
        parts("calls that failed", "lost"),
        drawn=False,
    ),
    Promise(
        "a damaged checkpoint is refused by name", "random damage", "corruptions", _corruptions
    ),
    Promise(
        "a run that is stopped and resumed equals an unbroken one, bit for bit",
        "at every step of every objective",
        "resume-*",
        plain("stops", "differing"),
        drawn=False,
    ),
    Promise(
        "SIGTERM and Ctrl-C save the step that was done",
        "sent at random instants",
        "signals",
        plain("requests", "lost", "codes", "late", "different"),
    ),
    Promise(
        "a killed rank ends the other within its time-out, and nothing saved is lost",
        "one of two killed at random instants",
        "rank_kills",
        plain("kills", "hung", "unclear", "lost", "different", note="{inside} inside a save"),
    ),
    Promise(
        "NaN and Inf reach no parameter and no average",
        "planted in inputs, losses and gradients",
        "planted_numbers",
        plain("places", "reached_a_parameter"),
    ),
    Promise(
        "losses and gradients are finite",
        "batches of one, one class, duplicates, extreme norms",
        "losses_*",
        plain("calls", "not_finite"),
    ),
    Promise(
        "a run that diverges is stopped, a good one is not",
        "200 steps on a toy",
        "runaway",
        _runaway,
        drawn=False,
    ),
    Promise(
        "a wrong call gives a documented error, and touches nothing",
        "one argument made strange, at random",
        "api",
        plain(
            "calls",
            "bare_tracebacks",
            "changed_arguments",
            "touched_states",
            note="{functions} functions",
        ),
    ),
    Promise(
        "the same (a wrong call)",
        "every argument with every strange value",
        "api_exhaustive",
        plain("calls", "bare_tracebacks"),
        drawn=False,
    ),
    Promise(
        "a wrong command line gives one line and its exit code",
        "generated",
        "command_lines_*",
        plain("lines", "tracebacks"),
    ),
    Promise(
        "a damaged data file is never read as data",
        "random damage",
        "data",
        parts("trials", "silent", "unnamed"),
    ),
    Promise(
        "a killed builder of latents can be started again",
        "kill -9 at random instants",
        "data_changes",
        _builders,
    ),
    Promise(
        "a partial download never counts as whole",
        "a server that lies",
        "downloads",
        _downloads,
        drawn=False,
    ),
    Promise(
        "no file can run code, write elsewhere or fill the memory",
        "poisoned files, opened",
        "attacks",
        _attacks,
        drawn=False,
    ),
    Promise(
        "the tests find a mistake in the code",
        "seeded mistakes, one by one",
        "mutants",
        lambda counts: (counts[0]["mutants"], counts[0]["mutants"] - counts[0]["killed"], ""),
        drawn=False,
    ),
)


def rows(folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """A row for each promise; FileNotFoundError where its counts are missing."""
    for one in PROMISES:
        found = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob(f"{one.files}.json"))
        ]
        if not found:
            raise FileNotFoundError(
                f"{folder / one.files}.json is missing; run make test-faults and make test-mutants "
                "first"
            )
        trials, failures, note = one.counted(found)
        yield {
            "promise": one.promise,
            "how": one.how,
            "trials": trials,
            "failures": failures,
            "drawn": one.drawn,
            "note": note,
        }


def main() -> None:
    found = {"facts": runs.facts(), "rows": list(rows())}
    path = runs.write_json(ROOT / "data" / "results" / "trust.json", found)
    for row in found["rows"]:
        how = "; ".join(text for text in (row["how"], row["note"]) if text)
        print(f"{row['trials']:>8,} trials {row['failures']:>3} failures  {row['promise']} ({how})")
    print(f"wrote {path}; python -m tools.tables puts it into docs/trust.md")


if __name__ == "__main__":
    main()
