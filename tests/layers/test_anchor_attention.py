"""Multi-branch anchor attention: patterns of each subclass, errors and their order, subclasses of one's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emmi_jax import (
    AnchorAttentionConfig,
    AttentionConfig,
    AttentionPattern,
    CrossAnchorAttention,
    JointAnchorAttention,
    MissingAnchorTokenError,
    MissingBranchTokensError,
    MixedAttention,
    MultiBranchAnchorAttention,
    SelfAnchorAttention,
    TokenSpec,
    TransformerBlock,
    UnexpectedTokenError,
)
from tests.cases import (
    ALL_IMPLEMENTATIONS,
    ANCHOR_ATTENTIONS,
    ANCHOR_LAYOUTS,
    PORTABLE,
    SMALL_LAYOUTS,
    anchor_example,
    apply_compiled,
    random_array,
    random_params,
    run_together,
    specs,
)
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
KIND_AND_LAYOUT = [(kind, name) for name in SMALL_LAYOUTS for kind in ANCHOR_LAYOUTS[name].kinds]
MIXED = MixedAttention(AttentionConfig(dim=24, num_heads=2, use_rope=True, implementation="masked"))
every_implementation = pytest.mark.parametrize("implementation", PORTABLE)
every_kind = pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)


def config(*branches: str, **values: object) -> AnchorAttentionConfig:
    return AnchorAttentionConfig(dim=24, num_heads=2, branches=branches, **values)


def patterns_of(module: MultiBranchAnchorAttention, token_specs: Sequence[TokenSpec]) -> list[tuple[set, list]]:
    patterns = module._create_attention_patterns(token_specs)
    return [(set(pattern.query_tokens), list(pattern.key_value_tokens)) for pattern in patterns]


# Patterns --------------------------------------------------------------------------------------------------------

ALL = {"wing_anchors", "wing_queries", "body_anchors", "wake_anchors", "wake_queries", "wake_more"}
THREE_BRANCHES = specs(wake_queries=3, wing_anchors=4, body_anchors=2, wing_queries=1, wake_anchors=3, wake_more=2)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (
            SelfAnchorAttention,
            [
                ({"wing_anchors", "wing_queries"}, ["wing_anchors"]),
                ({"body_anchors"}, ["body_anchors"]),
                ({"wake_anchors", "wake_queries", "wake_more"}, ["wake_anchors"]),
            ],
        ),
        (
            CrossAnchorAttention,
            [
                ({"wing_anchors", "wing_queries"}, ["body_anchors", "wake_anchors"]),
                ({"body_anchors"}, ["wing_anchors", "wake_anchors"]),
                ({"wake_anchors", "wake_queries", "wake_more"}, ["wing_anchors", "body_anchors"]),
            ],
        ),
        (JointAnchorAttention, [(ALL, ["wing_anchors", "body_anchors", "wake_anchors"])]),
    ],
)
def test_groups_attend_to_the_anchors_of_the_right_branches_in_branch_order(
    cls: type[MultiBranchAnchorAttention], expected: list[tuple[set, list]]
) -> None:
    assert patterns_of(cls(config("wing", "body", "wake")), THREE_BRANCHES) == expected


def test_branches_of_which_one_prefixes_the_other_coexist() -> None:
    layout = ANCHOR_LAYOUTS["shared_prefix"]
    vol, volume = {"vol_anchors", "vol_queries"}, {"volume_anchors", "volume_queries"}
    for branches in (("vol", "volume"), ("volume", "vol")):
        own = patterns_of(SelfAnchorAttention(config(*branches)), layout.token_specs)
        assert sorted(own, key=str) == sorted([(vol, ["vol_anchors"]), (volume, ["volume_anchors"])], key=str)
        cross = patterns_of(CrossAnchorAttention(config(*branches)), layout.token_specs)
        assert sorted(cross, key=str) == sorted([(vol, ["volume_anchors"]), (volume, ["vol_anchors"])], key=str)


def test_a_branch_without_a_longer_namesake_owns_every_group_it_prefixes() -> None:
    patterns = patterns_of(SelfAnchorAttention(config("vol")), specs(vol_anchors=2, volume_queries=3))
    assert patterns == [({"vol_anchors", "volume_queries"}, ["vol_anchors"])]


@functools.cache
def outputs(implementation: str) -> dict[tuple[str, str], jax.Array]:
    """Outputs of every kind on every layout."""
    examples = {key: anchor_example(*key, implementation=implementation) for key in KIND_AND_LAYOUT}
    return run_together(examples, lambda _, example: example())


@functools.cache
def mixed_outputs() -> dict[tuple[str, str], jax.Array]:
    """Outputs of `masked` mixed attention under the patterns of every kind on every layout."""
    examples = {}
    for key in KIND_AND_LAYOUT:
        example = anchor_example(*key)
        mixed = {"params": example.variables["params"]["mixed_attention"]}
        patterns = tuple(example.module._create_attention_patterns(example.token_specs))
        examples[key] = dataclasses.replace(example, module=MIXED, variables=mixed, patterns=patterns)
    return run_together(examples, lambda _, example: example())


@pytest.mark.parametrize(("kind", "layout_name"), KIND_AND_LAYOUT)
@every_implementation
def test_output_is_that_of_mixed_attention_under_the_patterns(implementation: str, kind: str, layout_name: str) -> None:
    key = (kind, layout_name)
    assert_close(outputs(implementation)[key], mixed_outputs()[key], FORWARD)


@pytest.mark.parametrize("sequence", [list, tuple])
def test_token_specs_may_be_any_sequence(sequence: Callable[..., Sequence[TokenSpec]]) -> None:
    module = SelfAnchorAttention(config("wing", "body", "wake"))
    x = jnp.zeros((1, 15, 24))
    y, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, sequence(THREE_BRANCHES)))
    assert y.shape == x.shape


# Attributes and parameters ---------------------------------------------------------------------------------------


def test_branches_and_suffix_can_be_read() -> None:
    module = CrossAnchorAttention(config("a", "b", anchor_suffix="/anchors"))
    assert (module.branches, module.anchor_suffix) == (("a", "b"), "/anchors")


@pytest.mark.parametrize("bias", [True, False])
@every_kind
@every_implementation
def test_parameters_have_the_names_of_the_reference(implementation: str, kind: str, bias: bool) -> None:
    example = anchor_example(kind, "two_branches", bias=bias, implementation=implementation)
    shapes = {"/".join(path): a.shape for path, a in flatten_dict(example.variables["params"]).items()}
    kernels = {"mixed_attention/qkv/kernel": (24, 72), "mixed_attention/proj/kernel": (24, 24)}
    biases = {"mixed_attention/qkv/bias": (72,), "mixed_attention/proj/bias": (24,)}
    assert shapes == kernels | (biases if bias else {})


def test_modules_of_equal_configurations_are_equal() -> None:
    assert SelfAnchorAttention(config("a", "b")) == SelfAnchorAttention(config("a", "b"))
    assert hash(SelfAnchorAttention(config("a", "b"))) == hash(SelfAnchorAttention(config("a", "b")))
    assert SelfAnchorAttention(config("a", "b")) != CrossAnchorAttention(config("a", "b"))


@pytest.mark.parametrize("implementation", ALL_IMPLEMENTATIONS)
def test_dropout_is_passed_on_and_reproducible(implementation: str) -> None:
    example = anchor_example("cross", "two_branches", dropout=0.5, implementation=implementation)
    first, again, other = (example(deterministic=False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, example())


# The boolean mask of `masked` alone would take 4 GB.
@pytest.mark.parametrize("implementation", [name for name in ALL_IMPLEMENTATIONS if name != "masked"])
@every_kind
def test_published_sizes_have_the_right_shapes(implementation: str, kind: str) -> None:
    layout = ANCHOR_LAYOUTS["published"]
    values = {"dim": 192, "num_heads": 3, "implementation": implementation, "dtype": "bfloat16"}
    module = ANCHOR_ATTENTIONS[kind](AnchorAttentionConfig(branches=layout.branches, **values))
    x = jax.ShapeDtypeStruct((1, layout.num_tokens, 192), jnp.bfloat16)
    y, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, layout.token_specs), x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert sum(a.size for a in jax.tree.leaves(variables)) == 4 * 192 * 192 + 4 * 192


# Errors ----------------------------------------------------------------------------------------------------------


def test_the_base_class_cannot_be_used_itself() -> None:
    with pytest.raises(TypeError, match="MultiBranchAnchorAttention is a base class"):
        MultiBranchAnchorAttention(config("a"))


@every_kind
def test_a_configuration_without_branches_is_refused(kind: str) -> None:
    message = rf"{ANCHOR_ATTENTIONS[kind].__name__} needs an AnchorAttentionConfig, got AttentionConfig\("
    plain = AttentionConfig(dim=24, num_heads=2)
    with pytest.raises(ValueError, match=message):
        ANCHOR_ATTENTIONS[kind](plain)
    with pytest.raises(ValueError, match=message):
        TransformerBlock(plain, attention=ANCHOR_ATTENTIONS[kind]).init(jax.random.key(0), jnp.zeros((1, 2, 24)))


@pytest.mark.parametrize("cls", [CrossAnchorAttention, JointAnchorAttention])
def test_attention_between_branches_needs_two(cls: type[MultiBranchAnchorAttention]) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs at least 2 branches, got \['surface'\]"):
        cls(config("surface"))


def test_self_attention_needs_one_branch_only() -> None:
    assert SelfAnchorAttention(config("surface")).branches == ("surface",)


@pytest.mark.parametrize("error", [UnexpectedTokenError, MissingBranchTokensError, MissingAnchorTokenError])
def test_the_errors_are_value_errors_of_their_own(error: type[Exception]) -> None:
    assert error.__bases__ == (ValueError,)


@pytest.mark.parametrize(
    ("branches", "token_specs", "error", "message"),
    [
        (("a", "b"), specs(a_anchors=1, b_anchors=1, c=1), UnexpectedTokenError, r"'c' .* branches \['a', 'b'\]"),
        (("ab", "b"), specs(ab_anchors=1, b_anchors=1, a=1), UnexpectedTokenError, "token group 'a' belongs to none"),
        (("a", "b"), specs(a_anchors=1), MissingBranchTokensError, r"branch 'b'; the groups are \['a_anchors'\]"),
        (("a", "b"), specs(), MissingBranchTokensError, "no token group belongs to branch 'a'"),
        (("a", "b"), specs(a_anchors=1, b_queries=1), MissingAnchorTokenError, "'b' lacks its anchors 'b_anchors'"),
        (("a", "b"), specs(a_anchors=1, b_anchors_x=1), MissingAnchorTokenError, "'b' lacks its anchors 'b_anchors'"),
        (("vol", "volume"), specs(volume_anchors=1), MissingBranchTokensError, "branch 'vol'"),
        (("vol", "volume"), specs(vol_anchors=1, vol_x=1), MissingBranchTokensError, "branch 'volume'"),
        # The order: unexpected groups first, then branch by branch.
        (("a", "b"), specs(a_queries=1, c=1), UnexpectedTokenError, "token group 'c'"),
        (("a", "b"), specs(a_queries=1), MissingAnchorTokenError, "branch 'a' lacks"),
        (("b", "a"), specs(a_queries=1), MissingBranchTokensError, "branch 'b'"),
        (("a", "b"), specs(c=1, d=1), UnexpectedTokenError, "token group 'c'"),
    ],
)
@every_kind
def test_groups_that_do_not_fit_the_branches_are_named(
    kind: str,
    branches: tuple[str, ...],
    token_specs: tuple[TokenSpec, ...],
    error: type[ValueError],
    message: str,
) -> None:
    module = ANCHOR_ATTENTIONS[kind](config(*branches))
    # x has another number of tokens, and rotations are superfluous: the groups are checked first.
    with pytest.raises(error, match=message) as caught:
        module.init(jax.random.key(0), jnp.zeros((1, 9, 24)), token_specs, jnp.zeros(3))
    assert caught.type is error


def test_another_suffix_is_looked_for_and_named() -> None:
    module = SelfAnchorAttention(config("a", anchor_suffix="/fixed"))
    with pytest.raises(MissingAnchorTokenError, match="branch 'a' lacks its anchors 'a/fixed'"):
        module.init(jax.random.key(0), jnp.zeros((1, 2, 24)), specs(a_anchors=2))


@every_kind
def test_errors_of_mixed_attention_come_through(kind: str) -> None:
    module = ANCHOR_ATTENTIONS[kind](config("a", "b"))
    with pytest.raises(ValueError, match="token_specs sum to 5 tokens but x has 9"):
        module.init(jax.random.key(0), jnp.zeros((1, 9, 24)), specs(a_anchors=2, b_anchors=3))
    with pytest.raises(ValueError, match="a_anchors"):
        module.init(
            jax.random.key(0), jnp.zeros((1, 5, 24)), (*specs(a_anchors=2, b_anchors=1), TokenSpec("a_anchors", 2))
        )


# Subclasses of one's own -----------------------------------------------------------------------------------------


class FirstBranchAttention(MultiBranchAnchorAttention):
    """Every group attends to the anchors of the first branch, and those of a chosen one to their own."""

    own: str = "b"
    min_branches: ClassVar[int] = 2

    def _create_attention_patterns(self, token_specs: Sequence[TokenSpec]) -> Sequence[AttentionPattern]:
        own = tuple(spec.name for spec in token_specs if spec.name.startswith(self.own))
        rest = tuple(spec.name for spec in token_specs if spec.name not in own)
        first = self.branches[0] + self.anchor_suffix
        return [AttentionPattern(rest, (first,)), AttentionPattern(own, (self.own + self.anchor_suffix,))]


@every_implementation
def test_a_subclass_only_says_who_attends_to_whom(implementation: str) -> None:
    token_specs = specs(a_anchors=3, b_anchors=2, c_anchors=4, c_queries=2)
    module = FirstBranchAttention(config("a", "b", "c", implementation=implementation), own="c")
    x = random_array(np.random.default_rng(0), (1, 11, 24))
    variables = random_params(module, x, token_specs)
    y = apply_compiled(module, variables, x, (token_specs,), None)
    patterns = (
        AttentionPattern(("a_anchors", "b_anchors"), ("a_anchors",)),
        AttentionPattern(("c_anchors", "c_queries"), ("c_anchors",)),
    )
    mixed = MixedAttention(AttentionConfig(dim=24, num_heads=2, implementation="masked"))
    params = {"params": variables["params"]["mixed_attention"]}
    assert_close(y, apply_compiled(mixed, params, x, (token_specs, patterns), None), FORWARD)


def test_a_subclass_is_checked_like_the_others() -> None:
    with pytest.raises(ValueError, match=r"FirstBranchAttention needs at least 2 branches, got \['a'\]"):
        FirstBranchAttention(config("a"))
    module = FirstBranchAttention(config("a", "b"))
    with pytest.raises(MissingAnchorTokenError, match="branch 'b' lacks its anchors 'b_anchors'"):
        module.init(jax.random.key(0), jnp.zeros((1, 2, 24)), specs(a_anchors=1, b=1))


def test_a_subclass_with_patterns_that_do_not_fit_is_refused() -> None:
    module = FirstBranchAttention(config("a", "b"), own="x")
    with pytest.raises(ValueError, match="key/value group 'x_anchors' is not in token_specs"):
        module.init(jax.random.key(0), jnp.zeros((1, 2, 24)), specs(a_anchors=1, b_anchors=1))


def test_a_subclass_without_patterns_is_refused() -> None:
    class Unfinished(MultiBranchAnchorAttention):
        pass

    with pytest.raises(TypeError, match="Unfinished is a base class: subclass it and implement _create_attention"):
        Unfinished(config("a"))
