"""Ahead-of-time compilation of a run's programs, with measurements."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_jax.encoding import embed_images, embed_tokens
from clip_jax.errors import UserError
from clip_jax.losses import effective_implementation
from clip_jax.models.config import ClipConfig
from clip_jax.models.flops import peak_flops
from clip_jax.preflight.hlo.counting import Cost, program_cost
from clip_jax.preflight.hlo.timing import Timing, program_timing
from clip_jax.preflight.topology import Target
from clip_jax.sharding import batch_sharding, batch_shards, check_batch, make_mesh, replicated
from clip_jax.text.tokenizer import OPENAI_VOCAB_SIZE, get_tokenizer
from clip_jax.training.config import TrainConfig
from clip_jax.training.run.initial import with_model_of_source
from clip_jax.training.run.opening import resolve_architecture
from clip_jax.training.step.compiled import abstract_batch, abstract_run_state, jit_train_step
from clip_jax.training.step.state import TrainState

NOMINAL_STEPS = 100_000  # length of a run given in epochs, as the data are absent


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """Substitute for a missing tokenizer, with what the architecture needs."""

    vocab_size: int
    eos_id: int
    pad_id: int = 0

    def with_context_length(self, _: int) -> _Vocabulary:
        return self


@dataclasses.dataclass(frozen=True)
class Run:
    """A complete run except for its data."""

    config: TrainConfig
    architecture: ClipConfig
    target: Target
    mesh: Mesh
    steps: int
    notes: tuple[str, ...] = ()  # assumptions and deviations from the configuration

    @functools.cached_property
    def state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state."""
        return abstract_run_state(self.config, self.architecture, self.mesh, self.steps)

    @property
    def model(self) -> Any:
        """The parameters that are evaluated; an adapter is merged into a copy of its base."""
        return self.state.eval_params if self.state.base is None else self.state.base


def plan_run(config: TrainConfig, target: Target) -> Run:
    """Resolves a run for `target`. Raises `UserError` like training: for a mesh that does not
    multiply to the devices, or a batch that does not divide."""
    config = with_model_of_source(config)
    tokenizer, notes = _vocabulary(config)
    architecture, _ = resolve_architecture(config, tokenizer)
    sizes = config.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices=list(target.devices))
    check_batch(mesh, config.batch_size, "config.batch_size", config.optimizer.microbatches)
    _, fallback = effective_implementation(config.loss_implementation, batch_shards(mesh))
    if fallback is not None:
        notes = (*notes, fallback)
    if config.steps is None:
        notes = (*notes, f"a run of {NOMINAL_STEPS:,} steps, as epochs need the data to be counted")
    return Run(config, architecture, target, mesh, config.steps or NOMINAL_STEPS, notes)


def _vocabulary(config: TrainConfig) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer or a substitute, and a note if it differs from the run's."""
    source = config.tokenizer.source
    if source == "captions":
        # Few captions may give fewer pieces than requested. Our SentencePiece's EOS is 2.
        size = config.model.overrides.get("vocab_size", config.tokenizer.vocab_size)
        return _Vocabulary(min(size, config.tokenizer.vocab_size), eos_id=2), ()
    if source in ("clip_bpe", "openai"):
        return _Vocabulary(OPENAI_VOCAB_SIZE, eos_id=OPENAI_VOCAB_SIZE - 1), ()
    try:
        return get_tokenizer(source), ()
    except UserError:
        size = config.model.architecture().vocab_size
        note = f"config.tokenizer.source={source!r} is not here; {size:,} ids, as the model's row"
        return _Vocabulary(size, eos_id=size - 1), (note,)


class TooLargeError(Exception):
    """Error for a program that the compiler could not fit into memory."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
        amounts = [_bytes(*amount) for amount in _NEEDED.findall(message)]
        self.needed_bytes: int | None = max(amounts, default=None)
        self.allocations = [
            (_bytes(number, unit), shape, op_name)
            for number, unit, op_name, shape in _ALLOCATION.findall(message)
        ]


# The message has two forms, from before and after buffer assignment.
_NEEDED = re.compile(r"(?:Used |for HLO temporaries \()([\d.]+)([KMGT]?)")
_ALLOCATION = re.compile(
    r"Size: ([\d.]+)([KMGT]?)[^\n]*\n(?:\s*Operator: op_name=\"([^\"]*)\"[^\n]*\n)?"
    r"\s*Shape: (\S+)"
)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, which fits."""

    memory: Any  # jax's analysis: bytes per device
    cost: Cost
    timing: Timing | None  # None: not a TPU
    seconds: float  # tracing, lowering and compiling
    platform: str

    @property
    def peak_bytes(self) -> int:
        """Peak bytes of a device's arguments, results and temporaries.

        On a TPU this is the compiler's figure, which it compares with the device's memory: the sum
        of the parts would count buffers that share a place. Other platforms leave temporaries out
        of that figure, so this is the sum.
        """
        memory = self.memory
        if self.platform == "tpu":
            return memory.peak_memory_in_bytes
        return (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )


def compile_train_step(run: Run) -> Compiled:
    """Compiles the train step. Raises `TooLargeError`."""
    step = jit_train_step(run.config, run.architecture, run.mesh, run.steps)
    return _compile(run, step, run.state, abstract_batch(run.config, run.architecture, run.mesh))


def compile_evaluation(run: Run) -> dict[str, Compiled]:
    """Compiles what `Clip.encode_image` and `encode_text` run during training, on a full batch."""
    config, mesh = run.architecture, run.mesh
    rows = -(-run.config.evaluation_batch_size // batch_shards(mesh)) * batch_shards(mesh)
    size = config.image_size
    inputs = {
        "image": (embed_images, (rows, size, size, 3), jnp.uint8),
        "text": (embed_tokens, (rows, config.context_length), jnp.int32),
    }
    options = {"config": config, "normalize": True, "out_sharding": replicated(mesh)}
    compiled = {}
    for tower, (embed, shape, dtype) in inputs.items():
        batch = jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        compiled[tower] = _compile(run, embed, run.model, batch, **options)
    return compiled


def _compile(run: Run, function: Any, *arguments: Any, **options: Any) -> Compiled:
    """Compiles a jitted function for these arguments."""
    begun = time.perf_counter()
    try:
        with jax.set_mesh(run.mesh):
            program = function.lower(*arguments, **options).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLargeError(str(error)) from error
        raise
    seconds = time.perf_counter() - begun
    text, kind = program.as_text(), run.target.device_kind
    cost = program_cost(text)
    timing = program_timing(text, kind, peak_flops(kind), cost.collectives)
    return Compiled(program.memory_analysis(), cost, timing, seconds, run.target.platform)


def bytes_per_device(tree: Any, whole: bool = False) -> int:
    """Bytes per device of a tree's arrays, without padding; with `whole`, those of all devices."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding and not whole else leaf.shape
        total += int(np.prod(shape)) * np.dtype(leaf.dtype).itemsize
    return total
