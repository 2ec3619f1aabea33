"""What stacking the layers costs and saves on this machine: one step's time, and compilation.

    python benchmarks/scan.py

Both forms of ViT-B/32 take turns at a training step of batch 32; ViT-L/14's step is compiled (not
run) in both, without a cache. Prints one JSON object; ratios are scanned over unrolled, medians of
turns. Limits: 1.05 for the step (or `scan_layers` is off by default, as it is), 0.25 for
compilation. About ten minutes on two cores.
"""

import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import app, flags

_ROUNDS = flags.DEFINE_integer(
    "rounds", 6, "Turns of a step, after one that warms up. 0: none.", lower_bound=0
)
_COMPILATIONS = flags.DEFINE_integer("compilations", 3, "Of each form.", lower_bound=1)
_STEP_MODEL = flags.DEFINE_string("step_model", "ViT-B-32", "Whose step is timed.")
_COMPILE_MODEL = flags.DEFINE_string("compile_model", "ViT-L-14", "Whose step is compiled.")


def lowered(name: str, scan: bool, batch_size: int) -> tuple[Any, Any, Any]:
    """The step before compilation, a fresh state's maker, and the architecture."""
    import jax

    from clip_jax.models.architectures import get_architecture
    from clip_jax.models.two_tower import dummy_inputs
    from clip_jax.training.config import OptimizerConfig
    from clip_jax.training.step.gradient import Objective
    from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
    from clip_jax.training.step.state import create_state
    from clip_jax.training.step.update import make_train_step

    config, settings = get_architecture(name, scan_layers=scan), OptimizerConfig()
    optimizer = make_optimizer(settings, 1000)
    step = make_train_step(Objective(config), optimizer, learning_rate_schedule(settings, 1000))

    def make() -> Any:
        return create_state(config, optimizer, 0, ema=False)

    images, tokens = dummy_inputs(config, batch_size)
    batch = {"images": jax.ShapeDtypeStruct(images.shape, "uint8"), "tokens": tokens}
    jitted = jax.jit(step, donate_argnums=0)
    return jitted.lower(jax.eval_shape(make), batch), make, batch


class Step:
    """A compiled step and its state."""

    def __init__(self, name: str, scan: bool):
        import jax
        import jax.numpy as jnp

        program, make, batch = lowered(name, scan, 32)
        self.compiled = program.compile()
        self.state = jax.jit(make)()
        self.batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), batch)

    def seconds(self, count: int = 2) -> float:
        """Of one step."""
        begun = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.compiled(self.state, self.batch)
        metrics["loss"].block_until_ready()
        return (time.perf_counter() - begun) / count


def step_figures() -> dict[str, Any]:
    """Seconds of a step, both forms in turn."""
    scanned, unrolled = Step(_STEP_MODEL.value, True), Step(_STEP_MODEL.value, False)
    pairs = [(scanned.seconds(), unrolled.seconds()) for _ in range(_ROUNDS.value + 1)][1:]
    return {
        "model": _STEP_MODEL.value,
        "batch_size": 32,
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "ratios": [round(a / b, 3) for a, b in pairs],
        "scanned_seconds": round(statistics.median(a for a, _ in pairs), 3),
        "unrolled_seconds": round(statistics.median(b for _, b in pairs), 3),
        "limit": 1.05,
    }


def compilation_figures() -> dict[str, Any]:
    """Seconds from the Python function to the program: tracing, lowering, compiling."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(_COMPILATIONS.value):
        for scan in (True, False):
            begun = time.perf_counter()
            lowered(_COMPILE_MODEL.value, scan, 32)[0].compile()
            seconds[scan].append(time.perf_counter() - begun)
    pairs = list(zip(seconds[True], seconds[False], strict=True))
    return {
        "model": _COMPILE_MODEL.value,
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "scanned_seconds": [round(value, 1) for value in seconds[True]],
        "unrolled_seconds": [round(value, 1) for value in seconds[False]],
        "limit": 0.25,
    }


def main(_: list[str]) -> None:
    import jax

    from clip_jax.hosts.memory import keep_freed_memory

    keep_freed_memory()  # as our programs do
    jax.config.update("jax_enable_compilation_cache", False)
    result = {"compilation": compilation_figures()}
    if _ROUNDS.value:
        result["step"] = step_figures()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
