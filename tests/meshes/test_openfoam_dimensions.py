"""Tests of the dimensions of OpenFOAM's fields."""

from __future__ import annotations

import pytest

from emmi_jax.meshes.openfoam_dimensions import read_dimensions

KINEMATIC, PRESSURE = (0, 2, -2, 0, 0, 0, 0), (1, -1, -2, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "exponents"),
    [
        ("dimensions [0 2 -2 0 0 0 0];", KINEMATIC),
        ("dimensions [0 2 -2 0 0];", KINEMATIC),
        ("dimensions      [ 1 -1 -2 0 0 0 0 ] ;", PRESSURE),
        ("dimensions [kg m^-1 s^-2];", PRESSURE),
        ("dimensions [Pa];", PRESSURE),
        ("dimensions [pressure];", PRESSURE),
        ("dimensions pressure;", PRESSURE),
        ("dimensions kinematicPressure;", KINEMATIC),
        ("dimensions [pressure/density];", KINEMATIC),
        ("dimensions [(velocity)^2];", KINEMATIC),
        ("dimensions [m^2/(s^2)];", KINEMATIC),
        ("dimensions [mass/(length*time^2)];", PRESSURE),
        ("dimensions [];", (0,) * 7),
        ("dimensions [dimless];", (0,) * 7),
        ("// dimensions [0 2 -2 0 0 0 0];\n/* dimensions [0 0 0 0 0]; */ dimensions [1 -1 -2 0 0];", PRESSURE),
        ("dimensions [0 2 -2];", ()),
        ("dimensions [furlong];", ()),
        ("dimensions [m^];", ()),
        ("dimensions [(m];", ()),
        ("dimensions [m)];", ()),
        ("dimensions [m $x];", ()),
        ("dimensions $p;", ()),
        ("", ()),
    ],
)
def test_dimensions_are_numbers_names_or_units(text, exponents):
    assert read_dimensions(text).exponents == exponents


def test_dimensions_are_quoted_as_they_are_written():
    assert read_dimensions("dimensions [ kg  m^-1 ];").written == "[kg m^-1]"
    assert read_dimensions("x 1;").written == "none"
