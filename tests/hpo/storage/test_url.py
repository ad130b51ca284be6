"""URLs of storages: which are accepted, and that no password is printed, however the URL is spelled."""

import string
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import StorageError
from hpo.storage.retry import _explanation
from hpo.storage.url import default_url, has_no_password, mask_passwords, masked_url, normalise_url, read_url_file
from tests.support.command import hpo
from tests.support.command_lines import examples

SECRET = "s3cr3t"
SPELLINGS = """postgresql://u:{}@h/db
postgresql//u:{}@h
postgresql:/u:{}@h/db
postgresql:u:{}@h/db
u:{}@h/db
u:{}@h/hpo.db
postgresql://u:{}
postgresql://u:{}/db
postgres://:{}@h
postgresql://u;{}@h/db
postgresql://u,{}@h/db
postgresql://u {}@h/db
postgresql://u%3A{}@h/db
postgresql://u:{}@[::1]:5432/db
postgresql://u:{}@h1,h2/db?target_session_attrs=any
mysql://u:{}@h/db
redis://:{}@h
sqlite+pysqlcipher://:{}@/x.db
user=me password={} host=h
host=h password = '{}'
postgresql://h/db?password={}
postgresql://h/db?PASSWORD={}
postgresql://h/db?pass%77ord={}&sslmode=require
postgresql://h/db?sslmode=require&sslpassword={}
postgresql://h/db?passwd={}
postgresql://h/db;password={}""".splitlines()
PARTS = st.text(string.ascii_letters + "@/:?#%!$*~", max_size=3)


@examples(2)
@given(spelling=st.sampled_from(SPELLINGS), before=PARTS, after=PARTS)
def test_no_spelling_of_a_url_shows_its_password(spelling: str, before: str, after: str) -> None:
    in_settings = "=" in spelling.partition("{}")[0]
    password = SECRET if in_settings else before + SECRET + after
    url = spelling.format(password)
    assert SECRET not in masked_url(url)
    assert not has_no_password(url)
    assert SECRET not in mask_passwords(f"hpo: --study: no study {url} in the storage, got {url!r}")
    try:
        shown = masked_url(normalise_url(url))  # escapes characters
    except StorageError as error:
        shown = str(error)
    assert SECRET not in shown


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://h:5432/db", "postgresql://me@h/db?sslmode=disable&options=-csearch_path%3Dx", "runs/a:b@c.db"),
        *("sqlite:////data/a:b@c/hpo.db", "postgresql://[::1]:5432/db", "postgresql://me@/db?host=/tmp"),
    ],
)
def test_url_without_a_password_is_printed_as_it_is(url: str) -> None:
    assert masked_url(url) == url
    assert mask_passwords(f"cannot open {url}") == f"cannot open {url}"


@pytest.mark.parametrize("password", ["p@ss", "p/w", "a@b@c", "x:y", "p%40w"])
def test_password_may_contain_characters_that_are_not_escaped(password: str) -> None:
    url = sa.make_url(normalise_url(f"postgresql://me:{password}@h:5433/db?application_name=x"))
    assert (url.password, url.host, url.port) == (password.replace("%40", "@"), "h", 5433)


@pytest.mark.parametrize("part", ["a", "a:", "//", "a//b:", "@", "a=b&", "pwd", "a:@", "'", "%3A"])
def test_masking_a_long_message_takes_no_time_that_grows_with_its_square(part: str) -> None:
    text = part * (300_000 // len(part))
    started = time.process_time()
    for message in (text, f"got {text}", f"{text}@h"):
        mask_passwords(message)
        masked_url(message)
    assert time.process_time() - started < 5.0


def test_error_of_the_driver_is_shown_without_the_password() -> None:
    url = normalise_url(f"postgresql://me:a@{SECRET}@h/db?nonsense=1")
    error = _explanation(ValueError(f"cannot connect as me with a@{SECRET} and password={SECRET} to {url}"), url)
    assert SECRET not in error
    assert "nonsense" in error


def test_url_is_read_from_a_file_and_others_who_can_read_it_are_named(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"postgresql://me:{SECRET}@127.0.0.1:1/db\n")
    file.chmod(0o644)
    failed = hpo("studies", "--storage-file", "url", cwd=tmp_path, status=4)
    assert "warning: other users can read the password in url; `chmod 600 url` hides it" in failed.stderr
    assert "postgresql+psycopg://me:***@127.0.0.1:1/db" in failed.stderr
    file.chmod(0o600)
    assert "warning" not in hpo("studies", "--storage-file", "url", cwd=tmp_path, status=4).stderr
    both = hpo("studies", "--storage-file", "url", "--storage", "x.db", cwd=tmp_path, status=2)
    assert both.stderr == "hpo: --storage: must be omitted with --storage-file\n"


@pytest.mark.parametrize("content", [b"", b"a b", b"\xff", None])
def test_file_that_holds_no_url_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "url").write_bytes(content)
    with pytest.raises(StorageError, match=r"--storage-file: .*url: "):
        read_url_file(tmp_path / "url")


@pytest.mark.parametrize(
    "words",
    [
        ["status", "URL"],
        ["status", "--study", "URL"],
        ["status", "--storage", "URL"],
        ["URL"],
        ["status", "--nonsense=URL"],
        ["status", "--format", "URL"],
        ["launch", "--study", "URL", "--dry-run"],
        ["launch", "--study", "beta2_sweep", "--dry-run", "--set", "URL"],
        ["doctor", "--out", "URL"],
        ["train", "URL"],
        ["fork", "URL", "--from", "x"],
        ["export", "-o", "URL/x"],
        ["dashboard", "--host", "URL"],
    ],
)
def test_url_in_a_wrong_place_of_the_command_line_does_not_show_its_password(words: list[str], tmp_path: Path) -> None:
    for url in (f"postgresql://u:{SECRET}@127.0.0.1:1/db", f"u:{SECRET}@127.0.0.1:1/db"):
        typed = [word.replace("URL", url) for word in words]
        ended = hpo(*typed, cwd=tmp_path, status=None)
        assert ended.returncode in (2, 4), ended
        assert SECRET not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("study.db", "sqlite:///study.db"),
        ("/a/study.sqlite3", "sqlite:////a/study.sqlite3"),
        ("sqlite:///runs/hpo.db", "sqlite:///runs/hpo.db"),
        ("sqlite+pysqlite:///study.any", "sqlite:///study.any"),
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://u@h:5433/d", "postgresql+psycopg://u@h:5433/d"),
        ("postgresql+psycopg2://u@/d?host=/run/pg", "postgresql+psycopg://u@/d?host=%2Frun%2Fpg"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
    ],
)
def test_a_url_is_brought_to_the_driver_in_use(given: str, used: str) -> None:
    assert normalise_url(given) == used
    assert normalise_url(used) == used


@pytest.mark.parametrize(
    "url",
    [
        f"oracle://u:{SECRET}@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://runs/hpo.db",
        "",
    ],
)
def test_another_kind_of_storage_is_refused_with_what_is_accepted(url: str) -> None:
    with pytest.raises(StorageError, match="must be") as refusal:
        normalise_url(url)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"mysql://u:{SECRET}@h/d", "MySQL"),
        (f"mysql+pymysql://u:{SECRET}@h/d", "MySQL"),
        (f"redis://:{SECRET}@h/0", "Redis"),
        ("journal.log", "journal storage"),
        ("journal:///runs/j.log", "journal storage"),
        ("grpc://h:13000", "gRPC proxy"),
    ],
)
def test_a_storage_that_cannot_carry_leases_is_refused_by_name_with_the_reason(url: str, named: str) -> None:
    with pytest.raises(StorageError, match=named) as refusal:
        normalise_url(url)
    assert SECRET not in str(refusal.value)
    assert "use SQLite on one machine, Postgres between machines" in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@h:5432/d",
        f"postgresql://u:a@{SECRET}@h/d",
        f"postgresql+psycopg://u@h/d?password={SECRET}&sslmode=require",
        f"not parsed://u:{SECRET}@",
    ],
)
def test_a_shown_url_holds_no_password(url: str) -> None:
    assert SECRET not in masked_url(url)
    assert "***" in masked_url(url)
    assert masked_url("postgresql://u@h:5432/d?sslmode=require") == "postgresql://u@h:5432/d?sslmode=require"


def test_the_flag_comes_before_the_variable_and_the_variable_before_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert default_url(None) == "sqlite:///runs/hpo.db"
    monkeypatch.setenv("HPO_STORAGE", "a.db")
    assert default_url(None) == "a.db"
    assert default_url("b.db") == "b.db"
