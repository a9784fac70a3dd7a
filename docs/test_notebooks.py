"""The notebooks run from top to bottom."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from nanozoo_core.training import finish

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))


def execute(path: Path) -> list[Any]:
    """The values that the code cells end with, each shown as a notebook would show it."""
    names: dict[str, Any] = {}
    values = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        where = f"{path.name}, cell {number}"
        exec(compile(ast.Module(body, []), where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
            assert repr(value)
            if hasattr(value, "_repr_html_"):
                assert value._repr_html_()
            values.append(value)
    return values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)  # which shortens the samples of a training
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    values = execute(path)
    assert values
    assert (tmp_path / "runs/compared/report.html").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_no_output(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
