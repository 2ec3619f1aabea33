"""The paper's RN50 (Radford et al. 2021, tables 18 to 20).

COMMAND   python -m clip_jax.train --config=configs/openai_rn50.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  256 TPU v5e chips (v5e:16x16), mesh data × fsdp = 16 × 16
MEMORY    7.0 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 243,000 pairs/s, 25 % of the peak, 15 hours for 13 billion
          pairs
EXPECTED  59.8 % zero-shot top-1 on ImageNet with the 80 templates, after 32 epochs of OpenAI's
          400 million pairs.
"""

from clip_jax.training.recipes import openai


def get_config():
    """Batch 32,768; Adam's second moment and epsilon as the paper has them for ResNets."""
    config = openai()
    config.model.name = "RN50-quickgelu"
    config.model.remat = "none"
    config.mesh.fsdp = 16
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    return config
