"""The published formulation of the method, written in plain torch from its description: the one to be compared with.

It does what the paper and its released code do, and no more slowly than that asks for: words symbolised one by one in a
Python loop; a key set of its own drawn for each query, with replacement, and gathered to [B, H, L, U, d_h]; no masks;
the mean of the values for all other queries; experts called one after the other on the tokens that a mask picks, each
with a host synchronisation, and weighted by raw logits; budgets rounded up, so that the gate gets no gradient; absent
modalities encoded like the others.
"""

from benchmarks.published.attention import SparseAttention, sparse_attention
from benchmarks.published.experts import MaskedExperts
from benchmarks.published.model import Published
from benchmarks.published.symbols import symbols, symbols_by_word, symbols_by_word_numpy

__all__ = [
    "MaskedExperts",
    "Published",
    "SparseAttention",
    "sparse_attention",
    "symbols",
    "symbols_by_word",
    "symbols_by_word_numpy",
]
