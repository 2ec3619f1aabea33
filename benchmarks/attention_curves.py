"""Whether the TPU's attention kernel changes how a model learns: loss curves of a small ViT.

    python benchmarks/attention_curves.py --output=docs/attention_curves.png

Trains a ViT of the quickstart's size on its glyphs for 200 steps and some seeds: in float32, in
bfloat16 with XLA's attention, and in bfloat16 with the kernel, run by Pallas's interpreter. All
three see the same batches in the same order.
"""

import contextlib
import functools
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", "attention_curves.png", "Plot to write.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.", lower_bound=20)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each kind.", lower_bound=1)
KINDS = {"float32": "float32", "bfloat16, XLA": "bfloat16", "bfloat16, kernel": "bfloat16"}


def config(seed: int, dtype: str, steps: int) -> dict:
    """The quickstart's data and recipe, with a ViT of 65 tokens."""
    from configs import quickstart

    config = quickstart.get_config()
    config.seed, config.model.dtype, config.steps = seed, dtype, steps
    config.model.vision = {
        "kind": "vit", "patch_size": 4, "width": 128, "layers": 3, "heads": 2, "mlp_dim": 512
    }  # fmt: skip
    config.batch_size, config.log_every_steps, config.evaluations = 64, 1, ()
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 5e-4, 20
    config.checkpoint.every_steps = steps
    config.report = False
    return config.to_dict()


def losses(kind: str, seed: int, steps: int) -> np.ndarray:
    """Loss of each step, (steps,)."""
    from clip_jax.models import attention
    from clip_jax.models.kernels import tpu_attention
    from clip_jax.training.config import build_config
    from clip_jax.training.run.loop import train

    interpreted = functools.partial(tpu_attention.tpu_self_attention, interpret=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        if kind.endswith("kernel"):
            patches.enter_context(mock.patch.object(attention, "choose", return_value="tpu"))
            patches.enter_context(
                mock.patch.object(tpu_attention, "tpu_self_attention", interpreted)
            )
        train(build_config(config(seed, KINDS[kind], steps)), Path(folder))
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.asarray([json.loads(line)["loss"] for line in lines])


def main(_: list[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = _STEPS.value
    curves = {
        kind: np.stack([losses(kind, seed, steps) for seed in range(_SEEDS.value)])
        for kind in KINDS
    }
    last = {kind: curve[:, -20:].mean(1) for kind, curve in curves.items()}
    for kind, values in last.items():
        runs = ", ".join(f"{value:.4f}" for value in values)
        print(f"{kind:<18} mean loss of the last 20 steps {values.mean():.4f} (runs: {runs})")
    xla, kernel = curves["bfloat16, XLA"], curves["bfloat16, kernel"]
    print(f"between seeds: {last['bfloat16, XLA'].std(ddof=1):.4f} (standard deviation)")
    print(f"kernel less XLA, same seed, all steps: {np.abs(kernel - xla).mean():.4f} (absolute)")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for color, (kind, curve) in zip(("C7", "C0", "C1"), curves.items(), strict=True):
        for seed, run in enumerate(curve):
            axes.plot(run, color=color, lw=0.9, alpha=0.8, label=None if seed else kind)
    axes.set(xlabel="step", ylabel="loss", title=f"{_SEEDS.value} seeds each, batch 64")
    axes.legend(frameon=False)
    figure.savefig(_OUTPUT.value, dpi=110)


if __name__ == "__main__":
    app.run(main)
