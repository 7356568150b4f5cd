"""PostgreSQL for tests: an empty database whose server ends with the block."""

from __future__ import annotations

import pytest
import sqlalchemy

from harness.bench.postgres import binaries, postgres


@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL is installed (initdb, postgres)")
def test_the_server_ends_with_the_block() -> None:
    with postgres() as url:
        engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
        engine.dispose()
    with pytest.raises(sqlalchemy.exc.OperationalError):
        engine.connect()
