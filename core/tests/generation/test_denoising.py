"""Infilling, text of any length and traces, with a model that denoises by counting."""

from __future__ import annotations

import json
import re

import pytest
from torch import nn

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.data.tokenizers import ByteTokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation.denoising import continue_text, denoised, fit_window
from nanozoo_core.generation.text import generate_tokens, infill_tokens
from nanozoo_core.generation.trace import Trace, text_pieces, trace_page
from nanozoo_core.randomness import seeded_generator

WINDOW, CHUNK = 8, 3
VOCABULARY = ByteTokenizer()


class Counter(nn.Module):
    max_context = WINDOW
    chunk_size = CHUNK


class CountingAdapter(DefaultModelAdapter):
    """Fills a window from right to left: a hole becomes the number of tokens known around it."""

    def __init__(self) -> None:
        self.windows: list[list[int | None]] = []

    def denoise(self, model, window, settings, generator):
        state = list(window)
        self.windows.append(list(window))
        for place in reversed(range(len(state))):
            if state[place] is None:
                state[place] = 65 + sum(token is not None for token in state)
                yield list(state)


def continued(prompt: list[int], max_tokens: int) -> tuple[list[list[int]], CountingAdapter]:
    adapter = CountingAdapter()
    settings = SamplingSettings(max_tokens=max_tokens)
    blocks = continue_text(adapter, Counter(), prompt, settings, seeded_generator(0))
    return list(blocks), adapter


def test_first_window_is_filled_then_slides_on_by_chunks():
    blocks, adapter = continued([1, 2], 6 + 3 + 2)
    assert [len(block) for block in blocks] == [6, 3, 2]
    text = [1, 2, *blocks[0], *blocks[1]]
    assert adapter.windows[1] == [*text[3:8], None, None, None]
    assert adapter.windows[2] == [*text[6:11], None, None, None]  # the third is cut off


@pytest.mark.parametrize(("prompt", "max_tokens"), [(1, 1), (2, 3), (4, 4), (7, 1), (20, 2)])
def test_network_reads_windows_of_the_length_that_it_was_trained_on(prompt, max_tokens):
    """Whatever is asked for; holes behind it are filled as well, and cut off."""
    blocks, adapter = continued(list(range(prompt)), max_tokens)
    assert sum(map(len, blocks)) == max_tokens
    assert {len(window) for window in adapter.windows} == {WINDOW}
    for window in adapter.windows:
        num_known = window.index(None)
        assert window[num_known:] == [None] * (WINDOW - num_known)
        assert num_known <= WINDOW - CHUNK


def test_gap_is_filled_in_a_window_of_the_trained_length():
    """The holes that make it so stand behind the suffix, and nobody sees them."""
    adapter = CountingAdapter()
    steps: list[PartialText] = []
    settings = SamplingSettings(max_tokens=2, on_step=steps.append)
    middle = infill_tokens(adapter, Counter(), VOCABULARY, "a", "z", settings)
    assert adapter.windows == [[256, *b"a", None, None, *b"z", None, None, None]]
    assert middle == [72, 71]  # 6 and 7 tokens known, the three at the end among them
    assert steps == [
        [256, *b"a", None, None, *b"z"],
        [256, *b"a", None, 71, *b"z"],
        [256, *b"a", 72, 71, *b"z"],
    ]


def test_long_prompt_leaves_a_chunk_of_its_window_for_new_text():
    blocks, adapter = continued(list(range(20)), 4)
    assert [len(block) for block in blocks] == [3, 1]
    assert adapter.windows[0] == [15, 16, 17, 18, 19, None, None, None]


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="separator"):
        continued([], 3)


def test_default_adapter_continues_by_windows_where_it_can_denoise():
    settings = SamplingSettings(max_tokens=5)
    drawn = list(generate_tokens(CountingAdapter(), Counter(), VOCABULARY, "abc", settings))
    assert [len(block) for block in drawn] == [4, 1]


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ([1] * 9, "9 tokens do not fit into a window of 8"),
        ([None, 1], "first token"),
        ([], "first"),
    ],
)
def test_impossible_windows_are_refused(window, message):
    settings, generator = SamplingSettings(), seeded_generator(0)
    with pytest.raises(ValueError, match=message):
        denoised(CountingAdapter(), Counter(), [], window, [], settings, generator)


def test_window_without_holes_comes_back():
    settings = SamplingSettings()
    same = denoised(CountingAdapter(), Counter(), [], [1, 2], [], settings, seeded_generator(0))
    assert same == [1, 2]


@pytest.mark.parametrize(
    ("before", "holes", "after", "expected"),
    [
        (2, 3, 2, (2, 2)),
        (10, 2, 10, (3, 3)),
        (10, 3, 10, (3, 2)),  # the odd place goes to what stands before
        (1, 3, 10, (1, 4)),
        (10, 3, 1, (4, 1)),
        (10, 5, 0, (3, 0)),
        (10, 6, 10, (1, 1)),
    ],
)
def test_context_is_what_is_nearest_to_the_hole(before, holes, after, expected):
    assert fit_window([0] * before, holes, [0] * after, WINDOW) == expected


@pytest.mark.parametrize(("holes", "after", "most"), [(7, [1], 6), (8, [], 7)])
def test_hole_that_fills_the_window_is_refused(holes, after, most):
    with pytest.raises(ConfigError, match=f"max_tokens={holes} .* use at most {most}"):
        fit_window([1], holes, after, WINDOW)


def test_middle_is_drawn_between_prompt_and_suffix():
    adapter = CountingAdapter()
    steps: list[PartialText] = []
    settings = SamplingSettings(max_tokens=3, on_step=steps.append)
    middle = infill_tokens(adapter, Counter(), VOCABULARY, "abcdef", "uvwxyz", settings)
    assert middle == [72, 71, 70]  # 5, 6 and 7 tokens known, from the right
    nearest = [*b"def", None, None, None, *b"uv"]
    assert adapter.windows == [nearest]
    before, after = [256, *b"abcdef"], [*b"uvwxyz"]
    assert steps[0] == [*before, None, None, None, *after]
    assert steps[-1] == [*before, *middle, *after]
    assert len(steps) == 4


def test_left_to_right_model_refuses_to_fill():
    adapter = DefaultModelAdapter(type(None), Counter)
    assert not adapter.can_denoise
    with pytest.raises(ConfigError, match="Counter writes from left to right"):
        infill_tokens(adapter, Counter(), VOCABULARY, "a", "b", SamplingSettings())


# -- traces ---------------------------------------------------------------------------------------


def pieces(tokens: list[int | None]) -> list[str | None]:
    return text_pieces(tokens, VOCABULARY, VOCABULARY.token_bytes.eq(0).tolist())


def test_character_of_several_tokens_stands_at_its_last():
    assert pieces([256, *"a\u20acb".encode(), None]) == [
        "\u00b6", "a", "", "", "\u20ac", "b", None,
    ]  # fmt: skip


def test_character_cut_by_a_hole_is_replaced():
    first, second, third = "\u20ac".encode()
    assert pieces([first, second, None]) == ["", "\ufffd", None]
    assert pieces([first, None, third]) == ["\ufffd", None, "\ufffd"]


def test_page_tells_every_step_and_needs_no_network():
    adapter, trace = CountingAdapter(), Trace("</script> & co")
    settings = SamplingSettings(max_tokens=2, on_step=trace.add)
    infill_tokens(adapter, Counter(), VOCABULARY, "a", "z", settings)
    page = trace_page("counter <1>", [trace], VOCABULARY)
    assert "<title>counter &lt;1&gt;</title>" in page
    assert not re.search(r"https?:|src=|@import|url\(|{{", page)
    data = re.search(r'id="samples">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    (sample,) = json.loads(data[1])
    assert sample["caption"] == "</script> & co"
    assert sample["frames"] == [
        {"0": "\u00b6", "1": "a", "2": None, "3": None, "4": "z"},
        {"3": "G"},  # three holes behind it are filled before
        {"2": "H"},
    ]
