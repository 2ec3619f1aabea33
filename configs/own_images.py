"""A CLIP on your own images: a folder, a CSV file or WebDataset tars.

COMMAND   python -m clip_jax.train --config=configs/own_images.py --workdir=runs/mine \
              --config.data.path=FOLDER_OR_CSV_OR_TARS
HARDWARE  a laptop's CPU; anything faster is used as it is (add --config.batch_size=… for a GPU)
TIME      140 pairs a second on 2 CPU cores that a second training shared
EXPECTED  depends on the data. 2,640 photos of 81 kinds of groceries (github.com/marcusklasson/
          GroceryStoreDataset), 20 passes (--config.epochs=20.0): 31 % zero-shot top-1 on held-out
          photos, 80 templates; chance is 1.2 %

    FOLDER   images, each with a .txt of the same name (a caption a line), or a subfolder a class
    CSV      a column of image paths, one of captions (data.image_column, data.caption_column)
    TARS     a .tar, a folder of tars, "shards/{00000..00099}.tar"

The towers are small, the images too (raise model.image_size, a multiple of 32, on a GPU), and both
start from random values, which suits thousands of pairs of one domain: with so few, a model learns
the classes that its captions name, not the language around them.
"""

from clip_jax.training.config import default_config


def get_config():
    """A ModifiedResNet for 64 pixels, a vocabulary of the captions' own, forty passes."""
    config = default_config()
    config.model.name = "custom"
    config.model.embed_dim = 128
    config.model.image_size = 64
    config.model.vision.kind = "resnet"
    config.model.vision.width = 24
    config.model.vision.layers = (1, 1, 1, 1)
    config.model.vision.heads = 12
    config.model.context_length = 32
    config.model.text.width = 128
    config.model.text.layers = 2
    config.model.text.heads = 2
    config.model.text.mlp_dim = 512
    config.tokenizer.vocab_size = 2000
    config.augmentation.crop_scale = (0.4, 1.0)
    config.augmentation.flip_probability = 0.5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.1
    config.batch_size = 64
    config.epochs = 40.0
    config.checkpoint.every_minutes = 2.0
    return config
