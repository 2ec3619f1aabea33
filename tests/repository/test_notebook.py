"""The notebooks run from top to bottom, and are stored as they should be."""

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from places import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


@pytest.fixture
def stored(notebook):
    return nbformat.read(notebook, as_version=4)


def test_stored_without_outputs_and_small(notebook, stored):
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert len(code) >= 6
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.stat().st_size < 20_000


def test_badge_opens_this_file(notebook, stored):
    path = notebook.relative_to(REPOSITORY).as_posix()
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


@pytest.fixture
def executed(tiny_run, tmp_path, monkeypatch):
    """A function: name -> (what is printed, number of pictures), on the tiny model."""

    def execute(name):
        model = tmp_path / "model"
        shutil.copytree(tiny_run / "model", model)
        monkeypatch.setenv("CLIP_JAX_MODEL", str(model))
        client = NotebookClient(
            nbformat.read(REPOSITORY / "notebooks" / name, as_version=4),
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        )
        outputs = [o for cell in client.execute().cells for o in cell.get("outputs", [])]
        printed = "".join(
            o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
        return printed, len([o for o in outputs if "image/png" in o.get("data", {})])

    return execute


@pytest.mark.slow
def test_quickstart(executed):
    printed, pictures = executed("quickstart.ipynb")
    assert "Clip('custom'" in printed
    assert "of 52 letters are right" in printed
    assert "every parameter and every embedding is equal" in printed
    assert "training" not in printed  # the model that was named is the one that is used
    assert pictures == 3


@pytest.mark.slow
def test_adapt(executed):
    printed, pictures = executed("adapt.ipynb")
    lines = printed.splitlines()
    for when in ("before", "after"):  # the tiny model has learned too little to tell more
        assert any(re.match(rf"{when}: \d+% of the test images are right", line) for line in lines)
    assert sum(" -> latin capital letter" in line.lower() for line in lines) == 10
    assert pictures == 2
