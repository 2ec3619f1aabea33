"""Any released CLIP made yours: all of it fine-tuned by its own loss (Goyal et al. 2023, FLYP).

COMMAND   python -m clip_jax.train --config=configs/finetune_full.py --workdir=runs/mine \
              --config.init.source=openai/clip-vit-base-patch16 \
              --config.data.path=FOLDER_OR_CSV_OR_TARS
HARDWARE  one GPU; config.optimizer.microbatches fits the batch into its memory, exactly
EXPECTED  depends on the data; python -m clip_jax.evaluate tells before and after. A few thousand
          pairs want a smaller batch, --config.batch_size=128 --config.optimizer.microbatches=2

The architecture, tokenizer and image transform are those of config.init.source: a path or hub id of
anything that clip_jax.load takes. Data is as in configs/own_images.py. Captions that name a class,
such as "a photo of a NAME", make it a classifier that keeps what CLIP knew; python -m clip_jax.soup
mixes the two for more of either (WiSE-FT).
"""

from clip_jax.training.config import default_config


def get_config():
    """FLYP's rate, decay, batch and ten passes; layers near the input change less."""
    config = default_config()
    config.model.name = ""
    config.init.source = "openai/clip-vit-base-patch16"
    config.augmentation.crop_scale = (0.9, 1.0)
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.1
    config.optimizer.ema_decay = 0.999
    config.optimizer.vision.layer_decay = 0.9
    config.optimizer.text.layer_decay = 0.9
    config.optimizer.microbatches = 8
    config.batch_size = 512
    config.epochs = 10.0
    return config
