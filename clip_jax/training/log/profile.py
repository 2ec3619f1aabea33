"""Profiling of a run: a trace of some steps, the compiled program, counts of compilations."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax

from clip_jax.errors import UserError

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Profiling:
    """Profiling options of a run."""

    steps: tuple[int, int] | None = None  # first and last step of the trace
    dump_hlo: bool = False


def parse_steps(text: str) -> tuple[int, int]:
    """Parses "10:12" to (10, 12). Raises `UserError` for anything that is no range of steps."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(
            f"--profile_steps={text}: must be FIRST:LAST, two steps of the run counted from 1 and "
            "both included, such as 10:12"
        )
    return int(first), int(last)


class Tracer:
    """Writes a trace of some steps to `directory`/plugins/profile, for XProf and TensorBoard."""

    def __init__(self, directory: Path, steps: tuple[int, int] | None, first: int, last: int):
        """Prepares a trace; `first` and `last` are the steps that this part of the run will do.

        Raises `UserError` if none of `steps` is among them.
        """
        self._directory = directory
        self._steps = steps if jax.process_index() == 0 else None
        self._running = False
        if steps is None:
            return
        if steps[0] > last or steps[1] < first:
            raise UserError(
                f"--profile_steps={steps[0]}:{steps[1]}: this run does the steps {first} to {last}"
            )
        self._steps = (max(steps[0], first), min(steps[1], last)) if self._steps else None

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def acts_before(self, step: int) -> bool:
        """Whether the trace begins or ends just before this step."""
        return self._steps is not None and step in (self._steps[0], self._steps[1] + 1)

    def act(self, step: int, state: Any) -> None:
        """Begins or ends the trace; first waits for `state`, so that the trace has whole steps."""
        jax.block_until_ready(state)
        self.close()
        if self._steps is not None and step == self._steps[0]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # thousands of calls per step are too many
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._running = True

    def close(self) -> None:
        """Ends a running trace and writes it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class CompileWatch:
    """Measures compilation time, and counts compilations of the program `name`.

    Attributes:
      seconds: duration of all compilations since it was opened, including reads from the cache.
      recompilations: number of compilations of the program after the first.
    """

    def __init__(self, name: str):
        self.seconds = 0.0
        self._name = name
        self._count = 0
        self._warned = False

    def __enter__(self) -> CompileWatch:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILED:
            self.seconds += duration_secs
            self._count += about.get("fun_name") in (self._name, f"jit({self._name})")

    @property
    def recompilations(self) -> int:
        """Returns how often the program was compiled after the first time."""
        return max(0, self._count - 1)

    def called(self, step: int) -> None:
        """Warns of the first recompilation; call it after each call of the program."""
        if self.recompilations and not self._warned:
            self._warned = True
            logging.warning(
                "step %d: the training step was compiled again; see JAX_EXPLAIN_CACHE_MISSES=1",
                step,
            )


def write_hlo(compiled: Any, directory: Path) -> None:
    """Writes the compiled training step's optimised HLO and its costs, on process 0.

    train_step.txt is the text; train_step.json has bytes per device by kind, and the FLOPs and
    bytes that XLA counts (the body of a loop once).
    """
    if jax.process_index() != 0:
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "train_step.txt").write_text(compiled.as_text(), encoding="utf-8")
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    about = {f"{kind}_bytes": getattr(memory, f"{kind}_size_in_bytes", None) for kind in kinds}
    about |= {"flops": cost.get("flops"), "bytes_accessed": cost.get("bytes accessed")}
    text = json.dumps(about, indent=1) + "\n"
    (directory / "train_step.json").write_text(text, encoding="utf-8")
