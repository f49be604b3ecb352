"""Damage, made in the same order every time, and what became of it: named, seen without a name,
harmless, silent, or a bare error.
"""

import json
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cfm_lite.data.shared import alone
from cfm_lite.errors import CFMError
from tests.faults.counts import FOLDER


def keep(name: str, facts: dict[str, Any]) -> None:
    """Add `facts` to build/faults/NAME.json, which the long tier leaves behind; each test has a key
    of its own there.

    In the fast tier this does nothing: a count of a few trials is nothing to quote.
    """
    if not os.environ.get("CFM_LITE_FAULTS"):
        return
    path = FOLDER / f"{name}.json"
    with alone(FOLDER, "index"):  # the workers of pytest are processes
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(
            json.dumps(known | facts, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


def damaged(content: bytes, trials: int, seed: int = 0, head: int | None = None) -> Iterator[bytes]:
    """`trials` damaged copies: a flipped bit, a cut, a block of zeros in turn, at random places
    (below `head`, if given).
    """
    rng = random.Random(seed)
    made = 0
    while made < trials:
        bad, at = bytearray(content), rng.randrange(head or len(content))
        if made % 3 == 0:
            bad[at] ^= 1 << rng.randrange(8)
        elif made % 3 == 1:
            bad = bad[:at]
        else:
            bad[at : at + 512] = bytes(len(bad[at : at + 512]))
        if bad != content:
            made += 1
            yield bytes(bad)


def sweep(
    path: Path,
    read: Callable[[], Any],
    trials: int,
    *,
    head: int | None = None,
    same: Callable[[Any, Any], bool] = lambda a, b: False,
    named: str | None = None,
) -> Counter[str]:
    """Damage the file `trials` times, read it each time, put it back; counts what came of it, and
    fails on a bare error.

    `same(a, b)` says whether what was read is what the whole file holds: such damage is harmless.
    `named` must be in a message.
    """
    good, right, seen = path.read_bytes(), read(), Counter[str]()
    for bad in damaged(good, trials, head=head):
        path.write_bytes(bad)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read()
        except CFMError as error:
            seen["named" if (named or path.name) in str(error) else "unnamed"] += 1
        else:
            seen["harmless" if same(found, right) else "silent"] += 1
    path.write_bytes(good)
    return seen
