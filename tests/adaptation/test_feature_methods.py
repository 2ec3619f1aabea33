"""Feature methods against their papers' equations in numpy, and scikit-learn's discriminant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clip_jax.adaptation.feature_methods import FEATURE_METHODS
from clip_jax.adaptation.shots import Shots

N, B, D, C = 15, 7, 12, 5
OPTIONS = {"scale": 30.0, "alpha": 0.7, "beta": 2.5, "lambda": 0.3}


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


RNG = np.random.default_rng(0)
FEATURES, QUERIES, TEXTS = (unit_rows(RNG.normal(size=(rows, D))) for rows in (N, B, C))
class_of_shot = np.arange(N) % C
ONE_HOT = np.array([[float(label == k) for k in range(C)] for label in class_of_shot])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def method_and_params(name):
    """A method with its initial parameters in float64."""
    method = FEATURE_METHODS[name]
    shots = Shots(jnp.asarray(FEATURES), jnp.asarray(class_of_shot, jnp.int32), jnp.ones(N))
    return method, method.init(shots, jnp.asarray(TEXTS.T), jax.random.key(0), OPTIONS)


def logits(name, changed=None):
    method, params = method_and_params(name)
    params |= {key: jnp.asarray(value) for key, value in (changed or {}).items()}
    found = method.logits(params, jnp.asarray(QUERIES), jnp.asarray(TEXTS.T), OPTIONS)
    assert found.dtype == np.float64
    return np.asarray(found)


def per_query_and_class(score):
    """score(query (D,), class) as a matrix (B, C)."""
    return np.array([[score(query, k) for k in range(C)] for query in QUERIES])


def test_zero_shot():
    expected = per_query_and_class(lambda f, k: 30.0 * f @ TEXTS[k])
    np.testing.assert_allclose(logits("zero_shot"), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_tip_adapter(name):
    def score(f, k):
        affinities = [np.exp(-2.5 * (1 - f @ key)) for key in FEATURES]
        cached = sum(a for a, label in zip(affinities, class_of_shot, strict=True) if label == k)
        return 30.0 * f @ TEXTS[k] + 0.7 * cached

    np.testing.assert_allclose(logits(name), per_query_and_class(score), atol=1e-6)


def test_clip_adapter():
    down, up = RNG.normal(size=(D, D // 4)), RNG.normal(size=(D // 4, D))

    def score(f, k):
        adapted = np.maximum(np.maximum(f @ down, 0) @ up, 0)
        mixed = 0.7 * adapted + 0.3 * f
        return 30.0 * mixed @ TEXTS[k] / np.sqrt(mixed @ mixed)

    found = logits("clip_adapter", {"down_DH": down, "up_HD": up})
    np.testing.assert_allclose(found, per_query_and_class(score), atol=1e-6)


def test_clip_adapter_starts_as_pytorchs_layers():
    _, params = method_and_params("clip_adapter")
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "down_DH": (D, D // 4),
        "up_HD": (D // 4, D),
    }
    for leaf in params.values():
        assert 0.8 < float(jnp.abs(leaf).max()) * len(leaf) ** 0.5 <= 1


def test_lp_plus_plus():
    weights, bias, alpha = RNG.normal(size=(D, C)), RNG.normal(size=C), RNG.normal(size=C)
    expected = per_query_and_class(lambda f, k: f @ (weights[:, k] + alpha[k] * TEXTS[k]) + bias[k])
    changed = {"weights_DC": weights, "bias_C": bias, "alpha_C": alpha}
    np.testing.assert_allclose(logits("lp_plus_plus", changed), expected, atol=1e-6)


def test_lp_plus_plus_starts_at_class_means():
    _, params = method_and_params("lp_plus_plus")
    of_class = [FEATURES[class_of_shot == k] for k in range(C)]
    means = np.array([rows.mean(0) for rows in of_class])
    np.testing.assert_allclose(params["weights_DC"].T, means, atol=1e-12)
    shots = N // C
    initial = [250 / shots * (rows @ TEXTS[k]).sum() for k, rows in enumerate(of_class)]
    np.testing.assert_allclose(params["alpha_C"], np.full(C, np.mean(initial)), atol=1e-9)
    assert np.ptp(params["bias_C"]) > 0
    assert np.abs(params["bias_C"]).max() <= D**-0.5


def gaussian_kernel(a, b):
    """exp(-β/2 ‖a - b‖²), which is exp(-β(1 - a·b)) for unit vectors."""
    return np.exp(-2.5 / 2 * ((a[:, None] - b[None]) ** 2).sum(2))


def test_proker_is_its_closed_form():
    kernel = gaussian_kernel(FEATURES, FEATURES)
    residual = ONE_HOT - FEATURES @ TEXTS.T
    values = np.linalg.solve(kernel + 0.3 * np.eye(N), residual)
    expected = QUERIES @ TEXTS.T + gaussian_kernel(QUERIES, FEATURES) @ values
    np.testing.assert_allclose(logits("proker"), expected, atol=1e-6)


def test_proker_minimises_its_objective():
    """Σ‖φ(x) - y‖² + λ‖φ - φ_clip‖² in the kernel's space has no slope there."""
    _, params = method_and_params("proker")
    kernel = jnp.asarray(gaussian_kernel(FEATURES, FEATURES))

    def objective(values):
        change = kernel @ values
        misfit = FEATURES @ TEXTS.T + change - ONE_HOT
        return (misfit**2).sum() + 0.3 * (values * change).sum()

    slope = jax.grad(objective)(params["values_NC"])
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    assert np.abs(jax.grad(objective)(params["values_NC"] * 1.01)).max() > 1e-3


class ShrunkCovariance:
    """((N - 1)Σ + tr(Σ)I)/D of the ICLR paper, in the parts that scikit-learn averages."""

    def fit(self, rows):
        centred = [
            FEATURES[class_of_shot == k] - FEATURES[class_of_shot == k].mean(0) for k in range(C)
        ]
        trace = np.trace(np.cov(np.concatenate(centred).T))
        scatter = (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        self.covariance_ = (C * scatter + trace * np.eye(D)) / D
        return self


def test_gda_is_a_linear_discriminant_beside_zero_shot():
    discriminant = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=ShrunkCovariance(), priors=np.full(C, 1 / C)
    ).fit(FEATURES, class_of_shot)
    gaussian = discriminant.decision_function(QUERIES) + np.log(C)
    expected = 30.0 * QUERIES @ TEXTS.T + 0.7 * gaussian
    np.testing.assert_allclose(logits("gda"), expected, atol=1e-6)


def test_gda_without_spread_is_zero_shot():
    method = FEATURE_METHODS["gda"]
    shots = Shots(jnp.asarray(TEXTS), jnp.arange(C), jnp.ones(C))
    classifier = jnp.asarray(TEXTS.T)
    params = method.init(shots, classifier, jax.random.key(0), OPTIONS)
    found = method.logits(params, jnp.asarray(QUERIES), classifier, OPTIONS)
    np.testing.assert_array_equal(found, logits("zero_shot"))


@pytest.mark.parametrize("name", [name for name, m in FEATURE_METHODS.items() if m.recipe])
def test_gradients_are_finite_differences(name):
    method, params = method_and_params(name)
    fixed = {key: leaf for key, leaf in params.items() if key not in method.recipe.trained}

    def loss(trained):
        out = method.logits(
            {**fixed, **trained}, jnp.asarray(FEATURES), jnp.asarray(TEXTS.T), OPTIONS
        )
        return -(jax.nn.log_softmax(out) * ONE_HOT).sum() / N

    trained = {key: params[key] for key in method.recipe.trained}
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(jax.grad(loss)(trained)))
    check_grads(loss, (trained,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-6)
