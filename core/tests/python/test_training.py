"""`nanozoo_core.train`: the sentences of the command, and a guest's manners in a process."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

import nanozoo_core
from nanozoo_core.config import compose, compose_config, resolve
from nanozoo_core.config.overrides import as_words
from nanozoo_core.errors import first_line
from nanozoo_core.python import training
from nanozoo_core.training import finish, trainer


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        "a:b/c-d+e",
        None,
        True,
        3,
        -0.5,
        1e-9,
        "text",
        "null",
        "True",
        "1e3",
        "a b'c\\",
        "${x}",
        [1, "b"],
        [],
        "",
    ],
    ids=repr,
)
def test_a_setting_of_python_is_what_the_command_line_says(value: object) -> None:
    composed = compose_config(["model=toy", *as_words({"log": {"wandb_project": value}})])
    assert composed["log"]["wandb_project"] == value
    assert type(composed["log"]["wandb_project"]) is type(value)


def test_settings_compose_as_on_the_command_line(tmp_path: Path) -> None:
    settings = {"train": {"max_steps": 7}, "optim": {"adamw": {"beta2": 0.9}}, "seed": 2}
    words = ["model=toy", "train.max_steps=7", "optim.adamw.beta2=0.9", "seed=2"]
    found = training.composed("toy", recipe=None, resume=None, settings=settings)
    assert found == resolve(compose_config(words))
    recipe = tmp_path / "mine.yml"
    recipe.write_text("defaults: [training, override model: toy, _self_]\ntrain: {max_steps: 5}\n")
    for path in (recipe, str(recipe)):
        found = training.composed(None, recipe=path, resume=None, settings={"seed": 2})
        assert (found.training.train.max_steps, found.training.seed) == (5, 2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"model": "toi"}, "did you mean 'toy'"),
        ({}, "no model is chosen"),
        ({"model": "toy", "optim": {"lr": -1}}, "optim.lr=-1.0 must be positive"),
        ({"model": "toy", "train": {"max_step": 5}}, "did you mean 'max_steps'?"),
        ({"model": "toy", "sed": 5}, "sed is not a setting"),
        ({"model": "toy", "seed": object()}, "is of type object; a setting is a number"),
        ({"recipe": "nowhere.yaml"}, "--config=nowhere.yaml is not a file"),
        ({"resume": "nowhere"}, "nowhere is not a run folder"),
        ({"resume": "auto"}, "resume=auto needs --model NAME"),
        ({"model": "toy", "device": "cuda"}, "device=cuda is not available"),
    ],
)
def test_errors_are_the_sentences_of_the_command(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(nanozoo_core.NanozooError) as caught:
        nanozoo_core.train(**arguments)
    assert part in first_line(caught.value)


def test_a_run_goes_on(small: dict[str, Any]) -> None:
    halfway = small | {"train": {"max_steps": 3, "stop_after": 2}}
    half = nanozoo_core.train("toy", **halfway)
    assert (half.val_bpb, half.signal) == (None, None)
    done = nanozoo_core.train("toy", resume="auto")
    assert done.folder == half.folder
    assert nanozoo_core.load_run(done.folder, device="cpu").result()["steps"] == 3
    anew = nanozoo_core.train("toy", resume="auto", resume_data="accept", **small)
    assert anew.folder != half.folder
    with pytest.raises(nanozoo_core.CheckpointError, match="is a run of model toy, not gpt2"):
        nanozoo_core.train("gpt2", resume=half.folder)


def test_ctrl_c_writes_a_checkpoint_and_interrupts(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer.Trainer.one_step

    def interrupted(self: trainer.Trainer) -> object:
        signal.raise_signal(signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(trainer.Trainer, "one_step", interrupted)
    # Where a shell has begun these tests in the background they ignore it.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            nanozoo_core.train("toy", run_dir="mine", **small)
    finally:
        signal.signal(signal.SIGINT, ours)
    assert nanozoo_core.load_run("mine", device="cpu").loaded.state.step == 1


def test_trains_in_a_thread_and_only_once_at_a_time(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal can be caught there; a second training would disturb the first one's dropout."""
    plain = trainer.Trainer.one_step
    refused: list[str] = []

    def step_and_try_another(self: trainer.Trainer) -> object:
        if not refused:
            with pytest.raises(nanozoo_core.NanozooError) as caught:
                nanozoo_core.train("toy", run_dir="second", **small)
            refused.append(str(caught.value))
        return plain(self)

    monkeypatch.setattr(trainer.Trainer, "one_step", step_and_try_another)
    found: list[nanozoo_core.Result] = []
    thread = threading.Thread(
        target=lambda: found.append(nanozoo_core.train("toy", run_dir="first", **small))
    )
    thread.start()
    thread.join()
    assert found[0].val_bpb is not None
    assert "another training runs in this process" in refused[0]
    assert not Path("second").exists()


def test_a_process_with_an_event_loop_is_left_as_it_was(small: dict[str, Any]) -> None:
    """As in a notebook: random numbers, handlers of signals, the backend of pictures and Hydra."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    async def cell() -> nanozoo_core.Result:
        return nanozoo_core.train("toy", **small)

    mpl.use("svg")
    handler = signal.getsignal(signal.SIGINT)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with initialize_config_module("nanozoo_core.config", version_base=None):
        before = GlobalHydra.instance().hydra
        assert asyncio.run(cell()).val_bpb is not None
        assert GlobalHydra.instance().hydra is before
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert signal.getsignal(signal.SIGINT) is handler
    assert mpl.get_backend() == "svg"


def test_composing_leaves_no_hydra_behind() -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose.compose_config(["model=toy"])
    assert not GlobalHydra.instance().is_initialized()
