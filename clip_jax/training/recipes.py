"""Published settings that several configurations share; a file in `configs/` starts from one.

Sources: Radford et al. 2021 (CLIP), tables 18 to 20; OpenCLIP's trainer and its model cards; Zhai
et al. 2023 (SigLIP) and big_vision's configurations; Li et al. 2023 (CLIPA) and its configurations.
"""

from ml_collections.config_dict import ConfigDict

from clip_jax.training.config import default_config

LAION_400M = 400_000_000  # pairs, about as many as OpenAI's WIT


def at_scale() -> ConfigDict:
    """Settings of every large run: bfloat16, stacked layers, tar shards, rare checkpoints."""
    config = default_config()
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.data.format = "webdataset"
    config.data.workers = 16
    config.optimizer.first_moment_dtype = "bfloat16"
    config.log_every_steps = 50
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_newest = 3
    config.checkpoint.keep_every_steps = 50_000
    config.report = False
    return config


def openai() -> ConfigDict:
    """OpenAI's CLIP: batch 32,768, 32 epochs of 400 million pairs, AdamW, random square crop."""
    config = at_scale()
    config.tokenizer.source = "clip_bpe"
    # The paper's only augmentation is a random square crop of the resized image.
    config.augmentation.crop_scale = (0.9, 1.0)
    config.augmentation.crop_ratio = (1.0, 1.0)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98  # ViT; ResNet 0.999
    config.optimizer.eps = 1e-6  # ViT; ResNet 1e-8
    config.optimizer.weight_decay = 0.2
    config.optimizer.clip_norm = None
    config.batch_size = 32_768
    config.steps = 32 * LAION_400M // 32_768
    return config


def siglip() -> ConfigDict:
    """SigLIP: sigmoid loss, batch 32,768, AdamW with b2 0.95 and little decay.

    Texts are cut at the architecture's length.
    """
    config = at_scale()
    config.loss = "sigmoid"
    # This folder must hold the tokenizer files of any released SigLIP model.
    config.tokenizer.source = "tokenizers/siglip"
    config.augmentation.crop_scale = (0.9, 1.0)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20_000
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.batch_size = 32_768
    return config


def clipa() -> ConfigDict:
    """CLIPA, few tokens: AdamW (0.9, 0.95), bfloat16 first moment, squashed images, short texts."""
    config = at_scale()
    config.tokenizer.source = "tokenizers/bert-base-uncased"
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.2
    config.optimizer.warmup_steps = 3200
    return config
