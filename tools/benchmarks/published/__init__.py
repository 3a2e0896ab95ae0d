"""The published formulation of the method in plain torch, the reference of the comparisons.

It does what the paper and its released code do, without making it slower: words are symbolised one by one in a Python
loop; each query draws its own keys with replacement, gathered to [B, H, L, U, d_h]; there are no masks; all other
queries get the mean of the values; experts run one after the other on the tokens that a mask selects, each with a host
synchronization, and are weighted by raw logits; budgets are rounded up, so that the gate gets no gradient; missing
modalities are encoded like the others.
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
