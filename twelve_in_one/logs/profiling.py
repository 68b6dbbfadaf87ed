"""A profile of a few rounds, and the memory that compiled programs need."""

from pathlib import Path
from typing import Any

import jax

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class ProfileWindow:
    """Traces the rounds from `start` up to `start + rounds`, once.

    Only process 0 traces: one host represents the others, and processes of one machine would
    overwrite each other's files. View the folder with TensorBoard's profile plugin
    (`pip install xprof`), or open its .trace.json.gz with https://ui.perfetto.dev.

    Skip some rounds: the first ones of a process compile and fill buffers.
    """

    def __init__(self, start: int, rounds: int, folder: Path):
        """Makes a window that has not started.

        Args:
          start: first round to trace, counted from 0.
          rounds: number to trace; 0 for none.
          folder: parent of `plugins/profile/`, e.g. the folder of TensorBoard's events.

        Raises:
          ValueError: a negative number.
        """
        if start < 0 or rounds < 0:
            raise ValueError(f"profile: start {start} and rounds {rounds} must not be negative")
        self._start, self._stop = start, start + rounds
        self._folder = folder
        self._running = False

    def step(self, round: int, wait_for: Any = ()) -> None:
        """Call this before every round.

        A run that resumes within the window traces the rest of it; one that resumes after it
        traces nothing.

        Args:
          round: about to start, counted from 0.
          wait_for: arrays to wait for where the window starts and ends, e.g. the parameters:
            devices run behind the loop, and without waiting the trace would show earlier rounds
            and miss the last ones. Other calls do not wait.

        Raises:
          RuntimeError: another trace is running in this process.
        """
        if self._running and round >= self._stop:
            jax.block_until_ready(wait_for)
            self.close()
        elif not self._running and self._start <= round < self._stop and jax.process_index() == 0:
            jax.block_until_ready(wait_for)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # tracing every Python call is slow and hides the rest
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def close(self) -> None:
        """Writes the trace, if one is running, even if the run ends within the window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def annotate(name: str, step: int) -> jax.profiler.StepTraceAnnotation:
    """A context that marks one update in a trace; outside a trace it does nothing.

    Args:
      name: of the kind of step, e.g. "train".
      step: number of the update.
    """
    return jax.profiler.StepTraceAnnotation(name, step_num=step)


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Memory of a compiled program on each device, in bytes; empty if the backend cannot say.

    Returns:
      "arguments", "outputs", "aliased" (outputs that replace donated arguments),
      "temporaries", "code", and "total": all of these, with aliased memory counted once.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return {}
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    temporaries, code = stats.temp_size_in_bytes, stats.generated_code_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": temporaries,
        "code": code,
        "total": arguments + outputs - stats.alias_size_in_bytes + temporaries + code,
    }


def format_bytes(size: int) -> str:
    """Readable bytes, three digits: "640 B", "1.50 KiB", "23.4 MiB"."""
    value = float(size)
    for unit in _UNITS:
        # 999.5 would be rounded to four digits.
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"
