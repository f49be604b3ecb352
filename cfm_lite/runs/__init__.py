"""Runs: a recipe holds every setting, and a folder holds the results.

chosen = recipe("digits", method="vecor_latent")      (runs.recipe)
run = runs.train(chosen, data, out="runs/mine")       (runs.loop)
run = runs.Run.open("runs/mine")                      (runs.run)
"""

from cfm_lite.runs.folder import (
    Located,
    home_for,
    is_file_of_weights,
    located,
    make_folder,
    read_config,
    read_mean,
    samples_of,
    saved_recipe,
)
from cfm_lite.runs.loop import Terminated, resumes, train
from cfm_lite.runs.machine import facts, peak_memory, pick_device, write_json
from cfm_lite.runs.run import Run
from cfm_lite.runs.spec import Spec

__all__ = [
    "Located",
    "Run",
    "Spec",
    "Terminated",
    "facts",
    "home_for",
    "is_file_of_weights",
    "located",
    "make_folder",
    "peak_memory",
    "pick_device",
    "read_config",
    "read_mean",
    "resumes",
    "samples_of",
    "saved_recipe",
    "train",
    "write_json",
]
