"""The shipped networks of the plane as the page reads them: half-precision numbers in base64."""

import base64
from typing import Any

import torch

from cfm_lite import pretrained
from cfm_lite.models import MLP

__all__ = ["packed"]


def packed(name: str) -> dict[str, Any]:
    """The network called `name` of `pretrained.RECIPES`: its sizes, and its weights in the order in
    which they are used.
    """
    model = pretrained.load(name)
    if not isinstance(model, MLP) or model.residual or model.data_shape != (2,):
        raise TypeError(f"{name} is not a plain network of the plane")
    weights = torch.cat([tensor.flatten() for tensor in model.state_dict().values()]).half()
    return {
        "hidden": model.hidden_size,
        "depth": model.depth,
        "classes": model.num_classes,
        "weights": base64.b64encode(weights.numpy().astype("<f2").tobytes()).decode(),
    }
