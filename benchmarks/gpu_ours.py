"""Our side of gpu.py: one measurement a process. `python gpu_ours.py JOB`, a JSON object."""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

TOY = {
    "image_size": 32,
    "context_length": 8,
    "vocab_size": 64,
    "vision": {"patch_size": 8, "width": 32, "layers": 2, "heads": 2, "mlp_dim": 64},
    "text": {"width": 32, "layers": 2, "heads": 2, "mlp_dim": 64},
}


def seconds_a_call(work: Callable[[], Any], calls: int, turns: int = 3) -> float:
    """The median over turns; `work` returns what must be waited for."""
    import jax

    jax.block_until_ready(work())
    found = []
    for _ in range(turns):
        begun = time.perf_counter()
        for _ in range(calls):
            last = work()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - begun) / calls)
    return statistics.median(found)


def ceiling() -> dict[str, Any]:
    """The rate of a large bfloat16 product."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    size = 8192 if device.platform == "gpu" else 512
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = seconds_a_call(lambda: product(x, x), 20, turns=5)
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "flops_per_second": 2 * size**3 / seconds,
        "jax": jax.__version__,
    }


def architecture(job: dict[str, Any], **changes: Any) -> Any:
    from clip_jax.models.architectures import get_architecture

    toy = TOY if job["toy"] else {}
    return get_architecture(job["model"], dtype="bfloat16", **(toy | changes))


def make_batch(config: Any, count: int) -> Any:
    """Random pixels and tokens, born on the device."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def make() -> Any:
        keys = jax.random.split(jax.random.key(0))
        shape = (count, config.image_size, config.image_size, 3)
        tokens = (count, config.context_length)
        return {
            "images": jax.random.bits(keys[0], shape, jnp.uint8),
            "tokens": jax.random.randint(keys[1], tokens, 1, config.vocab_size - 1, jnp.int32),
        }

    return make()


def train_rate(config: Any, batch_size: int, **objective: Any) -> float:
    """Pairs a second of the training step that runs use."""
    import jax

    from clip_jax.training.config import OptimizerConfig
    from clip_jax.training.step.gradient import Objective
    from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
    from clip_jax.training.step.state import create_state
    from clip_jax.training.step.update import make_train_step

    settings = OptimizerConfig(learning_rate=1e-5, first_moment_dtype="bfloat16", clip_norm=None)
    optimizer = make_optimizer(settings, 10**6)
    loss = "softmax" if config.logit_bias_init is None else "sigmoid"
    step = make_train_step(
        Objective(config, loss, **objective), optimizer, learning_rate_schedule(settings, 10**6)
    )
    jitted = jax.jit(step, donate_argnums=0)
    state = jax.jit(functools.partial(create_state, config, optimizer, 0, False))()
    batch = make_batch(config, batch_size)

    def once() -> Any:
        nonlocal state
        state, metrics = jitted(state, batch)
        return metrics["loss"]

    return batch_size / seconds_a_call(once, 5)


def largest(job: dict[str, Any], measure: Callable[[int], float], first: int) -> dict[str, Any]:
    """Doubles the batch until it does not fit; the best rate and its batch."""
    best: dict[str, Any] = {"skipped": "not even the smallest batch fits"}
    batch = 16 if job["toy"] else first
    while batch <= (32 if job["toy"] else 16_384):
        try:
            rate = measure(batch)
        except Exception as error:  # the backend's own type differs between versions
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            break
        if rate > best.get("samples_per_second", 0.0):
            best = {"samples_per_second": rate, "batch_size": batch}
        batch *= 2
    return best


def encode_rate(config: Any, batch_size: int) -> float:
    """Images a second through the image tower, bytes in, embeddings out."""
    import jax

    from clip_jax.models.two_tower import TwoTower, init_params, normalize_images

    params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
    images = make_batch(config, batch_size)["images"]

    @jax.jit
    def encode(params: Any, images: Any) -> Any:
        return TwoTower(config).apply(
            {"params": params}, normalize_images(images, config), method="encode_image"
        )

    return batch_size / seconds_a_call(lambda: encode(params, images), 10)


def big_batch(job: dict[str, Any]) -> dict[str, Any]:
    """A batch beyond the card's memory, exact, in as few micro-batches as fit."""
    import jax

    batch = 64 if job["toy"] else job["batch"]
    config = architecture(job, scan_layers=True)
    for count in (2, 4, 8, 16, 32):
        try:
            rate = train_rate(config, batch, implementation="chunked", microbatches=count)
        except Exception as error:  # as above
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            continue
        stats = jax.devices()[0].memory_stats() or {}
        return {
            "samples_per_second": rate,
            "batch_size": batch,
            "microbatches": count,
            "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
        }
    return {"skipped": "does not fit in 32 micro-batches"}


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["what"] == "ceiling":
        answer = ceiling()
    elif job["what"] == "train":
        answer = largest(job, lambda batch: train_rate(architecture(job), batch), first=128)
    elif job["what"] == "encode":
        answer = largest(job, lambda batch: encode_rate(architecture(job), batch), first=512)
    else:
        answer = big_batch(job)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
