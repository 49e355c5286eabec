import re

import pytest

from emmi_jax.meshes.reference_area import read_reference_area


@pytest.mark.parametrize(
    "text",
    [
        "lRef,aRef\n2.79,2.17\n",
        "aRef, lRef\r\n2.17, 2.79\r\n",
        " lRef ; not this, A_REF [m^2] \n\n2.79, 2.17 ",
        "\ufeff# Reference Area (m2),x\n2.17,1\n",
        "lRef,2.79\naRef,2.17\nuRef,38.889\n",
        "aRef,lRef\n2.17,2.79\n3.0,4.0\n",
    ],
)
def test_the_area_is_found_below_or_beside_its_name(text, tmp_path):
    path = tmp_path / "geo_ref_1.csv"
    path.write_text(text, encoding="utf-8")
    assert read_reference_area(path) == 2.17


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no reference area: expected a column aRef or area or referenceArea or frontalArea, got nothing"),
        (b"lRef,uRef\n1,2\n", "got lRef, uRef"),
        (b"lRef,aRef\n1\n", "'aRef' must be a number, got nothing"),
        (b"lRef,aRef\n1,-2\n", "the reference area must be positive, got -2.0"),
        (b"aRef\nnan\n", "the reference area must be positive, got nan"),
        (b"aRef\nlarge\n", "'aRef' must be a number, got ['large']"),
        (b"\xff\xfe\x00aRef", "not comma-separated values"),
    ],
)
def test_a_file_without_a_usable_area_is_named_with_what_it_has(content, message, tmp_path):
    path = tmp_path / "geo_ref_1.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        read_reference_area(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        read_reference_area(tmp_path / "none.csv")
