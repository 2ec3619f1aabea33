"""The paper's ViT-L/14 at 336 pixels: one more epoch of openai_vit_l14.py.

COMMAND   python -m clip_jax.train --config=configs/openai_vit_l14_336.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar' \
              --config.init.source=RUN_OF_openai_vit_l14
TOPOLOGY  512 TPU v5p chips (v5p:8x8x8), mesh data × fsdp = 64 × 8
MEMORY    9.5 of 95.7 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 98,400 pairs/s, 50 % of the peak, 68 minutes for 0.4 billion
          pairs
EXPECTED  76.6 % zero-shot top-1 on ImageNet with the 80 templates (open_clip's result table).
"""

from clip_jax.training.recipes import LAION_400M, openai


def get_config():
    """One epoch at 2e-5; the position table is resized."""
    config = openai()
    config.model.name = "ViT-L-14-336-quickgelu"
    config.model.remat = "qkv"
    config.mesh.fsdp = 8
    config.optimizer.learning_rate = 2e-5
    config.steps = LAION_400M // 32_768
    return config
