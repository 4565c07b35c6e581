"""The notebook in ``examples`` runs from its first cell to its last, and shows what it says it shows."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_the_quickstart_runs_and_its_digests_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKRL_QUICK", "1")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises where a cell does

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for one, other in (("undisturbed", "disturbed"), ("in-process", "on a cluster")):
        first = re.search(rf"^{one} +([0-9a-f]{{64}})$", text, re.MULTILINE)
        second = re.search(rf"^{other} +([0-9a-f]{{64}})$", text, re.MULTILINE)
        assert first is not None
        assert second is not None
        assert first[1] == second[1]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("<video" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_the_quickstart_is_stored_without_outputs_in_cells_of_about_ten_lines() -> None:
    for cell in nbformat.read(QUICKSTART, as_version=4).cells:
        assert len(cell.source.splitlines()) <= 15
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
