"""Token specs, attention patterns and the layout of a sequence."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import AttentionPattern, TokenSpec
from emmi_jax.ops.masks import rectangle_mask
from emmi_jax.tokens import (
    attended_groups,
    owning_branch,
    pattern_rectangles,
    resolve_patterns,
    specs_of_branch,
    token_slices,
)
from tests.cases import specs

SPECS = specs(a=2, b=0, c=None, d=3)


@pytest.mark.parametrize("size", [0, 7, None, np.int64(3)])
def test_a_token_spec_goes_to_a_dict_and_back(size: Any) -> None:
    spec = TokenSpec("surface_anchors", size)
    assert spec.to_dict() == {"surface_anchors": size}
    assert TokenSpec.from_dict(spec.to_dict()) == spec
    assert type(spec.size) in (int, type(None))


def test_equal_token_specs_are_equal_hash_values() -> None:
    spec = TokenSpec("a", 3)
    for same in (TokenSpec("a", np.int32(3)), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert same == spec
        assert hash(same) == hash(spec)
    assert len({spec, TokenSpec("a", 4), TokenSpec("b", 3), TokenSpec("a", None)}) == 4


def test_specs_and_patterns_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TokenSpec("a", 3).size = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        AttentionPattern(("a",), ("b",)).query_tokens = ("c",)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("", 3, "non-empty string as its name, got ''"),
        (3, 3, "non-empty string as its name, got 3"),
        (None, 3, "non-empty string as its name, got None"),
        ("a", -1, "size of token group 'a' must be an integer >= 0 or None, got -1"),
        ("a", 2.0, "size of token group 'a' .* got 2.0"),
        ("a", "2", "size of token group 'a' .* got '2'"),
        ("a", True, "size of token group 'a' .* got True"),
    ],
)
def test_a_malformed_token_spec_is_refused(name: Any, size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenSpec(name, size)


@pytest.mark.parametrize("entry", [{}, {"a": 1, "b": 2}])
def test_a_spec_is_built_from_exactly_one_entry(entry: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"one {{name: size}} entry, got {len(entry)}"):
        TokenSpec.from_dict(entry)


def test_patterns_take_any_sequence_and_hash_alike() -> None:
    pattern = AttentionPattern(["a", "b"], ["c"])  # type: ignore[arg-type]
    assert pattern == AttentionPattern(("a", "b"), ("c",))
    assert hash(pattern) == hash(AttentionPattern(("a", "b"), ("c",)))


@pytest.mark.parametrize(
    ("query_tokens", "key_value_tokens", "message"),
    [
        ("ab", ("c",), "query_tokens must be a sequence of group names, got the string 'ab'"),
        (("a",), "c", "key_value_tokens must be a sequence of group names, got the string 'c'"),
        (("a", "b", "a"), ("c",), r"query_tokens names a group twice: \('a', 'b', 'a'\)"),
        (("a",), ("c", "c"), r"key_value_tokens names a group twice: \('c', 'c'\)"),
    ],
)
def test_a_malformed_pattern_is_refused(query_tokens: Any, key_value_tokens: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionPattern(query_tokens, key_value_tokens)


def test_slices_follow_each_other_and_leave_out_cached_groups() -> None:
    assert token_slices(SPECS) == {"a": slice(0, 2), "b": slice(2, 2), "d": slice(2, 5)}
    assert token_slices(()) == {}


def test_a_group_that_appears_twice_is_named() -> None:
    with pytest.raises(ValueError, match=r"token group 'b' appears 2 times in token_specs \['a', 'b', 'b'\]"):
        token_slices((TokenSpec("a", 1), TokenSpec("b", 1), TokenSpec("b", 2)))


@pytest.mark.parametrize(
    ("group", "branch"),
    [
        ("vol_anchors", "vol"),
        ("volume_anchors", "volume"),
        ("volume", "volume"),
        ("vol", "vol"),
        ("volumes", "volume"),
        ("a_vol", None),
        ("vo", None),
    ],
)
@pytest.mark.parametrize("branches", [("vol", "volume"), ("volume", "vol")])
def test_the_longest_branch_name_that_prefixes_a_group_owns_it(
    group: str, branch: str | None, branches: tuple[str, ...]
) -> None:
    assert owning_branch(group, branches) == branch


def test_cached_groups_do_not_query_and_patterns_without_queries_are_dropped() -> None:
    patterns = [AttentionPattern(("a", "c", "b"), ("c", "d")), AttentionPattern(("d",), ("a",))]
    assert resolve_patterns(SPECS, patterns) == (AttentionPattern(("a", "b"), ("c", "d")), patterns[1])
    cached = specs(a=None, c=None, d=3)
    only_cached = [AttentionPattern(("a",), ("c",)), AttentionPattern(("d",), ("d",))]
    assert resolve_patterns(cached, only_cached) == (only_cached[1],)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([("abd", "c"), ("d", "c")], "token group 'd' is queried by more than one attention pattern"),
        ([("abdx", "c")], r"query group 'x' is not in token_specs, which hold \['a', 'b', 'c', 'd'\]"),
        ([("abd", "cx")], r"key/value group 'x' is not in token_specs, which hold \['a', 'b', 'c', 'd'\]"),
        ([("a", "c")], r"token groups \['b', 'd'\] are in token_specs but no attention pattern queries them"),
        ([], r"token groups \['a', 'b', 'd'\] are in token_specs but no attention pattern queries them"),
        ([("abd", "")], r"the attention pattern of \['a', 'b', 'd'\] attends to no group"),
    ],
)
def test_patterns_that_do_not_fit_the_specs_are_refused(patterns: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_patterns(SPECS, [AttentionPattern(tuple(queries), tuple(keys)) for queries, keys in patterns])


def test_attended_groups_come_in_the_order_of_the_specs() -> None:
    patterns = [AttentionPattern(("a",), ("d", "c")), AttentionPattern(("b", "d"), ("c",))]
    assert attended_groups(SPECS, patterns) == ("c", "d")


def test_the_rectangles_cover_exactly_the_patterns() -> None:
    patterns = [AttentionPattern(("a", "b"), ("c",)), AttentionPattern(("d",), ("d", "a"))]
    mask = rectangle_mask(pattern_rectangles(SPECS, patterns, {"a": 2, "c": 4, "d": 3}), 5, 9)
    expected = np.zeros((5, 9), bool)
    expected[:2, 2:6] = True
    expected[2:, :2] = True
    expected[2:, 6:] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_branch_owns_its_specs_in_their_order() -> None:
    token_specs = specs(volume_b=1, vol_a=2, volume_a=None)
    assert specs_of_branch(token_specs, "volume", ("vol", "volume")) == (token_specs[0], token_specs[2])


@pytest.mark.parametrize("value", [TokenSpec("a", 3), AttentionPattern(("a",), ("b",))])
def test_specs_and_patterns_are_pytree_nodes_without_leaves(value: Any) -> None:
    leaves, structure = jax.tree.flatten(value)
    assert not leaves
    assert jax.tree.unflatten(structure, leaves) is value
    assert structure == jax.tree.structure(copy.deepcopy(value))
