"""data/results/README.md, tables.md and their figures, made only from the JSON files there.

People write the sentences, in `report.md`. This file fills in numbers, tables and verdicts. A mark
in that template is {{WORD: PLACES}}:

    {{gain: digits vecor,repa}}                  a verdict, which must hold at each of the places
    {{difference: digits vecor nfe=2}}           a number at one place: also mean, percent, ratio
    {{suite: digits}}                            made by a function, see MADE

PLACES are SUITES METHODS [GROUP | GROUP/VARIANTS] [nfe= | sampler= | guidance= | base= | metric=].
Each is a list with commas, and all combinations are meant. A semicolon separates several PLACES.
The guidance is the group's least unless given. The base is plain FM unless given: a method,
`control` for the method's own control, `core` for the same method with the settings of the core, or
`guided` for FM with the most guidance of the suite's group of that name.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfm_lite import viz
from cfm_lite._internal.places import expanded
from cfm_lite.engine.checkpoint import write_bytes
from cfm_lite.errors import DataError
from cfm_lite.evaluate.reader import Score
from cfm_lite.lab.arms import CONTROLS
from cfm_lite.lab.figures import quality, quality_figure
from cfm_lite.lab.statistics import Difference
from cfm_lite.lab.store import Store, read_json
from cfm_lite.lab.suites import SUITES
from tools.costs import costs_of
from tools.report.figures import FIGURES, TITLES, cell_of, differences_table, title
from tools.report.results import Place, Results, interval, number, percent, said_of

__all__ = ["RESULTS", "TABLES", "TEMPLATE", "Filled", "fill_in", "pages", "write_report"]

TEMPLATE = Path(__file__).with_name("report.md")
RESULTS = Path(__file__).parents[2] / "data" / "results"
TABLES = "# The tables\n"  # the line of the template where the second page begins
MARK = re.compile(r"\{\{(.+?)(?:: (.+?))?\}\}")
VERDICTS = {  # words of the template: what the statistics may say there
    **dict.fromkeys(("gain", "gains"), ("gains",)),
    **dict.fromkeys(("lose", "loses"), ("loses",)),
    **dict.fromkeys(("does not gain", "do not gain"), ("loses", "no clear difference")),
    "no clear difference": ("no clear difference",),
}
HEADS = {  # {metric: its head in a table}
    "frechet": "Fréchet",
    "sliced_wasserstein": "sliced W.",
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
    **{
        f"{part}_{prompts}": f"{part}, {prompts.replace('_', ' ')}"
        for prompts in ("seen", "held_out")
        for part in Score._fields
    },
}


class Missing(Exception):
    """The rows of a mark were not measured. Its text is the command that measures them."""


class Cell(NamedTuple):
    """A place of a mark, its base, and its metric."""

    suite: str
    place: Place
    base: Place
    metric: str

    def difference(self, results: Results) -> Difference:
        """The paired difference. Raises Missing without pairs."""
        found = results.difference(self.suite, self.place, self.metric, self.base)
        if found is None:
            raise Missing(f"cfm-lite compare {self.suite} --group {self.place.group}")
        return found


@dataclass
class Filled:
    """A filled template, and the lines with a verdict that the rows contradict."""

    text: str = ""
    contradicted: list[str] = field(default_factory=list)


def cells(results: Results, text: str) -> Iterator[Cell]:
    """The places that a mark names."""
    for part in text.split(";"):
        suites, methods, *more = part.split()
        given = {"group": "core", "variant": "", "nfe": "", "sampler": "euler", "guidance": ""}
        given |= {"base": "", "metric": ""}
        for word in more:
            name, mark, value = word.partition("/" if "/" in word else "=")
            given |= {name: value} if mark == "=" else {"group": name, "variant": value}
        lists = (value.split(",") for value in (suites, methods, *given.values()))
        for suite, method, group, variant, nfe, sampler, scale, base, metric in product(*lists):
            nfes = results.nfes(suite, group)
            if not nfes:
                raise Missing(f"cfm-lite compare {suite} --group {group}")
            guidance = float(scale or min(results.known(suite, group, "guidance")))
            place = Place(method, group, variant, int(nfe or nfes[-1]), sampler, guidance)
            if base == "core":
                other = results.core(suite, method)
            elif base == "guided":
                scales = results.known(suite, "guidance", "guidance")
                if not scales:
                    raise Missing(f"cfm-lite compare {suite} --group guidance")
                other = replace(place, method="fm", group="guidance", guidance=max(scales))
            elif base:
                other = replace(place, method=CONTROLS[method] if base == "control" else base)
            else:
                other = results.base(suite, place)
            yield Cell(suite, place, other, metric or quality(suite))


def _verdict(results: Results, word: str, text: str) -> str:
    """The word. If rows contradict it: the word struck out, and what the rows say."""
    wrong: dict[str, None] = {}
    for cell in cells(results, text):
        said = said_of(cell.difference(results))
        wrong |= {} if said in VERDICTS[word] else {f"{title(cell.place.method)}: {said}": None}
    return f"~~{word}~~ ({', '.join(wrong)})" if wrong else word


def _number(results: Results, word: str, text: str) -> str:
    """The number that a mark asks for."""
    (cell,) = cells(results, text)
    d = cell.difference(results)
    mine, base = (results.mean(cell.suite, at, cell.metric) for at in (cell.place, cell.base))
    return {
        "difference": interval(d),
        "change": number(d.mean, True),
        "percent": percent(d, base),
        "mean": number(mine),
        "ratio": number(mine / base),
    }[word]


def fill_in(results: Results, template: str = "", drawn: Mapping[str, Any] = FIGURES) -> Filled:
    """Fill the template, `report.md` unless another is given, from the rows.

    A line without rows is left out, and its section ends with the command that measures them. In a
    table the cell says so. A picture stays only if it is in `drawn`, or lies beside the rows.
    """
    filled, lines, missing = Filled(), [], {}
    for line in [*(template or TEMPLATE.read_text(encoding="utf-8")).splitlines(), "## "]:
        if line.startswith("## "):
            runs = ", ".join(f"`{command}`" for command in missing)
            lines += [f"*Not measured yet: {runs}.*", ""] if missing else []
            missing = {}
        picture = re.match(r"!\[.*\]\((.*?)\)", line)
        if picture and picture[1] not in drawn and not (results.folder / picture[1]).is_file():
            continue
        try:
            told = MARK.sub(lambda mark: _filled(results, mark[1], mark[2]), line)
        except Missing as error:
            missing[str(error)] = None
            lines += [MARK.sub("not measured", line)] if line.startswith("|") else []
            continue
        lines.append(told)
        filled.contradicted += [told] if told.count("~~") > line.count("~~") else []
    filled.text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines[:-1])).strip() + "\n"
    return filled


def _filled(results: Results, word: str, text: str) -> str:
    if word in VERDICTS:
        return _verdict(results, word, text)
    if word in MADE:
        return "\n".join(MADE[word](results, *(text or "").split()))
    return _number(results, word, text)


def write_report(folder: str | Path) -> list[Path]:
    """Write README.md (the answers), tables.md and the figures of all suites with rows in `folder`.

    Returns the paths. Equal rows give equal bytes. Raises DataError if there are no rows.
    """
    folder = expanded(folder)
    results = Results(folder)
    if not results.suites and not results.miniatures:
        raise DataError(
            f"{folder} holds no rows of a suite: digits.json, for example, is missing. Run "
            "cfm-lite compare first."
        )
    figures = {name: draw(results) for name, draw in FIGURES.items()}
    figures |= {f"{s}.png": quality_figure(s, results.rows(s)) for s in results.suites}
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    texts = pages(results, drawn)
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    paths = [folder / name for name in texts]
    return [*paths, *(viz.save(figure, folder / n) for n, figure in drawn.items())]


def pages(results: Results, drawn: Mapping[str, Any] = FIGURES) -> dict[str, str]:
    """{file: text} of the report: the answers, and the tables that they rest on."""
    answers, tables = TEMPLATE.read_text(encoding="utf-8").split(TABLES)
    parts = {"README.md": answers, "tables.md": TABLES + tables}
    return {name: fill_in(results, part, drawn).text for name, part in parts.items()}


def _core(results: Results, suite: str) -> Iterator[str]:
    """A suite's core at its largest number of evaluations: mean ± standard deviation over seeds, a
    row a method.
    """
    shown = [name for name in HEADS if name in results.known(suite, "core", "metric")]
    told = f"{results.nfes(suite)[-1]} evaluations"
    yield f"| {told} | {' | '.join(HEADS[name] for name in shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    for method in results.methods(suite):
        means = (_mean(results, suite, results.core(suite, method), name) for name in shown)
        yield f"| {title(method)} | {' | '.join(means)} |"


def _mean(results: Results, suite: str, place: Place, metric: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = list(results.values(suite, place, metric).values())
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return number(float(np.mean(values))) + spread if values else ""


def _verdicts(results: Results, *suites: str) -> Iterator[str]:
    """Interval and verdict for the methods of all suites' cores, suite by suite."""
    found = [suite for suite in suites if suite in results.suites]
    if not found:
        raise Missing(f"cfm-lite compare {suites[0]}")
    bases = [number(results.mean(s, results.core(s), quality(s))) for s in found]
    heads = (f"{TITLES[suite]} (FM {base}) | " for suite, base in zip(found, bases))
    yield f"| minus FM | {'| '.join(heads)}|"
    yield "|---|" + "---|---|" * len(found)
    methods = [m for s in found for m in results.methods(s) if m != "fm"]
    for method in dict.fromkeys(methods):
        told = []
        for suite in found:
            d = results.difference(suite, results.core(suite, method))
            told += [interval(d), said_of(d)] if d else ["", ""]
        yield f"| {title(method)} | {' | '.join(told)} |"


def _scores(results: Results, suite: str) -> Iterator[str]:
    """Each method minus FM in every part of the reader's score. Clear differences are bold."""
    shown = [name for name in HEADS if name in results.known(suite, "core", "metric")]
    shown = [name for name in shown if name.endswith(("_seen", "_held_out"))]
    if not shown:
        raise Missing(f"cfm-lite compare {suite}")
    yield f"| minus FM | {' | '.join(HEADS[name] for name in shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    for method in results.methods(suite)[1:]:
        place = results.core(suite, method)
        told = (cell_of(results.difference(suite, place, name)) for name in shown)
        yield f"| {title(method)} | {' | '.join(told)} |"


def _groups(results: Results, suite: str) -> Iterator[str]:
    """A table of differences for each group of a suite, folded."""
    for group in SUITES[suite].groups:
        if results.rows(suite, group):
            seeds = len(results.known(suite, group, "seed"))
            yield f"<details><summary>{group}: {seeds} seeds</summary>"
            yield from differences_table(results, suite, group)
            yield "\n</details>\n"
    missing = [f"`{g}`" for g in SUITES[suite].groups if not results.rows(suite, g)]
    if missing:
        yield f"Not measured yet: {', '.join(missing)} (`cfm-lite compare {suite} --group all`)."


def _suite(results: Results, suite: str) -> Iterator[str]:
    """A suite's facts and tables. A miniature has only facts, because its numbers mean nothing."""
    small = results.miniatures.get(suite)
    store = small or results.suites.get(suite)
    if store is None:
        raise Missing(f"cfm-lite compare {suite}")
    if small:
        yield "**This is a miniature only, made with `--quick`: its numbers mean nothing.**\n"
    yield from _facts(store)
    for group in SUITES[suite].groups:
        for row in store.rows(group):
            if row["metric"] == "diverged":
                where = f"{title(row['method'])} {row.get('variant', '')}".strip()
                yield f"- **diverged**: {where}, seed {row['seed']} ({group}): {row['reason']}"
    if not small:
        yield f"\n![Quality against steps, {suite}]({suite}.png)\n"
        yield from _core(results, suite)
        real = results.mean(suite, results.core(suite), f"{quality(suite)}_real")
        yield "" if np.isnan(real) else f"\nReal data against real data: {number(real)}.\n"
        yield from _costs(store)
        yield from _groups(results, suite)


def _facts(store: Store) -> Iterator[str]:
    """How the rows were made, as a list. Older files say less."""
    info = store.info()
    sittings = info.get("sittings") or [{"facts": info.get("facts", {}), "command": ""}]
    facts = [sitting["facts"] for sitting in sittings if sitting["facts"]]
    lines = {
        "command": dict.fromkeys(f"`{s['command']}`" for s in sittings if s["command"]),
        "machine": dict.fromkeys(
            f"{f['cores']} cores ({f['processor']}), device {f['device']}, torch {f['torch']}"
            for f in facts
        )
        or ["not recorded"],
        "commit": dict.fromkeys(f"`{f['commit'][:10]}`" for f in facts if f.get("commit")),
        "hours": [f"{sum(s['seconds'] for s in sittings) / 3600:.1f}"]
        if all("seconds" in s for s in sittings)
        else [],
        "other settings than the suite's": _other_settings(store.suite, info),
    }
    yield from (f"- {name}: {', '.join(values)}" for name, values in lines.items() if values)
    judge = info.get("judge")
    if isinstance(judge, dict):
        print_of = judge["fingerprint"][:16]
        yield f"- judge: right on {judge['accuracy']:.1%} of unseen rows, SHA-256 `{print_of}…`"


def _other_settings(suite: str, info: dict[str, Any]) -> list[str]:
    """The fields of the core's recipe that differ from the suite's."""
    mine = info.get("groups", {}).get("core", info).get("recipe", {})
    own = SUITES[suite].base("core", {}).as_dict() | {"dataset": SUITES[suite].dataset}
    return [
        f"{name} {value} (not {own[name]})"
        for name, value in mine.items()
        if name in own and value != own[name]
    ]


def _costs(store: Store) -> Iterator[str]:
    """The cost of a training step of each method, relative to FM's."""
    rows = costs_of(store.out, store.suite)
    for fm in rows[:1]:
        yield (
            f"A training step of FM with {fm['batch']} rows takes {1000 * fm['value']:.1f} ms on "
            f"{fm['device']} ({fm['processor']}). The others, relative to it (median and quartiles "
            f"of {fm['rounds']} rounds, `python -m tools.costs {store.suite}`):\n"
        )
        others = rows[1:]
        yield "| " + " | ".join(title(row["method"]) for row in others) + " |"
        yield "|" + "---|" * len(others)
        told = (f"{row['relative']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in others)
        yield f"| {' | '.join(told)} |\n"


def _threads(results: Results) -> Iterator[str]:
    """How far the number of threads moves the Fréchet distance of FM on the digits."""
    path = results.folder / "threads.json"
    rows = read_json(path) if path.exists() else []
    values: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == "frechet":
            values.setdefault(row["threads"], {})[row["seed"]] = row["value"]
    if len(values) < 2:
        raise Missing("python -m tools.threads")
    one, two = values[min(values)], values[max(values)]
    yield number(max(abs(one[seed] - two[seed]) for seed in one.keys() & two.keys()))


MADE: Mapping[str, Callable[..., Any]] = {
    "suite": _suite,
    "verdicts": _verdicts,
    "scores": _scores,
    "threads": _threads,
}
