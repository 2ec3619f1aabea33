"""SigLIP's ViT-B/16 (Zhai et al. 2023).

COMMAND   python -m clip_jax.train --config=configs/siglip_vit_b16.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  64 TPU v5e chips (v5e:8x8), mesh data × fsdp = 8 × 8
MEMORY    12.5 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 39,900 pairs/s, 44 % of the peak, 63 hours for 9 billion pairs
EXPECTED  73.4 % zero-shot top-1 on ImageNet after 5 days of 32 TPU v4 in the paper; the released
          weights, trained on WebLI for longer, have 76.0 % (their card). The vocabulary is that
          of any released SigLIP model: put its tokenizer files into tokenizers/siglip or give
          another folder.
"""

from clip_jax.training.recipes import siglip


def get_config():
    """The sigmoid loss, batch 32,768, 9 billion pairs."""
    config = siglip()
    config.model.name = "ViT-B-16-SigLIP"
    config.model.remat = "qkv"
    config.mesh.fsdp = 8
    config.steps = 9_000_000_000 // 32_768
    return config
