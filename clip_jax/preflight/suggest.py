"""Search for settings with which a run fits, by few trials in a useful order, and their ranking."""

import sys
import time
import typing

from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.preflight.advice import (
    Changes,
    flags,
    least_fsdp,
    most_fsdp,
    proposals,
)
from clip_jax.preflight.compile import Run, plan_run
from clip_jax.preflight.report import Report, gib
from clip_jax.preflight.run import preflight
from clip_jax.training.config import build_config, to_dict

# Operations of a chip while a byte crosses its links: 765 on v5p, 985 on v5e, 2050 on v6e (data
# sheets). This weighs exchanges against arithmetic, as if nothing overlapped.
OPERATIONS_PER_BYTE = 1000
_REMAT = typing.get_args(typing.get_type_hints(ClipConfig)["remat"])  # by memory, descending
SAME_RUN = ("loss_implementation", "model.remat", "optimizer.microbatches")
LADDER = tuple(remat for remat in reversed(_REMAT) if remat != "offload")  # less recomputation


def cost(report: Report) -> float:
    """Cost of a step per operation that the model needs; 1 is perfect, the excess is overhead.

    By the compiler's estimate of the time where there is one (TPUs), else by operations and bytes.
    """
    if report.get("estimated_utilization"):
        return 1 / report["estimated_utilization"]
    bytes_ = sum(
        size * (2 if kind == "all-reduce" else 1)  # there and back
        for kind, size in report["collective_bytes_by_kind"].items()
    )
    work = report["compiled_flops_per_device"] + OPERATIONS_PER_BYTE * bytes_
    return work * report["devices"] / report["model_flops_per_step"]


class Trial(typing.NamedTuple):
    """A compiled setting."""

    run: Run
    report: Report
    changes: Changes


class Search:
    """Search that compiles one setting after another until the time is over."""

    def __init__(self, run: Run, report: Report, seconds: float):
        self.target = run.target
        self.values = flatten_dict(to_dict(run.config), keep_empty_nodes=True)
        self.values["model", "remat"] = run.architecture.remat
        self.seconds = seconds
        self.begun = time.monotonic()
        self.slowest: float = report["compile_seconds"] or 0.0
        self.remat = LADDER[0]  # the least recomputation that fitted so far
        self.tried = {"": Trial(run, report, {})}

    def attempt(self, changes: Changes) -> Trial | None:
        """The run with these changes; None if it is impossible or time is over."""
        values = {tuple(key.split(".")): value for key, value in sorted(changes.items())}
        differing = {path: v for path, v in values.items() if self.values[path] != v}
        shown = flags({".".join(path): value for path, value in differing.items()})
        if shown in self.tried:
            return self.tried[shown]._replace(changes=changes)
        elapsed = time.monotonic() - self.begun
        if elapsed + self.slowest > self.seconds:
            return None
        print(f"trying {shown} ({elapsed / 60:.1f} of {self.seconds / 60:g} min)", file=sys.stderr)
        try:
            config = build_config(unflatten_dict(self.values | values))
            run = plan_run(config, self.target)
            report = preflight(run, evaluation=False)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            return None
        fits = "fits" if report["fits"] else "does not fit"
        print(f"{fits}: {gib(report['peak_bytes_per_device'])} GiB a device", file=sys.stderr)
        self.slowest = max(self.slowest, time.monotonic() - self.begun - elapsed)
        self.tried[shown] = Trial(run, report, changes)
        return self.tried[shown]

    def mend(self, changes: Changes, *keys: str) -> Trial | None:
        """Follows the proposals for `keys` until the run fits, or there is none."""
        trial = self.attempt(changes)
        while trial is not None and not trial.report["fits"]:
            found = (p.changes for p in proposals(trial.run, trial.report))
            more = next((changes for changes in found if set(changes) <= set(keys)), None)
            if more is None:
                break
            if "optimizer.microbatches" in more:
                self.attempt({**trial.changes, "model.remat": "offload"})
            trial = self.attempt(trial.changes | more)
        return trial

    def on_mesh(self, changes: Changes) -> None:
        """Tries one mesh from most recomputation, or the least that fitted another mesh, down to
        the least that fits; if none does, tries micro-batches."""
        start = {**changes, "model.remat": self.remat}
        trial = self.mend(start, *SAME_RUN)
        if trial is None or not trial.report["fits"]:
            return
        for remat in LADDER[LADDER.index(trial.report["remat"]) + 1 :]:
            # Splitting the state further may make room for it.
            trial = self.mend({**trial.changes, "model.remat": remat}, "mesh.data", "mesh.fsdp")
            if trial is None or not trial.report["fits"]:
                return
            if "optimizer.microbatches" not in trial.changes:
                self.remat = remat


def suggest(run: Run, report: Report, seconds: float) -> list[Report]:
    """Settings that fit, cheapest first: the flags to add, and the pre-flight's figures.

    No trial starts that, judging by the slowest so far, would end after `seconds`.
    """
    search = Search(run, report, seconds)
    now, hbm = run.mesh.shape["fsdp"], run.target.hbm_bytes
    # The least that keeps the state within a quarter of the memory comes before the present one.
    least = now if hbm is None else least_fsdp(run, report, hbm / 4) or most_fsdp(run)
    meshes: dict[int, Changes] = {least: {"mesh.data": -1, "mesh.fsdp": least}, now: {}}
    for mesh in meshes.values():
        search.on_mesh(mesh)
    if not any(trial.report["fits"] for trial in search.tried.values()):
        search.mend({**meshes[least], "model.remat": "full"}, "loss_implementation", "batch_size")
    keys = (
        "peak_bytes_per_device",
        "hbm_bytes_per_device",
        "compiled_to_model_flops",
        "collective_bytes_per_device",
        "global_batch_size",
    )
    rows = [
        {"flags": shown, "cost": cost(found), **{key: found[key] for key in keys}}
        for shown, (_, found, _) in search.tried.items()
        if found["fits"]
    ]
    print(f"{len(search.tried) - 1} settings compiled", file=sys.stderr)
    return sorted(rows, key=lambda row: (-row["global_batch_size"], row["cost"]))


def format_suggestions(rows: list[Report]) -> str:
    """A ranked table, with the flags to paste at the end of each row."""
    if not rows:
        return "nothing that was tried fits; a larger slice, or a smaller model"
    lines = [
        "settings that fit, the cheapest first; cost: a step's estimated time, or its arithmetic "
        "and exchanges, against the model's own arithmetic",
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
