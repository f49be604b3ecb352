"""The exercises of notebook 10: how a batch is computed, what training needs in memory, how long
it takes, and a term of one's own in a fair experiment.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from cfm_lite import objective
from cfm_lite._internal.networks import seeded
from cfm_lite.course import exercise
from cfm_lite.models import MLP
from cfm_lite.scale.budget import state_bytes

__all__ = ["accumulation", "days", "memory", "own_term"]


@exercise("10.1")
def accumulation(answer: Callable[[int, int, int], int]) -> str | None:
    """`steps_per_update(batch, gpus, micro)`: how many micro-batches each GPU adds up before one
    update.
    """
    for batch, gpus, micro in ((256, 8, 32), (256, 1, 32), (256, 2, 16), (1024, 4, 64), (96, 3, 8)):
        wanted, seen = batch // (gpus * micro), answer(batch, gpus, micro)
        if seen == batch // micro and gpus > 1:
            return "you forgot that the GPUs share the batch: each holds batch / gpus of it."
        if seen == batch // gpus and micro > 1:
            return (
                "that is how many images a GPU holds; how many micro-batches of `micro` images are "
                "these?"
            )
        if not math.isclose(float(seen), wanted):
            return (
                f"a batch of {batch} on {gpus} GPUs, {micro} images at once: gpus x micro x "
                f"(answer) must be {batch}; you gave {seen}."
            )
    return None


@exercise("10.2", ours=lambda parameters: state_bytes(parameters) / 1e9)
def memory(answer: Callable[[int], float]) -> str | None:
    """`gigabytes(parameters)`: parameters, gradients, two moments of AdamW and the average, all in
    float32, in units of 1e9 bytes.
    """
    for parameters in (675_111_184, 32_957_200, 1_000_000):
        wanted, seen = state_bytes(parameters) / 1e9, float(answer(parameters))
        if math.isclose(seen, wanted, rel_tol=1e-6):
            continue
        for factor, hint in (
            (
                4 / 20,
                "that is the parameters alone. Count the gradient, AdamW's two moments and the "
                "average too.",
            ),
            (
                16 / 20,
                "nearly: one of the five is missing. The average (EMA) is a whole copy of the "
                "parameters.",
            ),
            (5 / 20, "you counted numbers, not bytes: a float32 takes four."),
            (1e9, "in units of 1e9 bytes, please."),
            (1e9 / 2**30, "that is in units of 2**30 bytes; the exercise asks for units of 1e9."),
        ):
            if math.isclose(seen, wanted * factor, rel_tol=1e-3):
                return hint
        return (
            f"for {parameters:,} parameters you gave {seen:.4g}; count what is kept per parameter: "
            "five float32 numbers."
        )
    return None


@exercise("10.3")
def days(answer: Callable[[int, int, float], float]) -> str | None:
    """`days(steps, batch, images_per_second)` of all GPUs together."""
    for steps, batch, speed in ((400_000, 256, 500.0), (7_000_000, 256, 4000.0), (1000, 32, 10.0)):
        wanted, seen = steps * batch / speed / 86_400, float(answer(steps, batch, speed))
        if math.isclose(seen, wanted, rel_tol=1e-6):
            continue
        for factor, hint in (
            (24.0, "that is hours; a day has 24."),
            (86_400.0, "that is seconds; a day has 86,400."),
            (1 / batch, "a step takes a whole batch of images, not one."),
        ):
            if math.isclose(seen, wanted * factor, rel_tol=1e-3):
                return hint
        return (
            f"{steps:,} steps of {batch} images at {speed:g} images a second: how many images, how "
            f"many seconds? You gave {seen:.4g} days."
        )
    return None


@exercise("10.4")
def own_term(answer: tuple[Any, Any]) -> str | None:
    """(MyTerm, rows): a term that is FM with weight 0, and a paired experiment with a control."""
    term, rows = answer
    if rows is ... or rows is None:
        return "not answered yet: `rows` is still `...`."
    return _wrong_term(term) or _wrong_rows(rows)


def _wrong_term(term: Any) -> str | None:
    x1, y = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    with seeded(0):
        model = MLP(2, 16, 1, num_classes=2)
        for weight in model.parameters():  # a fresh network says 0, and so would many a term
            torch.nn.init.normal_(weight, std=0.3)
    model.train()
    plain, _ = objective.fm(model, shard=16).at(seed=0, step=0)(x1, y)
    idle, _ = objective.fm(model, shard=16).plus(term(0.0)).at(seed=0, step=0)(x1, y)
    if not torch.equal(plain, idle):
        return "with weight 0 the loss must be FM's, bit for bit; does `weight` multiply the term?"
    with_it = objective.fm(model, shard=16).plus(term(0.05)).at(seed=0, step=0)
    (total, terms), (again, _) = with_it(x1, y), with_it(x1, y)
    if len(terms) != 2:
        return f"FM and your term are two terms; the objective lists {sorted(terms)}."
    if not torch.equal(total, again):
        return "two calls differ: draw everything in `prepare`, from the generators of draw.each()."
    if torch.equal(total, plain):
        return "with weight 0.05 the loss is still FM's. Does the call return a number above 0?"
    total.backward()
    if not all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):
        return "the gradient is not finite."
    return None


def _wrong_rows(rows: Any) -> str | None:
    arms: dict[str, dict[int, float]] = {}
    for row in rows:
        if not {"method", "seed", "nfe", "metric", "value"} <= set(row):
            return "each row needs method, seed, nfe, metric and value."
        arms.setdefault(row["method"], {})[row["seed"]] = float(row["value"])
    if not {"fm", "mine", "fm_scaled"} <= set(arms):
        return f'the arms "fm", "mine" and "fm_scaled" are needed; the rows have {sorted(arms)}.'
    if len(arms["fm"]) < 5:
        return f"{len(arms['fm'])} seeds are too few for an interval; take five at least."
    if any(set(values) != set(arms["fm"]) for values in arms.values()):
        return (
            "the arms have different seeds, so they are not paired. Run every arm with each seed."
        )
    if len({(row["nfe"], row["metric"]) for row in rows}) > 1:
        return "all rows need one metric and one number of evaluations."
    if any(not math.isfinite(v) for values in arms.values() for v in values.values()):
        return "some values are not finite."
    for a, b in (("fm", "mine"), ("fm", "fm_scaled"), ("mine", "fm_scaled")):
        if arms[a] == arms[b]:
            return f"{a} and {b} have the same values in every seed: is one measured twice?"
    return None
