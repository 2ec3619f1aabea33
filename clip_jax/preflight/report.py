"""Pre-flight report, as a JSON object and as text."""

from typing import Any

from clip_jax.models.flops import peak_flops
from clip_jax.models.two_tower import count_trainable
from clip_jax.preflight.checks import batch_gathers, whole_optimizer_leaves
from clip_jax.preflight.compile import Compiled, Run, bytes_per_device
from clip_jax.preflight.hlo.counting import Collective
from clip_jax.preflight.hlo.timing import CHIPS, Timing
from clip_jax.training.step.compiled import abstract_batch, run_flops

PLANNED_UTILIZATION = (0.4, 0.5)  # share of the device's peak, in model operations
LARGEST = 5  # exchanges shown
DEAREST = 15  # operations shown
# Fields of `TrainState`.
STATE = {"parameter": "params", "optimizer": "opt_state", "ema": "ema_params", "base": "base"}
GIB = 2**30

Report = dict[str, Any]


# Only the compiler knows these; it lists "largest_allocations" if a run does not fit.
_NOT_YET_KNOWN = (
    "fits", "reason", "advice", "peak_bytes_per_device", "argument_bytes_per_device",
    "output_bytes_per_device", "temp_bytes_per_device", "host_temp_bytes_per_device",
    "program_bytes_per_device", "compiled_flops_per_device", "compiled_to_model_flops",
    "collectives", "collective_bytes_per_device", "collective_bytes_by_kind",
    "largest_collectives", "largest_allocations", "batch_gathers", "loops_of_unknown_length",
    "compile_seconds", "evaluation", "estimated_step_seconds", "estimated_utilization",
    "estimated_samples_per_second", "estimated_shares", "dearest_operations", "exchange_seconds",
)  # fmt: skip


def describe(run: Run) -> Report:
    """A report with every key, filled as far as known before compilation, else None."""
    config, state, devices = run.config, run.state, run.mesh.size
    flops = run_flops(config, run.architecture)
    peak = peak_flops(run.target.device_kind)
    planned = {
        f"{share:.0%}": None if peak is None else share * peak * devices * config.batch_size / flops
        for share in PLANNED_UTILIZATION
    }
    report: Report = dict.fromkeys(_NOT_YET_KNOWN) | {
        "topology": run.target.topology,
        "devices": devices,
        "slices": run.target.slices,
        "device_kind": run.target.device_kind,
        "model": run.architecture.name,
        "mesh": dict(run.mesh.shape),
        "global_batch_size": config.batch_size,
        "microbatches": config.optimizer.microbatches,
        "remat": run.architecture.remat,
        "scan_layers": run.architecture.scan_layers,
        "dtype": run.architecture.dtype,
        "loss": config.loss,
        "loss_implementation": config.loss_implementation,
        "optimizer": config.optimizer.name,
        "parameters": count_trainable(state.params),
        "notes": list(run.notes),
        "hbm_bytes_per_device": run.target.hbm_bytes,
        "batch_bytes_per_device": bytes_per_device(
            abstract_batch(config, run.architecture, run.mesh)
        ),
        "whole_optimizer_leaves": whole_optimizer_leaves(run),
        "model_flops_per_step": flops,
        "planned_samples_per_second": planned,
    }
    for kind, name in STATE.items():
        report[f"{kind}_bytes"] = bytes_per_device(getattr(state, name), whole=True)
        report[f"{kind}_bytes_per_device"] = bytes_per_device(getattr(state, name))
    split = ("parameter", "optimizer", "base")
    here = sum(report[f"{kind}_bytes_per_device"] for kind in split)
    whole = sum(report[f"{kind}_bytes"] for kind in split)
    even = whole / run.mesh.shape["fsdp"] / run.mesh.shape["tensor"]
    return report | {"state_to_even_share": here / even}


def _figures(compiled: Compiled) -> Report:
    """The figures of any compiled program."""
    return {
        "temp_bytes_per_device": compiled.memory.temp_size_in_bytes,
        "compiled_flops_per_device": compiled.cost.flops,
        "collectives": compiled.cost.collective_counts,
        "collective_bytes_per_device": sum(compiled.cost.collective_bytes.values()),
        "compile_seconds": compiled.seconds,
    }


def add_train_step(report: Report, run: Run, compiled: Compiled) -> Report:
    """The report with the figures of the compiled train step."""
    memory, cost = compiled.memory, compiled.cost
    largest = sorted(cost.collectives, key=lambda c: -c.bytes * c.trips)[:LARGEST]
    return (
        report
        | _figures(compiled)
        | _verdict("the train step", compiled.peak_bytes, run)
        | _estimate(report, run, compiled.timing)
        | {
            "argument_bytes_per_device": memory.argument_size_in_bytes,
            "output_bytes_per_device": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "host_temp_bytes_per_device": memory.host_temp_size_in_bytes,
            "program_bytes_per_device": memory.generated_code_size_in_bytes,
            "compiled_to_model_flops": cost.flops * run.mesh.size / report["model_flops_per_step"],
            "collective_bytes_by_kind": cost.collective_bytes,
            "largest_collectives": [_describe_collective(c) for c in largest],
            "batch_gathers": [_describe_collective(c) for c in batch_gathers(run, cost)],
            "loops_of_unknown_length": list(cost.unknown_loops),
        }
    )


def _estimate(report: Report, run: Run, timing: Timing | None) -> Report:
    """Time of a step by the compiler's figures, and where it goes."""
    peak, kind = peak_flops(run.target.device_kind), run.target.device_kind
    if timing is None or peak is None:
        return {}
    seconds = timing.seconds
    rows = [
        {
            "seconds": operation.seconds,
            "count": operation.count,
            "part": operation.part,
            "bound": operation.bound(CHIPS[kind], peak),
            "is_kernel": operation.is_kernel,
            "flops": operation.flops,
            "bytes": operation.bytes,
            "op_name": operation.op_name,
        }
        for operation in timing.operations[:DEAREST]
    ]
    return {
        "estimated_step_seconds": seconds,
        "estimated_utilization": report["model_flops_per_step"] / (seconds * peak * run.mesh.size),
        "estimated_samples_per_second": run.config.batch_size / seconds,
        "estimated_shares": {part: taken / seconds for part, taken in timing.parts.items()},
        "dearest_operations": rows,
        "exchange_seconds": {"all": timing.exchanges, "exposed": timing.exposed},
    }


def state_bytes(report: Report) -> int:
    """Bytes per device of the state kept between steps."""
    return sum(report[f"{kind}_bytes_per_device"] for kind in STATE)


def add_evaluation(report: Report, run: Run, towers: dict[str, Compiled]) -> Report:
    """The report with the evaluation step, which runs beside the training state."""
    idle = state_bytes(report)
    if run.state.base is None:  # else the merged model is beside the state
        idle -= bytes_per_device(run.state.eval_params)
    peak = idle + max(compiled.peak_bytes for compiled in towers.values())
    batch_size = run.config.evaluation_batch_size
    found = _verdict(f"evaluation with config.evaluations: batch_size={batch_size}", peak, run)
    reason = found.pop("reason")
    found |= {tower: _figures(compiled) for tower, compiled in towers.items()}
    report = report | {"evaluation": found | {"batch_size": batch_size}}
    return report if found["fits"] else report | {"fits": False, "reason": reason}


def _verdict(what: str, peak: int, run: Run) -> Report:
    """Whether a program that takes `peak` bytes per device fits, and if not, why."""
    hbm = run.target.hbm_bytes
    fits = hbm is None or peak <= hbm
    reason = None if fits else too_large(what, peak, hbm)
    return {"fits": fits, "reason": reason, "peak_bytes_per_device": peak}


def too_large(what: str, peak: int | None, hbm: int | None) -> str:
    """The reason why a program does not fit."""
    return f"{what} needs {gib(peak)} of {gib(hbm)} GiB a device"


def _describe_collective(collective: Collective) -> Report:
    return {
        "kind": collective.kind,
        "count": collective.trips,
        "bytes_per_device": collective.trips * collective.bytes,
        "group": collective.group,
        "result": [f"{s.dtype}[{','.join(map(str, s.dims))}]" for s in collective.results],
        "op_name": collective.op_name,
    }


def gib(count: float | None) -> str:
    """Bytes in GiB, or "?"."""
    if count is None:
        return "?"
    return f"{count / GIB:.{2 if count >= GIB else 3}f}"


def mib(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:,.1f}"


def format_report(report: Report) -> str:
    """The report as a page of text, starting with whether it fits."""
    mesh = " × ".join(f"{name} {size}" for name, size in report["mesh"].items())
    here = report["global_batch_size"] / report["devices"]
    verdict = {True: "fits", False: "does not fit", None: "not compiled"}[report["fits"]]
    peak, hbm = (gib(report[f"{kind}_bytes_per_device"]) for kind in ("peak", "hbm"))
    lines = [f"{verdict}: {peak} of {hbm} GiB a device"]
    lines += [f"reason: {report['reason']}"] if report["reason"] else []
    for size, shape, op_name in report["largest_allocations"] or ():
        lines.append(f"  {gib(size)} GiB: {shape} {op_name}")
    lines += [f"  {line}" for line in report["advice"] or ()]
    lines += [
        "",
        f"{report['model']}, {report['parameters']:,} parameters, on {report['topology']}: "
        f"{report['devices']} × {report['device_kind']}, mesh {mesh}",
        f"batch {report['global_batch_size']:,} ({here:g} a device, micro-batches "
        f"{report['microbatches']}), {report['dtype']}, remat {report['remat']}, "
        f"{report['loss']} loss, {report['loss_implementation']}",
        *(f"note: {note}" for note in report["notes"]),
        "",
        *_memory_lines(report),
        "",
        *_work_lines(report),
    ]
    return "\n".join(lines)


def _memory_lines(report: Report) -> list[str]:
    lines = ["memory a device, GiB"]
    names = {
        "parameter": "parameters",
        "optimizer": "optimizer",
        "ema": "moving average",
        "base": "base of adapter",
        "batch": "batch",
        "temp": "temporaries",
        "host_temp": "in the host",
        "program": "program",
    }
    for kind, name in names.items():
        size, whole = report[f"{kind}_bytes_per_device"], report.get(f"{kind}_bytes")
        note = f"   of {gib(whole)} on all devices" if whole else ""
        if kind == "temp" and size and size > (report["peak_bytes_per_device"] or size):
            note = "   a sum; some take turns in one place"
        lines += [f"  {name:<16}{gib(size):>8}{note}"] if size else []
    lines.append(
        f"  parameters and optimizer: {report['state_to_even_share']:.3f} × an even share of "
        "fsdp × tensor"
    )
    for path, size in report["whole_optimizer_leaves"].items():
        lines.append(f"  whole on every device: {path}, {mib(size)} MiB")
    if evaluation := report["evaluation"]:
        peak = gib(evaluation.get("peak_bytes_per_device"))
        lines.append(f"  evaluation at its peak, {evaluation['batch_size']} images: {peak}")
    return lines


def _work_lines(report: Report) -> list[str]:
    lines = [f"arithmetic a step: {report['model_flops_per_step']:.4g} operations of the model"]
    if report["compiled_to_model_flops"] is None:
        return lines
    lines[0] += (
        f"; compiled are {report['compiled_to_model_flops']:.3f} ×, "
        f"{report['compiled_flops_per_device']:.4g} a device"
    )
    lines += ["", "exchanges a step     count   MiB a device"]
    for kind, count in report["collectives"].items():
        lines.append(f"  {kind:<18}{count:>6}{mib(report['collective_bytes_by_kind'][kind]):>15}")
    lines += ["largest exchanges"]
    for row in report["largest_collectives"]:
        shapes = " ".join(row["result"][:2]) + (" …" if len(row["result"]) > 2 else "")
        what = f"{row['count']} × {row['kind']} {shapes}  {row['op_name'][-60:]}"
        lines.append(f"  {mib(row['bytes_per_device']):>9} MiB  {what}")
    gathers = len(report["batch_gathers"]) or "none"
    lines.append(f"all-gathers of activations over the batch: {gathers}")
    if report["loops_of_unknown_length"]:
        lines.append(f"loops of unknown length, counted once: {report['loops_of_unknown_length']}")
    lines += ["", f"compiled in {report['compile_seconds']:.0f} s", *_time_lines(report)]
    if report["estimated_step_seconds"] is not None:
        return lines
    for share, rate in report["planned_samples_per_second"].items():
        if rate is not None:
            lines.append(f"at {share} utilisation: {rate:,.0f} samples/s (a plan, not measured)")
    return lines


def _time_lines(report: Report) -> list[str]:
    """The estimate of a step's time; none for devices whose compiler tells nothing."""
    seconds = report["estimated_step_seconds"]
    if seconds is None:
        return []
    exchanges = report["exchange_seconds"]
    lines = [
        "",
        f"a step by the compiler's estimate: {seconds:.3f} s, "
        f"{report['estimated_utilization']:.0%} of the peak, "
        f"{report['estimated_samples_per_second']:,.0f} samples/s (not measured)",
        f"exchanges would take {exchanges['all']:.3f} s of the links, "
        f"{exchanges['exposed']:.3f} s of it beside no other work",
        "where it goes",
    ]
    for part, share in report["estimated_shares"].items():
        lines.append(f"  {share:>6.1%}  {part}")
    lines.append("dearest operations")
    for row in report["dearest_operations"]:
        kernel = ", a kernel, by what it states" if row["is_kernel"] else ""
        lines.append(
            f"  {row['seconds'] / seconds:>6.1%}  {row['count']:>3} × {row['part']}, "
            f"bound by {row['bound']}{kernel}: …{row['op_name'][-60:]}"
        )
    return lines
