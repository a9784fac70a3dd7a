from nanozoo_current_best_gpt.prefix import prefix_table

TOKENS = [b"t", b"h", b"th", b"there", b"the", b"", b"re", b"thee", b"e", b"there is", b"zz"]


def by_brute_force(tokens):
    table = []
    for token in tokens:
        found = [n for n, t in enumerate(tokens) if t and t != token and token.startswith(t)]
        table.append(max(found, key=lambda n: len(tokens[n]), default=-1))
    return table


def test_the_longest_proper_prefix_is_found():
    table = prefix_table(TOKENS)
    assert table == by_brute_force(TOKENS)
    names = {token: TOKENS[n] if n >= 0 else None for token, n in zip(TOKENS, table, strict=True)}
    assert names[b"there"] == b"the"
    assert names[b"there is"] == b"there"
    assert names[b"zz"] is None


def test_single_bytes_and_tokens_without_text_have_none():
    table = prefix_table([bytes([b]) for b in range(256)] + [b""])
    assert set(table) == {-1}


def test_a_whole_vocabulary_agrees_with_brute_force():
    words = [f"{i:b}".encode() for i in range(300)]
    tokens = list(dict.fromkeys(words))
    assert prefix_table(tokens) == by_brute_force(tokens)
