"""Finds a model inside what training programs wrap around it: prefixes, dictionaries, averages.

Every layout has a tensor `logit_scale` and towers of known names beside it. What stands before
these names is a wrapper's (`model.`, `base_model.model.`); what lies elsewhere is not the model.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights.files.names import Tensors, listed

logger = logging.getLogger(__name__)

SCALE = "logit_scale"
# Parts of names that the wrappers of torch put in, before a model or before any module in it.
_MECHANICAL = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The count of torch.optim.swa_utils.AveragedModel, which stands beside `module.`.
_COUNTERS = {"n_averaged"}
_TOWER = re.compile(
    r"(visual|vision_model|text_model|transformer|token_embedding)\.|text\.transformer\.|vision/"
)
# Moving averages, and what optimizers keep for each parameter.
_SECONDARY = re.compile(
    r"(^|[._])(ema|swa|avg|averaged?|shadow|teacher|momentum|polyak|optim\w*|exp|grads?)([._]|$)",
    re.IGNORECASE,
)
_ADAPTER = re.compile(
    r"(^|\.)(lora_[A-Za-z_]+|base_layer|modules_to_save|hada_w\w+|lokr_w\w+|oft_\w+|ia3_l)(\.|$)"
)


@dataclass(frozen=True)
class Found:
    """The tensors of one model in a file."""

    container: str  # which dictionary of the file has them; "" is the outermost
    stored: dict[str, str]  # {name in the layout: name in that dictionary}
    notice: str  # what was taken off and left out; "" where that was nothing
    matters: bool  # more than what torch's own wrappers put before the names


def find_model(containers: Mapping[str, Iterable[str]], where: Path) -> Found:
    """The model among the names of each dictionary of a file; where none is seen, the most likely
    dictionary with all its names.

    Raises `UserError` for an adapter, and where two models have an equal claim.
    """
    names = {container: list(found) for container, found in containers.items()}
    for found in names.values():
        _refuse_adapter(found, where)
    plain = {container: _without_mechanical(found) for container, found in names.items()}
    models = [
        (container, prefix) for container, found in plain.items() for prefix in _prefixes(found)
    ]
    if not models:
        container = _likeliest(names)
        notice = _notice(container, "", plain[container], [], [])
        return Found(container, plain[container], notice, matters=False)
    container, prefix = _choose(models, where)
    nested = tuple(p for c, p in models if c == container and p != prefix and p.startswith(prefix))
    stored, left = {}, []
    for shown, name in plain[container].items():
        if shown.startswith(prefix) and not shown.startswith(nested):
            stored[shown.removeprefix(prefix)] = name
        else:
            left.append(shown)
    others = [_label(*model) for model in models if model != (container, prefix)]
    elsewhere = tuple(p for c, p in models if c == container and p)
    lost = [name for name in left if not name.startswith(elsewhere)]
    notice = _notice(container, prefix, stored, others, lost)
    return Found(container, stored, notice, matters=bool(prefix or others or lost))


def _refuse_adapter(names: Iterable[str], where: Path) -> None:
    found = next((name for name in names if _ADAPTER.search(name)), None)
    if found:
        raise UserError(
            f"{where}: is an adapter (LoRA, PEFT), not a model: it has {found[-80:]}; merge it "
            "into its model first (PEFT: model.merge_and_unload().save_pretrained(FOLDER))"
        )


def _without_mechanical(names: list[str]) -> dict[str, str]:
    """{name without the parts of torch's wrappers: name}; unchanged where two would be one."""
    shown = {
        ".".join(part for part in name.split(".") if part not in _MECHANICAL): name
        for name in names
    }
    if len(shown) != len(names):
        return {name: name for name in names}
    if any(name.endswith(SCALE) for name in shown):
        return {n: stored for n, stored in shown.items() if n.split(".")[-1] not in _COUNTERS}
    return shown


def _prefixes(names: Iterable[str]) -> list[str]:
    """Prefixes of the names of each model that is there."""
    scales = [name.removesuffix(SCALE) for name in names if name.endswith(SCALE)]
    candidates = [prefix for prefix in scales if not prefix or prefix.endswith(".")]
    return [
        prefix
        for prefix in candidates
        if any(name.startswith(prefix) and _TOWER.match(name, len(prefix)) for name in names)
    ]


def _choose(models: list[tuple[str, str]], where: Path) -> tuple[str, str]:
    plain = [model for model in models if not _SECONDARY.search(_label(*model))]
    chosen = plain or models
    if len(chosen) > 1:
        names = ", ".join(f"{_label(*model)}*" for model in chosen[:4])
        raise UserError(
            f"{where}: holds {len(chosen)} models ({names}); save the state dictionary of the one "
            "that you want alone"
        )
    return chosen[0]


def _label(container: str, prefix: str) -> str:
    """Name of a model in messages; "" for one without a prefix in the outermost dictionary."""
    return f"{container}.{prefix}" if container else prefix


def _likeliest(names: Mapping[str, list[str]]) -> str:
    """The dictionary that a training program would keep a model in."""
    usual = ("state_dict", "model_state_dict", "model", "module", "net", "")
    return next((c for c in usual if names.get(c)), max(names, key=lambda c: len(names[c])))


def _notice(
    container: str, prefix: str, stored: Mapping[str, str], others: list[str], lost: list[str]
) -> str:
    parts = [f"read its dictionary {container!r}"] if container else []
    if prefix:
        parts.append(f"took {prefix!r} off the names of {len(stored)} tensors")
    elif any(shown != name for shown, name in stored.items()):
        parts_of_names = {part for name in stored.values() for part in name.split(".")}
        parts.append(f"took {', '.join(sorted(parts_of_names & _MECHANICAL))} out of the names")
    if others:
        left_out = ", ".join(f"{other}*" for other in others[:4])
        parts.append(f"of several models took {_label(container, prefix)}*, not {left_out}")
    if lost:
        parts.append(f"left out {len(lost)} tensors beside the model ({listed(lost, 3)})")
    return "; ".join(parts)


class Unwrapped:
    """The tensors of a model, under the names of its layout."""

    def __init__(self, tensors: Tensors):
        """Raises `UserError` as `find_model` does; logs what was taken off or left out."""
        self.where, self._tensors = tensors.where, tensors
        # Only torch files have dictionaries in dictionaries, whose path begins their names.
        containers = getattr(tensors, "containers", {"": list(tensors.shapes)})
        found = find_model(containers, tensors.where)
        if found.notice:
            level = logging.WARNING if found.matters else logging.INFO
            logger.log(level, "%s: %s", tensors.where, found.notice)
        start = f"{found.container}." if found.container else ""
        self._stored = {shown: start + name for shown, name in found.stored.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            shown: tensors.shapes[name] for shown, name in self._stored.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        return self._tensors.read(self._stored[name])
