"""Fitting a method on cached features: one compiled program for training, choice and all runs.

What is chosen, the epoch and the point of the method's grid, is chosen on validation shots: most
hits, then the smallest cross-entropy. Test data have no way in.

Rows of weight 0 change nothing: the order of the others does not depend on how many there are, and
a batch of none but them leaves parameters and optimizer as they are.

Shape letters: N shots, D width, C classes, B rows of a batch, S batches of an epoch, P points of
the grid, R runs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_jax.adaptation.feature_methods import FeatureMethod, Options, Params, Recipe
from clip_jax.adaptation.shots import Shots

Array = jax.Array

# Numbers of one kernel matrix, over the values of the first option that are computed at once.
_NUMBERS_AT_ONCE = 1 << 24


class Fitted(NamedTuple):
    """A fitted method; of R runs, all arrays have a leading axis R.

    Attributes:
      params: what `FeatureMethod.logits` takes.
      options: float32 () each: the chosen point of the grid, and "scale".
      hits: float32 (): validation shots whose class was right.
      loss: float32 (): their mean cross-entropy in nats.
    """

    params: Params
    options: dict[str, Array]
    hits: Array
    loss: Array


@partial(jax.jit, static_argnames="method")
@jax.default_matmul_precision("highest")
def fit(
    method: FeatureMethod,
    shots: Shots,
    validation: Shots,
    classifier_DC: Array,
    key: Array,
    logit_scale: Array | float = 100.0,
    views_VND: Array | None = None,
) -> Fitted:
    """Makes a method's parameters from shots, and chooses its options on validation shots.

    Args:
      method: one of `FEATURE_METHODS`.
      shots: what it learns from.
      validation: what chooses the grid's point and the epoch; at least one row of weight 1.
      classifier_DC: float32 (D, C), the zero-shot classifier with unit columns.
      key: of the initial parameters and the order of the shots.
      logit_scale: what the model multiplies cosines by.
      views_VND: float32 (V, N, D), features of views of the shots, of which each epoch draws one a
        shot to learn from; None: it learns from the shots' features.
    """

    def options(point: Mapping[str, Any]) -> dict[str, Array]:
        values = {**point, "scale": logit_scale}
        return {name: jnp.asarray(value, classifier_DC.dtype) for name, value in values.items()}

    def make(options: Options) -> Params:
        init_key, order_key = jax.random.split(key)
        params = method.init(shots, classifier_DC, init_key, options)
        if method.recipe is None:
            return params
        training = shots, validation, classifier_DC, order_key, options, views_VND
        return _train(method, method.recipe, params, *training)

    def score(params: Params, options: Options) -> tuple[Array, Array]:
        return _score(method, params, validation, classifier_DC, options)

    if not method.grid:
        params = make(options({}))
        return Fitted(params, options({}), *score(params, options({})))

    made = None if method.fit_options is None else make(options(method.fit_options))
    trained = made is None and method.recipe is not None

    def judge(*point: Array) -> tuple[Array, Array, Params | None]:
        values = options(dict(zip(method.grid, point, strict=True)))
        params = make(values) if made is None else made
        # A closed form is cheaper to make again than to keep for all points.
        return *score(params, values), params if trained else None

    numbers = len(shots.labels_N) * max(len(shots.labels_N), len(validation.labels_N))
    axes = [jnp.asarray(values, classifier_DC.dtype) for values in method.grid.values()]
    hits_P, loss_P, params_P = _over_grid(judge, axes, max(_NUMBERS_AT_ONCE // numbers, 1))
    best = jnp.lexsort((loss_P, -hits_P))[0]
    places = jnp.unravel_index(best, [len(axis) for axis in axes])
    point = [axis[place] for axis, place in zip(axes, places, strict=True)]
    chosen = options(dict(zip(method.grid, point, strict=True)))
    if trained:
        params = jax.tree.map(lambda leaf_P: leaf_P[best], params_P)
    else:
        params = make(chosen) if made is None else made
    return Fitted(params, chosen, hits_P[best], loss_P[best])


@partial(jax.jit, static_argnames="method")
def fit_all(
    method: FeatureMethod,
    shots: Shots,
    validation: Shots,
    classifier_DC: Array,
    keys_R: Array,
    logit_scale: Array | float = 100.0,
    views_RVND: Array | None = None,
) -> Fitted:
    """Fits R runs, such as seeds × numbers of shots, as one program.

    Arguments are those of `fit`, with a leading axis R of `shots`, `validation`, keys and views;
    `Fitted` has it too. The classifier is shared.
    """

    def run(shots: Shots, validation: Shots, key: Array, views_VND: Array | None) -> Fitted:
        return fit(method, shots, validation, classifier_DC, key, logit_scale, views_VND)

    return jax.vmap(run)(shots, validation, keys_R, views_RVND)


@partial(jax.jit, static_argnames="method")
@jax.default_matmul_precision("highest")
def class_logits(
    method: FeatureMethod, fitted: Fitted, features_BD: Array, classifier_DC: Array
) -> Array:
    """Returns the logits of features with unit rows, float32 (B, C).

    Of R runs: `jax.vmap(partial(class_logits, method), (0, None, None))(fitted, …)`.
    """
    return method.logits(fitted.params, features_BD, classifier_DC, fitted.options)


def _over_grid(judge: Callable[..., Any], axes: Sequence[Array], at_once: int) -> Any:
    """Returns what `judge` makes of all points, with a leading axis P, the last option fastest.

    Values of the first option are computed `at_once`, those of the others all together, each in a
    vmap of its own: what does not depend on it is computed once.
    """
    for position in reversed(range(1, len(axes))):
        judge = jax.vmap(judge, [0 if n == position else None for n in range(len(axes))])
    first, *others = axes
    at_once = min(at_once, len(first))
    judged = jax.lax.map(lambda value: judge(value, *others), first, batch_size=at_once)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(axes) :]), judged)


def _score(
    method: FeatureMethod, params: Params, rows: Shots, classifier_DC: Array, options: Options
) -> tuple[Array, Array]:
    """Returns hits and mean cross-entropy of weighted rows."""
    logits_BC = method.logits(params, rows.features_ND, classifier_DC, options)
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, rows.labels_N)
    hits = (rows.weights_N * (logits_BC.argmax(1) == rows.labels_N)).sum()
    return hits, (rows.weights_N * losses_B).sum() / jnp.maximum(rows.weights_N.sum(), 1)


def _train(
    method: FeatureMethod,
    recipe: Recipe,
    params: Params,
    shots: Shots,
    validation: Shots,
    classifier_DC: Array,
    key: Array,
    options: Options,
    views_VND: Array | None,
) -> Params:
    """Returns the parameters after the epoch that is best on the validation shots."""
    batch_size = min(recipe.batch_size or len(shots.labels_N), len(shots.labels_N))
    filling = -len(shots.labels_N) % batch_size
    rows = Shots(*(jnp.pad(x, [(0, filling)] + [(0, 0)] * (x.ndim - 1)) for x in shots))
    epoch_steps = jnp.ceil(shots.weights_N.sum() / batch_size).astype(jnp.int32)
    optimizer = recipe.optimizer(shots, classifier_DC, recipe.epochs * epoch_steps)
    fixed = {name: leaf for name, leaf in params.items() if name not in recipe.trained}
    start = {name: params[name] for name in recipe.trained}

    def step(learner: tuple[Params, Any], batch: Shots) -> tuple[tuple[Params, Any], None]:
        def loss(trained: Params) -> Array:
            return _score(method, {**fixed, **trained}, batch, classifier_DC, options)[1]

        trained, state = learner
        updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
        after = optax.apply_updates(trained, updates), state
        some = batch.weights_N.sum() > 0
        return jax.tree.map(lambda new, old: jnp.where(some, new, old), after, learner), None

    def epoch(carry: Any, number: Array) -> tuple[Any, None]:
        learner, best = carry
        batches = rows
        if views_VND is not None:
            view_key = jax.random.fold_in(jax.random.fold_in(key, 0), number)  # orders have 1, 2, …
            drawn_N = _draws(view_key, len(shots.labels_N), len(views_VND))
            features_ND = views_VND[drawn_N, jnp.arange(len(drawn_N))]
            batches = rows._replace(
                features_ND=rows.features_ND.at[: len(drawn_N)].set(features_ND)
            )
        if batch_size < len(rows.labels_N):
            order_N = _order(jax.random.fold_in(key, number), rows.weights_N)
            batches = Shots(*(x[order_N] for x in batches))
        batches = Shots(*(x.reshape(-1, batch_size, *x.shape[1:]) for x in batches))
        learner, _ = jax.lax.scan(step, learner, batches)
        hits, loss = _score(method, {**fixed, **learner[0]}, validation, classifier_DC, options)
        _, best_hits, best_loss = best
        better = (hits > best_hits) | ((hits == best_hits) & (loss < best_loss))
        now = learner[0], hits, loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return (learner, best), None

    dtype = classifier_DC.dtype
    nothing = start, jnp.asarray(-1, dtype), jnp.asarray(jnp.inf, dtype)
    carry = (start, optimizer.init(start)), nothing
    (_, (best, _, _)), _ = jax.lax.scan(epoch, carry, jnp.arange(1, recipe.epochs + 1))
    return {**fixed, **best}


def _draws(key: Array, count: int, below: int) -> Array:
    """Returns random numbers int32 (count,) from 0, each by its row's number alone."""
    keys_N = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(count))
    return jax.vmap(lambda row_key: jax.random.randint(row_key, (), 0, below))(keys_N)


def _order(key: Array, weights_N: Array) -> Array:
    """Returns a random order of the rows, int32 (N,), those of weight 0 last.

    A row's draw depends on its number alone, so that rows of weight 0 at the end change no order.
    """
    draws_N = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(
        jnp.arange(len(weights_N))
    )
    return jnp.argsort(jnp.where(weights_N > 0, draws_N, 2.0))
