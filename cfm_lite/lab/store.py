"""The files of a suite: SUITE.json (the core's rows), SUITE.GROUP.json (an ablation's),
SUITE.info.json.

Rows are written one a line, sorted by variant, seed and arm. So a sweep that was stopped and
resumed leaves the same bytes as one that was not. What differs from run to run, such as times, is
kept in SUITE.info.json. While a sweep runs, each finished trial is a file in SUITE.parts/, under
the key that its rows carry.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from cfm_lite._internal.checks import parse_json
from cfm_lite._internal.places import expanded, listed
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import DataError
from cfm_lite.lab.arms import ARMS
from cfm_lite.lab.jobs import Trial
from cfm_lite.lab.measures import Row
from cfm_lite.lab.statistics import FIELDS, fault_of
from cfm_lite.lab.suites import SUITES
from cfm_lite.runs import write_json
from cfm_lite.runs.recipe import Recipe

__all__ = ["Store", "read_json", "read_rows", "write_rows"]


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. DataError names the file if it is missing or damaged."""
    try:
        return parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing. Run cfm-lite compare first, or give the right folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}. Remove it and run again.") from None


# what a row of a suite holds beside, and what some rows hold
_ROW = FIELDS | {"sampler": str, "guidance": int | float}
_SOME = {"variant": str, "key": str, "reason": str}


def read_rows(path: Path, fields: Mapping[str, Any] = _ROW) -> list[Row]:
    """The rows of a file that anyone may have edited. DataError names the first that is none."""
    rows = read_json(path)
    remedy = "Mend it, or remove the file and run again."
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {rows!r:.80}; it must be a list of rows. {remedy}")
    for number, row in enumerate(rows, 1):
        some = {name: kind for name, kind in _SOME.items() if isinstance(row, dict) and name in row}
        if isinstance(row, dict) and row.get("metric") == "diverged":
            some["reason"] = str
        fault = fault_of(row, {**fields, **some}) or _endless(row)
        if fault:
            raise DataError(
                f"{path}, row {number}, {fault}; each must be a mapping with {', '.join(fields)}, "
                f"as cfm-lite compare writes them. {remedy}"
            )
    return rows


def _read_part(path: Path) -> list[Row]:
    """The rows of a finished trial, which all carry the key that names its file."""
    rows = read_rows(path)
    if not rows or any(row.get("key") != path.stem for row in rows):
        raise DataError(
            f"{path} holds no rows, or rows of another key; all must carry the key {path.stem}. "
            "Remove it and run again."
        )
    return rows


def _endless(row: Row) -> str:
    """What is not finite in a row: JSON has no such numbers, though Python reads them."""
    wrong = (f"has {k} {v}" for k, v in row.items() if isinstance(v, float) and not isfinite(v))
    return next(wrong, "")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a JSON list with one row a line, whole or not at all."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_bytes(path, f"[\n{lines}\n]\n".encode())


class Store:
    """The files of one suite in the folder `out`."""

    def __init__(self, out: str | Path, suite: str) -> None:
        self.out, self.suite = expanded(out), suite
        self.info_path = self.out / f"{suite}.info.json"
        self.parts = self.out / f"{suite}.parts"

    def path(self, group: str) -> Path:
        """The file of a group's rows."""
        return self.out / f"{self.suite}{'' if group == 'core' else f'.{group}'}.json"

    def rows(self, group: str) -> list[Row]:
        """The rows of a group; empty if it was not run. DataError for a row that is none."""
        path = self.path(group)
        return read_rows(path) if path.exists() else []

    def info(self) -> dict[str, Any]:
        """The content of SUITE.info.json; empty if there is none."""
        info = read_json(self.info_path) if self.info_path.exists() else {}
        if not isinstance(info, dict):
            raise DataError(
                f"{self.info_path} holds {info!r:.80}; it must be a mapping. Restore it, "
                "or remove it and the suite's rows, and run again."
            )
        return info

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """DataError, with what differs, if existing rows of a group were made with other
        `settings`.
        """
        before = self.info().get("groups", {})
        for group, mine in settings.items():
            if not self.rows(group):
                continue
            changed = _changed(before.get(group, {}), json.loads(json.dumps(mine)))
            if changed:
                what = f"({', '.join(changed)} differ)"
                raise DataError(
                    f"{self.path(group)} was made with other settings {what}; choose another "
                    "--out, or remove it."
                )

    def finished(self) -> dict[str, list[Row]]:
        """{key: rows} of every finished trial of the suite, in a group's file or in
        SUITE.parts/.
        """
        found: dict[str, list[Row]] = {}
        for group in SUITES[self.suite].groups:
            mine: dict[str, list[Row]] = {}
            for row in self.rows(group):
                bare = {name: value for name, value in row.items() if name != "variant"}
                mine.setdefault(f"{row.get('variant', '')} {row.get('key')}", []).append(bare)
            found |= {rows[0]["key"]: rows for rows in mine.values() if rows[0].get("key")}
        return found | {path.stem: _read_part(path) for path in self._waiting()}

    def _waiting(self) -> list[Path]:
        return sorted(listed(self.parts, "*.json"))

    def assemble(self, trials: Iterable[Trial], mark: Mapping[str, Any] | None = None) -> None:
        """Move the finished ones of `trials` into the groups' files.

        `mark`, such as {"miniature": True}, is added to every row. Raises DataError if a file holds
        another trial in the same place.
        """
        done, trials = self.finished(), list(trials)
        for group in dict.fromkeys(trial.group for trial in trials):
            mine = [trial for trial in trials if trial.group == group and trial.key in done]
            self._assemble(group, mine, done, mark or {})
        taken = {trial.key for trial in trials}
        for path in [path for path in self._waiting() if path.stem in taken]:
            path.unlink()
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            self.parts.rmdir()

    def _assemble(
        self,
        group: str,
        trials: Sequence[Trial],
        done: Mapping[str, list[Row]],
        mark: Mapping[str, Any],
    ) -> None:
        table: dict[tuple[str, int, str], list[Row]] = {}
        for row in self.rows(group):
            table.setdefault((row.get("variant", ""), row["seed"], row["method"]), []).append(row)
        for trial in trials:
            place = (trial.variant, trial.recipe.seed, trial.arm)
            if place in table and table[place][0].get("key") != trial.key:
                seed = f"seed {trial.recipe.seed}"
                where = ", ".join(filter(None, (trial.arm, seed, trial.variant)))
                raise DataError(
                    f"{self.path(group)} holds other rows of {where}, made with other settings; "
                    "choose another --out, or remove it."
                )
            tag = {**mark, **({"variant": trial.variant} if group != "core" else {})}
            table[place] = [{**row, **tag} for row in done[trial.key]]
        if trials:
            variants, arms = list(SUITES[self.suite].groups[group].variants), list(ARMS)

            def rank(place: tuple[str, int, str]) -> tuple[Any, ...]:
                return (_rank(variants, place[0]), place[1], _rank(arms, place[2]))

            rows = [row for place in sorted(table, key=rank) for row in table[place]]
            write_rows(self.path(group), rows)

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Write SUITE.info.json."""
        write_json(self.info_path, info)


def _rank(known: Sequence[str], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ. Fields of the recipe are named one by one."""
    changed = [name for name in now if name != "recipe" and before.get(name) != now[name]]
    default = Recipe().as_dict()  # for fields that are younger than the file
    old, new = default | before.get("recipe", {}), default | now["recipe"]
    return [*changed, *(f"recipe.{name}" for name in new if old.get(name) != new[name])]
