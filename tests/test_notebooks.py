"""The notebooks: clean in git, and executed from the first cell to the last by `make notebooks`."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "build" / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks_and_the_list_names_them_all():
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (ROOT / "notebooks" / "README.md").read_text())
    assert NOTEBOOKS
    assert sorted(listed) == [path.name for path in NOTEBOOKS]


@every_notebook
def test_it_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count]
    assert not [cell.id for cell in notebook.cells if cell.metadata]
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}


@every_notebook
def test_it_has_a_title_and_a_setup_and_asserts_at_the_end(path):
    notebook = nbformat.read(path, as_version=4)
    title, setup = notebook.cells[:2]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert "import lens_lang as ll" in setup.source
    assert "LENS_LANG_QUICK" in setup.source
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    claims = [node for node in ast.walk(trees[-1]) if isinstance(node, ast.Assert)]
    assert len(claims) >= 3
    imports = (ast.Import, ast.ImportFrom)
    assert not [node for tree in trees[1:] for node in ast.walk(tree) if isinstance(node, imports)]


@every_notebook
def test_it_names_no_path_of_a_machine(path):
    places = r"(?:/work|/home|/root|/tmp|/Users|/mnt)(?![\w-])|[A-Z]:\\\\"
    assert not re.findall(places, path.read_text())


@every_notebook
def test_ruff_passes(path):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    for arguments in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        run = subprocess.run([ruff, *arguments, path], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.notebook
@every_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    settings = {
        "LENS_LANG_QUICK": "1",
        "PLOTLY_RENDERER": "plotly_mimetype",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # bars and what is said for want of them are no part of the copies
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    try:
        client.execute()
    finally:
        draw_figures(notebook)
        EXECUTED.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, EXECUTED / path.name)
    assert not [out.text for out in outputs(notebook) if out.get("name") == "stderr"]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def draw_figures(notebook):
    """Put each figure beside its data as HTML, plotly's script once, with nothing to fetch."""
    import plotly.io

    figures = [output.data for output in outputs(notebook) if PLOTLY in output.get("data", {})]
    for number, data in enumerate(figures):
        data["text/html"] = plotly.io.to_html(
            data[PLOTLY],
            include_plotlyjs=number == 0,
            include_mathjax=False,
            full_html=False,
            validate=False,
        )
