"""`python -m tools.benchmarks gpu`: the parts in turn, each within its share of the time, recorded
as it ends, and a table of the goals.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cfm_lite import runs
from cfm_lite._internal.checks import check_choice
from cfm_lite.errors import CFMError
from tools.benchmarks.gpu.clock import clear, device_facts
from tools.benchmarks.gpu.parts import Part, parts_of
from tools.benchmarks.gpu.plan import FULL, TINY, Bench
from tools.benchmarks.harness import ROOT, CannotRun, NotRun, Row, compiling
from tools.benchmarks.record import facts

__all__ = ["main"]

Result = Row | NotRun


def main(argv: Sequence[str]) -> int:
    """Run the parts; 0 also where a goal is missed or a part fails, for both are results."""
    options = _options(argv)
    try:
        bench = Bench(TINY if options.tiny else FULL, _place(options.device), options.official)
        parts = parts_of(bench)
        for name in options.parts:
            check_choice("part", name, parts)
        if not options.tiny and not bench.on_gpu:
            raise CannotRun(
                "the full sizes need a CUDA device; --device cpu --tiny tries the program itself."
            )
    except CFMError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    folder = options.out or ROOT / ("build/bench-gpu-tiny" if options.tiny else "data/results/gpu")
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.config.recompile_limit = 64  # one entry for each shape of the block
    end, every = time.monotonic() + 60 * options.minutes, []
    bench.compiles = _compiles(bench)
    for name, (share, part) in parts.items():
        if not options.parts or name in options.parts:
            rows, state = _run(name, share, part, bench, end)
            _write(
                folder / f"{name}.json",
                rows,
                facts() | state | {"plan": bench.plan.name, "compiled": bench.compiles},
            )
            every += rows
    print(_table(every))
    return 0


def _place(name: str) -> torch.device:
    """The device with its number, which some of CUDA's tools insist on."""
    device = runs.pick_device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _compiles(bench: Bench) -> bool:
    """Whether torch.compile works; without it every step runs eagerly, and the rows say so."""
    try:
        compiling(
            lambda: torch.compile(torch.sin, backend=bench.plan.backend)(
                torch.ones(8, device=bench.device)
            )
        )
    except CannotRun as error:
        print(f"{error}: the steps run eagerly", flush=True)
        return False
    return True


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks gpu", description="Speed and memory of SiT on one GPU."
    )
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="tiny networks, to try the program; the numbers mean nothing",
    )
    parser.add_argument(
        "--official",
        type=Path,
        help="folder of the official SiT repository, for the other side (default: our own parts)",
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="all parts together (9.5)")
    parser.add_argument("--parts", nargs="*", default=[], help="only these")
    parser.add_argument("--out", type=Path, help="folder for NAME.json (default: data/results/gpu)")
    return parser.parse_args(argv)


def _run(
    name: str, share: float, part: Part, bench: Bench, end: float
) -> tuple[list[Result], dict[str, Any]]:
    """The rows of one part, and the state of the device as it ends; what could not be measured is a
    row too.
    """
    now, rows = time.monotonic(), []
    print(f"{name}:", flush=True)
    bench.deadline = min(now + share, end)
    for row in (
        _measured(name, part, bench) if now + share / 3 < end else [NotRun(name, "out of time")]
    ):
        print(f"  {row}", flush=True)
        rows.append(row)
    state = device_facts(bench.device)
    clear(bench)
    print(f"  {time.monotonic() - now:.0f} s of {share:g} s", flush=True)
    return rows, state


def _measured(name: str, part: Part, bench: Bench) -> Iterator[Result]:
    try:
        yield from part(bench)
    except CannotRun as error:
        yield NotRun(name, str(error))
    except Exception as error:  # out of memory, a kernel that is not there: the other parts go on
        yield NotRun(
            name, f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        )


def _write(path: Path, rows: list[Result], common: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        asdict(row) | ({"met": row.met} if isinstance(row, Row) else {}) | common for row in rows
    ]
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(rows: list[Result]) -> str:
    """Every goal: what was measured, and whether it is met."""
    lines = ["", f"{'goal':<72} {'wanted':>12} {'measured':>12}"]
    for row in rows:
        if isinstance(row, NotRun):
            lines.append(f"{row.name:<72} {'':>12} {'not run':>12}  {row.reason}")
        elif row.met is not None:
            wanted, found = f"{row.sense} {row.goal:g}{row.unit}", f"{row.ratio:.4g}{row.unit}"
            lines.append(
                f"{row.name:<72} {wanted:>12} {found:>12}  {'met' if row.met else 'MISSED'}"
            )
    return "\n".join(lines)
