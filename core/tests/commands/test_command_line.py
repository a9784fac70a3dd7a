"""Bad input: one sentence on stderr, exit status not 0, no traceback, nothing written."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanozoo_core.commands import cli, train
from nanozoo_core.commands.interactive import continue_lines
from nanozoo_core.config.compose import normalise_override
from nanozoo_core.config.overrides import quoted
from nanozoo_core.machine.terminal import harmless
from nanozoo_core.training import trainer
from nanozoo_core.training.run_folder import LOCK_NAME, RunFolder


@dataclass
class Outcome:
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `train` (or `nanozoo` with program="nanozoo") in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, program: str = "train") -> Outcome:
        words = [str(a) for a in arguments]
        monkeypatch.setattr(sys, "argv", [program, *words])
        status = 0
        try:
            train.main() if program == "train" else cli.main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


def assert_refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.status == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert not Path("runs").exists()


@pytest.fixture
def toy(corpus: Path) -> list[object]:
    """Arguments of a working training on the small corpus."""
    return ["--model", "toy", "data.corpus=text", f"data.path='{corpus}'", "log.tensorboard=false"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "toi"], ["model=toi", "did you mean 'toy'", "installed models: "]),
        (["model=toy,nope", "-m"], ["model=nope", "installed models"]),
        ([], ["no model is chosen", "--model NAME", "toy"]),
        (["--model"], ["--model needs a value"]),
        (["--model", "toy", "max_steps"], ["'max_steps' is neither a flag nor an override"]),
        (["--model", "toy", "optim.learnrate=1"], ["optim.learnrate is not a setting"]),
        (["--model", "toy", "train.max_step=5"], ["did you mean 'max_steps'?"]),
        (["--model", "toy", "+train.max_step=5"], ["train.max_step is not a setting"]),
        (["--model", "toy", "++train.spare=5"], ["train.spare is not a setting"]),
        (["--model", "toy", "+spare=5"], ["spare is not a setting"]),
        (["--model", "toy", "sed=5"], ["sed is not a setting", "'seed'"]),
        (["--model", "toy", "model_cfg.n_layers=5"], ["model_cfg.num_layers here"]),
        (["--model", "toy", "model_cfg.num_layer=5"], ["of toy; did you mean 'num_layers'?"]),
        (["--model", "toy", "train.max_steps=many"], ["train.max_steps=many must be an integer"]),
        (["--model", "toy", "optim.lr=-1"], ["optim.lr=-1.0 must be positive"]),
        (["--model", "toy", "model_cfg.num_heads=3"], ["does not divide", "1, 2, 4, 8, 16"]),
        (["--model", "toy", "train.max_steps=null"], ["no budget is set"]),
        (["--model", "toy", "data.seq_len=[1"], ["data.seq_len"]),
        (["--config", "nowhere.yaml"], ["--config=nowhere.yaml is not a file"]),
        (["--model", "toy", "resume=nowhere"], ["nowhere is not a run folder"]),
        (["--model", "toy", "data.corpus=stdlb"], ["data.corpus=stdlb"]),
        (["--model", "toy", "data.corpus=text", "data.path=nowhere"], ["data.path", "nowhere"]),
        (["--model", "toy", "device=cuda"], ["device=cuda is not available"]),
        (["--model", "toy", "train.batch_tokens=8"], ["train.batch_tokens=8", "seq_len=32"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_bad_input_is_one_sentence(run: Run, arguments: list[str], parts: list[str]) -> None:
    assert_refused(run(*arguments), *parts)


def test_several_problems_are_reported_at_once(run: Run) -> None:
    outcome = run("--model", "toy", "optim.lr=-1", "train.spare=1", "model_cfg.num_heads=3")
    assert outcome.status == 1
    assert len(outcome.err.strip().splitlines()) == 3


def test_recipe_with_an_unknown_model_lists_the_installed(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("defaults: [training, override model: nope, _self_]\n")
    assert_refused(run("--hydra_model_cfg=r.yaml"), "model=nope", "installed models: ")


def test_window_longer_than_the_data(run: Run, toy: list[object]) -> None:
    assert_refused(
        run(*toy, "data.seq_len=1000000", "train.batch_tokens=1000000"), "data.seq_len=1000000"
    )


@pytest.mark.parametrize(
    ("content", "part"), [(b"", "empty"), (b"ab\0cd" * 99, "binary"), (b"caf\xe9 " * 99, "UTF-8")]
)
def test_unusable_text_file(run: Run, tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    outcome = run("--model", "toy", "data.corpus=text", f"data.path='{path}'", "data.tokenizer=bpe")
    assert_refused(outcome, "text.txt", part)


def test_run_dir_in_use_is_left_alone(run: Run, toy: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    outcome = run(*toy, f"run_dir='{folder}'")
    assert_refused(outcome, "is not empty", "resume=")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_run_dir_that_cannot_be_written(run: Run, toy: list[object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(run(*toy, f"run_dir='{tmp_path / 'file' / 'run'}'"), "cannot be written")


def test_a_value_with_an_equals_sign_is_told_how_to_quote(run: Run, toy: list[object]) -> None:
    word = "log.wandb_project=x=y"
    assert_refused(run(*toy, word), f"'{word}' cannot be read", "log.wandb_project=\"'x=y'\"")


def test_odd_characters_in_paths_train_and_resume(
    run: Run, toy: list[object], corpus: Path, tmp_path: Path
) -> None:
    """`${x}` is text here, and = and @ are no grammar."""
    texts = tmp_path / "a ${x}=\\${y}"
    texts.symlink_to(corpus)
    folder = tmp_path / "run ${z}@2=3"
    words = [f"data.path={quoted(str(texts))}", f"run_dir={quoted(str(folder))}"]
    words += ["train.max_steps=4", "eval.bytes=300"]
    assert run(*toy, *words, "train.stop_after=2").status == 0
    assert RunFolder(folder).read_config()["data"]["path"] == str(texts)
    assert run(f"resume={quoted(str(folder))}").status == 0
    assert RunFolder(folder).read_result()["steps"] == 4


def test_resuming_by_command(run: Run, toy: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    words = [*toy, "eval.bytes=300", "train.max_steps=4", "checkpoint.every=1"]
    assert run(*words, f"run_dir='{folder}'", "train.stop_after=3").status == 0
    outcome = run(f"resume={folder}", "train.batch_tokens=64")
    assert_refused(outcome, "train.batch_tokens=64 differs from the run in", "which has 128")
    assert_refused(run(f"resume={folder}", "--config", "x.yaml"), "--config=x.yaml has no effect")
    assert_refused(run(f"resume={folder}", "run_dir=other"), "run_dir=other has no effect")
    assert run(f"resume={folder}@2", "optim.lr=0.001").status == 0
    assert RunFolder(folder).read_config()["optim"]["lr"] == 0.001
    assert RunFolder(folder).read_result()["steps"] == 4


@pytest.mark.parametrize(("times", "said"), [(1, "checkpoint written"), (2, "stopped at once")])
def test_interrupts_end_with_a_sentence(
    run: Run,
    toy: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    said: str,
) -> None:
    plain = trainer.Trainer.one_step

    def interrupted(self: trainer.Trainer) -> object:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(trainer.Trainer, "one_step", interrupted)
    outcome = run(*toy, f"run_dir='{tmp_path / 'mine'}'")
    assert outcome.status == 128 + signal.SIGINT
    assert said in outcome.out
    assert "Traceback" not in outcome.err


def test_an_interrupt_before_the_first_step_ends_with_a_sentence(
    run: Run, toy: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "set_up", interrupted)
    outcome = run(*toy)
    assert outcome.status == 128 + signal.SIGINT
    assert outcome.err == "stopped by Ctrl-C before the first step\n"


def test_overrides_become_plus_plus_for_settings_only() -> None:
    assert normalise_override("train.max_steps=3") == "++train.max_steps=3"
    assert normalise_override("+train.max_steps=3") == "++train.max_steps=3"
    assert normalise_override("seed=1,2") == "++seed=1,2"
    assert normalise_override("model=gpt2,hnet") == "model=gpt2,hnet"
    assert normalise_override("hydra/launcher=submitit_slurm") == "hydra/launcher=submitit_slurm"
    assert normalise_override("hydra.job.num=3") == "hydra.job.num=3"


def test_training_writes_every_file_and_says_where(run: Run, toy: list[object]) -> None:
    outcome = run(*toy, "log.tensorboard=true", "train.max_steps=4", "eval.every=2")
    assert outcome.status == 0
    (folder,) = Path("runs/toy").iterdir()
    names = {path.name.split(".")[0] for path in folder.iterdir() if path.name != LOCK_NAME}
    files = {"config", "metrics", "result", "checkpoints", "loss", "samples", "events", "data"}
    assert names == files
    assert str(folder) in outcome.out
    assert "bits per byte" in outcome.out
    result = json.loads((folder / "result.json").read_text())
    keys = {
        *("model", "params", "params_non_embedding", "train_tokens", "train_bytes"),
        *("train_seconds", "tokens_per_second", "train_flops", "mfu", "val_bpb", "val_bound"),
        *("val_bytes", "val_loss", "steps", "seed", "data_fingerprint", "tokenizer", "device"),
        *("dtype", "torch", "git_commit", "peak_memory_bytes"),
    }
    assert keys <= set(result)
    assert result["steps"] == 4
    assert result["train_tokens"] == 4 * 128
    assert result["val_bytes"] == 2000


def test_sweep_makes_one_run_per_combination(run: Run, toy: list[object]) -> None:
    outcome = run("-m", *toy, "seed=1,2", "train.max_steps=2")
    assert outcome.status == 0
    folders = sorted(Path("runs/toy").iterdir())
    seeds = {json.loads((folder / "result.json").read_text())["seed"] for folder in folders}
    assert seeds == {1, 2}


def test_recipe_by_path(run: Run, corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "defaults: [training, override model: toy, _self_]\n"
        f"data: {{corpus: text, path: '{corpus}'}}\ntrain: {{max_steps: 2}}\n"
        "log: {tensorboard: false}\n"
    )
    assert run("--hydra_model_cfg", recipe, "seed=3").status == 0
    (folder,) = Path("runs/toy").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["seed"]) == (2, 3)


RECIPE = """\
defaults: [training, override model: toy, _self_]
data: {{corpus: text, path: '{corpus}'}}
train: {{max_steps: {max_steps}}}
log: {{tensorboard: false}}
"""


def test_a_recipe_in_yml_is_read_and_no_other_of_its_name(
    run: Run, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.format(corpus=corpus, max_steps=5))
    (tmp_path / "mine.yml").write_text(RECIPE.format(corpus=corpus, max_steps=2))
    (tmp_path / "upon.yml").write_text("defaults: [mine, _self_]\nseed: 7\n")
    assert run("--config", "mine.yml", "seed=3").status == 0
    assert run("--config", "upon.yml").status == 0  # mine.yaml, which lies beside it
    results = [json.loads(path.read_text()) for path in Path("runs/toy").glob("*/result.json")]
    assert {(result["steps"], result["seed"]) for result in results} == {(2, 3), (5, 7)}
    shown = run("show", "--config", "mine.yml", program="nanozoo")
    assert "2 steps" in shown.out


def test_a_sweep_leaves_nothing_but_its_runs(run: Run, toy: list[object]) -> None:
    assert run("-m", *toy, "seed=1,2", "train.max_steps=2").status == 0
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    run: Run, toy: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanozoo_core.training.trainer import Trainer

    words = ["-m", *toy, "seed=1,2,3", "train.max_steps=4", "checkpoint.every=2", "resume=auto"]
    step = Trainer.one_step

    def interrupted(trainer: Trainer) -> object:
        if trainer.config.seed == 2 and trainer.state.step == 2:
            sys.exit(130)  # as a signal does at the end of a step
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_step", interrupted)
        assert run(*words).status == 130
    before = {path: path.stat().st_mtime_ns for path in Path("runs/toy").glob("*/result.json")}
    assert len(before) == 1
    assert run(*words).status == 0
    folders = list(Path("runs/toy").iterdir())
    seeds = [json.loads((f / "result.json").read_text())["seed"] for f in folders]
    assert sorted(seeds) == [1, 2, 3]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert run(*words).status == 0
    assert len(list(Path("runs/toy").iterdir())) == 3


def test_resuming_one_run_is_no_sweep(run: Run) -> None:
    assert_refused(run("-m", "model=toy", "seed=1,2", "resume=here"), "resume=auto goes on with")


def test_tab_completion_is_installed(run: Run) -> None:
    outcome = run("-sc", "install=bash")
    assert outcome.status == 0
    assert "complete " in outcome.out


@pytest.mark.parametrize("command", ["train", "show", "prepare", "evaluate", "generate", "compare"])
def test_every_command_reads_numbers_and_names_what_it_cannot_read(
    run: Run, toy: list[object], corpus: Path, command: str
) -> None:
    """The same grammar, and the same hint, for every command."""
    program = "train" if command == "train" else "nanozoo"
    first = [] if command == "train" else [command]
    if command in ("evaluate", "generate"):
        run(*toy, "run_dir=here", "train.max_steps=2")
    targets = {"train": toy, "show": ["toy"], "prepare": [corpus], "compare": ["models=toy"]}
    words = [*first, *targets.get(command, ["here"])]
    bad = {"prepare": "vocab_size", "evaluate": "bytes", "compare": "budget"}
    outcome = run(*words, f"{bad.get(command, 'model_cfg.num_heads')}=[1", program=program)
    assert outcome.status == 1
    assert "=[1' cannot be read: " in outcome.err
    assert "goes in quotes, as in " in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_numbers_may_be_written_in_powers_of_ten(run: Run, toy: list[object], corpus: Path) -> None:
    assert run(*toy, "run_dir=here", "train.max_steps=2e0").status == 0
    assert json.loads(Path("here/result.json").read_text())["steps"] == 2
    prepared = run("prepare", corpus, "tokenizer=bpe", "data.vocab_size=2.7e2", program="nanozoo")
    assert "270 ids" in prepared.out
    scored = run("evaluate", "here", "bytes=5e2", program="nanozoo")
    assert json.loads(scored.out)["val_bytes"] == 500
    shown = run("show", "toy", "model_cfg.model_dim=6.4e1", program="nanozoo")
    assert "model_dim: 64 " in shown.out


@pytest.mark.parametrize("command", [c.__name__.rpartition(".")[2] for c in cli.COMMANDS])
def test_every_argument_has_a_text(run: Run, command: str) -> None:
    parser = cli.build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    silent = [a.dest for a in commands.choices[command]._actions if not a.help]
    assert silent == []


def test_help_lists_models_and_settings(run: Run) -> None:
    outcome = run("--help")
    assert outcome.status == 0
    assert "installed models: " in outcome.out
    assert "train.max_steps=null" in outcome.out


def test_models_and_show(run: Run) -> None:
    assert "The control decoder" in run("models", program="nanozoo").out
    shown = run("show", "toy", "model_cfg.num_layers=2", program="nanozoo").out
    assert "num_layers: 2    # Blocks." in shown
    assert "parameters: " in shown
    assert_refused(run("show", "toi", program="nanozoo"), "did you mean 'toy'")


def test_evaluate_and_generate_a_run(run: Run, toy: list[object]) -> None:
    run(*toy, "run_dir=here", "train.max_steps=2")
    first = run("generate", "here", "--prompt", "word", "--max-tokens", "9", program="nanozoo")
    again = run("generate", "here", "--prompt", "word", "--max-tokens", "9", program="nanozoo")
    naive = run(
        *("generate", "here", "--prompt", "word", "--max-tokens", "9", "--no-cache"),
        program="nanozoo",
    )
    assert first.out == again.out == naive.out
    assert first.out.startswith("word")
    scored = json.loads(run("evaluate", "here", "eval.bytes=5e2", program="nanozoo").out)
    assert scored["val_bytes"] == 500


def test_texts_as_data_from_a_pipe_and_by_turns(
    run: Run, toy: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    farewell = run(*toy, "run_dir=here", "train.max_steps=2").out
    assert "more text: nanozoo generate here --prompt 'word" in farewell

    def call(given: str, *flags: str) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        words = ["generate", "here", "--max-tokens", "5", *flags]
        return run(*words, program="nanozoo")

    text = call("", "--prompt", "word", "--num-samples", "2").out
    lines = call("word\n", "--prompt", "-", "--num-samples", "2", "--json").out.splitlines()
    samples = [json.loads(line) for line in lines]
    assert [(s["prompt"], s["seed"]) for s in samples] == [("word", 0), ("word", 1)]
    texts = [harmless(s["prompt"] + s["text"]) for s in samples]
    assert text == texts[0] + "\n" + "-" * 80 + "\n" + texts[1] + "\n"

    found = call("rd\n\n", "--prompt", "wo", "--interactive")
    assert found.status == 0
    assert harmless(samples[0]["text"]) == found.out[: len(harmless(samples[0]["text"]))]


def test_ctrl_c_stops_the_text_and_not_the_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two\n"))
    asked: list[tuple[str, int]] = []

    def continuation(text: str, turn: int) -> Iterator[str]:
        asked.append((text, turn))
        yield f"<{turn}>"
        if turn == 0:
            raise KeyboardInterrupt
        yield "."

    continue_lines("begin ", continuation)
    assert asked == [("begin one", 0), ("begin one<0>", 1), ("begin one<0><1>. two", 2)]
    assert capsys.readouterr().out == "<0>\n<1>.\n<2>.\n"


def test_the_help_tells_defaults_that_say_something(run: Run) -> None:
    told = " ".join(run("generate", "--help", program="nanozoo").out.split())
    for default in ("latest", "0.8", "1.0", "256", "32", "0"):
        assert f"(default: {default})" in told
    assert "(default: False)" not in told
    assert "(default: None)" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_command_ends_with_its_reader(tmp_path: Path) -> None:
    """As behind `| head`: without a word, with the status of SIGPIPE."""
    script = (
        "from nanozoo_core.machine.terminal import out, reported_errors\n"
        "with reported_errors(ends_with_reader=True):\n"
        "    for number in range(10**6): out('x' * 99)\n"
        "    open('done', 'w').close()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["generate", "nowhere"], "nowhere is not a run folder"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["generate", "here", "--top-p", "0"], "top_p=0.0 must be in (0, 1]"),
        (["generate", "here", "--num-steps", "0"], "num_steps=0 must be at least 1"),
        (["generate", "here", "--suffix", "z"], "toy writes from left to right"),
        (["generate", "here", "--suffix", "z", "--trace", "a.html"], "--suffix and --trace needs"),
        (["generate", "here", "--num-steps", "4"], "leave out --num-steps"),
        (["generate", "here", "--trace", "no/a.html"], "there is no folder no"),
        (["generate", "here", "--checkpoint", "77"], "use latest, best or one of: 2"),
        (["generate", "here", "--interactive", "--json"], "--interactive does not go with --json"),
        (["generate", "here", "--speculative"], "proposes tokens ahead, which toy"),
        (["generate", "here", "--speculative", "--no-cache"], "leave out --no-cache"),
        (["evaluate", "here", "eval.bytez=5"], "did you mean 'bytes'?"),
        (["evaluate", "here", "--corrupted", "bytes=500"], "a choice takes 4; raise bytes="),
        (["evaluate", "here", "eval.bytes=[5"], "'eval.bytes=[5' cannot be read"),
        (["evaluate", "here", "other.bytes=5"], "'other.bytes' does not apply here; only eval."),
        (["inspect", "here", "eval.bytes=5"], "only model_cfg.key=value does"),
        (["evaluate", "here", "data.path=nowhere"], "data.path=nowhere does not exist"),
        (["inspect", "here", "data.seq_len=9"], "only data.path and data.text_key can be given"),
        (["generate", "here", "model_cfg.x={"], "'model_cfg.x={' cannot be read"),
    ],
)
def test_bad_use_of_a_run(run: Run, toy: list[object], arguments: list[str], part: str) -> None:
    run(*toy, "run_dir=here", "train.max_steps=2")
    assert_refused(run(*arguments, program="nanozoo"), part)


def test_answers_without_loading_torch() -> None:
    probe = (
        "import sys\n"
        "sys.argv = ['nanozoo', 'models']\n"
        "from nanozoo_core.commands import cli, train\n"
        "cli.main(['models'])\n"
        "sys.stdout.write(train.help_text())\n"
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, env=os.environ, capture_output=True)
