"""Opening the store's database: its address, connections, schema and the mapping of its errors.

- A new database is created with, and an old one brought to, the current schema (Alembic). That is
  safe when several processes open the same file at once: the schema is looked at again inside a
  write transaction.
- SQLite runs with a write-ahead log, so readers do not wait for writers, and with full
  synchronisation: what was committed survives a kill or a power cut. A database of another program
  is refused before anything in it is changed.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import platformdirs
import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from bignas.device_db.errors import StoreError
from bignas.device_db.schema import SCHEMA_REVISIONS, VERSION_TABLE

__all__ = ["BUSY_TIMEOUT_MS", "URL_VARIABLE", "Database"]

URL_VARIABLE: Final = "BIGNAS_DB"
BUSY_TIMEOUT_MS: Final = 30_000

_BEGIN_OPTION = "bignas_begin"
_RETRY_SECONDS = 0.02


class Database:
    """An open database with the current schema; gives out transactions."""

    def __init__(self, url: str | None = None) -> None:
        """Open the database at an SQLAlchemy URL, or at BIGNAS_DB, or in the user's data folder.

        Raises:
            StoreError: the URL is malformed, or the database cannot be opened or written, is
                corrupt, belongs to another program or to a newer bignas.
        """
        parsed = _parse_url(url or os.environ.get(URL_VARIABLE) or _default_url())
        self.place: Final = _shown(parsed)
        self._engine: Final = _create_engine(parsed)
        try:
            with self._errors():
                _migrate(self._engine, self.place)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close all connections; the database cannot be used afterwards."""
        self._engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection inside a transaction that only reads."""
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection inside a transaction that is committed when the block succeeds."""
        with self._errors(), _write_transaction(self._engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(f"the store {self.place} {_reason(error)}") from error


def _default_url() -> str:
    path = Path(platformdirs.user_data_dir("bignas")) / "bignas.sqlite"
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _parse_url(text: str) -> URL:
    try:
        return make_url(text)
    except SQLAlchemyError as error:
        raise StoreError(
            f"{text!r} is not an SQLAlchemy URL; for a file use sqlite:///PATH"
        ) from error


def _shown(url: URL) -> str:
    """Return the name of a database for messages, without any password."""
    if url.get_backend_name() == "sqlite":
        return url.database or "in memory"
    return url.render_as_string(hide_password=True)


def _is_sqlite_file(url: URL) -> bool:
    database = url.database
    return (
        url.get_backend_name() == "sqlite"
        and bool(database)
        and database != ":memory:"
        and not str(database).startswith("file:")
    )


def _create_engine(url: URL) -> Engine:
    try:
        if _is_sqlite_file(url):
            Path(str(url.database)).absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = sql.create_engine(url)
    except (NoSuchModuleError, ImportError) as error:
        raise StoreError(
            f"no driver for the database {url.drivername!r}; install one, or use sqlite:///PATH"
        ) from error
    except OSError as error:
        raise StoreError(
            f"cannot create the folder of the store {_shown(url)}: {error.strerror};"
            f" choose another place with {URL_VARIABLE}"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    """Leave transactions to `_begin_sqlite` (Python's driver would begin them too late)."""
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN_OPTION, "BEGIN"))


@contextlib.contextmanager
def _write_transaction(engine: Engine) -> Iterator[Connection]:
    """Begin by taking SQLite's write lock, as a reader that turns into a writer cannot wait."""
    with engine.connect() as connection:
        writer = connection.execution_options(**{_BEGIN_OPTION: "BEGIN IMMEDIATE"})
        with writer.begin():
            yield writer


def _migrate(engine: Engine, place: str) -> None:
    """Bring the database to the current schema.

    Raises:
        StoreError: it belongs to another program or to a newer bignas.
    """
    with engine.begin() as connection:
        if _schema_revision(connection, place) == SCHEMA_REVISIONS[-1]:
            return
    # Alembic takes long to import, and only new and old stores need it
    from bignas.device_db.migration import upgrade  # noqa: PLC0415

    _use_write_ahead_log(engine)
    with _write_transaction(engine) as connection:
        if _schema_revision(connection, place) != SCHEMA_REVISIONS[-1]:
            upgrade(connection)


def _schema_revision(connection: Connection, place: str) -> str | None:
    """Return the schema of a store, None for an empty database."""
    tables = sql.inspect(connection).get_table_names()
    revision: str | None = None
    if VERSION_TABLE in tables:
        revision = connection.scalar(sql.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    if revision is None and tables:
        raise StoreError(
            f"the database {place} belongs to another program;"
            f" choose another place with {URL_VARIABLE}"
        )
    if revision not in (None, *SCHEMA_REVISIONS):
        raise StoreError(
            f"the store {place} was written by a newer bignas (schema {revision});"
            " upgrade bignas, or choose another place"
        )
    return revision


def _use_write_ahead_log(engine: Engine) -> None:
    """Set SQLite's journal mode, which the file remembers; possible outside a transaction only."""
    if engine.dialect.name != "sqlite":
        return
    connection = engine.raw_connection()
    patience_ends = time.monotonic() + BUSY_TIMEOUT_MS / 1e3
    try:
        while True:  # SQLite does not wait for others here, whatever its busy timeout
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > patience_ends:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return
    finally:
        connection.close()


def _reason(error: SQLAlchemyError | sqlite3.Error) -> str:
    """Return what is wrong and what to do, in one line."""
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split())
    for part, reason in _REASONS.items():
        if part in text:
            return reason
    return f"failed: {text}"


_REASONS: Mapping[str, str] = {
    "file is not a database": "is not a database; move the file away or choose another place",
    "malformed": "is corrupt; restore a copy, or move the file away and measure again",
    "disk I/O error": "cannot be read or written (disk error)",
    "disk is full": "cannot be written: disk full; free some space",
    "readonly database": "is read-only; choose a place that you may write",
    "unable to open database file": "cannot be opened; check that its folder may be written",
    "database is locked": "is busy: another process has been writing for too long; try again",
}
