"""TensorBoard and Weights & Biases: what they get, and that they never stop or delay a run."""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.training import finish, records, sinks, tracking, trainer
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.sinks import Sink


class Service:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.rows.append((step, numbers))

    def close(self) -> None:
        self.is_closed = True


def test_a_service_gets_every_row_and_is_closed() -> None:
    service = Service()
    sink = Sink("the service", lambda: service)
    for step in range(100):
        sink.log({"loss": 1.0}, step)
    sink.close()
    assert service.rows == [(step, {"loss": 1.0}) for step in range(100)]
    assert service.is_closed


@pytest.mark.parametrize("where", ["start", "log", "close"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SystemExit("no key")])
def test_a_service_that_fails_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture, where: str, error: BaseException
) -> None:
    def fail(*_: object) -> Any:
        raise error

    service = Service()
    if where != "start":
        setattr(service, where, fail)
    sink = Sink("the service", fail if where == "start" else lambda: service)
    for step in range(1000):
        sink.log({"loss": 1.0}, step)
    sink.close()
    assert len(caplog.records) == 1
    assert "the service is left out from here on: " in caplog.text


def test_a_service_that_hangs_is_not_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.01)
    hanging, service = threading.Event(), Service()
    service.log = lambda *_: hanging.wait()  # type: ignore[assignment, method-assign, return-value]
    sink = Sink("the service", lambda: service)
    for step in range(1000):
        sink.log({"loss": 1.0}, step)
    sink.close()
    hanging.set()
    assert "the run ends without it" in caplog.text


# -- in a run -----------------------------------------------------------------------------------


@pytest.fixture
def words(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda _: None)
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("eval.bytes=300", "train.max_steps=4", f"run_dir='{tmp_path / 'run'}'"),
    ]


def events(path: Path) -> list[Any]:
    """The records of a file: length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event()
        event.ParseFromString(content[12 : 12 + length])
        found.append(event)
        content = content[16 + length :]
    return found


def test_tensorboard_has_the_rows_and_knows_where_a_run_went_on(words: list[str]) -> None:
    folder = RunFolder(
        trainer.train(resolve(compose_config([*words, "train.stop_after=2"]))).folder
    )
    (first,) = folder.path.glob("events.out.tfevents.*")
    first = first.rename(first.with_name("first"))  # another of the same second would replace it
    trainer.train(resolve(folder.read_config() | {"resume": str(folder)}))
    (second,) = folder.path.glob("events.out.tfevents.*")

    def losses(path: Path) -> list[tuple[int, float]]:
        scalars = [(e.step, v) for e in events(path) for v in e.summary.value]
        return [(step, v.simple_value) for step, v in scalars if v.tag == "loss"]

    logged = {row["step"]: row["loss"] for row in folder.read_metrics() if "loss" in row}
    assert [step for step, _ in losses(first)] == [1, 2]
    assert dict(losses(first) + losses(second)) == pytest.approx(logged)
    assert [e.step for e in events(second) if e.HasField("session_log")] == [3]


@pytest.mark.parametrize("sink", ["tensorboard", "wandb"])
def test_a_run_ends_well_when_its_sinks_have_no_room(
    words: list[str], sink: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if sink == "wandb":
        monkeypatch.setattr(trainer, "import_wandb", lambda: None)
        monkeypatch.setattr(tracking, "start_wandb", full)
        words = [*words, "log.tensorboard=false", "log.wandb=true"]
    else:
        from tensorboardX.record_writer import RecordWriter

        monkeypatch.setattr(RecordWriter, "write", full)
    with caplog.at_level(logging.WARNING):
        folder = RunFolder(trainer.train(resolve(compose_config(words))).folder)
    assert folder.is_finished
    assert caplog.text.count("is left out from here on: ") == 1
