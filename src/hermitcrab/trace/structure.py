"""Which tensor does what: from shapes, from the graph where the file has one, and from position. Names are hints at most.

A hint counts where the shapes allow it, and over attention's four square matrices the weights themselves have the last word:
training keeps the norms of what is multiplied together in step (row j of q and of k; row j of v and column j of o), which
tells query, key, value and output apart however they are named (Du et al. 2018, arXiv:1806.00900, theorem 2.1).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from hermitcrab.trace.hints import hint
from hermitcrab.trace.parts import Part, Seen, Structure

MOST_LAYERS = 2000


def natural(name: str) -> list[object]:
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d{1,9})", name)]


def understand(seen: Sequence[Seen], ordered: bool = False) -> Structure:
    """The structure of a model from its tensors. `ordered`: they stand in the order of the graph already."""
    tensors = list(seen) if ordered else sorted(seen, key=lambda s: natural(s.name))
    matrices = [s for s in tensors if len(s.shape) >= 2 and min(s.shape) > 0]
    groups, how = _by_index(matrices), "names and shapes"
    if not groups:
        groups, how = _by_period(matrices), "position and shapes"
    found = Structure(how=how)
    if not groups or len(groups) > MOST_LAYERS:
        found.spare = matrices
        return found
    inside = {s.name for group in groups for s in group}
    found.width = _width(groups, [s for s in matrices if s.name not in inside])
    if not found.width:
        found.spare = matrices
        return found
    for layer, group in enumerate(groups):
        found.spare += _layer(found, layer, group)
    lone = len(groups) < 2 and not any(
        p.role == "o" for p in found.parts
    )  # one block without attention: no block at all
    if lone or not any(p.role in ("o", "down") for p in found.parts):
        return Structure(spare=matrices)
    found.layers = len(groups)
    _outside(found, [s for s in matrices if s.name not in inside])
    _vectors(found, [s for s in tensors if len(s.shape) == 1], groups)
    return found


def _by_index(matrices: Sequence[Seen]) -> list[list[Seen]]:
    """Tensors by the first number in their names, where those numbers count repeated blocks of the same shapes."""
    blocks: dict[tuple[str, int], list[Seen]] = defaultdict(list)
    shapes: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for s in matrices:
        if m := re.match(r"([^\d]*)(\d{1,6})(.*)", s.name):
            blocks[m[1], int(m[2])].append(s)
            shapes[m[1] + "#" + re.sub(r"\d+", "#", m[3])][s.shape] += 1
    if not blocks:
        return []
    # `t0, t1, t2…` numbers the tensors themselves: one template, many shapes
    mixed = sum(1 for seen in shapes.values() if len(seen) > 2)
    prefixes: Counter[str] = Counter()
    for (prefix, _), block in blocks.items():
        prefixes[prefix] += len(block)
    chosen = {
        p
        for p in prefixes
        if sum(1 for q, _ in blocks if q == p) >= 1 and max(len(b) for (q, _), b in blocks.items() if q == p) >= 2
    }
    if mixed * 2 > len(shapes) or not chosen:
        return []
    return [blocks[key] for key in sorted(blocks) if key[0] in chosen and len(blocks[key]) >= 2]


def _by_period(matrices: Sequence[Seen]) -> list[list[Seen]]:
    """Blocks of a sequence of shapes that repeats."""
    shapes = [s.shape for s in matrices]
    best: tuple[int, int, int] = (0, 0, 0)  # covered, start, period
    for period in range(2, min(len(shapes) // 2, 2048) + 1):
        run = 0
        for i in range(len(shapes) - period):
            run = run + 1 if shapes[i] == shapes[i + period] else 0
            covered = (run + period) // period * period
            if run >= period and covered > best[0]:
                best = (covered, i - run + 1, period)
        if best[0] and period > 64:
            break
    covered, start, period = best
    if not covered:
        return []
    start = _phase(shapes, start, period, covered)
    return [list(matrices[at : at + period]) for at in range(start, start + covered, period)]


def _phase(shapes: list[tuple[int, ...]], start: int, period: int, covered: int) -> int:
    """A block that begins in the middle of a layer is the same sequence turned: begin where attention's squares begin."""
    extra = 0
    while start + extra + covered < len(shapes) and shapes[start + extra] == shapes[start + extra + covered]:
        extra += 1
    for shift in range(extra + 1):
        block = shapes[start + shift : start + shift + period]
        if len(block[0]) == 2 and block[0][0] == block[0][1] and block[-1][0] != block[-1][1]:
            return start + shift
    return start


def _width(groups: Sequence[Sequence[Seen]], outside: Sequence[Seen]) -> int:
    """The size that most matrices of the blocks share; where two do, the one that the largest outer table has."""
    counts: Counter[int] = Counter()
    for group in groups:
        for s in group:
            counts.update(set(s.shape[-2:]) if len(s.shape) <= 3 else ())
    if not counts:
        return 0
    top = max(counts.values())
    tied = [size for size, count in counts.items() if count == top]
    total = sum(1 for g in groups for s in g if len(s.shape) <= 3)
    if top < 0.6 * total:
        return 0
    if len(tied) == 1:
        return tied[0]
    table = max((s for s in outside if len(s.shape) == 2), key=lambda s: s.shape[0] * s.shape[1], default=None)
    within = [t for t in tied if table is not None and t in table.shape]
    return min(within or tied)


def _layer(found: Structure, layer: int, group: Sequence[Seen]) -> list[Seen]:
    """Roles of one block; returns what has none."""
    d, spare = found.width, []
    named: dict[str, list[tuple[Seen, str | None]]] = defaultdict(list)
    flipped = _flipped(group, d)
    for s in group:
        if d not in s.shape[-2:] or len(s.shape) > 3:
            spare.append(s)
            continue
        named["stack" if len(s.shape) == 3 else "matrix"].append((s, hint(s.name)))
    experts = [
        x
        for x in named["matrix"]
        if (m := re.findall(r"\d+", x[0].name)) and len(m) >= 2 and re.search(r"expert", x[0].name)
    ]
    numbered = experts if experts else _numbered_experts(named["matrix"])
    plain = [x for x in named["matrix"] if x not in numbered]
    for number, members in sorted(_by_expert(numbered).items()):
        spare += _mlp(found, layer, members, flipped, number)
    for s, name in named["stack"]:
        spare += _stack(found, layer, s, name)
    return spare + _dense(found, layer, plain, flipped)


def _flipped(group: Sequence[Seen], d: int) -> bool:
    """Whether rows are inputs (GPT-2's Conv1D, ONNX's MatMul)."""
    if any(s.turned is not None for s in group):
        return sum(bool(s.turned) for s in group) * 2 > sum(s.turned is not None for s in group)
    votes = 0
    for s in group:
        if len(s.shape) != 2 or s.shape[0] == s.shape[1] or d not in s.shape:
            continue
        role = hint(s.name)
        if s.shape[0] == d and (role in ("qkv", "up", "gate_up") or s.shape[1] == 3 * d):
            votes += 1
        elif s.shape[1] == d and (role in ("qkv", "up", "gate_up") or s.shape[0] == 3 * d):
            votes -= 1
    return votes > 0


def _numbered_experts(matrices: list[tuple[Seen, str | None]]) -> list[tuple[Seen, str | None]]:
    """Matrices whose second number runs over equal shapes: experts under any name."""
    shapes: dict[str, set[int]] = defaultdict(set)
    for s, _ in matrices:
        numbers = re.findall(r"\d+", s.name)
        if len(numbers) >= 2:
            shapes[re.sub(r"\d+", "#", s.name)].add(int(numbers[1]))
    many = {t for t, values in shapes.items() if len(values) >= 2}
    return [x for x in matrices if re.sub(r"\d+", "#", x[0].name) in many]


def _by_expert(matrices: list[tuple[Seen, str | None]]) -> dict[int, list[tuple[Seen, str | None]]]:
    out: dict[int, list[tuple[Seen, str | None]]] = defaultdict(list)
    for s, name in matrices:
        out[int(re.findall(r"\d+", s.name)[1])].append((s, name))
    return out


def _add(
    found: Structure, layer: int, role: str, s: Seen, flipped: bool, expert: int = -1, start: int = 0, rows: int = 0
) -> None:
    out, inner = (s.shape[1], s.shape[0]) if flipped else (s.shape[0], s.shape[1])
    found.parts.append(Part(role, layer, s.name, (rows or out, inner), flipped, start, expert))


def _mlp(
    found: Structure, layer: int, members: list[tuple[Seen, str | None]], flipped: bool, expert: int = -1
) -> list[Seen]:
    """gate, up and down by shape: the one that writes the stream is `down`; of two readers the gate comes first."""
    d, spare = found.width, []
    writers = [x for x in members if x[0].shape[1 if flipped else 0] == d and x[0].shape[0] != x[0].shape[1]]
    readers = [x for x in members if x[0].shape[0 if flipped else 1] == d and x[0].shape[0] != x[0].shape[1]]
    if any(s.shape[0] == s.shape[1] for s, _ in members):  # as many neurons as coordinates: only names can tell
        writers, readers = [x for x in members if x[1] == "down"], [x for x in members if x[1] in ("gate", "up")]
    if len(writers) == 1 and len(readers) == 1:
        down, up = writers[0][0], readers[0][0]
        wide = up.shape[1 if flipped else 0]
        if wide == 2 * down.shape[0 if flipped else 1]:  # gate and up in one
            found.gated = True
            found.sure_gate &= readers[0][1] == "gate_up"
            _add(found, layer, "gate", up, flipped, expert, 0, wide // 2)
            _add(found, layer, "up", up, flipped, expert, wide // 2, wide // 2)
        else:
            _add(found, layer, "up", up, flipped, expert)
        _add(found, layer, "down", down, flipped, expert)
    elif len(writers) == 1 and len(readers) == 2 and readers[0][0].shape == readers[1][0].shape:
        hints = {x[1] for x in readers}
        if hints == {"gate", "up"}:
            readers.sort(key=lambda x: x[1] != "gate")
        else:
            found.sure_gate = False
        found.gated = True
        for role, (s, _) in zip(("gate", "up"), readers, strict=True):
            _add(found, layer, role, s, flipped, expert)
        _add(found, layer, "down", writers[0][0], flipped, expert)
    else:
        spare = [s for s, _ in members]
    return spare


def _stack(found: Structure, layer: int, s: Seen, name: str | None) -> list[Seen]:
    """Experts in one tensor: (experts, rows, columns)."""
    experts, rows, columns = s.shape
    d = found.width
    if rows == columns or experts > 4096:
        return [s]
    if name == "down" or (name is None and rows == d):
        turned = rows != d
        for e in range(experts):
            found.parts.append(Part("down", layer, s.name, (d, columns if not turned else rows), turned, 0, e, e))
        return []
    turned = columns != d
    wide = columns if turned else rows
    if name == "gate_up":
        found.gated = True
        for e in range(experts):
            for i, role in enumerate(("gate", "up")):
                found.parts.append(Part(role, layer, s.name, (wide // 2, d), turned, i * (wide // 2), e, e))
        return []
    if name in ("gate", "up"):
        found.gated |= name == "gate"
        found.parts += [Part(name, layer, s.name, (wide, d), turned, 0, e, e) for e in range(experts)]
        return []
    return [s]


def _dense(found: Structure, layer: int, members: list[tuple[Seen, str | None]], flipped: bool) -> list[Seen]:
    """Attention and a dense MLP out of one block's matrices."""
    d = found.width
    attention, mlp = [], []
    others = Counter(_other(s, d) for s, _ in members)
    widest = max((o for o, c in others.items() if c >= 2 and o > d), default=0)
    has_fused = any(_other(s, d) == 2 * o for s, _ in members for o in others if o > d and others[o] == 1)
    if not widest and has_fused:
        widest = max(o for o in others if o > d)
    for x in members:
        other, name = _other(x[0], d), x[1]
        small = other < d // 8 or (other < 64 and other * 4 < d)
        if name == "router" and other < d:
            _add(found, layer, "router", x[0], flipped)
        elif name in ("gate", "up", "down", "gate_up"):
            mlp.append(x)
        elif name in ("q", "k", "v", "o", "qkv"):
            attention.append(x)
        elif widest and other in (widest, widest // 2) and other > d:
            mlp.append(x)
        elif small:
            _add(found, layer, "router", x[0], flipped)
        else:
            attention.append(x)
    spare = _mlp(found, layer, mlp, flipped) if mlp else []
    return spare + _attention(found, layer, attention, flipped)


def _other(s: Seen, d: int) -> int:
    return s.shape[1] if s.shape[0] == d else s.shape[0]


def _attention(found: Structure, layer: int, members: list[tuple[Seen, str | None]], flipped: bool) -> list[Seen]:
    d = found.width
    roles = {name: s for s, name in members if name in ("q", "k", "v", "o")}
    fused = next((s for s, name in members if name == "qkv" or (name not in roles and _other(s, d) == 3 * d)), None)
    if fused is not None:
        out = _other(fused, d) if fused.shape[0] != fused.shape[1] else fused.shape[0]
        rest = [s for s, _ in members if s is not fused]
        if len(rest) == 1:
            inner = rest[0].shape[1 if not flipped else 0]
            kv = (out - inner) // 2
            if kv > 0 and inner + 2 * kv == out:
                for role, start, rows in (("q", 0, inner), ("k", inner, kv), ("v", inner + kv, kv)):
                    _add(found, layer, role, fused, flipped, -1, start, rows)
                _add(found, layer, "o", rest[0], flipped)
                return []
        return [s for s, _ in members]
    if len(members) == 4 and set(roles) == {"q", "k", "v", "o"}:
        for role, s in roles.items():
            _add(found, layer, role, s, flipped)
        return []
    if len(members) == 4:  # without names: key and value are the narrow ones, else the order of definition
        sizes = [_other(s, d) for s, _ in members]
        order = ["q", "k", "v", "o"]
        if len(set(sizes)) == 2:
            narrow = [i for i, size in enumerate(sizes) if size == min(sizes)]
            wide = [i for i in range(4) if i not in narrow]
            if len(narrow) == 2:
                order = ["", "", "", ""]
                order[narrow[0]], order[narrow[1]], order[wide[0]], order[wide[1]] = "k", "v", "q", "o"
        for role, (s, _) in zip(order, members, strict=True):
            _add(found, layer, role, s, flipped)
        found.how = "position and shapes"
        return []
    return [s for s, _ in members]


def _outside(found: Structure, matrices: Sequence[Seen]) -> None:
    """Embedding, head, learned positions: what lies beside the blocks and touches the stream."""
    d = found.width
    tables = [s for s in matrices if len(s.shape) == 2 and d in s.shape]
    found.spare += [s for s in matrices if s not in tables]
    if not tables:
        return
    rows = max(_other(s, d) for s in tables)
    big = [
        s
        for s in tables
        if (_other(s, d) == rows and rows > 2 * d) or re.search(r"embed|wte|lm_head|token_embd|tok_", s.name)
    ]
    for s in tables:
        turned = s.shape[0] == d and s.shape[1] != d
        if s in big and _other(s, d) == rows:
            head = re.search(r"head|(^|\.)output(\.|$)|decoder|unembed", s.name) or (
                any(p.role == "embedding" for p in found.parts) and not re.search(r"embed|wte|tok", s.name)
            )
            _add(found, -1, "head" if head else "embedding", s, turned)
        elif re.search(r"pos|wpe", s.name) or (s in big and 64 <= _other(s, d) < rows):
            found.learned_positions = True
            _add(found, -1, "position", s, turned)
        else:
            found.spare.append(s)


def _vectors(found: Structure, vectors: Sequence[Seen], groups: Sequence[Sequence[Seen]]) -> None:
    """Gains of the norms, in their order; a shift beside a gain says that the norm subtracts the mean."""
    d = found.width
    starts = [_stem(group) for group in groups]
    shifts = 0
    for layer, stem in enumerate(starts):
        within = [s for s in vectors if stem and s.name.startswith(stem) and s.shape == (d,)]
        norms = [s for s in within if re.search(r"norm|ln", s.name, re.I)]
        gains = [s for s in norms if not re.search(r"(bias|beta|\.b)$", s.name)]
        shifts += sum(1 for s in norms if re.search(r"(bias|beta|\.b)$", s.name))
        gains.sort(
            key=lambda s: (not re.search(r"attn_norm|attention|input|ln_?1|norm1|before", s.name), natural(s.name))
        )
        if len(gains) == 2:
            found.gains[layer, 0], found.gains[layer, 1] = gains[0].name, gains[1].name
    found.centered = shifts >= found.layers
    last = [s for s in vectors if s.shape == (d,) and not any(stem and s.name.startswith(stem) for stem in starts)]
    last = [s for s in last if re.search(r"norm|ln", s.name, re.I) and not re.search(r"(bias|beta)$", s.name)]
    if len(last) == 1:
        found.gains[-1, 0] = last[0].name


def _stem(group: Sequence[Seen]) -> str:
    m = re.match(r"[^\d]*\d{1,6}\D", group[0].name)
    return m[0] if m else ""
