"""CLIP in JAX: train, load, evaluate and use contrastive image-text models.

Importing this package is cheap and touches no device; each exported name is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clip_jax.hosts.idle_tpu import leave_idle_tpu_alone

__version__ = "0.1.0"

# name -> the module that defines it
_EXPORTS = {
    "Clip": "clip_jax.clip",
    "create": "clip_jax.loading",
    "load": "clip_jax.loading",
    "list_models": "clip_jax.models.architectures",
    "ClipConfig": "clip_jax.models.config",
    "count_parameters": "clip_jax.models.two_tower",
    "CLIPOutput": "clip_jax.models.two_tower",
    "get_tokenizer": "clip_jax.text.tokenizer",
    "UserError": "clip_jax.errors",
    "losses": "clip_jax.losses",  # the module itself
}

__all__ = sorted([*_EXPORTS, "__version__"])

if TYPE_CHECKING:
    from clip_jax import losses as losses
    from clip_jax.clip import Clip as Clip
    from clip_jax.errors import UserError as UserError
    from clip_jax.loading import create as create
    from clip_jax.loading import load as load
    from clip_jax.models.architectures import list_models as list_models
    from clip_jax.models.config import ClipConfig as ClipConfig
    from clip_jax.models.two_tower import CLIPOutput as CLIPOutput
    from clip_jax.models.two_tower import count_parameters as count_parameters
    from clip_jax.text.tokenizer import get_tokenizer as get_tokenizer


# This runs on import of the package, and so before any of its modules imports jax.
leave_idle_tpu_alone()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'clip_jax' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    globals()[name] = getattr(module, name, module)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
