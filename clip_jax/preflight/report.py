"""Pre-flight report, as a JSON object and as text."""

from typing import Any

import jax

from clip_jax.models.flops import peak_flops
from clip_jax.models.two_tower import count_trainable
from clip_jax.preflight.checks import batch_gathers, whole_optimizer_leaves
from clip_jax.preflight.compile import Compiled, Run, bytes_per_device
from clip_jax.preflight.hlo.counting import Collective
from clip_jax.training.step.compiled import abstract_batch, run_flops

PLANNED_UTILIZATION = (0.4, 0.5)  # share of the device's peak, in model operations
LARGEST = 5  # exchanges shown
GIB = 2**30

Report = dict[str, Any]


def whole_bytes(tree: Any) -> int:
    """Total bytes of a tree's arrays, without replicas."""
    return bytes_per_device(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    )


# Only the compiler knows these; it lists "largest_allocations" if a run does not fit.
_NOT_YET_KNOWN = (
    "fits",
    "reason",
    "advice",
    "peak_bytes_per_device",
    "argument_bytes_per_device",
    "output_bytes_per_device",
    "temp_bytes_per_device",
    "host_temp_bytes_per_device",
    "program_bytes_per_device",
    "compiled_flops_per_device",
    "compiled_to_model_flops",
    "collectives",
    "collective_bytes_per_device",
    "collective_bytes_by_kind",
    "largest_collectives",
    "largest_allocations",
    "batch_gathers",
    "loops_of_unknown_length",
    "compile_seconds",
    "evaluation",
)


def describe(run: Run) -> Report:
    """A report with every key, filled as far as known before compilation, else None."""
    config, state, devices = run.config, run.state, run.mesh.size
    flops = run_flops(config, run.architecture)
    peak = peak_flops(run.target.device_kind)
    planned = {
        f"{share:.0%}": None if peak is None else share * peak * devices * config.batch_size / flops
        for share in PLANNED_UTILIZATION
    }
    return dict.fromkeys(_NOT_YET_KNOWN) | {
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
        "parameter_bytes": whole_bytes(state.params),
        "parameter_bytes_per_device": bytes_per_device(state.params),
        "optimizer_bytes": whole_bytes(state.opt_state),
        "optimizer_bytes_per_device": bytes_per_device(state.opt_state),
        "ema_bytes_per_device": bytes_per_device(state.ema_params),
        "state_to_even_share": _state_to_even_share(run),
        "batch_bytes_per_device": bytes_per_device(
            abstract_batch(config, run.architecture, run.mesh)
        ),
        "whole_optimizer_leaves": whole_optimizer_leaves(run),
        "model_flops_per_step": flops,
        "planned_samples_per_second": planned,
    }


def _state_to_even_share(run: Run) -> float:
    """Parameter and optimizer bytes per device, relative to an even split over fsdp × tensor."""
    trees = (run.state.params, run.state.opt_state)
    even = sum(map(whole_bytes, trees)) / run.mesh.shape["fsdp"] / run.mesh.shape["tensor"]
    return sum(map(bytes_per_device, trees)) / even


def add_train_step(report: Report, run: Run, compiled: Compiled) -> Report:
    """The report with the figures of the compiled train step."""
    memory, cost, hbm = compiled.memory, compiled.cost, run.target.hbm_bytes
    by_kind = cost.collective_bytes
    largest = sorted(cost.collectives, key=lambda c: -c.bytes * c.trips)[:LARGEST]
    fits = hbm is None or compiled.peak_bytes <= hbm
    return report | {
        "fits": fits,
        "reason": None if fits else _too_large("the train step", compiled.peak_bytes, hbm),
        "peak_bytes_per_device": compiled.peak_bytes,
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "output_bytes_per_device": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temp_bytes_per_device": memory.temp_size_in_bytes,
        "host_temp_bytes_per_device": memory.host_temp_size_in_bytes,
        "program_bytes_per_device": memory.generated_code_size_in_bytes,
        "compiled_flops_per_device": cost.flops,
        "compiled_to_model_flops": cost.flops * run.mesh.size / report["model_flops_per_step"],
        "collectives": cost.collective_counts,
        "collective_bytes_per_device": sum(by_kind.values()),
        "collective_bytes_by_kind": by_kind,
        "largest_collectives": [_describe_collective(c) for c in largest],
        "batch_gathers": [_describe_collective(c) for c in batch_gathers(run, cost)],
        "loops_of_unknown_length": list(cost.unknown_loops),
        "compile_seconds": compiled.seconds,
    }


def add_evaluation(report: Report, run: Run, towers: dict[str, Compiled]) -> Report:
    """The report with the evaluation step, which runs beside the training state."""
    idle = sum(report[f"{kind}_bytes_per_device"] for kind in ("parameter", "optimizer", "ema"))
    idle -= bytes_per_device(run.state.eval_params)
    peak = idle + max(compiled.peak_bytes for compiled in towers.values())
    hbm = run.target.hbm_bytes
    fits = hbm is None or peak <= hbm
    evaluation: Report = {
        "batch_size": run.config.evaluation_batch_size,
        "fits": fits,
        "peak_bytes_per_device": peak,
    }
    for tower, compiled in towers.items():
        evaluation[tower] = {
            "temp_bytes_per_device": compiled.memory.temp_size_in_bytes,
            "compiled_flops_per_device": compiled.cost.flops,
            "collectives": compiled.cost.collective_counts,
            "collective_bytes_per_device": sum(compiled.cost.collective_bytes.values()),
            "compile_seconds": compiled.seconds,
        }
    report = report | {"evaluation": evaluation}
    if not fits and report["fits"]:
        where = f"evaluation with config.evaluations: batch_size={evaluation['batch_size']}"
        report |= {"fits": False, "reason": _too_large(where, peak, hbm)}
    return report


def _too_large(what: str, peak: int, hbm: int | None) -> str:
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


def format_report(report: Report) -> str:
    """The report as a page of text, starting with whether it fits."""
    mesh = " × ".join(f"{name} {size}" for name, size in report["mesh"].items())
    here = report["global_batch_size"] / report["devices"]
    hbm = gib(report["hbm_bytes_per_device"])
    peak = report["peak_bytes_per_device"]
    verdict = {True: "fits", False: "does not fit", None: "not compiled"}[report["fits"]]
    lines = [f"{verdict}: {gib(peak)} of {hbm} GiB a device"]
    if report["reason"]:
        lines.append(f"reason: {report['reason']}")
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
    rows = [
        ("parameters", report["parameter_bytes_per_device"], report["parameter_bytes"]),
        ("optimizer", report["optimizer_bytes_per_device"], report["optimizer_bytes"]),
        ("moving average", report["ema_bytes_per_device"], None),
        ("batch", report["batch_bytes_per_device"], None),
        ("temporaries", report["temp_bytes_per_device"], None),
        ("in the host", report["host_temp_bytes_per_device"], None),
        ("program", report["program_bytes_per_device"], None),
    ]
    lines = ["memory a device, GiB"]
    for name, size, whole in rows:
        if not size:
            continue
        note = f"   of {gib(whole)} on all devices" if whole else ""
        if name == "temporaries" and size > (report["peak_bytes_per_device"] or size):
            note = "   a sum; some take turns in one place"
        lines.append(f"  {name:<16}{gib(size):>8}{note}")
    lines.append(
        f"  parameters and optimizer: {report['state_to_even_share']:.3f} × an even share of "
        "fsdp × tensor"
    )
    for path, size in report["whole_optimizer_leaves"].items():
        lines.append(f"  whole on every device: {path}, {size / 2**20:.1f} MiB")
    evaluation = report["evaluation"]
    if evaluation:
        lines.append(
            f"  evaluation at its peak, {evaluation['batch_size']} images: "
            f"{gib(evaluation.get('peak_bytes_per_device'))}"
        )
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
        size = report["collective_bytes_by_kind"][kind] / 2**20
        lines.append(f"  {kind:<18}{count:>6}{size:>15,.1f}")
    lines += ["largest exchanges"]
    for row in report["largest_collectives"]:
        shapes = " ".join(row["result"][:2]) + (" …" if len(row["result"]) > 2 else "")
        lines.append(
            f"  {row['bytes_per_device'] / 2**20:>9,.1f} MiB  {row['count']} × {row['kind']} "
            f"{shapes}  {row['op_name'][-60:]}"
        )
    count = len(report["batch_gathers"])
    lines.append(f"all-gathers of activations over the batch: {count or 'none'}")
    if report["loops_of_unknown_length"]:
        lines.append(f"loops of unknown length, counted once: {report['loops_of_unknown_length']}")
    lines += ["", f"compiled in {report['compile_seconds']:.0f} s"]
    for share, rate in report["planned_samples_per_second"].items():
        if rate is not None:
            lines.append(f"at {share} utilisation: {rate:,.0f} samples/s (a plan, not measured)")
    return lines
