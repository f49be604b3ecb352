"""Tables of paired differences, from rows alone."""

from collections.abc import Sequence

from cfm_lite.experiments.measures import Row
from cfm_lite.experiments.statistics import differences

__all__ = ["report"]


def report(rows: Sequence[Row], metric: str, nfe: int) -> str:
    """A text table of the paired differences to FM, which names no winner whose interval contains zero."""
    lines = [f"{metric} at {nfe} evaluations, difference to fm (95 % bootstrap interval over seeds)"]
    for d in differences(rows, metric, nfe):
        interval = f"[{d.low:+.4f}, {d.high:+.4f}]" if d.seeds >= 2 else "no interval: one seed"
        verdict = ("differs" if d.clear else "no clear difference") if d.seeds >= 2 else ""
        lines.append(f"  {d.method:<18} {d.mean:+.4f}  {interval}  n = {d.seeds}  {verdict}")
    return "\n".join(lines)
