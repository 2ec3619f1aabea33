"""A CLIP from scratch on the embedded glyphs, in five minutes on a laptop.

COMMAND   python -m clip_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
HARDWARE  2 CPU cores
"""

from clip_jax.training.config import default_config


def get_config():
    """DejaVu's twelve text faces with the names of their characters; STIX is the test."""
    config = default_config()
    config.model.name = "custom"
    config.model.embed_dim = 128
    config.model.image_size = 32
    config.model.patch_size = 8
    config.model.vision_width = 128
    config.model.vision_layers = 3
    config.model.vision_heads = 2
    config.model.vision_mlp_dim = 512
    config.model.context_length = 16
    config.model.text_width = 128
    config.model.text_layers = 2
    config.model.text_heads = 2
    config.model.text_mlp_dim = 512
    config.tokenizer.vocab_size = 1000
    config.data.format = "glyphs"
    config.data.path = "train"
    config.augmentation.crop_scale = (1.0, 1.0)
    config.augmentation.shift = 0.06
    config.augmentation.zoom = (0.85, 1.15)
    config.augmentation.shear = 0.15
    config.augmentation.rotation_degrees = 5.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.batch_size = 256
    config.steps = 1000
    config.evaluation.tasks = ("glyphs/letters", "glyphs/retrieval")
    config.evaluation.every_steps = 250
    config.checkpoint.every_steps = 250
    return config
