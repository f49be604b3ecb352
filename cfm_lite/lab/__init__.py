"""Paired experiments: methods x seeds x samplers from one starting point, with controls without
training.

`arms` are what is compared, `measures` what is measured, and `suites` the experiments. `jobs`,
`sweep` and `store` run them; they can be stopped at any time. `statistics` compares the rows, and
`figures` draws those of a suite.

Results are flat rows, one per method x seed x setting x metric. Means and intervals are computed
from the rows, never stored.
"""

from cfm_lite.lab.arms import ARMS, Arm, balanced_labels, draw_samples, trained_recipe, velocity
from cfm_lite.lab.jobs import Trial
from cfm_lite.lab.measures import (
    Row,
    Sampling,
    judge_of,
    measure,
    row_base,
    rows_of,
)
from cfm_lite.lab.statistics import Difference, differences, paired_difference, report
from cfm_lite.lab.store import Store
from cfm_lite.lab.suites import SUITES, trials
from cfm_lite.lab.sweep import compare, plan

__all__ = [
    "ARMS",
    "SUITES",
    "Arm",
    "Difference",
    "Row",
    "Sampling",
    "Store",
    "Trial",
    "balanced_labels",
    "compare",
    "differences",
    "draw_samples",
    "judge_of",
    "measure",
    "paired_difference",
    "plan",
    "report",
    "row_base",
    "rows_of",
    "trained_recipe",
    "trials",
    "velocity",
]
