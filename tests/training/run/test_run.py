"""What of a configuration may change when a run goes on, and what may not."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from clip_jax.errors import UserError
from clip_jax.text.tokenizer import train_sentencepiece
from clip_jax.training.config import build_config, to_dict
from clip_jax.training.run.opening import resolve_architecture
from clip_jax.training.run.resuming import check_resumable

OLD: dict[str, Any] = {
    "optimizer__name": "sgd",
    "optimizer__options": {"momentum": 0.9},
    "optimizer__freeze": ("vision/.*",),
}


def resume(**changes: Any) -> None:
    saved = json.loads(json.dumps(to_dict(build_config(tiny_config(**OLD)))))
    check_resumable(build_config(tiny_config(**OLD | changes)), saved, Path("runs/x"))


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ((), "batch"),
        (("text/.*",), "batch"),
        (("vision/stem.*",), "batch"),
        (("vision/.*",), "frozen"),
    ],
)
def test_a_locked_tower_keeps_its_statistics(freeze: tuple[str, ...], expected: str) -> None:
    """Else the text tower would learn to read another function than is exported."""
    resnet = {
        "model__vision__kind": "resnet",
        "model__vision__layers": (1, 1, 1, 1),
        "model__vision__width": 8,
        "model__vision__mlp_dim": None,
        "model__vision__patch_size": None,
    }
    config = build_config(tiny_config(**resnet, optimizer__freeze=freeze))
    tokenizer = train_sentencepiece(captions=["a cat", "a dog", "some birds"] * 9, vocab_size=280)
    architecture, _ = resolve_architecture(config, tokenizer)
    assert architecture.vision.batch_norm == expected


def test_nothing_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    resume()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("optimizer.name", "adamw", "sgd"),
        ("optimizer.options.momentum", 0.8, "0.9"),
        ("optimizer.options.nesterov", True, "None"),
        ("optimizer.options", {}, "0.9"),
        ("optimizer.freeze", (), "['vision/.*']"),
        ("optimizer.first_moment_dtype", "bfloat16", "float32"),
        ("optimizer.clip_norm", None, "1.0"),
        ("optimizer.ema_decay", 0.9, "None"),
        ("tokenizer.vocab_size", 500, "400"),
    ],
)
def test_what_the_state_is_made_of_cannot_change(key: str, value: Any, before: str) -> None:
    name = key.replace(".", "__")
    changes = {name: value}
    if name.startswith("optimizer__options__"):
        changes = {"optimizer__options": {"momentum": 0.9} | {name.split("__")[-1]: value}}
    with pytest.raises(UserError) as error:
        resume(**changes)
    message = str(error.value)
    assert message.startswith(f"config.{key}")
    assert f"runs/x was begun with {before}" in message
    assert "\n" not in message


def test_rates_and_parts_may_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    changes = {
        "optimizer__learning_rate": 1e-4,
        "optimizer__weight_decay": 0.1,
        "optimizer__clip_norm": 0.5,
        "optimizer__microbatches": 2,
        "optimizer__text__learning_rate_multiplier": 2.0,
        "optimizer__text__layer_decay": 0.9,
        "init__source": "elsewhere",
    }
    resume(**changes)
    prefix = "resuming with config."
    keys = {message.split("=")[0].removeprefix(prefix) for message in caplog.messages}
    assert keys == {name.replace("__", ".") for name in changes}
