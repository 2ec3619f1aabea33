"""The smallest training run; child processes of the tests import it too, so it sets nothing up."""

from pathlib import Path


def tiny_config(**changes):
    """A glyph run of a second: few steps of the smallest towers. `changes`: keys, "__" for "."."""
    from clip_jax.training.config import default_config

    config = default_config()
    config.model.name = "custom"
    config.model.embed_dim = 16
    config.model.image_size = 32
    config.model.vision.patch_size = 16
    config.model.vision.width = 16
    config.model.vision.layers = 1
    config.model.vision.heads = 2
    config.model.vision.mlp_dim = 32
    config.model.context_length = 12
    config.model.text.width = 16
    config.model.text.layers = 1
    config.model.text.heads = 2
    config.model.text.mlp_dim = 32
    config.tokenizer.vocab_size = 400
    config.data.format = "glyphs"
    config.data.path = "validation"
    config.augmentation.shift = 0.05
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 5
    config.batch_size = 64
    config.steps = 40
    config.log_every_steps = 1
    config.checkpoint.every_steps = 10
    config.report = False
    for key, value in changes.items():
        *groups, last = key.split("__")
        group = config
        for name in groups:
            group = group[name]
        group[last] = value
    return config


def write_config(folder: Path, **changes) -> Path:
    """Writes a configuration file of the tiny run, for programs; returns its path."""
    lines = (
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from tiny import tiny_config",
        "def get_config():",
        f"    return tiny_config(**{changes!r})",
    )
    path = folder / "tiny_run.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
