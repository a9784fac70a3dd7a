"""The runner of mutations, on a package of one function and one test."""

from __future__ import annotations

import pytest

from nanozoo_core.testing.mutants import main

MUTATIONS = """
[[mutation]]
name = "the sum is a difference"
file = "src/toy_package_of_mutants/__init__.py"
old = "a + b"
new = "a - b"
tests = ["tests/test_add.py"]

[[mutation]]
name = "a word that nobody tests"
file = "src/toy_package_of_mutants/__init__.py"
old = "hello"
new = "bye"
"""


@pytest.fixture
def package(tmp_path):
    source = tmp_path / "src" / "toy_package_of_mutants"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("WORD = 'hello'\ndef add(a, b):\n    return a + b\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_add.py").write_text(
        "from toy_package_of_mutants import add\ndef test_add():\n    assert add(2, 1) == 3\n"
    )
    (tmp_path / "mutations.toml").write_text(MUTATIONS)
    return tmp_path


def test_names_the_mutations_that_no_test_noticed(package, capsys):
    assert main([str(package)]) == 1
    killed, survived, summary = capsys.readouterr().out.splitlines()
    assert killed.startswith("killed")
    assert killed.endswith("the sum is a difference")
    assert survived.startswith("SURVIVED")
    assert survived.endswith("a word that nobody tests")
    assert "1 of 2" in summary
    assert main([str(package), "--only", "sum"]) == 0


def test_refuses_a_mutation_that_no_longer_fits(package):
    assert main([str(package), "--check"]) == 0
    init = package / "src" / "toy_package_of_mutants" / "__init__.py"
    init.write_text("def add(a, b):\n    return a + b or a + b\n")
    with pytest.raises(ValueError, match=r"it stands there 2 times: 'a \+ b'"):
        main([str(package), "--check"])
    init.write_text("def add(a, b):\n    return a + b\n")
    with pytest.raises(ValueError, match="a word that nobody tests"):
        main([str(package), "--check"])
