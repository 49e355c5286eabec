"""The processes of a run: how they find each other, agree and wait."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

_BEAT_SECONDS = 5
_MEETING_SECONDS, _CLUSTER_MEETING_SECONDS = 60, 300
"""Time to wait for the other processes at the start; those of a cluster's scheduler may start late."""
_DEAD_AFTER_SECONDS = 30
"""A process that is silent for so long counts as dead, and the others end."""


@contextlib.contextmanager
def connected(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Joins the processes of a run, before anything else uses JAX's devices.

    Without arguments it does so under SLURM, Open MPI, Kubernetes and on TPU pods, where JAX finds the others itself,
    and nothing elsewhere. When a process fails or dies, or its machine does, the others end within a minute, with a
    line on stderr and a status that is not 0: they could only wait for it.

    Args:
        coordinator: Address "host:port" of process 0.
        num_processes: Number of processes.
        process_id: Number of this process.

    Raises:
        ValueError: Only some of the arguments are given, or a value is out of range; the message quotes it.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not _in_cluster():
        yield
        return
    if 0 < len(missing) < len(given):
        raise ValueError(f"several processes need coordinator, num_processes and process_id, got no {missing[0]}")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"process_id must lie in [0, {num_processes}), got {process_id}")
    if coordinator is not None:
        _check_address(coordinator, is_own=process_id == 0)
    # Later, JAX itself would end the process, with a stack of C++.
    seconds = _MEETING_SECONDS if coordinator is not None else _CLUSTER_MEETING_SECONDS
    late = threading.Timer(seconds, _end, [f"not all processes have come within {seconds} s: did one of them fail?"])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=2 * seconds)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the processes cannot meet: {reason}") from None
    finally:
        late.cancel()
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(is_over,), name="watch", daemon=True)
    watch.start()
    try:
        yield
    except (ValueError, OSError) as error:
        _end(str(error), status=2)
    except jax.errors.JaxRuntimeError as error:
        _end(f"another process may have ended; continue with --resume: {error}")
    except KeyboardInterrupt:
        _end("interrupted", status=128 + signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        _end("this process failed, the others end too")
    is_over.set()
    watch.join()
    jax.distributed.shutdown()


def _check_address(coordinator: str, *, is_own: bool) -> None:
    """Refuses an address that is none, or where another program listens although this process is to; JAX prints C++."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"coordinator must be host:port, such as 10.0.0.1:1234, got {coordinator!r}")
    if is_own:
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("", int(port)))
            except OSError as error:
                raise ValueError(f"coordinator {coordinator}: the port cannot be used: {error.strerror}") from None


def _watch(is_over: threading.Event) -> None:
    """Tells the others that this process is alive, and ends it when one of them is silent."""
    client, own = ocp.multihost.get_jax_distributed_client(), jax.process_index()
    last_heard = {other: ("", time.monotonic()) for other in range(jax.process_count()) if other != own}
    for beat in itertools.count():
        if is_over.wait(_BEAT_SECONDS):
            return
        try:
            client.key_value_set(f"emmi_jax/alive/{own}", str(beat), allow_overwrite=True)
            heard = dict(client.key_value_dir_get("emmi_jax/alive/"))
        except jax.errors.JaxRuntimeError:
            _end("process 0 has ended; continue with --resume")
        for other, (value, when) in last_heard.items():
            now = heard.get(f"emmi_jax/alive/{other}", "")
            if now != value:
                last_heard[other] = now, time.monotonic()
            elif time.monotonic() - when > _DEAD_AFTER_SECONDS:
                _end(f"process {other} has ended or hangs; continue with --resume")


def _end(message: str, status: int = 1) -> NoReturn:
    """Ends the process at once; a regular exit would wait for the others."""
    print(f"emmi-jax train: error: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def is_main() -> bool:
    """Returns whether this is the process that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def vote(ask: bool) -> Callable[[], bool]:
    """Starts a vote in which every process takes part.

    Returns:
        A function that waits for the outcome: whether any process has asked.
    """
    if jax.process_count() == 1:
        return lambda: ask
    mesh, num = jax.make_mesh((jax.device_count(),), ("all",), (AxisType.Auto,)), jax.device_count()
    votes = jax.make_array_from_callback((num,), NamedSharding(mesh, P("all")), lambda index: np.full(num, ask)[index])
    outcome = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))(votes)
    return lambda: bool(outcome)


def _in_cluster() -> bool:
    """Returns whether the environment is that of one process of several, on a cluster that JAX knows."""
    environment = os.environ
    return (
        # A step that srun started, not the shell of salloc.
        ("SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS", "1") != "1")
        or environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
        or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    )
