"""Ranks: their grid (`mesh`) and their process groups (`group`).

The time axis of a sample is spread over ranks by `sequence`, or by `ulysses`; both use `collectives`.
`plan` computes the cost of a mesh before any rank exists, with the formulas in `traffic`.
"""
