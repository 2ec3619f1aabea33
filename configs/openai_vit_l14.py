"""The paper's ViT-L/14 (Radford et al. 2021, tables 18 to 20).

COMMAND   python -m clip_jax.train --config=configs/openai_vit_l14.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  256 TPU v5p chips (v5p:8x8x4), mesh data × fsdp = 32 × 8
MEMORY    9.1 of 95.7 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 112,000 pairs/s, 50 % of the peak, 32 hours for 13 billion
          pairs
EXPECTED  75.5 % zero-shot top-1 on ImageNet with the 80 templates, after 32 epochs of OpenAI's
          400 million pairs; LAION-400M instead gives 72.8 % (open_clip's result table).

The paper took 12 days on 256 V100.
"""

from clip_jax.training.recipes import openai


def get_config():
    """Batch 32,768, 32 epochs of 400 million pairs, peak rate 4e-4."""
    config = openai()
    config.model.name = "ViT-L-14-quickgelu"
    config.model.remat = "qkv"
    config.mesh.fsdp = 8
    config.optimizer.learning_rate = 4e-4
    return config
