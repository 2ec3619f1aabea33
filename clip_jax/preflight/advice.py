"""Advice for a run that does not fit, based on its largest uses of memory."""

import math
import typing

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import has_running_statistics
from clip_jax.preflight.compile import Run
from clip_jax.preflight.report import Report, gib
from clip_jax.sharding import batch_shards

FILL = 0.9  # share of a device's memory that a proposal may use
REMAT = typing.get_args(typing.get_type_hints(ClipConfig)["remat"])  # by memory, descending
LOSS_COPIES = 1.5  # float32 matrices (a device's rows × batch) that a dense loss keeps


def state_bytes(report: Report) -> int:
    """Bytes per device of the state kept between steps."""
    kinds = ("parameter", "optimizer", "ema")
    return sum(report[f"{kind}_bytes_per_device"] for kind in kinds)


def can_split_batch(run: Run) -> bool:
    """Whether micro-batches are possible; statistics of the whole batch prevent them."""
    frozen = getattr(run.architecture.vision, "batch_norm", "frozen") == "frozen"
    return frozen or not has_running_statistics(run.state.params)


def least_fsdp(run: Run, report: Report, room: float) -> int | None:
    """The least mesh.fsdp that keeps the state within `room` bytes per device."""
    now = run.mesh.shape["fsdp"]
    most = run.mesh.size // run.mesh.shape["tensor"] // run.target.slices
    for size in range(1, most + 1):
        if most % size == 0 and state_bytes(report) * now / size <= room:
            return size
    return None


def without_matrix(run: Run) -> str:
    """The loss implementation that never holds a matrix of a device's rows × batch."""
    return "chunked" if batch_shards(run.mesh) == 1 else "ring"


def advise(run: Run, report: Report) -> list[str]:
    """Lines that each name a setting and its effect, the most useful first."""
    hbm, needed = run.target.hbm_bytes, report["peak_bytes_per_device"]
    if hbm is None or needed is None:
        return []
    if report["evaluation"] and not report["evaluation"]["fits"]:
        return [_evaluation_line(run)]
    state = state_bytes(report)
    fixed = state + report["batch_bytes_per_device"]
    temporary = max(needed - fixed, 0)
    lines = _state_lines(run, report, hbm, temporary)
    room = FILL * hbm - fixed
    if room > 0 and temporary > room:
        lines += _temporary_lines(run, temporary, room)
    return [*lines, "or more devices; --suggest compiles such settings and ranks those that fit"]


def _evaluation_line(run: Run) -> str:
    """Suggests a smaller batch, if every shard still gets a row."""
    smaller = run.config.evaluation_batch_size // 2
    if smaller >= batch_shards(run.mesh):
        return f"evaluation: batch_size={smaller} in config.evaluations"
    return "evaluation: an image a device is too much; a larger --config.mesh.fsdp or tensor helps"


def _state_lines(run: Run, report: Report, hbm: int, temporary: int) -> list[str]:
    """Advice on the mesh, if parameters and optimizer take much of the memory."""
    state = state_bytes(report)
    if state < 0.25 * hbm:
        return []
    lines = []
    room = max(FILL * hbm - temporary, 0.25 * hbm)
    size = least_fsdp(run, report, room)
    if size is not None and size > run.mesh.shape["fsdp"]:
        after = state * run.mesh.shape["fsdp"] / size
        lines.append(
            f"mesh: parameters and optimizer take {gib(state)} GiB a device; "
            f"--config.mesh.data=-1 --config.mesh.fsdp={size} makes that {gib(after)}"
        )
    optimizer = run.config.optimizer
    if optimizer.name == "adamw" and optimizer.first_moment_dtype == "float32":
        saved = report["parameter_bytes_per_device"] / 2
        lines.append(
            f"optimizer: --config.optimizer.first_moment_dtype=bfloat16 saves {gib(saved)} GiB"
        )
    return lines


def loss_bytes(run: Run) -> int:
    """Approximate bytes per device of a dense softmax loss; 0 for others, which keep no logits."""
    if (run.config.loss, run.config.loss_implementation) != ("softmax", "dense"):
        return 0
    here = run.config.batch_size // batch_shards(run.mesh)
    return int(LOSS_COPIES * 4 * here * run.config.batch_size)


def _temporary_lines(run: Run, temporary: float, room: float) -> list[str]:
    """Advice on loss, remat, micro-batches and batch, if temporaries take the memory."""
    config, remat, shards = run.config, run.architecture.remat, batch_shards(run.mesh)
    here, loss = config.batch_size // shards, loss_bytes(run)
    lines, towers = [], temporary
    if loss > 0.2 * temporary:
        towers = max(temporary - loss, 0)
        lines.append(
            f"loss: its matrix of {here} × {config.batch_size} takes about {gib(loss)} GiB; "
            f"--config.loss_implementation={without_matrix(run)} does without it"
        )
    if towers > room and remat not in ("full", "offload"):
        lines.append(
            f"remat: temporaries take {gib(towers)} GiB a device, {gib(room)} are left; "
            "--config.model.remat=full keeps only the input of each block"
        )
    parts = 2 ** math.ceil(math.log2(max(towers / room, 1)))
    part = here // config.optimizer.microbatches
    if parts > 1 and can_split_batch(run) and part % parts == 0:
        count = parts * config.optimizer.microbatches
        lines.append(
            f"batch: --config.optimizer.microbatches={count} computes the same gradient in parts, "
            "for one more forward pass"
        )
    smaller = 2 ** math.floor(math.log2(here * room / temporary)) if here * room > temporary else 0
    if smaller < here and smaller * shards >= 2:
        lines.append(
            f"batch: --config.batch_size={smaller * shards} would about fit, but is another run"
        )
    return lines
