"""Search for settings with which a run fits, by few trials in a useful order, and their ranking."""

import math
import sys
import time
from typing import Any

from clip_jax.errors import UserError
from clip_jax.preflight.advice import (
    FILL,
    REMAT,
    can_split_batch,
    least_fsdp,
    loss_bytes,
    state_bytes,
    without_matrix,
)
from clip_jax.preflight.compile import Run, plan_run
from clip_jax.preflight.report import Report, gib
from clip_jax.preflight.run import preflight
from clip_jax.training.config import TrainConfig, build_config, to_dict

# Operations of a chip while a byte crosses its links: 765 on v5p, 985 on v5e, 2050 on v6e (data
# sheets). This weighs exchanges against arithmetic, as if nothing overlapped.
OPERATIONS_PER_BYTE = 1000
MOST_PARTS = 64
NEARLY = 0.98  # share of the memory that a setting may be expected to take
LADDER = tuple(remat for remat in reversed(REMAT) if remat != "offload")  # descending recomputation

Changes = dict[str, Any]  # key of the configuration -> value


def changed(config: TrainConfig, changes: Changes) -> TrainConfig:
    """The configuration with some keys (such as "mesh.fsdp") set. Raises `UserError`."""
    values = to_dict(config)
    for key, value in changes.items():
        *groups, last = key.split(".")
        group = values
        for name in groups:
            group = group[name]
        group[last] = value
    return build_config(values)


def cost(report: Report) -> float:
    """Cost of a step per operation that the model needs; 1 is perfect, the excess is overhead."""
    bytes_ = sum(
        size * (2 if kind == "all-reduce" else 1)  # there and back
        for kind, size in report["collective_bytes_by_kind"].items()
    )
    work = report["compiled_flops_per_device"] + OPERATIONS_PER_BYTE * bytes_
    return work * report["devices"] / report["model_flops_per_step"]


class Search:
    """Search that compiles one setting after another until the time is over."""

    def __init__(self, run: Run, report: Report, seconds: float):
        self.base = run
        self.seconds = seconds
        self.begun = time.monotonic()
        self.slowest: float = report["compile_seconds"] or 0.0
        self.remat = LADDER[0]  # the least recomputation that fitted so far
        self.failed: Report | None = None  # the last that needed too much, with less recomputation
        self.tried: dict[str, Report] = {"": report}

    def attempt(self, changes: Changes) -> Report | None:
        """The report of the run with these changes; None if it is impossible or time is over."""
        changes = {key: value for key, value in changes.items() if self._now(key) != value}
        flags = " ".join(f"--config.{key}={value}" for key, value in sorted(changes.items()))
        if flags in self.tried:
            return self.tried[flags]
        elapsed = time.monotonic() - self.begun
        if elapsed + self.slowest > self.seconds:
            return None
        print(f"trying {flags} ({elapsed / 60:.1f} of {self.seconds / 60:g} min)", file=sys.stderr)
        try:
            run = plan_run(changed(self.base.config, changes), self.base.target)
            report = preflight(run, evaluation=False)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            return None
        fits = "fits" if report["fits"] else "does not fit"
        print(f"{fits}: {gib(report['peak_bytes_per_device'])} GiB a device", file=sys.stderr)
        self.slowest = max(self.slowest, time.monotonic() - self.begun - elapsed)
        self.tried[flags] = report
        return report

    def _now(self, key: str) -> Any:
        """The run's value for a key."""
        if key.startswith("model."):
            return getattr(self.base.architecture, key.removeprefix("model."))
        value = to_dict(self.base.config)
        for name in key.split("."):
            value = value[name]
        return value

    def on_mesh(self, changes: Changes) -> None:
        """Tries one mesh from most recomputation, or the least that fitted another mesh, down to
        the least that fits; if none does, tries micro-batches."""
        report = self._with(changes, self.remat)
        if report is not None and not report["fits"]:
            changes = changes | self._ring(report)
            report = self._with(changes, LADDER[0])
        parts = self._parts(report)
        if parts is not None:
            self._with(changes, "offload")
            changes = {**changes, "optimizer.microbatches": parts}
            report = self._with(changes, LADDER[0])
        if report is None or not report["fits"]:
            return
        for remat in LADDER[LADDER.index(report["remat"]) + 1 :]:
            report = self._with(changes, remat)
            if report is None or not report["fits"]:
                self.failed = report
                return
            if parts is None:
                self.remat = remat

    def on_larger_mesh(self) -> None:
        """Retries the last failure if splitting the state further would free enough memory."""
        hbm, failed = self.base.target.hbm_bytes, self.failed
        if failed is None or hbm is None or failed["peak_bytes_per_device"] is None:
            return
        room = NEARLY * hbm - (failed["peak_bytes_per_device"] - state_bytes(failed))
        size = least_fsdp(self.base, self.tried[""], room) if room > 0 else None
        if size is not None and size > failed["mesh"]["fsdp"]:
            self.remat = failed["remat"]
            self.on_mesh({"mesh.data": -1, "mesh.fsdp": size})

    def _with(self, changes: Changes, remat: str) -> Report | None:
        return self.attempt({**changes, "model.remat": remat})

    def _ring(self, report: Report) -> Changes:
        if loss_bytes(self.base) > 0.1 * (report["peak_bytes_per_device"] or math.inf):
            return {"loss_implementation": without_matrix(self.base)}
        return {}

    def _parts(self, report: Report | None) -> int | None:
        """Micro-batches with which a too large run should fit; None if unneeded or impossible."""
        hbm = self.base.target.hbm_bytes
        if report is None or report["fits"] or hbm is None or not can_split_batch(self.base):
            return None
        fixed = state_bytes(report) + report["batch_bytes_per_device"]
        room, needed = FILL * hbm - fixed, report["peak_bytes_per_device"] or 0
        if room <= 0 or needed <= fixed:
            return None
        parts = 2 ** math.ceil(math.log2(max((needed - fixed) / room, 2)))
        return min(parts * self.base.config.optimizer.microbatches, MOST_PARTS)

    def smaller_batches(self, changes: Changes) -> None:
        """Halves the batch until it fits."""
        size = self.base.config.batch_size // 2
        while size >= 2:  # a pair needs another to compare with
            report = self.attempt({**changes, "model.remat": "full", "batch_size": size})
            if report is None or report["fits"]:
                return
            size //= 2


def _meshes(run: Run, report: Report) -> list[Changes]:
    """Changes for the least fsdp that keeps the state within a quarter of the memory, and for the
    present fsdp."""
    now, hbm = run.mesh.shape["fsdp"], run.target.hbm_bytes
    most = run.mesh.size // run.mesh.shape["tensor"] // run.target.slices
    least = now if hbm is None else least_fsdp(run, report, hbm / 4) or most
    return [
        {} if size == now else {"mesh.data": -1, "mesh.fsdp": size}
        for size in dict.fromkeys((least, now))
    ]


def suggest(run: Run, report: Report, seconds: float) -> list[Report]:
    """Settings that fit, cheapest first: the flags to add, and the pre-flight's figures.

    No trial starts that, judging by the slowest so far, would end after `seconds`.
    """
    search = Search(run, report, seconds)
    meshes = _meshes(run, report)
    for mesh in meshes:
        search.on_mesh(mesh)
    search.on_larger_mesh()
    if not any(found["fits"] for found in search.tried.values()):
        search.smaller_batches(meshes[0])
    keys = (
        "peak_bytes_per_device",
        "hbm_bytes_per_device",
        "compiled_to_model_flops",
        "collective_bytes_per_device",
        "global_batch_size",
    )
    rows = [
        {"flags": flags, "cost": cost(found), **{key: found[key] for key in keys}}
        for flags, found in search.tried.items()
        if found["fits"]
    ]
    print(f"{len(search.tried) - 1} settings compiled", file=sys.stderr)
    return sorted(rows, key=lambda row: (-row["global_batch_size"], row["cost"]))


def format_suggestions(rows: list[Report]) -> str:
    """A ranked table, with the flags to paste at the end of each row."""
    if not rows:
        return "nothing that was tried fits; a larger slice, or a smaller model"
    lines = [
        "settings that fit, the cheapest first; cost: arithmetic and exchanges against the "
        "model's own arithmetic",
        "rank    cost   GiB a device   operations   exchanged MiB   flags",
    ]
    for rank, row in enumerate(rows, 1):
        memory = f"{gib(row['peak_bytes_per_device'])} of {gib(row['hbm_bytes_per_device'])}"
        lines.append(
            f"{rank:>4}{row['cost']:>8.3f}{memory:>15}"
            f"{row['compiled_to_model_flops']:>11.3f} ×"
            f"{row['collective_bytes_per_device'] / 2**20:>16,.1f}   "
            f"{row['flags'] or '(as it is)'}"
        )
    return "\n".join(lines)
