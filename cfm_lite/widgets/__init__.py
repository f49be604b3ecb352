"""Explorers for JupyterLab: each is one call in a notebook, and moves without anything being
trained.

`exact_field` shows what attracts and what repels; `trajectories` where particles go and how they
drift; `divergence` what happens as λ goes to 1; `wrong_velocities` what VeCoR pushes away from;
`guidance` how guidance and repulsion meet; `features` what a dispersive loss does to the features
of a batch.
"""

from cfm_lite._internal.lazy import optional

optional(
    "ipywidgets", "notebooks"
)  # first: each module below imports it, and would fail with a traceback

from cfm_lite.widgets._divergence import divergence  # noqa: E402
from cfm_lite.widgets._exact_field import exact_field  # noqa: E402
from cfm_lite.widgets._features import features  # noqa: E402
from cfm_lite.widgets._guidance import guidance  # noqa: E402
from cfm_lite.widgets._trajectories import trajectories  # noqa: E402
from cfm_lite.widgets._wrong_velocities import wrong_velocities  # noqa: E402
from cfm_lite.widgets.explorer import Canvas, Explorer  # noqa: E402

__all__ = [
    "Canvas",
    "Explorer",
    "divergence",
    "exact_field",
    "features",
    "guidance",
    "trajectories",
    "wrong_velocities",
]
