"""What the settings do, beyond the eight questions: weights, K, temperature, block, solver and
pairs of methods, from the rows.
"""

from collections.abc import Iterator, Sequence

from cfm_lite.lab.answers import (
    NAMES,
    TITLES,
    Answer,
    absent,
    capital,
    clause,
    items,
    listed,
    quality_panel,
    sentence,
    setting,
    spoken,
    where,
)
from cfm_lite.lab.benefits import TRAINED, curves_by_field, curves_by_nfe
from cfm_lite.lab.results import Place, Results, number, quality, said_of
from cfm_lite.lab.statistics import Difference
from cfm_lite.lab.suites import SUITES
from cfm_lite.viz import Panel, difference_curves

__all__ = ["QUESTIONS", "settings"]

KNOBS = {  # group: (field, name)
    "weight": ("weight", "λ"),
    "k": ("k", "K, negatives per row"),
    "spread": ("spread", "weight of the dispersive loss"),
    "tau": ("tau", "τ of the dispersive loss"),
    "block": ("block", "block that is spread"),
}
SOLVERS = {"euler": "Euler", "heun": "Heun", "sde": "SDE"}


def settings(results: Results) -> Answer:
    """What each setting does to the difference to FM, and whether another value than the core's is
    better.
    """
    sentences, short, blocks = [], [], {}
    for suite in results.suites:
        panels = _panels(results, suite)
        blocks |= panels
        told = [told for group in KNOBS for told in _against_core(results, suite, group)]
        if told:
            short.append(f"{where(suite)} {_clear(told)}")
        for group, (field, name) in KNOBS.items():
            curves = curves_by_field(results, suite, group, field, TRAINED)
            if curves:
                head = f"**{TITLES[suite]}**, {name}, {NAMES[quality(suite)]} against FM"
                sentences.append(
                    items(head, (_values(method, curve) for method, curve in curves.items()))
                )
            elif group in SUITES[suite].groups:
                sentences.append(absent(suite, group, f"{capital(name)}, {where(suite)}"))
        sentences += [*_solvers(results, suite), *_pairs(results, suite)]
    figure = difference_curves(blocks, xlabel="", columns=4, squeeze=True) if blocks else None
    lead = "against the core's own setting, " if short else ""
    return Answer(
        "And the settings: λ, K, τ, block, solver?",
        sentence(lead + "; ".join(short)),
        sentences,
        (),
        figure,
    )


def _panels(results: Results, suite: str) -> dict[Panel, dict[str, dict[float, Difference]]]:
    """A panel for each setting of numbers and for each solver that was run."""
    methods = ("fm_scaled", "fm_retargeted", *TRAINED)
    panels = {
        quality_panel(suite, xlabel=name): curves_by_field(results, suite, group, field, methods)
        for group, (field, name) in KNOBS.items()
    }
    for sampler, name in SOLVERS.items():
        panel = quality_panel(suite, xlabel=f"evaluations, {name}")
        panels[panel] = curves_by_nfe(results, suite, ("fm_scaled", *TRAINED), "solver", sampler)
    return {panel: curves for panel, curves in panels.items() if curves}


def _against_core(
    results: Results, suite: str, group: str
) -> Iterator[tuple[str, str, Difference]]:
    """(method and setting, value, difference to the same method with the core's value) of every
    value of a setting.
    """
    for method in results.methods(suite, group):
        for variant in results.variants(suite, group, method) if method in TRAINED else ():
            top = results.nfes(suite, group)[-1]
            d = results.difference(
                suite, Place(method, group, variant, top), base=Place(method, nfe=top)
            )
            if d is not None:
                name, _, value = setting(variant).rpartition(" ")
                yield f"{spoken(method)} with {name}", value, d


def _clear(told: Sequence[tuple[str, str, Difference]]) -> str:
    """What is clear, and how many settings are not."""
    clear: dict[tuple[str, str], list[tuple[str, Difference]]] = {}
    for who, value, d in told:
        if d.clear:
            clear.setdefault((who, said_of(d)), []).append((value, d))
    if not clear:
        return f"none of {len(told)} other settings makes a clear difference"
    rest = len(told) - sum(map(len, clear.values()))
    named = [
        (f"{who} {listed([value for value, _ in mine])}", mine[0][1])
        for (who, _), mine in clear.items()
    ]
    return clause(named) + (
        f", no clear difference for {rest} other{'s' * (rest > 1)}" if rest else ""
    )


def _values(method: str, curve: dict[float, Difference]) -> str:
    """At which values of a setting a method gains, loses, or does neither."""
    parts = []
    for word in ("gains", "loses", "no clear difference"):
        at = [
            f"{x:g}" + (f" ({number(d.mean, True)})" if d.clear else "")
            for x, d in sorted(curve.items())
            if said_of(d) == word
        ]
        parts += [f"{word} at {listed(at)}"] if at else []
    return f"{spoken(method)}: {', '.join(parts)}"


def _solvers(results: Results, suite: str) -> Iterator[str]:
    """With each solver, and as many evaluations as were tried, what each method does to FM's
    distance.
    """
    if not results.rows(suite, "solver"):
        if "solver" in SUITES[suite].groups:
            yield absent(suite, "solver", f"Solvers, {where(suite)}")
        return
    top, parts = results.nfes(suite, "solver")[-1], []
    for sampler, name in SOLVERS.items():
        places = [Place(m, "solver", "", top, sampler) for m in TRAINED]
        told = [(spoken(place.method), results.difference(suite, place)) for place in places]
        fm = results.mean(suite, Place("fm", "solver", "", top, sampler), quality(suite))
        parts.append(f"{name} (FM {number(fm)}): {clause(told, numbers=True)}")
    yield items(
        f"**{TITLES[suite]}**, solvers with {top} evaluations, {NAMES[quality(suite)]} against FM",
        parts,
    )


def _pairs(results: Results, suite: str) -> Iterator[str]:
    """Pairs of methods beside the core's."""
    if "pairs" not in SUITES[suite].groups:
        return
    if not results.rows(suite, "pairs"):
        yield absent(suite, "pairs", f"Other pairs of methods, {where(suite)}")
        return
    top = results.nfes(suite, "pairs")[-1]
    told = [
        (spoken(m), results.difference(suite, Place(m, "pairs", nfe=top)))
        for m in results.methods(suite, "pairs")
        if m != "fm"
    ]
    yield f"**{TITLES[suite]}**, other pairs of methods: {clause(told, numbers=True)}."


QUESTIONS = {9: settings}
