"""The database in which machines share a study: PostgreSQL, through Optuna's own storage, and a lock in it.

What several machines must not do at once (make the tables, count the trials, choose the next setting) they do under the
lock. It ends with the transaction of its holder; a holder that vanished has its transactions ended by the server after
`stale_s`, for which the server would else wait for hours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import optuna
import sqlalchemy

from engine.errors import first_line
from harness import ConfigError

ALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}  # s; of libpq
AWAY = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError)  # what a database that cannot be reached raises


def open_database(url: str, stale_s: float) -> optuna.storages.RDBStorage:
    """The storage at `url`. Raises `ConfigError` if it cannot be used."""
    try:
        place = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as e:
        raise ConfigError("storage.url cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from e
    shown = place.render_as_string(hide_password=True)
    if not place.drivername.startswith("postgresql"):
        raise ConfigError(f"storage.url={shown} is not of a database that machines can share; give postgresql://...")
    if place.drivername == "postgresql":
        place = place.set(drivername="postgresql+psycopg")
    connect = {**ALIVE, "options": f"-c idle_in_transaction_session_timeout={round(stale_s * 1000)}"}
    given: dict[str, Any] = {"pool_pre_ping": True, "connect_args": connect}
    try:
        engine = sqlalchemy.create_engine(place, **given)
        with _alone(engine, "tables"):
            return optuna.storages.RDBStorage(place.render_as_string(hide_password=False), engine_kwargs=given)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as e:
        raise ConfigError(f"storage.url={shown} needs a driver ({first_line(e)}); pip install -e '.[shared]'") from e
    except RuntimeError as e:
        raise ConfigError(
            f"storage.url={shown} was set up by another version of Optuna ({first_line(e)}); name another database"
        ) from e
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
        raise ConfigError(f"storage.url={shown} cannot be reached ({reason(e)}); start it, or name another") from e


def reason(e: BaseException) -> str:
    """Why a database cannot be reached, in its driver's words: Optuna's own name another cause."""
    below = e.__cause__ or e
    return first_line(getattr(below, "orig", None) or below)[:160]


def alone(storage: optuna.storages.RDBStorage, study: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a study; waits for it. A study in a file has one search, which holds another lock."""
    return _alone(storage.engine, study) if storage.engine.name == "postgresql" else contextlib.nullcontext()


@contextlib.contextmanager
def _alone(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    with engine.connect() as connection:
        lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
        connection.execute(lock, {"name": f"headrace {name}"})
        try:
            yield
        finally:
            with contextlib.suppress(sqlalchemy.exc.DBAPIError):  # of a server that went away: the lock did too
                connection.rollback()
