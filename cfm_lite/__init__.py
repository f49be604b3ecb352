"""cfm_lite: flow matching that learns where to go and where not to go.

Everything below is loaded when it is used first: `cfm_lite.losses.vecor`, `cfm_lite.Trainer`, or
`from cfm_lite import losses, Trainer`. `help(cfm_lite.losses)` shows one module.

The ideas, in the order of the lecture:
    paths            a path joins noise to data; LINEAR, COSINE, VP
    draws            times, pairings of noise with data, labels to drop, generators
    perturbations    wrong but plausible tensors, for VeCoR
    negatives        wrong velocities: of another row, of another class, of a perturbation
    losses           tensors in, a scalar out
    terms            what an objective sums
    objective        a sum of terms on one model; a function for each paper: fm, vecor, repa, ...
    theory           exact densities, scores and velocities of Gaussian mixtures
    guidance         a velocity becomes another velocity: labels, scales, controls, debiasing
    samplers         from noise to data, and the density of data
    metrics          how far samples are from data
    methods          the table of methods: terms, control, way back, label, colour

What serves them:
    errors           every error that is raised on purpose
    engine           checkpoints, averages, several devices
    training         the loop that yields
    models           the networks
    data             toy, digits, words, MNIST, CIFAR-10, latents
    runs             a recipe that decides everything, and a folder that holds what it left
    evaluate         how samples are measured
    pretrained       small networks that ship
    viz              figures

What is built on them:
    widgets          explorers for JupyterLab
    lab              paired experiments
    scale            many images, many devices
    course           what the notebooks share
    demo, cli        the commands

Classes: Alignment, CFMError, Contrastive, Dispersive, FlowMatching, FlowSample, GaussianMixture,
MLP, MMDiT, Objective, Path, Repulsion, Run, SiT, Trainer, UNet.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfm_lite.errors import CFMError as CFMError
    from cfm_lite.models import MLP as MLP
    from cfm_lite.models import MMDiT as MMDiT
    from cfm_lite.models import SiT as SiT
    from cfm_lite.models import UNet as UNet
    from cfm_lite.objective import Objective as Objective
    from cfm_lite.paths import FlowSample as FlowSample
    from cfm_lite.paths import Path as Path
    from cfm_lite.runs import Run as Run
    from cfm_lite.terms import Alignment as Alignment
    from cfm_lite.terms import Contrastive as Contrastive
    from cfm_lite.terms import Dispersive as Dispersive
    from cfm_lite.terms import FlowMatching as FlowMatching
    from cfm_lite.terms import Repulsion as Repulsion
    from cfm_lite.theory import GaussianMixture as GaussianMixture
    from cfm_lite.training import Trainer as Trainer

__version__ = "0.2.0"

_MODULES = {found.name for found in pkgutil.iter_modules(__path__) if found.name[0] != "_"}
_CLASSES = {
    **dict.fromkeys(
        ("Alignment", "Contrastive", "Dispersive", "FlowMatching", "Repulsion"), "terms"
    ),
    **dict.fromkeys(("FlowSample", "Path"), "paths"),
    **dict.fromkeys(("MLP", "MMDiT", "SiT", "UNet"), "models"),
    "CFMError": "errors",
    "GaussianMixture": "theory",
    "Objective": "objective",
    "Run": "runs",
    "Trainer": "training",
}


def __getattr__(name: str) -> Any:
    """A module or class of the index, imported now."""
    if name in _CLASSES:
        return getattr(importlib.import_module(f"cfm_lite.{_CLASSES[name]}"), name)
    if name not in _MODULES:
        raise AttributeError(f"cfm_lite has no {name!r}; dir(cfm_lite) lists what it has.")
    try:
        return importlib.import_module(f"cfm_lite.{name}")
    except ValueError as error:  # an optional package is missing; hasattr and help must not fail
        raise AttributeError(str(error)) from error


def __dir__() -> list[str]:
    return [*_MODULES, *_CLASSES, "__version__"]
