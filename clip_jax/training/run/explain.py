"""Table of the sharding of parameters and optimizer state, made without allocating them."""

from clip_jax.sharding import explain, make_mesh
from clip_jax.training.config import TrainConfig
from clip_jax.training.run.data import open_data
from clip_jax.training.run.initial import open_initial, takes_tokens
from clip_jax.training.run.opening import make_tokenizer, resolve_architecture
from clip_jax.training.step.compiled import abstract_run_state


def explain_sharding(config: TrainConfig) -> str:
    """Formats name, shape, dtype, spec and bytes per device of every leaf of a run's state.

    Reads no data except the captions, if the vocabulary is trained on them. Raises `UserError` for
    a mesh that does not fit the devices, and as `open_data` does.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    initial = open_initial(config)
    rows = None if initial is None else initial.config.vocab_size
    own = config.tokenizer.source == "captions" and (initial is None or not takes_tokens(config))
    source = open_data(config) if own else None
    architecture, _ = resolve_architecture(config, make_tokenizer(config, source, initial), rows)
    state = abstract_run_state(config, architecture, mesh, config.steps or 1)
    parts = {"params": state.params, "optimizer": state.opt_state}
    if state.ema_params is not None:
        parts["ema"] = state.ema_params
    return f"{architecture.name} on {mesh.size} devices\n{explain(mesh, parts)}"
