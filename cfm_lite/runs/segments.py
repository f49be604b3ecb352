"""Resuming a run: what must be equal, what may differ, and the config.json that records it.

    config.json  {"recipe": what holds now, "data": ..., "facts": of the start,
                  "segments": [{"from_step", "changed", ...}, ...]}

Another batch, learning rate or data set would silently make another run. So every field of the
recipe is compared, except the length of the run, how a batch is computed, and how it is sampled.
Each change starts a new segment. The rest of config.json says what holds now.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfm_lite.errors import ResumeMismatchError
from cfm_lite.runs.reads import BOOST, OF_SAMPLES
from cfm_lite.runs.recipe import FULL_SCALE, RECIPES, Recipe, schedule_of

__all__ = ["FREE", "check_same_data", "check_same_recipe", "new_config", "note_on_schedule"]

# the length of the run, how a batch is computed, and how it is sampled
FREE = ("steps", "accumulate", *OF_SAMPLES, *BOOST)
# what decides a run and is not a field of a recipe: what another one of it is called, and the noun
_DATA = {
    "fingerprint": ("other data", "data"),
    "teacher": ("another teacher", "teacher"),
    "start": ("another network to start from", "network"),
    "text_fingerprint": ("another text encoder", "text encoder"),
}
_FLAGS = {"method": "--method", "seed": "--seed", "network": "--model", "size": "--size"}
# an ImageNet run has these from its network
_SIZES = ("hidden_size", "depth", "num_heads", "patch_size")


def changes(before: Mapping[str, Any], recipe: Recipe) -> dict[str, list[Any]]:
    """{field: [saved, now]} of the fields that differ. A field that an older file lacks has its
    default.
    """
    now, default = recipe.as_dict(), {f.name: f.default for f in dataclasses.fields(recipe)}
    old = default | dict(before)
    return {
        name: [old[name], now.get(name)]
        for name in old
        if name not in now or old[name] != now[name]
    }


def check_same_recipe(where: Path, before: Mapping[str, Any], recipe: Recipe) -> None:
    """ResumeMismatchError, with the differences, unless the recipe `before` in `where` makes the
    same run.

    >>> check_same_recipe(Path("run"), Recipe(steps=500).as_dict(), Recipe(steps=1000))
    """
    differ = {name: pair for name, pair in changes(before, recipe).items() if name not in FREE}
    if differ:
        said = "; ".join(
            f"{name}: saved {saved!r}, now {now!r}" for name, (saved, now) in differ.items()
        )
        raise ResumeMismatchError(
            f"{where} belongs to another run: {said}. Resume with {_words(differ)}, or start a new "
            "run with another --out."
        )


def _words(differ: Mapping[str, list[Any]]) -> str:
    """The command-line words that bring the saved values back."""
    if "dataset" in differ:
        saved = differ["dataset"][0]
        named = next((name for name, make in RECIPES.items() if make().dataset == saved), None)
        scale = "cfm-lite scale train" if saved in FULL_SCALE else f"--set dataset={saved}"
        return f"cfm-lite train {named}" if named else scale
    full = "network" in differ
    told = {name: saved for name, (saved, _) in differ.items() if name in _FLAGS}
    rest = {
        name: saved
        for name, (saved, _) in differ.items()
        if name not in _FLAGS and not (full and name in _SIZES)
    }
    words = [f"{_FLAGS[name]} {saved}" for name, saved in told.items()]
    words += ["--set"] if rest else []
    return " ".join([*words, *(f"{name}={_text(saved)}" for name, saved in rest.items())])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_same_data(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ResumeMismatchError if the data, the teacher or the starting network differ from `before`.

    >>> check_same_data(Path("run"), {"fingerprint": "ab12"}, {"fingerprint": "ab12"})  # the same
    """
    for name, (other, what) in _DATA.items():
        saved, given = before.get(name), now.get(name)
        if saved and given and saved != given:
            raise ResumeMismatchError(
                f"{where} belongs to another run: it was trained with {other} ({name}: saved "
                f"{saved[:12]}, now {given[:12]}). Give the same {what}, or start a new run with "
                "another --out."
            )


def note_on_schedule(before: Mapping[str, Any], recipe: Recipe, step: int) -> str | None:
    """A note if another number of steps changes the learning rate of finished steps; else None.

    >>> note = note_on_schedule({"steps": 500}, Recipe(steps=1000, cooldown=0.5), step=500)
    >>> note[:46]
    'the run was planned for 500 steps, and now for'
    """
    steps = before.get("steps", recipe.steps)
    if not step or steps == recipe.steps:
        return None
    saved, now = (schedule_of(recipe.changed(steps=n))(step - 1) for n in (steps, recipe.steps))
    if saved == now:
        return None
    return (
        f"the run was planned for {steps} steps, and now for {recipe.steps}: this moves its "
        f"learning rate. Step {step} was trained with {recipe.lr * saved:.3g}, a new run would use "
        f"{recipe.lr * now:.3g}. The run is resumed, but it differs from a new run of "
        f"{recipe.steps} steps."
    )


def new_config(
    before: Mapping[str, Any],
    recipe: Recipe,
    step: int,
    about: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The config.json of a run that is resumed at `step`: `before`, updated, with a new segment if
    needed.

    >>> before = {"recipe": Recipe(steps=500).as_dict(), "facts": {"device": "cpu"}}
    >>> after = new_config(before, Recipe(steps=1000), 500, {}, {"device": "cpu"})
    >>> after["segments"][0]["changed"]
    {'steps': [500, 1000]}
    """
    about = json.loads(json.dumps(dict(about)))
    data = {**before.get("data", {}), **about.get("data", {})}
    now = {"recipe": recipe.as_dict(), **about, **({"data": data} if data else {})}
    segments = list(before.get("segments", []))
    last = segments[-1]["facts"] if segments else before.get("facts", {})
    changed = changes(before["recipe"], recipe) if "recipe" in before else {}
    changed |= {
        name: [before.get(name), now[name]]
        for name in about
        if name not in ("data", "spec") and before.get(name) != now[name]
    }
    if changed or dict(last) != dict(facts):
        segments.append({"from_step": step, "changed": changed, "facts": dict(facts)})
    return {
        **before,
        **now,
        "facts": before.get("facts", dict(facts)),
        **({"segments": segments} if segments else {}),
    }
