"""Parse the URL of a storage."""

import os
import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from hpo.errors import StorageError

# Types in /proc/mounts of file systems on another machine, where SQLite's locks do not work.
NETWORK_FILE_SYSTEMS = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.ceph",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
}

_FILES = (".db", ".sqlite", ".sqlite3")
_POSTGRES = {"postgres", "postgresql"} | {f"postgresql+{driver}" for driver in ("psycopg", "psycopg2", "psycopg2cffi")}

# Storages that Optuna supports and hpo does not, and the reason.
_REFUSED = {
    "grpc": "Optuna's gRPC proxy has no transactions for leases, and one process does the work of all workers",
    "journal": "Optuna's journal storage has no transactions for leases, and a torn line makes its file unreadable",
    "redis": "a journal in Redis has no transactions for leases",
    "mysql": "MySQL cannot return what an update changed, which claiming a trial needs, and is not tested",
    "mariadb": "MariaDB is not tested",
}


def default_url(flag: str | None) -> str:
    """Return the URL from the command line, or from HPO_STORAGE, or of the file runs/hpo.db in the current folder."""
    return flag or os.environ.get("HPO_STORAGE") or "sqlite:///runs/hpo.db"


def normalise_url(url: str) -> str:
    """Return the URL with the driver that hpo uses. A path that ends in .db, .sqlite or .sqlite3 becomes a SQLite URL.

    Raises:
        StorageError: The URL names a storage that hpo does not support.
    """
    if "://" not in url and url.endswith(_FILES):
        return sa.URL.create("sqlite", database=str(Path(url).expanduser())).render_as_string()
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # for example a port that is not a number
        parsed = sa.URL.create("unknown")
    if parsed.drivername in _POSTGRES:
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and not parsed.host:
        if parsed.database in (None, "", ":memory:"):
            raise StorageError(f"storage: must be a file that workers can share, got {masked_url(url)}")
        return parsed.set(drivername="sqlite").render_as_string()
    if reason := _refusal(url):
        raise StorageError(
            f"storage: {reason}, got {masked_url(url)}; use SQLite on one machine, Postgres between machines"
        )
    raise StorageError(
        f"storage: must be a file that ends in {', '.join(_FILES)}, sqlite:///FILE or "
        f"postgresql://USER@HOST/DATABASE, got {masked_url(url)}"
    )


def _refusal(url: str) -> str | None:
    """Return why hpo does not support a storage that Optuna supports."""
    if reason := _REFUSED.get(url.partition(":")[0].partition("+")[0].lower()):
        return reason
    return _REFUSED["journal"] if url.endswith((".log", ".journal", ".jsonl")) else None


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL, None for a server."""
    parsed = sa.make_url(url)
    return Path(str(parsed.database)) if parsed.drivername == "sqlite" else None


def network_file_system(file: Path) -> str | None:
    """Return the type of the network file system that holds a file, None for a local disk. Needs /proc/mounts."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:  # not Linux
        return None
    path = str(file.absolute().resolve())
    under = [(folder, kind) for folder, kind in mounts if path == folder or path.startswith(folder.rstrip("/") + "/")]
    kind = max(under, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def masked_url(url: str) -> str:
    """Return the URL with *** instead of its passwords."""
    # Up to the last @, because a password may contain one.
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url)


def has_no_password(url: str) -> bool:
    """Return whether a URL contains no password, so that it may be printed."""
    return masked_url(url) == url
