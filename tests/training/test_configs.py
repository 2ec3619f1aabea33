"""Every shipped configuration: it builds, it is what it was, its header says what is needed, and
its training step compiles.

After a wanted change, `GOLDEN=write pytest tests/training/test_configs.py` writes the snapshots
anew; review their diff.
"""

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import jax
import pytest
from places import REPOSITORY

from clip_jax.models.config import ClipConfig
from clip_jax.sharding import check_batch, make_mesh
from clip_jax.training.config import TrainConfig, build_config, flat_values, to_dict
from clip_jax.training.step.compiled import abstract_batch, abstract_run_state, jit_train_step

CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))
GOLDEN = Path(__file__).parent / "golden" / "configs"
HEADINGS = ("COMMAND", "EXPECTED")
LARGE = [path for path in CONFIGS if "training.recipes" in path.read_text(encoding="utf-8")]


@functools.cache
def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(path: Path, **changes: object) -> TrainConfig:
    config = module_of(path).get_config()
    if not config.data.path:
        config.data.path = "shards/{00000..41455}.tar"
    config.update_from_flattened_dict(changes)
    return build_config(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_snapshot(path: Path) -> None:
    """It differs from the defaults in what is under review; and it can be read back."""
    config = load(path)
    assert build_config(json.loads(json.dumps(to_dict(config)))) == config
    for overrides in getattr(module_of(path), "sweep", list)():
        load(path, **overrides)
    defaults = resolved(TrainConfig(), ClipConfig())
    # Without a name the architecture is that of a model elsewhere.
    ours = resolved(config, config.model.architecture() if config.model.name else ClipConfig())
    changed = {key: value for key, value in ours.items() if defaults.get(key, ...) != value}
    assert_snapshot(path.stem, changed)


def test_snapshot_of_the_defaults() -> None:
    assert_snapshot("defaults", resolved(TrainConfig(), ClipConfig()))


def resolved(config: TrainConfig, architecture: ClipConfig) -> dict[str, Any]:
    """Dotted keys of a run and of its architecture."""
    values = {"config": to_dict(config), "architecture": architecture.to_dict()}
    return flat_values(json.loads(json.dumps(values)))


def assert_snapshot(name: str, values: dict[str, Any]) -> None:
    golden = GOLDEN / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(values[key])}" for key in values)
        golden.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    assert values == json.loads(golden.read_text(encoding="utf-8"))


def test_no_snapshot_is_left_over() -> None:
    names = {path.stem for path in CONFIGS} | {"defaults"}
    assert {path.stem for path in GOLDEN.glob("*.json")} == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text.split('"""')[1]
    wanted = (*HEADINGS, "TOPOLOGY", "MEMORY", "SPEED") if path in LARGE else HEADINGS
    missing = [name for name in wanted if f"\n{name}" not in header]
    assert not missing
    assert f"--config=configs/{path.name}" in header
    assert "measured yet" not in header


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_batch_fits_the_planned_mesh(path: Path) -> None:
    """The batch divides over the chips that the header names."""
    config = load(path)
    topology = path.read_text(encoding="utf-8").split("TOPOLOGY")[1].split()
    chips = int(topology[0])
    fsdp = config.mesh.fsdp
    assert config.mesh.data == -1
    assert f"{chips // fsdp} × {fsdp}" in " ".join(topology[:16])
    mesh = jax.sharding.AbstractMesh((chips // fsdp, fsdp, 1), ("data", "fsdp", "tensor"))
    check_batch(mesh, config.batch_size, path.stem, config.optimizer.microbatches)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_memory_is_that_of_the_table(path: Path) -> None:
    """The header has the peak of a pre-flight, which was one of this very configuration."""
    header, config = path.read_text(encoding="utf-8").split('"""')[1], load(path)
    topology = header.split("TOPOLOGY")[1].split("(")[1].split(")")[0]
    table = REPOSITORY / "docs" / "preflight.json"
    report = json.loads(table.read_text(encoding="utf-8"))[f"{path.stem} {topology}"]
    assert report["fits"]
    peak, most = (report[f"{name}_bytes_per_device"] / 2**30 for name in ("peak", "hbm"))
    assert f"MEMORY    {peak:.1f} of {most:.1f} GiB a chip" in header
    assert report["global_batch_size"] == config.batch_size
    assert report["remat"] == config.model.architecture().remat
    assert report["mesh"]["fsdp"] == config.mesh.fsdp
    assert report["loss_implementation"] == config.loss_implementation


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai_vit_b32", "siglip_vit_b16", "lit_vit_b16"])
def test_training_step_compiles(name: str) -> None:
    """At full width on eight devices, with a small batch."""
    config = load(REPOSITORY / "configs" / f"{name}.py", batch_size=16)
    architecture = config.model.architecture()
    mesh = make_mesh(1, 8)
    with jax.set_mesh(mesh):
        state = abstract_run_state(config, architecture, mesh, 10)
        batch = abstract_batch(config, architecture, mesh)
        compiled = jit_train_step(config, architecture, mesh, 10).lower(state, batch).compile()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    # Parameters and moments over eight devices: 4 bytes each and 2 of the first moment.
    assert compiled.memory_analysis().argument_size_in_bytes < 1.2 * parameters * 10 / 8
