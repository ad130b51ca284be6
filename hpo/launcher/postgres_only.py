"""The storage of workers on other machines: Postgres, under an address that they can reach."""

import sqlalchemy as sa

from hpo.console import say
from hpo.errors import Problem
from hpo.storage.url import masked_url, normalise_url


def check_postgres(on: str, storage: str) -> None:
    """Check that workers on other nodes can reach a storage. on: value of --on.

    Raises:
        Problem: it is a file.
    """
    url = normalise_url(storage)
    if url.startswith("sqlite"):
        reasons = {
            "ray": "workers on other nodes cannot reach a file here",
            "slurm": "the locks of SQLite are unreliable on a disk that nodes share",
        }
        raise Problem(
            f"--storage: must be Postgres with --on {on}, since {reasons[on]}, "
            f"got {masked_url(url)}; use postgresql://USER@HOST/DATABASE, such as the one of docker-compose.yml"
        )


def is_local_address(storage: str) -> bool:
    """Return whether only this machine can reach the server of a storage at its address."""
    url = sa.make_url(normalise_url(storage))
    host = str(url.host or url.query.get("host") or "/")
    return host.startswith(("/", "127.")) or host in ("localhost", "::1")


def note_local_address(storage: str, who: str) -> None:
    """Print a note if only this machine can reach the server of a storage. who: who cannot."""
    if is_local_address(storage):
        say(f"note: --storage: {masked_url(storage)} is an address of this machine only; {who}")
