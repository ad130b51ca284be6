"""Parse the URL of a storage."""

import os
import re
import stat
from pathlib import Path
from urllib.parse import quote, unquote

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

# Passwords in the URL of a storage, in any spelling: a user may have left out a character.
_COLON = r"(?:[:;,|\s]|%3[ABab]|%2[Cc]|%7[Cc]|%20)"
_USER_AND_PASSWORD = re.compile(rf"^([^:@/]*:?//[^:;,|@/]*?{_COLON}|(?![^:@/]*:?//)[^:;,|@/]*?{_COLON}).*@", re.DOTALL)
_NO_HOST = re.compile(r"^([^:@/]+:?//[^:@/\[\]]+:)(?!\d*(?:[/?]|$)).*", re.DOTALL)  # not the number of a port
_SETTING = re.compile(
    r"(^|[?&;\s])([^=?&;\s/]+)(\s*=\s*)('(?:[^'\\]|\\.)*'?|[^&;]*?(?=[&;]|\s+[^=\s]+\s*=|$))", re.DOTALL
)
# Settings of a connection whose value is not secret. https://www.postgresql.org/docs/current/libpq-connect.html
_HARMLESS = re.compile(
    "host|hostaddr|port|dbname|database|user|passfile|connect_timeout|client_encoding|options|(fallback_)?"
    "application_name|keepalives(_.*)?|sslmode|sslcert|sslkey|sslrootcert|sslcrl|gssencmode|channel_binding|"
    "target_session_attrs|service|driver|uri|mode|cache|immutable|timeout|charset"
)
_SQLITE_FILE = re.compile(r"^sqlite(\+pysqlite)?:///[^?]*$")
# The same inside a message.
_URL_IN_LINE = re.compile(rf"(//[^\s:;,|@/]*?{_COLON}).*@")
_WORD_IN_TEXT = re.compile(r"[^\s'\"(]+")
_SETTING_IN_TEXT = re.compile(r"(?i)(\b(?:\w*password|passwd|pwd)\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s&;'\"]+)")

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


def checked_url(given: str | None) -> str:
    """Return the URL that a user has given, or that of `default_url`, if it may name a storage.

    Raises:
        StorageError: the text cannot be a URL or the name of a file.
    """
    url = default_url(given)
    try:
        url.encode()
        if file := sqlite_file(normalise_url(url)):
            file.is_file()
    except StorageError:
        return url  # opening the storage raises the same error
    except (OSError, ValueError) as error:  # the name is too long, or its bytes are not UTF-8
        reason = error.strerror if isinstance(error, OSError) else "must be text in UTF-8"
        raise StorageError(f"storage: {reason}, got {masked_url(url)!r:.60}") from None
    return url


def normalise_url(url: str) -> str:
    """Return the URL with the driver that hpo uses. A path that ends in .db, .sqlite or .sqlite3 becomes a SQLite URL.

    Raises:
        StorageError: The URL names a storage that hpo does not support.
    """
    if "://" not in url and url.endswith(_FILES) and has_no_password(url):
        return sa.URL.create("sqlite", database=str(Path(url).expanduser())).render_as_string()
    try:
        parsed = sa.make_url(_with_escaped_password(url))
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
        # Without @ in the rule: the last @ in a message is taken for the end of a password.
        f"storage: {masked_url(url)} is no storage: must be a file that ends in {', '.join(_FILES)}, sqlite:///FILE or "
        "postgresql://HOST/DATABASE"
    )


def _with_escaped_password(url: str) -> str:
    """Return the URL of a server with each @ and / in its password escaped. The last @ is before the host."""
    match = re.fullmatch(r"(\w+(?:\+\w+)?://[^:@/?]+:)([^?]*)(@[^@?]*(?:\?.*)?)", url, re.DOTALL)
    return f"{match[1]}{quote(match[2], safe='%')}{match[3]}" if match else url


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
    """Return the URL of a storage with *** instead of its passwords, also if it is misspelled."""
    if _SQLITE_FILE.match(url):
        return url
    # A misspelled separator is a part of the database's name or of the user's, and escaped there.
    decoded = unquote(url)
    masked = _masked(decoded)
    return url if masked == decoded else masked


def _masked(url: str) -> str:
    # Up to the last @, because a password may contain one.
    url, n_passwords = _USER_AND_PASSWORD.subn(r"\1***@", url)
    if not n_passwords:
        url = _NO_HOST.sub(r"\1***", url)
        if "@" in url and "//" not in url and "=" not in url and not url.endswith(_FILES):  # as user/password@host
            url = f"***@{url.rpartition('@')[2]}"
    return _SETTING.sub(_masked_setting, url)


def _masked_setting(match: re.Match[str]) -> str:
    """Return key=value, with *** as the value unless the key cannot be that of a password."""
    start, key, equals, value = match.groups()
    return f"{start}{key}{equals}{value if _HARMLESS.fullmatch(unquote(key).lower()) else '***'}"


def mask_passwords(text: str) -> str:
    """Return a message with *** instead of the passwords of URLs and connection settings that it quotes."""
    if "@" in text:
        text = _URL_IN_LINE.sub(r"\1***@", text)
    text = _WORD_IN_TEXT.sub(lambda match: _masked_word(match[0]), text)
    return _SETTING_IN_TEXT.sub(r"\1***", text)


def _masked_word(word: str) -> str:
    """Return a word of a message, masked if it may be a URL. A message may contain words of megabytes."""
    colon = word.find(":", 1)
    return masked_url(word) if word.find("//", 1) > 0 or (colon > 0 and word.find("@", colon) > 0) else word


def secrets_of(url: str) -> list[str]:
    """Return the passwords in a valid URL."""
    parsed = sa.make_url(url)
    settings = [
        str(value) for key, value in parsed.query.items() if not _HARMLESS.fullmatch(key.lower()) and len(value) > 3
    ]
    return [str(parsed.password), *settings] if parsed.password else settings


def has_no_password(url: str) -> bool:
    """Return whether a URL contains no password, so that it may be printed."""
    return masked_url(url) == url


def read_url_file(file: Path) -> str:
    """Return the URL in a file that holds nothing else. Only its owner should be able to read it.

    Raises:
        StorageError: The file cannot be read, or it is not one line of text.
    """
    try:
        lines = file.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "must be text in UTF-8"
        raise StorageError(f"--storage-file: {file}: {reason}") from None
    if len(lines) != 1:
        raise StorageError(f"--storage-file: {file}: must hold the URL of a storage and nothing else")
    return lines[0]


def others_can_read(file: Path) -> bool:
    """Return whether other users of this machine can read a file."""
    return bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
