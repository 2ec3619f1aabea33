"""Parameter initializers, by the rules of the code bases that trained the released models."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., jax.Array]  # (key, shape, dtype) -> initial values


def uniform(bound: float) -> Init:
    """Returns an initializer of U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_uniform(fan_in: int) -> Init:
    """Returns an initializer of U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    It is PyTorch's default for Linear and convolution layers, and so the distribution of every
    layer that OpenAI's code does not initialise itself.
    """
    return uniform(fan_in**-0.5)


class BlockInitializers:
    """Initializers of one stack of blocks.

    `rule`: "openai_text" (scaled with depth), "openai" (the framework's defaults, xavier for the
    fused matrix of width and 3 x width), "big_vision" (xavier for each of the three, biases of the
    MLP N(0, 1e-6²)), "normal" (N(0, 0.02²), biases 0).
    """

    def __init__(self, rule: str, width: int, mlp_dim: int, layers: int):
        zeros = nn.initializers.zeros
        if rule == "openai_text":
            residual_std = width**-0.5 * (2 * layers) ** -0.5
            self.query_key_value: Init = nn.initializers.normal(width**-0.5)
            self.attention_out: Init = nn.initializers.normal(residual_std)
            self.mlp_in: Init = nn.initializers.normal((2 * width) ** -0.5)
            self.mlp_out: Init = nn.initializers.normal(residual_std)
            self.mlp_in_bias, self.mlp_out_bias = torch_uniform(width), torch_uniform(mlp_dim)
        elif rule == "openai":
            self.query_key_value = uniform((6 / (width + 3 * width)) ** 0.5)
            self.attention_out = self.mlp_in = torch_uniform(width)
            self.mlp_out = torch_uniform(mlp_dim)
            self.mlp_in_bias, self.mlp_out_bias = torch_uniform(width), torch_uniform(mlp_dim)
        elif rule == "big_vision":
            self.query_key_value = self.attention_out = uniform((6 / (2 * width)) ** 0.5)
            self.mlp_in = self.mlp_out = uniform((6 / (width + mlp_dim)) ** 0.5)
            self.mlp_in_bias = self.mlp_out_bias = nn.initializers.normal(1e-6)
        elif rule == "normal":
            self.query_key_value = self.attention_out = nn.initializers.normal(0.02)
            self.mlp_in = self.mlp_out = nn.initializers.normal(0.02)
            self.mlp_in_bias = self.mlp_out_bias = zeros
        else:
            raise ValueError(f"no rule of initialisation is called {rule!r}")
