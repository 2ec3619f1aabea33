"""Any released CLIP made yours: low-rank updates of its maps, by its own loss (Hu et al. 2022).

COMMAND   python -m clip_jax.train --config=configs/finetune_lora.py --workdir=runs/lora \
              --config.init.source=openai/clip-vit-base-patch16 \
              --config.data.path=FOLDER_OR_CSV_OR_TARS
HARDWARE  one GPU; config.optimizer.microbatches fits the batch into its memory, exactly
EXPECTED  depends on the data. Of ViT-B/16, 4.4 million values are trained and in the checkpoints,
          not 150 million, with as many of each moment

The run ends with runs/lora/model, merged, and runs/lora/adapter for clip_jax.load(BASE,
adapter="runs/lora") and save_adapter(…, format="peft"). For images with a class and few of each,
python -m clip_jax.adapt --method=lora has the recipe (docs/adapt.md).
"""

from clip_jax.training.config import default_config


def get_config():
    """Rank 16 on every map of both towers, FLYP's batch and ten passes, a rate as LoRA needs."""
    config = default_config()
    config.model.name = ""
    config.init.source = "openai/clip-vit-base-patch16"
    config.adapter.method = "lora"
    config.adapter.rank = 16
    config.adapter.targets = ("query", "key", "value", "out", "mlp")
    config.adapter.dropout = 0.0
    config.augmentation.crop_scale = (0.9, 1.0)
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.01
    config.optimizer.ema_decay = 0.999
    config.optimizer.microbatches = 8
    config.batch_size = 512
    config.epochs = 10.0
    return config
