"""The paper's RN50x64 (Radford et al. 2021, tables 18 to 20).

COMMAND   python -m clip_jax.train --config=configs/openai_rn50x64.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  512 TPU v5p chips (v5p:8x8x8), mesh data × fsdp = 64 × 8
MEMORY    51.1 of 95.7 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 68,700 pairs/s, 48 % of the peak, 53 hours for 13 billion pairs
EXPECTED  73.9 % zero-shot top-1 on ImageNet with the 80 templates, after 32 epochs of OpenAI's
          400 million pairs.

The paper took 18 days on 592 V100.
"""

from clip_jax.training.recipes import openai


def get_config():
    """Batch 32,768, images of 448 pixels, peak rate 3.6e-4."""
    config = openai()
    config.model.name = "RN50x64-quickgelu"
    config.model.remat = "none"
    config.mesh.fsdp = 8
    config.optimizer.learning_rate = 3.6e-4
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    return config
