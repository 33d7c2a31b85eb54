"""The words of the toybox and a tokenizer for them, in the file format of CLIP's."""

import string
from collections import Counter
from itertools import pairwise

from studio.toybox.world import COLOURS, KINDS, SECOND_WORD, SYNONYMS, TRIM, VIEW_WORDS

WORDS: tuple[str, ...] = (
    "a",
    "an",
    "with",
    "view",
    *VIEW_WORDS,
    *COLOURS,
    *KINDS,
    *SYNONYMS,
    *SECOND_WORD.values(),
    *TRIM.values(),
)
"""Every word that captions use; each is one token."""

MAX_TOKENS = 16
START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"


def tokenizer_files() -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a byte-pair encoding in which every word of ``WORDS`` is one token.

    Other words fall apart into letters, as with any byte-pair encoding.
    """
    letters = string.ascii_lowercase + string.digits + string.punctuation
    alphabet = [c + suffix for suffix in ("", _END_OF_WORD) for c in letters]
    merges, learnt = _learn_merges(WORDS)
    tokens = [*alphabet, *learnt, START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def _learn_merges(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    # Byte-pair encoding (Sennrich et al., arXiv 1508.07909) run until every word is a single symbol.
    spelled = [[*word[:-1], word[-1] + _END_OF_WORD] for word in words]
    merges: list[str] = []
    learnt: list[str] = []
    while any(len(symbols) > 1 for symbols in spelled):
        pairs = Counter(pair for symbols in spelled for pair in pairwise(symbols))
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(f"{left} {right}")
        if left + right not in learnt:
            learnt.append(left + right)
        spelled = [_merge(symbols, left, right) for symbols in spelled]
    return merges, learnt


def _merge(symbols: list[str], left: str, right: str) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and merged[-1] == left and symbol == right:
            merged[-1] = left + right
        else:
            merged.append(symbol)
    return merged
