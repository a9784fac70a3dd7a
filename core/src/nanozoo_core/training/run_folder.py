"""A run's folder: the names of its files, what they say of the run, and reading and writing them.

Importing this module loads no torch, so that commands can look at runs at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.config.compose import as_config_error
from nanozoo_core.config.overrides import all_literal, resolved_values
from nanozoo_core.errors import CheckpointError, NonFiniteError, first_line
from nanozoo_core.files import UNFINISHED, read_json, to_json, write_json, write_text

STEP_PREFIX = "step_"
SPENT = ("tokens", "bytes", "flops", "seconds")  # of a run so far, in every row of metrics
STATE_NAME = "state.json"  # in a checkpoint's folder
LOCK_NAME = ".lock"  # held while a process trains in the folder
# What a run writes before its first checkpoint.
BEGINNING = (
    *("config.yaml", "data.json", "metrics.jsonl", "tokenizer.json", "wandb.json"),
    *("checkpoints", "wandb", LOCK_NAME),
)
DIGEST_LINE = "# sha256 of what stands above: "  # in config.yaml
PROMPT_WORDS, PROMPT_LETTERS = 3, 24  # of a prompt in an example
ASIDE = "aside_"  # before the names of checkpoints that a run went back behind


@dataclass(frozen=True)
class Sample:
    """A text that the trained model wrote."""

    prompt: str
    text: str
    """The prompt with its continuation."""


@dataclass(frozen=True)
class Samples:
    """All that a finished run shows of what its model writes."""

    texts: tuple[Sample, ...] = ()
    shown: str | None = None
    """What is peculiar to the model on a validation text, where it has something to show."""

    @property
    def prompt(self) -> str:
        """A beginning in the manner of the text that the model knows: the first words of a
        validation document; empty where none has been sampled."""
        given = next((s.prompt.strip() for s in self.texts if s.prompt.strip()), "")
        line = given.splitlines()[0] if given else ""
        words = " ".join(line.split()[:PROMPT_WORDS])
        return words if len(words) <= PROMPT_LETTERS else line[:PROMPT_LETTERS]


@dataclass
class TrainState:
    """What a run has done so far, beside weights and optimiser."""

    model: str
    step: int = 0
    tokens: int = 0
    bytes: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    best_bpb: float | None = None
    best_step: int | None = None
    validated_step: int | None = None  # of the newest validation
    loss_scale: float = 2.0**16  # of float16
    steps_at_loss_scale: int = 0  # since it last changed
    last_good_step: int | None = None  # of the newest checkpoint from which a loss was finite
    # sha256 of each file of the checkpoint: of either, where a kill may leave one or the other.
    # These three are None in the states of older versions.
    files: dict[str, list[str]] | None = None
    tokenizer: str | None = None  # the run's own
    settings: str | None = None  # those that a resumed run keeps

    @property
    def spent(self) -> dict[str, float]:
        """What the run has used so far, for a row of metrics."""
        return {name: getattr(self, name) for name in SPENT}


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. The folder and its files need not exist yet."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    # -- the names --------------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result_path(self) -> Path:
        return self.path / "result.json"

    @property
    def samples_path(self) -> Path:
        return self.path / "samples.json"

    @property
    def samples_text_path(self) -> Path:
        return self.path / "samples.txt"

    @property
    def data_path(self) -> Path:
        return self.path / "data.json"

    @property
    def wandb_path(self) -> Path:
        return self.path / "wandb.json"

    @property
    def loss_picture_path(self) -> Path:
        return self.path / "loss.png"

    @property
    def inspection_path(self) -> Path:
        return self.path / "inspection.json"

    @property
    def inspection_picture_path(self) -> Path:
        return self.path / "inspection.png"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder that the checkpoint of a step has, or would have."""
        return self.checkpoints_path / f"{STEP_PREFIX}{step:06d}"

    # -- what they say ----------------------------------------------------------------------------

    @property
    def is_run(self) -> bool:
        return self.config_path.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether there is a result: a file that is empty or cut short is none."""
        try:
            self.read_result()
        except NonFiniteError:
            return True
        except CheckpointError:
            return False
        return True

    @property
    def is_barely_begun(self) -> bool:
        """Whether a run began here and holds nothing of value yet: it was killed before its first
        checkpoint."""
        try:
            names = {path.name for path in self.path.iterdir()}
            kept = [path for path in self.checkpoints_path.glob("*") if not _is_unfinished(path)]
        except OSError:
            return False
        return LOCK_NAME in names and not kept and all(map(_is_of_beginning, names))

    def clear(self) -> None:
        """Removes what `is_barely_begun` has found, but for the lock."""
        for path in self.path.iterdir():
            if path.name != LOCK_NAME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def has_checkpoint(self) -> bool:
        return bool(self.checkpoint_steps())

    def checkpoint_steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = self.checkpoints_path.glob(f"{STEP_PREFIX}*")
        names = [path.name.removeprefix(STEP_PREFIX) for path in found]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def latest_checkpoint(self) -> Path:
        """The folder of the newest checkpoint. Raises: CheckpointError when there is none."""
        steps = self.checkpoint_steps()
        if not steps:
            raise CheckpointError(f"{self} has no checkpoint to continue from")
        return self.checkpoint(steps[-1])

    def set_aside_after(self, step: int) -> list[tuple[Path, str]]:
        """Renames the checkpoints after a step, so that the newest is again the last by number.

        Returns: each with its new name.
        """
        renamed = []
        for later in self.checkpoint_steps():
            if later > step:
                path, number = self.checkpoint(later), 1
                while (target := path.with_name(f"{ASIDE}{number}_{path.name}")).exists():
                    number += 1
                renamed.append((path, path.rename(target).name))
        return renamed

    # -- reading and writing ----------------------------------------------------------------------

    def read_config(self) -> dict[str, Any]:
        """The settings of the run. Raises: CheckpointError when the folder is no run."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        path = self.config_path
        if not self.is_run:
            raise CheckpointError(f"{self} is not a run folder: it has no {path.name}")
        try:
            data = resolved_values(OmegaConf.load(path))
        except OmegaConfBaseException as error:
            raise CheckpointError(f"{path} cannot be read: {as_config_error(error)}") from error
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
        if not isinstance(data, dict) or "model" not in data:
            raise CheckpointError(f"{path} is not the config of a run: it names no model")
        return {str(key): value for key, value in data.items()}

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the settings as Hydra composes them again: no text in them is a reference."""
        from omegaconf import OmegaConf

        text = OmegaConf.to_yaml(OmegaConf.create(all_literal(config)))
        write_text(self.config_path, f"{text}{DIGEST_LINE}{_sha256(text)}\n")

    @property
    def is_config_whole(self) -> bool:
        """Whether config.yaml is as it was written; yes where it does not end with its digest, as
        that of an older version."""
        try:
            text = self.config_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        above, line, stored = text.rpartition(DIGEST_LINE)
        return not line or stored.strip() == _sha256(above)

    def read_data(self) -> dict[str, str] | None:
        """The digests of the data that the run began with, where it has written them."""
        if not self.data_path.is_file():
            return None
        return read_json(
            self.data_path,
            lambda stored: {key: str(stored[key]) for key in ("fingerprint", "tokens")},
            remedy="remove it, and go on by resume_data=accept if the data are those of the run",
        )

    def write_data(self, digests: dict[str, str]) -> None:
        write_json(self.data_path, digests)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far, up to the first line that is none, as a kill leaves at the end.

        Raises: CheckpointError when the file cannot be read.
        """
        try:
            text = self.metrics_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.metrics_path} cannot be read: {error.strerror or error}"
            ) from error
        rows: list[dict[str, Any]] = []
        for line in text.splitlines():
            if (row := _row_of(line)) is None:
                break
            rows.append(row)
        return rows

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Leaves the file as it is where it holds just these rows."""
        text = "".join(to_json(row, self.metrics_path) + "\n" for row in rows)
        try:
            is_same = self.metrics_path.read_bytes() == text.encode("utf-8")
        except OSError:
            is_same = False
        if not is_same:
            write_text(self.metrics_path, text)

    def read_result(self) -> dict[str, Any]:
        """What a finished run reached.

        Raises: CheckpointError when it is not finished; NonFiniteError when it has diverged.
        """
        remedy = f"continue the run with: train resume={self}"
        if not self.result_path.is_file():
            raise CheckpointError(
                f"{self} holds no finished run (no {self.result_path.name}); {remedy}"
            )
        return read_json(
            self.result_path,
            lambda stored: {str(key): value for key, value in stored.items()},
            remedy=remedy,
        )

    def write_result(self, result: dict[str, Any]) -> None:
        """Finishes the run."""
        write_json(self.result_path, result)

    def read_samples(self) -> Samples:
        """What the model wrote; empty for a run that kept its samples only as text."""
        if not self.samples_path.is_file():
            return Samples()
        return read_json(
            self.samples_path,
            lambda stored: Samples(
                tuple(Sample(str(s["prompt"]), str(s["text"])) for s in stored["texts"]),
                stored["shown"],
            ),
            remedy=f"remove it, and write text with: nanozoo generate {self}",
        )

    def write_samples(self, samples: Samples) -> None:
        """Writes the samples as data, and once more as a text for people."""
        write_json(self.samples_path, asdict(samples))
        parts = [f"--- prompt: {sample.prompt!r}\n{sample.text}\n" for sample in samples.texts]
        if samples.shown is not None:
            parts.append(f"--- shown\n{samples.shown}\n")
        write_text(self.samples_text_path, "\n".join(parts))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _sha256_of_json(value: dict[str, Any]) -> str:
    return _sha256(json.dumps(value, sort_keys=True))


def _row_of(line: str) -> dict[str, Any] | None:
    """A row of metrics: numbers alone, null where one was not finite. None for what is no row."""
    try:
        row = json.loads(line)
        if not all(math.isfinite(row[key]) for key in SPENT):
            return None
        row["step"] = int(row["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    is_row = all(value is None or isinstance(value, int | float) for value in row.values())
    return row if is_row else None


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(UNFINISHED)


def _is_of_beginning(name: str) -> bool:
    return name in BEGINNING or name.startswith((UNFINISHED, "events.out.tfevents."))


def write_state(checkpoint: Path, state: TrainState) -> None:
    """Writes state.json with a digest of itself."""
    stored = asdict(state)
    write_json(checkpoint / STATE_NAME, stored | {"sha256": _sha256_of_json(stored)})


def read_state(checkpoint: Path, *, of: str | None = None, verify: bool = True) -> TrainState:
    """The training state of a checkpoint folder.

    Raises: CheckpointError when it is damaged, or changed unless told not to `verify`, or of
        another model than `of`.
    """

    def state_of(stored: dict[str, Any]) -> TrainState:
        digest = stored.pop("sha256", None)
        if verify and digest not in (None, _sha256_of_json(stored)):
            raise ValueError("it is not as it was written")
        return TrainState(**stored)

    remedy = "use another checkpoint of the run"
    state = read_json(checkpoint / STATE_NAME, state_of, remedy=remedy)
    if of not in (None, state.model):
        raise CheckpointError(f"{checkpoint} is a checkpoint of model {state.model}, not {of}")
    return state


def parse_resume(resume: str) -> tuple[RunFolder, int | None]:
    """The run that `resume=RUN` or `resume=RUN@STEP` names, and the step."""
    run, at, step = resume.rpartition("@")
    if at and step.isdecimal() and step.isascii() and not Path(resume).is_dir():
        return RunFolder(Path(run)), int(step)
    return RunFolder(Path(resume)), None
