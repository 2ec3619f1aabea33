"""The notebook runs from top to bottom, and is stored as it should be."""

import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from places import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_stored_without_outputs_and_small(stored):
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert len(code) >= 6
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000


def test_badge_opens_this_file(stored):
    path = NOTEBOOK.relative_to(REPOSITORY).as_posix()
    assert stored.cells[0].cell_type == "markdown"
    assert f"https://colab.research.google.com/github/clip-jax/clip_jax/blob/main/{path}" in (
        stored.cells[0].source
    )


def test_installs_only_where_it_must(stored):
    first = next(cell for cell in stored.cells if cell.cell_type == "code")
    lines = first.source.splitlines()
    condition = lines.index('if importlib.util.find_spec("clip_jax") is None:')
    commands = [i for i, line in enumerate(lines) if line.lstrip().startswith(("!", "%"))]
    assert commands
    assert all(i > condition and lines[i].startswith("    ") for i in commands)


@pytest.mark.slow
def test_runs_from_top_to_bottom(stored, tiny_run, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(tiny_run / "model", model)
    monkeypatch.setenv("CLIP_JAX_MODEL", str(model))
    client = NotebookClient(
        stored, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    executed = client.execute()
    outputs = [o for cell in executed.cells for o in cell.get("outputs", [])]
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "Clip('custom'" in printed
    assert "of 52 letters are right" in printed
    assert "every parameter and every embedding is equal" in printed
    assert "training" not in printed  # the model that was named is the one that is used
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
