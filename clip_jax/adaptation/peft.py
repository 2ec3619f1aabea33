"""LoRA and DoRA in PEFT's layout, of transformers' CLIPModel and SiglipModel, in both directions.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, whose tensors are called
base_model.model.MODULE.lora_A.weight (r, in), .lora_B.weight (out, r), .lora_magnitude_vector
(out,); modules that are trained whole are base_model.model.MODULE.weight.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.adaptation.low_rank import Site, sites
from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.arguments import shown
from clip_jax.errors import UserError
from clip_jax.files.disk import replacing_folder
from clip_jax.models.config import ClipConfig
from clip_jax.weights.files.names import listed
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.files.tensors import find_weights, open_raw
from clip_jax.weights.layouts.huggingface import huggingface_rules
from clip_jax.weights.layouts.huggingface_config import config_to_huggingface
from clip_jax.weights.rules.table import KINDS, Rule

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(.+?)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
# Options that change what an adapter computes, and the values under which ours does the same.
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
}
# These begin by changing the base's weights, so that their updates alone say nothing.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Loaded(NamedTuple):
    """An adapter and the factor s of its low-rank updates."""

    adapter: Adapter
    scale: float


def is_peft(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def read_peft(folder: Path, config: ClipConfig, params: Any) -> Loaded:
    """Reads an adapter for a model whose blocks are separate.

    Modules may have ranks and factors of their own (`rank_pattern`, `alpha_pattern`); a common
    factor stays as it is, others are multiplied into b.

    Raises:
      UserError: no such folder, an option that changes what is computed in a way of its own, a
        module that this model does not have, or a tensor of another shape.
    """
    options = _read_options(folder / CONFIG)
    weights = find_weights(folder, (WEIGHTS, "adapter_model.bin"))
    if weights is None:
        raise UserError(f"{folder}: has no {WEIGHTS}")
    tensors = open_raw(weights)
    modules, rules = sites_by_module(config, params), _rules(config)
    found: Adapter = {}
    scales: dict[str, float] = {}
    unknown = []
    for name in tensors.shapes:
        path = name.removeprefix(_PREFIX)
        part = _PARTS.fullmatch(path)
        if part is None and path in rules and not rules[path].at:
            rule = rules[path]
            shape = np.shape(flat(params)[rule.ours])
            whole = KINDS[rule.kind].read(tensors.read(name), shape)
            if whole.shape != shape:
                raise UserError(f"{name}: is of shape {whole.shape}; the model's is {shape}")
            found[rule.ours] = whole
        elif part is not None and part[1] in modules:
            site = modules[part[1]]
            found[f"{site.path}_{_ENDS[part[2]]}"] = _ours(tensors.read(name), part[2], site, name)
            if part[2] == "lora_A":
                scales[site.path] = _scale(options, part[1], tensors.shapes[name][0])
        else:
            unknown.append(path)
    if unknown:
        raise UserError(
            f"{folder}: has tensors of modules that {config.name} does not have as matrices of"
            f" their own: {listed(unknown)}"
        )
    _check_pairs(found, folder)
    if len(set(scales.values())) <= 1:
        return Loaded(found, next(iter(scales.values()), 1.0))
    folded = {
        path: leaf * np.float32(scales[path.removesuffix("_b")]) if path.endswith("_b") else leaf
        for path, leaf in found.items()
    }
    return Loaded(folded, 1.0)


def write_peft(
    folder: Path, config: ClipConfig, params: Any, adapter: Adapter, scale: float, base: str
) -> None:
    """Writes an adapter for a model whose blocks are separate, with PEFT's oldest options only.

    `base` is the model that PEFT names as the base's. Raises `UserError` for a model that is not
    transformers', or for leaves that are no low-rank updates of its modules.
    """
    config_to_huggingface(config)  # refuses a model of another kind
    modules, leaves = sites_by_module(config, params), dict(adapter)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    has_magnitude = False
    for module, site in modules.items():
        if f"{site.path}_a" not in leaves:
            continue
        ranks[module] = leaves[f"{site.path}_a"].shape[1]
        for part, end in _ENDS.items():
            leaf = leaves.pop(f"{site.path}_{end}", None)
            if leaf is not None:
                has_magnitude |= end == "magnitude"
                weight = "" if end == "magnitude" else ".weight"
                tensors[f"{_PREFIX}{module}.{part}{weight}"] = to_peft(np.asarray(leaf), part, site)
    if leaves:
        raise UserError(
            f"format='peft': has no place for {listed(sorted(leaves))}; accepted are low-rank"
            " updates of transformers' modules; format='clip_jax' holds all"
        )
    rank = max(ranks.values(), default=1)
    document = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "modules_to_save": None,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: scale * r for module, r in ranks.items() if r != rank},
    }
    if has_magnitude:
        document["use_dora"] = True
    with replacing_folder(folder) as aside:
        (aside / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        save_safetensors(aside / WEIGHTS, tensors, {"format": "pt"}, None)


_ENDS = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude"}


def _read_options(path: Path) -> dict[str, Any]:
    try:
        options: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    for key, accepted in _ACCEPTED.items():
        if key in options and options[key] not in accepted:
            raise UserError(f"{path}: {key}={shown(options[key])}: accepted is {accepted[0]!r}")
    init = str(options.get("init_lora_weights", "")).lower()
    if init.startswith(_CHANGE_BASE):
        raise UserError(
            f"{path}: init_lora_weights={init!r}: changes the base's weights; accepted is such an"
            " adapter merged into its model, or converted to plain LoRA by PEFT"
        )
    return options


def _scale(options: dict[str, Any], module: str, rank: int) -> float:
    """Returns alpha / r, or alpha / √r, of one module."""
    alpha = float(options.get("lora_alpha", 8))
    for pattern, value in (options.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _rules(config: ClipConfig) -> dict[str, Rule]:
    """Returns the rules of transformers' tensors, by their names."""
    config_to_huggingface(config)
    return {rule.theirs: rule for rule in huggingface_rules(config)}


def sites_by_module(config: ClipConfig, params: Any) -> dict[str, Site]:
    """Maps transformers' modules to the sites that hold their weights."""
    by_kernel = {(site.kernel, site.part): site for site in sites(params)}
    found = {}
    for theirs, rule in _rules(config).items():
        if not theirs.endswith(".weight") or rule.theirs_at:
            continue
        part = rule.at[-1] if rule.at else None
        site = by_kernel.get((rule.ours, part))
        if site is not None:
            found[theirs.removesuffix(".weight")] = site
    return found


def _ours(tensor: np.ndarray, part: str, site: Site, name: str) -> np.ndarray:
    """Returns a (in, r), b (r, out) or the magnitude (out,), float32."""
    if part == "lora_A" and tensor.ndim == 4:  # of a convolution, (r, channels, h, w)
        tensor = tensor.transpose(0, 2, 3, 1).reshape(len(tensor), -1)
    elif part == "lora_B" and tensor.ndim == 4:
        tensor = tensor[:, :, 0, 0]
    elif part == "lora_magnitude_vector":
        tensor = tensor.reshape(-1)
    ours = np.asarray(tensor.T, np.float32)
    size = {"lora_A": ours.shape[0], "lora_B": ours.shape[-1]}.get(part, ours.shape[0])
    wanted = site.inputs if part == "lora_A" else site.outputs
    if size != wanted:
        raise UserError(f"{name}: is for {size} features; accepted are the model's {wanted}")
    return ours


def to_peft(leaf: np.ndarray, part: str, site: Site) -> np.ndarray:
    """Returns a leaf as PEFT's tensor `part`, such as "lora_A"."""
    theirs = np.ascontiguousarray(leaf.T)
    if site.path != "vision/patch_embedding":
        return theirs
    side = math.isqrt(site.inputs // 3)
    if part == "lora_A":
        return np.ascontiguousarray(theirs.reshape(-1, side, side, 3).transpose(0, 3, 1, 2))
    return theirs[:, :, None, None] if part == "lora_B" else theirs.reshape(1, -1, 1, 1)


def _check_pairs(adapter: Adapter, folder: Path) -> None:
    ranks: dict[str, list[int]] = {}
    for path, leaf in adapter.items():
        if path.endswith(("_a", "_b")):
            ranks.setdefault(path[:-2], []).append(leaf.shape[path.endswith("_a")])
    for path, found in ranks.items():
        if len(found) != 2 or found[0] != found[1]:
            raise UserError(f"{folder}: the two matrices of {path} are not of one rank")
