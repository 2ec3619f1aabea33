"""`ClipConfig`: everything that defines the function of a CLIP except its parameters.

It nests as the model does: the image tower, the text tower and a caption decoder are each an object
of their own, of a class for each kind (models/kinds.py); what towers share is at the top.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.fields import Effect, about_of, changed, matters, unknown_field
from clip_jax.models.kinds import (
    KINDS,
    DecoderConfig,
    SharedConfig,
    TextConfig,
    TransformerTextConfig,
    VisionConfig,
    VitConfig,
    check_divides,
    norm_eps,
)


@dataclasses.dataclass(frozen=True)
class ClipConfig(SharedConfig):
    """Everything that defines the function of a CLIP except its parameters and vocabulary."""

    vision: VisionConfig = dataclasses.field(default_factory=VitConfig)
    text: TextConfig = dataclasses.field(default_factory=TransformerTextConfig)
    decoder: DecoderConfig | None = None

    @property
    def vision_grid(self) -> int:
        """Side of the patch grid (ViT) or of the last feature map."""
        return self.vision.grid(self.image_size)

    @property
    def position_rows(self) -> int:
        """Number of rows of the text tower's position table."""
        return self.text.position_rows(self.context_length)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dictionary that `ClipConfig.from_dict` reads back."""
        values = dataclasses.asdict(self)
        for part in ("vision", "text"):
            values[part] = {"kind": getattr(self, part).kind, **values[part]}
        return values

    @classmethod
    def from_dict(cls, values: Any) -> "ClipConfig":
        """Inverts `to_dict`. Raises `UserError` for an unknown field or invalid value."""
        if not isinstance(values, dict):
            raise UserError(f"the architecture is {values!r}: must be an object of fields")
        return override(cls(), **values)


def override(config: ClipConfig, **changes: Any) -> ClipConfig:
    """Returns `config` with some fields changed.

    A part (`vision`, `text`, `decoder`) is changed by a dict of its fields, or replaced by one of
    its classes; a dict with another "kind" starts from the defaults of that kind. Raises
    `UserError` for an invalid value, or an unknown field (with the nearest known one).
    """
    known = [declared.name for declared in dataclasses.fields(config)]
    for key in changes:
        if key not in known:
            inner = [f"{part}.{name}" for part in KINDS for name in part_fields(part)]
            raise unknown_field(key, [*known, *inner])
    parts = {
        part: _part(part, getattr(config, part), changes[part]) for part in KINDS if part in changes
    }
    result: ClipConfig = dataclasses.replace(changed(config, changes), **parts)
    if min(result.image_std) <= 0:
        raise UserError(f"image_std={result.image_std}: must be above 0")
    result.vision.check(result)
    result.text.check(result)
    if result.decoder is not None:
        check_divides("decoder.heads", result.decoder.heads, "text.width", result.text.width)
    return result


def part_fields(part: str) -> list[str]:
    """The fields of a part of any kind, each once; "kind" first if there are kinds."""
    names = [field.name for cls in KINDS[part].values() for field in dataclasses.fields(cls)]
    return list(dict.fromkeys(["kind", *names] if len(KINDS[part]) > 1 else names))


def _part(part: str, now: Any, value: Any) -> Any:
    """A tower or the decoder with `value`, a dict of fields, over what it is now."""
    kinds = KINDS[part]
    if value is None and part == "decoder":
        return None
    if isinstance(value, tuple(kinds.values())):
        return changed(value, vars(value), f"{part}.")
    if not isinstance(value, Mapping):
        raise UserError(f"{part}={value!r}: must be a dict of fields, such as {{'width': 64}}")
    changes = dict(value)
    kind = changes.pop("kind", None if len(kinds) > 1 else "") or getattr(now, "kind", "")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{part}.kind={kind!r}: choose one of {', '.join(kinds)}")
    cls = kinds[kind]
    known = [declared.name for declared in dataclasses.fields(cls)]
    for key in changes:
        if key in known:
            continue
        others = [name for name, other in kinds.items() if key in other.__dataclass_fields__]
        hint = f"a {kind} has none; {' and '.join(others)} do" if others else ""
        raise unknown_field(f"{part}.{key}", [f"{part}.{name}" for name in known], hint)
    return changed(now if type(now) is cls else cls(), changes, f"{part}.")


def image_fields(config: SharedConfig) -> dict[str, Any]:
    """The fields that say how images are prepared."""
    declared = {field.name: about_of(field).effect for field in dataclasses.fields(SharedConfig)}
    names = ["image_size", *(name for name, effect in declared.items() if effect == "image")]
    return {name: getattr(config, name) for name in names}


def effective_fields(config: ClipConfig, effects: tuple[Effect, ...]) -> dict[str, Any]:
    """{"vision.width": value} of the fields with one of these effects, as far as they matter."""
    found = {
        path: value
        for path, value, effect, used in _walk(config)
        if used and (effect in effects or effect is None)
    }
    if "vision.norm_eps" in found:
        found["vision.norm_eps"] = norm_eps(config.vision, config)
    if "text.positions" in found:
        found["text.positions"] = config.position_rows
    if "shape" in effects:
        found["logit_bias"] = config.logit_bias_init is not None
    return found


def _walk(config: ClipConfig) -> Iterator[tuple[str, Any, Effect | None, bool]]:
    """Yields (path, value, effect, whether it matters) of every field; kinds have no effect."""
    for declared in dataclasses.fields(SharedConfig):
        effect = about_of(declared).effect
        yield declared.name, getattr(config, declared.name), effect, True
    for part in KINDS:
        values = getattr(config, part)
        yield f"{part}.kind", getattr(values, "kind", values is not None), None, True
        for declared in dataclasses.fields(values) if values is not None else ():
            value, effect = getattr(values, declared.name), about_of(declared).effect
            yield f"{part}.{declared.name}", value, effect, matters(values, declared)


def differences(
    ours: ClipConfig,
    theirs: ClipConfig,
    effects: tuple[Effect, ...],
    towers: Collection[str] = tuple(KINDS),
) -> dict[str, tuple[Any, Any]]:
    """{"vision.width": (ours, theirs)} of the fields with these effects that differ and matter.

    Only the fields of some `towers` are compared, and the shared ones that they use.
    """
    a, b = effective_fields(ours, effects), effective_fields(theirs, effects)
    return {
        path: (a.get(path), b.get(path))
        for path in dict.fromkeys([*a, *b])
        if a.get(path) != b.get(path) and _is_of(path, towers)
    }


def _is_of(path: str, towers: Collection[str]) -> bool:
    part, dot, _ = path.partition(".")
    if dot or set(towers) >= KINDS.keys():
        return part in towers or not dot
    shared = SharedConfig.__dataclass_fields__.get(path)
    return shared is not None and about_of(shared).tower in (*towers, None)
