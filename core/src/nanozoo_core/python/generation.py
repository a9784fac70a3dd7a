"""Text from a run: what may be asked for, and the pieces of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nanozoo_core.errors import ConfigError

if TYPE_CHECKING:
    from nanozoo_core.contract import Drafter, PartialText, SamplingSettings
    from nanozoo_core.generation.decoding_dtype import RoundedWeights
    from nanozoo_core.generation.speculative import Tally
    from nanozoo_core.training.runs import LoadedRun

CONTINUATION_TOKENS = 256
MIDDLE_TOKENS = 32
NUM_DRAFTS = 4
MOST_TOGETHER = 16
"""Texts that are decoded in one batch: their caches lie in memory together."""
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Generated:
    """A text that a model wrote; `str` gives all of it."""

    prompt: str
    text: str
    """What is new: behind the prompt, and before the suffix."""
    suffix: str
    seed: int

    def __str__(self) -> str:
        return f"{self.prompt}{self.text}{self.suffix}"


@dataclass(frozen=True)
class TextRequest:
    """What is to be written, and how. Raises: ConfigError for what makes no sense."""

    prompt: str = ""
    suffix: str = ""
    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_steps: int | None = None
    use_cache: bool = True
    speculative: bool = False
    num_drafts: int = NUM_DRAFTS
    dtype: str = "auto"

    def __post_init__(self) -> None:
        from nanozoo_core.generation.text import check_settings

        if self.speculative and not self.use_cache:
            raise ConfigError("--speculative decodes with the cache; leave out --no-cache")
        if self.num_drafts < 1:
            raise ConfigError(f"num_drafts={self.num_drafts} must be at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype} is none of {', '.join(DTYPES)}")
        check_settings(self.sampling())

    def sampling(self, on_step: Callable[[PartialText], object] | None = None) -> SamplingSettings:
        """The settings of the decoder. Args: on_step: see there."""
        from nanozoo_core.contract import SamplingSettings

        usual = MIDDLE_TOKENS if self.suffix else CONTINUATION_TOKENS
        return SamplingSettings(
            max_tokens=usual if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            num_steps=self.num_steps,
            use_cache=self.use_cache,
            on_step=on_step,
        )


def check_request(run: LoadedRun, request: TextRequest, *, is_traced: bool = False) -> None:
    """Raises: ConfigError for a request that the model of a run cannot serve."""
    model, adapter = run.config.model, run.adapter
    if request.num_steps is not None and not adapter.takes_steps:
        raise ConfigError(f"{model} draws each token at once: leave out --num-steps")
    if not adapter.can_denoise:
        wishes = {"--suffix": bool(request.suffix), "--trace": is_traced}
        used = " and ".join(name for name, is_asked in wishes.items() if is_asked)
        if used:
            raise ConfigError(
                f"{model} writes from left to right, one token after another: {used} needs a "
                "diffusion model, which draws a whole window step by step"
            )


def write_pieces(
    run: LoadedRun,
    request: TextRequest,
    *,
    draft: LoadedRun | None = None,
    tally: Tally | None = None,
    on_step: Callable[[PartialText], object] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """The new text of a request in pieces, each as soon as it is known; a character that needs
    several tokens comes whole.

    Args:
        draft: a smaller run, whose tokens this one checks.
        tally: counts what speculation was worth.
        on_step: called by models that denoise with the whole text after every step.
        tell: hears which type of weights a probe has chosen, in a line.

    Raises: ConfigError, at once, for what the model cannot serve.
    """
    check_request(run, request, is_traced=on_step is not None)
    settings = request.sampling(on_step)
    drafter = _drafter(run, request, draft)
    contexts = _contexts(run, request, draft, tell)
    if request.suffix:
        return _middle(run, request, settings, contexts)
    return _continuation(run, request.prompt, settings, drafter, tally, contexts)


def write_samples(
    run: LoadedRun,
    request: TextRequest,
    seeds: Sequence[int],
    *,
    draft: LoadedRun | None = None,
    tally: Tally | None = None,
    on_steps: Sequence[Callable[[PartialText], object] | None] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Iterator[Iterator[str]]:
    """The pieces of a text for each seed, in the place of the request's own: what `write_pieces`
    gives for each. Where a model writes from left to right and nothing drafts, up to
    `MOST_TOGETHER` texts are decoded together, and each then comes as one piece.

    Args: on_steps: one for each seed; the others as in `write_pieces`.
    """
    is_plain = not (run.adapter.can_denoise or request.speculative or draft or on_steps)
    if is_plain and len(seeds) > 1:
        check_request(run, request)
        for start in range(0, len(seeds), MOST_TOGETHER):
            texts = _together(run, request, seeds[start : start + MOST_TOGETHER], tell)
            yield from (iter([text]) for text in texts)
        return
    for seed, on_step in zip(seeds, on_steps or [None] * len(seeds), strict=True):
        one = replace(request, seed=seed)
        yield write_pieces(run, one, draft=draft, tally=tally, on_step=on_step, tell=tell)


def _together(
    run: LoadedRun,
    request: TextRequest,
    seeds: Sequence[int],
    tell: Callable[[str], object] | None,
) -> list[str]:
    from nanozoo_core.generation.decoding_dtype import step_by_step
    from nanozoo_core.generation.text import generate_together

    contexts = _contexts(run, request, None, tell, num_rows=len(seeds))
    tokens: list[list[int]] = [[] for _ in seeds]
    steps = generate_together(
        run.adapter, run.model, run.vocabulary, request.prompt, request.sampling(), seeds
    )
    for step in step_by_step(steps, contexts):
        for text, new in zip(tokens, step, strict=True):
            text += new
    return [run.vocabulary.decode(text) for text in tokens]


def _contexts(
    run: LoadedRun,
    request: TextRequest,
    draft: LoadedRun | None,
    tell: Callable[[str], object] | None,
    *,
    num_rows: int = 1,
) -> list[RoundedWeights]:
    """What the type of the request asks each step of decoding to be in."""
    from nanozoo_core.generation.decoding_dtype import decoding_contexts

    loaded = [run] if draft is None else [run, draft]
    models = [(each.adapter, each.model) for each in loaded]
    return decoding_contexts(models, request.dtype, num_rows=num_rows, tell=tell)


def _drafter(run: LoadedRun, request: TextRequest, draft: LoadedRun | None) -> Drafter | None:
    """What proposes tokens; None where nothing is to. Raises: ConfigError where nothing can."""
    if draft is None:
        found = run.adapter.drafter(run.model) if request.speculative else None
        if request.speculative and found is None:
            raise ConfigError(
                f"--speculative needs a model that proposes tokens ahead, which "
                f"{run.config.model} with these settings does not; leave it out, or let a smaller "
                "run propose them with --draft RUN"
            )
        return found
    from nanozoo_core.generation.draft_run import ModelDrafter, takes_back

    if request.speculative or not request.use_cache:
        other = "--speculative" if request.speculative else "--no-cache"
        raise ConfigError(f"--draft does not go with {other}; leave out one")
    if not draft.vocabulary.equals(run.vocabulary):
        raise ConfigError(
            f"--draft {draft.folder} has another vocabulary than {run.folder}, whose tokens it is "
            f"to propose; train it with data.tokenizer={run.folder}"
        )
    for one in (run, draft):
        if one.adapter.can_denoise or not takes_back(one.adapter, one.model, request.num_drafts):
            raise ConfigError(
                f"--draft: {one.folder} is a run of {one.config.model}, which cannot take back "
                f"{request.num_drafts} tokens that it has read; use a model whose cache holds keys "
                "and values, such as gpt2 or vanilla, or a smaller --num-drafts"
            )
    limit, needed = draft.max_context, run.max_context
    if limit is not None and (needed is None or limit < needed):
        raise ConfigError(
            f"--draft {draft.folder} reads {limit} tokens at most and {run.folder} "
            f"{needed or 'any number'}; use a run that reads as many"
        )
    return ModelDrafter(
        run.adapter, run.model, draft.adapter, draft.model, num_drafts=request.num_drafts
    )


def _middle(
    run: LoadedRun,
    request: TextRequest,
    settings: SamplingSettings,
    contexts: Sequence[RoundedWeights],
) -> Iterator[str]:
    from nanozoo_core.generation.decoding_dtype import inside
    from nanozoo_core.generation.text import infill_tokens

    with inside(contexts):
        middle = infill_tokens(
            run.adapter, run.model, run.vocabulary, request.prompt, request.suffix, settings
        )
    yield run.vocabulary.decode(middle)


def _continuation(
    run: LoadedRun,
    prompt: str,
    settings: SamplingSettings,
    drafter: Drafter | None,
    tally: Tally | None,
    contexts: Sequence[RoundedWeights],
) -> Iterator[str]:
    from nanozoo_core.generation.decoding_dtype import step_by_step
    from nanozoo_core.generation.text import generate_tokens

    tokens: list[int] = []
    shown = ""
    stream = generate_tokens(
        run.adapter, run.model, run.vocabulary, prompt, settings, drafter=drafter, tally=tally
    )
    for new in step_by_step(stream, contexts):
        tokens += new
        text = run.vocabulary.decode(tokens)
        stable = text[: len(text) - 1] if text.endswith("\ufffd") else text
        if stable.startswith(shown):  # a character may need several tokens
            yield stable[len(shown) :]
            shown = stable
    yield run.vocabulary.decode(tokens)[len(shown) :]
