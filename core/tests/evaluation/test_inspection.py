from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from nanozoo_core.commands import cli
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.contract import Batch, Curves, HeatMap, Inspection, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.evaluation import inspection
from nanozoo_core.training import checkpoint, runs, setup
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import train

PICTURES = (
    Curves("loss by depth", "depth", "nats", {"a": [(1, 2.5), (4, 2.0)], "b": [(4, 3.0)]}),
    HeatMap("load", "layer", "expert", [[0.25, 0.75], [0.5, 0.5]]),
)


class Peculiar(DefaultModelAdapter):
    """Calibrates a buffer at the end and shows what it was given."""

    def __init__(self) -> None:
        toy = load_adapter("toy")
        super().__init__(toy.config_class, toy.model_class)

    def build(self, config: object, vocabulary: Vocabulary) -> nn.Module:
        model = super().build(config, vocabulary)
        model.register_buffer("threshold", torch.zeros(()))
        return model

    def finalize(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        assert not model.training
        model.threshold.fill_(sum(batch.num_scored for batch in batches))

    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        assert not model.training
        assert not torch.is_grad_enabled()
        weight = sum(float(p.double().sum()) for p in model.parameters())
        num_bytes = sum(int(vocabulary.token_bytes[b.targets].sum()) for b in batches)
        metrics = {"weight": weight, "bytes": num_bytes, "threshold": float(model.threshold)}
        return Inspection(metrics, PICTURES)

    def show_sample(self, model: nn.Module, vocabulary: Vocabulary, text: str) -> str:
        return f"<{text}>"


@pytest.fixture
def finished(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (setup, runs):
        monkeypatch.setattr(module, "load_adapter", lambda _name: Peculiar())
    composed = compose_config(
        [
            *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
            *("log.tensorboard=false", f"run_dir='{tmp_path / 'run'}'", "train.ema=0.5"),
        ]
    )
    return train(resolve(composed)).folder


def test_a_run_holds_its_inspection(finished: Path) -> None:
    diagnostics = RunFolder(finished).read_result()["diagnostics"]
    stored = json.loads((finished / "inspection.json").read_text())
    assert stored["metrics"] == diagnostics
    assert stored["pictures"][1]["values"] == [[0.25, 0.75], [0.5, 0.5]]
    assert 0 < diagnostics["bytes"] < 2 * inspection.INSPECTED_BYTES
    assert (finished / "inspection.png").stat().st_size > 1000


def test_calibration_is_kept_with_the_weights(finished: Path) -> None:
    threshold = checkpoint.read_tensors(RunFolder(finished).latest_checkpoint(), "model")[
        "threshold"
    ]
    assert float(threshold) > 0
    assert RunFolder(finished).read_result()["diagnostics"]["threshold"] == float(threshold)


def test_averaged_weights_are_inspected(finished: Path) -> None:
    averaged = checkpoint.read_tensors(RunFolder(finished).latest_checkpoint(), "ema")
    last = checkpoint.read_tensors(RunFolder(finished).latest_checkpoint(), "model")
    seen = json.loads((finished / "inspection.json").read_text())["metrics"]["weight"]
    assert seen == pytest.approx(sum(float(t.double().sum()) for t in averaged.values()))
    assert seen != pytest.approx(sum(float(last[name].double().sum()) for name in averaged))


def test_a_run_is_inspected_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "inspection.json").read_text()
    (finished / "inspection.json").unlink()
    cli.main(["inspect", str(finished), "--device", "cpu"])
    assert (finished / "inspection.json").read_text() == before
    out = capsys.readouterr().out
    assert "loss by depth (nats)" in out
    assert "<word" in out  # the beginning of a validation document
    cli.main(["inspect", str(finished), "--device", "cpu", "--text", "my text"])
    assert "<my text>" in capsys.readouterr().out


def test_curves_are_a_table_with_gaps() -> None:
    lines = inspection.describe(Inspection({}, PICTURES[:1])).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["depth", "1", "4"],
        ["a", "2.5000", "2.0000"],
        ["b", "3.0000"],
    ]


def test_a_heat_map_is_a_table_of_its_rows() -> None:
    lines = inspection.describe(Inspection({"x": 0.5}, PICTURES[1:])).splitlines()
    assert lines[0] == "x: 0.5"
    assert [line.split() for line in lines[2:]] == [
        ["layer", "0", "1"],
        ["0", "0.25", "0.75"],
        ["1", "0.5", "0.5"],
    ]
