"""`python -m tools.benchmarks [NAME ...] [--quick]`: every ratio with its goal, printed as it is
measured, then recorded.

`python -m tools.benchmarks gpu` is another program: what only a GPU can show
(tools/benchmarks/gpu).
"""

import argparse
import importlib
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from cfm_lite._internal.checks import check_choice, check_number
from cfm_lite.errors import ConfigError
from tools.benchmarks.harness import ROOT, CannotRun, Clock, NotRun, Row
from tools.benchmarks.record import facts, write

NAMES = (
    "alignment",
    "negatives",
    "sampler",
    "toy",
    "scale",
    "loader",
    "sit",
    "unet",
    "dispersive",
    "coverage",
    "save",
    "trees",
    "explorers",
)  # the last needs a browser
LONG = ("unet_quality",)  # hours: it runs only if it is named


def main() -> int:
    """Run the benchmarks named on the command line, or all. Returns 0 even if goals are missed.

    A slow machine is no error.
    """
    if sys.argv[1:2] == ["gpu"]:
        return importlib.import_module("tools.benchmarks.gpu.main").main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks", description="Measured ratios against published packages."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which to run: {', '.join(NAMES)} (all of these if none is named); for hours: "
        f"{', '.join(LONG)}",
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7 or more")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch, the same for both sides (1)"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of training for each network of {LONG[0]} (1200)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data" / "results" / "bench", help="folder for NAME.json"
    )
    options = parser.parse_args()
    try:
        for name in options.names:
            check_choice("the name of a benchmark", name, (*NAMES, *LONG))
        if options.seconds is not None:
            check_number("--seconds", options.seconds, 0.0, math.inf, open_low=True)
            if not set(LONG) & set(options.names):
                raise ConfigError(
                    f"--seconds is read by {LONG[0]} alone; name it, or leave it out."
                )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    torch.set_num_threads(options.threads)
    for name in options.names or NAMES:
        _run(name, Clock(options.quick, options.seconds or Clock.seconds), options.out)
    return 0


def _run(name: str, clock: Clock, folder: Path) -> None:
    common, rows = facts(), []
    load, cores = common["machine"]["load_before"], common["machine"]["cores"]
    print(
        f"{name}: {common['threads']} of {cores} cores, torch {common['torch']}, load {load}, "
        f"{common['machine']['processor']}",
        flush=True,
    )
    try:
        for row in _rows(name, clock):
            print(f"  {row}", flush=True)
            if isinstance(row, Row):
                rows.append(row)
    finally:  # what was measured is kept, whatever fails after it
        if rows:
            path = write(folder, name, rows, common)
            print(
                f"  -> {path}"
                if path
                else f"  {folder / name}.json holds more repeats; it stays as it is",
                flush=True,
            )


def _rows(name: str, clock: Clock) -> Iterator[Row | NotRun]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other packages, at import
        try:
            yield from importlib.import_module(f"tools.benchmarks.{name}").rows(clock)
        except CannotRun as error:
            yield NotRun(name, str(error))


if __name__ == "__main__":
    sys.exit(main())
