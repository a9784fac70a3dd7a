"""The denoising of a text as one HTML page that needs no network: `nanozoo generate --trace`."""

from __future__ import annotations

import codecs
import html
from dataclasses import dataclass, field
from importlib.resources import files

from nanozoo_core.contract import PartialText, Vocabulary
from nanozoo_core.files import to_json

SEPARATOR_SIGN = "\u00b6"  # stands for tokens without text; every font has it


@dataclass
class Trace:
    """The steps of one sample; pass `add` as `SamplingSettings.on_step`."""

    caption: str
    steps: list[list[int | None]] = field(default_factory=list)

    def add(self, text: PartialText) -> None:
        self.steps.append(list(text))


def trace_page(title: str, traces: list[Trace], vocabulary: Vocabulary) -> str:
    """The page: each sample under its caption, to be played, stopped and stepped through."""
    special = vocabulary.token_bytes.eq(0).tolist()
    samples = [_sample(trace, vocabulary, special) for trace in traces]
    # "<" could end the script element; JSON reads the escape as the same character.
    data = to_json(samples, "the trace", is_compact=True).replace("<", "\\u003c")
    page = files("nanozoo_core.generation").joinpath("trace_page.html").read_text(encoding="utf-8")
    return page.replace("{{title}}", html.escape(title)).replace("{{samples}}", data)


def _sample(trace: Trace, vocabulary: Vocabulary, special: list[bool]) -> dict[str, object]:
    """The first step in full, then what each later one changed: {place: text, null for a hole}."""
    frames = []
    shown: list[str | None] = []
    for step in trace.steps:
        now = text_pieces(step, vocabulary, special)
        old = shown + [""] * (len(now) - len(shown))
        frames.append(
            {str(i): piece for i, piece in enumerate(now) if i >= len(shown) or piece != old[i]}
        )
        shown = now
    return {"caption": trace.caption, "frames": frames}


def text_pieces(
    tokens: PartialText, vocabulary: Vocabulary, special: list[bool]
) -> list[str | None]:
    """What each token shows; a character of several tokens stands at its last one."""
    pieces: list[str | None] = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def end_run() -> None:
        rest = decoder.decode(b"", final=True)
        if rest:  # a character cut short by a hole
            pieces[-1] = (pieces[-1] or "") + rest

    for token in tokens:
        if token is None:
            end_run()
            pieces.append(None)
        elif token >= len(special) or special[token]:
            end_run()
            pieces.append(SEPARATOR_SIGN)
        else:
            pieces.append(decoder.decode(vocabulary.decode_bytes([token])))
    end_run()
    return pieces
