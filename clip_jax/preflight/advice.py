"""Settings that could make a run fit that does not, from its largest uses of memory.

The report prints them as advice; `suggest` compiles them.
"""

import math
from typing import Any, NamedTuple

from clip_jax.models.two_tower import has_running_statistics
from clip_jax.preflight.compile import Run
from clip_jax.preflight.report import Report, gib, state_bytes
from clip_jax.sharding import batch_shards

FILL = 0.9  # share of a device's memory that a proposal may use
LOSS_COPIES = 1.5  # float32 matrices (a device's rows × batch) that a dense loss keeps

Changes = dict[str, Any]  # key of the configuration -> value


class Proposal(NamedTuple):
    """Settings, with words to say before and after them."""

    topic: str
    changes: Changes
    effect: str
    reason: str = ""

    def __str__(self) -> str:
        reason = f"{self.reason}; " if self.reason else ""
        return f"{self.topic}: {reason}{flags(self.changes)} {self.effect}"


def flags(changes: Changes) -> str:
    """The flags that set these keys."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def advise(run: Run, report: Report) -> list[str]:
    """Lines that each name a setting and its effect, the most useful first."""
    if report["evaluation"] and not report["evaluation"]["fits"]:
        smaller = run.config.evaluation_batch_size // 2
        if smaller < batch_shards(run.mesh):
            helps = "a larger --config.mesh.fsdp or tensor helps"
            return [f"evaluation: an image a device is too much; {helps}"]
        return [f"evaluation: batch_size={smaller} in config.evaluations"]
    if run.target.hbm_bytes is None or report["peak_bytes_per_device"] is None:
        return []
    more = "or more devices; --suggest compiles such settings and ranks those that fit"
    return [*map(str, proposals(run, report)), more]


def proposals(run: Run, report: Report) -> list[Proposal]:
    """Settings for a run that takes `report["peak_bytes_per_device"]`, the most useful first."""
    hbm, needed = run.target.hbm_bytes, report["peak_bytes_per_device"]
    if hbm is None or needed is None:
        return []
    state = state_bytes(report)
    temporary = max(needed - state - report["batch_bytes_per_device"], 0)
    room = FILL * hbm - state - report["batch_bytes_per_device"]
    room_for_state = FILL * hbm - temporary
    if state >= 0.25 * hbm:
        room_for_state = max(room_for_state, 0.25 * hbm)
    found = _for_state(run, report, room_for_state) if 0 < room_for_state < state else []
    if 0 < room < temporary:
        found += _for_temporaries(run, temporary, room)
    return found


def most_fsdp(run: Run) -> int:
    """The largest mesh.fsdp of a slice: data alone crosses slices."""
    return run.mesh.size // run.mesh.shape["tensor"] // run.target.slices


def least_fsdp(run: Run, report: Report, room: float) -> int | None:
    """The least mesh.fsdp that keeps the state within `room` bytes per device."""
    whole, most = state_bytes(report) * report["mesh"]["fsdp"], most_fsdp(run)
    sizes = (size for size in range(1, most + 1) if most % size == 0)
    return next((size for size in sizes if whole / size <= room), None)


def loss_bytes(run: Run) -> int:
    """Approximate bytes per device of a dense softmax loss; 0 for others, which keep no logits."""
    if (run.config.loss, run.config.loss_implementation) != ("softmax", "dense"):
        return 0
    here = run.config.batch_size // batch_shards(run.mesh)
    return int(LOSS_COPIES * 4 * here * run.config.batch_size)


def _for_state(run: Run, report: Report, room: float) -> list[Proposal]:
    """Settings that make parameters and optimizer take at most `room`."""
    found = []
    state, now = state_bytes(report), run.mesh.shape["fsdp"]
    size = least_fsdp(run, report, room)
    if size is not None and size > now:
        reason = f"parameters and optimizer take {gib(state)} GiB a device"
        effect = f"makes that {gib(state * now / size)}"
        found.append(Proposal("mesh", {"mesh.data": -1, "mesh.fsdp": size}, effect, reason))
    optimizer = run.config.optimizer
    if optimizer.name == "adamw" and optimizer.first_moment_dtype == "float32":
        effect = f"saves {gib(report['parameter_bytes_per_device'] / 2)} GiB"
        found.append(Proposal("optimizer", {"optimizer.first_moment_dtype": "bfloat16"}, effect))
    return found


def _for_temporaries(run: Run, temporary: float, room: float) -> list[Proposal]:
    """Settings that make temporaries take at most `room`."""
    config, shards = run.config, batch_shards(run.mesh)
    here, loss = config.batch_size // shards, loss_bytes(run)
    found, towers = [], temporary
    if loss > 0.2 * temporary:
        towers = max(temporary - loss, 0)
        without = "chunked" if shards == 1 else "ring"  # neither holds that matrix
        reason = f"its matrix of {here} × {config.batch_size} takes about {gib(loss)} GiB"
        found.append(Proposal("loss", {"loss_implementation": without}, "does without it", reason))
    if towers > room and run.architecture.remat not in ("full", "offload"):
        reason = f"temporaries take {gib(towers)} GiB a device, {gib(room)} are left"
        effect = "keeps only the input of each block"
        found.append(Proposal("remat", {"model.remat": "full"}, effect, reason))
    parts = 2 ** math.ceil(math.log2(max(towers / room, 1)))
    part = here // config.optimizer.microbatches
    # Statistics of the whole batch prevent micro-batches.
    is_frozen = getattr(run.architecture.vision, "batch_norm", "frozen") == "frozen"
    whole = not is_frozen and has_running_statistics(run.state.params)
    if parts > 1 and not whole and part % parts == 0:
        count = parts * config.optimizer.microbatches
        effect = "computes the same gradient in parts, for one more forward pass"
        found.append(Proposal("batch", {"optimizer.microbatches": count}, effect))
    smaller = 2 ** math.floor(math.log2(here * room / temporary)) if here * room > temporary else 0
    divides = smaller % config.optimizer.microbatches == 0
    if smaller < here and divides and smaller * shards >= 2:  # a pair needs another to compare with
        effect = "would about fit, but is another run"
        found.append(Proposal("batch", {"batch_size": smaller * shards}, effect))
    return found
