"""The installed PyTorch package itself, where there is one: every anchor attention, forward and backward.

This has never run where it was written, for the package is not installed there. It knows class names, constructor
arguments and call signatures from a description alone and looks for the rest; what it cannot find, it skips by name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import typing
import warnings
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
noether = pytest.importorskip("noether")

from emmi_jax.convert import params_from_torch  # noqa: E402
from tests.cases import ANCHOR_ATTENTIONS, anchor_example, random_array  # noqa: E402
from tests.tolerances import TOLERANCES, assert_close  # noqa: E402

FORWARD, GRADIENT = TOLERANCES["float32"]
SEED = 7


def find(name: str) -> Any:
    """The class of this name in whichever module of the package has to do with attention."""
    for module in pkgutil.walk_packages(noether.__path__, "noether.", onerror=lambda _: None):
        if "attention" in module.name:
            with contextlib.suppress(ImportError, AttributeError):
                return getattr(importlib.import_module(module.name), name)
    return pytest.skip(f"the installed noether has no {name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_anchor_attention_agrees_with_the_installed_package(kind: str) -> None:
    example = anchor_example(kind, "two_branches")
    with warnings.catch_warnings(action="ignore"):
        cls = find(ANCHOR_ATTENTIONS[kind].__name__)
        config_cls = typing.get_type_hints(cls.__init__).get("config") or pytest.skip(f"{cls} has no typed config")
    names = ("dim", "num_heads", "use_rope", "bias", "init_weights", "branches", "anchor_suffix")
    values = {name: getattr(example.module.config, name) for name in names}
    theirs = cls(config_cls(**values | {"branches": list(values["branches"])})).eval()
    token_spec_cls = inspect.getmodule(cls).TokenSpec
    torch.manual_seed(SEED)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    x = torch.from_numpy(np.array(example.x)).requires_grad_()
    freqs = torch.complex(*(torch.from_numpy(np.array(part)) for part in example.freqs))
    token_specs = [token_spec_cls(name=spec.name, size=spec.size) for spec in example.token_specs]
    expected = theirs(x, token_specs, freqs=freqs)
    cotangent = random_array(np.random.default_rng(SEED), example.x.shape)
    (expected * torch.from_numpy(np.array(cotangent))).sum().backward()

    params = params_from_torch({name: value.numpy(force=True) for name, value in theirs.state_dict().items()})

    @jax.jit
    def run(x: Any, freqs: Any, cotangent: Any) -> Any:
        y, pullback = jax.vjp(lambda x: example.uncompiled({"params": params}, x, freqs)(), x)
        return y, pullback(cotangent)[0]

    y, gradient = run(example.x, example.freqs, cotangent)
    assert_close(y, expected.numpy(force=True), FORWARD)
    assert_close(gradient, x.grad.numpy(), GRADIENT)
