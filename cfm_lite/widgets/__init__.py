"""Explorers for JupyterLab: each is one call in a notebook, and moves without anything being trained.

`exact_field` shows what attracts and what repels; `trajectories` where particles go and how they drift; `divergence` what happens as
λ goes to 1; `wrong_velocities` what VeCoR pushes away from; `guidance` how guidance and repulsion meet; `features` what a
dispersive loss does to the features of a batch.
"""

from cfm_lite.widgets.exact_field import exact_field
from cfm_lite.widgets.explorer import Canvas, Explorer

__all__ = ["Canvas", "Explorer", "exact_field"]
