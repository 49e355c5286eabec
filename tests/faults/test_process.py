"""The process of a command survives its streams, its environment and interrupts, with one line and a status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.files.processes import run_in_processes

MAIN = "import sys; from emmi_jax.cli import main; sys.exit(main())"
ENDLESS = "import threading; threading.Thread(target=threading.Event().wait).start(); "
INTERRUPTED = """
import os, signal, sys
module = sys.argv.pop()
def interrupt(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
from emmi_jax.cli import main
sys.exit(main())
"""
"""The command is interrupted where it imports the module that its last argument names."""
NO_PASSWD = "import os; os.environ.pop('HOME', None); os.getuid = lambda: 54321; " + MAIN


@pytest.fixture
def case(tmp_path: Path) -> Path:
    position = np.random.default_rng(0).normal(size=(3000, 3))
    np.savez(tmp_path / "a.npz", position=position, velocity=np.sin(position))
    return tmp_path / "a.npz"


def start(*arguments: str, code: str = MAIN, shell: str = "", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}; exit ${{PIPESTATUS[0]}}', "-", *command]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "JAX_PLATFORMS")},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize(
    ("options", "status", "printed"),
    [
        ({"code": NO_PASSWD, "PYTHONIOENCODING": "ascii", "shell": "| true"}, 0, ""),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "shell": ">&-"}, 0, ""),
        ({"shell": "> /dev/full"}, 2, "emmi-jax stats: error: what was printed is lost: No space left on device\n"),
    ],
    ids=["no passwd entry, ASCII, closed pipe", "C locale, closed stdout", "full"],
)
def test_the_work_is_done_whatever_the_process_is_tied_to(
    case: Path, options: dict[str, str], status: int, printed: str
) -> None:
    np.savez(case.with_name("…×é.npz"), position=np.ones((3, 3)), ω=np.ones(3))
    process = start("stats", str(case.with_name("…×é.npz")), **options)
    assert process.communicate(timeout=300)[1] == printed
    assert process.returncode == status


def test_a_platform_that_is_not_here_is_named_in_one_line() -> None:
    process = start("train", "--dry-run", JAX_PLATFORMS="nosuch")
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert "emmi-jax train: error: JAX_PLATFORMS names 'nosuch'" in error
    assert error.count("\n") == 1


def test_a_command_that_fails_ends_although_its_threads_go_on() -> None:
    process = start("stats", "nosuch.npz", code=ENDLESS + MAIN)
    assert process.communicate(timeout=300)[1] == "emmi-jax stats: error: nosuch.npz: no such file\n"
    assert process.returncode == 2


@pytest.mark.parametrize("module", ["typer", "jax", "optax"])
def test_an_interrupt_ends_a_command_with_status_130_and_nothing_left(module: str, case: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    words = "train", "--data", str(case), "--out", str(tmp_path / "runs"), "--dry-run"
    process = start(*words, module, code=INTERRUPTED)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert error in ("", "emmi-jax train: interrupted\n")
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupt_that_a_library_turns_into_another_error_is_one() -> None:
    code = (
        "import os, signal, sys; from emmi_jax import cli\n"
        "def work(*arguments):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: raise ValueError('no such array')\n"
        "cli.keep_compiled_programs = work; sys.exit(cli.main())"
    )
    process = start("stats", "nosuch.npz", code=code)
    assert process.communicate(timeout=300)[1] == "emmi-jax stats: interrupted\n"
    assert process.returncode == 130


def test_an_interrupt_ends_a_command_and_its_workers_with_one_line(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name in ("a", "b", "c"):
        (tmp_path / "cases" / name).mkdir(parents=True)
        for file, shape in {"surface_points": (60, 3), "surface_pressure": (60,)}.items():
            torch.save(torch.rand(shape), tmp_path / "cases" / name / f"{file}.pt")
    process = start("prepare", str(tmp_path / "cases"), "--out", str(tmp_path / "store"), "--workers", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=300)[1] == "emmi-jax prepare: interrupted\n"
    assert process.returncode == 130


def test_a_worker_that_is_killed_costs_one_line() -> None:
    with pytest.raises(OSError, match="a worker was killed, perhaps for lack of memory: try fewer --workers"):
        list(run_in_processes(os._exit, {"a": (1,)}, 1))


@pytest.mark.parametrize("name", ["x[/x]", "[red]", "x:car:y", "a$b$c", "[bold]x[/bold]", "file", "self"])
def test_names_are_printed_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safe = name.replace("/", "")
    path = tmp_path / f"{safe}.npz"
    np.savez(path, position=np.ones((3, 3)), **{f"u{name}": np.full(3, np.nan)})
    assert main(["stats", str(path), "--out", str(tmp_path / f"{safe}.json")]) == 0
    printed = capsys.readouterr().out
    assert f"u{name}: 3 rows" in printed
    assert f"{safe}.npz" in printed.replace("\n", "")


def test_control_characters_in_names_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\x1b[31mb\nc\r"
    np.savez(tmp_path / "a.npz", **{name: np.full(3, np.nan)})
    assert main(["stats", str(tmp_path / "a.npz")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["stats", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1
