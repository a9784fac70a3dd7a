"""What every token of a text costs a model, in bits: for a heat map."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanozoo_core.errors import ConfigError

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun

DARKEST_BITS = 16.0  # per token: the colour of a heat map grows no deeper
DEEPEST = 0.5  # of the colour over the page, on which text stays readable in both themes


@dataclass(frozen=True)
class TextBits:
    """The tokens of a text in order, each with its bytes and the bits that it costs: -log2 of its
    probability given what stands before it in its window. In a notebook it shows a heat map."""

    ids: tuple[int, ...]
    bytes: tuple[bytes, ...]
    """The exact bytes of each token."""
    bits: tuple[float, ...]

    @property
    def strings(self) -> tuple[str, ...]:
        """Each token as text, bytes that are no whole character as escapes."""
        return tuple(part.decode("utf-8", errors="backslashreplace") for part in self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """Of the whole text: what `Run.evaluate` says of it."""
        return sum(self.bits) / sum(map(len, self.bytes))

    def table(self) -> dict[str, list[Any]]:
        """Columns of equal length, such as `pandas.DataFrame` takes."""
        return {
            "id": list(self.ids),
            "token": list(self.strings),
            "bytes": [len(part) for part in self.bytes],
            "bits": list(self.bits),
        }

    def _repr_html_(self) -> str:
        spans = (
            f'<span title="{bits:.2f} bits" style="background: rgba(230, 120, 20, '
            f'{DEEPEST * min(bits / DARKEST_BITS, 1):.2f})">{html.escape(text)}</span>'
            for text, bits in zip(self._readable(), self.bits, strict=True)
        )
        total = f"{self.bits_per_byte:.3f} bits per byte"
        return f'<pre style="white-space: pre-wrap">{"".join(spans)}</pre><p>{total}</p>'

    def _readable(self) -> Iterator[str]:
        """The strings, a character of several tokens whole at the first and empty at the others."""
        strings, whole = list(self.strings), b"".join(self.bytes)
        try:
            whole.decode("utf-8")
        except UnicodeDecodeError:
            yield from strings
            return
        start = 0
        for part in self.bytes:
            begin = _next_character(whole, start)
            start += len(part)
            yield whole[begin : max(begin, _next_character(whole, start))].decode("utf-8")


def _next_character(text: bytes, place: int) -> int:
    """The first place from `place` on at which a character of UTF-8 begins, or the end."""
    while place < len(text) and text[place] & 0xC0 == 0x80:
        place += 1
    return place


def text_bits(run: LoadedRun, text: str | bytes) -> TextBits:
    """What each token of a text costs the model of a run, in the windows in which `score` reads it.

    Raises: ConfigError for a text without a byte, or a model that gives no token a probability.
    """
    import torch

    from nanozoo_core.likelihood import in_bits
    from nanozoo_core.machine import device as devices
    from nanozoo_core.training.runs import own_text

    if not run.adapter.scores_tokens:
        raise ConfigError(
            f"{run.config.model} bounds the likelihood of a whole window, and gives no single "
            f"token a probability; Run.evaluate gives its bound in bits per byte"
        )
    validation = own_text(run, [text])
    dtype = devices.resolve_dtype(run.config.dtype, run.device)
    ids: list[int] = []
    nats: list[torch.Tensor] = []
    with torch.no_grad(), devices.autocast(run.device, dtype):
        for batch in validation.batches(max(1, run.config.eval.batch_tokens // validation.seq_len)):
            found = run.adapter.token_nats(run.model, batch.to(run.device)).cpu()  # (B, T)
            scored = torch.ones_like(found, dtype=torch.bool)
            scored = scored if batch.scored is None else batch.scored
            ids += batch.targets[scored].tolist()
            nats.append(found[scored])
    bits = in_bits(torch.cat(nats)).tolist()
    parts = tuple(run.vocabulary.decode_bytes([token]) for token in ids)
    return TextBits(tuple(ids), parts, tuple(bits))
