from __future__ import annotations

from pathlib import Path

import pytest

from nanozoo_core.comparing.bench.request import parse
from nanozoo_core.errors import CheckpointError, ConfigError


def test_every_model_does_every_task_with_its_own_settings() -> None:
    request = parse(
        [
            *("models=toy,wide:toy", "wide.model_cfg.model_dim=32", "train.batch_tokens=64"),
            *("what=decode,train", "seconds=4", "rounds=2", "decode_tokens=7", "folder=here"),
        ]
    )
    shared = ("model=toy", "train.batch_tokens=64")
    found = [(one.label, one.task, one.arguments) for one in request.assignments]
    assert found == [
        ("toy", "decode", shared),
        ("wide", "decode", (*shared, "model_cfg.model_dim=32")),
        ("toy", "train", shared),
        ("wide", "train", (*shared, "model_cfg.model_dim=32")),
    ]
    assert {one.decode_tokens for one in request.assignments} == {7}
    assert (request.tasks, request.seconds, request.rounds) == (("decode", "train"), 4.0, 2)
    assert request.folder == Path("here")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to measure: give models=A,B"),
        (["models=toy", "fast"], "'fast' is not key=value"),
        (["models=toy", "what=trian"], "what=trian must be of train, decode; did you mean 'train'"),
        (["models=toy", "what="], "what= must name one of train, decode"),
        (["models=toy", "seconds=soon"], "seconds=soon must be a positive number"),
        (["models=toy", "seconds=inf"], "seconds=inf must be a positive number"),
        (["models=toy", "rounds=0"], "rounds=0 must be a whole number of at least 1"),
        (["models=toy", "decode_tokens=x"], "decode_tokens=x must be a whole number"),
        (["models=toy", "peak_flops=-1"], "peak_flops=-1 must be a positive number"),
        (["models=toy,toy"], "'toy' stands there twice"),
        (["models=toy", "run_dir=x"], "bench.json lies in folder="),
        (["models=toy", "round=3"], "did you mean 'rounds'?"),
        (["models=toi"], "toi: model=toi is not installed; did you mean 'toy'"),
        (["models=toy,b:toy", "b.model_cfg.num_heads=3"], "b: model_cfg.num_heads=3 does not"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words)
    assert part in str(caught.value)


def test_several_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["models=toy", "what=nothing", "rounds=0", "seconds=0"])
    assert len(caught.value.problems) == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        parse([f"models=old:{tmp_path}"])
