"""Shape design: functionals of predicted fields, and where to push the surface to change them."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from emmi_jax.lazy import lazy_names as _lazy_names

if _TYPE_CHECKING:
    from emmi_jax.design.coefficients import drag as drag
    from emmi_jax.design.coefficients import lift as lift
    from emmi_jax.design.coefficients import moment as moment
    from emmi_jax.design.coefficients import side_force as side_force
    from emmi_jax.design.derivatives import directional_derivative as directional_derivative
    from emmi_jax.design.derivatives import evaluate as evaluate
    from emmi_jax.design.derivatives import hessian_vector_product as hessian_vector_product
    from emmi_jax.design.derivatives import sensitivity as sensitivity
    from emmi_jax.design.draws import Draws as Draws
    from emmi_jax.design.functionals import Functional as Functional
    from emmi_jax.design.functionals import Sums as Sums
    from emmi_jax.design.functionals import per_point as per_point
    from emmi_jax.design.integrals import integral as integral
    from emmi_jax.design.integrals import mean as mean
    from emmi_jax.design.integrals import smooth_maximum as smooth_maximum
    from emmi_jax.design.integrals import smooth_minimum as smooth_minimum
    from emmi_jax.design.morphed import MorphedCase as MorphedCase
    from emmi_jax.design.morphs import Lattice as Lattice
    from emmi_jax.design.morphs import RadialBasis as RadialBasis
    from emmi_jax.design.multi_point import MultiPointCase as MultiPointCase
    from emmi_jax.design.optimization import Optimization as Optimization
    from emmi_jax.design.optimization import optimize as optimize
    from emmi_jax.design.penalties import keep_box_free as keep_box_free
    from emmi_jax.design.penalties import keep_clearance as keep_clearance
    from emmi_jax.design.penalties import keep_volume as keep_volume
    from emmi_jax.design.problem import CaseInputs as CaseInputs
    from emmi_jax.design.problem import Sensitivity as Sensitivity
    from emmi_jax.design.surface import Surface as Surface
    from emmi_jax.design.surface import read_surface as read_surface

__getattr__, __dir__, __all__ = _lazy_names(__name__)
