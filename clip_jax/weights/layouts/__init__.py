"""Layouts of weights, one file each; a module with a `LAYOUT` is found by being in this folder."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_jax.weights.layouts.layout import Layout


def layouts() -> "list[Layout]":
    """The layouts of this folder, in the order in which they are asked about a path."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    found = [module.LAYOUT for module in modules if hasattr(module, "LAYOUT")]
    return sorted(found, key=lambda layout: layout.rank)
