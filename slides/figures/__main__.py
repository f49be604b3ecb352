"""Draw the slides' figures and measure their numbers: python -m slides.figures [NAME ...]

Without names all figures are drawn, and data/results/slides.json is written anew; with names only
those pictures are.
"""

import sys

import torch

from cfm_lite.runs import write_json
from slides.figures import part1, part2, part3, part4, part5, part6  # noqa: F401 (each registers its figures)
from slides.figures.common import RESULTS, ROWS, write

torch.set_num_threads(1)
write(sys.argv[1:])
if not sys.argv[1:]:
    write_json(RESULTS / "slides.json", ROWS)
