"""The paper's ViT-B/32 (Radford et al. 2021, tables 18 to 20), on image-text shards of your own.

COMMAND   python -m clip_jax.train --config=configs/openai_vit_b32.py --workdir=… \
              --config.data.path='shards/{00000..41455}.tar' --multihost
HARDWARE  planned for 64 TPU v4 or 32 H100 chips and more; not yet run at this scale
TIME      12.8 billion pairs seen. At 50 % utilisation of a TPU v4 (275 TFLOP/s) a chip takes about
          3,100 pairs/s (3 x 14.8 GFLOP each): 64 chips, 18 hours. A plan, not a measurement.
EXPECTED  63.3 % zero-shot top-1 on ImageNet with the 80 templates, after 32 epochs of OpenAI's
          400 million pairs; LAION-400M instead gives 62.9 % (open_clip's result table).
"""

from clip_jax.training.config import default_config


def get_config():
    """Batch 32,768, 32 epochs of 400 million pairs, AdamW, cosine, one random square crop."""
    config = default_config()
    config.model.name = "ViT-B-32-quickgelu"
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.tokenizer.source = "clip_bpe"
    config.data.format = "webdataset"
    config.data.workers = 16
    # The paper's only augmentation is a random square crop of the resized image.
    config.augmentation.crop_scale = (0.9, 1.0)
    config.augmentation.crop_ratio = (1.0, 1.0)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.clip_norm = None
    config.optimizer.first_moment_dtype = "bfloat16"
    config.batch_size = 32768
    config.steps = 390_625  # 12.8 billion pairs
    config.log_every_steps = 50
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_newest = 3
    config.checkpoint.keep_every_steps = 50_000
    config.report = False
    return config
