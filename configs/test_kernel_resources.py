"""Every Triton kernel takes of a GPU what the table says, at the shapes of the recipes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from nanozoo_core.testing.kernel_resources import MAX_SHARED_BYTES
from nanozoo_core.testing.kernels import compiled

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "core" / "benchmarks" / "kernel_resources.py"
    spec = importlib.util.spec_from_file_location("kernel_resources", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def skip_with_another_compiler(script: ModuleType) -> None:
    made, _ = script.committed()
    if made != script.made_with():
        pytest.skip(f"the table is of {made[2:]}, here is {script.made_with()[2:]}")


def test_the_table_is_of_the_locked_compiler() -> None:
    """Else the tests below would skip it."""
    lock = (ROOT / "uv.lock").read_text(encoding="utf-8")
    locked = re.search(r'name = "triton"\nversion = "([^"]+)"', lock)
    first = (ROOT / "core/benchmarks/kernel_resources.csv").read_text(encoding="utf-8")
    assert locked is not None
    assert first.startswith(f"# triton {locked[1]}\n"), (
        "uv.lock has another triton than core/benchmarks/kernel_resources.csv; run "
        "`uv run python core/benchmarks/kernel_resources.py --write`"
    )


@compiled
def test_the_table_has_every_launch_of_the_recipes(script: ModuleType) -> None:
    found = script.rows(targets=["sm_90"], compiling=False)
    stored = [row for row in script.committed()[1] if row["target"] == "sm_90"]
    changed = script.differences(found, [{name: row[name] for name in found[0]} for row in stored])
    assert not changed, "\n".join([f"launches differ; {script.REMAKE}", *changed])


@compiled
def test_every_module_with_kernels_is_in_the_table(script: ModuleType) -> None:
    modules = {row["kernel"].rpartition(".")[0] for row in script.committed()[1]}
    sources = [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        if re.search(r"^\s*@(triton\.)?jit$", text, re.M) and re.search(r"\]\(\n", text):
            name = ".".join(path.with_suffix("").parts[path.parts.index("src") + 1 :])
            assert name.removeprefix("nanozoo_") in modules, f"{name} is in no recipe of the script"


def test_no_program_has_more_shared_memory_than_there_is(script: ModuleType) -> None:
    for row in script.committed()[1]:
        assert int(row["shared_bytes"]) <= MAX_SHARED_BYTES[row["target"]], row


def test_nothing_spills_on_sm_90(script: ModuleType) -> None:
    for row in script.committed()[1]:
        assert row["target"] != "sm_90" or row["spill_bytes"] == "0", row


@compiled
@pytest.mark.parametrize(
    ("recipes", "targets"),
    [
        (["ngpt"], ["sm_90"]),
        pytest.param(None, None, marks=pytest.mark.slow),
    ],
    ids=["one", "all"],
)
def test_kernels_take_what_the_table_says(
    script: ModuleType, recipes: list[str] | None, targets: list[str] | None
) -> None:
    skip_with_another_compiler(script)
    recipes, targets = recipes or list(script.RECIPES), targets or list(script.TARGETS)
    found = script.rows(recipes, targets)
    stored = [
        row
        for row in script.committed()[1]
        if row["recipe"] in recipes and row["target"] in targets
    ]
    changed = script.differences(found, stored)
    assert not changed, "\n".join([f"kernels changed; {script.REMAKE}", *changed])
