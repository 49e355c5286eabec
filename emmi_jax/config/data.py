"""Which data are read, and how points are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from emmi_jax.config.base import Config
from emmi_jax.config.checks import check_count

Method: TypeAlias = Literal["uniform", "weighted", "farthest"]


class FoamSelection(NamedTuple):
    """Which part of a case to read.

    Args:
        patches: Regular expressions; the surface consists of the patches whose whole name matches one of them. None at
            all means the walls.
        time: Name of a time; None means the latest.
    """

    patches: tuple[str, ...] = ()
    time: str | None = None


LATEST_WALLS = FoamSelection()


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How many points of a case the model sees, and how they are drawn.

    Args:
        num_anchors: Anchors per branch in training.
        num_queries: Queries per branch in training, beside the anchors.
        num_test_anchors: Anchors per branch after training.
        num_geometry_points: Points P of the geometry; 0 for a model without a geometry branch.
        num_supernodes: Supernodes M among them in training.
        num_test_supernodes: Supernodes among them after training.
        method: How anchors, and queries in training, are drawn from the points: `uniform`, or `weighted` by cell size,
            which is uniform in area or volume.
        supernode_method: How supernodes are drawn from the geometry points: `uniform`, or `farthest` from one another.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    num_anchors: int
    num_queries: int
    num_test_anchors: int
    num_geometry_points: int = 0
    num_supernodes: int = 0
    num_test_supernodes: int = 0
    method: Method = "uniform"
    supernode_method: Method = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in (("num_anchors", 1), ("num_queries", 0), ("num_test_anchors", 1)):
            check_count(name, getattr(self, name), minimum)
        for name in ("num_geometry_points", "num_supernodes", "num_test_supernodes"):
            check_count(name, getattr(self, name), 0)
        for name, known in (("method", ("uniform", "weighted")), ("supernode_method", ("uniform", "farthest"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if max(self.num_supernodes, self.num_test_supernodes) > self.num_geometry_points:
            raise ValueError(
                f"supernodes are geometry points: expected at most {self.num_geometry_points}, "
                f"got {self.num_supernodes} in training and {self.num_test_supernodes} after"
            )
