"""Storage of proposals: a SQLite file beside the rows, or a PostgreSQL database that several machines share.

Both are Optuna's own storages. Sharing machines take a lock in the database before they make the tables, number a trial or
choose a setting. The lock ends with its holder's transaction. The server ends the transactions of a vanished holder after
`stale_s`; its default timeout is hours.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from engine.errors import first_line
from harness import ConfigError, ResultsError

STORAGE = "study.db"  # in a study's folder
KEEPALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}  # s, of libpq
UNREACHABLE = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError)  # raised while the database is away


def open_storage(folder: Path) -> optuna.storages.RDBStorage:
    """The SQLite storage in a study's folder. A damaged file is renamed, because the rows can rebuild its content.

    Raises `ResultsError` if the file is locked, not writable or of another version of Optuna.
    """
    path = folder / STORAGE
    if path.exists() and not _is_sound(path):
        for part in path.parent.glob(path.name + "*"):
            part.replace(part.with_name(f"damaged-{part.name}"))
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    except RuntimeError as e:  # Optuna raises it for tables of another version
        raise ResultsError(f"{path} was written by another version of Optuna ({first_line(e)}); use study.name=OTHER") from e
    except (sqlite3.Error, optuna.exceptions.StorageInternalError) as e:
        raise ResultsError(f"{path} cannot be used ({' '.join(str(e).split())[:120]}); free it, or remove it") from e


def open_database(url: str, stale_s: float) -> optuna.storages.RDBStorage:
    """The shared storage at `url`. Raises `ConfigError` if it cannot be used.

    stale_s: after this many seconds the server ends an idle transaction, and with it a lock.
    """
    try:
        place = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as e:
        raise ConfigError("storage.url cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from e
    shown = place.render_as_string(hide_password=True)
    if not place.drivername.startswith("postgresql"):
        raise ConfigError(f"storage.url={shown} is not a database that machines can share; give postgresql://...")
    if place.drivername == "postgresql":
        place = place.set(drivername="postgresql+psycopg")
    connect = {**KEEPALIVE, "options": f"-c idle_in_transaction_session_timeout={round(stale_s * 1000)}"}
    options: dict[str, Any] = {"pool_pre_ping": True, "connect_args": connect}
    try:
        engine = sqlalchemy.create_engine(place, **options)
        with _database_lock(engine, "tables"):
            return optuna.storages.RDBStorage(place.render_as_string(hide_password=False), engine_kwargs=options)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as e:
        raise ConfigError(f"storage.url={shown} needs a driver ({first_line(e)}); pip install -e '.[shared]'") from e
    except RuntimeError as e:
        raise ConfigError(
            f"storage.url={shown} was set up by another version of Optuna ({first_line(e)}); name another database"
        ) from e
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
        raise ConfigError(f"storage.url={shown} cannot be reached ({reason(e)}); start it, or name another") from e


def reason(e: BaseException) -> str:
    """The driver's reason why a database cannot be reached; Optuna's own message names another cause."""
    below = e.__cause__ or e
    return first_line(getattr(below, "orig", None) or below)[:160]


def shared_lock(storage: optuna.storages.RDBStorage, study: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a shared study; blocks until it is free. Does nothing for a file, whose folder has its own lock."""
    return _database_lock(storage.engine, study) if storage.engine.name == "postgresql" else contextlib.nullcontext()


@contextlib.contextmanager
def _database_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    with engine.connect() as connection:
        lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
        connection.execute(lock, {"name": f"headrace {name}"})
        try:
            yield
        finally:
            with contextlib.suppress(sqlalchemy.exc.DBAPIError):  # a server that went away has dropped the lock
                connection.rollback()


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.OperationalError:  # a full disk or a lock: the content may be sound, and opening it will report the error
        return True
    except sqlite3.DatabaseError:
        return False
