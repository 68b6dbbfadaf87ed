"""Joining the processes of a run, small values between them, and stopping all of them at once.

Every process runs the same program. Call `initialize` first, before using any device. It
looks for values missing in its arguments in the environment, in this order:

1. `TWELVE_IN_ONE_COORDINATOR`, `_NUM_PROCESSES` and `_PROCESS_ID`, for values not given by flags;
   in a JobSet whose manifest passes on its names, only the number of processes is needed;
2. Open MPI, SLURM, TPU (Cloud TPU VM or GKE) and indexed Kubernetes jobs, which JAX detects itself;
3. nothing: a single process, which starts no service and opens no port.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from twelve_in_one.parallel.cluster import PREFIX, SINGLE, Cluster, detect, integer, slurm_devices

_GATHER_BYTES = 1 << 26  # memory limit of one all-gather per device
_REPORT_SECONDS = 15.0


def initialize(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: Sequence[int] | None = None,
    timeout_seconds: int = 300,
) -> str:
    """Joins this process to the others of the run; does nothing for a single process.

    If not all of them join in time, the process says so and exits with 1: the waiting call is in
    C++ and would otherwise abort with a stack trace.

    Args:
      coordinator: "host:port" of process 0, the same for all; None finds it, see the module.
      num_processes: number of processes of the run; 1 for this one alone.
      process_id: of this process, from 0.
      local_device_ids: the GPUs of this machine that this process uses; None for all it sees, or
        for its share under SLURM.
      timeout_seconds: how long to wait for all processes.

    Returns:
      One line: the id of this process, how it was found, its host and devices.

    Raises:
      ValueError: partial or malformed values, or process 0 cannot listen on the port.
      RuntimeError: JAX's devices have been used already.
    """
    if jax.distributed.is_initialized():
        return _describe("joined before")
    # `import jax` puts "tpu" here on machines with TPUs, unless the user chose otherwise.
    tpu = "tpu" in (jax.config.jax_platforms or "").split(",")
    cluster = detect(
        os.environ,
        tpu=tpu,
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
    )
    if cluster == SINGLE:
        if local_device_ids is not None:
            raise ValueError(
                "local_device_ids is for several processes; choose the GPUs of a single one with "
                "$CUDA_VISIBLE_DEVICES"
            )
        return _describe(cluster.source)
    known = cluster.process_id is not None
    if known and cluster.process_id == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port(cluster.coordinator)
    if local_device_ids is None and cluster.source == "SLURM":
        local_device_ids = slurm_devices(os.environ)
    with _time_limit(cluster, timeout_seconds):
        jax.distributed.initialize(
            cluster.coordinator if known else None,
            cluster.num_processes,
            cluster.process_id,
            local_device_ids,
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=timeout_seconds + 60,  # ours expires first
        )
    if threading.current_thread() is threading.main_thread():
        # JAX has installed its own C++ handler, which swallows SIGTERM: a program that does not ask
        # `StopRequest` could no longer be stopped. Python still sees the old handler.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    return _describe(f"{cluster.source}, coordinator {cluster.coordinator}")


def _describe(source: str) -> str:
    local, devices = jax.local_devices(), jax.devices()
    return (
        f"process {jax.process_index()} of {jax.process_count()} ({source}) on "
        f"{socket.gethostname()}: {len(local)} of {len(devices)} devices, {local[0].device_kind}"
    )


def _check_port(coordinator: str) -> None:
    """Fails if the port is taken; JAX would crash, or join and break the program that listens."""
    port = int(coordinator.rpartition(":")[2])
    ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=ipv6).close()
    except OSError as error:
        raise ValueError(
            f"coordinator {coordinator}: process 0 cannot listen on port {port} "
            f"({error.strerror}). If another run on this machine uses it, choose another port, "
            "the same for all processes"
        ) from error


@contextlib.contextmanager
def _time_limit(cluster: Cluster, seconds: float) -> Iterator[None]:
    """Prints on stderr what it waits for, and ends the process after the time limit."""
    count = "all" if cluster.num_processes is None else f"all {cluster.num_processes}"
    waiting = f"waiting for {count} processes to meet at {cluster.coordinator} ({cluster.source})"
    met, deadline = threading.Event(), time.monotonic() + seconds

    def watch() -> None:
        while (left := deadline - time.monotonic()) > 0:
            if met.wait(min(left, _REPORT_SECONDS)):
                return
            if deadline - time.monotonic() > 1:
                print(f"{waiting}, {deadline - time.monotonic():.0f} s left", file=sys.stderr)
        print(
            f"gave up {waiting} after {seconds:.0f} s. Check that every process was started and "
            "none has failed (the first error is in that process's log), that all were given the "
            "same coordinator and number of processes and different process ids, that process 0 "
            "runs on the coordinator's host, and that the others reach its port (firewall, "
            "proxy variables)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        met.set()
        watcher.join()


def gather(value: Any) -> list[Any]:
    """Every process's `value`, in the order of the processes, on every process.

    All processes must call it at the same point. Values come back as from JSON, even in a single
    process: tuples as lists, keys as strings.

    Args:
      value: anything that `json` can write; NaN and infinities are allowed.

    Raises:
      TypeError: `value` cannot be written as JSON.
    """
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if jax.process_count() == 1:
        return [json.loads(data.tobytes())]
    with jax.transfer_guard("allow"):
        sizes = multihost_utils.process_allgather(np.int32(data.size))
        # Powers of two, so that few widths are compiled.
        width = 1 << max(int(sizes.max()) - 1, 0).bit_length()
        width = min(width, _GATHER_BYTES // jax.process_count())
        padded = np.zeros(-(-int(sizes.max()) // width) * width, np.uint8)
        padded[: data.size] = data
        parts = [
            multihost_utils.process_allgather(padded[start : start + width])
            for start in range(0, padded.size, width)
        ]
    rows = np.concatenate(parts, axis=1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(value: Any) -> Any:
    """Process 0's `value` on every process, as from JSON; other processes' values are ignored.

    Raises:
      TypeError: process 0's `value` cannot be written as JSON.
    """
    return gather(value if jax.process_index() == 0 else None)[0]


def barrier(name: str) -> None:
    """Waits until every process has reached this point.

    Args:
      name: of the point, the same on every process.

    Raises:
      RuntimeError: the processes wait at different points; names them.
    """
    names = gather(name)
    if len(set(names)) > 1:
        places = ", ".join(f"process {i} at {place!r}" for i, place in enumerate(names))
        raise RuntimeError(f"the processes wait for each other at different places: {places}")


class StopRequest:
    """Whether any process was asked to stop, with the same answer for all at the same round.

    A signal reaches the processes at different times, or only one of them. JAX's own agreement
    (`multihost_utils.reached_preemption_sync_point`) only hears SIGTERM, through a handler that
    replaces all others. Here each call of `agreed` starts a maximum over all devices of one flag
    and reads the one started by the previous call. That one is done by then, so the devices never
    wait for the host, which runs ahead of them by one round at most.
    """

    def __init__(self) -> None:
        self.reason = ""  # why this process was asked to stop; empty if it was not
        self._agreed = False
        self._pending: jax.Array | None = None

    def request(self, reason: str) -> None:
        """Asks for all processes to stop; the first reason is kept."""
        self.reason = self.reason or reason

    def agreed(self, round_number: int) -> bool:
        """Whether to stop after this round.

        Every process must call it once per round. A single process stops in the round of the
        request; several stop one round after the request to any of them.

        Args:
          round_number: checked to be the same on all processes.

        Raises:
          RuntimeError: the processes are at different rounds.
        """
        if self._agreed or jax.process_count() == 1:
            self._agreed = self._agreed or bool(self.reason)
            return self._agreed
        last, self._pending = self._pending, _maximum(bool(self.reason), round_number)
        if last is not None:
            stop, newest, oldest = (int(x) for x in jax.device_get(last.addressable_data(0)))
            if newest != -oldest:
                raise RuntimeError(f"the processes are at different rounds, {-oldest} to {newest}")
            self._agreed = bool(stop)
        return self._agreed


def _maximum(stop: bool, round_number: int) -> jax.Array:
    """Starts the maximum over all devices of (stop, round, -round): int32[3]."""
    sharding = _device_rows()
    row = np.array([[stop, round_number, -round_number]], np.int32)
    rows = jax.make_array_from_single_device_arrays(
        (sharding.mesh.size, 3),
        sharding,
        [jax.device_put(row, device) for device in jax.local_devices()],
    )
    with jax.set_mesh(sharding.mesh):
        result = _max_rows(rows)
    if jax.default_backend() == "cpu":
        # Running ahead gains nothing here, and with more programs in flight than the devices have
        # threads, XLA's CPU collectives deadlock.
        result.block_until_ready()
    return result


@functools.cache
def _device_rows() -> NamedSharding:
    """The sharding of an array with one row per device of all processes."""
    mesh = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("device"))


@jax.jit(out_shardings=PartitionSpec())
def _max_rows(rows: jax.Array) -> jax.Array:
    return jnp.max(rows, axis=0)


@contextlib.contextmanager
def stop_on_signals(
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1),
) -> Iterator[StopRequest]:
    """Within this context the first of `signals` asks for a stop; the second acts as usual.

    Clusters send SIGTERM before they take a machine away, SIGINT is Ctrl-C, and
    `sbatch --signal` can send SIGUSR1. An ignored SIGINT, as in a shell's background jobs, stays
    ignored. Handlers are restored at the end. Only the main thread may set them; in other threads
    only `StopRequest.request` asks for a stop.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        logging.getLogger(__name__).warning("signals do not stop a run outside the main thread")
        yield request
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals}
    if before.get(signal.SIGINT) == signal.SIG_IGN:
        del before[signal.SIGINT]

    def ask(number: int, frame: Any) -> None:
        del frame
        name = signal.Signals(number).name
        request.request(name)
        signal.signal(number, before[number])
        # Not `print`, which is not reentrant.
        os.write(2, f"{name}: stopping after this round; again to end at once\n".encode())

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code_when_stopped() -> int:
    """The exit code of a run that was asked to stop and has saved: 0 by default.

    Schedulers that restart only failed jobs (Kubernetes) or that check whether a run is finished
    (the scripts in launch/) set `TWELVE_IN_ONE_STOPPED_EXIT_CODE` to tell the two apart.

    Raises:
      ValueError: the variable is not a number from 0 to 255.
    """
    name = f"{PREFIX}STOPPED_EXIT_CODE"
    code = integer(name, os.environ.get(name) or "0")
    if code > 255:
        raise ValueError(f"${name} must be from 0 to 255, got {code}")
    return code
