"""Few-shot methods on cached features: how each starts, scores, learns, and what it may choose.

A method sees image features, labels and the zero-shot classifier, never a tower. All functions are
pure, and can be compiled, batched over runs and, by their parameters, differentiated. `options`
holds scalars: those of the method's grid, and "scale", by which cosines are multiplied before the
softmax (the exponential of CLIP's logit scale, 100 in OpenAI's models).

To add a method, write its two functions, and a line in `FEATURE_METHODS`.

Shape letters: N shots, D width, C classes, B rows to score, H hidden width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optax

from clip_jax.adaptation.shots import Shots

Array = jax.Array
Params = dict[str, Array]
Options = Mapping[str, Array]
# The last argument is the number of steps, int32 ().
MakeOptimizer = Callable[[Shots, Array, Array], optax.GradientTransformation]


@dataclass(frozen=True)
class Recipe:
    """How a method learns by cross-entropy: the same for all data sets.

    Attributes:
      trained: names of the parameters that learn.
      optimizer: (shots, classifier_DC, number of steps) -> optax optimizer.
      epochs: passes over the shots.
      batch_size: rows of a step; None for all.
    """

    trained: tuple[str, ...]
    optimizer: MakeOptimizer
    epochs: int
    batch_size: int | None


@dataclass(frozen=True, eq=False)  # Compared by identity: a static argument of compiled programs.
class FeatureMethod:
    """One method.

    Attributes:
      paper: where it comes from.
      init: (shots, classifier (D, C) with unit columns, key, options) -> parameters; those of a
        closed form are final.
      logits: (parameters, features (B, D), classifier, options) -> logits (B, C).
      recipe: how the parameters are trained; None for a closed form.
      grid: values of each option among which validation shots choose; first those on which the
        longer computation depends.
      fit_options: the grid's options while the parameters are made, if the grid is searched only
        after that. None: they are made at each point of the grid.
      each_view: whether each augmented view of an image is a shot; if not, their normalised mean
        is, as a key of Tip-Adapter, and each epoch draws one view of each.
    """

    paper: str
    init: Callable[[Shots, Array, Array, Options], Params]
    logits: Callable[[Params, Array, Array, Options], Array]
    recipe: Recipe | None = None
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fit_options: Mapping[str, float] | None = None
    each_view: bool = False


def _one_hot(shots: Shots, classifier_DC: Array) -> Array:
    """(N, C): 1 at the class of each row of weight 1."""
    dtype = shots.features_ND.dtype
    one_hot_NC = jax.nn.one_hot(shots.labels_N, classifier_DC.shape[1], dtype=dtype)
    return one_hot_NC * shots.weights_N[:, None]


def _class_means(shots: Shots, classifier_DC: Array) -> Array:
    """(D, C): mean features of the classes."""
    one_hot_NC = _one_hot(shots, classifier_DC)
    return shots.features_ND.T @ one_hot_NC / one_hot_NC.sum(0)


def _kernel(features_BD: Array, keys_ND: Array, beta: Array) -> Array:
    """(B, N): exp(-β(1 - cosine)), the Gaussian kernel of unit vectors."""
    return jnp.exp(-beta * (1 - features_BD @ keys_ND.T))


def _cosine_decay(rate: float, num_steps: Array) -> optax.Schedule:
    """Returns a schedule from `rate` to 0; `optax.cosine_decay_schedule` takes no traced length."""
    return lambda count: rate / 2 * (1 + jnp.cos(jnp.pi * count / num_steps))


def _no_params(shots: Shots, classifier_DC: Array, key: Array, options: Options) -> Params:
    return {}


def zero_shot_logits(
    params: Params, features_BD: Array, classifier_DC: Array, options: Options
) -> Array:
    """Returns (B, C): scale·cosine, as the model is without shots."""
    return options["scale"] * features_BD @ classifier_DC


def tip_adapter_init(shots: Shots, classifier_DC: Array, key: Array, options: Options) -> Params:
    """Returns the cache: features of the shots as keys (N, D), their one-hot labels as values."""
    return {"keys_ND": shots.features_ND, "values_NC": _one_hot(shots, classifier_DC)}


def tip_adapter_logits(
    params: Params, features_BD: Array, classifier_DC: Array, options: Options
) -> Array:
    """Returns (B, C): zero-shot logits + α·exp(-β(1 - f·keys))·values."""
    cache_BC = _kernel(features_BD, params["keys_ND"], options["beta"]) @ params["values_NC"]
    zero_shot_BC = zero_shot_logits(params, features_BD, classifier_DC, options)
    return zero_shot_BC + options["alpha"] * cache_BC


def _tip_adapter_optimizer(
    shots: Shots, classifier_DC: Array, num_steps: Array
) -> optax.GradientTransformation:
    return optax.adamw(_cosine_decay(1e-3, num_steps), eps=1e-4, weight_decay=0.01)


def clip_adapter_init(shots: Shots, classifier_DC: Array, key: Array, options: Options) -> Params:
    """Returns two matrices, (D, D/4) and (D/4, D), uniform in ±1/√inputs as PyTorch's layers."""
    width, dtype = len(classifier_DC), shots.features_ND.dtype
    hidden = max(width // 4, 1)
    down_key, up_key = jax.random.split(key)

    def matrix(key: Array, inputs: int, outputs: int) -> Array:
        limit = inputs**-0.5
        return jax.random.uniform(key, (inputs, outputs), dtype, -limit, limit)

    return {"down_DH": matrix(down_key, width, hidden), "up_HD": matrix(up_key, hidden, width)}


def clip_adapter_logits(
    params: Params, features_BD: Array, classifier_DC: Array, options: Options
) -> Array:
    """Returns (B, C): logits of α·relu(relu(f W1) W2) + (1 - α) f, normalised."""
    adapted_BD = jax.nn.relu(jax.nn.relu(features_BD @ params["down_DH"]) @ params["up_HD"])
    mixed_BD = options["alpha"] * adapted_BD + (1 - options["alpha"]) * features_BD
    mixed_BD = mixed_BD / jnp.linalg.norm(mixed_BD, axis=1, keepdims=True)
    return zero_shot_logits(params, mixed_BD, classifier_DC, options)


def _clip_adapter_optimizer(
    shots: Shots, classifier_DC: Array, num_steps: Array
) -> optax.GradientTransformation:
    return optax.sgd(_cosine_decay(0.01, num_steps))


def lp_plus_plus_init(shots: Shots, classifier_DC: Array, key: Array, options: Options) -> Params:
    """Returns class means (D, C), a bias uniform in ±1/√D, and one multiplier for all classes.

    The multiplier is 250 × the mean over classes of the mean cosine of a class's shots with its
    column of the classifier.
    """
    means_DC = _class_means(shots, classifier_DC)
    width, num_classes = classifier_DC.shape
    alpha = 250 * (means_DC * classifier_DC).sum(0).mean()
    limit, dtype = width**-0.5, means_DC.dtype
    return {
        "weights_DC": means_DC,
        "bias_C": jax.random.uniform(key, (num_classes,), dtype, -limit, limit),
        "alpha_C": jnp.full(num_classes, alpha),
    }


def lp_plus_plus_logits(
    params: Params, features_BD: Array, classifier_DC: Array, options: Options
) -> Array:
    """Returns (B, C): f·w_k + b_k + α_k f·t_k, without the logit scale."""
    text_BC = params["alpha_C"] * (features_BD @ classifier_DC)
    return features_BD @ params["weights_DC"] + params["bias_C"] + text_BC


def _lp_plus_plus_optimizer(
    shots: Shots, classifier_DC: Array, num_steps: Array
) -> optax.GradientTransformation:
    """Returns steps from bounds of the curvature: 4N/λmax(FᵀF), and N/(4·max_k Σ(f·t_k)²).

    Every tenth step moves α, by the gradient of that step alone: the authors' code never clears
    that gradient, so that theirs is a sum since the start.
    """
    features_ND = shots.features_ND * shots.weights_N[:, None]
    count = shots.weights_N.sum()
    linear = 4 * count / jnp.linalg.eigvalsh(features_ND.T @ features_ND)[-1]
    alpha = count / (4 * jnp.square(features_ND @ classifier_DC).sum(0).max())
    every_tenth = optax.scale_by_schedule(lambda count: jnp.where(count % 10 == 9, 1.0, 0.0))
    optimizers = {
        "linear": optax.sgd(linear, momentum=0.9),
        "alpha": optax.chain(optax.sgd(alpha), every_tenth),
    }
    labels = {"weights_DC": "linear", "bias_C": "linear", "alpha_C": "alpha"}
    return optax.partition(optimizers, labels)


def proker_init(shots: Shots, classifier_DC: Array, key: Array, options: Options) -> Params:
    """Returns the shots as keys (N, D), and (K + λI)⁻¹(Y - cosines) as values (N, C).

    They minimise Σ‖φ(f) - y‖² + λ‖φ - cosines‖² with the norm of the kernel's space. The authors'
    code multiplies the correction by λ besides.
    """
    weights_N = shots.weights_N
    kernel_NN = _kernel(shots.features_ND, shots.features_ND, options["beta"])
    # Rows of weight 0 fall apart from the others, and their right side is 0.
    kernel_NN = kernel_NN * weights_N[:, None] * weights_N
    cosines_NC = shots.features_ND @ classifier_DC
    residual_NC = _one_hot(shots, classifier_DC) - cosines_NC * weights_N[:, None]
    factor = jax.scipy.linalg.cho_factor(kernel_NN + options["lambda"] * jnp.eye(len(weights_N)))
    return {
        "keys_ND": shots.features_ND,
        "values_NC": jax.scipy.linalg.cho_solve(factor, residual_NC),
    }


def proker_logits(
    params: Params, features_BD: Array, classifier_DC: Array, options: Options
) -> Array:
    """Returns (B, C): cosines + k(f, keys)·values, which regress one-hot labels, without scale."""
    kernel_BN = _kernel(features_BD, params["keys_ND"], options["beta"])
    return features_BD @ classifier_DC + kernel_BN @ params["values_NC"]


def gda_init(shots: Shots, classifier_DC: Array, key: Array, options: Options) -> Params:
    """Returns weights P·μ_k (D, C) and bias -½ μ_kᵀPμ_k (C,), with a shared precision P.

    P = D((N - 1)Σ + tr(Σ)I)⁻¹ with the covariance Σ inside classes. Without spread,
    as with a single view of one shot a class, P is 0, and what remains is the zero-shot classifier.
    """
    means_DC = _class_means(shots, classifier_DC)
    centred_ND = (shots.features_ND - means_DC.T[shots.labels_N]) * shots.weights_N[:, None]
    scatter_DD = centred_ND.T @ centred_ND
    trace = jnp.trace(scatter_DD) / jnp.maximum(shots.weights_N.sum() - 1, 1)
    width = len(classifier_DC)
    shrunk_DD = scatter_DD + jnp.where(trace > 0, trace, 1) * jnp.eye(width)
    factor = jax.scipy.linalg.cho_factor(shrunk_DD)
    weights_DC = width * jax.scipy.linalg.cho_solve(factor, means_DC) * (trace > 0)
    return {"weights_DC": weights_DC, "bias_C": -(means_DC * weights_DC).sum(0) / 2}


def gda_logits(params: Params, features_BD: Array, classifier_DC: Array, options: Options) -> Array:
    """Returns (B, C): zero-shot logits + α(f·w_k + b_k), classes equally likely."""
    gaussian_BC = features_BD @ params["weights_DC"] + params["bias_C"]
    zero_shot_BC = zero_shot_logits(params, features_BD, classifier_DC, options)
    return zero_shot_BC + options["alpha"] * gaussian_BC


# The authors of Tip-Adapter search 0.1 to the data set's own limit, 3 to 50, in hundreds of equal
# steps; validation shots cannot tell so many apart.
_TIP_ADAPTER_VALUES = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 25.0, 50.0)
_TIP_ADAPTER_GRID = {"beta": _TIP_ADAPTER_VALUES, "alpha": _TIP_ADAPTER_VALUES}
_TIP_ADAPTER = "Zhang et al. 2022, Tip-Adapter, ECCV, arXiv 2207.09519"

FEATURE_METHODS: dict[str, FeatureMethod] = {
    "zero_shot": FeatureMethod(
        "Radford et al. 2021, CLIP, section 3.1", _no_params, zero_shot_logits
    ),
    "tip_adapter": FeatureMethod(
        _TIP_ADAPTER,
        tip_adapter_init,
        tip_adapter_logits,
        grid=_TIP_ADAPTER_GRID,
        fit_options={},
    ),
    "tip_adapter_f": FeatureMethod(
        _TIP_ADAPTER,
        tip_adapter_init,
        tip_adapter_logits,
        recipe=Recipe(("keys_ND",), _tip_adapter_optimizer, epochs=20, batch_size=256),
        grid=_TIP_ADAPTER_GRID,
        fit_options={"alpha": 1.17, "beta": 1.0},
    ),
    # Optimizer, rate and epochs are those with 16 shots in the code of LP++'s comparison.
    "clip_adapter": FeatureMethod(
        "Gao et al. 2021, CLIP-Adapter, arXiv 2110.04544",
        clip_adapter_init,
        clip_adapter_logits,
        recipe=Recipe(("down_DH", "up_HD"), _clip_adapter_optimizer, epochs=200, batch_size=32),
        grid={"alpha": (0.2, 0.4, 0.6, 0.8)},
    ),
    "lp_plus_plus": FeatureMethod(
        "Huang et al. 2024, LP++, CVPR, arXiv 2404.02285",
        lp_plus_plus_init,
        lp_plus_plus_logits,
        recipe=Recipe(
            ("weights_DC", "bias_C", "alpha_C"),
            _lp_plus_plus_optimizer,
            epochs=300,
            batch_size=None,
        ),
        each_view=True,
    ),
    "proker": FeatureMethod(
        "Bendou et al. 2025, ProKeR, CVPR, arXiv 2501.11175",
        proker_init,
        proker_logits,
        grid={
            "beta": (0.1, 0.5, 1.0, 2.0, 3.0, 5.0),
            "lambda": (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0),
        },
    ),
    "gda": FeatureMethod(
        "Wang et al. 2024, A Hard-to-Beat Baseline, ICLR, arXiv 2402.04087",
        gda_init,
        gda_logits,
        fit_options={},
        grid={"alpha": (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)},
        each_view=True,
    ),
}
