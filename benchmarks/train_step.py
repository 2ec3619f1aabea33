"""Our training step and image encoding against open_clip's, on this machine's CPU, in one run.

    python benchmarks/train_step.py --peer_python=PATH_OF_AN_ENVIRONMENT_WITH_OPEN_CLIP/bin/python

Both are built once and then take turns, a few steps each, so that a machine that drifts drifts for
both; what counts is the median of the ratios. Prints one JSON object: ratios above 1 mean that ours
is faster. The limit is the rate of a large float32 matrix product in the same run.
"""

import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from peer import Peer, PeerError, matmul_flops_per_second

from clip_jax.hosts.memory import keep_freed_memory
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig, override
from clip_jax.training.config import ModelConfig

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each; the first warms up.", lower_bound=3)
_MODELS = flags.DEFINE_list("models", ["ViT-B-32", "quickstart"], "ViT-B-32, quickstart.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the JSON, besides standard output.")


def quickstart_architecture() -> tuple[ClipConfig, int]:
    """The model and batch of configs/quickstart.py, but for the activation: the peer has exact
    GELU."""
    path = Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    model = ModelConfig.from_values(config.model.to_dict(), "config.model").architecture()
    changes = {"vocab_size": config.tokenizer.vocab_size, "text": {"activation": "gelu"}}
    return override(model, **changes), config.batch_size


class Ours:
    """Our compiled training step and encoder."""

    def __init__(self, config: ClipConfig, batch_size: int):
        import jax
        import jax.numpy as jnp

        from clip_jax.models.two_tower import TwoTower, count_trainable
        from clip_jax.training.config import OptimizerConfig
        from clip_jax.training.step.gradient import Objective
        from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
        from clip_jax.training.step.state import create_state
        from clip_jax.training.step.update import make_train_step

        optimizer_config = OptimizerConfig(learning_rate=1e-5, warmup_steps=10, clip_norm=None)
        optimizer = make_optimizer(optimizer_config, 10**6)
        schedule = learning_rate_schedule(optimizer_config, 10**6)
        keys = jax.random.split(jax.random.key(0), 2)
        size = config.image_size
        self.images = jax.random.normal(keys[0], (batch_size, size, size, 3))
        tokens = jax.random.randint(
            keys[1], (batch_size, config.context_length), 1, config.vocab_size - 1
        )
        # The peer gets float images, normalised; ours starts from bytes as it does in a run.
        batch = {
            "images": jnp.clip(self.images * 64 + 128, 0, 255).astype(jnp.uint8),
            "tokens": tokens.astype(jnp.int32),
        }
        self.state = jax.jit(lambda: create_state(config, optimizer, 0, ema=False))()
        self.parameters = count_trainable(self.state.params)
        step = jax.jit(make_train_step(Objective(config), optimizer, schedule), donate_argnums=0)
        encode = jax.jit(
            lambda params, images: TwoTower(config).apply(
                {"params": params}, images, method="encode_image"
            )
        )

        def train(count: int) -> None:
            for _ in range(count):
                self.state, metrics = step(self.state, batch)
            metrics["loss"].block_until_ready()

        def encode_images(count: int) -> None:
            for _ in range(count):
                encode(self.state.params, self.images).block_until_ready()

        self.work = {"train": train, "encode": encode_images}

    def time(self, what: str, count: int) -> float:
        begun = time.perf_counter()
        self.work[what](count)
        return (time.perf_counter() - begun) / count


def compare(config: ClipConfig, batch_size: int) -> dict[str, Any]:
    """Turns of training and of encoding, ours and theirs."""
    from clip_jax.models.flops import image_flops, step_flops

    ours, peer = Ours(config, batch_size), Peer(config, batch_size)
    flops = {
        "train": step_flops(config, batch_size),
        "encode": batch_size * image_flops(config),
    }
    result: dict[str, Any] = {
        "batch_size": batch_size,
        "parameters": ours.parameters,
        "peer": peer.about,
        "same_parameters": ours.parameters == peer.parameters,
    }
    for what in ("train", "encode"):
        ours.time(what, 1)  # compiles
        count = max(1, round(2.0 / ours.time(what, 1)))
        rows = []
        for turn in range(_ROUNDS.value):
            pair = [ours.time(what, count), peer.time(what, count)]
            if turn:
                rows.append((*pair, matmul_flops_per_second()))
        ratio = statistics.median(theirs / mine for mine, theirs, _ in rows)
        limit = statistics.median(row[2] for row in rows)
        rates = [flops[what] / statistics.median(row[side] for row in rows) for side in (0, 1)]
        result[what] = {
            "ratio": round(ratio, 3),
            "ratios": [round(theirs / mine, 3) for mine, theirs, _ in rows],
            "samples_per_second": round(batch_size * rates[0] / flops[what], 1),
            "peer_samples_per_second": round(batch_size * rates[1] / flops[what], 1),
            "share_of_limit": round(rates[0] / limit, 3),
            "peer_share_of_limit": round(rates[1] / limit, 3),
            "limit_gflops_per_second": round(limit / 1e9, 1),
        }
    peer.close()
    return result


def main(_: list[str]) -> None:
    if not flags.FLAGS.peer_python:
        raise SystemExit("error: --peer_python: give the python of an environment with open_clip")
    keep_freed_memory()  # as our programs do
    import jax

    result: dict[str, Any] = {"jax": jax.__version__, "cores": os.cpu_count()}
    for name in _MODELS.value:
        is_quickstart = name == "quickstart"
        shape = quickstart_architecture() if is_quickstart else (get_architecture(name), 32)
        try:
            result[name] = compare(*shape)
        except PeerError as error:
            result[name] = {"skipped": str(error)}
    text = json.dumps(result, indent=1)
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
