"""What is written of a benchmark: data/results/bench/NAME.json, a flat list of rows, each with all
that its number depends on.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cfm_lite import runs
from tools.benchmarks.harness import ROOT, Row

__all__ = ["facts", "write"]


def facts() -> dict[str, Any]:
    """What every number depends on: threads, torch, the machine and how busy it is, the commit, the
    command.
    """
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    here, words = runs.facts(), [word for word in sys.argv[1:] if not word.startswith("--out=")]
    if "--out" in words:  # where a file was written first is a matter of this machine
        del words[(at := words.index("--out")) : at + 2]
    return {
        "threads": torch.get_num_threads(),
        "torch": here["torch"],
        "python": here["python"],
        "machine": {"processor": here["processor"], "cores": here["cores"], "load_before": load},
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "tools.benchmarks", *words]),
    }


def write(folder: Path, name: str, rows: Sequence[Row], common: dict[str, Any]) -> Path | None:
    """`rows` as folder/NAME.json; None, and nothing is written, where the record there has more
    repeats.
    """
    path = folder / f"{name}.json"
    if path.exists() and _repeats(json.loads(path.read_text(encoding="utf-8"))) > max(
        row.repeats for row in rows
    ):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    records = [asdict(row) | {"met": row.met} | common for row in rows]
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _repeats(records: list[dict[str, Any]]) -> int:
    return max((record["repeats"] for record in records), default=0)


def _commit() -> str:
    """The commit of the checkout, with "+changes" if the library or a benchmark differs from it."""
    try:
        changed = _git("status", "--porcelain", "--", "cfm_lite", "tools/benchmarks")
        return _git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True
    ).stdout.strip()
