"""Statistics of a data set, measured in one pass with one chunk in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from emmi_jax.data.moments import Moments
from emmi_jax.data.normalization import LOG_SCALED_FIELDS, FieldScale, Normalizer, signed_log1p
from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.features import GEOMETRY
from emmi_jax.points import CHUNK_ROWS, PointSet, take_points


class DataMoments(NamedTuple):
    """Statistics of the positions and of each field, by branch and name; if log-scaled, of the logarithm too."""

    position: Moments
    fields: dict[str, dict[str, tuple[Moments, Moments | None]]]

    @property
    def channels(self) -> dict[str, dict[str, int]]:
        """Number of channels by branch and field."""
        return {
            branch: {name: len(plain.mean) for name, (plain, _) in of_branch.items()}
            for branch, of_branch in self.fields.items()
        }

    def merge(self, other: DataMoments) -> DataMoments:
        """Returns the statistics of both sets of data together.

        Raises:
            ValueError: The fields differ.
        """
        names, others = ({branch: list(of) for branch, of in data.fields.items()} for data in (self, other))
        if names != others:
            raise ValueError(f"cannot merge statistics of the fields {names} and {others}")
        fields = {
            branch: {name: _merge(known, other.fields[branch][name]) for name, known in of_branch.items()}
            for branch, of_branch in self.fields.items()
        }
        return DataMoments(self.position.merge(other.position), fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON has them."""
        return {
            "position": self.position.to_dict(),
            "fields": {
                branch: {name: [None if m is None else m.to_dict() for m in pair] for name, pair in of_branch.items()}
                for branch, of_branch in self.fields.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Any) -> DataMoments:
        """Inverts `to_dict`.

        Raises:
            ValueError: These are no statistics.
        """
        try:
            position, branches = values["position"], values["fields"].items()
            fields = {
                branch: {
                    name: (Moments.from_dict(plain), None if compressed is None else Moments.from_dict(compressed))
                    for name, (plain, compressed) in of_branch.items()
                }
                for branch, of_branch in branches
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected statistics by branch and field: {error}") from None
        return cls(Moments.from_dict(position), fields)

    def normalizer(
        self,
        *,
        position_range: float,
        divergence_free: Collection[str] = (),
        features: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        mask_nan: bool = False,
    ) -> Normalizer:
        """Returns the normalizer of data with these statistics.

        Args:
            position_range: The longest side of the box of all points, in model units.
            divergence_free: Fields whose scales must preserve zero divergence; they get no logarithm.
            features: What the model takes beside positions, by branch, or ``geometry``, and name.
            mask_nan: Whether fields may be unknown at some points.

        Raises:
            ValueError: A value is not finite, or all positions coincide.
        """
        if self.position.num_not_finite:
            raise ValueError(f"{self.position.num_not_finite} positions are not finite")
        scales = {
            branch: {
                name: FieldScale.of(plain, common_std=True, mask_nan=mask_nan)
                if name in divergence_free
                else FieldScale.of(plain, compressed, mask_nan=mask_nan)
                for name, (plain, compressed) in fields.items()
            }
            for branch, fields in self.fields.items()
        }
        inputs = {
            part: {name: scales[GEOMETRY_BRANCH if part == GEOMETRY else part][name] for name in names}
            for part, names in features.items()
        }
        return Normalizer.from_box(
            self.position.minimum,
            self.position.maximum,
            position_range=position_range,
            fields=scales,
            features=inputs,
        )


def merge(parts: Iterable[DataMoments]) -> DataMoments:
    """Returns the statistics of all parts of the data together.

    Raises:
        ValueError: There is no part, or one has other fields.
    """
    parts = iter(parts)
    merged = next(parts, None)
    if merged is None:
        raise ValueError("cannot measure statistics: there are no points")
    for part in parts:
        merged = merged.merge(part)
    return merged


def measure(chunks: Iterable[tuple[str, PointSet]]) -> DataMoments:
    """Measures data that arrive in chunks.

    Args:
        chunks: The branch and the points of each chunk.

    Raises:
        ValueError: There is no chunk.
    """
    box: Moments | None = None
    fields: dict[str, dict[str, tuple[Moments, Moments | None]]] = {}
    for branch, points in chunks:
        here = Moments.of(points.position)
        box = here if box is None else box.merge(here)
        known = fields.setdefault(branch, {})
        for name, values in points.fields.items():
            parts = Moments.of(values), Moments.of(signed_log1p(values)) if name in LOG_SCALED_FIELDS else None
            known[name] = _merge(known[name], parts) if name in known else parts
    if box is None:
        raise ValueError("cannot measure statistics: there are no points")
    return DataMoments(box, fields)


def point_chunks(points: Mapping[str, PointSet]) -> Iterator[tuple[str, PointSet]]:
    """Yields the points of each branch in chunks, for `measure`."""
    for branch, part in points.items():
        for start in range(0, len(part.position), CHUNK_ROWS):
            yield branch, take_points(part, slice(start, start + CHUNK_ROWS))


def _merge(
    known: tuple[Moments, Moments | None], parts: tuple[Moments, Moments | None]
) -> tuple[Moments, Moments | None]:
    compressed = None if known[1] is None or parts[1] is None else known[1].merge(parts[1])
    return known[0].merge(parts[0]), compressed
