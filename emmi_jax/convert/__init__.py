"""PyTorch weights to Flax parameters and back, bit for bit."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from emmi_jax.lazy import lazy_names as _lazy_names

if _TYPE_CHECKING:
    from emmi_jax.convert.ab_upt import ab_upt_from_torch as ab_upt_from_torch
    from emmi_jax.convert.ab_upt import ab_upt_to_torch as ab_upt_to_torch
    from emmi_jax.convert.files import TorchFile as TorchFile
    from emmi_jax.convert.files import load_torch_file as load_torch_file
    from emmi_jax.convert.modules import params_from_torch as params_from_torch
    from emmi_jax.convert.modules import params_to_torch as params_to_torch
    from emmi_jax.convert.names import CONSTANTS as CONSTANTS
    from emmi_jax.convert.names import LAYOUTS as LAYOUTS
    from emmi_jax.convert.presets import PRESETS as PRESETS
    from emmi_jax.convert.presets import Preset as Preset

__getattr__, __dir__, __all__ = _lazy_names(__name__)
