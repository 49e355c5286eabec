import json
import re
from pathlib import Path

import pytest

from emmi_jax.data.known_forces import KnownForces, read_known_forces


def write(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"geo_ref_1.csv": "aRef\n2.2\n"}, None),
        ({"forces.json": '{"CdA": 0.017, "ClA": -2e-3}'}, KnownForces(0.017, -2e-3, 1.0)),
        (
            {"forces.json": '{"CdA": 0.017, "ClA": 0, "speed": 30.0, "density": 1.2, "spread_CdA": 0.1}'},
            KnownForces(0.017, 0, 1.0, 30.0, 1.2),
        ),
        ({"force_mom_7.csv": "Cd, Cl, Clf, Clr, Cs\n0.3, -0.1, 0, 0, 0\n"}, KnownForces(0.3, -0.1, None)),
        (
            {"force_mom_7.csv": "cd,cl\n0.3,0.1\n", "geo_ref_7.csv": "aRef,lRef\n2.2,2.8\n"},
            KnownForces(0.3, 0.1, 2.2),
        ),
        (
            {"force_mom_constref_7.csv": "Cd,Cl\n9,9\n", "force_mom_varref_7.csv": "Cd,Cl\n9,9\n"},
            None,
        ),
    ],
)
def test_coefficients_come_with_the_reference_area_that_their_file_names(files, expected, tmp_path):
    found = read_known_forces(write(tmp_path, files))
    assert found == expected
    if found is not None:
        assert KnownForces.from_dict(json.loads(json.dumps(found._asdict()))) == found


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"forces.json": "[1]"}, "forces.json: expected CdA and ClA in m², got [1]"),
        ({"forces.json": '{"CdA": "low", "ClA": 0}'}, "forces.json: expected finite cd and cl"),
        ({"forces.json": '{"CdA": NaN, "ClA": 0}'}, "forces.json: not JSON: NaN is not a finite number"),
        ({"forces.json": '{"CdA": 1, "ClA": 0, "speed": -1}'}, "forces.json: expected finite cd and cl and positive"),
        ({"forces.json": "{"}, "forces.json: not JSON"),
        ({"force_mom_1.csv": "Cd\n1\n"}, "force_mom_1.csv: no Cl: expected a column Cl, got Cd"),
        ({"force_mom_1.csv": "Cd,Cl\nnan,1\n"}, "force_mom_1.csv: expected finite numbers"),
        ({"force_mom_1.csv": "Cd,Cl\n1,1\n", "geo_ref_1.csv": "aRef\n0\n"}, "the reference area must be positive"),
    ],
)
def test_an_unusable_file_is_named_with_what_it_has(files, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_known_forces(write(tmp_path, files))
