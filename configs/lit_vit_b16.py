"""LiT: a locked image tower, a text tower that learns to read it (Zhai et al. 2022).

COMMAND   python -m clip_jax.train --config=configs/lit_vit_b16.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar' \
              --config.init.source=MODEL
TOPOLOGY  16 TPU v5e chips (v5e:4x4), mesh data × fsdp = 4 × 4
MEMORY    6.0 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 22,200 pairs/s, 37 % of the peak, 12 hours for 0.98 billion
          pairs
EXPECTED  depends on the image tower; LiT's public B/16 with a tower of ImageNet-21k has 72.1 %
          zero-shot top-1 on ImageNet, its L/16 75.7 % (big_vision). Batch and rate are this
          file's.
"""

from clip_jax.training.recipes import openai


def get_config():
    """The image tower is taken from --config.init.source and never changes."""
    config = openai()
    config.model.name = "ViT-B-16"
    config.model.remat = "qkv"
    config.mesh.fsdp = 4
    config.init.only = ("vision/.*",)
    config.optimizer.freeze = ("vision/.*",)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.batch_size = 16_384
    config.steps = 60_000
    return config
