"""The equations of the record, one token, one head and one key at a time.

It shares no code with the package: it reads weights by their names and settings by theirs. Rotary
positions are the record's own, pairs (2i, 2i + 1) turned backwards, with the rows of W_q and W_k
permuted to fit. Every function takes what belongs to one row of tokens; a stream is a list with one
vector per token.
"""

import math
from typing import Any

import torch
from torch import Tensor

Stream = list[Tensor]
Weights = dict[str, Tensor]
Heads = dict[tuple[int, int], Tensor]  # (K,) by token and head


def rms(x: Tensor, eps: float = 2.0**-23) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


class Reference:
    """The model as a function of `weights`, the parameters and buffers of the package's by name.

    Args: config: settings, read by name; separator: begins a document; stage: of the schedule.
    """

    def __init__(self, weights: Weights, config: Any, *, separator: int, stage: int) -> None:
        self.w, self.c, self.separator, self.stage = weights, config, separator, stage

    def logits(self, rows: list[list[int]]) -> Tensor:
        """(B, T, V)."""
        return torch.stack([torch.stack(self._row(row)) for row in rows])

    # -- settings that depend on the stage --------------------------------------------------------

    def _of_stage(self, values: Any) -> Any:
        return values[0] if len(values) == 1 else values[min(self.stage, len(values) - 1)]

    def _window(self, layer: int) -> int:
        short, long = self._of_stage(self.c.windows)
        if self.stage == len(self.c.stage_starts) and self.c.eval_window_long:
            long = self.c.eval_window_long
        return long if self.c.window_pattern[layer] == "L" else short

    def _frequencies_and_scale(self) -> tuple[list[float], float]:
        c, head_dim = self.c, self.c.model_dim // self.c.num_heads
        count = int(c.rope_fraction * head_dim) // 2
        frequencies = [(1 / c.rope_base) ** (i / max(count - 1, 1)) for i in range(count)]
        scale = c.attn_scale or 1 / math.sqrt(head_dim)
        stages = range(1, min(self.stage, len(c.stage_starts) - 1) + 1) if c.yarn else ()
        for stage in stages:
            old, new = c.windows[stage - 1][1], c.windows[stage][1]
            for i, w in enumerate(frequencies):
                rotations = old * w / (2 * math.pi)
                kept = min(max((rotations - 1) / (32 - 1), 0), 1)
                frequencies[i] = w * (old / new + kept * (1 - old / new))
            scale *= 0.2 * math.log(new / old) + 1
        return frequencies, scale

    # -- coefficients per token -------------------------------------------------------------------

    def _gate_layout(self) -> list[tuple[int, str, int]]:
        """(layer, name, count) in the order of the record's comments."""
        c, heads = self.c, self.c.num_heads
        last = c.num_layers - 1
        layout = [(n, "xsa", heads) for n in sorted(c.xsa_layers)]
        layout += [(n, "attention", heads) for n in sorted(c.attn_gate_layers)]
        for n in range(c.num_layers):
            if c.window_pattern[n] != "-" and not (c.mudd and n == last):
                layout += [(n, "x0", 1)] * c.x0_injection
                layout += [(n, "bigram", 1)] * (c.bigram_rows > 0)
        if c.bigram_rows and not any(entry[:2] == (0, "bigram") for entry in layout):
            layout.append((0, "bigram", 1))
        if c.skip:
            layout.append((c.skip[1], "skip", 1))
        for n in sorted(c.dc_layers):
            layout += [(n, "dc_read", heads), (n, "dc_write", heads)]
        return layout

    def _coefficients(self, z: Tensor, where: str, scale: Tensor | float) -> Tensor:
        if not self.c.gates_per_token:
            return scale * self.w[f"{where}.bias"]
        hidden = gelu(self.w[f"{where}.w1"] @ z)
        return scale * (self.w[f"{where}.w2"] @ hidden + self.w[f"{where}.bias"])

    def _gates(self, stream: Stream, *, late: bool) -> dict[tuple[int, str], Stream]:
        split = self.c.gate_split_layer or self.c.num_layers
        layout = [entry for entry in self._gate_layout() if (entry[0] >= split) == late]
        if not layout:
            return {}
        where = "late_gates" if late else "early_gates"
        outputs = [self._coefficients(z, where, self.w["gate_scale"]) for z in stream]
        found, offset = {}, 0
        for layer, name, count in layout:
            found[layer, name] = [out[offset : offset + count] for out in outputs]
            offset += count
        assert offset == len(outputs[0])
        return found

    # -- the whole ------------------------------------------------------------------------------

    def _row(self, tokens: list[int]) -> Stream:
        c, w = self.c, self.w
        length = len(tokens)
        opens = [token == self.separator for token in tokens]
        self.starts = [t == 0 or (c.reset_at_document and opens[t]) for t in range(length)]
        self.document = [sum(opens[: t + 1]) if c.document_mask else 0 for t in range(length)]
        self.tokens = tokens

        e = [w["embedding.weight"][token] for token in tokens]
        x0 = [rms(z) for z in self._smeared(e)]
        b = self._bigrams() if c.bigram_rows else None
        tables = {
            layer: [w[f"tables.{n}.weight"][token] for token in tokens]
            for n, layer in enumerate(c.value_embed_layers)
        }
        gates = self._gates(x0, late=False)
        x = x0
        if b is not None:
            x = [x[t] + gates[0, "bigram"][t] * b[t] for t in range(length)]
        kept = {"start": x, "x0": x0}

        for layer in range(c.num_layers):
            if c.gate_split_layer == layer:
                gates |= self._gates(x, late=True)
            own = {name: value for (n, name), value in gates.items() if n == layer}
            kept["entry"] = x
            if c.mudd and layer == c.num_layers - 1:
                x = self._last_layer(layer, x, own, b, tables.get(layer), kept)
            else:
                x = self._layer(layer, x, own, b, tables.get(layer), kept)
            if layer == c.snapshot_layer:
                kept["snapshot"] = x
            if c.skip and layer == c.skip[0]:
                kept["skip"] = x
        return [self._head(z) for z in self._mixed(x, kept, tables)]

    def _smeared(self, e: Stream) -> Stream:
        if not self.c.smear:
            return e
        w_s, scale = self.w["smear_gate"][0], self.w["smear_scale"][0]
        found = []
        for t, own in enumerate(e):
            gate = scale * sigmoid((w_s * own[:12]).sum())
            found.append(own if self.starts[t] else own + gate * e[t - 1])
        return found

    def _bigrams(self) -> Stream:
        table, signs = self.w["bigram.table.weight"], self.w["bigram.signs"]
        found = []
        for t, token in enumerate(self.tokens):
            row, sign = len(table) - 1, 0
            if not self.starts[t]:
                before = self.tokens[t - 1]
                row = ((36313 * token) ^ (27191 * before)) % (len(table) - 1)
                sign = (token ^ before) % len(signs)
            found.append(table[row] * signs[sign])
        return found

    def _layer(
        self, layer: int, x: Stream, gates: dict[str, Stream], b: Stream | None,
        table: Stream | None, kept: dict[str, Stream],
    ) -> Stream:  # fmt: skip
        c, steps, block = self.c, range(len(x)), f"blocks.{layer}"
        keep, add = self.w[f"{block}.keep"], self.w[f"{block}.add"]
        if c.window_pattern[layer] == "-":
            if c.skip and c.skip[1] == layer:
                share = sigmoid(self.w[f"{block}.skip"])
                x = [x[t] + share * gates["skip"][t] * kept["skip"][t] for t in steps]
        else:
            a = self._attention_input(x, kept)
            values = None if table is None else self._gated_table(layer, a, table)
            found = self._attention(layer, a, values, gates)
            x = [keep[0] * x[t] + add[0] * found[t] for t in steps]
            if c.x0_injection:
                x = [x[t] + gates["x0"][t] * kept["x0"][t] for t in steps]
            if b is not None and layer > 0:
                x = [x[t] + gates["bigram"][t] * b[t] for t in steps]
        return [keep[1] * z + add[1] * self._mlp(layer, rms(z)) for z in x]

    def _last_layer(
        self, layer: int, x: Stream, gates: dict[str, Stream], b: Stream | None,
        table: Stream | None, kept: dict[str, Stream],
    ) -> Stream:  # fmt: skip
        """The record's fourteen coefficients, in its order."""
        c, where = self.c, f"blocks.{layer}.mix"
        m = [list(self._coefficients(z, where, 0.1)) for z in x]
        a = self._attention_input(x, kept)
        values, moved = [], []
        for t, z in enumerate(x):
            sources = [kept["start"][t]]
            sources += [kept["snapshot"][t]] if "snapshot" in kept else []
            sources += [z]
            value = sum(m[t].pop(0) * source for source in sources)
            moved.append(z + sum(m[t].pop(0) * source for source in sources))
            if table is not None and not c.value_gates:
                value = value + table[t]
            elif table is not None:
                halves = 2 if c.num_heads % 2 == 0 else 1
                for half in range(halves):
                    part = torch.zeros(c.model_dim, dtype=z.dtype)
                    width = c.model_dim // halves
                    part[half * width : (half + 1) * width] = 1
                    value = value + m[t].pop(0) * part * table[t]
            values.append(value)
        found = self._attention(layer, a, values, gates)
        after = []
        for t, z in enumerate(moved):
            z = m[t].pop(0) * z + m[t].pop(0) * found[t]
            if c.x0_injection:
                z = z + m[t].pop(0) * kept["start"][t]
            if b is not None:
                z = z + m[t].pop(0) * b[t]
            after.append(m[t].pop(0) * z + m[t].pop(0) * self._mlp(layer, rms(z)))
            assert not m[t]
        return after

    def _attention_input(self, x: Stream, kept: dict[str, Stream]) -> Stream:
        is_shared = self.c.shared_attention_input and "snapshot" in kept
        return [rms(z) for z in (kept["snapshot"] if is_shared else x)]

    def _gated_table(self, layer: int, a: Stream, table: Stream) -> Stream:
        if not self.c.value_gates:
            return table
        weight = self.w[f"blocks.{layer}.attention.value_gate"]
        found = []
        for own, looked_up in zip(a, table, strict=True):
            gate = 2 * sigmoid(weight @ torch.cat([own[:6], looked_up[:6]]))  # one per head
            heads = looked_up.split(self.c.model_dim // self.c.num_heads)
            found.append(torch.cat([gate[h] * part for h, part in enumerate(heads)]))
        return found

    def _mlp(self, layer: int, z: Tensor) -> Tensor:
        hidden = self.w[f"blocks.{layer}.mlp.up.weight"] @ z
        hidden = gelu(hidden) if self.c.activation == "gelu" else hidden * hidden * (hidden > 0)
        return self.w[f"blocks.{layer}.mlp.down.weight"] @ hidden

    def _mixed(self, x: Stream, kept: dict[str, Stream], tables: dict[int, Stream]) -> Stream:
        c = self.c
        if not c.mudd:
            if not c.backout:
                return x
            share = self.w["backout"]
            return [z + share * kept["snapshot"][t] for t, z in enumerate(x)]
        kept = kept | ({"table": tables[min(tables)]} if tables else {})
        names = [n for n in ("start", "entry", "snapshot", "table", "skip") if n in kept]
        found = []
        for t, z in enumerate(x):
            m = self._coefficients(z, "mix", 0.1)
            assert len(m) == len(names)
            found.append(z + sum(m[n] * kept[name][t] for n, name in enumerate(names)))
        return found

    def _head(self, x: Tensor) -> Tensor:
        z = self.w.get("head.weight", self.w["embedding.weight"]) @ rms(x)
        if self.c.softcap is None:
            return z
        height, shift, width = self.c.softcap
        return height * sigmoid((z + shift) / width)

    # -- attention --------------------------------------------------------------------------------

    def _turn(self, place: int, frequencies: list[float], head_dim: int) -> Tensor:
        """(K, K): a head's channels in the record's order, turned to `place`."""
        count = len(frequencies)
        matrix = [[0.0] * head_dim for _ in range(head_dim)]
        for i, frequency in enumerate(frequencies):
            even, odd = i + count, i  # what the record has as 2i and 2i + 1
            cos, sin = math.cos(place * frequency), math.sin(place * frequency)
            matrix[2 * i][even], matrix[2 * i][odd] = cos, sin
            matrix[2 * i + 1][even], matrix[2 * i + 1][odd] = -sin, cos
        for i in range(2 * count, head_dim):
            matrix[i][i] = 1.0
        return torch.tensor(matrix)

    def _attention(
        self, layer: int, a: Stream, extra: Stream | None, gates: dict[str, Stream]
    ) -> Stream:
        c, steps = self.c, range(len(a))
        num_heads, dim = c.num_heads, c.model_dim
        head_dim, where = dim // num_heads, f"blocks.{layer}.attention"
        is_paired = layer in c.paired_layers
        enter, leave = self.w[f"{where}.gains"]
        frequencies, scale = self._frequencies_and_scale()
        q: Heads = {}
        k: Heads = {}
        v: Heads = {}
        for t in steps:
            made = self.w[f"{where}.qkv.weight"] @ (enter * a[t])
            queries, keys, values = made.view(3, num_heads, head_dim)
            if extra is not None:
                values = values + extra[t].view(num_heads, head_dim)
            for store, heads in ((q, queries), (k, keys)):
                heads = rms(heads) if c.qk_norm else heads
                for parity in (0, 1):
                    place = 2 * t + parity if is_paired else t
                    turned = heads @ self._turn(place, frequencies, head_dim).T
                    store |= {(t, h): turned[h] for h in range(parity, num_heads, 2)}
            v |= {(t, h): values[h] for h in range(num_heads)}
        if c.key_offset and c.window_pattern[layer] == "L":
            half = head_dim // 2
            k = {
                (t, h): torch.cat([z[:half], (z if self.starts[t] else k[t - 1, h])[half:]])
                for (t, h), z in k.items()
            }
        window = self._window(layer)
        if is_paired:
            y = self._paired(q, k, v, window, scale)
        else:
            y = {(t, h): self._read(q, k, v, (t, h), window, scale) for t, h in q}
        if layer in c.dc_layers:
            y = self._cross_heads(y, q, k, v, gates, scale)
        found = []
        for t in steps:
            heads = []
            for h in range(num_heads):
                z, value = y[t, h], v[t, h]
                if layer in c.xsa_layers:
                    share = torch.tanh(gates["xsa"][t][h])
                    z = z - share * (z @ value) / torch.clamp(value @ value, min=1e-8) * value
                if layer in c.attn_gate_layers:
                    z = gates["attention"][t][h] * z
                heads.append(z)
            found.append((leave * self.w[f"{where}.out.weight"]) @ torch.cat(heads))
        return found

    def _sees(self, t: int, u: int) -> bool:
        return u <= t and self.document[u] == self.document[t]

    def _read(
        self, q: Heads, k: Heads, v: Heads, query: tuple[int, int], window: int, scale: float
    ) -> Tensor:
        t, h = query
        seen = [(u, h) for u in range(max(t - window, 0), t + 1) if self._sees(t, u)]
        return softmax_mean(scale * q[query], [k[key] for key in seen], [v[key] for key in seen])

    def _paired(self, q: Heads, k: Heads, v: Heads, window: int, scale: float) -> Heads:
        """The record's view of its memory: row 2t is head j, row 2t + 1 head j + H/2."""
        half = self.c.num_heads // 2
        found = {}
        for j in range(half):
            rows = [(t, j + side * half) for t in range(len(self.tokens)) for side in (0, 1)]
            for r, query in enumerate(rows):
                near = rows[max(r - window, 0) : r + 1]
                seen = [key for key in near if self._sees(query[0], key[0])]
                keys, values = [k[key] for key in seen], [v[key] for key in seen]
                found[query] = softmax_mean(scale * q[query], keys, values)
        return found

    def _cross_heads(
        self, y: Heads, q: Heads, k: Heads, v: Heads, gates: dict[str, Stream], scale: float
    ) -> Heads:
        """y_h + w2_h sum_g w1_g softmax_g v_h, over the last dc_window keys."""
        found = dict(y)
        heads = range(self.c.num_heads)
        for t in range(len(self.tokens)):
            read = rms(gates["dc_read"][t], 1e-6)
            first = max(t - self.c.dc_window + 1, 0)
            seen = [u for u in range(first, t + 1) if self._sees(t, u)]
            for h in heads:
                values = [v[u, h] for u in seen]
                part = sum(
                    read[g] * softmax_mean(scale * q[t, g], [k[u, g] for u in seen], values)
                    for g in heads
                )
                found[t, h] = y[t, h] + gates["dc_write"][t][h] * part
        return found


def softmax_mean(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """The values, weighed by the exponentials of the query's products with the keys."""
    weights = torch.exp(torch.stack(keys) @ query)
    return weights @ torch.stack(values) / weights.sum()


def reference_loss(
    logits: Tensor,
    rows: list[list[int]],
    config: Any,
    *,
    progress: float,
    prefixes: list[int] | None = None,
) -> Tensor:
    """The mean over tokens of sum_k w_k nll(the token k + 1 further) and the prefix's share.

    Args: rows: tokens with as many more as there are targets; prefixes: of each token, or -1.
    """
    starts = list(config.stage_starts)
    stage = max(n for n, start in enumerate(starts) if start <= progress)
    end = starts[stage + 1] if stage + 1 < len(starts) else 1.0
    share = (progress - starts[stage]) / (end - starts[stage])

    def between(values: Any) -> Any:
        first, last = values[0] if len(values) == 1 else values[stage]
        if isinstance(first, tuple):
            return [a + share * (b - a) for a, b in zip(first, last, strict=True)]
        return first + share * (last - first)

    weights, prefix_weight = between(config.mtp_weights), between(config.prefix_weight)
    losses = []
    for row, found in zip(rows, logits, strict=True):
        for t, z in enumerate(found):
            log_total = torch.log(torch.exp(z).sum())
            loss = sum(w * (log_total - z[row[t + 1 + n]]) for n, w in enumerate(weights))
            if prefixes is not None and prefixes[row[t + 1]] >= 0:
                loss = loss + prefix_weight * (log_total - z[prefixes[row[t + 1]]])
            losses.append(loss)
    return sum(losses) / len(losses)
