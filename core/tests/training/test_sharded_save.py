"""Checkpoints in shards: what every rank writes beside the training, and who can read it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from nanozoo_core import tensor_files
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.errors import CheckpointError, NonFiniteError
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.muon import Muon
from nanozoo_core.tensor_files import Place
from nanozoo_core.testing.processes import train_in_processes
from nanozoo_core.training import checkpoint
from nanozoo_core.training.integrity import DamagedCheckpointError
from nanozoo_core.training.run_folder import RunFolder, read_state
from nanozoo_core.training.sharded_save import should_shard
from nanozoo_core.training.stored_tensors import stored_tensors
from nanozoo_core.training.trainer import Trainer, train

STEMS = ("model", "optimizer", "ema")
SHAPE = ("train.max_steps=6", "checkpoint.every=2", "checkpoint.keep=9", "train.ema=0.5")


def settings(corpus: Path, folder: Path, *changes: str) -> list[str]:
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("data.tokenizer=bytes", "log.tensorboard=false", "eval.bytes=300", "eval.every=0"),
        *(*SHAPE, "optim.adamw.every=4", f"run_dir='{folder}'", *changes),
    ]


def begin(corpus: Path, folder: Path, *changes: str) -> RunFolder:
    train(resolve(compose_config(settings(corpus, folder, *changes))))
    return RunFolder(folder)


def goes_on(
    run: RunFolder, target: Path, step: int, *changes: str, processes: int = 1
) -> RunFolder:
    """A copy of a run that goes on from a step."""
    shutil.copytree(run.path, target)
    (target / "result.json").unlink()
    stored = RunFolder(target).read_config()
    if processes > 1:
        words = settings(Path(stored["data"]["path"]), target)
        words = [word for word in words if not word.startswith("run_dir=")]
        words += ["distributed.strategy=fsdp", f"resume='{target}@{step}'", *changes]
        train_in_processes(words, log=target.parent / "log", num_processes=processes)
    else:
        stored["resume"] = f"{target}@{step}"
        stored["distributed"]["strategy"] = "ddp"
        train(resolve(stored))
    return RunFolder(target)


def contents(run: RunFolder, step: int) -> dict[str, dict[str, Tensor]]:
    return {stem: checkpoint.read_tensors(run.checkpoint(step), stem) for stem in STEMS}


def assert_equal(one: Mapping[str, Mapping[str, Tensor]], two: object) -> None:
    assert isinstance(two, Mapping)
    for stem in STEMS:
        assert one[stem].keys() == two[stem].keys()
        for name, tensor in one[stem].items():
            assert tensor.dtype == two[stem][name].dtype
            torch.testing.assert_close(two[stem][name], tensor, rtol=0, atol=0)


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Two ranks under fsdp, once with shards and once without; and one process, likewise."""
    folder = tmp_path_factory.mktemp("runs")
    for name, setting in (("shards", "auto"), ("whole", "false")):
        words = settings(corpus, folder / name, "distributed.strategy=fsdp")
        words.append(f"checkpoint.sharded={setting}")
        train_in_processes(words, log=folder / f"{name}-log", num_processes=2)
        begin(corpus, folder / f"alone-{name}", f"checkpoint.sharded={setting == 'auto'}")
    names = ("shards", "whole", "alone-shards", "alone-whole")
    return {name: RunFolder(folder / name) for name in names}


@pytest.mark.parametrize("name", ["", "alone-"], ids=["fsdp", "alone"])
def test_shards_hold_what_whole_files_hold(runs: dict[str, RunFolder], name: str) -> None:
    shards, whole = runs[f"{name}shards"], runs[f"{name}whole"]
    assert shards.checkpoint_steps() == whole.checkpoint_steps() == [2, 4, 6]
    for step in (2, 4, 6):
        assert_equal(contents(shards, step), contents(whole, step))
        checkpoint.check_whole(shards.checkpoint(step), STEMS)
    assert any("pending_gradient" in key for key in contents(shards, 2)["optimizer"])
    assert shards.read_result()["val_bpb"] == whole.read_result()["val_bpb"]


def test_every_rank_writes_a_part_of_each_kind(runs: dict[str, RunFolder]) -> None:
    path = runs["shards"].checkpoint(4)
    assert sorted(p.name for p in path.iterdir()) == ["ema", "model", "optimizer", "state.json"]
    assert not runs["shards"].checkpoints_path.joinpath("model.safetensors").exists()
    sizes = {
        stem: [
            sum(p.stat().st_size for p in (path / stem).glob(f"shard-0000{rank}-*"))
            for rank in (1, 2)
        ]
        for stem in STEMS
    }
    for stem, (one, two) in sizes.items():
        whole = (runs["whole"].checkpoint(4) / f"{stem}.safetensors").stat().st_size
        assert 0.25 * whole < two <= 1.1 * one, stem
        assert one < 0.8 * whole, stem


@pytest.mark.parametrize("stem", STEMS)
def test_torch_reads_the_shards(runs: dict[str, RunFolder], stem: str) -> None:
    expected = checkpoint.read_tensors(runs["whole"].checkpoint(4), stem)
    found = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    reader = dcp.HuggingFaceStorageReader(str(runs["shards"].checkpoint(4) / stem))
    dcp.load(found, storage_reader=reader, no_dist=True)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_two_ranks_go_on_from_shards_and_from_whole_files(
    runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    """To the bits of the run that was not stopped, and from each form into the other."""
    expected = contents(runs["whole"], 6)
    sharded = goes_on(runs["whole"], tmp_path / "a", 2, "checkpoint.sharded=true", processes=2)
    assert (sharded.checkpoint(6) / "model").is_dir()
    assert_equal(contents(sharded, 6), expected)
    whole = goes_on(runs["shards"], tmp_path / "b", 2, "checkpoint.sharded=false", processes=2)
    assert (whole.checkpoint(6) / "model.safetensors").is_file()
    assert_equal(contents(whole, 6), expected)


@pytest.mark.parametrize("name", ["", "alone-"], ids=["fsdp", "alone"])
def test_one_process_goes_on_from_the_shards_of_any_number(
    runs: dict[str, RunFolder], tmp_path: Path, name: str
) -> None:
    found = [
        contents(goes_on(runs[f"{name}{form}"], tmp_path / form, 2), 6)
        for form in ("shards", "whole")
    ]
    assert_equal(*found)


def test_one_file_takes_one_block_of_each_tensor(runs: dict[str, RunFolder]) -> None:
    """As torch's format asks: Muon keeps a matrix for each part of what is split."""
    names = sorted(p.name for p in (runs["alone-shards"].checkpoint(4) / "optimizer").iterdir())
    count = len(names)
    assert count > 1
    assert names == [
        f"shard-00001-model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, 1 + count)
    ]


def test_the_end_of_a_run_renews_its_shards(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(runs["alone-shards"].path, tmp_path / "copy")))
    path = copy.checkpoint(6)
    before, state = contents(copy, 6), read_state(path)
    name = min(before["model"])
    changed = {name: before["model"][name] + 1}
    state.tokens = 77
    checkpoint.renew(copy, state, changed, keep=9)
    checkpoint.check_whole(path, STEMS)
    assert read_state(path).tokens == 77
    assert_equal(contents(copy, 6), before | {"model": before["model"] | changed})


# -- what can go wrong ----------------------------------------------------------------------------


@pytest.fixture
def copy(runs: dict[str, RunFolder], tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(runs["shards"].path, tmp_path / "copy")))


def shard_of(run: RunFolder, stem: str = "ema") -> Path:
    return sorted((run.checkpoint(6) / stem).iterdir())[-1]


def test_a_missing_shard_is_named(copy: RunFolder) -> None:
    file = shard_of(copy)
    file.unlink()
    sentence = rf"has no ema/{file.name}"
    with pytest.raises(DamagedCheckpointError, match=sentence):
        checkpoint.check_whole(copy.checkpoint(6), STEMS)
    assert checkpoint.newest_whole(copy, STEMS) == 4
    with pytest.raises(DamagedCheckpointError, match=r"lacks a part of .*: a shard is missing"):
        checkpoint.read_tensors(copy.checkpoint(6), "ema")
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    with pytest.raises(DamagedCheckpointError, match="it has no shards in ema"):
        checkpoint.read_tensors(copy.checkpoint(6), "ema")


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_truncated_shard_is_named(copy: RunFolder, size: int) -> None:
    file = shard_of(copy)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DamagedCheckpointError, match=rf"{file.name} is truncated or damaged"):
        checkpoint.check_whole(copy.checkpoint(6), STEMS)


def test_a_changed_shard_is_named(copy: RunFolder) -> None:
    file = shard_of(copy, "optimizer")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=rf"{file.name} is not as it was written"):
        checkpoint.check_whole(copy.checkpoint(6), STEMS)


@pytest.mark.parametrize("offsets", ["[]", "{}", '{"x": 1}', "{"])
def test_a_shard_that_says_nonsense_of_its_blocks_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: str
) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "shard-00001-model-00001-of-00001.safetensors"
    monkeypatch.setattr(tensor_files.json, "dumps", wrong_offsets(offsets))
    tensor_files.write_tensors(file, {"w": torch.ones(2, 3)}, {"w": Place((0, 0), (2, 3))})
    with pytest.raises(DamagedCheckpointError, match="is truncated or damaged"):
        checkpoint.read_tensors(tmp_path, "model")


def wrong_offsets(offsets: str) -> object:
    plain = tensor_files.json.dumps
    return lambda value, **options: (
        offsets if "w" in value and "saved_offsets" in value["w"] else plain(value, **options)
    )


def test_any_block_is_read_across_shards(tmp_path: Path) -> None:
    whole = torch.arange(60.0).view(5, 4, 3)
    (tmp_path / "model").mkdir()
    for number, (rows, columns) in enumerate(
        [((0, 2), (0, 4)), ((2, 5), (0, 1)), ((2, 5), (1, 4))]
    ):
        block = whole[slice(*rows), slice(*columns)]
        name = f"shard-{number + 1:05d}-model-00001-of-00001.safetensors"
        places = {"w": Place((rows[0], columns[0], 0), (5, 4, 3))}
        tensor_files.write_tensors(tmp_path / "model" / name, {"w": block}, places)
    with stored_tensors(tmp_path, "model") as stored:
        assert stored["w"].shape == (5, 4, 3)
        for place in (
            (slice(0, 5), slice(0, 4), slice(0, 3)),
            (slice(1, 3), slice(0, 2), slice(1, 3)),
            (slice(3, 4), slice(2, 4), slice(0, 1)),
        ):
            torch.testing.assert_close(stored["w"][place], whole[place], rtol=0, atol=0)


def make_trainer(corpus: Path, folder: Path, *changes: str) -> Trainer:
    words = settings(corpus, folder, "checkpoint.sharded=true", *changes)
    return Trainer(resolve(compose_config(words)), Ranks())


def test_training_goes_on_while_shards_are_written(
    runs: dict[str, RunFolder], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is as slow as two steps; what it holds then are the weights of before them."""
    trainer = make_trainer(corpus, tmp_path / "run")
    later = threading.Event()
    plain, step = tensor_files.write_tensors, Trainer.one_step
    begun: list[int] = []

    def slow(*given: object) -> str:
        begun.append(trainer.state.step)
        assert later.wait(30)
        return plain(*given)  # type: ignore[arg-type]

    def one_step(self: Trainer) -> object:
        if self.state.step == 3:
            assert begun[0] == 2
            assert trainer.folder.checkpoint_steps() == []
            later.set()
        return step(self)

    monkeypatch.setattr(tensor_files, "write_tensors", slow)
    monkeypatch.setattr(Trainer, "one_step", one_step)
    trainer.run([])
    trainer.claim.release()
    for number in (2, 4, 6):
        assert_equal(contents(trainer.folder, number), contents(runs["alone-whole"], number))
        assert read_state(trainer.folder.checkpoint(number)).step == number


def test_a_full_disk_leaves_the_checkpoint_before(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(corpus, tmp_path / "run")
    plain = tensor_files.write_tensors

    def full(path: Path, *given: object) -> str:
        if path.parents[1].name.endswith("000004") and path.parent.name == "ema":
            raise OSError(28, "No space left on device")
        return plain(path, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(tensor_files, "write_tensors", full)
    sentence = "the checkpoint of step 4 cannot be written to .*: No space left on device"
    with pytest.raises(CheckpointError, match=sentence):
        trainer.run([])
    trainer.claim.release()
    assert [path.name for path in trainer.folder.checkpoints_path.iterdir()] == ["step_000002"]
    checkpoint.check_whole(trainer.folder.checkpoint(2), STEMS)


def test_weights_that_are_not_finite_are_not_saved(corpus: Path, tmp_path: Path) -> None:
    trainer = make_trainer(corpus, tmp_path / "run")
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[3] = torch.nan
    with pytest.raises(NonFiniteError, match="the model is not finite: 1 of the"):
        trainer._save()
    trainer.claim.release()
    assert not trainer.folder.checkpoints_path.exists()


def test_a_killed_save_leaves_nothing_that_counts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(corpus, tmp_path / "run")
    monkeypatch.setattr(trainer, "_finish_saving", lambda: None)  # as if the process ended here
    trainer.one_step()
    trainer._save()
    assert trainer.saving is not None
    trainer.saving._written.result()
    assert trainer.folder.checkpoint_steps() == []
    trainer.claim.release()
    again = begin(corpus, tmp_path / "run", "checkpoint.sharded=true")
    assert [path.name for path in sorted(again.checkpoints_path.iterdir())] == [
        "step_000002", "step_000004", "step_000006"
    ]  # fmt: skip


def test_ranks_that_share_no_folder_are_told(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(corpus, tmp_path / "run")
    plain = Ranks.gather
    foreign = {"model/shard-00002-model-00001-of-00001.safetensors": "0" * 64}
    monkeypatch.setattr(
        Ranks, "gather", lambda self, value: [*plain(self, value), foreign if value else value]
    )
    with pytest.raises(CheckpointError, match=r"shard-00002.* all ranks must write to one folder"):
        trainer._save()
    trainer.claim.release()
    assert list(trainer.folder.checkpoints_path.iterdir()) == []


def test_auto_writes_shards_where_the_model_lies_in_shards() -> None:
    two = Ranks(0, 2)
    assert should_shard("auto", "fsdp", two)
    assert not should_shard("auto", "ddp", two)
    assert not should_shard("auto", "fsdp", Ranks())
    assert should_shard(True, "ddp", Ranks())
    assert not should_shard(False, "fsdp", two)


def test_muon_reads_the_state_of_each_matrix_from_its_own_block(
    runs: dict[str, RunFolder], corpus: Path, tmp_path: Path
) -> None:
    path = runs["shards"].checkpoint(4)
    trainer = make_trainer(corpus, tmp_path / "run")
    muon = trainer.optimizers.muon
    assert isinstance(muon, Muon)
    expected = {
        key: value
        for key, value in checkpoint.read_tensors(path, "optimizer").items()
        if key in muon.full_state()
    }
    with stored_tensors(path, "optimizer") as stored:
        trainer.optimizers.load_full_state(stored)
    trainer.claim.release()
    found = muon.full_state()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)
