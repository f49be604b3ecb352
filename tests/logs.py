"""What the lines of log.jsonl say, without what a machine measured: two equal runs have equal
numbers, not equal times.
"""

import json
from pathlib import Path
from typing import Any

MEASURED = ("images_per_second", "seconds", "memory", "mfu")


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's log."""
    return [
        json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Every line, with the numbers alone that the recipe decides: step, terms, loss, gradient norm,
    learning rate.
    """
    return [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in lines(folder)
    ]
