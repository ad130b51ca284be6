"""Passwords, tokens and cookies of the dashboard."""

import threading
from typing import Any

import pytest

from hpo.dashboard.login import MAX_WAITING, WRONG_PASSWORDS, WRONG_S, PasswordLogin, TokenLogin
from hpo.dashboard.wsgi import Refusal
from tests.support.dashboard import basic

MANY = 1000


class Clock:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def status(login: Any, **environ: str) -> str:
    """Return the status of a request and the headers that a login adds."""
    try:
        login.check({"SERVER_PORT": "8080", "PATH_INFO": "/", **environ})
    except Refusal as refusal:
        return refusal.status[:3]
    return "200"


def test_right_password_passes_however_many_wrong_ones_came_before_from_its_address() -> None:
    clock = Clock()
    login = PasswordLogin(b"right", clock, clock.sleep)
    found = [
        (status(login, HTTP_AUTHORIZATION=basic("wrong")), status(login, HTTP_AUTHORIZATION=basic("right")))
        for _ in range(100)
    ]
    assert found == [("401", "200")] * 100


def test_guesses_from_many_addresses_are_answered_one_per_second() -> None:
    clock = Clock()
    login = PasswordLogin(b"right", clock, clock.sleep)
    assert [status(login) for _ in range(MANY)] == ["401"] * MANY  # a request without a password is no guess
    assert clock.now == 0
    for i in range(MANY):
        assert status(login, HTTP_AUTHORIZATION=basic(f"{i}"), REMOTE_ADDR=f"10.0.{i // 256}.{i % 256}") == "401"
        if i == WRONG_PASSWORDS - 1:
            assert clock.now == 0
    assert clock.now == pytest.approx((MANY - WRONG_PASSWORDS) * WRONG_S)


def test_simultaneous_guesses_are_not_compared_while_too_many_wait_and_a_cookie_still_passes() -> None:
    release, clock = threading.Event(), Clock()
    login = PasswordLogin(b"right", clock, lambda _: release.wait(60))
    ((name, cookie),) = login.check({"SERVER_PORT": "8080", "HTTP_AUTHORIZATION": basic("right")})
    assert name == "Set-Cookie"
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/")
    answers: list[str] = []
    guess = lambda: answers.append(status(login, HTTP_AUTHORIZATION=basic("guess")))  # noqa: E731
    threads = [threading.Thread(target=guess) for _ in range(2 * MAX_WAITING)]
    for thread in threads:
        thread.start()
    while len(answers) < MAX_WAITING:
        threads[0].join(0.01)
    assert answers == ["429"] * MAX_WAITING
    assert status(login, HTTP_COOKIE=f"other=1; {cookie.partition(';')[0]}") == "200"
    release.set()
    for thread in threads:
        thread.join()
    assert answers[MAX_WAITING:] == ["401"] * MAX_WAITING
    assert status(login, HTTP_AUTHORIZATION=basic("right")) == "200"


def test_link_with_the_token_sets_a_cookie_and_leads_to_the_page_without_the_token() -> None:
    login = TokenLogin()
    environ = {"SERVER_PORT": "8080", "PATH_INFO": "/dashboard/a b", "QUERY_STRING": f"x=1&token={login.token}&y="}
    with pytest.raises(Refusal) as caught:
        login.check(environ)
    headers = dict(caught.value.headers)
    assert (caught.value.status[:3], headers["Location"]) == ("303", "/dashboard/a%20b?x=1&y=")
    cookie = headers["Set-Cookie"]
    assert login.token not in cookie
    assert "; HttpOnly; SameSite=Strict" in cookie
    assert login.check(environ | {"QUERY_STRING": "", "HTTP_COOKIE": cookie.partition(";")[0]}) == []
    assert login.check(environ | {"QUERY_STRING": "", "HTTP_AUTHORIZATION": f"Bearer {login.token}"}) == []
    for path, location in (("//evil.example/", "/evil.example/"), ("/a\r\nX: 1", "/a%0D%0AX%3A%201")):
        with pytest.raises(Refusal) as caught:
            login.check(environ | {"PATH_INFO": path, "QUERY_STRING": f"token={login.token}"})
        assert dict(caught.value.headers)["Location"] == location


def test_other_tokens_and_cookies_are_refused() -> None:
    login, other = TokenLogin(), TokenLogin()
    assert login.token != other.token
    for query in ("", "token=", f"token={other.token}", f"token={login.token}x", f"TOKEN={login.token}", "token=%ff"):
        assert status(login, QUERY_STRING=query) == "401"
    for cookie in ("", "hpo-8080=", f"hpo-8080={login.token}", "hpo-8080=\xff", ";;=;"):
        assert status(login, HTTP_COOKIE=cookie) == "401"
    for header in ("Bearer", "Bearer ", f"Bearer {other.token}", f"Basic {login.token}", basic(login.token)):
        assert status(login, HTTP_AUTHORIZATION=header) == "401"
