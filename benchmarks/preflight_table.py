"""Which runs fit which TPU slices: a pre-flight of each row below, and docs/preflight.md of them.

    python benchmarks/preflight_table.py                    # all that is not there yet
    python benchmarks/preflight_table.py --rows='b16|l14' --again

Each row is compiled in a process of its own, which takes minutes. What is finished stays in
docs/preflight.json and is kept by the next call, so that the table can be made piece by piece.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

REPOSITORY = Path(__file__).resolve().parent.parent
GIB = 2**30

_ROWS = flags.DEFINE_string("rows", "", "Regular expression; rows whose name it is found in.")
_AGAIN = flags.DEFINE_boolean("again", False, "Compile rows that are finished, too.")
_TABLE = flags.DEFINE_string("table", str(REPOSITORY / "docs" / "preflight.md"), "File to write.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "Most that a row may take.", lower_bound=0.1)


@dataclasses.dataclass(frozen=True)
class Row:
    """A run and a slice: `python -m clip_jax.preflight --config=… --topology=… flags`."""

    config: str  # of configs/, without .py
    topology: str
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What --rows is looked for in, and the key of the JSON file."""
        changes = (flag.removeprefix("--config.") for flag in self.flags)
        return " ".join((self.config, self.topology, *changes))


BATCH = "--config.batch_size=32768"
FULL, FSDP_16 = "--config.model.remat=full", "--config.mesh.fsdp=16"
QKV = "--config.model.remat=qkv"
OFF, LOOP = "--config.model.remat=none", "--config.model.scan_layers=True"
ROWS = (
    Row("openai_vit_b32", "v5e:8x8"),
    Row("openai_vit_b16", "v5e:16x16"),
    Row("openai_vit_b16", "v5e:8x8", (LOOP, "--config.mesh.fsdp=8")),
    Row("openai_vit_l14", "v5p:8x8x4"),
    Row("openai_vit_l14", "v5e:16x16", (FSDP_16,)),
    Row("openai_vit_l14_336", "v5p:8x8x8"),
    Row("openai_rn50", "v5e:16x16"),
    Row("openai_rn50x64", "v5p:8x8x8"),
    Row("laion_vit_h14", "v5p:8x8x4", (BATCH,)),
    Row("laion_vit_bigg14", "v5p:8x8x8", (BATCH, "--config.model.vision.patch_dropout=0.0")),
    Row("siglip_so400m", "v5e:16x16"),
    Row("openai_vit_b32", "v6e:16x16", (LOOP, OFF)),
    Row("openai_vit_b16", "v6e:16x16", (LOOP, OFF)),
    Row("openai_vit_l14", "v6e:16x16", (FSDP_16,)),
    Row("openai_vit_l14_336", "v6e:16x16", (FSDP_16,)),
    Row("siglip_vit_b16", "v6e:16x16"),
    Row("siglip2_vit_l16", "v6e:16x16"),
    # The other configurations, as they are.
    Row("siglip_vit_b16", "v5e:8x8"),
    Row("siglip2_vit_l16", "v5e:16x16"),
    Row("clipa_h14_pretrain", "v5e:16x16"),
    Row("clipa_h14_tune", "v5e:16x16"),
    Row("lit_vit_b16", "v5e:4x4"),
    Row("laion_vit_h14", "v5p:8x8x4"),
    Row("laion_vit_bigg14", "v5p:8x8x8"),
    # The least memory: everything is computed again.
    Row("openai_vit_b16", "v5e:8x8", (LOOP, FULL, "--config.mesh.fsdp=8")),
    Row("openai_vit_l14", "v5e:16x16", (FULL, FSDP_16)),
    Row("siglip_so400m", "v5e:16x16", (FULL,)),
    Row("openai_vit_l14_336", "v5p:8x8x8", (FULL,)),
    Row("laion_vit_h14", "v5p:8x8x4", (BATCH, FULL)),
    Row("laion_vit_bigg14", "v5p:8x8x8", (BATCH, "--config.model.vision.patch_dropout=0.0", FULL)),
)

HEAD = """\
# Which runs fit which slices

Each row is the real train step of a configuration, compiled ahead of time for the slice by
`python -m clip_jax.preflight`, without a TPU at hand. Made by
`python benchmarks/preflight_table.py`; the full reports are in [preflight.json](preflight.json).

- *state*: parameters, optimizer and moving average a device, in GiB; *temporaries*: the compiler's
  sum, in which buffers that take turns in one place may count twice (with the state it can be more
  than a device has, of a program that the compiler accepts); *peak*: its own figure of what the
  step needs at most, state included, against what a device has.
- *operations*: matrix products and convolutions compiled, against those of the model (forward, and
  twice that backward): what is above 1 is computed again.
- *exchanged*: GB a device and step, each exchange by the larger of what goes in and what comes out.
- *step*, *utilisation*, *samples/s*: by the cycles that the compiler expects ([scale.md](scale.md),
  "How long a step takes"), not measured. Empty: not compiled since attention has a kernel.
- All were compiled on two cores; the last rows compute everything again and need the least memory.

"""
COLUMNS = (
    "config", "model", "slice", "mesh (data × fsdp × tensor)", "batch", "remat", "micro-batches",
    "state", "temporaries", "peak", "operations", "exchanged", "compiled in", "step", "utilisation",
    "samples/s",
)  # fmt: skip


def preflight(row: Row) -> dict[str, Any]:
    """The report of a row; one with `fits: None` and a reason where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "clip_jax.preflight", f"--config=configs/{row.config}.py",
            f"--topology={row.topology}", f"--output={output}", "--noevaluation", *row.flags,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=REPOSITORY, timeout=60 * _MINUTES.value, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            return {"fits": None, "reason": f"not compiled within {_MINUTES.value:g} minutes"}
        if output.exists():
            return json.loads(output.read_text(encoding="utf-8"))
        return {"fits": None, "reason": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def gib(count: float | None) -> str:
    """Bytes in GiB."""
    return "" if count is None else f"{count / GIB:.2f}"


def cells(row: Row, report: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if report["fits"] is None:
        return [row.config, "", row.topology, report["reason"]] + [""] * (len(COLUMNS) - 4)
    state = sum(report[f"{kind}_bytes_per_device"] for kind in ("parameter", "optimizer", "ema"))
    peak = f"{gib(report['peak_bytes_per_device'])} of {gib(report['hbm_bytes_per_device'])}"
    first = [
        row.config,
        report["model"],
        f"{report['topology']} ({report['devices']})",
        " × ".join(str(size) for size in report["mesh"].values()),
        f"{report['global_batch_size']:,}",
        report["remat"],
        str(report["microbatches"]),
        gib(state),
    ]
    if not report["fits"]:
        return [*first, "", f"**does not fit**: {peak}", "", "", "", "", "", ""]
    seconds = report.get("estimated_step_seconds")
    estimates = ["", "", ""]
    if seconds is not None:
        rate = report["estimated_samples_per_second"]
        estimates = [f"{seconds:.3f} s", f"{report['estimated_utilization']:.0%}", f"{rate:,.0f}"]
    return [
        *first,
        gib(report["temp_bytes_per_device"]),
        peak,
        f"{report['compiled_to_model_flops']:.3f} ×",
        f"{report['collective_bytes_per_device'] / 1e9:.2f}",
        f"{report['compile_seconds']:.0f} s",
        *estimates,
    ]


def write(table: Path, reports: dict[str, Any]) -> None:
    """The JSON file, and the table of the rows that are in it, in the order of `ROWS`."""
    text = json.dumps(reports, indent=1) + "\n"
    table.with_suffix(".json").write_text(text, encoding="utf-8")
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [cells(row, reports[row.name]) for row in ROWS if row.name in reports]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    table.write_text(HEAD + body + "\n", encoding="utf-8")


def main(_: list[str]) -> None:
    """Compiles what is asked for and not there yet, and writes after each row."""
    table = Path(_TABLE.value)
    saved = table.with_suffix(".json")
    reports = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    reports = {name: reports[name] for name in (row.name for row in ROWS) if name in reports}
    if not any(re.search(_ROWS.value, row.name) for row in ROWS):
        names = "\n  ".join(row.name for row in ROWS)
        raise SystemExit(f"error: --rows={_ROWS.value}: is in no name; there are\n  {names}")
    for row in ROWS:
        finished = reports.get(row.name, {}).get("fits") is not None
        if re.search(_ROWS.value, row.name) and (_AGAIN.value or not finished):
            print(f"{row.name} …", flush=True)
            reports[row.name] = preflight(row)
            write(table, reports)
            print("  " + " | ".join(cells(row, reports[row.name])), flush=True)
    write(table, reports)


if __name__ == "__main__":
    app.run(main)
