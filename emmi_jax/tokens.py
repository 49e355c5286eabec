"""Token groups: their names and sizes, who attends to whom, and where each group lies in the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.export
import numpy as np


@jax.tree_util.register_static
@dataclass(frozen=True)
class TokenSpec:
    """A contiguous run of tokens; a static pytree node, so it passes through `jax.jit` like any argument.

    Args:
        name: Name of the group, such as ``"surface_anchors"``.
        size: Number of tokens, at least 0, or a symbolic size of an export. None means that the input lacks these
            tokens and that their keys and values come from the cache.

    Raises:
        ValueError: The name is empty or the size is not an integer >= 0.
    """

    name: str
    size: int | None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a token group needs a non-empty string as its name, got {self.name!r}")
        if self.size is None or jax.export.is_symbolic_dim(self.size):
            return
        if isinstance(self.size, bool) or not isinstance(self.size, (int, np.integer)) or self.size < 0:
            raise ValueError(
                f"the size of token group {self.name!r} must be an integer >= 0 or None, got {self.size!r}"
            )
        object.__setattr__(self, "size", int(self.size))

    @classmethod
    def from_dict(cls, entry: Mapping[str, int | None]) -> TokenSpec:
        """Builds a spec from ``{name: size}``.

        Raises:
            ValueError: The mapping does not have exactly one entry.
        """
        if len(entry) != 1:
            raise ValueError(f"a token spec is one {{name: size}} entry, got {len(entry)}: {dict(entry)!r}")
        ((name, size),) = entry.items()
        return cls(name, size)

    def to_dict(self) -> dict[str, int | None]:
        """Returns ``{name: size}``."""
        return {self.name: self.size}


@jax.tree_util.register_static
@dataclass(frozen=True)
class AttentionPattern:
    """These groups attend to those groups; a static pytree node like `TokenSpec`.

    Args:
        query_tokens: Names of the groups that attend.
        key_value_tokens: Names of the groups attended to, in the order in which their keys are concatenated.

    Raises:
        ValueError: A bare string was given instead of a sequence of names, or a name occurs twice.
    """

    query_tokens: tuple[str, ...]
    key_value_tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in ("query_tokens", "key_value_tokens"):
            names = getattr(self, field)
            if isinstance(names, str):
                raise ValueError(f"{field} must be a sequence of group names, got the string {names!r}")
            names = tuple(names)
            if len(set(names)) != len(names):
                raise ValueError(f"{field} names a group twice: {names!r}")
            object.__setattr__(self, field, names)


def token_slices(token_specs: Sequence[TokenSpec]) -> dict[str, slice]:
    """Returns where each group lies in the input; cached groups (size None) are left out.

    Raises:
        ValueError: Two groups have the same name.
    """
    names = [spec.name for spec in token_specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"token group {name!r} appears {names.count(name)} times in token_specs {names!r}")
    slices, start = {}, 0
    for spec in token_specs:
        if spec.size is not None:
            slices[spec.name] = slice(start, start + spec.size)
            start += spec.size
    return slices


def owning_branch(group: str, branches: Sequence[str]) -> str | None:
    """Returns the longest branch name that prefixes the group's name, or None: ``vol`` and ``volume`` can coexist."""
    return max((branch for branch in branches if group.startswith(branch)), key=len, default=None)


def specs_of_branch(token_specs: Sequence[TokenSpec], branch: str, branches: Sequence[str]) -> tuple[TokenSpec, ...]:
    """Returns the specs of the groups that `branch` owns, in their order."""
    return tuple(spec for spec in token_specs if owning_branch(spec.name, branches) == branch)


def resolve_patterns(
    token_specs: Sequence[TokenSpec], patterns: Sequence[AttentionPattern]
) -> tuple[AttentionPattern, ...]:
    """Checks patterns against the specs and drops whatever has no queries in the input.

    A cached group cannot query, so it is dropped from the query side; a pattern left without queries is dropped too.

    Raises:
        ValueError: A group is queried twice, a queried or attended group is not in the specs, a group of the input is
            never queried, or a pattern attends to nothing.
    """
    sizes = {spec.name: spec.size for spec in token_specs}
    queried: list[str] = []
    resolved = []
    for pattern in patterns:
        if not pattern.key_value_tokens:
            raise ValueError(f"the attention pattern of {list(pattern.query_tokens)!r} attends to no group")
        for name in pattern.key_value_tokens:
            if name not in sizes:
                raise ValueError(f"key/value group {name!r} is not in token_specs, which hold {list(sizes)!r}")
        for name in pattern.query_tokens:
            if name not in sizes:
                raise ValueError(f"query group {name!r} is not in token_specs, which hold {list(sizes)!r}")
            if name in queried:
                raise ValueError(f"token group {name!r} is queried by more than one attention pattern")
            queried.append(name)
        queries = tuple(name for name in pattern.query_tokens if sizes[name] is not None)
        if queries:
            resolved.append(AttentionPattern(queries, pattern.key_value_tokens))
    never = [name for name, size in sizes.items() if size is not None and name not in queried]
    if never:
        raise ValueError(f"token groups {never!r} are in token_specs but no attention pattern queries them")
    return tuple(resolved)


def attended_groups(token_specs: Sequence[TokenSpec], patterns: Sequence[AttentionPattern]) -> tuple[str, ...]:
    """Returns the groups that some pattern attends to, in spec order."""
    attended = {name for pattern in patterns for name in pattern.key_value_tokens}
    return tuple(spec.name for spec in token_specs if spec.name in attended)


def pattern_rectangles(
    token_specs: Sequence[TokenSpec], patterns: Sequence[AttentionPattern], key_sizes: Mapping[str, int]
) -> tuple[tuple[int, int, int, int], ...]:
    """Returns the rectangles of the logits [T, S] in which some query attends to some key.

    Args:
        token_specs: Layout of the T query tokens.
        patterns: Resolved attention patterns.
        key_sizes: Number of keys of each attended group, in the order of the S keys.

    Returns:
        (query start, query stop, key start, key stop) for each pair of groups.
    """
    rows = token_slices(token_specs)
    columns = token_slices([TokenSpec(name, size) for name, size in key_sizes.items()])
    return tuple(
        (rows[query].start, rows[query].stop, columns[key].start, columns[key].stop)
        for pattern in patterns
        for query in pattern.query_tokens
        for key in pattern.key_value_tokens
    )
