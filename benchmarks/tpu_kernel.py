"""Whether the TPU's attention kernel compiles at every shape of the configurations, and how long
the compiler takes; without a TPU.

    python benchmarks/tpu_kernel.py --topologies=v5e:1x1,v5p:2x2x1,v6e:1x1

Prints a line for each shape: forward and backward in one program, eight images.
"""

import time

from absl import app, flags

_TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["v5e:1x1", "v5p:2x2x1", "v6e:1x1"], "Slices of one or more chips."
)
# Tokens, heads, width of a head, and whether causal, with what has that shape.
SHAPES = {
    "ViT-B/32": (50, 12, 64, False),
    "ViT-B/16": (197, 12, 64, False),
    "ViT-L/14": (257, 16, 64, False),
    "ViT-L/14 at 336": (577, 16, 64, False),
    "ViT-H/14": (257, 16, 80, False),
    "ViT-bigG/14": (257, 16, 104, False),
    "ViT-H/14 CLIPA": (36, 16, 80, False),
    "SO400M/14": (256, 16, 72, False),
    "SigLIP ViT-B/16": (196, 12, 64, False),
    "SigLIP 2 ViT-L/16": (256, 16, 64, False),
    "text, 512 wide": (77, 8, 64, True),
    "text, 1,280 wide": (77, 20, 64, True),
    "text of SigLIP": (64, 16, 72, False),
    "the longest": (1024, 12, 64, False),
}


def main(_: list[str]) -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from clip_jax.models.kernels.tpu_attention import tpu_attention
    from clip_jax.preflight.topology import find_target

    for topology in _TOPOLOGIES.value:
        place = SingleDeviceSharding(find_target(topology).devices[0])
        for name, (length, heads, head_dim, causal) in SHAPES.items():
            shape = (8, length, heads, head_dim)
            arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)] * 4

            def both(query, key, value, direction, causal=causal):
                mixed, pull = jax.vjp(
                    lambda *inputs: tpu_attention(*inputs, causal), query, key, value
                )
                return mixed, pull(direction)

            begun = time.perf_counter()
            program = jax.jit(both).lower(*arrays).compile()
            kernels = program.as_text().count('custom_call_target="tpu_custom_call"')
            print(
                f"{topology:<10} {name:<20} {length:>5} × {heads} × {head_dim}: {kernels} kernels, "
                f"{time.perf_counter() - begun:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
