"""LAION's ViT-H/14 on LAION-2B (open_clip; Schuhmann et al. 2022).

COMMAND   python -m clip_jax.train --config=configs/laion_vit_h14.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  256 TPU v5p chips (v5p:8x8x4), mesh data × fsdp = 32 × 8
MEMORY    35.7 of 95.7 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 56,100 pairs/s, 55 % of the peak, 7 days for 32 billion pairs
EXPECTED  78.0 % zero-shot top-1 on ImageNet with the 80 templates, after 32 billion pairs of
          LAION-2B (open_clip's result table).

Their run took 824 A100. The peak rate is open_clip's default; theirs is not in its table.
"""

from clip_jax.training.recipes import openai


def get_config():
    """Batch 79,872 (theirs: 79,104, which 256 chips do not divide), 32 billion pairs."""
    config = openai()
    config.model.name = "ViT-H-14"
    config.model.remat = "qkv"
    config.mesh.fsdp = 8
    config.optimizer.warmup_steps = 10_000
    config.batch_size = 79_872
    config.steps = 32_000_000_000 // 79_872
    return config
