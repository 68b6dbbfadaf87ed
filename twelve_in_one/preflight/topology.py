"""The machines that a run is checked for, by name: "v5e:16x16", or "gpu:h100x8x4"."""

import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Sequence

import jax

from twelve_in_one.extras import require
from twelve_in_one.preflight.chips import GPUS, TPUS, Chip

_EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:8x8 or gpu:h100x8x4 (4 machines of 8)"
_EFFORT = "jax_exec_time_optimization_effort"
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
_MOST_FLAT = 256  # chips of a pod whose network is a flat torus


@dataclasses.dataclass(frozen=True)
class Topology:
    """Machines.

    Attributes:
      name: as given.
      kind: "v5e", "h100" and so on.
      shape: chips along each dimension of a slice; of GPUs those of a machine, and machines.
      slices: of TPUs.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int

    @property
    def gpu(self) -> bool:
        """Whether these are GPUs."""
        return self.kind in GPUS

    @property
    def chip(self) -> Chip:
        """Its peaks."""
        return (GPUS if self.gpu else TPUS)[self.kind]

    @property
    def chips(self) -> int:
        """In all."""
        return math.prod(self.shape) * self.slices

    @property
    def island(self) -> int:
        """Chips that share a fast network: of a slice, or of a machine."""
        return self.shape[0] if self.gpu else math.prod(self.shape)

    @property
    def islands(self) -> int:
        """How many such groups there are."""
        return self.chips // self.island

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        if self.gpu:
            return f"{self.shape[1]} machine(s) of {self.shape[0]} {self.kind}"
        return f"{self.slices} slice(s) of {self.kind} {shape}"


def parse(name: str, slices: int = 1) -> Topology:
    """The machines of a name.

    Args:
      name: "CHIP:AxB" or "CHIP:AxBxC" of a TPU slice, or "gpu:CHIPxGPUSxMACHINES".
      slices: number of TPU slices.

    Raises:
      ValueError: no such chip, or a shape that it does not come in.
    """
    family, _, rest = name.partition(":")
    if slices < 1:
        raise ValueError(f"slices is {slices}: at least 1")
    if family == "gpu":
        match = re.fullmatch(r"([a-z]\w*?)x(\d+)x(\d+)", rest)
        if not match or match[1] not in GPUS:
            raise ValueError(
                f"topology {name!r}: GPUs are gpu:CHIPxGPUSxMACHINES, of {', '.join(GPUS)}; for "
                "example gpu:h100x8x4"
            )
        shape = int(match[2]), int(match[3])
        if not all(shape):
            raise ValueError(f"topology {name!r}: there are no GPUs in it")
        if slices not in (1, shape[1]):
            raise ValueError(f"topology {name!r}: its machines are the slices; leave out slices")
        return Topology(name, match[1], shape, 1)
    if family not in TPUS:
        known = ", ".join((*TPUS, "gpu"))
        raise ValueError(f"topology {name!r}: {family!r} is none of {known}; as in {_EXAMPLES}")
    dimensions = _DIMENSIONS[family]
    if not re.fullmatch(rf"\d+(x\d+){{{dimensions - 1}}}", rest):
        example = "x".join(["4"] * dimensions)
        raise ValueError(
            f"topology {name!r}: a slice of {family} has {dimensions} dimensions, as in "
            f"{family}:{example}"
        )
    shape = tuple(map(int, rest.split("x")))
    if not all(shape):
        raise ValueError(f"topology {name!r}: there are no chips in it")
    if dimensions == 2 and math.prod(shape) > _MOST_FLAT:
        raise ValueError(
            f"topology {name!r}: a slice of {family} has at most {_MOST_FLAT} chips; for more, add "
            f"--slices={-(-math.prod(shape) // _MOST_FLAT)} to one of {family}:16x16"
        )
    return Topology(name, family, shape, slices)


def prepare(topology: Topology, *, quick: bool = False) -> None:
    """Sets JAX up to compile for these machines; before it is used for anything else.

    Args:
      topology: the machines.
      quick: spend little effort on fast TPU programs. Products and traffic between chips are the
        same, temporaries and the bytes moved in a chip more.

    Raises:
      ImportError: the compiler for TPUs is not installed.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology.gpu:
        jax.config.update("jax_num_cpu_devices", topology.chips)
        return
    require("compiling for TPUs", "preflight")
    jax.config.update(_EFFORT, -1.0 if quick else 0.0)
    # No TPU is here to be asked about itself.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # one process a machine is for TPUs
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{topology.kind}-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def is_quick() -> bool:
    """Whether JAX was set up to spend little effort."""
    return jax.config.values[_EFFORT] < 0


def devices(topology: Topology) -> Sequence[jax.Device]:
    """Devices to compile for: of the real machines, or as many CPU devices in place of GPUs.

    Raises:
      ValueError: the machines do not exist in this shape, or JAX was used before `prepare`.
    """
    if topology.gpu:
        found = jax.devices("cpu")
        if len(found) < topology.chips:
            raise ValueError(
                f"{topology.name}: JAX has {len(found)} CPU devices, {topology.chips} are needed; "
                "in a process of its own, call `topology.prepare` before using JAX"
            )
        return found[: topology.chips]
    from jax.experimental import topologies

    shape = "x".join(map(str, topology.shape))
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        return topologies.get_topology_desc(
            f"{topology.kind}:{shape}", platform="tpu", **options
        ).devices
    except Exception as error:  # its own class is not public
        raise ValueError(
            f"topology {topology.name!r}: the compiler for TPUs does not know it: {error}"
        ) from error


def compiler(topology: Topology) -> str:
    """What compiles, and its version."""
    if topology.gpu:
        return f"jax {jax.__version__} for {topology.chips} CPU devices"
    return f"jax {jax.__version__} and libtpu {importlib.metadata.version('libtpu')}"
