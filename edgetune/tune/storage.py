"""Where a study is kept: Optuna's tables in a database that outlives any process, and who works on which trial.

A file by SQLite on one machine, a PostgreSQL or MySQL server for many. A trial whose process is gone is taken up again:
at once where the process was on this machine, after GRACE_S without a sign of life where it was on another.
"""

from __future__ import annotations

import datetime
import os
import random
import socket
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from edgetune.errors import MissingExtraError, RecipeError, RunError

HEARTBEAT_S, GRACE_S = 20, 120
"""Seconds between two signs of life, and without one after which a worker is taken for dead."""
CLOCK_S = 2.0
"""A machine's clock, from which the time that a process began is reckoned, may be set by that much meanwhile."""
MOST_RETRIES = 2
"""Of one trial: one that kills its process each time must not hold the study up for ever."""
WORKER, FIRST, HISTORY = "worker", "failed_trial", "retry_history"
"""Names of attributes: who runs a trial; and, in Optuna's own words, which trial it repeats and all before it."""
POINT, VALUES = "point", "values"
"""Of a trial that was planned: its number among all points there could be, and the attribute with its values."""
LOCKS = {
    "postgresql": ("SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"),
    "mysql": ("SELECT GET_LOCK(:key, -1)", "SELECT RELEASE_LOCK(:key)"),
}
"""How a server's lock is taken, waited for without end, and given back."""
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_storage(url: str) -> RDBStorage:
    """The database of a URL, its tables made if need be; $VARIABLES in it are expanded.

    Raises RecipeError for a URL that is none, MissingExtraError without its driver, RunError if it does not answer.
    """
    import sqlalchemy.event
    import sqlalchemy.exc
    from sqlalchemy.engine import make_url

    try:
        parsed = make_url(os.path.expandvars(url))
        parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
        shown = parsed.render_as_string(hide_password=True)
        is_file = parsed.drivername.startswith("sqlite")
        options = {"connect_args": {"timeout": 100}} if is_file else {"pool_pre_ping": True}
        storage = _connect(parsed.render_as_string(hide_password=False), options)
        if is_file:
            sqlalchemy.event.listen(storage.engine, "connect", _write_ahead)
            storage.engine.dispose()
        return storage
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError):
        raise RecipeError(
            "tune.storage: is no URL of a database", cure='write it as "postgresql://user@host/name" or leave it out'
        ) from None
    except (ModuleNotFoundError, ImportError) as error:
        name = getattr(error, "name", None) or str(error)
        package = "'edgetune[postgresql]'" if name.startswith("psycopg") else name
        raise MissingExtraError(
            f"tune.storage: {name} is not installed", cure=f"install it: pip install {package}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, OSError) as error:
        reason = (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{shown}: cannot be used: {reason}", cure="check that it runs and lets you in") from None


def _connect(url: str, options: dict[str, Any]) -> RDBStorage:
    """The storage; of workers that begin together one makes the tables, and the others look again."""
    import sqlalchemy.exc

    for pause in (0.2, 0.5, 1.0, 2.0, None):
        try:
            with quiet_optuna():
                return RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                    heartbeat_stale_trial_callback=take_up_again,
                )
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            if pause is None:
                raise
            time.sleep(pause * (1 + random.random()))
    raise AssertionError


def _write_ahead(connection: Any, _: object) -> None:
    """Let SQLite write ahead: readers and writers of several processes do not wait for each other, and a killed one
    loses nothing. Only a machine that loses its power may lose the last trials.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def file_url(path: Path) -> str:
    """The URL of a study's own file."""
    return f"sqlite:///{path.absolute()}"


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log lines, and without its notes that heartbeats may change some day."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def one_at_a_time(storage: Any, study: str) -> Iterator[None]:
    """Only one worker of a study is inside the block; one that dies inside lets go. By a lock file beside a SQLite
    file, by the server's own locks (PostgreSQL 9.28.10, MySQL 14.14) elsewhere; a study in memory has one worker.
    """
    import filelock
    import sqlalchemy

    if not _is_shared(storage):
        yield
        return
    engine, key = _engine(storage), zlib.crc32(study.encode())
    if engine.dialect.name == "sqlite":
        with filelock.FileLock(f"{engine.url.database}.lock"):
            yield
        return
    take, give = LOCKS[engine.dialect.name]
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(take), {"key": key})
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text(give), {"key": key})


def close(storage: Any) -> None:
    """Give a database's connections back."""
    storage.remove_session()
    _engine(storage).dispose()


def _is_shared(storage: Any) -> bool:
    """Whether it is a database, not the memory of this process."""
    return hasattr(getattr(storage, "_backend", storage), "engine")


def _engine(storage: Any) -> Any:
    """SQLAlchemy's engine of a storage; a study's own is a cache before it."""
    return getattr(storage, "_backend", storage).engine


@contextmanager
def reached_database(name: str) -> Iterator[None]:
    """A database that stops to answer inside the block is a RunError; what was kept in it stays."""
    import sqlalchemy.exc

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as error:
        cause = error.__cause__ or error
        reason = (str(getattr(cause, "orig", None) or cause).splitlines() or [type(cause).__name__])[0]
        raise RunError(
            f"{name}: the database of the study does not answer any more: {reason}",
            cure="bring it back and give the same command: the study goes on",
        ) from None


def this_worker() -> str:
    """This process: host, number, and when it began, for numbers come again."""
    import psutil

    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def is_gone(worker: str) -> bool:
    """Whether a worker's process was on this machine and is no more."""
    import psutil

    host, _, rest = worker.partition(":")
    number, _, began = rest.partition(":")
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        return abs(psutil.Process(int(number)).create_time() - float(began)) > CLOCK_S
    except psutil.Error:
        return True


def take_up_again(study: Any, trial: FrozenTrial) -> None:
    """Put a trial that was broken off back in the queue, its values and its eval losses kept; MOST_RETRIES times."""
    history = [*trial.system_attrs.get(HISTORY, ()), trial.number]
    if len(history) > MOST_RETRIES:
        return
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={name: value for name, value in trial.user_attrs.items() if name == VALUES},
            system_attrs={**trial.system_attrs, FIRST: history[0], HISTORY: history},
            intermediate_values=trial.intermediate_values,
        )
    )


def reap(study: Any) -> list[int]:
    """Fail the running trials whose process on this machine is gone, and queue them again; their numbers.

    Those of other machines Optuna's heartbeats find.
    """
    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        is_dead = is_gone(worker) if worker else _is_old(trial)
        if is_dead and break_off(study, trial.number):
            found.append(trial.number)
    return found


def break_off(study: Any, number: int) -> bool:
    """Fail a trial and queue it again; False if another process was first."""
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state == TrialState.RUNNING:
        try:
            study.tell(number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False
    take_up_again(study, trial)
    return True


def original(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats, or its own."""
    return int(trial.system_attrs.get(FIRST, trial.number))


def is_under_way(trial: FrozenTrial) -> bool:
    """Whether a trial has begun and is to be finished, here or elsewhere: it runs, or was broken off and is queued."""
    is_repeated = trial.state == TrialState.WAITING and HISTORY in trial.system_attrs
    return trial.state == TrialState.RUNNING or is_repeated


def _is_old(trial: FrozenTrial) -> bool:
    """Whether a trial began so long ago that its worker should have put its name to it."""
    began = trial.datetime_start
    return began is not None and datetime.datetime.now() - began > datetime.timedelta(seconds=GRACE_S)
