"""One conversion as a table: which state-dict entries hold which parameter, and of what shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from emmi_jax.convert.entries import to_tensor
from emmi_jax.files.pt import to_numpy

_DTYPES = tuple(np.dtype(dtype) for dtype in (np.float16, jnp.bfloat16, np.float32, np.float64))


class Dim(NamedTuple):
    """A size: `factor` times a number that all shapes with the same symbol share; without a symbol, `factor` itself.

    `more` is another such size to be added.
    """

    factor: int
    symbol: str = ""
    more: tuple[int, str] | None = None

    def size(self, sizes: Mapping[str, int]) -> int | str:
        """Returns the size, or "?" if it does not follow from those of symbols."""
        parts = [(self.factor, self.symbol), *([self.more] if self.more else [])]
        if any(symbol not in sizes for _, symbol in parts):
            return "?"
        return sum(factor * sizes[symbol] for factor, symbol in parts)


Shape = tuple[Dim, ...]


class Target(NamedTuple):
    """Place of a parameter of the Flax tree in a state dict.

    Args:
        names: The entries that hold it, output channels one after the other.
        shape: Its shape in the Flax tree.
    """

    names: tuple[str, ...]
    shape: Shape


# Paths in the Flax tree, joined by "/", to targets.
Table = Mapping[str, Target]


def torch_problems(entries: Mapping[str, Any], table: Table) -> list[str]:
    """Returns a line for every entry of a state dict that is unknown, missing, misshapen or no array of floats."""
    expected = {name: _torch_shape(path, target) for path, target in table.items() for name in target.names}
    problems = _problems(entries, expected)
    for target in table.values():
        dtypes = {name: str(entries[name].dtype) for name in target.names if hasattr(entries.get(name), "dtype")}
        if len(set(dtypes.values())) > 1:
            problems.append(f"of different dtypes: {dtypes}")
    return problems


def flax_problems(arrays: Mapping[str, Any], table: Table) -> list[str]:
    """Returns a line for every parameter of a flat Flax tree that does not fit the table, as `torch_problems` does.

    Parameters that share an entry of the state dict must be equal.
    """
    problems = _problems(arrays, {path: target.shape for path, target in table.items()})
    if problems:
        return problems
    kept = _parts(arrays, table)
    for path, target in table.items():
        for name, part in zip(target.names, _split(path, arrays[path], len(target.names)), strict=True):
            if kept[name][1].tobytes() != part.tobytes():
                problems.append(f"not equal: {path} and {kept[name][0]}, which share the entry {name}")
    return problems


def flatten_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a parameter tree by path, JAX arrays as numpy arrays.

    Raises:
        ValueError: This is no mapping.
    """
    if not isinstance(params, Mapping):
        raise ValueError(f"expected a tree of parameters, a nested mapping, got {type(params).__name__}")
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten_params(value).items()}
        else:
            flat[f"{key}"] = to_numpy(value)
    return flat


def to_params(entries: Mapping[str, np.ndarray], table: Table) -> dict[str, Any]:
    """Returns the nested Flax tree of new numpy arrays; `entries` must be free of problems."""
    params: dict[str, Any] = {}
    for path, target in table.items():
        *modules, leaf = path.split("/")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = _join(path, [entries[name] for name in target.names])
    return params


def to_state_dict(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, Any]:
    """Returns the state dict of new torch tensors; `arrays` must be free of problems."""
    return {name: to_tensor(part) for name, (_, part) in _parts(arrays, table).items()}


def _parts(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, tuple[str, np.ndarray]]:
    """Returns what each entry of a state dict holds, and the parameter that it comes from."""
    return {
        name: (path, part)
        for path, target in table.items()
        for name, part in zip(target.names, _split(path, arrays[path], len(target.names)), strict=True)
    }


def _problems(arrays: Mapping[str, Any], expected: Mapping[str, Shape]) -> list[str]:
    sizes = _sizes(arrays, expected)
    problems = [f"unknown: {name}" for name in arrays if name not in expected]
    problems += [f"missing: {name}" for name in expected if name not in arrays]
    for name, shape in expected.items():
        if name not in arrays:
            continue
        array = arrays[name]
        wanted = [dim.size(sizes) for dim in shape]
        if not isinstance(array, np.ndarray):
            problems.append(f"not readable: {name} is a {type(array).__name__}, expected a tensor with values")
        elif array.dtype not in _DTYPES:
            problems.append(f"not floating point: {name} has the dtype {array.dtype}")
        elif list(array.shape) != wanted:
            problems.append(f"misshapen: {name} has the shape {list(array.shape)}, expected {wanted}")
    return problems


def _sizes(arrays: Mapping[str, Any], expected: Mapping[str, Shape]) -> dict[str, int]:
    """Gives every symbol the value that most arrays agree on, so that the odd one out is the one reported."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for name, shape in expected.items():
        array = arrays.get(name)
        if isinstance(array, np.ndarray) and array.ndim == len(shape):
            for size, dim in zip(array.shape, shape, strict=True):
                if dim.more is None and size % dim.factor == 0:
                    votes[dim.symbol][size // dim.factor] += 1
    return {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()} | {"": 1}


def _torch_shape(path: str, target: Target) -> Shape:
    first, *rest = target.shape[::-1] if _is_kernel(path) else target.shape
    return (first._replace(factor=first.factor // len(target.names)), *rest)


def _join(path: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.concatenate(parts)
    return np.ascontiguousarray(whole.T) if _is_kernel(path) else whole


def _split(path: str, array: np.ndarray, parts: int) -> list[np.ndarray]:
    return np.split(array.T if _is_kernel(path) else array, parts)


def _is_kernel(path: str) -> bool:
    return path.rpartition("/")[2] == "kernel"
