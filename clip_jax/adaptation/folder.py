"""Adapters on disk: `adapter.json` and `adapter.safetensors`, or PEFT's folder."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.adaptation.low_rank import sites
from clip_jax.adaptation.peft import is_peft, read_peft
from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.errors import UserError
from clip_jax.files.disk import replacing_folder
from clip_jax.models.config import ClipConfig
from clip_jax.weights.files.names import listed
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.files.tensors import open_raw

FACTS, LEAVES = "adapter.json", "adapter.safetensors"
HEAD = "head/"  # before the names of arrays that make logits and enter no tower


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter and what it is for.

    Attributes:
      adapter: by path, for a model whose blocks are separate; see `tree` and `hooks`.
      scale: s of its low-rank updates.
      method: name of the method that made it.
      base: what `clip_jax.load` takes for the model that it is for.
      base_hash: `hash_of_base` of that model; "" for PEFT's, which do not say.
      classes: names of the classes that it learned; only a head needs them.
    """

    adapter: Adapter
    scale: float = 1.0
    method: str = "lora"
    base: str = ""
    base_hash: str = ""
    classes: tuple[str, ...] = ()

    @property
    def towers(self) -> Adapter:
        """The part that enters the towers."""
        return {path: leaf for path, leaf in self.adapter.items() if not path.startswith(HEAD)}


def hash_of_base(params: Any) -> str:
    """Hashes names, shapes and values of the parameters, as bfloat16, which every dtype rounds to.

    64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flat(params).items()):
        array = np.asarray(leaf).astype(ml_dtypes.bfloat16)
        digest.update(f"{path} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, ours or PEFT's."""
    return (folder / FACTS).is_file() or is_peft(folder)


def read_adaptation(folder: Path, config: ClipConfig, params: Any) -> Adaptation:
    """Reads an adapter for a model whose blocks are separate.

    Raises UserError: no adapter, one of PEFT's for other modules, or a damaged file.
    """
    if is_peft(folder):
        return Adaptation(*read_peft(folder, config, params))
    if not (folder / FACTS).is_file():
        raise UserError(f"adapter={folder}: has neither {FACTS} nor PEFT's adapter_config.json")
    facts = read_facts(folder)
    tensors = open_raw(folder / LEAVES)
    adapter = {path: tensors.read(path) for path in tensors.shapes}
    return Adaptation(adapter, **facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads what `adapter.json` says: the fields of `Adaptation` but the arrays."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        names = {f.name for f in dataclasses.fields(Adaptation)} - {"adapter"}
        return {name: facts[name] for name in names} | {"classes": tuple(facts["classes"])}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / FACTS}: cannot be read ({error})") from error


def write_adaptation(folder: Path, adaptation: Adaptation) -> None:
    """Writes an adapter in our layout, whole or not at all."""
    facts = {
        field.name: getattr(adaptation, field.name)
        for field in dataclasses.fields(adaptation)
        if field.name != "adapter"
    }
    leaves = {path: np.asarray(leaf) for path, leaf in adaptation.adapter.items()}
    with replacing_folder(folder) as aside:
        (aside / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        save_safetensors(aside / LEAVES, leaves, None, None)


def check_base(adaptation: Adaptation, name: str, base_hash: str) -> None:
    """Raises UserError if an adapter is of another model than `name`, which has this hash."""
    if adaptation.base_hash and adaptation.base_hash != base_hash:
        raise UserError(
            f"adapter: is of {adaptation.base or 'a model'} with hash {adaptation.base_hash[:16]};"
            f" this is {name} with hash {base_hash[:16]}"
        )


def unmerged(adapter: Adapter, params: Any) -> list[str]:
    """Returns the leaves of an adapter that are more than other values of the parameters."""
    names = set(flat(params))
    for site in sites(params):
        names |= {f"{site.path}_{end}" for end in ("a", "b", "magnitude", "singular")}
    return sorted(set(adapter) - names)


def weighted(adaptations: list[Adaptation], weights: list[float], params: Any) -> Adaptation:
    """Returns the low-rank adapter whose update is the weighted sum of the others', exactly.

    The ranks add up: a are side by side, b below each other (PEFT's "cat"). Raises UserError for
    anything but low-rank updates without magnitude, or different numbers of adapters and weights.
    """
    if len(adaptations) != len(weights) or not adaptations:
        raise UserError(
            f"{len(adaptations)} adapters and {len(weights)} weights: accepted are as many, and one"
            " at least"
        )
    if len({adaptation.base_hash for adaptation in adaptations}) > 1:
        raise UserError("the adapters are of several models; accepted are those of one")
    joined: Adapter = {}
    for site in sites(params):
        parts = [
            (np.asarray(a.adapter[f"{site.path}_a"]), w * a.scale * a.adapter[f"{site.path}_b"])
            for a, w in zip(adaptations, weights, strict=True)
            if f"{site.path}_a" in a.adapter and f"{site.path}_magnitude" not in a.adapter
        ]
        if parts:
            joined[f"{site.path}_a"] = np.concatenate([a for a, _ in parts], axis=1)
            joined[f"{site.path}_b"] = np.concatenate([np.asarray(b) for _, b in parts], axis=0)
    known = set(joined)
    for adaptation in adaptations:
        if left := sorted(set(adaptation.adapter) - known):
            raise UserError(
                f"{listed(left)}: cannot be weighted; accepted are low-rank updates (LoRA)"
            )
    first = adaptations[0]
    return Adaptation(joined, 1.0, "lora", first.base, first.base_hash)
