"""Runs of LoRA as one program against one after another; LoRA's step against full fine-tuning's.

    python benchmarks/adaptation.py --model=ViT-B-16

Sixteen runs (seeds and learning rates) of a small model, in turns: all together, and each alone, by
the same compiled step. Then a step of `--model` with rank 2 on 10 classes, 16 images a batch: time
in turns with full fine-tuning, and temporaries and state by compilation. Prints one JSON object.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from clip_jax.adapt.step import Frozen, Problem, make_step, start_state
from clip_jax.adaptation.context import ClassPrompts
from clip_jax.adaptation.methods import METHODS
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import init_params

LIMITS = {"gain_of_sixteen": 3.0, "difference": 1e-5, "time_over_full": 0.75, "memory": 0.5}
SMALL: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 64,
    "context_length": 16,
    "vocab_size": 1000,
    "vision": {"patch_size": 8, "width": 64, "layers": 2, "heads": 2, "mlp_dim": 128},
    "text": {"width": 64, "layers": 2, "heads": 2, "mlp_dim": 128},
}

_MODEL = flags.DEFINE_string("model", "ViT-B-16", "A name of clip_jax.list_models().")
_BATCH = flags.DEFINE_integer("batch", 16, "Images of a step of --model.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 10, "Class prompts.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of the small runs in a turn.", lower_bound=1)
RATES = (1e-4, 2e-4, 5e-4, 1e-3)
SEEDS = 4


def make_problem(config: ClipConfig, method: str) -> Problem:
    """Returns a random model with random class prompts."""
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocab_size - 1, (_CLASSES.value, config.context_length))
    tokens[:, -1] = config.vocab_size - 1
    prompts = ClassPrompts(config, tokens.astype(np.int32), np.arange(config.vocab_size))
    classifier = jnp.ones((config.embed_dim, _CLASSES.value))  # no method measured here reads it
    return Problem(config, Frozen(params, {}), METHODS[method], prompts, classifier, True)


def batches(config: ClipConfig, runs: int, count: int) -> dict[str, jax.Array]:
    """Returns random images and labels of a step of several runs."""
    rng = np.random.default_rng(1)
    size = config.image_size
    images = rng.integers(0, 256, (runs, count, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, _CLASSES.value, (runs, count)).astype(np.int32)
    return {"inputs": jnp.asarray(images), "labels": jnp.asarray(labels)}


def state_of(problem: Problem, seeds: list[int]) -> Any:
    """Returns the state of runs with these seeds."""
    make = [
        problem.method.init(problem.config, problem.frozen.params, jax.random.key(s)) for s in seeds
    ]
    return start_state(problem, jax.tree.map(lambda *x: jnp.stack(x), *make), np.array(seeds))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns how long a call takes, and its result."""
    begun = time.perf_counter()
    found = jax.block_until_ready(work())
    return time.perf_counter() - begun, found


def sixteen_runs() -> dict[str, Any]:
    """Measures runs together and in turn."""
    config = get_architecture("ViT-B-32", **SMALL)
    problem = make_problem(config, "lora")
    seeds = [seed for seed in range(SEEDS) for _ in RATES]
    rates = jnp.asarray(list(RATES) * SEEDS)
    given = batches(config, len(seeds), 8)
    step = make_step(problem, _STEPS.value)

    def run(chosen: slice) -> Any:
        state = state_of(problem, seeds[chosen])
        part = {name: values[chosen] for name, values in given.items()}
        for _ in range(_STEPS.value):
            state, _ = step(state, problem.frozen, part, rates[chosen])
        return state.params

    def together() -> Any:
        return run(slice(None))

    def in_turn() -> Any:
        return [run(slice(number, number + 1)) for number in range(len(seeds))]

    together(), in_turn()  # compiles
    turns = [(seconds(together), seconds(in_turn)) for _ in range(_ROUNDS.value)]
    one, others = turns[-1][0][1], turns[-1][1][1]
    difference = max(
        float(np.abs(leaf[number] - others[number][path][0]).max())
        for path, leaf in one.items()
        for number in range(len(seeds))
    )
    return {
        "together_seconds": round(statistics.median(a[0] for a, _ in turns), 2),
        "in_turn_seconds": round(statistics.median(b[0] for _, b in turns), 2),
        "gain_of_sixteen": round(statistics.median(b[0] / a[0] for a, b in turns), 2),
        "difference": difference,
    }


def one_step() -> dict[str, Any]:
    """Measures a step of LoRA and of full fine-tuning."""
    config = get_architecture(_MODEL.value)
    given = batches(config, 1, _BATCH.value)
    rate = jnp.asarray([1e-4])
    compiled, bytes_of, states = {}, {}, {}
    for method in ("lora", "full"):
        problem = make_problem(config, method)
        state = state_of(problem, [0])
        arguments = (state, problem.frozen, given, rate)
        compiled[method] = make_step(problem, 100).lower(*arguments).compile()
        memory = compiled[method].memory_analysis()
        own = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
        bytes_of[method] = memory.temp_size_in_bytes + own
        states[method] = [state, problem.frozen]
    times: dict[str, list[float]] = {"lora": [], "full": []}
    for _ in range(_ROUNDS.value + 1):
        for method, program in compiled.items():
            state, params = states[method]
            taken, (new, _) = seconds(lambda p=program, a=(state, params): p(*a, given, rate))
            states[method][0] = new
            times[method].append(taken)
    pairs = list(zip(times["lora"][1:], times["full"][1:], strict=True))  # the first warms up
    return {
        "seconds": {name: round(statistics.median(t[1:]), 2) for name, t in times.items()},
        "time_over_full": round(statistics.median(a / b for a, b in pairs), 3),
        "gib": {name: round(size / 2**30, 2) for name, size in bytes_of.items()},
        "memory": round(bytes_of["lora"] / bytes_of["full"], 3),
    }


def main(argv: list[str]) -> None:
    """Measures, and prints the object."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    result: dict[str, Any] = {"cores": os.cpu_count(), "device": jax.devices()[0].device_kind}
    result |= sixteen_runs() | one_step()
    result["limits"] = LIMITS
    result["kept"] = result["gain_of_sixteen"] >= LIMITS["gain_of_sixteen"] and all(
        result[name] <= LIMITS[name] for name in ("difference", "time_over_full", "memory")
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
