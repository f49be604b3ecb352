"""Why the methods do what they do, as sentences and figures computed from the rows: perturbations,
positive pairs, norms, guidance.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from cfm_lite.lab import claims
from cfm_lite.lab.answers import (
    NAMES,
    TITLES,
    Answer,
    Told,
    absent,
    by_suite,
    clause,
    items,
    listed,
    quality_panel,
    rows_figure,
    sentence,
    setting,
    spoken,
    where,
)
from cfm_lite.lab.results import Place, Results, interval, number, quality, said_of, tell
from cfm_lite.lab.statistics import Difference, paired_difference
from cfm_lite.lab.suites import SUITES
from cfm_lite.viz import difference_curves, difference_scatter

__all__ = ["QUESTIONS", "counterparts", "interference", "norms", "perturbations"]

SPACES = {"vecor": "velocity", "vecor_latent": "latent", "vecor_image": "image"}
STRUCTURAL, APPEARANCE = (
    ("channel_shuffle", "crop_resize", "cutmix"),
    ("gaussian_blur", "color_jitter", "additive_noise"),
)


def _missing(results: Results, *groups: str) -> Iterator[str]:
    """A sentence for each of `groups` that a suite should have and has no rows of."""
    for suite in results.suites:
        for group in groups:
            if group in SUITES[suite].groups and not results.rows(suite, group):
                yield absent(suite, group, f"Group `{group}` {where(suite)}")


def _spaces(results: Results, suite: str) -> Iterator[tuple[str, str, Place]]:
    """(space, perturbation, place) of every VeCoR that was run, with the one of the core."""
    for method, space in SPACES.items():
        if method in results.methods(suite):
            yield (
                space,
                SUITES[suite].base("core", {}).perturb,
                Place(method, nfe=results.nfes(suite)[-1]),
            )
        for group in ("perturbation", "image"):
            for variant in results.variants(suite, group, method):
                yield (
                    space,
                    variant.removeprefix("perturb="),
                    Place(method, group, variant, results.nfes(suite, group)[-1]),
                )


def perturbations(results: Results) -> Answer:
    """Question 4: which space and which perturbation serve VeCoR best?"""
    sentences, blocks, bests = [], {}, []
    for suite in results.suites:
        found = [
            (space, kind, place, results.difference(suite, place))
            for space, kind, place in _spaces(results, suite)
        ]
        told = [
            (f"{setting(kind)} in {space} space", d) for space, kind, _, d in found if d is not None
        ]
        if len(told) < 2:
            continue
        name, d = min(told, key=lambda pair: pair[1].mean)
        bests.append(f"{where(suite)} {name} ({said_of(d)}, {interval(d)})")
        sentences.append(f"**{TITLES[suite]}**, against FM: {clause(told, numbers=True)}.")
        sentences += [*_structural(results, suite, found)]
        blocks[quality_panel(suite)] = sorted(told, key=lambda pair: pair[1].mean)
    one = (
        "On one channel a channel shuffle is the identity, and the library refuses it: there the "
        "core crops and resizes. In the plane the "
        "two coordinates are the channels, and a shuffle swaps them."
    )
    return Answer(
        "Which space and perturbation serve VeCoR best, is structural better than appearance, and "
        "what happens on one channel?",
        sentence(f"the lowest mean: {'; '.join(bests)}" if bests else ""),
        [*sentences, *_missing(results, "perturbation", "image"), one],
        (*claims.beside(results, claims.SPACES), claims.PAPERS[4]),
        rows_figure(blocks),
    )


def _structural(
    results: Results, suite: str, found: Sequence[tuple[str, str, Place, Difference | None]]
) -> Iterator[str]:
    """Structural against appearance perturbations: the difference of their means, by seed."""
    means = [
        _by_seed(results, suite, [place for _, kind, place, _ in found if kind in kinds])
        for kinds in (STRUCTURAL, APPEARANCE)
    ]
    if means[0].keys() & means[1].keys():
        d = paired_difference("structural", quality(suite), 0, *means)
        yield f"{tell(f'Structure against appearance {where(suite)}, the mean of each', d)}."


def _by_seed(results: Results, suite: str, places: Sequence[Place]) -> dict[int, float]:
    """{seed: mean over the places} for seeds that all of them have."""
    values = [results.values(suite, place, quality(suite)) for place in places]
    seeds = set.intersection(*(set(v) for v in values)) if values else set()
    return {seed: float(np.mean([v[seed] for v in values])) for seed in seeds}


NOISES = {"contrastive_independent": "independent noise", "contrastive_restricted": "near noise"}


def counterparts(results: Results) -> Answer:
    """Question 5: does the contrastive counterpart hurt under independent noise and help under
    restricted noise?
    """
    sentences, blocks, marked = [], {}, []
    told_by: dict[str, dict[str, Told]] = {method: {} for method in NOISES}
    for suite in results.suites:
        found = _of_counterparts(results, suite)
        if not found:
            continue
        forms = {
            name: [(setting(variant), d) for (variant, one), (d, _) in found.items() if one == name]
            for _, name in found
        }
        for method in NOISES:
            told_by[method][suite] = forms.get(method, [])
        told = [f"{spoken(name)}: {clause(mine, numbers=True)}" for name, mine in forms.items()]
        sentences.append(items(f"**{TITLES[suite]}**, {NAMES[quality(suite)]} against FM", told))
        pairs = [
            (f"{setting(variant)} with {NOISES[name]}", d)
            for (variant, name), (_, d) in found.items()
            if name in NOISES
        ]
        sentences.append(
            f"Pairs against the dispersive loss of the same form, {where(suite)}: "
            f"{clause(pairs, numbers=True)}."
        )
        rows = {
            f"{setting(variant)}, {NOISES.get(name, 'no pairs')}": d
            for (variant, name), (d, _) in found.items()
        }
        marked += [label for label in rows if label.endswith("no pairs")]
        blocks[quality_panel(suite)] = list(rows.items())
    question = "Does the contrastive counterpart hurt under independent noise and help under restricted noise?"
    text = " ".join(
        by_suite(told, lead=f"with {NOISES[method]}, ") for method, told in told_by.items()
    )
    return Answer(
        question,
        text if blocks else sentence(""),
        [*sentences, *_missing(results, "counterparts")],
        (claims.PAPERS[5],),
        rows_figure(blocks, marked),
    )


def _of_counterparts(
    results: Results, suite: str
) -> dict[tuple[str, str], tuple[Difference, Difference | None]]:
    """{(form, arm): (difference to FM, difference to the dispersive loss of that form)}."""
    group, found = "counterparts", {}
    for variant in results.variants(suite, group):
        top = results.nfes(suite, group)[-1]
        for method in results.methods(suite, group):
            place, free = (
                Place(method, group, variant, top),
                Place("dispersive", group, variant, top),
            )
            d = results.difference(suite, place)
            if d is not None:
                found[variant, method] = d, results.difference(suite, place, base=free)
    return found


GROWN = 1.1  # features that are so much longer than FM's have grown


def norms(results: Results) -> Answer:
    """Question 6: does the dispersive loss help only because norms grow?"""
    sentences, blocks, short = [], {}, []
    for suite in results.suites:
        points = list(_norm_points(results, suite))
        if not points:
            continue
        told = (
            f"{label}: {number(ratio)} times, {said_of(d)} ({number(d.mean, True)})"
            for label, ratio, d in points
        )
        sentences.append(
            items(
                f"**{TITLES[suite]}**, length of the features over FM's, and "
                f"{NAMES[quality(suite)]} minus FM's",
                told,
            )
        )
        short.append(f"{where(suite)} {_because_of_norms(points)}")
        blocks[quality_panel(suite)] = points
    figure = (
        difference_scatter(blocks, xlabel="length of the features, relative to FM's")
        if blocks
        else None
    )
    question, missing = (
        "Does dispersive help only because norms grow?",
        _missing(results, "spread", "counterparts"),
    )
    return Answer(
        question, sentence("; ".join(short)), [*sentences, *missing], (claims.PAPERS[6],), figure
    )


def _because_of_norms(points: Sequence[tuple[str, float, Difference]]) -> str:
    """What the points of one suite allow to be said."""
    gain = [(label, ratio) for label, ratio, d in points if said_of(d) == "gains"]
    grown = [ratio for _, ratio, _ in points if ratio > GROWN]
    if not gain:
        length = (
            f"are up to {number(max(grown))} times as long as FM's"
            if grown
            else "keep their length"
        )
        return (
            "no form that was measured gains, so there is no help to explain (the features "
            f"{length})"
        )
    still = [label for label, ratio in gain if ratio <= GROWN]
    if still:
        return (
            f"no: {listed(still)} gain{'s' * (len(still) == 1)} with features no longer than FM's"
        )
    return (
        f"every form that gains has longer features ({listed([label for label, _ in gain])}), so "
        "it may be so"
    )


def _norm_points(results: Results, suite: str) -> Iterator[tuple[str, float, Difference]]:
    """(label, length of the features over FM's, difference in quality) of every dispersive arm."""
    top, core = results.nfes(suite)[-1], SUITES[suite].base("core", {})
    length = results.mean(suite, Place(nfe=top), "feature_norm")
    places = {f"ℓ2, weight {core.spread:g}": Place("dispersive", nfe=top)}
    for group in ("counterparts", "spread"):
        high = [v for v in results.variants(suite, group, "dispersive") if v != core.variant]
        places |= {
            f"{'ℓ2, ' * (group == 'spread')}{setting(v)}": Place(
                "dispersive", group, v, results.nfes(suite, group)[-1]
            )
            for v in high
        }
    for label, place in places.items():
        d, norm = results.difference(suite, place), results.mean(suite, place, "feature_norm")
        if d is not None and norm > 0 and length > 0:
            yield label, norm / length, d


GUIDED = ("fm_retargeted", "delta_fm", "delta_fm_debiased")


def interference(results: Results) -> Answer:
    """Question 8: do ΔFM and guidance interfere, and does the correction cure it?"""
    sentences, blocks, short = [], {}, []
    for suite in results.suites:
        scales = sorted({row["guidance"] for row in results.rows(suite, "guidance")})
        if len(scales) < 2:
            continue
        curves = {
            m: {s: results.difference(suite, Place(m, "guidance", guidance=s)) for s in scales}
            for m in GUIDED
        }
        found = {
            m: {s: d for s, d in curve.items() if d is not None} for m, curve in curves.items()
        }
        blocks[quality_panel(suite)] = {m: curve for m, curve in found.items() if curve}
        told = [
            f"at scale {s:g} {clause([(spoken(m), curves[m][s]) for m in GUIDED], numbers=True)}"
            for s in scales
        ]
        sentences.append(
            items(
                f"**{TITLES[suite]}**, {NAMES[quality(suite)]} against FM with the same guidance",
                told,
            )
        )
        sentences.append(_cure(results, suite, scales))
        short.append(f"{where(suite)} {_interferes(results, suite, scales)}")
    figure = difference_curves(blocks, xlabel="guidance scale", log=False) if blocks else None
    question = "Do ΔFM and guidance interfere, and does the correction cure it?"
    return Answer(
        question,
        sentence("; ".join(short)),
        [*sentences, *_missing(results, "guidance")],
        (claims.PAPERS[8],),
        figure,
    )


def _interferes(results: Results, suite: str, scales: Sequence[float]) -> str:
    """What more guidance does to ΔFM's difference to FM, and to that of debiased ΔFM."""
    low, high = scales[0], scales[-1]
    told = [(spoken(m), _growth(results, suite, m, low, high)) for m in GUIDED[1:]]
    places = [Place(m, "guidance", guidance=high) for m in ("delta_fm_debiased", "delta_fm")]
    cure = results.difference(suite, places[0], base=places[1])
    word = (
        {"gains": "helps", "loses": "hurts"}.get(said_of(cure), "makes no clear difference")
        if cure
        else "was not measured"
    )
    return (
        f"from scale {low:g} to {high:g}, beside FM, {clause(told, 'gain', 'lose')}, and at "
        f"{high:g} the correction {word}"
    )


def _cure(results: Results, suite: str, scales: Sequence[float]) -> str:
    """The numbers of `_interferes`, and debiased ΔFM against ΔFM with most guidance."""
    low, high = scales[0], scales[-1]
    grown = [tell(spoken(m), _growth(results, suite, m, low, high)) for m in GUIDED[1:]]
    places = [Place(m, "guidance", guidance=high) for m in ("delta_fm_debiased", "delta_fm")]
    cure = results.difference(suite, places[0], base=places[1])
    change = f"Change of that difference from scale {low:g} to {high:g}, {where(suite)}"
    return items(change, [*grown, tell(f"the correction itself at {high:g}", cure)])


def _growth(
    results: Results, suite: str, method: str, low: float, high: float
) -> Difference | None:
    """How the difference to FM changes from one scale to another, by seed; a loss means that
    guidance makes it worse.
    """
    values = {}
    for scale in (low, high):
        mine, base = (
            results.values(suite, Place(m, "guidance", guidance=scale), quality(suite))
            for m in (method, "fm")
        )
        values[scale] = {seed: mine[seed] - base[seed] for seed in mine.keys() & base.keys()}
    return (
        paired_difference(method, quality(suite), 0, values[high], values[low])
        if values[low].keys() & values[high].keys()
        else None
    )


QUESTIONS: Mapping[int, Callable[[Results], Answer]] = {
    4: perturbations,
    5: counterparts,
    6: norms,
    8: interference,
}
