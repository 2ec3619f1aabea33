"""LAION's ViT-bigG/14 on LAION-2B (open_clip, issue 606).

COMMAND   python -m clip_jax.train --config=configs/laion_vit_bigg14.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  512 TPU v5p chips (v5p:8x8x8), mesh data × fsdp = 64 × 8
MEMORY    41.3 of 95.7 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 73,700 pairs/s, 54 % of the peak, 5 days for 32 billion pairs
EXPECTED  80.1 % zero-shot top-1 on ImageNet with the 80 templates, after 32 billion pairs with
          half of the patches and about 7 billion with all of them
          (--config.model.vision.patch_dropout=0.0 --config.init.source=THIS_RUN); open_clip's
          result table.

Their run took 512 to 760 A100.
"""

from clip_jax.training.recipes import openai


def get_config():
    """Batch 163,840, half of the patches left out, peak rate 2e-3, b2 0.95."""
    config = openai()
    config.model.name = "ViT-bigG-14"
    config.model.remat = "qkv"
    config.mesh.fsdp = 8
    config.model.vision.patch_dropout = 0.5
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 13_000
    config.optimizer.b2 = 0.95
    config.batch_size = 163_840
    config.steps = 32_000_000_000 // 163_840
    return config
