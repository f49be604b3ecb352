"""Runs: a recipe that decides everything, and a folder that holds what it left behind.

chosen = recipe("digits", method="vecor_latent")      (runs.recipe)
run = runs.train(chosen, data, out="runs/mine")       (runs.run)
"""

from cfm_lite.runs.run import (
    Located,
    Run,
    Terminated,
    facts,
    goes_on,
    home_for,
    load_model,
    located,
    make_folder,
    peak_memory,
    pick_device,
    samples_of,
    saved_recipe,
    train,
    write_json,
)

__all__ = [
    "Located",
    "Run",
    "Terminated",
    "facts",
    "goes_on",
    "home_for",
    "load_model",
    "located",
    "make_folder",
    "peak_memory",
    "pick_device",
    "samples_of",
    "saved_recipe",
    "train",
    "write_json",
]
