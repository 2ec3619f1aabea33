"""Imports torchvision where its compiled operators cannot be loaded.

The registry's torchvision is built for CUDA. Beside a CPU build of torch its library does not load,
so that its operators (boxes and regions, which no CLIP uses) do not exist, and importing it fails
where it describes the shapes of two of them. Those descriptions are skipped here. Import this
module before timm, open_clip or transformers.
"""

from collections.abc import Callable
from typing import Any

import torch


def _import_torchvision() -> None:
    register = torch.library.register_fake

    def register_if_there(operator: Any, *arguments: Any, **options: Any) -> Any:
        decorate = register(operator, *arguments, **options)
        if not callable(decorate):
            return decorate

        def keep(describe: Callable[..., Any]) -> Callable[..., Any]:
            try:
                return decorate(describe)
            except RuntimeError:  # "operator torchvision::… does not exist"
                return describe

        return keep

    torch.library.register_fake = register_if_there
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register


_import_torchvision()
