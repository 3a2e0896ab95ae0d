"""A migrated MLflow database, made once: the migration takes seconds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maestro_dist.tracking import tracking_uri


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database; making it must be silent."""
    folder = tmp_path_factory.mktemp("mlflow")
    code = "import sys; from maestro_dist.tracking import open_run; open_run(sys.argv[1], 'first', 'first')"
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, f"sqlite:///{folder}/mlflow.db"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout + made.stderr == ""
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return tracking_uri(None, str(tmp_path))
