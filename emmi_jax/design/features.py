"""Features of points on a surface that moves: those that belong to its cells stay with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.normalization import Normalizer
from emmi_jax.deploy.features import GEOMETRY, FeatureNames, FeaturesLike, join_features
from emmi_jax.design.surface import Surface
from emmi_jax.meshes.point_inputs import COMPUTED


def refuse_moving_features(features: FeatureNames) -> None:
    """Refuses a model that takes what changes with the shape, whose derivative would be missing.

    Raises:
        ValueError: It takes normals or distances.
    """
    for part, names in features.items():
        if moving := [name for name in names if name in COMPUTED]:
            raise ValueError(
                f"the model takes {moving[0]!r} of {part!r}, which depends on the shape: only features that stay with "
                "their cell or point, such as labels of parts, can be differentiated past"
            )


def cell_features(
    features: FeatureNames, surface: Surface, given: Mapping[str, FeaturesLike], *, has_own_geometry: bool
) -> dict[str, NDArray[np.float32]]:
    """Returns the features [N, C] of the cells of a surface for the branch ``surface`` and for ``geometry``.

    Args:
        features: What the model takes.
        surface: The surface.
        given: Features of its cells, for each of the two.
        has_own_geometry: Whether another mesh shows the geometry to the model.

    Raises:
        ValueError: They are missing, superfluous or of another shape, or depend on the shape.
    """
    refuse_moving_features(features)
    taken = [part for part in (GEOMETRY_BRANCH, GEOMETRY) if part in features]
    if unknown := sorted(set(given) - set(taken)):
        raise ValueError(f"features of {unknown!r} are given, but the model takes those of {taken!r} on the surface")
    if GEOMETRY in taken and has_own_geometry:
        raise ValueError("the model takes features of the geometry, which the surface has: give no other geometry")
    return {
        part: join_features(f"the cells of the surface, as {part}", given.get(part), features[part], surface.num_cells)
        for part in taken
    }


def scaled_features(normalizer: Normalizer, part: str, features: Any, dtype: Any) -> NDArray[Any]:
    """Returns features [N, C] in model units."""
    scaled: NDArray[Any] = normalizer.normalize_features(part, features).astype(dtype)
    return scaled
