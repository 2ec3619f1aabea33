"""CLIPA's ViT-H/14, second phase: 224 pixels and 32 tokens (Li et al. 2023).

COMMAND   python -m clip_jax.train --config=configs/clipa_h14_tune.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar' \
              --config.init.source=RUN_OF_clipa_h14_pretrain \
              --config.tokenizer.source=FOLDER_OF_bert-base-uncased
TOPOLOGY  256 TPU v5e chips (v5e:16x16), mesh data × fsdp = 16 × 16
MEMORY    7.3 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 26,900 pairs/s, 57 % of the peak, 81 minutes for 0.13 billion
          pairs
EXPECTED  79.1 % zero-shot top-1 on ImageNet (LAION-2B) or 81.8 % (DataComp-1B), images squashed.
"""

from clip_jax.training.recipes import clipa


def get_config():
    """Batch 16,384, 131 million pairs at full size; the position tables are resized."""
    config = clipa()
    config.model.name = "ViT-H-14-CLIPA"
    config.model.remat = "qkv"
    config.mesh.fsdp = 16
    config.optimizer.learning_rate = 8e-7 * 16_384 / 256
    config.batch_size = 16_384
    config.steps = 131_000_000 // 16_384
    return config
