"""Opening of a run, fresh or from the newest checkpoint."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
from jax.sharding import Mesh

from clip_jax.adaptation.folder import is_adapter
from clip_jax.adapted import OF_RUN
from clip_jax.data.records import Source
from clip_jax.data.stream.bad_share import check_opened
from clip_jax.data.stream.caption_words import caption_words
from clip_jax.data.stream.groups import GroupNumber, sample_weight
from clip_jax.data.stream.pipeline import BatchIterator, training_batches
from clip_jax.errors import UserError
from clip_jax.files.disk import write_text
from clip_jax.hosts.agreement import check_same, from_first, gather
from clip_jax.losses import LOSSES, effective_implementation
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.two_tower import param_shapes
from clip_jax.sharding import batch_shards, explain, host_rows, make_mesh
from clip_jax.text.tokenizer import Tokenizer, train_sentencepiece
from clip_jax.training import config as configs
from clip_jax.training.config import TrainConfig
from clip_jax.training.log.metrics import Progress, RunLog
from clip_jax.training.run.checkpoint import Checkpoints
from clip_jax.training.run.data import captions_of, gathered_cursor, open_data
from clip_jax.training.run.initial import (
    initial_state,
    initial_tokenizer,
    load_base,
    named_tokenizer,
    open_initial,
    takes_tokens,
    with_model_of_source,
)
from clip_jax.training.run.resuming import check_resumable, check_same_model, hash_checked
from clip_jax.training.step.adversary import replicated_adversary
from clip_jax.training.step.compiled import abstract_run_state
from clip_jax.training.step.optimizer import make_optimizer
from clip_jax.training.step.parameter_groups import frozen_mask
from clip_jax.training.step.state import TrainState, sharded_state
from clip_jax.weights.fitting import fit_tokenizer
from clip_jax.weights.layouts.bundle import (
    exported_step,
    tokenizer_from_identity,
    tokenizer_to_identity,
)
from clip_jax.weights.layouts.checkpoint import DamagedCheckpoint
from clip_jax.weights.load import Source as Initial

T = TypeVar("T")


@dataclasses.dataclass
class Run:
    """Objects of a run that stay the same from the first step to the last."""

    config: TrainConfig
    workdir: Path
    architecture: ClipConfig
    base_hash: str  # of the parameters that an adapter is for; "" without one
    tokenizer: Tokenizer
    source: Source
    mesh: Mesh
    steps: int
    batches: BatchIterator
    checkpoints: Checkpoints
    log: RunLog
    progress: Progress
    first_step: int  # 0, or the step that was resumed

    def identity(self, step: int) -> dict[str, Any]:
        """Returns the metadata that a checkpoint stores beside the arrays."""
        state = self.batches.state()
        if state["cursor"]:
            state["cursor"] = gathered_cursor(state["cursor"])
        return {
            "version": 1,
            "config": configs.to_dict(self.config),
            "architecture": self.architecture.to_dict(),
            "base_hash": self.base_hash,
            "tokenizer": tokenizer_to_identity(self.tokenizer),
            # The reader is ahead of the trainer, so the batch of the next step is stored.
            "data": {**state, "next_batch": step},
            "samples_seen": step * self.config.batch_size,
        }


# Start of a run: the checkpoint's metadata, if there is one; architecture, tokenizer, state.
_Start = tuple[dict[str, Any] | None, ClipConfig, Tokenizer, TrainState]


@dataclasses.dataclass(frozen=True)
class _Opening:
    """Finds the starting point of a run."""

    config: TrainConfig
    workdir: Path
    source: Source
    mesh: Mesh
    steps: int
    checkpoints: Checkpoints

    def start(self) -> _Start:
        """Starts anew or from the newest readable checkpoint; opens `checkpoints`.

        Raises `UserError`, and overwrites nothing, if there are checkpoints but none is readable.
        """
        # This fails before anything slow.
        optimizer = make_optimizer(self.config.optimizer, self.steps)
        damaged: dict[int, str] = {}
        # Process 0 lists the steps, since a mounted bucket may show other processes an older list.
        for step in from_first(self.checkpoints.steps()):
            try:
                start = self._from_step(step, optimizer)
            except DamagedCheckpoint as error:
                damaged[step] = str(error)
                continue
            if damaged and jax.process_index() == 0:
                names = ", ".join(f"{number}.damaged" for number in damaged)
                logging.warning(
                    "%s; going on from step %d, what is damaged is renamed to %s",
                    "; ".join(damaged.values()), step, names,
                )  # fmt: skip
            self.checkpoints.open(list(damaged))
            return start
        if damaged:
            raise UserError(
                f"no checkpoint of {self.workdir} can be read: {'; '.join(damaged.values())}; "
                "restore one, or use another workdir"
            )
        start = self._anew(optimizer)
        self.checkpoints.open()
        return start

    def _from_step(self, step: int, optimizer: Any) -> _Start:
        """Starts from a checkpoint.

        Raises `DamagedCheckpoint` on every process if one cannot read it, and `UserError` if it is
        of another model, or cannot be resumed with this configuration.
        """
        config, workdir = self.config, self.workdir
        identity = _readable(lambda: self.checkpoints.identity(step))
        tokenizer = tokenizer_from_identity(identity)
        rows = identity["architecture"]["vocab_size"]
        architecture, tokenizer = resolve_architecture(config, tokenizer, rows)
        check_same_model(architecture, identity, workdir)
        check_resumable(config, identity["config"], workdir)
        if step > self.steps:
            raise UserError(
                f"config.steps={self.steps}: {workdir} is at step {step} already; "
                "give at least that, or another workdir"
            )
        abstract = abstract_run_state(config, architecture, self.mesh, self.steps)
        state = _readable(lambda: self.checkpoints.restore(step, abstract))
        if abstract.base is not None:
            state = state.replace(base=load_base(config, architecture, abstract.base))
        return identity, architecture, tokenizer, state

    def _anew(self, optimizer: Any) -> _Start:
        """Starts a new run. Raises `UserError` if the workdir already holds an exported model."""
        config, mesh = self.config, self.mesh
        if exported_step(self.workdir / "model") is not None or is_adapter(self.workdir / OF_RUN):
            raise UserError(
                f"--workdir={self.workdir}: holds a finished model but no checkpoint to go on from;"
                " use another workdir"
            )
        initial = open_initial(config)
        tokenizer = _common_tokenizer(config, self.source, initial)
        rows = None if initial is None else initial.config.vocab_size
        architecture, tokenizer = resolve_architecture(config, tokenizer, rows)
        if initial is not None:
            state = initial_state(mesh, architecture, optimizer, config, initial)
        else:
            ema = config.optimizer.ema_decay is not None
            state = sharded_state(mesh, architecture, optimizer, config.seed, ema)
        if config.adversary.field is not None:
            width, groups = architecture.embed_dim, len(config.adversary.groups)
            adversary = replicated_adversary(mesh, width, groups, config.seed)
            state = state.replace(adversary=adversary)
        return None, architecture, tokenizer, state


def _readable(read: Callable[[], T]) -> T:
    """Returns `read()`. If it raises `DamagedCheckpoint` on one process, raises it on all."""
    found, reason = None, ""
    try:
        found = read()
    except DamagedCheckpoint as error:
        reason = str(error)
    reasons = [reason.encode()] if jax.process_count() == 1 else gather(reason.encode())
    if any(reasons):
        raise DamagedCheckpoint(next(text for text in reasons if text).decode())
    return cast(T, found)


def open_run(
    config: TrainConfig, workdir: Path, source: Source, mesh: Mesh
) -> tuple[Run, TrainState]:
    """Opens the run with a new state, or that of the newest checkpoint.

    Raises `UserError` if the workdir's run has another architecture, data or seed.
    """
    is_first = jax.process_index() == 0
    check_same(
        {"records": len(source), "fingerprint": source.fingerprint},
        f"config.data.path={config.data.path}: ",
        "every machine must see the same data",
    )
    check_opened(source, config.data.max_bad_fraction)  # fails before anything slow
    steps = total_steps(config, len(source))
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    opening = _Opening(config, workdir, source, mesh, steps, checkpoints)
    identity, architecture, tokenizer, state = opening.start()
    first_step = int(state.step)
    base_hash = "" if state.base is None else hash_checked(state.base, identity, config)
    weight, adversary = config.data.sample_weight, config.adversary
    batches = training_batches(
        source,
        tokenizer.with_truncation(True),
        architecture.image_size,
        architecture.image_interpolation,
        config.augmentation,
        batch_size=config.batch_size,
        seed=config.seed,
        rows=host_rows(mesh, config.batch_size),
        workers=config.data.workers,
        start_batch=first_step,
        max_bad_fraction=config.data.max_bad_fraction,
        streams=config.data.streams,
        window_shards=config.data.window_shards,
        cursor=None if identity is None else identity["data"].get("cursor"),
        weigh=None if weight is None else sample_weight(source, weight),
        group=None if adversary.field is None else GroupNumber(adversary.field, adversary.groups),
        change_caption=caption_words(config.data.attribute_words),
    )
    if identity is not None:
        batches.resume(identity["data"])
    if is_first:
        text = json.dumps(configs.to_dict(config), indent=1) + "\n"
        write_text(workdir / "config.json", text)
    run = Run(
        config, workdir, architecture, base_hash, tokenizer, source, mesh, steps, batches,
        checkpoints,
        log=RunLog(workdir, first_step, enabled=is_first),
        progress=Progress(steps, enabled=is_first),
        first_step=first_step,
    )  # fmt: skip
    begun = f"resuming at step {first_step:,}" if first_step else "starting"
    if identity is None and config.init.source:
        begun += f" from {config.init.source}"
    _announce(run, begun)
    return run, state


def _announce(run: Run, begun: str) -> None:
    """Announces the run, and anything about it that the user may not expect."""
    dropped = run.source.dropped
    shown = dropped.listed[:10]
    for key, drop in shown:
        run.progress.say(f"left out: {key}: {drop.reason}")
    if dropped.total > len(shown):
        run.progress.say(f"left out: {dropped.total - len(shown):,} more")
    shards = batch_shards(run.mesh)
    _, note = effective_implementation(run.config.loss_implementation, shards)
    if note is not None:
        run.progress.say(note)
    left_out = f", {dropped.total:,} left out" if dropped.total else ""
    run.progress.say(
        f"{begun}: {run.architecture.name}, {len(run.source):,} pairs{left_out}, {run.steps:,} "
        f"steps of {run.config.batch_size}, {run.mesh.size} {jax.devices()[0].device_kind} "
        "device(s)"
    )


def _common_tokenizer(config: TrainConfig, source: Source, initial: Initial | None) -> Tokenizer:
    """Calls `make_tokenizer` on process 0, and sends the result to the others."""
    is_first = jax.process_index() == 0
    tokenizer = make_tokenizer(config, source, initial) if is_first else None
    if jax.process_count() == 1:
        assert tokenizer is not None
        return tokenizer
    made = from_first(None if tokenizer is None else tokenizer_to_identity(tokenizer))
    return tokenizer_from_identity({"tokenizer": made})


def make_tokenizer(
    config: TrainConfig, source: Source | None, initial: Initial | None = None
) -> Tokenizer:
    """Returns the configured tokenizer, or trains one on the captions of the data.

    If the token table comes from `initial`, so does the tokenizer; see `initial_tokenizer`.
    `source` may be None if no tokenizer is trained on its captions.
    """
    if initial is not None and takes_tokens(config):
        return initial_tokenizer(config, initial)
    if config.tokenizer.source != "captions":
        return named_tokenizer(config)
    assert source is not None
    return train_sentencepiece(
        captions_of(source),
        config.tokenizer.vocab_size,
        context_length=config.model.architecture().context_length,
        cleaning=config.tokenizer.cleaning,
    )


def resolve_architecture(
    config: TrainConfig, tokenizer: Tokenizer, rows: int | None = None
) -> tuple[ClipConfig, Tokenizer]:
    """Resolves the architecture: vocabulary of the tokenizer, loss bias, batch normalisation.

    `rows` is the size of the initial token table, which may exceed the tokenizer's ids. It becomes
    the vocabulary size if the table is taken over and the configuration sets no other size.
    """
    architecture = config.model.architecture()
    keep = "vocab_size" in config.model.overrides
    if rows is not None and takes_tokens(config) and not keep:
        architecture, keep = override(architecture, vocab_size=rows), True
    architecture, tokenizer = fit_tokenizer(architecture, tokenizer, keep_vocab_size=keep)
    bias = LOSSES[config.loss].logit_bias_init
    if bias is not None and architecture.logit_bias_init is None:
        architecture = override(architecture, logit_bias_init=bias)
    locked = config.adapter.method is not None or _is_locked(
        param_shapes(architecture), "vision", config.optimizer.freeze
    )
    if locked and hasattr(architecture.vision, "batch_norm"):
        # A locked tower must be the same function in training and evaluation.
        architecture = override(architecture, vision={"batch_norm": "frozen"})
    if config.adapter.method is not None:  # it names separate blocks
        architecture = override(architecture, scan_layers=False)
    return architecture, tokenizer


def _is_locked(params: Any, tower: str, patterns: tuple[str, ...]) -> bool:
    """Whether all of a tower is frozen."""
    return bool(patterns) and all(jax.tree.leaves(frozen_mask(params, patterns)[tower]))


def total_steps(config: TrainConfig, num_records: int) -> int:
    """Returns the number of steps of the run, from `steps` or `epochs`."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * num_records / config.batch_size))


def explain_sharding(config: TrainConfig) -> str:
    """Formats name, shape, dtype, spec and bytes per device of every leaf of a run's state.

    Reads no data except the captions, if the vocabulary is trained on them. Raises `UserError` for
    a mesh that does not fit the devices, and as `open_data` does.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    config = with_model_of_source(config)
    initial = open_initial(config)
    rows = None if initial is None else initial.config.vocab_size
    own = config.tokenizer.source == "captions" and (initial is None or not takes_tokens(config))
    source = open_data(config) if own else None
    architecture, _ = resolve_architecture(config, make_tokenizer(config, source, initial), rows)
    state = abstract_run_state(config, architecture, mesh, config.steps or 1)
    parts = {"params": state.params, "optimizer": state.opt_state}
    if state.ema_params is not None:
        parts["ema"] = state.ema_params
    if state.base is not None:
        parts["base"] = state.base
    return f"{architecture.name} on {mesh.size} devices\n{explain(mesh, parts)}"
