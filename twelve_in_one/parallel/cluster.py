"""Finds the processes of a run and this process's id, from flags or the environment."""

import importlib.util
import re
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "TWELVE_IN_ONE_"  # of our environment variables
_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
_JOBSET = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_COMPLETION_INDEX")
_JOBSET_PORT = 8476
_NO_GPU = ("NoDevFiles", "-1")  # values of CUDA_VISIBLE_DEVICES if a task sees no GPU


class Cluster(NamedTuple):
    """How this process knows of the others.

    Attributes:
      source: of this information, for the log.
      coordinator: "host:port" of process 0's service, or in words where JAX finds it.
      num_processes: their number; None if JAX finds it.
      process_id: of this process; None if JAX finds it.
    """

    source: str
    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None


SINGLE = Cluster("single process", num_processes=1, process_id=0)


def detect(
    environ: Mapping[str, str],
    *,
    tpu: bool,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Cluster:
    """Detects the cluster of this process; reads only its arguments.

    Args:
      environ: environment variables.
      tpu: whether JAX runs on TPUs.
      coordinator: as for `initialize`.
      num_processes: as for `initialize`.
      process_id: as for `initialize`.

    Raises:
      ValueError: only some of the three values are given, or one is malformed.
    """
    given = dict(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    source = "explicit flags" if any(value is not None for value in given.values()) else ""
    for name, value in given.items():
        variable = PREFIX + name.upper()
        text = environ.get(variable)
        if value is None and text:
            source = source or "environment variables"
            given[name] = text if name == "coordinator" else integer(variable, text)
    if given["num_processes"] == 1:
        return SINGLE
    in_jobset = all(environ.get(name) for name in _JOBSET)
    if not source:
        return _detect_for_jax(environ, tpu, in_jobset)
    if in_jobset and None in given.values():
        source = "JobSet"
        jobset, job = environ["JOBSET_NAME"], environ["REPLICATED_JOB_NAME"]
        if given["coordinator"] is None:  # the pod's name in the JobSet's headless service
            given["coordinator"] = f"{jobset}-{job}-0-0.{jobset}:{_JOBSET_PORT}"
        if given["process_id"] is None:
            given["process_id"] = integer("JOB_COMPLETION_INDEX", environ["JOB_COMPLETION_INDEX"])
    return _checked(Cluster(source, **given))


def _checked(cluster: Cluster) -> Cluster:
    """`cluster`, complete and in range."""
    missing = [name for name, value in cluster._asdict().items() if value is None]
    if missing:
        named = ", ".join(f"--{name} (or ${PREFIX}{name.upper()})" for name in missing)
        raise ValueError(
            f"to join the processes of a run, also give {named}; or none of coordinator, "
            "num_processes and process_id, to find them in the environment"
        )
    host, _, port = cluster.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"coordinator {cluster.coordinator!r} must be host:port, process 0's address and a "
            "free port there, such as 10.0.0.2:8476"
        )
    if not 0 <= cluster.process_id < cluster.num_processes:
        raise ValueError(
            f"process_id {cluster.process_id} must be from 0 to num_processes - 1, which is "
            f"{cluster.num_processes - 1}"
        )
    return cluster


def _detect_for_jax(environ: Mapping[str, str], tpu: bool, in_jobset: bool) -> Cluster:
    """The clusters that JAX can detect, in its own order (jax/_src/clusters).

    An empty variable counts as not set.
    """
    if environ.get("OMPI_MCA_orte_hnp_uri"):
        if _number(environ, "OMPI_COMM_WORLD_SIZE", 1) > 1:
            return Cluster("Open MPI", "the host that runs mpirun")
    elif all(environ.get(f"SLURM_{name}") for name in _SLURM):
        if _number(environ, "SLURM_NTASKS", 1) > 1:
            return Cluster("SLURM", f"the first node of {environ['SLURM_STEP_NODELIST']}")
    elif tpu:
        hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
        slices = _number(environ, "MEGASCALE_NUM_SLICES", 1)
        first = environ.get("MEGASCALE_COORDINATOR_ADDRESS")
        if hosts and (slices > 1 or "," in hosts):
            return Cluster("TPU", first or hosts.split(",")[0])
        # Without a list of hosts they are in the VM's metadata, unless there is no such server.
        if not hosts and "TPU_SKIP_MDS_QUERY" not in environ:
            return Cluster("TPU", first or "worker 0 of this TPU")
    elif environ.get("KUBERNETES_SERVICE_HOST") and environ.get("JOB_COMPLETION_INDEX"):
        if importlib.util.find_spec("kubernetes"):
            return Cluster("Kubernetes", "pod 0 of this job")
        if in_jobset:
            raise ValueError(
                f"this is pod {environ['JOB_COMPLETION_INDEX']} of JobSet "
                f"{environ['JOBSET_NAME']}, but not of how many: set ${PREFIX}NUM_PROCESSES in "
                "its manifest (1 if its pods work alone)"
            )
    return SINGLE


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """`integer` of an environment variable; `default` if it is missing or empty."""
    text = environ.get(name, "").strip()
    return integer(name, text) if text else default


def integer(name: str, text: str) -> int:
    """The value of an environment variable that holds a whole number of at least 0.

    Raises:
      ValueError: it does not.
    """
    if not text.strip().isdigit():
        raise ValueError(f"${name} must be a whole number, got {text!r}")
    return int(text)


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """This SLURM task's share of the GPUs it sees, or None if their number is unknown.

    JAX's own rule is one GPU per task, with the number of the task: with one task per node of
    eight GPUs it would leave seven idle, and with `--gpus-per-task` request GPUs that the task
    does not see.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").strip(", ")
    if visible in _NO_GPU:
        return None
    gpus = len(visible.split(",")) if visible else _number(environ, "SLURM_GPUS_ON_NODE", 0)
    counts: list[int] = []
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    ):
        counts += [int(count)] * int(times or 1)
    node = _number(environ, "SLURM_NODEID", 0)
    if not gpus or node >= len(counts):
        return None
    tasks, local = counts[node], _number(environ, "SLURM_LOCALID", 0)
    if gpus < tasks or any(f"SLURM_{name}_PER_TASK" in environ for name in ("GPUS", "TRES")):
        return list(range(gpus))  # SLURM shows each task its own
    share = gpus // tasks
    return list(range(local * share, (local + 1) * share))
