"""A subword vocabulary from texts: byte-pair merges over characters, the same in every process."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

CONTINUES = "##"
LONGEST_WORD = 100
Pair = tuple[str, str]


def fit_vocabulary(
    words: Mapping[str, int], size: int, specials: Sequence[str], min_count: int = 2
) -> list[str]:
    """Return at most `size` pieces: specials, characters by frequency, then merges in order.

    Args:
        words: Word -> count. Words longer than 100 characters are left out.
        size: Most pieces to return; at least the specials are.
        specials: Pieces that come first, in this order.
        min_count: A pair that occurs less often is not merged.

    Ties are broken by the pieces' own order, so that neither hashing nor the order of `words`
    matters (the trainers of common tokenizer libraries do not promise that).
    """
    counted = sorted((w, n) for w, n in words.items() if 0 < len(w) <= LONGEST_WORD)
    spellings = [[c if i == 0 else CONTINUES + c for i, c in enumerate(w)] for w, _ in counted]
    counts = [n for _, n in counted]
    letters: Counter[str] = Counter()
    for spelling, count in zip(spellings, counts, strict=True):
        for piece in spelling:
            letters[piece] += count
    alphabet = sorted(letters, key=lambda piece: (-letters[piece], piece))
    vocabulary = dict.fromkeys([*specials, *alphabet][: max(size, len(specials))])
    for piece in _merges(spellings, counts, min_count):
        if len(vocabulary) >= size:
            break
        vocabulary.setdefault(piece)
    return list(vocabulary)


def _merges(spellings: list[list[str]], counts: list[int], min_count: int) -> Iterable[str]:
    """Yield the piece that each merge makes, the most frequent pair first."""
    totals: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for word, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            totals[pair] += counts[word]
            where[pair].add(word)
    heap = [(-n, pair) for pair, n in totals.items()]
    heapq.heapify(heap)
    while heap:
        negative, pair = heapq.heappop(heap)
        if -negative != totals[pair]:  # an old entry: its count has changed since
            continue
        if -negative < min_count:
            return
        merged = pair[0] + pair[1].removeprefix(CONTINUES)
        yield merged
        for changed in _apply(pair, merged, spellings, counts, totals, where):
            heapq.heappush(heap, (-totals[changed], changed))


def _apply(
    pair: Pair,
    merged: str,
    spellings: list[list[str]],
    counts: list[int],
    totals: Counter[Pair],
    where: defaultdict[Pair, set[int]],
) -> set[Pair]:
    """Merge `pair` in every word that has it; return the pairs whose totals changed."""
    touched: set[Pair] = set()
    for word in where.pop(pair):
        old = spellings[word]
        new = _merge_word(old, pair, merged)
        spellings[word] = new
        for sign, spelling in ((-1, old), (1, new)):
            for other in pairwise(spelling):
                totals[other] += sign * counts[word]
                touched.add(other)
                if sign > 0:
                    where[other].add(word)
    del totals[pair]
    return {p for p in touched if totals[p] > 0}


def _merge_word(pieces: list[str], pair: Pair, merged: str) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(pieces):
        if tuple(pieces[at : at + 2]) == pair:
            out.append(merged)
            at += 2
        else:
            out.append(pieces[at])
            at += 1
    return out
