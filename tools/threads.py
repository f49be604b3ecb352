"""How far the lab's numbers depend on the number of threads: FM on the digits, with one thread and
with two.

    python -m tools.threads     writes data/results/threads.json (two minutes of two idle cores)
"""

from pathlib import Path

import torch

from cfm_lite.data.datasets import dataset
from cfm_lite.lab import ARMS, Sampling, judge_of
from cfm_lite.lab.measures import sample_rows
from cfm_lite.lab.store import write_rows
from cfm_lite.runs import train
from cfm_lite.runs.recipe import recipe

THREADS, SEEDS = (1, 2), (0, 1)


def main() -> None:
    data, judge, rows = dataset("digits"), judge_of("digits"), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for seed in SEEDS:
            run = train(recipe("digits", seed=seed), data, label=f"{threads} threads, seed {seed}")
            rows += [
                {**row, "threads": threads}
                for row in sample_rows(ARMS["fm"], run, data, judge, Sampling())
            ]
    write_rows(Path(__file__).parent.parent / "data" / "results" / "threads.json", rows)


if __name__ == "__main__":
    main()
