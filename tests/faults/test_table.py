"""The table of promises counts what the long tier left, and hides no failure."""

import json

import pytest

from tests.faults import table

FAILED = {  # files as the long tier leaves them, with one failure in each
    "kills": {
        "kills": 9,
        "inside": 5,
        "lost": 1,
        "different": 0,
        "naive_kills": 3,
        "naive_lost": 2,
    },
    "fault_points": {"EIO": {"calls that failed": 9, "lost": 1}},
    "corruptions": {"trials": 9, "flips": 3, "truncations": 3, "zeroed": 2},
    "resume-fm": {"stops": 9, "differing": 1},
    "signals": {"requests": 9, "lost": 0, "codes": 0, "late": 1, "different": 0},
    "rank_kills": {"kills": 9, "inside": 5, "hung": 0, "unclear": 1, "lost": 0, "different": 0},
    "planted_numbers": {"places": 9, "reached_a_parameter": 1},
    "losses_0": {"calls": 9, "not_finite": 1},
    "runaway": {"runaway": 5, "good": 4, "stopped": 4, "false_alarms": 0},
    "api": {
        "calls": 9,
        "bare_tracebacks": 0,
        "changed_arguments": 0,
        "touched_states": 1,
        "functions": 2,
    },
    "api_exhaustive": {"calls": 9, "bare_tracebacks": 1},
    "command_lines_0": {"lines": 9, "tracebacks": 1},
    "data": {"png": {"trials": 4, "named": 4}, "npy": {"trials": 5, "named": 4, "silent": 1}},
    "data_changes": {"builders killed -9": {"killed": 9, "inside a write": 5, "different": 1}},
    "downloads": {str(i): {"seen as whole": i == 0} for i in range(9)},
    "attacks": {str(i): {"ran": i == 0, "wrote": False, "code": 0} for i in range(9)},
    "mutants": {"mutants": 9, "killed": 8},
}


def test_every_promise_shows_its_trials_and_its_failure(tmp_path):
    for name, counts in FAILED.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(counts))
    rows = list(table.rows(tmp_path))
    assert len(rows) == len(table.PROMISES) == len(FAILED)
    assert {row["promise"]: (row["trials"], row["failures"]) for row in rows} == {
        row["promise"]: (9, 1) for row in rows
    }


def test_files_of_one_promise_are_added(tmp_path):
    for name, counts in FAILED.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(counts))
    (tmp_path / "losses_1.json").write_text(json.dumps({"calls": 100, "not_finite": 0}))
    assert {"trials": 109, "failures": 1}.items() <= next(
        row for row in table.rows(tmp_path) if row["promise"].startswith("losses")
    ).items()


def test_without_all_counts_there_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="make test-faults"):
        list(table.rows(tmp_path))
