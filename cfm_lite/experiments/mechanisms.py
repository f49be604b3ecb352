"""Why the methods do what they do, as sentences and figures computed from the rows: perturbations, positive pairs, norms, guidance."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from cfm_lite.experiments.answers import NAMES, TITLES, Answer, in_short, quality_panel, rows_figure, title, where
from cfm_lite.experiments.results import Place, Results, number, quality, said_of, tell
from cfm_lite.experiments.statistics import Difference, paired_difference
from cfm_lite.viz import difference_curves, difference_scatter

__all__ = ["QUESTIONS", "counterparts", "interference", "norms", "perturbations"]

SPACES = {"vecor": "velocity", "vecor_latent": "latent", "vecor_image": "image"}
STRUCTURAL, APPEARANCE = ("channel_shuffle", "crop_resize", "cutmix"), ("gaussian_blur", "color_jitter", "additive_noise")
IN_CORE = {"toy": "channel_shuffle", "digits": "crop_resize", "mnist": "crop_resize", "cifar10": "channel_shuffle"}


def _spaces(results: Results, suite: str) -> Iterator[tuple[str, str, Place]]:
    """(space, perturbation, place) of every VeCoR that was run, with the one of the core."""
    for method, space in SPACES.items():
        if method in results.methods(suite):
            yield space, IN_CORE[suite], Place(method, nfe=results.nfes(suite)[-1])
        for group in ("perturbation", "image"):
            variants = dict.fromkeys(row["variant"] for row in results.rows(suite, group) if row["method"] == method)
            for variant in variants:
                yield space, variant.removeprefix("perturb="), Place(method, group, variant, results.nfes(suite, group)[-1])


def perturbations(results: Results) -> Answer:
    """Question 4: which space and which perturbation serve VeCoR best?"""
    sentences, blocks, bests = [], {}, []
    for suite in results.suites:
        found = [(f"{space}: {kind}", kind, place, results.difference(suite, place)) for space, kind, place in _spaces(results, suite)]
        told = [(label, d) for label, _, _, d in found if d is not None]
        if len(told) < 2:
            continue
        best = min(told, key=lambda pair: pair[1].mean)
        bests.append((f"{best[0]} {where(suite)}", best[1]))
        clear = [label for label, d in told if said_of(d) == "gains"]
        lost = [label for label, d in told if said_of(d) == "loses"]
        sentences.append(
            f"**{TITLES.get(suite, suite)}**: the lowest mean has {tell(*best)}. Clear gains: {', '.join(clear) or 'none'}; clear "
            f"losses: {', '.join(lost) or 'none'}; the others show no clear difference. {_structural(results, suite, found)}"
        )
        blocks[quality_panel(suite)] = told
    one = "On one-channel data a channel shuffle is the identity, and the library refuses it; a crop takes its place there."
    papers = (
        "VeCoR, SiT-S/2, FID of the base 64.26: velocity space, channel shuffle 55.13; latent crop about 57; image crop about 58; "
        "geometric perturbations beat those of appearance.",
    )
    return Answer(
        "Which space and perturbation serve VeCoR best, is structural better than appearance, and what happens on one channel?",
        f"The lowest mean of each data set: {in_short(bests, 'clear gains', 'clear losses')}",
        [*sentences, one],
        papers,
        rows_figure(blocks),
    )


def _structural(results: Results, suite: str, found: Sequence[tuple[str, str, Place, Difference | None]]) -> str:
    """Structural against appearance perturbations: the difference of their means, by seed."""
    means = [_by_seed(results, suite, [place for _, kind, place, _ in found if kind in kinds]) for kinds in (STRUCTURAL, APPEARANCE)]
    if not means[0].keys() & means[1].keys():
        return ""
    d = paired_difference("structural", quality(suite), 0, *means)
    return f"{tell('Structural against appearance, mean of each', d)}."


def _by_seed(results: Results, suite: str, places: Sequence[Place]) -> dict[int, float]:
    """{seed: mean over the places} for seeds that all of them have."""
    values = [results.values(suite, place, quality(suite)) for place in places]
    seeds = set.intersection(*(set(v) for v in values)) if values else set()
    return {seed: float(np.mean([v[seed] for v in values])) for seed in seeds}


def counterparts(results: Results) -> Answer:
    """Question 5: does the contrastive counterpart hurt under independent noise and help under restricted noise?"""
    sentences, blocks, short = [], {}, []
    for suite in results.suites:
        rows, told = [], []
        variants = list(dict.fromkeys(row["variant"] for row in results.rows(suite, "counterparts")))
        for variant in variants:
            top = results.nfes(suite, "counterparts")[-1]
            places = {m: Place(m, "counterparts", variant, top) for m in results.methods(suite, "counterparts")}
            found = {m: results.difference(suite, place) for m, place in places.items()}
            told.append(f"{variant}: " + "; ".join(tell(title(m).lower(), d) for m, d in found.items()))
            rows += [(f"{variant}: {m.removeprefix('contrastive_')}", d) for m, d in found.items()]
            short += [(f"{variant}, {m.removeprefix('contrastive_')}, {where(suite)}", d) for m, d in found.items() if m != "dispersive"]
        if told:
            sentences.append(f"**{TITLES.get(suite, suite)}**, against FM. {'. '.join(told)}.")
            blocks[quality_panel(suite)] = rows
    papers = (
        "The dispersive paper: independent noise on the two views hurts, noise levels within 0.005 of each other help a little, and the "
        "dispersive loss without pairs helps most; on SiT-B/2 (FID of the base 36.49): 32.35, cosine 34.33, hinge 33.93, covariance 35.82.",
    )
    question = "Does the contrastive counterpart hurt under independent noise and help under restricted noise?"
    return Answer(question, in_short(short), sentences, papers, rows_figure(blocks))


def norms(results: Results) -> Answer:
    """Question 6: does the dispersive loss help only because norms grow?"""
    sentences, blocks, short = [], {}, []
    for suite in results.suites:
        points = list(_norm_points(results, suite))
        if not points:
            continue
        short += [(f"{label} {where(suite)} (norm × {number(ratio)})", d) for label, ratio, d in points]
        told = "; ".join(f"{label}: norm × {number(ratio)}, {said_of(d)} ({number(d.mean, True)})" for label, ratio, d in points)
        grown = [label for label, ratio, d in points if ratio > 1.1 and said_of(d) != "gains"]
        still = [label for label, ratio, d in points if ratio <= 1.1 and said_of(d) == "gains"]
        sentences.append(
            f"**{TITLES.get(suite, suite)}**, length of the features over FM's: {told}. Longer features without a clear gain: "
            f"{', '.join(grown) or 'none'}. A clear gain without longer features: {', '.join(still) or 'none'}."
        )
        blocks[quality_panel(suite)] = points
    figure = difference_scatter(blocks, xlabel="length of the features, relative to FM's") if blocks else None
    papers = (
        "Notes on the paper say that the norms of all blocks grow by about an order of magnitude though one block is spread. The ℓ2 form "
        "seeks scale; the cosine form cannot see it.",
    )
    return Answer("Does dispersive help only because norms grow?", in_short(short), sentences, papers, figure)


def _norm_points(results: Results, suite: str) -> Iterator[tuple[str, float, Difference]]:
    """(label, length of the features over FM's, difference in quality) of every dispersive arm."""
    top = results.nfes(suite)[-1]
    length = results.mean(suite, Place(nfe=top), "feature_norm")
    places = {"core": Place("dispersive", nfe=top)}
    for group in ("counterparts", "spread"):
        variants = dict.fromkeys(row["variant"] for row in results.rows(suite, group) if row["method"] == "dispersive")
        places |= {v: Place("dispersive", group, v, results.nfes(suite, group)[-1]) for v in variants if v != "infonce_l2"}
    for label, place in places.items():
        d, norm = results.difference(suite, place), results.mean(suite, place, "feature_norm")
        if d is not None and norm > 0 and length > 0:
            yield label, norm / length, d


GUIDED = ("fm_retargeted", "delta_fm", "delta_fm_debiased")


def interference(results: Results) -> Answer:
    """Question 8: do ΔFM and guidance interfere, and does the correction cure it?"""
    sentences, blocks, short = [], {}, []
    for suite in results.suites:
        rows = results.rows(suite, "guidance")
        scales = sorted({row["guidance"] for row in rows})
        if len(scales) < 2:
            continue
        curves = {m: {s: results.difference(suite, Place(m, "guidance", guidance=s)) for s in scales} for m in GUIDED}
        blocks[quality_panel(suite)] = {
            m: {s: d for s, d in curve.items() if d is not None} for m, curve in curves.items() if any(curve.values())
        }
        told = [f"at scale {s:g} " + "; ".join(tell(title(m), curves[m][s]) for m in GUIDED[1:]) for s in scales]
        grows = {m: _growth(results, suite, m, scales[0], scales[-1]) for m in GUIDED[1:]}
        short += [(f"{title(m)} {where(suite)}", d) for m, d in grows.items()]
        more = "; ".join(tell(title(m), d) for m, d in grows.items())
        sentences.append(
            f"**{TITLES.get(suite, suite)}**, {NAMES[quality(suite)]} against FM with the same guidance: {'. '.join(told)}. "
            f"Change of that difference from scale {scales[0]:g} to {scales[-1]:g}: {more}."
        )
    figure = difference_curves(blocks, xlabel="guidance scale", log=False) if blocks else None
    papers = (
        "ΔFM's paper says that both push the same way, corrects it, and reports FID 2.09 → 1.97 with guidance on ImageNet-256; one run, "
        "no error bars.",
    )
    told = f"What more guidance does to the difference to FM: {in_short(short, 'it gains clearly', 'it loses clearly')}"
    return Answer("Do ΔFM and guidance interfere, and does the correction cure it?", told, sentences, papers, figure)


def _growth(results: Results, suite: str, method: str, low: float, high: float) -> Difference | None:
    """How the difference to FM changes from one scale to another, by seed; a loss means that guidance makes it worse."""
    values = {}
    for scale in (low, high):
        mine, base = (results.values(suite, Place(m, "guidance", guidance=scale), quality(suite)) for m in (method, "fm"))
        values[scale] = {seed: mine[seed] - base[seed] for seed in mine.keys() & base.keys()}
    return paired_difference(method, quality(suite), 0, values[high], values[low]) if values[low].keys() & values[high].keys() else None


QUESTIONS: Mapping[int, Callable[[Results], Answer]] = {4: perturbations, 5: counterparts, 6: norms, 8: interference}
