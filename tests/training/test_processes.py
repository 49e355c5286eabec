import socket
import subprocess
import sys

import pytest

from emmi_jax.training.processes import _in_cluster, connected, vote

VARIABLES = (
    "SLURM_STEP_NODELIST", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES",
)  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8"}, False),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "a[1-2]"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_a_process_of_several_is_known_by_its_environment(environment, expected, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _in_cluster() is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "got no num_processes"),
        ((None, 2, 0), "got no coordinator"),
        (("localhost:1", 2, 2), r"process_id must lie in \[0, 2\), got 2"),
        (("localhost", 2, 1), "coordinator must be host:port, such as 10.0.0.1:1234, got 'localhost'"),
        (("localhost:x", 2, 1), "got 'localhost:x'"),
        (("localhost:65536", 2, 1), "got 'localhost:65536'"),
        ((":1234", 2, 1), "got ':1234'"),
    ],
)
def test_incomplete_or_impossible_addresses_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message), connected(*arguments):
        pass


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"coordinator {address}: the port cannot be used: "):
            connected(address, 2, 0).__enter__()


@pytest.mark.parametrize("ask", [True, False])
def test_one_process_has_the_outcome_that_it_asks_for(ask):
    assert vote(ask)() is ask


ALONE = """
import sys
from emmi_jax.training import processes
processes._MEETING_SECONDS = 3
with processes.connected(sys.argv[1], 2, int(sys.argv[2])):
    pass
"""


@pytest.mark.parametrize("own", [0, 1])
def test_a_process_whose_others_never_come_ends_with_a_line(own):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, address, str(own)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == ("emmi-jax train: error: not all processes have come within 3 s: did one of them fail?\n")
