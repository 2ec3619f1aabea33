"""SigLIP's SO400M/14 (Zhai et al. 2023; Alabdulmohsin et al. 2023 for the shape).

COMMAND   python -m clip_jax.train --config=configs/siglip_so400m.py --workdir=… --multihost \
              --config.data.path='shards/{00000..41455}.tar'
TOPOLOGY  256 TPU v5e chips (v5e:16x16), mesh data × fsdp = 16 × 16
MEMORY    10.4 of 15.8 GiB a chip at its peak, by pre-flight (docs/preflight.md)
SPEED     estimated by the compiler: 38,200 pairs/s, 53 % of the peak, 12 days for 40 billion pairs
EXPECTED  82.0 % zero-shot top-1 on ImageNet (card of the released weights, trained on WebLI). The
          vocabulary is that of any released SigLIP model: put its tokenizer files into
          tokenizers/siglip or give another folder.
"""

from clip_jax.training.recipes import siglip


def get_config():
    """The sigmoid loss, batch 32,768, 40 billion pairs."""
    config = siglip()
    config.model.name = "ViT-SO400M-14-SigLIP"
    config.model.remat = "qkv"
    config.mesh.fsdp = 16
    config.steps = 40_000_000_000 // 32_768
    return config
