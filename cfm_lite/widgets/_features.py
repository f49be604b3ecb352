"""What a dispersive loss sees in a batch of features, and where it pushes them: real digits,
shipped networks, all four variants.

The gradient of the loss with respect to the features is followed for some steps; the network stays
as it is.
"""

import base64
import functools
from typing import Any

import torch

from cfm_lite import pretrained
from cfm_lite.data import digits
from cfm_lite.losses import VARIANTS
from cfm_lite.methods import FIRST, METHODS
from cfm_lite.widgets._widget import Choice, Explorer, Whole

__all__ = ["features"]

_BATCH, _STEPS, _TIME, _BLOCKS = 40, 40, 0.7, (1, 2, 3)
_NETWORKS = tuple(f"digits_{name}" for name in FIRST)


class Features(Explorer):
    """`step` counts the steps along the gradient of the loss."""

    face = "features"
    step = Whole(0, 0, _STEPS)
    network = Choice("digits_fm", _NETWORKS)
    block = Choice(1, _BLOCKS)
    variant = Choice("infonce_l2", tuple(VARIANTS))
    tau = Choice(0.5, (0.1, 0.25, 0.5, 1.0, 2.0))


@functools.cache
@torch.no_grad()
def _data() -> dict[str, Any]:
    """The features of the batch in every block of every network, and the digits' labels."""
    x, y = digits.load("train")
    rows = torch.cat([(y == c).nonzero()[: _BATCH // 10, 0] for c in range(10)])
    x1, y = x[rows], y[rows]
    # in float32, as the shipped networks are
    g = torch.Generator("cpu").manual_seed(0)
    x0 = torch.randn(x1.shape, generator=g, dtype=torch.float32, device="cpu")
    t = torch.full((len(x1),), _TIME, dtype=torch.float32, device="cpu")
    found = {}
    for name in _NETWORKS:
        model: Any = pretrained.load(name)
        h = model.forward_features(_TIME * x1 + (1 - _TIME) * x0, t, y, blocks=_BLOCKS)[1]
        halves = [h[block].half().numpy().astype("<f2").tobytes() for block in _BLOCKS]
        found[name] = {
            "label": METHODS[name.removeprefix("digits_")].label,
            "blocks": [base64.b64encode(block).decode() for block in halves],
        }
    return {"labels": y.tolist(), "features": found}


def features(
    network: str = "digits_fm", block: int = 1, variant: str = "infonce_l2", tau: float = 0.5
) -> Explorer:
    """Explore the features of 40 real digits at t = 0.7: the network, its block, the variant, τ,
    and steps along the loss's gradient.

    Left: cosine similarity of the centred features, sorted by class. Middle: the features in the
    plane of their first two principal components, coloured by class; grey lines show how far the
    loss has pushed each. Right: the loss along the way. Raises ConfigError for a wrong value.

    >>> features(variant="hinge", block=2).tau
    0.5
    """
    return Features(_data(), network=network, block=block, variant=variant, tau=tau)
