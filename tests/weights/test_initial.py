"""Runs that begin with another model: bit for bit what it has, random the rest, positions resized.

At the end a recipe that this is for: a locked image tower (LiT).
"""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file
from tiny import tiny_config
from tiny_clip import TINY, assert_same_params, nested, tiny, to_state_dict

from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower
from clip_jax.sharding import make_mesh
from clip_jax.text.tokenizer import Tokenizer, save_tokenizer, train_sentencepiece
from clip_jax.training.config import TrainConfig, build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.initial import initial_state, open_initial
from clip_jax.training.run.loop import train
from clip_jax.training.run.opening import make_tokenizer, resolve_architecture
from clip_jax.training.step.optimizer import make_optimizer
from clip_jax.training.step.state import TrainState, abstract_state, sharded_state
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.fitting import fit_tokenizer
from clip_jax.weights.rules.positions import resize_grid, resize_line


def config_of(
    source: Any, only: tuple[str, ...] = (), tokenizer: Any = "captions", **changes: Any
) -> TrainConfig:
    """A run of the tiny model; `changes` are fields of its architecture."""
    values: dict[str, Any] = {
        "model": {"name": "custom", **nested(TINY | changes)},
        "data": {"path": "somewhere"},
        "steps": 10,
        "init": {"source": str(source), "only": only},
        "optimizer": {"ema_decay": 0.9},
        "tokenizer": {"source": tokenizer},
    }
    return build_config(values)


def begin(config: TrainConfig, random: bool = False) -> TrainState:
    """The first state of a run on (2, 4, 1) devices; `random`: as without a source."""
    mesh = make_mesh(2, 4, 1)
    architecture = config.model.architecture()
    optimizer = make_optimizer(config.optimizer, 10)
    with jax.set_mesh(mesh):
        if random:
            return sharded_state(mesh, architecture, optimizer, config.seed, ema=True)
        source = open_initial(config)
        assert source is not None
        state = initial_state(mesh, architecture, optimizer, config, source)
        abstract = abstract_state(mesh, architecture, optimizer, ema=True)
        assert jax.tree.structure(state) == jax.tree.structure(abstract)
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding == wanted.sharding
            assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
        return state


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def error_of(config: TrainConfig) -> str:
    with pytest.raises(UserError) as caught:
        begin(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["huggingface", "open_clip"])
def test_everything_comes_from_the_source(format: str, tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", format=format)
    state = begin(config_of(tmp_path / "m"))
    assert_same_params(state.params, clip.params)
    assert_same_params(state.ema_params, clip.params)
    fresh = begin(config_of(tmp_path / "m"), random=True)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(fresh.key).tolist()
    assert int(state.step) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.slow
def test_only_a_part_comes_from_the_source(tmp_path: Path) -> None:
    """LiT: the image tower alone. The text tower is random, as without a source, and of its own
    size; that of the source is not even looked at."""
    clip = tiny(text__width=64, text__layers=1, vocab_size=99)
    clip.save(tmp_path / "m")
    config = config_of(tmp_path / "m", ("vision/.*",))
    random = flat(begin(config, random=True).params)
    vision = {p: leaf for p, leaf in flat(clip.params).items() if p.startswith("vision/")}
    assert_same_params(flat(begin(config).params), random | vision)


@pytest.mark.parametrize("length", [7, 20])
@pytest.mark.parametrize("pool", ["argmax", "last"])
def test_tables_of_positions_are_made_to_fit(
    pool: str, length: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over the grid of patches, and the line of tokens; all else is the source's."""
    clip = tiny(text__pool=pool)
    clip.save(tmp_path / "m")
    config = config_of(tmp_path / "m", image_size=48, context_length=length, text__pool=pool)
    ours, theirs = flat(begin(config).params), flat(clip.params)
    grid, line = ours.pop("vision/positions"), ours.pop("text/positions")
    np.testing.assert_array_equal(grid, resize_grid(theirs["vision/positions"], 37, prefix=1))
    before = theirs["text/positions"]
    if pool == "last":
        np.testing.assert_array_equal(line, resize_line(before, length))
    else:
        np.testing.assert_array_equal(line[:12], before[:length])
        np.testing.assert_array_equal(line[12:], before[[-1] * max(0, length - 12)])
    assert "vision/positions: position table of 17 rows interpolated to 37" in caplog.text
    assert_same_params(ours, {path: theirs[path] for path in ours})


@pytest.mark.slow
def test_texts_that_fit_have_the_embeddings_they_had(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "huggingface")
    tokens = np.zeros((3, 12), np.int32)
    tokens[:, :5] = [[3, 5, 9, 8, 59], [1, 59, 0, 0, 0], [7, 7, 59, 0, 0]]
    expected = encode(clip.config, clip.params, tokens)
    for length in (5, 30):
        config = config_of(tmp_path / "m", context_length=length)
        state, model = begin(config), config.model.architecture()
        rows = np.pad(tokens, ((0, 0), (0, 18)))[:, :length]
        np.testing.assert_allclose(encode(model, state.params, rows), expected, atol=5e-6)


def encode(config: ClipConfig, params: Any, tokens: np.ndarray) -> np.ndarray:
    params = jax.tree.map(np.asarray, params)
    return TwoTower(config).apply({"params": params}, tokens, method="encode_text")


def test_an_image_tower_alone(tmp_path: Path) -> None:
    """A file with nothing else, in open_clip's names; the architecture is the run's."""
    clip = tiny()
    tensors = dict(to_state_dict(clip.config, clip.params))
    visual = {name: x for name, x in tensors.items() if name.startswith("visual.")}
    path = tmp_path / "tower.safetensors"
    save_safetensors(path, visual.items())
    config = config_of(path, ("vision/.*",), name="ViT-B-32")
    ours, theirs = flat(begin(config).params), flat(clip.params)
    assert all(np.array_equal(ours[p], theirs[p]) for p in ours if p.startswith("vision/"))
    assert "text_projection" in error_of(config_of(path, name="ViT-B-32"))


def test_other_functions_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny(vision__activation="quick_gelu", text__causal=False).save(tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        begin(config_of(tmp_path / "m", ("vision/.*",)))
    assert "was trained with vision.activation='quick_gelu' (config.model: 'gelu')" in caplog.text
    assert "text.causal" not in caplog.text


def test_what_does_not_fit(tmp_path: Path) -> None:
    tiny().save(tmp_path / "m")
    stacked = tiny(scan_layers=True)
    stacked.save(tmp_path / "stacked")
    source = f"config.init.source='{tmp_path / 'm'}': "
    assert error_of(config_of(tmp_path / "m", vision__width=48, vision__heads=3)).startswith(
        f"{source}has vision.width=32 (config.model: 48), vision.heads=2 (config.model: 3); "
        "config.init.only chooses"
    )
    assert "text.layers=2 (config.model: 3)" in error_of(config_of(tmp_path / "m", text__layers=3))
    message = error_of(config_of(tmp_path / "stacked", text__layers=3))
    assert "text.layers=2 (config.model: 3)" in message
    assert "missing: logit_bias" in error_of(config_of(tmp_path / "m", logit_bias_init=-10.0))
    message = error_of(config_of(tmp_path / "m", ("vison/.*",)))
    assert message.startswith("config.init.only: 'vison/.*' matches no parameter; nearest are 'vis")
    message = error_of(config_of(tmp_path / "absent"))
    assert message.startswith("config.init.source=")
    assert "no such file or folder" in message
    message = error_of(config_of("", ("vision/.*",)))
    assert message.endswith("chooses from config.init.source, which is not given")


@functools.cache
def vocabulary(words: str = "pictures of a cat") -> Tokenizer:
    return train_sentencepiece([words, "a dog and a photo", "an image with nothing"], 400)


def with_tokenizer(folder: Path, rows: int | None = None) -> Clip:
    """A saved model with a tokenizer of its own, and `rows` in its token table."""
    tokenizer = vocabulary()
    clip = tiny(vocab_size=rows or tokenizer.vocab_size)
    config, tokenizer = fit_tokenizer(clip.config, tokenizer)
    Clip(config, clip.params, tokenizer).save(folder)
    return clip


def model_of(config: TrainConfig) -> tuple[Any, Tokenizer]:
    source = open_initial(config)
    tokenizer = make_tokenizer(config, None, source)  # type: ignore[arg-type]
    return resolve_architecture(config, tokenizer, source and source.config.vocab_size)


@pytest.mark.parametrize("rows", [None, 320])
def test_the_tokenizer_comes_with_the_token_table(rows: int | None, tmp_path: Path) -> None:
    """Nothing is trained on captions: there are none. A table may have more rows than there are
    ids."""
    with_tokenizer(tmp_path / "m", rows)
    config = config_of(tmp_path / "m", vocab_size=None, context_length=20)
    architecture, tokenizer = model_of(config)
    own = vocabulary()
    assert architecture.vocab_size == (rows or own.vocab_size)
    assert tokenizer.context_length == 20
    assert tokenizer(["a cat"]).tolist() == own.with_context_length(20)(["a cat"]).tolist()


def test_tokenizers_that_do_not_belong(tmp_path: Path) -> None:
    with_tokenizer(tmp_path / "m")
    tiny().save(tmp_path / "bare")
    save_tokenizer(vocabulary("quick brown foxes jump"), tmp_path / "other")
    save_tokenizer(vocabulary(), tmp_path / "same")

    def config(source: str, tokenizer: Any = "captions", only: tuple[str, ...] = ()) -> TrainConfig:
        return config_of(tmp_path / source, only, str(tokenizer), vocab_size=None)

    own, other = (vocabulary(*words).vocab_size for words in ((), ("quick brown foxes jump",)))
    assert own != other
    assert model_of(config("m", tmp_path / "same"))[0].vocab_size == own
    named = f"config.tokenizer.source='{tmp_path / 'other'}': has {other} ids, but the to"
    with pytest.raises(UserError, match="has no tokenizer, and one trained on the captions"):
        model_of(config("bare"))
    for source, end in (("m", f"kenizer of .* has {own}"), ("bare", "ken table of .* 60 rows")):
        with pytest.raises(UserError, match=named + end):
            model_of(config(source, tmp_path / "other"))
    # Without the token table the run has the vocabulary that it likes.
    only = ("vision/.*", "text/transformer/.*")
    assert model_of(config("bare", tmp_path / "other", only))[0].vocab_size == other


@pytest.mark.slow
def test_a_locked_image_tower(tiny_run: Path, tmp_path: Path) -> None:
    """The same bytes before and after, through a resume; the text tower learns."""
    values = {"mesh__data": 8, "init__source": str(tiny_run), "init__only": ("vision/.*",)}
    values |= {"optimizer__freeze": ("vision/.*",), "model__text__width": 24}
    values |= {"model__text__heads": 3, "tokenizer__vocab_size": 300, "optimizer__ema_decay": 0.9}
    train(build_config(tiny_config(steps=10, **values)), tmp_path / "run")
    gone = values | {"init__source": "gone"}  # the checkpoint has everything
    train(build_config(tiny_config(steps=20, **gone)), tmp_path / "run")
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    before, after = (
        load_file(path / "model" / "model.safetensors") for path in (tiny_run, tmp_path / "run")
    )
    vision = [path for path in after if path.startswith("vision/")]
    assert len(vision) > 10
    for path in vision:
        assert before[path].tobytes() == after[path].tobytes(), path
    assert after["text/projection"].shape == (24, 16)
