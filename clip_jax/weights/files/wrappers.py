"""Search for the model among the prefixes, dictionaries and averages that training programs add.

Every layout has a tensor `logit_scale` beside towers of known names. A prefix of these names comes
from a wrapper (`model.`, `base_model.model.`); all other tensors are not the model's.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights.files.names import Tensors, adapter, listed

logger = logging.getLogger(__name__)

SCALE = "logit_scale"
# torch's wrappers insert these parts before the names of a model or of any module in it.
_MECHANICAL = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# torch.optim.swa_utils.AveragedModel keeps this counter beside `module.`.
_COUNTERS = {"n_averaged"}
_TOWER = re.compile(
    r"(visual|vision_model|text_model|transformer|token_embedding)\.|text\.transformer\.|vision/"
)
# These words mark moving averages and per-parameter optimizer state.
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

    container: str  # path of their dictionary in the file; "" is the outermost
    stored: dict[str, str]  # {name in the layout: name in that dictionary}
    notice: str  # what was stripped and left out; "" for nothing
    matters: bool  # more was removed than the parts that torch's own wrappers insert


def find_model(containers: Mapping[str, Iterable[str]], where: Path) -> Found:
    """Finds the model among the names in each dictionary of a file.

    If it recognises none, it returns all names of the most likely dictionary. Raises `UserError`
    for an adapter, and if two models are equally likely.
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
        raise adapter(where, f": it has {found[-80:]}")


def _without_mechanical(names: list[str]) -> dict[str, str]:
    """{name without the parts of torch's wrappers: name}; unchanged if two names would collide."""
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
    """Name prefix of each model that is present."""
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
    """A model's name in messages; "" for a model without prefix in the outermost dictionary."""
    return f"{container}.{prefix}" if container else prefix


def _likeliest(names: Mapping[str, list[str]]) -> str:
    """The dictionary in which training programs usually keep the model."""
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
        """Raises `UserError` like `find_model`; logs what was stripped or left out."""
        self.where, self._tensors = tensors.where, tensors
        # Only torch files have nested dictionaries, whose paths prefix the names.
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
