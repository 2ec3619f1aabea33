"""The loop in which adapters learn: batches, progress, checkpoints."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adapt.step import Problem, make_step, start_state
from clip_jax.adaptation.context import first_words
from clip_jax.adaptation.tree import Adapter
from clip_jax.data.records import Source
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.disk import write_text
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.models.config import ClipConfig
from clip_jax.training.config import CheckpointConfig
from clip_jax.training.run.checkpoint import Checkpoints
from clip_jax.training.step.state import TrainState
from clip_jax.weights.layouts.checkpoint import DamagedCheckpoint

# CoOp's and CLIP-LoRA's: a random part of the image, at times mirrored.
CROPS = Augmentation(crop_scale=(0.08, 1.0), flip_probability=0.5)
_SAID_EVERY = 10.0  # seconds
SAVED_EVERY = 100  # steps


class Run(NamedTuple):
    """One of several runs that learn together.

    Attributes:
      records: int (N,), training images; each run has as many.
      labels: int (N,).
      seed: of the start, batches, crops and dropout.
      learning_rate: the peak.
    """

    records: np.ndarray
    labels: np.ndarray
    seed: int
    learning_rate: float


class Images:
    """Training images of a source, decoded and changed anew each time; or cached features."""

    def __init__(self, source: Source, config: ClipConfig, augmentation: Augmentation) -> None:
        """Reads nothing yet."""
        self._source, self._config, self._augmentation = source, config, augmentation

    def batch(self, records: np.ndarray, seed: int, step: int) -> np.ndarray:
        """Returns uint8 (B, S, S, 3). Raises UserError for an image that cannot be decoded."""
        config = self._config
        rng = np.random.default_rng((seed, step))
        size, interpolation = config.image_size, config.image_interpolation
        found = np.empty((len(records), size, size, 3), np.uint8)
        for place, number in enumerate(records):
            try:
                image = self._source[int(number)].image
                found[place] = training_image(image, size, interpolation, self._augmentation, rng)
            except DecodeError as error:
                key = self._source.key(int(number))
                raise UserError(f"training image {key}: {error}") from error
        return found


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the rows int (B,) of a step: each epoch is a permutation without its last rest."""
    a_epoch = max(count // batch_size, 1)
    epoch, place = divmod(step, a_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size]


def learn(
    problem: Problem,
    runs: Sequence[Run],
    inputs: Callable[[np.ndarray, int, int], np.ndarray],
    steps: int,
    start: Callable[[int], Adapter],
    workdir: Path | None,
    identity: str,
    say: Callable[[str], None],
) -> list[Adapter]:
    """Trains the runs together; returns their adapters.

    Args:
      inputs: (records, seed, step) -> images uint8 (B, S, S, 3), or features (B, D).
      start: seed -> an adapter before its training.
      workdir: keeps checkpoints, from which the same call goes on, bit for bit.
      identity: of the model, classes and images, which must be the same then.

    Raises:
      UserError: a loss is not finite, or an image cannot be decoded.
    """
    batch_size = min(problem.method.recipe.batch_size, len(runs[0].records))
    adapters = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(r.seed) for r in runs))
    state = start_state(problem, adapters, np.array([run.seed for run in runs]))
    checkpoints = None
    if workdir is not None:
        checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig(keep_newest=1))
        _check_same(workdir, problem, runs, steps, identity)
        state = _restored(checkpoints, state)
    step_function = make_step(problem, steps)
    rates = jnp.array([run.learning_rate for run in runs], jnp.float32)
    begun = said = time.perf_counter()
    first = int(state.step)
    if first:
        say(f"goes on from step {first}")
    losses = np.zeros(len(runs))
    try:
        for step in range(first, steps):
            rows = [batch_rows(len(r.records), batch_size, r.seed, step) for r in runs]
            picked = list(zip(runs, rows, strict=True))
            batches = {
                "inputs": np.stack([inputs(r.records[i], r.seed, step) for r, i in picked]),
                "labels": np.stack([r.labels[i] for r, i in picked]).astype(np.int32),
            }
            state, device_losses = step_function(state, problem.frozen, batches, rates)
            now = time.perf_counter()
            if now - said > _SAID_EVERY or step in (first, steps - 1):
                losses, said = np.asarray(device_losses), now
                if not np.isfinite(losses).all() or bool(state.failed.any()):
                    run = runs[int(np.argmax(np.asarray(state.failed)))]
                    raise UserError(
                        f"step {step + 1}: the loss or gradient of seed {run.seed} is not finite;"
                        f" accepted is a smaller --learning_rate than {run.learning_rate:g}"
                    )
                rate = (step + 1 - first) / (time.perf_counter() - begun)
                left = (steps - step - 1) / rate
                say(
                    f"step {step + 1}/{steps}  loss {losses.mean():.3f}  {rate:.1f} steps/s "
                    f" about {left:,.0f} s left"
                )
            if checkpoints is not None and (step + 1) % SAVED_EVERY == 0:
                checkpoints.save(state, {})
        if checkpoints is not None:
            checkpoints.save(state, {}, wait=True)
    finally:
        if checkpoints is not None:
            checkpoints.close()
    whole = jax.tree.map(np.asarray, state.eval_params)
    return [{path: leaf[r] for path, leaf in whole.items()} for r in range(len(runs))]


def words_of(problem: Problem, tokenizer) -> list[int]:
    """Returns the tokens from which a context starts, or none."""
    return [] if problem.method.context is None else first_words(tokenizer)


def _check_same(
    workdir: Path, problem: Problem, runs: Sequence[Run], steps: int, identity: str
) -> None:
    """Notes in the workdir what learns there. Raises UserError if it was something else."""
    words = repr((identity, problem.config, problem.method, steps))
    digest = hashlib.sha256(words.encode())
    for array in (problem.classifier_DK, *(problem.prompts or ())[1:]):
        digest.update(np.ascontiguousarray(array).tobytes())
    for run in runs:
        digest.update(repr((run.seed, run.learning_rate)).encode())
        for numbers in (run.records, run.labels):
            digest.update(np.ascontiguousarray(numbers, np.int64).tobytes())
    path = workdir / "identity.txt"
    if path.is_file() and path.read_text(encoding="utf-8").strip() != digest.hexdigest():
        raise UserError(
            f"{workdir}: has checkpoints of another model, method, data or recipe; give another"
            " --workdir, or remove it"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, digest.hexdigest() + "\n")


def _restored(checkpoints: Checkpoints, state: TrainState) -> TrainState:
    """Returns the state of the newest whole checkpoint, or the given one; opens for saving."""
    damaged = []
    for step in checkpoints.steps():
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        try:
            state = checkpoints.restore(step, abstract)
            break
        except DamagedCheckpoint:
            damaged.append(step)
    checkpoints.open(damaged)
    return state
