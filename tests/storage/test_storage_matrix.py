"""Some cells of the matrix of faults, with real runs. `fault_matrix.py` runs all others."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fault_matrix import Cell, Matrix, environment

CELLS = [
    (Cell("503", "all", seconds=20), "same"),
    (Cell("refused", "all", seconds=20, after=50), "same"),
    (Cell("wrong byte", "checkpoint part read", moment="resume"), "same"),
    (Cell("lost answer", "lease write"), "same"),
    (Cell("404", "checkpoint write", moment="resume"), "same"),
    (Cell("lost answer", "export"), "same"),
    (Cell("stall", "shards", readers=1, patience=10), "same"),
    (Cell("503", "shards", seconds=600, patience=5), r"packed/\S+\.tar: "),
    (Cell("503", "checkpoint write", seconds=600, patience=5), r"/checkpoints/step-\S+: "),
    (
        Cell("wrong byte", "checkpoint part read", seconds=600, moment="resume", patience=5),
        r"\.safetensors is damaged: ",
    ),
    # one worker waits for storage, the other for that worker: the error is about storage
    (Cell("503", "shards", seconds=600, workers=2, timeout=40), r"worker \d: .*packed/\S+\.tar: "),
]
"""Cells, and what becomes of them: the same weights, or an error with these words."""


@pytest.fixture(scope="module")
def matrix(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(s3_server).items():
            patch.setenv(name, value)
        yield Matrix(s3_server, tmp_path_factory.mktemp("matrix"))


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "becomes"), CELLS, ids=[str(cell) for cell, _ in CELLS])
def test_a_fault_changes_nothing_or_is_named(matrix: Matrix, cell: Cell, becomes: str) -> None:
    outcome = matrix.run(cell)
    assert outcome.hits > 0
    assert outcome.kind == ("same" if becomes == "same" else "error"), outcome
    assert becomes == "same" or re.search(becomes, outcome.said[-1]), outcome
