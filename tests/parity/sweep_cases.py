"""Comparison of a module with its PyTorch oracle on random configurations.

Outputs are compared, and the gradients by every parameter and every input. All parameters are random, since modulations
start at zero and would hide what they modulate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from emmi_jax.convert import params_from_torch  # noqa: E402
from tests.tolerances import TOLERANCES, assert_close  # noqa: E402

FORWARD, GRADIENT = TOLERANCES["float32"]
CONDITION_DIM = 5
HEADS = {2: 24, 3: 36}  # number of heads: channels; 12 a head, so that the rotation has two frequencies an axis
BRANCHES = ("wing", "body", "wake")


def assert_agrees(
    run: Callable[[Any, Any], Any],
    run_oracle: Callable[[Any], Any],
    module: torch.nn.Module,
    inputs: Any,
    *,
    seed: int,
    convert: Callable[[Mapping[str, Any]], Any] = params_from_torch,
) -> None:
    """Compares run(params, inputs) with run_oracle(inputs), and the gradients of their products with a cotangent.

    Args:
        run: Our computation, with the parameters of `module` converted.
        run_oracle: The same with `module`, whose parameters this function draws.
        module: The oracle's module.
        inputs: A tree of float arrays.
        seed: Of parameters and cotangent.
        convert: Makes parameters of a state dict, and gradients of gradients.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5
            parameter.normal_(0.0, std, generator=generator)
    tensors = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), inputs)
    expected = run_oracle(tensors)
    cotangent = jax.tree.map(lambda y: rng.standard_normal(y.shape, np.float32), expected)
    products = jax.tree.map(lambda y, c: (y * torch.tensor(c)).sum(), expected, cotangent)
    sum(jax.tree.leaves(products)).backward()

    @jax.jit
    def output_and_gradients(params: Any, inputs: Any, cotangent: Any) -> Any:
        y, vjp = jax.vjp(run, params, inputs)
        return y, *vjp(cotangent)

    params = convert(module.state_dict())
    actual, by_params, by_inputs = output_and_gradients(params, inputs, cotangent)
    assert_trees_close(actual, jax.tree.map(lambda y: y.detach().numpy(), expected), FORWARD)
    assert_trees_close(by_params, convert({name: grad(p) for name, p in module.named_parameters()}), GRADIENT)
    assert_trees_close(by_inputs, jax.tree.map(grad, tensors), GRADIENT)


def grad(tensor: torch.Tensor) -> np.ndarray:
    return np.zeros(tensor.shape, np.float32) if tensor.grad is None else tensor.grad.numpy()


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(assert_close, tolerance=tolerance), actual, expected)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def positions(rng: np.random.Generator, num_tokens: int, num_axes: int = 3) -> np.ndarray:
    """Near the origin: at 1000, rounding the angles alone would move gradients by 1e-4."""
    return 5 * rng.random((2, num_tokens, num_axes), np.float32)


def pooling_options(case: Mapping[str, Any]) -> dict[str, Any]:
    """Options that ours and the oracle's have in common."""
    options = {name: value for name, value in case.items() if name != "neighborhood"}
    if case["mode"] == "absrelpos":
        options["input_features_dim"] = None
    return {"radius": None, **options, **case["neighborhood"]}
