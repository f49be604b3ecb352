"""The figures that only the notebooks draw, by topic; `cfm_lite.viz` holds the others and what all
are made of.
"""

from cfm_lite.course.figures.coverage import neighbourhoods
from cfm_lite.course.figures.features import (
    feature_maps,
    paired_differences,
    profiles,
    similarity_maps,
    spreading,
)
from cfm_lite.course.figures.film import film
from cfm_lite.course.figures.maps import plane_maps, scalar_maps
from cfm_lite.course.figures.marginals import (
    conditional_velocities,
    path_coefficients,
    snapshots,
    spacetime,
)
from cfm_lite.course.figures.matching import pairings, regression_slice
from cfm_lite.course.figures.repulsion import (
    attract_repel,
    channel_stems,
    class_paths,
    loss_bowls,
    negative_distances,
)
from cfm_lite.course.figures.tokens import patches, table_map, token_maps

__all__ = [
    "attract_repel",
    "channel_stems",
    "class_paths",
    "conditional_velocities",
    "feature_maps",
    "film",
    "loss_bowls",
    "negative_distances",
    "neighbourhoods",
    "paired_differences",
    "pairings",
    "patches",
    "path_coefficients",
    "plane_maps",
    "profiles",
    "regression_slice",
    "scalar_maps",
    "similarity_maps",
    "snapshots",
    "spacetime",
    "spreading",
    "table_map",
    "token_maps",
]
