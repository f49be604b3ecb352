"""The exercises of notebook 10: how a batch is computed, what training needs in memory, and how
long it takes.
"""

import math
from collections.abc import Callable

from cfm_lite.course import exercise
from cfm_lite.scale.budget import state_bytes

__all__ = ["accumulation", "days", "memory"]


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


@exercise("10.2")
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
