"""Access control of the dashboard, with Optuna's real application and a real storage."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from hpo.dashboard.access import (
    MAX_BODY,
    MAX_TRIALS_IN_HEAVY_PLOTS,
    MAX_UPLOAD,
    AccessControl,
    is_loopback,
)
from hpo.dashboard.login import PasswordLogin
from hpo.dashboard.server import build_app
from hpo.dashboard.wsgi import WsgiApp
from hpo.errors import StorageError
from hpo.queue.budget import fill_slots
from hpo.queue.slots import Slots
from hpo.storage.store import Store, open_dashboard, open_store
from tests.support.cases import exhaustive
from tests.support.dashboard import basic
from tests.support.wsgi import Answer

PASSWORD = "pä$s:wörd"
OTHERS = {"HTTP_HOST": "study.example:8080"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A storage with one study, `study`, of three trials, one of them running."""
    with open_store(f"sqlite:///{tmp_path}/hpo.db", create=True) as made:
        study = optuna.create_study(study_name="study", storage=made.optuna)
        for x in 0.25, 0.5:
            study.add_trial(create_trial(params={"x": x}, distributions={"x": FloatDistribution(0, 1)}, value=x))
        study.ask()
        yield made


@pytest.fixture
def look(store: Store) -> Iterator[Store]:
    """The same storage, opened as the dashboard opens it."""
    with open_dashboard(store.url, patience=0.1) as opened:
        yield opened


@pytest.fixture
def local(store: Store, look: Store) -> AccessControl:
    """A local dashboard without a password, which may change studies."""
    return build_app(look, store, None, local=True)


@pytest.fixture
def remote(look: Store) -> AccessControl:
    """A read-only dashboard with a password, which other machines can reach."""
    return build_app(look, None, PasswordLogin(PASSWORD.encode()), local=False)


def routes(store: Store) -> list[tuple[str, str]]:
    """Return method and an address of every route that Optuna's dashboard has."""
    rules = [(route.method, route.rule) for route in optuna_dashboard.wsgi(store.optuna).routes]
    paths = [(method, re.sub(r"<[^>]*>", "1", rule.replace("<:re:(/.*)?>", ""))) for method, rule in rules]
    assert len(paths) >= 30
    return paths


def test_every_route_asks_for_the_password(remote: AccessControl, look: Store) -> None:
    for _, path in routes(look):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            refused = Answer(remote, path, method)
            assert refused.status == 401, (method, path)
            assert refused.headers["www-authenticate"].startswith("Basic ")
    assert Answer(remote, "/no/such/page").status == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic é",
        basic(""),
        basic(PASSWORD + " "),
        basic(PASSWORD[:-1]),
        basic("pa$s:word"),
        "Bearer " + basic(PASSWORD).split()[1],
    ],
)
def test_another_password_is_refused(remote: AccessControl, header: str) -> None:
    assert Answer(remote, "/api/studies", HTTP_AUTHORIZATION=header).status == 401


@pytest.mark.parametrize("scheme", ["Basic ", "basic ", "BASIC  "])
def test_password_may_hold_any_characters_and_the_user_any_name(remote: AccessControl, scheme: str) -> None:
    header = scheme + basic(PASSWORD).split()[1]
    found = Answer(remote, "/api/studies", HTTP_AUTHORIZATION=header, **OTHERS)
    assert (found.status, b'"study"' in found.body) == (200, True)


def test_read_only_dashboard_refuses_every_change(remote: AccessControl, look: Store) -> None:
    known = {"HTTP_AUTHORIZATION": basic(PASSWORD)}
    changing = [(method, path) for method, path in routes(look) if method != "GET"]
    assert len(changing) >= 15
    for method, path in [*changing, ("OPTIONS", "/api/studies"), ("get", "/api/studies")]:
        refused = Answer(remote, path, method, **known)
        assert (refused.status, "--allow-edit" in refused.reason) == (403, True), (method, path)
    assert Answer(remote, "/api/studies/1", **known).status == 200
    assert Answer(remote, "/api/studies/1", "HEAD", **known).body == b""


def test_storage_itself_refuses_what_a_page_would_write(storage_url: str) -> None:
    with open_store(storage_url, create=True) as made:
        optuna.create_study(study_name="study", storage=made.optuna)
    with open_dashboard(storage_url, patience=0.1) as opened:
        assert [study.study_name for study in opened.optuna.get_all_studies()] == ["study"]
        with pytest.raises(StorageError, match=r"read-?only"):
            opened.retry(opened.optuna.set_study_user_attr, 1, "key", "value")


def test_pages_of_this_machine_may_change_studies(local: AccessControl, store: Store) -> None:
    note = Answer(local, "/api/studies/1/note", "PUT", {"body": "seen", "version": 1})
    assert (note.status, store.optuna.get_study_system_attrs(1)["dashboard:note_ver"]) == (204, 1)
    running = store.optuna.get_all_trials(1, states=[TrialState.RUNNING])[0]
    answer = Answer(local, f"/api/trials/{running._trial_id}/tell", "POST", {"state": "Fail"})
    assert (answer.status, store.optuna.get_trial(running._trial_id).state) == (204, TrialState.FAIL)
    assert Answer(local, "/api/studies", "POST", {"study_name": "new", "directions": ["minimize"]}).status == 201


def test_study_under_the_number_of_a_deleted_one_shows_its_own_trials(local: AccessControl) -> None:
    assert len(json.loads(Answer(local, "/api/studies/1?after=0").body)["trials"]) == 3
    assert Answer(local, "/api/studies/1", "DELETE", {}).status == 204
    made = Answer(local, "/api/studies", "POST", {"study_name": "new", "directions": ["minimize"]})
    assert json.loads(made.body)["study_summary"]["study_id"] == 1  # SQLite reuses the id
    assert json.loads(Answer(local, "/api/studies/1?after=0").body)["trials"] == []


def test_study_with_a_running_trial_is_not_renamed(local: AccessControl, store: Store) -> None:
    slots = Slots(store, 1)
    fill_slots(slots, [("search", None)])
    claim = slots.claim("worker", 60.0)
    assert claim
    refused = Answer(local, "/api/studies/1/rename", "POST", {"study_name": "new"})
    assert (refused.status, refused.reason) == (
        409,
        "the study has 1 running trial; stop it with `hpo stop`, then rename it",
    )
    assert slots.release(claim, "worker")
    assert Answer(local, "/api/studies/1/rename", "POST", {"study_name": "new"}).status == 201


CROSS_SITE = [
    {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "no-cors"},
    {"HTTP_SEC_FETCH_SITE": "same-site"},
    {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "navigate", "HTTP_SEC_FETCH_DEST": "iframe"},
    {"HTTP_ORIGIN": "http://evil.example"},
    {"HTTP_ORIGIN": "http://127.0.0.1:9999"},
    {"HTTP_ORIGIN": "null"},
    {"HTTP_ORIGIN": "http://[evil"},
    {"HTTP_ORIGIN": ""},
]
LINK = {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "navigate", "HTTP_SEC_FETCH_DEST": "document"}


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_requests_of_another_sites_page_are_refused(
    local: AccessControl, store: Store, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST", "DELETE"):
        refused = Answer(local, "/api/studies/1", method, HTTP_HOST="127.0.0.1:8080", **headers)
        assert (refused.status, refused.reason) == (403, "requests from pages of other sites are refused")
    assert store.optuna.get_study_name_from_id(1) == "study"


def test_link_of_another_site_may_be_followed_but_changes_nothing(local: AccessControl, remote: AccessControl) -> None:
    assert Answer(local, "/dashboard", **LINK).status == 200
    assert Answer(local, "/api/studies/1", "POST", **LINK).status == 403
    assert Answer(remote, "/dashboard", **LINK, **OTHERS).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program
        {"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_ORIGIN": "http://127.0.0.1:8080"},
        {"HTTP_SEC_FETCH_SITE": "none"},
        {"HTTP_ORIGIN": "https://127.0.0.1:8080"},  # behind a TLS proxy
    ],
)
def test_requests_of_its_own_pages_and_of_programs_are_accepted(local: AccessControl, headers: dict[str, str]) -> None:
    send = {"study_name": "new", "directions": ["minimize"]}
    assert Answer(local, "/api/studies", "POST", send, HTTP_HOST="127.0.0.1:8080", **headers).status == 201


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "127.0.0.2"])
def test_local_dashboard_answers_to_its_names(local: AccessControl, host: str) -> None:
    assert Answer(local, "/api/studies", HTTP_HOST=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "", "localhost.evil.example", "localhost,evil.example", "[::1", "10.0.0.1"],
)
def test_local_dashboard_answers_to_no_other_name(local: AccessControl, host: str) -> None:
    for method in ("GET", "DELETE"):
        assert Answer(local, "/api/studies/1", method, HTTP_HOST=host).status == 421


def test_every_answer_forbids_sniffing_framing_and_caching(
    local: AccessControl, remote: AccessControl, look: Store
) -> None:
    answers = [Answer(local, path) for method, path in routes(look) if method == "GET"]
    answers += [Answer(remote, "/"), Answer(local, "/", HTTP_HOST="evil.example"), Answer(local, "/none")]
    for found in answers:
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["x-frame-options"] == "SAMEORIGIN"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["cache-control"] == "no-cache"
        assert "access-control-allow-origin" not in found.headers


def test_files_of_runs_are_not_served(local: AccessControl) -> None:
    for path in ("/artifacts/1/0a1b", "/artifacts/1/1/0a1b"):
        refused = Answer(local, path)
        assert (refused.status, refused.headers["content-security-policy"][:8]) == (400, "sandbox;")
    assert not json.loads(Answer(local, "/api/meta").body)["artifact_is_available"]


@pytest.mark.parametrize("path", ["/artifacts/", "/artifac\xffts/"])
def test_file_of_a_run_would_be_served_in_a_sandbox(store: Store, tmp_path: Path, path: str) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>document.title = 'ran'</script>")
    (tmp_path / "files").mkdir()
    files = FileSystemArtifactStore(tmp_path / "files")
    study = optuna.load_study(study_name="study", storage=store.optuna)
    found = upload_artifact(artifact_store=files, file_path=str(page), study_or_trial=study)
    pages: WsgiApp = optuna_dashboard.wsgi(store.optuna, artifact_store=files)
    assert Answer(pages, f"{path}1/{found}").headers["access-control-allow-origin"] == "*"
    served = Answer(AccessControl(pages, None, None, True, lambda _: 0), f"{path}1/{found}")
    assert (served.status, served.headers["content-type"]) == (200, "text/html")
    assert served.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "access-control-allow-origin" not in served.headers


@pytest.mark.parametrize("plot", [exhaustive("contour"), "rank"])
def test_plots_that_take_gigabytes_are_refused_for_large_studies(look: Store, store: Store, plot: str) -> None:
    app = build_app(look, None, None, local=True)
    assert Answer(app, f"/api/studies/1/plot/{plot}").status == 200
    study = optuna.load_study(study_name="study", storage=store.optuna)
    trial = create_trial(params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, value=0.5)
    study.add_trials([trial] * (MAX_TRIALS_IN_HEAVY_PLOTS - 3))
    assert Answer(app, f"/api/studies/1/plot/{plot}").status == 200
    study.add_trial(trial)
    for path in (plot, f"{plot}/", f"{plot[:3]}\xff{plot[3:]}"):
        refused = Answer(app, f"/api/studies/1/plot/{path}")
        assert (refused.status, f"this study has {MAX_TRIALS_IN_HEAVY_PLOTS + 1}" in refused.reason) == (413, True), (
            path
        )
    assert Answer(app, "/api/studies/1/plot/slice").status == 200


def test_request_without_accepted_encodings_is_answered(local: AccessControl) -> None:
    assert [Answer(local, path).status for path in ("/favicon.ico", "/static/bundle.js")] == [200, 200]


def test_loopback_addresses_are_reachable_from_this_machine_only() -> None:
    hosts = ("127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "::", "10.1.2.3", "host", "")
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 5


@pytest.mark.parametrize(
    ("path", "limit"), [("/api/studies/1/note", MAX_BODY), ("/api/artifacts/1", MAX_UPLOAD)], ids=["api", "upload"]
)
def test_body_that_is_too_long_is_refused_before_it_is_stored(local: AccessControl, path: str, limit: int) -> None:
    class Body(io.RawIOBase):
        longest = 0

        def read(self, size: int = -1) -> bytes:
            self.longest = max(self.longest, size)
            return bytes(size)

    body = Body()
    refused = Answer(local, path, "POST", CONTENT_LENGTH=str(limit + 1), **{"wsgi.input": body})  # type: ignore[arg-type]
    assert (refused.status, "at most" in refused.reason) == (413, True)
    assert body.longest <= 2**16
    for length in ("-1", "1e3", "\u0661", "1" * 400):
        status = Answer(local, path, "POST", CONTENT_LENGTH=length, **{"wsgi.input": io.BytesIO()}).status  # type: ignore[arg-type]
        assert status == (413 if length.startswith("1111") else 411)
    assert Answer(local, path, "POST", HTTP_TRANSFER_ENCODING="chunked").status == 411
