"""Configurations: a wrong key, type or value is named; types are adapted."""

import pytest
from tiny import tiny_config

from clip_jax.errors import UserError
from clip_jax.training.config import (
    TrainConfig,
    build_config,
    default_config,
)


def test_default_config_holds_every_field_and_is_locked() -> None:
    config = default_config()
    assert set(config) == set(TrainConfig.__dataclass_fields__)
    with pytest.raises((AttributeError, KeyError), match="learning_rat"):
        config.optimizer.learning_rat = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"learning_rat": 1}}, "did you mean 'config.optimizer.learning_rate'"),
        ({"stepz": 1}, "did you mean 'config.steps'"),
        ({"model": {"name": "ViT-B-32", "image_siz": 1}}, "did you mean 'image_size'"),
        ({"model": {"name": "ViT-B-33"}}, "did you mean 'ViT-B-32'"),
        ({"model": {"name": "ViT-B-32", "vision": {"heads": 7}}}, "vision.heads=7"),
        ({"loss": "hinge"}, "config.loss='hinge': choose one of 'softmax', 'sigmoid'"),
        ({"batch_size": "many"}, "config.batch_size='many': must be a whole number"),
        ({"batch_size": 1.5}, "config.batch_size=1.5"),
        ({"batch_size": 0}, "config.batch_size=0: must be greater than 0"),
        ({"batch_size": True}, "config.batch_size=True"),
        ({"batch_size": 1}, "config.batch_size=1: softmax learns to tell"),
        ({"batch_size": 1, "loss": "sigmoid"}, "config.batch_size=1: sigmoid learns to tell"),
        ({"seed": None}, "config.seed=None"),
        ({"steps": None}, "give one of them"),
        ({"steps": None, "epochs": float("inf")}, "config.epochs=inf"),
        ({"optimizer": {"learning_rate": float("nan")}}, "config.optimizer.learning_rate=nan"),
        (
            {"optimizer": {"warmup_steps": -5}},
            "config.optimizer.warmup_steps=-5: must be at",
        ),
        ({"optimizer": {"ema_decay": 1.5}}, "config.optimizer.ema_decay=1.5: must be 0 to 1"),
        ({"data": {"path": "x", "max_bad_fraction": -1}}, "config.data.max_bad_fraction=-1"),
        ({"augmentation": {"zoom": ("a", "b")}}, "config.augmentation"),
        ({"model": {"name": "ViT-B-32", "vision": {"width": 0}}}, "vision.width=0"),
        ({"model": {"name": "ViT-B-32", "image_mean": (0.5, 0.5)}}, "image_mean"),
        ({"data": {"path": ""}}, "config.data.path=''"),
        ({"data": 3}, "config.data=3"),
        ({"mesh": {"data": 0}}, "config.mesh.data=0"),
        ({"batch_size": 30, "optimizer": {"microbatches": 4}}, "config.optimizer.microbatches=4"),
        ({"optimizer": {"vision": {"layer_dekay": 0.9}}}, "config.optimizer.vision.layer_decay"),
        ({"optimizer": {"text": {"layer_decay": 1.1}}}, "config.optimizer.text.layer_decay=1.1"),
        ({"optimizer": {"text": {"weight_decay": -1}}}, "config.optimizer.text.weight_decay=-1"),
        (
            {"optimizer": {"vision": {"learning_rate_multiplier": 0}}},
            "config.optimizer.vision.learning_rate_multiplier=0.0: must be greater than 0",
        ),
        ({"optimizer": {"freeze": ("vision/(",)}}, "config.optimizer.freeze: 'vision/(' is no reg"),
        ({"optimizer": {"freeze": "vision/.*"}}, "config.optimizer.freeze='vision/.*'"),
        ({"optimizer": {"freeze": (7,)}}, "config.optimizer.freeze[0]=7: must be a text"),
        ({"augmentation": {"zoom": (1.0,)}}, "config.augmentation.zoom=(1.0,): must have 2 items"),
        ({"steps": float("inf")}, "config.steps=inf: must be a whole number or None"),
        ({"evaluations": ({"data": "x"},)}, "config.evaluations[0].data='x': must be a group"),
        ({"evaluations": ("letters",)}, "config.evaluations[0]='letters': must be a group of keys"),
        ({"evaluations": ({"tusk": "x"},)}, "did you mean 'config.evaluations[0].task'"),
        ({"evaluations": ({"every_steps": 0},)}, "config.evaluations[0].every_steps=0: must be gr"),
        ({"evaluations": ({"data": {"path": 3}},)}, "config.evaluations[0].data.path=3: must be"),
        ({"optimizer": {"options": "momentum"}}, "config.optimizer.options='momentum'"),
        ({"init": {"source": "x", "only": ("*",)}}, "config.init.only: '*' is no regular expr"),
    ],
)
def test_mistakes_are_named(changes: dict, message: str) -> None:
    values = {"data": {"path": "somewhere"}, "steps": 10} | changes
    with pytest.raises(UserError) as error:
        build_config(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("parts", [1, 2])
def test_two_pairs_are_enough(loss: str, parts: int) -> None:
    """Micro-batches of one pair are fine: the loss sees the whole batch."""
    values = {"data": {"path": "x"}, "steps": 1, "batch_size": 2, "loss": loss}
    assert build_config(values | {"optimizer": {"microbatches": parts}}).batch_size == 2


def test_types_are_adapted() -> None:
    config = build_config(
        {
            "data": {"path": "x"},
            "steps": 10.0,
            "optimizer": {"learning_rate": 1, "clip_norm": None},
            "augmentation": {"zoom": [0.5, 2]},
            "model": {"name": "RN50", "vision": {"layers": [1, 1, 1, 1]}, "image_size": 64},
        }
    )
    assert (config.steps, type(config.steps)) == (10, int)
    assert config.optimizer.learning_rate == 1.0
    assert config.optimizer.clip_norm is None
    assert config.augmentation.zoom == (0.5, 2.0)
    assert config.model.architecture().vision.layers == (1, 1, 1, 1)


def test_assignments_as_flags_make_them() -> None:
    config = tiny_config(optimizer__clip_norm=None, checkpoint__every_minutes=None)
    assert build_config(config).optimizer.clip_norm is None
    config.optimizer.clip_norm = 0.5
    config.model.vision.layers = 2
    built = build_config(config)
    assert built.optimizer.clip_norm == 0.5
    assert built.model.architecture().vision.layers == 2


def test_the_largest_batch_of_an_evaluation() -> None:
    values = {"data": {"path": "x"}, "steps": 1}
    assert build_config(values).evaluation_batch_size == 256
    evaluations = [{"batch_size": 8}, {"batch_size": 64}]
    assert build_config({**values, "evaluations": evaluations}).evaluation_batch_size == 64
