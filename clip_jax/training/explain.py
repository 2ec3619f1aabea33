"""What lies where: a table of the parameters and the optimizer's state, without any of them."""

from __future__ import annotations

from clip_jax.data.tokenizer import get_tokenizer
from clip_jax.sharding import explain, make_mesh
from clip_jax.training.config import TrainConfig
from clip_jax.training.program import abstract_run_state
from clip_jax.training.run import make_tokenizer, open_data, resolve_architecture


def explain_sharding(config: TrainConfig) -> str:
    """Name, shape, dtype, spec and bytes a device of every leaf of the state of a run.

    Reads no data but the captions, where the vocabulary is to be trained on them. Raises
    `UserError` for a mesh that does not fit the devices, and as `open_data` does.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if config.tokenizer.source == "captions":
        tokenizer = make_tokenizer(config, open_data(config))
    else:
        tokenizer = get_tokenizer(config.tokenizer.source)
    architecture, _ = resolve_architecture(config, tokenizer)
    state = abstract_run_state(config, architecture, mesh, config.steps or 1)
    parts = {"params": state.params, "optimizer": state.opt_state}
    if state.ema_params is not None:
        parts["ema"] = state.ema_params
    return f"{architecture.name} on {mesh.size} devices\n{explain(mesh, parts)}"
