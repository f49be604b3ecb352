"""What the methods buy, as sentences and figures computed from the rows: gain, share of the controls, debiasing, diversity."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from cfm_lite.experiments.answers import NAMES, TITLES, Answer, in_short, quality_panel, rows_figure, title, where
from cfm_lite.experiments.results import Place, Results, interval, number, percent, quality, said_of, tell
from cfm_lite.experiments.statistics import Difference
from cfm_lite.viz import difference_curves

__all__ = ["QUESTIONS", "TRAINED", "controls", "debiasing", "diversity", "gains"]

TRAINED = ("delta_fm", "vecor", "vecor_latent", "dispersive", "repa", "pair", "pair_dispersive", "pair_delta_fm")


def _at_top(results: Results, suite: str, methods: Sequence[str]) -> Iterator[tuple[str, Place]]:
    """Those of `methods` that the core of a suite has, at its largest number of evaluations."""
    for method in methods:
        if method in results.methods(suite):
            yield method, Place(method, nfe=results.nfes(suite)[-1])


def gains(results: Results) -> Answer:
    """Question 1: does each method lower the distance at equal cost, and where?"""
    sentences, panels, told = [], {}, []
    for suite in results.suites:
        found = {method: results.difference(suite, place) for method, place in _at_top(results, suite, TRAINED)}
        told += [(f"{title(method)} {where(suite)}", d) for method, d in found.items()]
        base = results.mean(suite, Place(nfe=results.nfes(suite)[-1]), quality(suite))
        parts = [f"{tell(title(m), d)}{f', {percent(d, base)}' if d else ''}" for m, d in found.items()]
        sentences.append(
            f"**{TITLES.get(suite, suite)}**, {NAMES[quality(suite)]} at {results.nfes(suite)[-1]} evaluations: {'. '.join(parts)}."
        )
        sentences += [line for line in (_few_steps(results, suite), *_where(results, suite)) if line]
        panels[quality_panel(suite)] = curves_by_nfe(results, suite, [m for m in TRAINED if m in found])
    drawn = {panel: curves for panel, curves in panels.items() if curves}
    figure = difference_curves(drawn, xlabel="network evaluations per sample (NFE)") if drawn else None
    return Answer("Does each method lower the distance to the data at equal cost, and where?", in_short(told), sentences, PAPERS, figure)


PAPERS = (
    "ΔFM, ImageNet-256, SiT-XL/2, 400,000 steps, 50 SDE evaluations, no guidance: FID 20.01 → 16.32 (−18 %); VeCoR, same setting: 15.56 "
    "(−22 %); dispersive, SiT-B/2, 80 epochs: 36.49 → 32.35 (−11 %). One run each, no error bars. Ours are small networks on small data, "
    "the Fréchet distance in the features of our own judge, Euler steps, and a weight that was not tuned.",
)


def curves_by_nfe(results: Results, suite: str, methods: Sequence[str]) -> dict[str, dict[float, Difference]]:
    """{method: {evaluations: difference to FM}} in the core of a suite."""
    curves = {m: {float(n): results.difference(suite, Place(m, nfe=n)) for n in results.nfes(suite)} for m in methods}
    return {m: {n: d for n, d in curve.items() if d is not None} for m, curve in curves.items() if any(curve.values())}


def _few_steps(results: Results, suite: str) -> str:
    """Which methods gain or lose clearly with few evaluations."""
    few = [nfe for nfe in results.nfes(suite) if nfe <= 8]
    words = []
    for method in [m for m in TRAINED if m in results.methods(suite)]:
        said = {nfe: d for nfe in few if (d := results.difference(suite, Place(method, nfe=nfe))) is not None and d.clear}
        if said:
            words.append(f"{title(method)} " + ", ".join(f"{said_of(d)} at {nfe} ({number(d.mean, True)})" for nfe, d in said.items()))
    clear = "; ".join(words) or "no method differs clearly from FM"
    return f"With few evaluations ({', '.join(map(str, few))}): {clear}." if few else ""


def _where(results: Results, suite: str) -> Iterator[str]:
    """A sentence on small networks and one on short training."""
    for group, what in (("size", "In smaller networks"), ("length", "With another length of training")):
        rows = results.rows(suite, group)
        if not rows:
            yield f"{what}: not measured yet."
            continue
        variants = list(dict.fromkeys(row["variant"] for row in rows))
        parts = []
        for variant in variants:
            places = [Place(m, group, variant, results.nfes(suite, group)[-1]) for m in results.methods(suite, group) if m in TRAINED]
            parts.append(f"{variant}: " + ", ".join(_short(title(p.method), results.difference(suite, p)) for p in places))
        yield f"{what}, {'; '.join(parts)}."


def _short(name: str, d: Difference | None) -> str:
    return f"{name} not measured" if d is None else f"{name} {said_of(d)} ({number(d.mean, True)})"


CONTROLS = {
    "delta_fm": ("fm_scaled", "fm_retargeted"),
    "vecor": ("fm_scaled", "fm_retargeted_vecor"),
    "vecor_latent": ("fm_scaled", "fm_retargeted_latent"),
}


def controls(results: Results) -> Answer:
    """Question 2: how much of the difference do scaling and re-targeting explain?"""
    sentences, blocks, told = [], {}, []
    for suite in results.suites:
        top = results.nfes(suite)[-1]
        rows: list[tuple[str, Difference | None]] = []
        for method, (scaled, retargeted) in CONTROLS.items():
            if method not in results.methods(suite):
                continue
            names = [name for name in (scaled, retargeted) if name in results.methods(suite)]
            found = {name: results.difference(suite, Place(name, nfe=top)) for name in (method, *names)}
            left = results.difference(suite, Place(method, nfe=top), base=Place(names[-1], nfe=top)) if names else None
            parts = [tell(title(name), d) for name, d in found.items()]
            parts += [f"What is left of {tell(f'{title(method)} against {title(names[-1])}', left)}"] if names else []
            sentences.append(f"**{TITLES.get(suite, suite)}**, {NAMES[quality(suite)]} at {top} evaluations. {'. '.join(parts)}.")
            told += [(f"{title(method)} {where(suite)}", left)]
            rows += [(title(name), d) for name, d in found.items()]
            rows += [(f"{title(method)}\nless {title(names[-1])}", left)] if names else []
        blocks[quality_panel(suite)] = list(dict(rows).items())
    return Answer(
        "How much of that does scaling explain, how much re-targeting, and what is left?",
        f"Against FM that is only re-targeted: {in_short(told, 'clear gains', 'clear losses')}",
        sentences,
        ("The papers do not report either control; a public critique notes that ΔFM's optimum is an affine map of FM's.",),
        rows_figure(blocks),
    )


DEBIASED = {"delta_fm": "delta_fm_debiased", "vecor": "vecor_debiased", "vecor_latent": "vecor_latent_debiased"}


def debiasing(results: Results) -> Answer:
    """Question 3: does debiasing keep the gain or lose it?"""
    sentences, blocks, told = [], {}, []
    for suite in results.suites:
        top, rows = results.nfes(suite)[-1], []
        for method, debiased in DEBIASED.items():
            if not {method, debiased} <= set(results.methods(suite)):
                continue
            before, after = (results.difference(suite, Place(name, nfe=top)) for name in (method, debiased))
            change = results.difference(suite, Place(debiased, nfe=top), base=Place(method, nfe=top))
            sentences.append(
                f"**{TITLES.get(suite, suite)}**: {tell(title(method), before)}; {tell(title(debiased), after)}, both against FM. "
                f"Debiasing itself: {tell('', change).removeprefix(': ')}.{_kept(before, after)}"
            )
            rows += [(title(method), before), (title(debiased), after)]
            told.append((f"{title(method)} {where(suite)}", change))
        blocks[quality_panel(suite)] = rows
    papers = (
        "ΔFM's paper corrects the velocity only inside the guidance interval of its SDE sampler, and reports no run without guidance.",
    )
    short = f"What debiasing itself does: {in_short(told, 'clear gains', 'clear losses')}"
    return Answer("Does debiasing keep or lose the gain?", short, sentences, papers, rows_figure(blocks))


def _kept(before: Difference | None, after: Difference | None) -> str:
    if before is None or after is None or said_of(before) != "gains":
        return ""
    return " The gain is kept." if said_of(after) == "gains" else " The gain is lost."


def diversity(results: Results) -> Answer:
    """Question 7: what does each method cost in diversity?"""
    sentences, blocks, told = [], {}, []
    names = ("fm_scaled", "fm_retargeted", *TRAINED)
    for suite in results.suites:
        found = {m: results.difference(suite, p, "recall") for m, p in _at_top(results, suite, names)}
        found = {m: d for m, d in found.items() if d is not None}
        if found:
            fm = number(results.mean(suite, Place(nfe=results.nfes(suite)[-1]), "recall"))
            told += [(f"{title(m)} {where(suite)}", d) for m, d in found.items()]
            parts = [f"{title(m)} {said_of(d)} ({interval(d)})" for m, d in found.items()]
            sentences.append(f"**{TITLES.get(suite, suite)}**, recall (FM {fm}): {'; '.join(parts)}.")
            blocks[quality_panel(suite, metric="recall")] = [(title(m), d) for m, d in found.items()]
    papers = ("ΔFM and VeCoR, SiT-XL/2: recall 0.63 → 0.63 and 0.62; with REPA 0.65 → 0.64 (VeCoR). Precision rises by 0.03 to 0.04.",)
    short = in_short(told, "Recall rises clearly", "falls clearly")
    return Answer("What does each cost in diversity (recall)?", short, sentences, papers, rows_figure(blocks))


QUESTIONS: Mapping[int, Callable[[Results], Answer]] = {1: gains, 2: controls, 3: debiasing, 7: diversity}
