"""Rematerialisation: activations that the backward pass recomputes (Chen et al. 2016)."""

from typing import Any

import flax.linen as nn
import jax

# Policies refer to activations by these names, which the modules give them.
BLOCK_INPUT = "block_input"  # (B, L, D)
ATTENTION_PROJECTED = "attention_projected"  # queries, keys and values, 3 x (B, L, H, K)
FUSED_ATTENTION = "fused_attention"  # results of the TPU's kernel, (B, L, H·K) and (B, H, L)

policies = jax.checkpoint_policies
# The policies are ordered from the most memory to the least.
REMAT_POLICIES = {
    # Every matrix product is kept except attention's scores.
    "dots": policies.dots_with_no_batch_dims_saveable,
    # A block's input, queries, keys and values are kept.
    "qkv": policies.save_only_these_names(ATTENTION_PROJECTED),
    # Only a block's input is kept.
    "full": policies.nothing_saveable,
    # A block's input is kept too, but in the host's memory.
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def products(primitive: Any, *shapes: Any, **parameters: Any) -> bool:
    """Policy that keeps the results of matrix products and fused attention kernels."""
    # The gradient of cuDNN's kernel, a single primitive, needs the kernel's second result.
    kept = policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names(FUSED_ATTENTION)
    )
    is_library = primitive.name.startswith("dot_product_attention")
    return is_library or bool(kept(primitive, *shapes, **parameters))


def rematerialized(block: type[nn.Module], remat: str, in_scan: bool = False) -> Any:
    """Returns the module class with a backward pass that recomputes by the policy `remat`.

    Inside a scan the loop itself prevents common-subexpression elimination.
    """
    if remat != "none":
        return nn.remat(block, prevent_cse=not in_scan, policy=REMAT_POLICIES[remat])
    if in_scan:
        # A loop would store every intermediate value of every layer: slower, and several times the
        # memory. In unrolled layers the compiler by itself recomputes norms, activations and
        # softmax from the matrix products for the backward pass.
        return nn.remat(block, prevent_cse=False, policy=products)
    return block
