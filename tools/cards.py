"""What the shipped networks reach, for their cards in docs/models.md: python -m tools.cards [NAME ...]

Each one draws 1,000 samples in 50 Euler steps, which are measured as the lab measures. The rows go to
data/results/models.json, each with the fingerprint of the weights that it belongs to; then
python -m tools.tables puts them into the page. The network of words has a table of its own
(python -m tools.words).
"""

import json
import sys
from pathlib import Path
from typing import Any

import safetensors
import torch

from cfm_lite import lab, pretrained, runs
from cfm_lite._internal.checks import check_choice
from cfm_lite.data.datasets import dataset
from cfm_lite.evaluate.measures import judge_of
from cfm_lite.methods import METHODS

ROWS = Path(__file__).resolve().parent.parent / "data" / "results" / "models.json"
SAMPLES, STEPS = 1000, 50
SHOWN = {"accuracy": ".1%", "frechet": ".3g", "frechet_real": ".3g", "sliced_wasserstein": ".3g"}


def fingerprint_of(name: str) -> str:
    """The fingerprint in the header of a shipped file."""
    with safetensors.safe_open(pretrained.folder() / f"{name}.safetensors", "pt") as file:
        return file.metadata()["fingerprint"]


def measured(name: str) -> dict[str, Any]:
    """The row of one network; its numbers are rounded to four digits."""
    model = pretrained.load(name)
    data = dataset(model.recipe.dataset)  # pyright: ignore[reportAttributeAccessIssue]
    run = runs.Run(model.recipe, model)  # pyright: ignore[reportArgumentType]
    arm = lab.ARMS[run.recipe.method]
    y = lab.balanced_labels(data.num_classes, SAMPLES)
    x = lab.draw_samples(arm, run, data, y, STEPS)
    found = lab.measure(x, y, data, judge_of(data.name))
    values = {key: float(f"{value:.4g}") for key, value in found.items()}
    return {"network": name, "fingerprint": fingerprint_of(name), **values}


def rows() -> dict[str, dict[str, Any]]:
    """{network: its row} of those that were measured with the weights as they are."""
    found = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    known = {row["network"]: row for row in found if row["network"] in pretrained.RECIPES}
    return {n: row for n, row in known.items() if row["fingerprint"] == fingerprint_of(n)}


def networks_table() -> str:
    """What each network is and how it was trained, as Markdown."""
    lines = ["| name | data | method | network | parameters | file, kB | training |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name in pretrained.RECIPES:
        model = pretrained.load(name)
        recipe = model.recipe  # pyright: ignore[reportAttributeAccessIssue]
        size = (pretrained.folder() / f"{name}.safetensors").stat().st_size
        weight = f", λ = {recipe.weight:g}" if "weight" in METHODS[recipe.method].reads else ""
        count = sum(parameter.numel() for parameter in model.parameters())
        lines.append(
            f"| `{name}` | {recipe.dataset} | {METHODS[recipe.method].label}{weight} "
            f"| {type(model).__name__} | {count:,} | {size / 1e3:,.0f} "
            f"| {recipe.steps:,} steps of {recipe.batch}, lr {recipe.lr:g}, seed {recipe.seed} |"
        )
    source = (
        "The recipe of each stands in its file, whole: `pretrained.load(name).recipe`. Made by "
    )
    return "\n".join([*lines, "", f"{source}`python -m cfm_lite.pretrained`."])


def reached_table() -> str:
    """What each network reaches, as Markdown."""
    lines = ["| network | right class | Fréchet | real against real | sliced Wasserstein |"]
    lines.append("|---|---|---|---|---|")
    known = rows()
    for name, recipe in pretrained.RECIPES.items():
        if recipe.dataset == "words":
            lines.append(f"| `{name}` | see below |  |  |  |")
            continue
        row = known.get(name)
        cells = (
            [format(row[m], form) if m in row else "" for m, form in SHOWN.items()] if row else []
        )
        lines.append(f"| `{name}` | {' | '.join(cells or ['not measured', '', '', ''])} |")
    source = (
        f"{SAMPLES:,} samples, {STEPS} Euler steps. Measured by `python -m tools.cards`; rows in "
    )
    return "\n".join([*lines, "", f"{source}`data/results/models.json`."])


def main(names: list[str]) -> None:
    """Measure the networks called `names`, or those without a row for their weights as they are."""
    for name in names:
        check_choice("network", name, set(pretrained.RECIPES) - {"words"})
    torch.set_num_threads(1)
    known = rows()
    labelled = [name for name, recipe in pretrained.RECIPES.items() if recipe.dataset != "words"]
    for name in names or [name for name in labelled if name not in known]:
        known[name] = measured(name)
        print(known[name], flush=True)
        kept = [known[name] for name in pretrained.RECIPES if name in known]
        ROWS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
