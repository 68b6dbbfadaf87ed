"""Reads compiled programs: what they send between devices, and what they move in memory.

XLA prints an optimised program as computations of instructions, one per line. Loops and fusions
name the computations that they run, so costs are summed from the entry on, times the turns of
loops. A program is that of one device; all run the same one.

XLA's own `cost_analysis` counts the body of a loop once, and bytes on a TPU's chip like those of
its memory, so it is not used for loops of layers.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_BITS = {"pred": 8, "token": 0, "opaque": 0}
# They move nothing by themselves, or another instruction counts for them.
_FREE = frozenset(
    {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"}
    | {"partition-id", "replica-id", "optimization-barrier", "domain", "copy-done", "slice-done"}
    | {"async-done", "async-update", "while", "conditional", "call"}
)
_CALLED = ("calls", "body", "to_apply")


class Array(NamedTuple):
    """One array of an instruction: its bytes, and whether it is in a chip's own small memory."""

    bytes: int
    on_chip: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: of its result.
      opcode: what it does.
      arrays: of its result, several for a tuple.
      operands: names of its inputs.
      text: what follows the inputs.
      root: whether its result is that of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def bytes(self) -> int:
        """Of its result."""
        return sum(array.bytes for array in self.arrays)

    def called(self, attribute: str) -> str:
        """The computation that an attribute names, or ""."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Traffic between devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole array: the input of an all-reduce or a reduce-scatter, the result of an
        all-gather.
      axes: names of the mesh axes that it runs along.
      ways: devices that take part in each group.
      islands: groups of devices with a fast network among these, 1 if it stays in one.
      times: how often a step runs it.
      source: of the operation in the model, as its author's names.
    """

    kind: str
    bytes: int
    axes: tuple[str, ...]
    ways: int
    islands: int
    times: int
    source: str


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one step of one device.

    Attributes:
      moved: bytes read from and written to the device's memory.
      collectives: traffic between devices.
      unknown_loops: loops whose number of turns is unknown, counted once.
    """

    moved: int
    collectives: tuple[Collective, ...]
    unknown_loops: int


def costs(text: str, mesh_shape: Mapping[str, int], island: int) -> Costs:
    """Costs of a compiled program.

    Args:
      text: `Compiled.as_text()`.
      mesh_shape: axis -> size, in the order of the mesh that it was compiled for.
      island: number of devices, consecutive in the mesh, that share a fast network.

    Raises:
      ValueError: the text is no program, or it has groups that are not written as known here.
    """
    program = parse(text)
    moved, unknown, found = 0, 0, []
    for computation, times, fused in _walk(program):
        for line in computation.values():
            kind = line.opcode.removesuffix("-start")
            if kind in KINDS:
                found.append(_collective(line, computation, kind, times, mesh_shape, island))
            if line.opcode == "while":
                unknown += turns(program, line) is None
            if not fused:
                moved += times * _moved(program, computation, line)
    return Costs(moved, tuple(found), unknown)


class Program(NamedTuple):
    """Computations by name, each a dict of instructions by name; and the name of the first."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """The computations of a program as XLA prints it.

    Raises:
      ValueError: there is no entry.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            made = _instruction(instruction[2], instruction[3], bool(instruction[1]))
            current[made.name] = made
    if not entry:
        raise ValueError("no compiled program: it has no ENTRY")
    return Program(computations, entry)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    rest = _COMMENT.sub("", rest)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ") - 1
    opcode, _, after = rest[end + 1 :].lstrip().partition("(")
    inner = _closing("(" + after, 0) - 1
    arrays = tuple(_array(*match.groups()) for match in _ARRAY.finditer(rest[: end + 1]))
    operands = tuple(_NAME.findall(after[:inner]))
    # Constants and numbers of parameters are no operands; loops need the former's value.
    text = after[inner:] if operands else after
    return Instruction(name, opcode, arrays, operands, text, root)


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"no end of {text[start : start + 60]!r}")


def _array(dtype: str, sizes: str, layout: str | None) -> Array:
    bits = _BITS.get(dtype)
    if bits is None:  # bf16, f8e4m3fn, s4
        bits = int(re.search(r"\d+", dtype)[0])
    shape = [int(size.strip("<=")) for size in sizes.split(",") if size]
    # S(1) and above are memories on the chip, S(5) is the host's.
    on_chip = bool(layout) and re.search(r"S\([1-9]\)", layout) is not None
    return Array(math.prod(shape) * bits // 8, on_chip)


def turns(program: Program, loop: Instruction) -> int | None:
    """Number of turns of a loop: that known to XLA, or the only bound in its condition.

    A loop that may end early has this many at most. None if neither is there.
    """
    if known := re.search(r"known_trip_count\D*(\d+)", loop.text):
        return int(known[1])
    condition = program.computations.get(loop.called("condition"), {})
    lines = list(condition.values())
    for line in condition.values():
        lines += program.computations.get(line.called("calls"), {}).values()
    bounds = [
        int(value[1])
        for line in lines
        if line.opcode == "constant"
        and line.arrays
        and (value := re.match(r"(\d+)\)", line.text))
        and line.arrays[0].bytes in (4, 8)
    ]
    return bounds[0] if len(set(bounds)) == 1 else None


def _walk(program: Program) -> Iterator[tuple[Mapping[str, Instruction], int, bool]]:
    """Computations with the number of times that they run, and whether they are part of a fusion.

    Of the branches of a condition all are counted.
    """
    waiting = [(program.entry, 1, False)]
    while waiting:
        name, times, fused = waiting.pop()
        computation = program.computations[name]
        yield computation, times, fused
        for line in computation.values():
            count = times * ((turns(program, line) or 1) if line.opcode == "while" else 1)
            inside = fused or line.opcode == "fusion"
            # What reduces or sorts has a computation for each pair of numbers.
            runs = line.opcode in ("while", "fusion", "call", "async-start", "custom-call")
            names = [line.called(attribute) for attribute in _CALLED] if runs else []
            if line.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", line.text)
                names = _NAME.findall(branches[1]) if branches else []
                names += [line.called(f"{which}_computation") for which in ("true", "false")]
            waiting += [(other, count, inside) for other in names if other in program.computations]


def _moved(program: Program, computation: Mapping[str, Instruction], line: Instruction) -> int:
    """Bytes that one instruction reads from and writes to the device's memory."""
    if line.opcode in _FREE or line.opcode.endswith("-done"):
        return 0
    if line.opcode in ("copy-start", "slice-start"):  # its result names both ends, and counters
        ends = [array for array in line.arrays if array.bytes > 4]
        piece = min((array.bytes for array in ends), default=0)
        return piece * sum(not array.on_chip for array in ends)
    inside = program.computations.get(line.called("calls"), {}) if line.opcode == "fusion" else {}
    read = 0
    for number, name in enumerate(line.operands):
        operand = computation.get(name)
        if operand is not None:
            size = sum(array.bytes for array in operand.arrays if not array.on_chip)
            read += min(size, _read_of(line, inside, number, size))
    written = sum(array.bytes for array in line.arrays if not array.on_chip)
    if line.opcode.endswith("-start"):  # its result repeats its operands
        written = max(written - read, 0)
    return read + min(written, _updated(line, computation, inside, written))


def _read_of(line: Instruction, inside: Mapping[str, Instruction], number: int, size: int) -> int:
    """Bytes read of an operand: of one that is only cut, the piece; of one updated in place, 0."""
    if line.opcode in ("dynamic-slice", "slice", "gather"):
        return line.bytes if number == 0 else size
    if line.opcode == "dynamic-update-slice":
        return 0 if number == 0 else size
    parameter = next(
        (
            x.name
            for x in inside.values()
            if x.opcode == "parameter" and x.text.startswith(f"{number})")
        ),
        None,
    )
    names, read = {parameter}, 0
    for user in inside.values():
        if not names.intersection(user.operands):
            continue
        if user.opcode == "bitcast":
            names.add(user.name)
        elif user.opcode in ("dynamic-slice", "slice") and user.operands[0] in names:
            read += user.bytes
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] in names):
            return size
    return read if parameter else size


def _updated(
    line: Instruction,
    computation: Mapping[str, Instruction],
    inside: Mapping[str, Instruction],
    size: int,
) -> int:
    """Bytes written: where a piece is put into an array in place, those of the piece."""
    if line.opcode == "dynamic-update-slice":
        piece = computation.get(line.operands[1])
        return piece.bytes if piece else size
    puts = [x for x in inside.values() if x.opcode == "dynamic-update-slice"]
    if not puts:
        return size
    whole = sum(x.bytes for x in puts)
    pieces = sum(inside[x.operands[1]].bytes for x in puts if x.operands[1] in inside)
    return max(size - whole, 0) + pieces


# ------------------------------------------------------------------------- traffic


def _collective(
    line: Instruction,
    computation: Mapping[str, Instruction],
    kind: str,
    times: int,
    mesh_shape: Mapping[str, int],
    island: int,
) -> Collective:
    count = math.prod(mesh_shape.values())
    groups = groups_of(line.text, kind, count)
    given = sum(computation[name].bytes for name in line.operands if name in computation)
    size = max(line.bytes - (given if line.opcode.endswith("-start") else 0), given)
    source = re.search(r'op_name="([^"]*)"', line.text)
    return Collective(
        kind,
        size,
        axes_of(groups, mesh_shape),
        len(groups[0]),
        max(len({device // island for device in group}) for group in groups),
        times,
        source[1] if source else "",
    )


def groups_of(text: str, kind: str, count: int) -> list[tuple[int, ...]]:
    """The groups of devices of a collective, which exchange data; pairs of a permutation.

    Args:
      text: attributes of the instruction.
      kind: one of `KINDS`.
      count: number of devices.

    Raises:
      ValueError: groups that are not written in one of XLA's three ways.
    """
    attribute = "source_target_pairs" if kind == "collective-permute" else "replica_groups"
    _, found, rest = text.partition(f"{attribute}=")
    if not found:
        raise ValueError(f"{kind} without {attribute}: {text[:200]}")
    if listed := re.match(r"\{((\{[\d,]*\},?)*)\}", rest):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        found_groups = [tuple(map(int, group.split(","))) for group in groups]
        return found_groups or [tuple(range(count))]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, sizes = _ints(iota[1]), _ints(iota[2])
        return _rows(_iota(sizes, iota[3]).reshape(shape))
    if mesh := re.match(r"@?\w*\s*mesh\[([^\]]*)\]\s*(.*)", rest):
        return _of_mesh(mesh[1], mesh[2])
    raise ValueError(f"{kind}: its groups are written in a new way: {rest[:100]!r}")


def _of_mesh(axes: str, rest: str) -> list[tuple[int, ...]]:
    """Groups along axes of a mesh of their own, as in mesh['a'=2,'b'=4] {'b'}."""
    names = [name for name, _ in re.findall(r"'(\w+)'=(\d+)", axes)]
    sizes = [int(size) for _, size in re.findall(r"'(\w+)'=(\d+)", axes)]
    devices = _iota(sizes, None)
    given = re.match(r",?\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", rest)
    if given:
        devices = _iota(_ints(given[1]), given[2])
    along = re.search(r"\{((?:'\w+'(?::\(\d+\)\d+)?,?\s*)*)\}", rest)
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along[1]) if along else []
    shape: list[int] = []
    taken: list[int] = []
    for name, size in zip(names, sizes, strict=True):
        pieces = sorted((int(before), int(own)) for n, before, own in parts if n == name and before)
        if any(n == name and not before for n, before, _ in parts):
            taken.append(len(shape))
        done = 1
        for before, own in pieces:
            if before > done:
                shape.append(before // done)
            taken.append(len(shape))
            shape.append(own)
            done = before * own
        shape.append(size // done)
    whole = devices.reshape(shape)
    ways = math.prod(shape[axis] for axis in taken)
    kept = [axis for axis in range(len(shape)) if axis not in taken]
    return _rows(whole.transpose(*kept, *taken).reshape(-1, ways))


def _iota(sizes: Sequence[int], order: str | None) -> np.ndarray:
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices.transpose(_ints(order)) if order else devices


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _rows(groups: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for row in groups.reshape(-1, groups.shape[-1])]


def axes_of(groups: Sequence[tuple[int, ...]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ.

    Args:
      groups: numbers of devices, in the order of the mesh.
      mesh_shape: axis -> size.
    """
    places = [_places(group, tuple(mesh_shape.values())) for group in groups]
    return tuple(
        axis
        for i, axis in enumerate(mesh_shape)
        if any(len({place[i] for place in group}) > 1 for group in places)
    )


@functools.lru_cache(maxsize=4096)
def _places(group: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(zip(*(map(int, axis) for axis in np.unravel_index(group, shape)), strict=True))
