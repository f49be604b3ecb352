"""The networks: each is called as `model(x, t, y=None)` and returns a velocity shaped like x."""

from cfm_lite.models.embed import count_parameters, timestep_features
from cfm_lite.models.encoders import Encoder, teacher
from cfm_lite.models.mlp import MLP
from cfm_lite.models.mmdit import MMDiT
from cfm_lite.models.official import export_official, load_official
from cfm_lite.models.sit import SIT_CONFIGS, SiT
from cfm_lite.models.unet import UNet

__all__ = [
    "MLP",
    "SIT_CONFIGS",
    "Encoder",
    "MMDiT",
    "SiT",
    "UNet",
    "count_parameters",
    "export_official",
    "load_official",
    "teacher",
    "timestep_features",
]
