"""Evaluators: pure protocols that take two functions, `embed_image` and `embed_text`, and data.

The names here are functions of arrays; each is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

# name -> the module that defines it
_EXPORTS = {
    "bootstrap_interval": "clip_jax.evaluation.metrics.intervals",
    "fit_logistic_regression": "clip_jax.evaluation.probe.logistic",
    "max_skew": "clip_jax.evaluation.metrics.skew",
    "min_skew": "clip_jax.evaluation.metrics.skew",
    "ndkl": "clip_jax.evaluation.metrics.skew",
    "retrieval_recalls": "clip_jax.evaluation.retrieval",
    "greedy_soup": "clip_jax.evaluation.soup",
    "soup": "clip_jax.evaluation.soup",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from clip_jax.evaluation.metrics.intervals import bootstrap_interval as bootstrap_interval
    from clip_jax.evaluation.metrics.skew import max_skew as max_skew
    from clip_jax.evaluation.metrics.skew import min_skew as min_skew
    from clip_jax.evaluation.metrics.skew import ndkl as ndkl
    from clip_jax.evaluation.probe.logistic import (
        fit_logistic_regression as fit_logistic_regression,
    )
    from clip_jax.evaluation.retrieval import retrieval_recalls as retrieval_recalls
    from clip_jax.evaluation.soup import greedy_soup as greedy_soup
    from clip_jax.evaluation.soup import soup as soup


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'clip_jax.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
