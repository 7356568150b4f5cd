"""Storage: unusable databases and files are one line each, and only a damaged file is renamed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness import ConfigError, ResultsError
from harness.propose.storage import open_database, open_storage


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "storage.url cannot be read"),
        ("mysql://a:secret@h/db", "mysql://a:***@h/db is not a database that machines can share"),
        ("postgresql://a:secret@127.0.0.1:1/db", "cannot be reached"),
    ],
)
def test_an_unusable_database_is_one_line_without_its_password(url: str, expected: str) -> None:
    with pytest.raises(ConfigError) as e:
        open_database(url, 60)
    assert expected in str(e.value)
    assert "\n" not in str(e.value) and "secret" not in str(e.value)


def test_a_storage_of_another_version_of_optuna(tmp_path: Path) -> None:
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num='v0.9.0.a'")
    with pytest.raises(ResultsError, match=r"another version of Optuna .* study.name=OTHER"):
        open_storage(tmp_path)


def test_a_damaged_file_is_renamed_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database" * 100)
    assert open_storage(tmp_path).get_all_studies() == []
    assert (tmp_path / "damaged-study.db").read_bytes().startswith(b"not a database")


def test_a_file_on_a_full_disk_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(tmp_path)

    def full(*args: Any, **more: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(ResultsError, match="database or disk is full"):
        open_storage(tmp_path)
    assert (tmp_path / "study.db").exists() and not list(tmp_path.glob("damaged*"))
