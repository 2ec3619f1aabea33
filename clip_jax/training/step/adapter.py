"""The adapter that a configuration trains."""

import dataclasses

from clip_jax.adaptation.methods import METHODS, Method
from clip_jax.errors import UserError
from clip_jax.training.adapter_config import AdapterConfig


def adapter_method(config: AdapterConfig) -> Method | None:
    """Returns the method with the options of the configuration; None if there is none.

    Raises `UserError` for an option that the method does not have.
    """
    if config.method is None:
        return None
    method = METHODS[config.method]
    (part,) = method.parts
    known = {field.name for field in dataclasses.fields(part)}
    for name, value in config.options.items():
        if name not in known:
            has = [each.name for each in dataclasses.fields(config) if each.name in known]
            accepted = f"it has {', '.join(has)}" if has else "it has none"
            raise UserError(
                f"config.adapter.{name}={value!r}: no option of {config.method}; {accepted}"
            )
    return dataclasses.replace(method, parts=(dataclasses.replace(part, **config.options),))
