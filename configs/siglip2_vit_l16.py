"""SigLIP 2's ViT-L/16 at 256 pixels (Tschannen et al. 2025), its contrastive part.

COMMAND   python -m clip_jax.train --config=configs/siglip2_vit_l16.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  256 TPU v5e chips (v5e:16x16), mesh data × fsdp = 16 × 16
MEMORY    9.6 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 45,900 pairs/s, 55 % of the peak, 10 days for 40 billion pairs
EXPECTED  the released weights have 82.5 % zero-shot top-1 on ImageNet; they saw WebLI in 109
          languages, 40 billion pairs, and had a caption decoder and self-distillation besides,
          which are not published and not here. The vocabulary is that of any released SigLIP 2
          model: put its tokenizer files into tokenizers/siglip2 or give another folder.

The paper used up to 2,048 TPU v5e.
"""

from clip_jax.training.recipes import siglip


def get_config():
    """The sigmoid loss, batch 32,768, 40 billion pairs, a vocabulary of 256,000."""
    config = siglip()
    config.model.name = "ViT-L-16-SigLIP2-256"
    config.model.remat = "qkv"
    config.mesh.fsdp = 16
    config.tokenizer.source = "tokenizers/siglip2"
    config.steps = 40_000_000_000 // 32_768
    return config
