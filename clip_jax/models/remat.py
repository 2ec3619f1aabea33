"""What the backward pass computes again instead of keeping it (Chen et al. 2016)."""

from typing import Any

import flax.linen as nn
import jax

# Activations that policies speak of, named where they are made.
BLOCK_INPUT = "block_input"  # (B, L, D)
ATTENTION_PROJECTED = "attention_projected"  # queries, keys and values, 3 x (B, L, H, K)

policies = jax.checkpoint_policies
# From the most memory to the least.
REMAT_POLICIES = {
    # Every matrix product is kept but those of attention's scores.
    "dots": policies.dots_with_no_batch_dims_saveable,
    # A block's input, queries, keys and values are kept.
    "qkv": policies.save_only_these_names(ATTENTION_PROJECTED),
    # Only a block's input is kept.
    "full": policies.nothing_saveable,
    # That, too, waits in the host's memory.
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def products(primitive: Any, *shapes: Any, **parameters: Any) -> bool:
    """The policy that keeps what a matrix product or a fused attention kernel gives."""
    # cuDNN's kernel is one primitive, whose second result its gradient needs.
    return primitive.name.startswith("dot_product_attention") or bool(
        policies.dots_saveable(primitive, *shapes, **parameters)
    )


def rematerialized(block: type[nn.Module], remat: str, in_scan: bool = False) -> Any:
    """The module class, its backward pass computing again what `remat` names.

    Inside a scan the loop itself prevents common-subexpression elimination.
    """
    if remat != "none":
        return nn.remat(block, prevent_cse=not in_scan, policy=REMAT_POLICIES[remat])
    if in_scan:
        # Without a loop the compiler makes norms, activations and softmax again where the backward
        # pass wants them, from the matrix products. Out of a loop it would carry every
        # intermediate value of every layer: several times the memory, and slower for it.
        return nn.remat(block, prevent_cse=False, policy=products)
    return block
