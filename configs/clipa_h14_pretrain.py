"""CLIPA's ViT-H/14, first phase: 84 pixels and 8 tokens (Li et al. 2023).

COMMAND   python -m clip_jax.train --config=configs/clipa_h14_pretrain.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar' \
              --config.tokenizer.source=FOLDER_OF_bert-base-uncased
TOPOLOGY  256 TPU v5e chips (v5e:16x16), mesh data × fsdp = 16 × 16
MEMORY    8.9 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 149,000 pairs/s, 46 % of the peak, 24 hours for 13 billion
          pairs
EXPECTED  after clipa_h14_tune.py 79.1 % zero-shot top-1 on ImageNet (LAION-2B) or 81.8 %
          (DataComp-1B), images squashed; the paper's cost is 8,640 A100-hours for both phases.

Theirs takes nouns first where it cuts texts and fixed sine-cosine positions; here texts are cut
at the end and positions are learned.
"""

from clip_jax.training.recipes import clipa


def get_config():
    """Batch 65,536, 12.8 billion pairs at 84 pixels and 8 tokens."""
    config = clipa()
    config.model.name = "ViT-H-14-CLIPA"
    config.model.remat = "dots"
    config.mesh.fsdp = 16
    config.model.image_size = 84
    config.model.context_length = 8
    config.optimizer.learning_rate = 8e-6 * 65_536 / 256
    config.batch_size = 65_536
    config.steps = 12_800_000_000 // 65_536
    return config
