"""The paper's ViT-B/16 (Radford et al. 2021, tables 18 to 20).

COMMAND   python -m clip_jax.train --config=configs/openai_vit_b16.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  256 TPU v5e chips (v5e:16x16), mesh data × fsdp = 16 × 16
MEMORY    2.9 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 206,000 pairs/s, 50 % of the peak, 17 hours for 13 billion
          pairs
EXPECTED  68.3 % zero-shot top-1 on ImageNet with the 80 templates, after 32 epochs of OpenAI's
          400 million pairs; LAION-400M instead gives 67.1 % (open_clip's result table).
"""

from clip_jax.training.recipes import openai


def get_config():
    """Batch 32,768, 32 epochs of 400 million pairs."""
    config = openai()
    config.model.name = "ViT-B-16-quickgelu"
    config.model.remat = "qkv"
    config.model.scan_layers = False  # a tenth faster than the loop; compiles for minutes
    config.mesh.fsdp = 16
    return config
