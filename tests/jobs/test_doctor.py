"""`emmi-jax doctor` checks the numbers of what runs, and says why the rest does not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.cli import main
from emmi_jax.jobs import doctor
from emmi_jax.ops.attention import KERNELS, Kernel
from emmi_jax.ops.dense_attention import dense_attention


def test_all_is_right_here_and_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("all numbers are right")
    text = "\n".join(lines)
    assert "not here: it runs on TPUs (the platform is cpu)" in text
    assert text.count(" right, error") == 5


@pytest.mark.parametrize("dtype", doctor.TOLERANCES)
def test_a_kernel_with_wrong_numbers_is_found(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **options: Any) -> Any:
        return dense_attention(*args, **{name: options[name] for name in ("mask", "precision")}) * 1.05

    monkeypatch.setitem(KERNELS, "blockwise", Kernel(wrong, lambda call: None))
    text, is_right = doctor.check_kernel("blockwise", dtype)
    assert not is_right
    assert text.startswith("WRONG, error 5e-02")


def test_wrong_numbers_give_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "tiny_model_fields", lambda: {name: np.ones((1, 1, 3)) for name in doctor.RECORDED})
    monkeypatch.setattr(doctor, "check_kernel", lambda name, dtype: ("right", True))
    monkeypatch.setattr(doctor, "RECORDED", dict.fromkeys(doctor.RECORDED, (0.5, 0.5, 0.5)))
    printed = io.StringIO()
    assert not doctor.examine(Console(file=printed, width=80))
    assert "WRONG NUMBERS" in printed.getvalue()
    assert main(["doctor"]) == 1


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pyvista" else "1.0")
    monkeypatch.setattr(doctor, "check_kernel", lambda name, dtype: ("right", True))
    monkeypatch.setattr(doctor, "check_model", lambda: ("right", True))
    printed = io.StringIO()
    assert doctor.examine(Console(file=printed, width=80))
    assert "missing: pyvista: pip install 'emmi-jax[cfd]'" in printed.getvalue()
