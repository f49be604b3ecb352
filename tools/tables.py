"""Put measured results into the documents: python -m tools.tables [--keep runs/demo]

With --keep, the demo's rows, facts and pictures are copied from that folder into data/results/
first.
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from cfm_lite.demo import GOALS, SHOWN
from cfm_lite.methods import METHODS
from cfm_lite.viz import METHOD_LABELS
from tools import cards, knobs, pictures, words
from tools.report import figures
from tools.report import pages as report
from tools.report.results import Place, Results, interval, number, said_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "data" / "results"
KEPT = {"metrics.json": "demo.json", "config.json": "demo.info.json"}
PICTURES = ("samples.png", "fields.png", "quality_vs_steps.png")


def keep(folder: Path) -> None:
    """Copy a demo's files to data/results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in (*KEPT, *PICTURES):
        shutil.copyfile(folder / name, RESULTS / KEPT.get(name, name))


def machine(facts: dict) -> str:
    return f"{facts['cores']} cores ({facts['processor']}), torch {facts['torch']}"


def methods_table() -> str:
    """Every method, as Markdown."""
    head = "| method | loss; v is the model's velocity | `cfm_lite.objective` | source |"
    rows = (
        f"| {m.label} | {m.loss} | {f'`{m.python}`' if m.python else ''} | {m.source} |"
        for m in METHODS.values()
    )
    return "\n".join([head, "|---|---|---|---|", *rows])


def controls_table() -> str:
    """The name of every method, its control, its debiased form and its needs, as Markdown."""
    lines = ["| method | `--method` | control | debiased | needs |", "|---|---|---|---|---|"]
    for m in METHODS.values():
        known = (f"`{arm.method}`" if arm else "" for arm in (m.control, m.debias))
        lines.append(f"| {m.label} | `{m.name}` | {' | '.join(known)} | {', '.join(m.needs)} |")
    return "\n".join(lines)


def demo_table() -> str:
    """The demo at its largest number of steps, as Markdown."""
    rows = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    info = json.loads((RESULTS / "demo.info.json").read_text(encoding="utf-8"))
    most = max(row["nfe"] for row in rows)
    at = {(row["method"], row["metric"]): row["value"] for row in rows if row["nfe"] == most}
    real = at["fm", "frechet_real"]
    seconds = {name: run["seconds"] for name, run in info["runs"].items()}
    lines = [
        f"| {most} Euler steps, seed {rows[0]['seed']} | accuracy | Fréchet | nearest | precision "
        "| recall | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SHOWN:
        a, f, n, p, r = (
            at[name, metric]
            for metric in ("accuracy", "frechet", "nearest_ratio", "precision", "recall")
        )
        took = f"{seconds[name]:.0f} s" if name in seconds else "none"
        lines.append(
            f"| {METHOD_LABELS[name]} | {a:.1%} | {f:.2f} | {n:.2f} | {p:.2f} | {r:.2f} | {took} |"
        )
    lines.append(
        f"| goal | ≥ {GOALS['accuracy']:.1%} | ≤ {GOALS['frechet'] * real:.2f} | ≥ "
        f"{GOALS['nearest_ratio']:.2f} | | | |"
    )
    judged = f"Real against real: Fréchet {real:.2f}. The judge is right on "
    judged += f"{info['judge']['accuracy']:.1%} of unseen digits."
    source = (
        f"Measured by `make demo` on {machine(info['facts'])}; rows in `data/results/demo.json`."
    )
    pictures = (
        "![Samples for the ten classes](../data/results/samples.png)\n\n"
        "![Quality against steps](../data/results/quality_vs_steps.png)"
    )
    return "\n".join([*lines, "", f"{judged} {source}", "", pictures])


def bench_table() -> str:
    """Every benchmark, as Markdown."""
    rows = [
        row
        for path in sorted((RESULTS / "bench").glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    lines = ["| measured side by side in one process | ratio | goal | |", "|---|---|---|---|"]
    sign = {">=": "≥", "<=": "≤"}
    for row in rows:
        value, unit = _in_words(row["ratio"], row["unit"].strip()), row["unit"].strip()
        if row["goal"] is not None:
            lines.append(
                f"| {row['name']} | {value} | {sign[row['sense']]} {_in_words(row['goal'], unit)} | "
                f"{'met' if row['met'] else 'missed'} |"
            )
        elif row["name"].startswith("old ") and "pictures" in row["name"]:  # beside the new one's
            lines.append(f"| {row['name']} | {value} | | |")
    # in the order of the files, each once
    machines = dict.fromkeys(machine(row | row["machine"]) for row in rows)
    source = f"Measured by `make bench` on {' and on '.join(machines)}, one thread; all rows, "
    source += "each with its machine: `data/results/bench/`."
    return "\n".join([*lines, "", source])


def _in_words(number: float, unit: str) -> str:
    text = f"{number:,.0f}" if number >= 100 else f"{number:.4g}"
    return f"{text}×" if unit == "x" else f"{text} {unit.replace('us', 'µs')}"


def figure3_table() -> str:
    """The class gap of contrastive flow matching's figure 3, as Markdown."""
    rows = json.loads((RESULTS / "figure3.json").read_text(encoding="utf-8"))
    at = {(row["method"], row["metric"]): row["value"] for row in rows}
    lines = [
        "| class gap, λ = 0.5 | of the mean target | of the endpoints, exact optimum | of the "
        "endpoints, trained |",
        "|---|---|---|---|",
    ]
    for name in ("fm", "delta_fm"):
        values = (
            at[name, metric]
            for metric in ("target_gap", "exact_endpoint_gap", "trained_endpoint_gap")
        )
        lines.append(
            f"| {METHOD_LABELS[name]} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
        )
    steps = rows[0]["steps"]
    return "\n".join(
        [
            *lines,
            "",
            f"Made by `python -m tools.figure3` ({steps:,} training steps, one seed); rows in "
            "`data/results/figure3.json`.",
        ]
    )


def trust_table() -> str:
    """Promises with trials and failures, as Markdown."""
    found = json.loads((RESULTS / "trust.json").read_text(encoding="utf-8"))
    lines = [
        "| promise | how it was tried | trials | failures | rate below (95 %) |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        how = "; ".join(text for text in (row["how"], row["note"]) if text)
        rate = 3 / row["trials"]
        bound = (
            f"{rate:.{1 if rate > 0.001 else 3}%}" if row["drawn"] and not row["failures"] else ""
        )
        lines.append(
            f"| {row['promise']} | {how} | {row['trials']:,} | {row['failures']:,} | {bound} |"
        )
    source = (
        "Without a rate: every case of a list was tried, none was drawn. Counted by "
        f"`make test-faults` and `make test-mutants` on {machine(found['facts'])}; rows in "
        "`data/results/trust.json`."
    )
    return "\n".join([*lines, "", source])


LAB = {"digits": "digits", "mnist_short": "MNIST, short", "cifar10": "CIFAR-10, 16 × 16"}


def lab_table() -> str:
    """The report's short answers, and the cores of the image suites as differences to FM."""
    results = Results(RESULTS)
    tops = {suite: results.nfes(suite)[-1] for suite in LAB}
    heads = [
        f"{name}, minus FM's {number(results.mean(suite, Place(nfe=tops[suite]), 'frechet'))}"
        for suite, name in LAB.items()
    ]
    lines = [f"| Fréchet distance | {' | | '.join(heads)} | |", f"|---|{'---|' * 2 * len(heads)}"]
    methods = dict.fromkeys(
        method for suite in LAB for method in results.methods(suite) if method != "fm"
    )
    for method in methods:
        found = [results.difference(suite, Place(method, nfe=top)) for suite, top in tops.items()]
        cells = [f"{interval(d)} | {said_of(d)}" if d else "not measured | " for d in found]
        lines.append(f"| {figures.title(method)} | {' | '.join(cells)} |")
    source = "In brackets the 95 % interval over the seeds. Measured by " + ", ".join(
        f"`cfm-lite compare {suite}` ({top} Euler steps; real against real: "
        f"{number(results.mean(suite, Place(nfe=top), 'frechet_real'))})"
        for suite, top in tops.items()
    )
    files = ", ".join(f"`{suite}.json`" for suite in LAB)
    rows = f"rows in {files} of `data/results`, all other numbers in the report."
    template = report.TEMPLATE.read_text(encoding="utf-8").split("## In short\n")[1]
    short = report.fill_in(results, template.split("\n## ")[0]).text.strip()
    return "\n".join([short, "", *lines, "", f"{source}; {rows}"])


COURSE = {
    "00_tour": (
        "The tour",
        "train, sample and judge a flow in the plane; find your way in the library",
    ),
    "01_paths": (
        "Paths",
        "say what x_t, u_t and the score are; tell conditional from marginal velocity; see where "
        "the field bends",
    ),
    "02_flow_matching": (
        "Flow matching",
        "derive the loss and its floor, train it, hold it against the exact field; OT coupling",
    ),
    "03_trajectory_drift": (
        "Trajectory drift",
        "see errors add up: few steps, small networks; measure straightness and drift",
    ),
    "04_contrastive_flow_matching": (
        "ΔFM",
        "see ΔFM part two close classes; derive its optimum; reproduce figure 3",
    ),
    "05_vecor": (
        "VeCoR",
        "make wrong velocities in velocity, latent and image space; derive what channel shuffling "
        "does; debias",
    ),
    "06_dispersive": (
        "Dispersive loss",
        "spread features: all four variants and their contrastive counterparts; the −log B floor",
    ),
    "07_sampling_and_guidance": (
        "Sampling and guidance",
        "choose ODE or SDE; guide; undo what guidance and repulsion do to each other",
    ),
    "08_images": (
        "Images",
        "run all methods on digits and MNIST, several seeds, quality against steps, with error "
        "bars",
    ),
    "09_sit": (
        "SiT",
        "build the transformer from the MLP; why zero at the start; REPA; load an official-format "
        "checkpoint",
    ),
    "10_imagenet_full_scale": (
        "ImageNet, full scale",
        "go from a folder of images to latents, training with torchrun, samples and FID",
    ),
    "11_pictures_from_words": (
        "Pictures from words",
        "give a network a sentence; build joint attention; steer with a negative prompt; score "
        "what was asked for",
    ),
}


def course_table() -> str:
    """The notebooks with their pictures and measured times, as Markdown."""
    rows = {
        row["notebook"]: row
        for row in json.loads((RESULTS / "notebooks.json").read_text(encoding="utf-8"))
    }
    lines = [
        "| | notebook | afterwards you can | reading | runs in | hardware |",
        "|---|---|---|---|---|---|",
    ]
    for name, (title, able) in COURSE.items():
        image = f'<img src="../data/results/course/{name}.png" width="210" alt="{title}">'
        picture = f'<a href="../notebooks/{name}.ipynb">{image}</a>'
        minutes = _reading_minutes(ROOT / "notebooks" / f"{name}.ipynb")
        seconds = rows[name]["seconds"]
        link = f"[{name[:2]} · {title}](../notebooks/{name}.ipynb)"
        hardware = "a laptop; the full scale: GPUs" if name.startswith("10") else "a laptop"
        lines.append(
            f"| {picture} | {link} | {able} | {minutes} min | {seconds:.0f} s | {hardware} |"
        )
    total = sum(rows[name]["seconds"] for name in COURSE)
    cores = rows["00_tour"]["cores"]
    return "\n".join(
        [
            *lines,
            "",
            f"All of them together run in {total / 60:.1f} min, each by `python notebooks/run.py` "
            f"on {cores} cores without a GPU.",
        ]
    )


def _reading_minutes(path: Path) -> str:
    """The reading time that the notebook itself states."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    found = re.search(r"\*\*Time\.?\*\*\.?\D*(\d+)", "".join(first))
    if not found:
        raise ValueError(
            f"{path.name} does not say its reading time in its first cell: **Time.** 30 minutes ..."
        )
    return found[1]


def fill(text: str, name: str, table: str) -> str:
    """`text` with everything between the marks of `name` replaced by `table`."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
        lambda match: f"{match[1]}{table}\n{match[2]}",
        text,
        flags=re.DOTALL,
    )


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    # the tables of each document, by the marks between which they stand
    "README.md": {"methods": methods_table},
    "docs/course.md": {"course": course_table},
    "docs/lab.md": {"controls": controls_table, "lab": lab_table, "demo": demo_table},
    "docs/models.md": {"networks": cards.networks_table, "reached": cards.reached_table}
    | {"words": words.table, "pictures": pictures.table, "knobs": knobs.table}
    | {"colour": pictures.colour_table},
    "docs/paper_versus_here.md": {"figure3": figure3_table},
    "docs/speed.md": {"bench": bench_table},
    "docs/trust.md": {"trust": trust_table},
}


def filled(document: str) -> str:
    """A document as it should be, with its tables made from the rows."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for name, table in DOCUMENTS[document].items():
        text = fill(text, name, table())
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="a folder that cfm-lite demo wrote")
    arguments = parser.parse_args()
    if arguments.keep:
        keep(arguments.keep)
    for document in DOCUMENTS:
        (ROOT / document).write_text(filled(document), encoding="utf-8")
