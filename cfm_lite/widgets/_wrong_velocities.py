"""What VeCoR pushes away from: a real digit, a perturbation of it or of its velocity, and how far
the wrong velocity is from the right one.

right: u = x1 - x0    wrong, velocity space: A(u)    latent space: A(x1) - x0, the same noise
"""

import base64

from cfm_lite.data import digits
from cfm_lite.methods import PERTURBATIONS
from cfm_lite.widgets._widget import Choice, Explorer, Number, Whole

__all__ = ["wrong_velocities"]

_COUNT = 64  # digits


class WrongVelocities(Explorer):
    """`index` is the digit's row among the first 64 of the training set."""

    face = "wrong_velocities"
    strength = Number(0.4, 0.05, 1)
    t = Number(0.5, 0, 1)
    index = Whole(0, 0, _COUNT - 1)
    perturb = Choice("crop_resize", tuple(PERTURBATIONS))
    space = Choice("latent", ("velocity", "latent"))


def wrong_velocities(
    perturb: str = "crop_resize", space: str = "latent", strength: float = 0.4, index: int = 0
) -> Explorer:
    """Explore negatives on real 8x8 digits: which digit, which perturbation, how strong, in which
    space, and at which time t.

    Top: the digit, its perturbed form and the state x_t. Bottom: the right velocity (green frame),
    the wrong one (vermilion frame) and their difference, signed. The bars compare the mean squared
    distance to the velocity of another digit, which ΔFM would take. Raises ConfigError for a wrong
    value.

    >>> wrong_velocities("gaussian_blur", index=3).space
    'latent'
    """
    x1, _ = digits.load("train")
    levels = ((x1[:_COUNT] + 1) * 8).round().byte()  # the 17 greys of the data set
    data = {"digits": base64.b64encode(levels.numpy().tobytes()).decode()}
    return WrongVelocities(
        data,
        perturb=perturb,
        space=space,
        strength=strength,
        index=index,
    )
