"""Packages of models that are not as announced get a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanozoo_core import registry
from nanozoo_core.commands import cli
from nanozoo_core.config import compose_config, model_config
from nanozoo_core.default_model_adapter import load_adapter, models_that_define
from nanozoo_core.errors import ConfigError

Announce = Callable[..., Path]


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announce]:
    """Writes what an installer leaves of a model's package, and the files given by name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, **files: str) -> Path:
        info = tmp_path / f"nanozoo_{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nanozoo-{name}\nVersion: 0\n")
        (info / "entry_points.txt").write_text(f"[nanozoo.models]\n{name} = nanozoo_{name}\n")
        package = tmp_path / f"nanozoo_{name}"
        for stem, text in files.items():
            package.mkdir(exist_ok=True)
            (package / f"{stem}.py").write_text(text)
        registry.model_modules.cache_clear()
        return package

    yield write
    registry.model_modules.cache_clear()


GONE = (
    r"model=ghost is announced by nanozoo-ghost, whose module nanozoo_ghost is not there.*"
    r"uv pip uninstall nanozoo-ghost"
)


def test_a_deleted_package_is_named_and_disturbs_no_other(
    announce: Announce, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("ghost")
    for use in (load_adapter, model_config, lambda name: compose_config([f"model={name}"])):
        with pytest.raises(ConfigError, match=GONE):
            use("ghost")
    cli.main(["models"])
    assert "ghost" in capsys.readouterr().out
    assert compose_config(["model=toy"])["model"] == "toy"
    # And asking all of them what they can do is no error.
    assert "ghost" not in models_that_define("to_gguf")


def test_a_package_without_what_it_must_define_is_named(announce: Announce) -> None:
    announce("bare", __init__="", config="Setings = 1\n")
    with pytest.raises(ConfigError, match=r"bare/config\.py defines no Config; end it with 'Conf"):
        load_adapter("bare")
    announce("headless", __init__="", config="class Config: pass\n")
    with pytest.raises(ConfigError, match=r"model=headless has no model\.py in .* defines Model"):
        load_adapter("headless")
    announce("odd", __init__="", config="Config = int\n", model="Model = int\n", adapter="")
    with pytest.raises(ConfigError, match=r"odd/adapter\.py defines no Adapter"):
        load_adapter("odd")
    with pytest.raises(ConfigError, match=r"odd has no conf/model/odd\.yaml in its package nanoz"):
        model_config("odd")


def test_an_error_of_the_package_s_own_stays_one(announce: Announce) -> None:
    announce("broken", __init__="", config="import module_that_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="module_that_nobody_has"):
        registry.config_class("broken")
