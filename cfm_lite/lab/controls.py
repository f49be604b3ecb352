"""How much of a method's difference to FM its controls reach: plain FM scaled, and plain FM
re-targeted to the same optimum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cfm_lite.lab.answers import (
    NAMES,
    TITLES,
    Answer,
    by_suite,
    clause,
    items,
    quality_panel,
    rows_figure,
    sentence,
    setting,
    spoken,
    title,
    where,
)
from cfm_lite.lab.arms import CONTROLS
from cfm_lite.lab.claims import PAPERS
from cfm_lite.lab.results import Place, Results, number, percent, quality, said_of, tell
from cfm_lite.lab.statistics import Difference

__all__ = ["QUESTIONS", "Shares", "controls", "shares"]


@dataclass(frozen=True)
class Shares:
    """A method and its two controls as differences to FM, and what is `left` of the method beside
    re-targeted FM.
    """

    method: str
    mine: Difference
    scaled: Difference | None
    retargeted: Difference | None
    left: Difference | None
    base: float  # FM's own distance

    def rows(self) -> Iterator[tuple[str, Difference | None]]:
        """(label, difference), the last one marked as what is left."""
        labels = (title(self.method), title("fm_scaled"), title(CONTROLS[self.method]), self.marked)
        yield from zip(labels, (self.mine, self.scaled, self.retargeted, self.left))

    @property
    def marked(self) -> str:
        """The label of what is left."""
        return f"{title(self.method)}, minus its control"


def shares(results: Results, suite: str, place: Place) -> Shares | None:
    """A method at a place, beside its controls there; None where it was not measured."""
    mine, scaled, retargeted = (
        results.difference(suite, replace(place, method=name))
        for name in (place.method, "fm_scaled", CONTROLS[place.method])
    )
    left = results.difference(suite, place, base=replace(place, method=CONTROLS[place.method]))
    base = results.mean(suite, results.base(suite, place), quality(suite))
    return Shares(place.method, mine, scaled, retargeted, left, base) if mine else None


def controls(results: Results) -> Answer:
    """Question 2: how much of the difference do scaling and re-targeting explain?"""
    cores = {suite: list(_of_core(results, suite)) for suite in results.suites}
    others = {suite: list(_elsewhere(results, suite)) for suite in results.suites}
    sentences = [_explained(suite, one) for suite, found in cores.items() for one in found]
    sentences += [_told_elsewhere(suite, found) for suite, found in others.items() if found]
    sentences += [told for suite in results.suites for told in _lengths(results, suite)]
    told = {
        suite: [(spoken(one.method), one.left) for one in found] for suite, found in cores.items()
    }
    short = [
        by_suite(told, lead="against FM that is only re-targeted, "),
        *_left_elsewhere(others),
        *_in_the_first(others),
    ]
    blocks = {quality_panel(suite): _rows(found) for suite, found in cores.items()}
    for suite, found in others.items():
        if found:
            first = found[0][0]
            blocks[quality_panel(suite, more=first)] = _rows(
                [one for name, one in found if name == first]
            )
    marked = [one.marked for found in cores.values() for one in found]
    question = "How much of that does scaling explain, how much re-targeting, and what is left?"
    return Answer(question, " ".join(short), sentences, (PAPERS[2],), rows_figure(blocks, marked))


def _rows(found: Sequence[Shares]) -> list[tuple[str, Difference | None]]:
    """The rows of several methods; a control that they share stands once."""
    return list(dict(row for one in found for row in one.rows()).items())


def _of_core(results: Results, suite: str) -> Iterator[Shares]:
    for method in CONTROLS:
        found = shares(results, suite, Place(method, nfe=results.nfes(suite)[-1]))
        if found:
            yield found


def _elsewhere(results: Results, suite: str) -> Iterator[tuple[str, Shares]]:
    """(setting, shares) in smaller networks, the smallest first, then at other lengths of training,
    and in the transformer.
    """
    for group in ("size", "length", "sit"):
        for variant in results.variants(suite, group) or (
            [""] if results.rows(suite, group) else []
        ):
            for method in CONTROLS:
                found = shares(
                    results, suite, Place(method, group, variant, results.nfes(suite, group)[-1])
                )
                if found:
                    yield setting(variant) if variant else "SiT", found


def _explained(suite: str, one: Shares) -> str:
    """A method's difference to FM, what each control reaches of it, and what is left."""
    parts = [tell(spoken(one.method), one.mine), tell("scaled FM", one.scaled)]
    if one.retargeted is None:
        parts.append(f"{spoken(CONTROLS[one.method])}: not measured, so what is left is not known")
    else:
        share = one.mine.clear and one.retargeted.mean * one.mine.mean > 0
        reached = (
            f", {100 * one.retargeted.mean / one.mine.mean:.0f} % of the method's" if share else ""
        )
        parts += [
            f"{tell(spoken(CONTROLS[one.method]), one.retargeted)}{reached}",
            tell("what is left", one.left),
        ]
    return items(
        f"**{TITLES[suite]}, {spoken(one.method)}**, {NAMES[quality(suite)]} against FM", parts
    )


def _told_elsewhere(suite: str, found: Sequence[tuple[str, Shares]]) -> str:
    head = f"**{TITLES[suite]}, other networks and lengths of training**, {NAMES[quality(suite)]} against FM"
    return items(head, (f"{name}, {_in_a_line(one)}" for name, one in found))


def _percents(one: Shares) -> str:
    """A method and its controls, each as a share of FM's distance."""
    named = {
        spoken(one.method): one.mine,
        "scaled FM": one.scaled,
        spoken(CONTROLS[one.method]): one.retargeted,
    }
    return ", ".join(f"{name} {percent(d, one.base)}" for name, d in named.items() if d is not None)


def _in_a_line(one: Shares) -> str:
    """`_percents`, the method's verdict, and what is left."""
    left = f"; what is left: {number(one.left.mean, True)}, {said_of(one.left)}" if one.left else ""
    return f"{_percents(one)}: {said_of(one.mine)}{left}"


TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def _lengths(results: Results, suite: str) -> Iterator[str]:
    """How long each trained velocity is beside the pairs' own; their mean is shorter, and rightly
    so (Jensen's inequality).
    """
    told = []
    for method in ("fm", *CONTROLS, "dispersive"):
        place = Place(method, nfe=results.nfes(suite)[-1])
        values = [results.mean(suite, place, f"velocity_deficit_at_{t}") for t in TIMES]
        told += (
            [f"{spoken(method)}: {', '.join(map(number, values))}"]
            if np.isfinite(values).all()
            else []
        )
    if told:
        yield items(
            f"**{TITLES[suite]}**, ‖v‖/‖u‖, the velocity's length over that of the pairs, at t = "
            f"{', '.join(map(str, TIMES))}",
            told,
        )


def _left_elsewhere(others: Mapping[str, Sequence[tuple[str, Shares]]]) -> Iterator[str]:
    """A sentence on what is left in other networks and at other lengths of training: the clear ones
    by name, the rest by number.
    """
    parts = []
    for suite, found in others.items():
        left = [(f"{spoken(one.method)} with {name}", one.left) for name, one in found if one.left]
        clear = [(name, d) for name, d in left if d.clear]
        rest = f"no clear difference in {len(left) - len(clear)} of {len(left)}"
        parts += (
            [f"{where(suite)} {f'{clause(clear, numbers=True)}, ' if clear else ''}{rest}"]
            if left
            else []
        )
    if parts:
        yield sentence(f"in other networks and trainings, {'; '.join(parts)}")


def _in_the_first(others: Mapping[str, Sequence[tuple[str, Shares]]]) -> Iterator[str]:
    """A sentence on what gains in the first of the other networks, the smallest one, with what the
    controls give there.
    """
    parts = []
    for suite, found in others.items():
        gain = [
            _percents(one)
            for name, one in found
            if name == found[0][0] and said_of(one.mine) == "gains"
        ]
        parts += [f"{where(suite)} with {found[0][0]} {'; '.join(gain)}"] if gain else []
    if parts:
        yield sentence(f"for example, {'; '.join(parts)}")


QUESTIONS = {2: controls}
