"""Explorers for JupyterLab: each is one call in a notebook, and moves without anything being trained.

`exact_field` shows what attracts and what repels; `trajectories` where particles go and how they drift; `divergence` what happens as
λ goes to 1; `wrong_velocities` what VeCoR pushes away from; `guidance` how guidance and repulsion meet; `features` what a
dispersive loss does to the features of a batch.
"""

from cfm_lite.lazy import optional

optional("ipywidgets", "notebooks")  # first: each module below imports it, and would fail with a traceback

from cfm_lite.widgets.divergence import divergence  # noqa: E402
from cfm_lite.widgets.exact_field import exact_field  # noqa: E402
from cfm_lite.widgets.explorer import Canvas, Explorer  # noqa: E402
from cfm_lite.widgets.features import features  # noqa: E402
from cfm_lite.widgets.guidance import guidance  # noqa: E402
from cfm_lite.widgets.trajectories import trajectories  # noqa: E402
from cfm_lite.widgets.wrong_velocities import wrong_velocities  # noqa: E402

__all__ = ["Canvas", "Explorer", "divergence", "exact_field", "features", "guidance", "trajectories", "wrong_velocities"]
