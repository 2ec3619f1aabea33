"""Training and encoding on one GPU: ours, open_clip's and transformers', on one card in one run.

    python benchmarks/gpu.py --output=gpu.json
    python benchmarks/gpu.py --peer_python=OTHER/bin/python   # peers in an environment of their own

For each architecture the batch doubles until it does not fit; the best rate counts. bfloat16
throughout (peers: torch.compile, autocast, SDPA, fused AdamW). Utilisation is model operations over
the rate of a large bfloat16 matrix product measured in the same run. Each measurement is a process
of its own, so that one leaves nothing on the card for the next. The table comes last; a JSON object
goes to --output. Where there is no GPU the same program runs at a toy size, and says so: those
figures mean nothing.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

_MODELS = flags.DEFINE_list(
    "models", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-SO400M-14-SigLIP"], "Architectures."
)
_PEERS = flags.DEFINE_list("peers", ["open_clip", "transformers"], "Libraries to compare with.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Python that has the peers.")
_BIG_BATCH = flags.DEFINE_integer("big_batch", 32_768, "ViT-B/32 by micro-batches; 0: leave out.")
_MINUTES = flags.DEFINE_float("minutes", 9.0, "No measurement is begun after so many.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the JSON.")
LIMITS = {"ViT-L-14": 0.50, "ViT-B-16": 0.45}  # of the matrix product's rate
PEER_RATIO = 1.1
HERE = Path(__file__).parent


def measure(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Runs one job in a process of its own: its JSON answer, or {"skipped": why}."""
    begun = time.monotonic()
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", JAX_TRACEBACK_FILTERING="off")
    result = subprocess.run(
        [python, str(HERE / script), json.dumps(job)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    answers = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if answers:
        answer = json.loads(answers[-1])
    else:
        tail = (result.stderr.strip().splitlines() or ["no output"])[-1]
        answer = {"skipped": tail[:200]}
    what = " ".join(str(job[key]) for key in ("what", "model", "library") if key in job)
    found = answer.get("skipped") or f"{answer.get('samples_per_second', 0):,.0f} samples/s"
    print(f"{what:<48} {found}   ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
    return answer


def row(model: str, ceiling: float, toy: bool, late: Any) -> dict[str, Any]:
    """One architecture: ours and the peers' training, our encoding."""
    from clip_jax.models.architectures import get_architecture
    from clip_jax.models.flops import step_flops

    job = {"model": model, "toy": toy}
    ours = measure(sys.executable, "gpu_ours.py", {"what": "train", **job})
    encode = measure(sys.executable, "gpu_ours.py", {"what": "encode", **job})
    peers = {}
    for library in _PEERS.value:
        if late():
            peers[library] = {"skipped": "out of time"}
            continue
        asked = {"what": "train", "library": library, **job}
        if not toy:
            asked["config"] = get_architecture(model).to_dict()
        peers[library] = measure(_PEER_PYTHON.value, "gpu_peer.py", asked)
    result: dict[str, Any] = {"model": model, "train": ours, "encode": encode, "peers": peers}
    rate = ours.get("samples_per_second")
    if rate and not toy:
        batch = ours["batch_size"]
        flops = step_flops(get_architecture(model), batch) / batch
        result["utilization"] = rate * flops / ceiling
        result["utilization_limit"] = LIMITS.get(model)
    best = max((p.get("samples_per_second", 0.0) for p in peers.values()), default=0.0)
    if rate and best:
        result["ratio"] = rate / best
        result["ratio_limit"] = PEER_RATIO
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""

    def rate(answer: dict[str, Any]) -> str:
        value = answer.get("samples_per_second")
        return f"{value:,.0f}" if value else "–"

    heads = ["model", "batch", "train/s", "MFU", "encode/s", *_PEERS.value, "ratio"]
    lines = [heads]
    for r in rows:
        share = r.get("utilization")
        lines.append(
            [
                r["model"],
                str(r["train"].get("batch_size", "–")),
                rate(r["train"]),
                f"{100 * share:.0f} %" if share else "–",
                rate(r["encode"]),
                *(rate(r["peers"].get(name, {})) for name in _PEERS.value),
                f"{r['ratio']:.2f}" if "ratio" in r else "–",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def main(_: list[str]) -> None:
    begun = time.monotonic()
    device = measure(sys.executable, "gpu_ours.py", {"what": "ceiling"})
    if "skipped" in device:
        raise SystemExit(f"error: jax does not run here: {device['skipped']}")
    toy = device["platform"] != "gpu"
    if toy:
        print("there is no GPU: toy sizes, whose figures mean nothing", file=sys.stderr)

    def late() -> bool:
        return time.monotonic() - begun > 60 * _MINUTES.value

    rows = [
        row(model, device["flops_per_second"], toy, late) for model in _MODELS.value if not late()
    ]
    big: dict[str, Any] = {"skipped": "left out"}
    if _BIG_BATCH.value and not late():
        job = {"what": "big_batch", "model": "ViT-B-32", "batch": _BIG_BATCH.value, "toy": toy}
        big = measure(sys.executable, "gpu_ours.py", job)
    result = {"device": device, "toy": toy, "models": rows, "big_batch": big}
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{device['device']}, {device['flops_per_second'] / 1e12:.1f} TFLOP/s in a product")
    print(table(rows))
    if "samples_per_second" in big:
        print(
            f"ViT-B-32, batch {big['batch_size']:,} in {big['microbatches']} micro-batches: "
            f"{big['samples_per_second']:,.0f} pairs/s, peak {big['peak_gib']:.1f} GiB"
        )


if __name__ == "__main__":
    app.run(main)
