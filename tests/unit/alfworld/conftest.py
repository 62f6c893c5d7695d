"""Games shared by the ALFWorld tests: a quick bundle, generated once per test process."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.alfworld.prepare import QUICK_SIZES, prepare
from envs.alfworld.shipped import missing
from envs.alfworld.store import Store


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``prepare --quick --official-layout`` writes."""
    out = tmp_path_factory.mktemp("alfworld")
    prepare(out, QUICK_SIZES, official_layout=True)
    return out


@pytest.fixture(scope="session")
def store(bundle: Path) -> Store:
    return Store(bundle / "data", None)


@pytest.fixture(scope="session")
def shipped_engine() -> None:
    """Skips where the compiled packages are not installed."""
    if reason := missing():
        pytest.skip(f"the shipped engine cannot run here: {reason}")
