"""Figures of the long tier, one JSON file each under build/faults: how many trials, how many of
each outcome.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "build" / "faults"


def write(name: str, **counts: Any) -> None:
    """Keep `counts` as build/faults/NAME.json."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
