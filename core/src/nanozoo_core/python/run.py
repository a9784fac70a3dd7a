"""A trained run in Python: text from it, its scores, and its model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.paths import checked_path
from nanozoo_core.python.generation import NUM_DRAFTS, Generated, TextRequest, write_pieces
from nanozoo_core.python.text_bits import TextBits, text_bits
from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nanozoo_core.config import TrainingConfig
    from nanozoo_core.data.tokenizers import Tokenizer
    from nanozoo_core.training.runs import Evaluation, LoadedRun

AnyPath = str | os.PathLike[str]


@contextmanager
def told_out_of_memory() -> Iterator[None]:
    """Raises: OutOfMemoryError, in the sentence of the commands, for what fails so inside."""
    from nanozoo_core.machine.device import is_out_of_memory, out_of_memory

    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(error) from error
        raise


def load_run(
    folder: AnyPath,
    *,
    checkpoint: str | int = "latest",
    device: str = "auto",
    model_cfg: dict[str, Any] | None = None,
    verify: bool = True,
) -> Run:
    """Loads a run from its folder: the model with its weights (averaged ones where the run kept
    some), its tokenizer and its settings.

    Args:
        folder: the run's folder, such as "runs/mine".
        checkpoint: "latest", "best", or the number of a step.
        device: "cpu", "cuda", "mps", or "auto" for the best that is present.
        model_cfg: settings of the model that scoring and decoding may change.
        verify: compare the run's files with the digests that it keeps.

    Raises: CheckpointError when the folder is no run, or the checkpoint is missing, damaged,
        changed or of a model of another shape; ConfigError for settings that do not fit.
    """
    from nanozoo_core.training import runs

    return Run(
        runs.load_run(
            checked_path(os.fspath(folder), "folder"),
            checkpoint=str(checkpoint),
            device=device,
            model_overrides=model_cfg,
            verify=verify,
        )
    )


class Run:
    """A trained model with all that belongs to it; `load_run` makes one.

    Attributes: loaded, the run as the parts of core know it, with its adapter and its state.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        self.loaded = loaded

    def __repr__(self) -> str:
        step, device = self.loaded.state.step, self.loaded.device
        return f"<Run {self.folder}: {self.config.model} at step {step} on {device}>"

    # -- what it is -------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.loaded.folder

    @property
    def config(self) -> TrainingConfig:
        """All settings of the run."""
        return self.loaded.config

    @property
    def vocabulary(self) -> Tokenizer:
        """Its tokenizer, with `encode` and `decode`."""
        return self.loaded.vocabulary

    @property
    def model(self) -> nn.Module:
        """The model itself, in eval mode: one that predicts the next token gives logits (B, T, V)
        for tokens (B, T)."""
        return self.loaded.model

    def tokens(self, text: str | bytes) -> Tensor:
        """A text as the model reads it, (1, 1 + its tokens) int64 on the model's device: behind the
        separator that begins every document."""
        import torch

        ids = [self.vocabulary.separator, *self.vocabulary.encode(text)]
        return torch.tensor([ids], device=self.loaded.device)

    def metrics(self) -> dict[str, list[Any]]:
        """What the run logged: a column for every number, with NaN where a row does not have it.
        `pandas.DataFrame(run.metrics())` takes it as it is."""
        rows = RunFolder(self.folder).read_metrics()
        keys = dict.fromkeys(key for row in rows for key in row)
        values = {key: [row.get(key) for row in rows] for key in keys}
        return {
            key: [math.nan if value is None else value for value in column]
            for key, column in values.items()
        }

    def result(self) -> dict[str, Any]:
        """The numbers of the finished run, as result.json has them.

        Raises: CheckpointError when it is not finished; NonFiniteError when it has diverged.
        """
        return RunFolder(self.folder).read_result()

    # -- text -------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str = "",
        *,
        suffix: str = "",
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        num_steps: int | None = None,
        use_cache: bool = True,
        speculative: bool = False,
        draft: Run | None = None,
        num_drafts: int = NUM_DRAFTS,
        dtype: str = "auto",
    ) -> Generated:
        """Writes a text: behind the prompt, or between it and a suffix.

        Args:
            prompt: the text to continue; empty starts a document.
            suffix: text that follows, for models that denoise.
            max_tokens: the most new tokens (256), or with a suffix their exact number (32).
            temperature: 0 is greedy.
            top_k: draw from so many of the likeliest tokens; 0 switches it off.
            top_p: draw from the likeliest tokens that reach this probability; 1 switches it off.
            seed: the same seed and settings give the same text.
            num_steps: denoising steps, or iterations of a recurrent model.
            use_cache: False recomputes everything for every token.
            speculative: check several tokens at once, where the model can propose them.
            draft: a smaller run of the same vocabulary, which proposes them instead.
            num_drafts: how many it proposes at once.
            dtype: of the weights in products, "float32", "bfloat16", or "auto" for bfloat16 on a
                CPU where a probe finds it faster.

        Raises: ConfigError for settings out of range, or that the model cannot serve.
        """
        request = TextRequest(
            prompt=prompt,
            suffix=suffix,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            num_steps=num_steps,
            use_cache=use_cache,
            speculative=speculative,
            num_drafts=num_drafts,
            dtype=dtype,
        )
        small = None if draft is None else draft.loaded
        with told_out_of_memory():
            text = "".join(write_pieces(self.loaded, request, draft=small))
        return Generated(prompt, text, suffix, seed)

    def stream(
        self, prompt: str = "", *, draft: Run | None = None, **settings: Any
    ) -> Iterator[str]:
        """The new text of `generate`, with the same settings, piece by piece as it is drawn."""
        small = None if draft is None else draft.loaded
        return write_pieces(self.loaded, TextRequest(prompt=prompt, **settings), draft=small)

    # -- scores -----------------------------------------------------------------------------------

    def evaluate(
        self, texts: str | bytes | Sequence[str | bytes] | None = None, **settings: Any
    ) -> Evaluation:
        """Scores the run in bits per byte, exactly or as an upper bound.

        Args:
            texts: texts of your own, each a document; None scores the run's validation text.
            settings: of `eval`, such as draws=8, batch_tokens=1024 or, for the validation text,
                bytes=50_000.

        Raises: ConfigError for settings that do not fit, or texts without a byte; NonFiniteError
            when the score is not finite.
        """
        from nanozoo_core.training import runs

        with told_out_of_memory():
            return runs.score(self.loaded, settings, as_texts(texts))

    def evaluate_tasks(
        self,
        tasks: Sequence[str],
        *,
        num_fewshot: int | None = None,
        limit: int | None = None,
        include_path: AnyPath | None = None,
    ) -> dict[str, dict[str, float]]:
        """The metrics of tasks of lm-evaluation-harness, by name.

        Args:
            num_fewshot: examples shown before each question.
            limit: how many questions of each task are asked.
            include_path: a folder with task files of your own.

        Raises: ConfigError where the harness is not installed, for a task that does not exist, or
            a model without an exact likelihood.
        """
        try:
            from nanozoo_core.training.harness import evaluate_tasks
        except ImportError as error:
            raise ConfigError(
                f"--tasks needs lm-evaluation-harness; install nanozoo-core[tasks] ({error})"
            ) from error
        return evaluate_tasks(
            self.loaded,
            tasks,
            num_fewshot=num_fewshot,
            limit=limit,
            include_path=None if include_path is None else Path(include_path),
        )

    def evaluate_corrupted(self, *, limit: int | None = None, **settings: Any) -> dict[str, Any]:
        """How the run continues validation text that is corrupted in five ways, beside clean text:
        the share of right choices among four continuations, and the bits per byte of the true one.

        Args:
            limit: how many questions are asked (1000).
            settings: of `eval`, such as bytes=1_000_000 for more documents to ask about.

        Raises: ConfigError for settings that do not fit, or a text with too few documents.
        """
        from nanozoo_core.probing import corrupted

        with told_out_of_memory():
            return corrupted.evaluate_corrupted(
                self.loaded, settings, num_items=corrupted.NUM_ITEMS if limit is None else limit
            )

    def bits_per_byte(self, text: str | bytes) -> TextBits:
        """What every token of a text costs in bits, for a heat map; their sum over the bytes is
        what `evaluate` says of the text.

        Raises: ConfigError for an empty text, or a model that bounds the likelihood of a whole
            window and gives no single token a probability.
        """
        with told_out_of_memory():
            return text_bits(self.loaded, text)


def as_texts(texts: str | bytes | Sequence[str | bytes] | None) -> Sequence[str | bytes] | None:
    """One text alone is a list of one."""
    return [texts] if isinstance(texts, str | bytes) else texts
