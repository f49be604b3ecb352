"""What the methods buy, as sentences and figures computed from the rows: gain, debiasing,
diversity.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cfm_lite.lab.answers import (
    NAMES,
    TITLES,
    Answer,
    absent,
    by_method,
    by_suite,
    clause,
    items,
    least,
    quality_panel,
    rows_figure,
    setting,
    spoken,
    title,
    where,
)
from cfm_lite.lab.claims import GAINS, PAPERS, beside
from cfm_lite.lab.results import Place, Results, number, percent, quality, said_of, tell
from cfm_lite.lab.statistics import Difference
from cfm_lite.lab.suites import SUITES
from cfm_lite.viz import Panel, difference_curves

__all__ = [
    "QUESTIONS",
    "TRAINED",
    "curves_by_field",
    "curves_by_nfe",
    "debiasing",
    "diversity",
    "gains",
]

TRAINED = (
    "delta_fm",
    "vecor",
    "vecor_latent",
    "dispersive",
    "repa",
    "pair",
    "pair_dispersive",
    "pair_delta_fm",
)
FEW = 8  # at most so many evaluations are few


def _at_top(results: Results, suite: str, methods: Sequence[str]) -> Iterator[tuple[str, Place]]:
    """Those of `methods` that the core of a suite has, at its largest number of evaluations."""
    for method in methods:
        if method in results.methods(suite):
            yield method, Place(method, nfe=results.nfes(suite)[-1])


def gains(results: Results) -> Answer:
    """Question 1: does each method lower the distance at equal cost, and where?"""
    sentences, told = [], {}
    for suite in results.suites:
        found = {
            method: results.difference(suite, place)
            for method, place in _at_top(results, suite, TRAINED)
        }
        told[suite] = [(spoken(method), "", d) for method, d in found.items()]
        top = results.nfes(suite)[-1]
        base = results.mean(suite, Place(nfe=top), quality(suite))
        parts = [
            f"{tell(spoken(m), d)}{f', {percent(d, base)}' if d else ''}" for m, d in found.items()
        ]
        sentences.append(
            items(
                f"**{TITLES[suite]}**, {NAMES[quality(suite)]} at {top} evaluations (FM "
                f"{number(base)})",
                parts,
            )
        )
        sentences += [*_few_steps(results, suite), *_elsewhere(results, suite)]
    tops = dict.fromkeys(str(results.nfes(suite)[-1]) for suite in results.suites)
    short = " ".join(
        dict.fromkeys(
            [by_method(told, f"with {' or '.join(tops)} evaluations, "), _with_less(results)]
        )
    )
    panels = _panels(results)
    look = {"xlabel": "network evaluations per sample (NFE)", "columns": len(results.suites)}
    figure = difference_curves(panels, **look) if any(panels.values()) else None
    papers = (*beside(results, GAINS), PAPERS[1])
    return Answer(
        "Does each method lower the distance to the data at equal cost, and where?",
        short,
        sentences,
        papers,
        figure,
    )


def _with_less(results: Results) -> str:
    """A sentence on where the papers see the largest gains: the fewest evaluations, the smallest
    network, the shortest training.
    """
    told: dict[str, list[tuple[str, str, Difference | None]]] = {}
    for suite in results.suites:
        fewest = results.nfes(suite)[0]
        settings = ((f"{fewest} evaluations", Place(nfe=fewest)), *least(results, suite))
        told[suite] = [
            (spoken(m), how, results.difference(suite, replace(place, method=m)))
            for how, place in settings
            for m in TRAINED
        ]
    return by_method(
        told, "with less (the fewest evaluations, the smallest network, the shortest training), "
    )


def _panels(results: Results) -> dict[Panel, dict[str, dict[float, Difference]]]:
    """The differences by evaluations for every suite, then by width and by length of training where
    those were measured: a column for each suite, and nothing where it was not measured.
    """
    blocks = {
        quality_panel(suite): curves_by_nfe(results, suite, TRAINED) for suite in results.suites
    }
    for group, field, name in (
        ("size", "hidden_size", "width of the network"),
        ("length", "steps", "steps of training"),
    ):
        row = {
            quality_panel(suite, xlabel=name): curves_by_field(
                results, suite, group, field, ("fm_scaled", *TRAINED)
            )
            for suite in results.suites
        }
        blocks |= row if any(row.values()) else {}
    return blocks


def curves_by_nfe(
    results: Results,
    suite: str,
    methods: Sequence[str],
    group: str = "core",
    sampler: str = "euler",
) -> dict[str, dict[float, Difference]]:
    """{method: {evaluations: difference to FM}} in a group of a suite."""
    nfes = results.nfes(suite, group) if results.rows(suite, group) else []
    return _measured(
        {
            m: {float(n): results.difference(suite, Place(m, group, "", n, sampler)) for n in nfes}
            for m in methods
        }
    )


def curves_by_field(
    results: Results, suite: str, group: str, field: str, methods: Sequence[str]
) -> dict[str, dict[float, Difference]]:
    """{method: {value of the field: difference to FM}} in a group, and in the core, which has one
    more value of it.
    """
    if not results.rows(suite, group):
        return {}
    top, core = (
        results.nfes(suite, group)[-1],
        float(getattr(SUITES[suite].base("core", {}), field)),
    )
    places = {
        float(variant.rpartition("=")[2]): (group, variant)
        for variant in results.variants(suite, group)
    } | {core: ("core", "")}
    mine = [m for m in methods if m in results.methods(suite, group)]
    return _measured(
        {
            m: {x: results.difference(suite, Place(m, *at, nfe=top)) for x, at in places.items()}
            for m in mine
        }
    )


def _measured(
    curves: Mapping[str, Mapping[float, Difference | None]],
) -> dict[str, dict[float, Difference]]:
    found = {m: {x: d for x, d in curve.items() if d is not None} for m, curve in curves.items()}
    return {m: curve for m, curve in found.items() if curve}


def _few_steps(results: Results, suite: str) -> Iterator[str]:
    """Which methods gain or lose clearly with few evaluations."""
    methods = [m for m in TRAINED if m in results.methods(suite)]
    few = [nfe for nfe in results.nfes(suite) if nfe <= FEW]
    told = [
        clause(
            [(spoken(m), results.difference(suite, Place(m, nfe=nfe))) for m in methods],
            numbers=True,
        )
        for nfe in few
    ]
    if few:
        yield items(
            f"Few evaluations, {where(suite)}",
            (f"with {nfe}, {words}" for nfe, words in zip(few, told)),
        )


ELSEWHERE = {
    "size": "Smaller networks",
    "length": "Other lengths of training",
    "sit": "A small SiT in place of the MLP",
}


def _elsewhere(results: Results, suite: str) -> Iterator[str]:
    """A sentence on smaller networks, one on the length of training, and one on the transformer,
    where a suite has them.
    """
    for group, what in ELSEWHERE.items():
        if group not in SUITES[suite].groups:
            continue
        what = f"{what}, {where(suite)}"
        if not results.rows(suite, group):
            yield absent(suite, group, what)
            continue
        methods, top = (
            [m for m in results.methods(suite, group) if m in TRAINED],
            results.nfes(suite, group)[-1],
        )
        parts = []
        for variant in results.variants(suite, group):
            told = [
                (spoken(m), results.difference(suite, Place(m, group, variant, top)))
                for m in methods
            ]
            parts.append(
                f"{f'{setting(variant)}: ' if variant else ''}{clause(told, numbers=True)}"
            )
        yield items(f"{what}, {top} evaluations", parts)


DEBIASED = {
    "delta_fm": "delta_fm_debiased",
    "vecor": "vecor_debiased",
    "vecor_latent": "vecor_latent_debiased",
}


def debiasing(results: Results) -> Answer:
    """Question 3: does debiasing keep the gain or lose it?"""
    sentences, blocks, told = [], {}, {}
    for suite in results.suites:
        top, rows, told[suite] = results.nfes(suite)[-1], [], []
        for method, debiased in DEBIASED.items():
            before, after = (
                results.difference(suite, Place(name, nfe=top)) for name in (method, debiased)
            )
            change = results.difference(
                suite, Place(debiased, nfe=top), base=Place(method, nfe=top)
            )
            if before is None or after is None or change is None:
                continue
            kept = tell("debiasing itself", change) + _kept(before, after, change)
            head = f"**{TITLES[suite]}, {spoken(method)}**, {NAMES[quality(suite)]} against FM"
            sentences.append(
                items(head, [tell("as trained", before), tell("debiased", after), kept])
            )
            rows += [(title(method), before), (title(debiased), after)]
            told[suite].append((spoken(method), change))
        blocks[quality_panel(suite)] = rows
    short = by_suite(told, lead="when the bias is taken out, ")
    return Answer(
        "Does debiasing keep or lose the gain?", short, sentences, (PAPERS[3],), rows_figure(blocks)
    )


def _kept(before: Difference, after: Difference, change: Difference) -> str:
    """What became of a clear difference to FM."""
    if not before.clear:
        return ""
    what = "gain" if said_of(before) == "gains" else "loss"
    if said_of(after) == said_of(before):
        return f"; the {what} is kept"
    return f"; the {what} is gone" if change.clear else f"; the {what} is no longer clear"


def diversity(results: Results) -> Answer:
    """Question 7: what does each method cost in diversity?"""
    sentences, blocks, told = [], {}, {}
    for suite in results.suites:
        found = {
            m: results.difference(suite, p, "recall")
            for m, p in _at_top(results, suite, ("fm_scaled", "fm_retargeted", *TRAINED))
        }
        found = {m: d for m, d in found.items() if d is not None}
        if not found:
            sentences.append(
                f"**{TITLES[suite]}**: recall is not taken there; the table below has the gap of "
                "the classes."
            )
            continue
        top = results.nfes(suite)[-1]
        told[suite] = [(spoken(m), d) for m, d in found.items()]
        head = f"**{TITLES[suite]}**, recall (FM {number(results.mean(suite, Place(nfe=top), 'recall'))})"
        sentences.append(items(head, (tell(spoken(m), d) for m, d in found.items())))
        blocks[quality_panel(suite, metric="recall")] = [(title(m), d) for m, d in found.items()]
    short = by_suite(told, "gain recall", "lose recall")
    return Answer(
        "What does each cost in diversity (recall)?",
        short,
        sentences,
        (PAPERS[7],),
        rows_figure(blocks),
    )


QUESTIONS: Mapping[int, Callable[[Results], Answer]] = {1: gains, 3: debiasing, 7: diversity}
