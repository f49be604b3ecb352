"""Explorers for notebooks: each is one call, computes and draws in the page itself, and moves
without anything being trained and without a kernel.

`exact_field` shows what attracts and what repels; `trajectories` where particles go and how they
drift; `own_data` both, on data that a hand draws; `training` how a network learns such a field;
`divergence` what happens as λ goes to 1; `wrong_velocities` what VeCoR pushes away from; `guidance`
how guidance and repulsion meet; `features` what a dispersive loss does to the features of a batch;
`words` what a network draws for a caption: there Python draws, so it asks a kernel.
`alive` puts the explorers of a saved notebook into plain HTML.
"""

from cfm_lite._internal.lazy import optional

for _name in ("ipywidgets", "anywidget"):
    optional(_name, "notebooks")  # first: the modules below would fail with a traceback

from cfm_lite.widgets._divergence import divergence  # noqa: E402
from cfm_lite.widgets._exact_field import exact_field  # noqa: E402
from cfm_lite.widgets._export import alive  # noqa: E402
from cfm_lite.widgets._features import features  # noqa: E402
from cfm_lite.widgets._guidance import guidance  # noqa: E402
from cfm_lite.widgets._own_data import own_data  # noqa: E402
from cfm_lite.widgets._training import training  # noqa: E402
from cfm_lite.widgets._trajectories import trajectories  # noqa: E402
from cfm_lite.widgets._widget import Explorer  # noqa: E402
from cfm_lite.widgets._words import words  # noqa: E402
from cfm_lite.widgets._wrong_velocities import wrong_velocities  # noqa: E402

__all__ = [
    "Explorer",
    "alive",
    "divergence",
    "exact_field",
    "features",
    "guidance",
    "own_data",
    "training",
    "trajectories",
    "words",
    "wrong_velocities",
]
