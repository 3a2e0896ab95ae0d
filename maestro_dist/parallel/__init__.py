"""Ranks: their grid (`mesh`) and their process groups (`group`).

The time axis of a sample is spread over ranks by `sequence`, or by `ulysses`; both rest on `collectives`.
What a mesh costs, before any rank exists, is in `plan`, by the formulas in `traffic`.
"""
