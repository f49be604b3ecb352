"""data/results/README.md and its figures: a function of the JSON files in the folder and of nothing
else.

Called twice, or on copies of the files elsewhere, it leaves the same bytes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfm_lite import viz
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import DataError
from cfm_lite.lab import benefits, controls, mechanisms, tuning
from cfm_lite.lab.answers import TITLES, Answer, title
from cfm_lite.lab.measures import Row
from cfm_lite.lab.results import Place, Results, interval, number, quality, said_of
from cfm_lite.lab.store import Store, read_json
from cfm_lite.lab.suites import SUITES

__all__ = ["QUESTIONS", "quality_figure", "write_report"]

QUESTIONS = dict(
    sorted(
        {
            **benefits.QUESTIONS,
            **controls.QUESTIONS,
            **mechanisms.QUESTIONS,
            **tuning.QUESTIONS,
        }.items()
    )
)
SHOWN = {  # beside the suite's measure of quality: {metric: its head in a table}
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "nearest_ratio": "nearest",
    "velocity_deficit": "‖v‖/‖u‖",
    "straightness": "straightness",
    "field_error": "field error",
    "drift": "drift",
    "trajectory_error": "path error",
    "class_separation": "class gap",
    "feature_norm": "feature length",
    "feature_rank": "feature rank",
}
SHOWN_BY_STEPS = {
    "frechet": ("accuracy",),
    "sliced_wasserstein": ("trajectory_error", "class_separation"),
}
HEADS = {**SHOWN, "frechet": "Fréchet", "sliced_wasserstein": "sliced W."}

PREAMBLE = """# What do these methods really buy?

This page and its figures are made by `cfm-lite compare --report` from the JSON files beside it, and from nothing else.

How to read it. All methods of one seed start from the same network and see the same batches and noise; a difference is that of
pairs. In brackets stands its 95 % bootstrap interval over the seeds. A method **gains** or **loses** only where neither that
interval nor Student's 98 % interval contains zero: by the bootstrap alone a method that does nothing is called better in 14 of
100 comparisons of three seeds and in 7 of eight seeds, by both in about one (`tests/test_statistics.py`). Many comparisons stand here, and
none is corrected for that: one clear cell in a hundred is chance. A null result is a result. Nothing was tuned per method.

*Scaled FM* is plain FM with its velocity times 1/(1 − λ), *re-targeted FM* the exact affine map of FM's velocity to the optimum of
the other loss; neither is trained. What they reproduce is scaling and re-targeting; only what is left is repulsion. Numbers of
papers stand beside ours for comparison; their data and networks are far larger.
"""


def write_report(folder: str | Path) -> list[Path]:
    """Write README.md and the figures of all suites whose rows are in `folder`; returns the paths.
    DataError where there are none.
    """
    folder = Path(folder)
    results = Results(folder)
    if not results.suites and not results.miniatures:
        raise DataError(
            f"{folder} holds no rows of a suite, such as digits.json is missing. Run cfm-lite "
            "compare first."
        )
    found = {n: ask(results) for n, ask in QUESTIONS.items()}
    paths = [
        viz.save(answer.figure, folder / _picture(n))
        for n, answer in found.items()
        if answer.figure is not None
    ]
    for suite in results.suites:
        paths.append(viz.save(quality_figure(suite, results.rows(suite)), folder / f"{suite}.png"))
    parts = [PREAMBLE, _in_short(found), *(_answer(n, answer) for n, answer in found.items())]
    parts += [_suite(results, suite) for suite in results.suites]
    parts += [_miniature(store) for store in results.miniatures.values()]
    text = "\n\n".join(part.strip() for part in [*parts, *_threads(folder)]) + "\n"
    write_bytes(folder / "README.md", text.encode())
    return [folder / "README.md", *paths]


def quality_figure(suite: str, rows: Sequence[Row]) -> viz.Picture:
    """Quality against steps of FM and what was trained otherwise; the controls and inverses would
    hide them.
    """
    measured = {row["metric"] for row in rows}
    shown = [quality(suite), *(name for name in SHOWN_BY_STEPS[quality(suite)] if name in measured)]
    return viz.quality_vs_steps(
        [row for row in rows if row["method"] in ("fm", *benefits.TRAINED)], shown
    )


def _picture(number: int) -> str:
    return f"question_{number}.png"


def _in_short(found: Mapping[int, Answer]) -> str:
    """All questions with their answers in one sentence each."""
    rows = [
        f"| [{n}](#{_anchor(f'{n}. {answer.question}')}) | {answer.question} | {answer.short} |"
        for n, answer in found.items()
    ]
    return "\n".join(["## In short", "", "| | question | answer |", "|---|---|---|", *rows])


def _anchor(heading: str) -> str:
    """Where a code host finds a heading: in lower case, without punctuation, with dashes for
    spaces.
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _answer(number: int, answer: Answer) -> str:
    lines = [f"## {number}. {answer.question}", ""]
    lines += [f"![{answer.question}]({_picture(number)})", ""] if answer.figure is not None else []
    lines += [f"**{answer.short}**", ""]
    lines += [f"- {sentence}" for sentence in answer.sentences]
    lines += [f"- *The papers*: {paper}" for paper in answer.papers]
    return "\n".join(lines)


def _suite(results: Results, suite: str) -> str:
    """A suite's facts and tables."""
    lines = [
        f"## Suite {suite}: {TITLES.get(suite, suite)}",
        "",
        *_facts(results.suites[suite]),
        "",
    ]
    lines += [f"![Quality against steps, {suite}]({suite}.png)", ""]
    lines += [*_core_table(results, suite), "", *_costs(results, suite)]
    for group in list(SUITES[suite].groups)[1:]:
        if results.rows(suite, group):
            lines += ["", *_group_table(results, suite, group)]
    return "\n".join([*lines, "", *_absent(results, suite), *_failures(results.suites[suite])])


def _miniature(store: Store) -> str:
    """What a miniature shows: that everything runs. It has no table, for its numbers mean nothing."""
    rows = [row for group in SUITES[store.suite].groups for row in store.rows(group)]
    counts = [len({row[name] for row in rows}) for name in ("method", "seed", "metric")]
    lines = [
        f"## Suite {store.suite}: {TITLES[store.suite]}, a miniature only",
        "",
        "**Made with `--quick`, to show that everything runs; its numbers mean nothing, and no "
        "answer above reads them.**",
        "",
        *_facts(store),
        f"- {len(rows):,} rows: {counts[0]} arms, {counts[1]} seed{'s' * (counts[1] > 1)}, "
        f"{counts[2]} metrics",
    ]
    return "\n".join([*lines, "", *_failures(store)])


def _absent(results: Results, suite: str) -> Iterator[str]:
    """The groups of a suite that were not run."""
    names = [f"`{group}`" for group in SUITES[suite].groups if not results.rows(suite, group)]
    if names:
        yield f"Not measured yet: {', '.join(names)} (`cfm-lite compare {suite} --group all`).\n"


def _facts(store: Store) -> Iterator[str]:
    """How the rows were made, as a list; files of an older kind say less."""
    info = store.info()
    sittings = info.get("sittings") or [{"facts": info.get("facts", {}), "command": ""}]
    commands = dict.fromkeys(sitting["command"] for sitting in sittings if sitting["command"])
    if commands:
        yield "- made by " + ", ".join(f"`{command}`" for command in commands)
    machines = dict.fromkeys(
        f"{f['cores']} cores ({f['processor']}), device {f['device']}, torch {f['torch']}"
        for f in (s["facts"] for s in sittings)
        if f
    )
    yield f"- on {' and '.join(machines) or 'a machine that is not recorded'}, one thread for each job"
    commits = dict.fromkeys(
        sitting["facts"]["commit"][:10] for sitting in sittings if sitting["facts"].get("commit")
    )
    if commits:
        yield f"- at commit {', '.join(f'`{commit}`' for commit in commits)}"
    if all("seconds" in sitting for sitting in sittings):
        hours = sum(sitting["seconds"] for sitting in sittings) / 3600
        yield f"- in {hours:.1f} hours of wall time, in {len(sittings)} sitting{'s' * (len(sittings) > 1)}"
    other = _other_settings(store.suite, info)
    if other:
        yield f"- not with the suite's own settings: {other}"
    judge = info.get("judge")
    if isinstance(judge, dict):
        yield f"- judge right on {judge['accuracy']:.1%} of unseen rows, SHA-256 `{judge['fingerprint'][:16]}…`"


def _other_settings(suite: str, info: dict[str, Any]) -> str:
    """The fields of the core's recipe that are not the suite's."""
    mine = info.get("groups", {}).get("core", info).get("recipe", {})
    own = SUITES[suite].base("core", {}).as_dict() | {
        "dataset": SUITES[suite].dataset
    }  # not that of the reader's machine
    return ", ".join(
        f"{name} {value} (not {own[name]})"
        for name, value in mine.items()
        if name in own and value != own[name]
    )


def _core_table(results: Results, suite: str) -> Iterator[str]:
    top, metric = results.nfes(suite)[-1], quality(suite)
    shown = [name for name in SHOWN if any(row["metric"] == name for row in results.rows(suite))]
    yield f"Core, {results.seeds(suite)} seeds, {top} Euler steps: mean ± standard deviation over the seeds, and the difference to FM."
    yield ""
    yield f"| method | {HEADS[metric]} | difference to FM | | {' | '.join(HEADS[name] for name in shown)} |"
    yield f"|---|---|---|---|{'---|' * len(shown)}"
    for method in results.methods(suite):
        place = Place(method, nfe=top)
        d = results.difference(suite, place) if method != "fm" else None
        told = [interval(d), said_of(d)] if d else ["", ""]
        cells = [
            title(method),
            _mean(results, suite, place, metric),
            *told,
            *(_mean(results, suite, place, name) for name in shown),
        ]
        yield f"| {' | '.join(cells)} |"
    real = results.mean(suite, Place(nfe=top), f"{metric}_real")
    if real == real:
        yield f"\nReal against real: {HEADS[metric]} {number(real)}."


def _mean(results: Results, suite: str, place: Place, metric: str) -> str:
    values = list(results.values(suite, place, metric).values())
    if not values:
        return ""
    return number(float(np.mean(values))) + (
        f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    )


def _group_table(results: Results, suite: str, group: str) -> Iterator[str]:
    """A group: a row for each variant, method and way of sampling, with its difference to FM."""
    rows, metric = results.rows(suite, group), quality(suite)
    ways = dict.fromkeys((row["sampler"], row["nfe"], row["guidance"]) for row in rows)
    yield f"<details><summary>{group}: {results.seeds(suite, group)} seeds</summary>\n"
    yield f"| variant | method | sampler | evaluations | guidance | {HEADS[metric]} | difference to FM | |"
    yield "|---|---|---|---|---|---|---|---|"
    for variant, method in dict.fromkeys((row["variant"], row["method"]) for row in rows):
        for sampler, nfe, guidance in ways:
            place = Place(method, group, variant, nfe, sampler, guidance)
            d = results.difference(suite, place) if method != "fm" else None
            mean = _mean(results, suite, place, metric)
            if mean:
                told = f"{interval(d)} | {said_of(d)}" if d else " | "
                yield f"| {variant} | {title(method)} | {sampler} | {nfe} | {guidance:g} | {mean} | {told} |"
    yield "\n</details>"


def _costs(results: Results, suite: str) -> Iterator[str]:
    """What a training step of each arm costs, relative to FM's."""
    rows = results.suites[suite].costs()
    if not rows:
        return
    fm = rows[0]
    told = [
        f"{title(row['method'])} {row['relative']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for row in rows
        if row is not fm
    ]
    yield (
        f"A training step with {fm['batch']} rows takes FM {1000 * fm['value']:.1f} ms on "
        f"{fm['device']} ({fm['processor']}). Times "
        f"that, median and quartiles of {fm['rounds']} rounds in turn: {', '.join(told)} "
        f"(`cfm-lite compare {suite} --costs`)."
    )


def _failures(store: Store) -> Iterator[str]:
    """What diverged."""
    for group in SUITES[store.suite].groups:
        for row in store.rows(group):
            if row["metric"] == "diverged":
                variant = f", {row['variant']}" if row.get("variant") else ""
                yield f"- **diverged**: {title(row['method'])}{variant}, seed {row['seed']} ({group}): {row['reason']}"


def _threads(folder: Path) -> Iterator[str]:
    """How far numbers move with the number of threads, where it was measured."""
    path = folder / "threads.json"
    if not path.exists():
        return
    rows = read_json(path)
    values = {
        (row["threads"], row["seed"]): row["value"] for row in rows if row["metric"] == "frechet"
    }
    one, two = min(values)[0], max(values)[0]
    apart = max(
        abs(values[one, seed] - values[two, seed])
        for threads, seed in values
        if threads == one and (two, seed) in values
    )
    yield (
        "## Do the same seeds give the same numbers?\n\n"
        "On one machine, yes, bit for bit, however many jobs run side by side: each job computes "
        "with one thread. With another number of "
        f"threads sums are taken in another order: {one} and {two} threads move the Fréchet "
        "distance of FM on the digits by up to "
        f"{number(apart)} (`python -m tools.threads`)."
    )
