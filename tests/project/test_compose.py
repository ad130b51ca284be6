import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import parse_yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = parse_yaml(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COMMANDS = {name: service["command"] for name, service in SERVICES.items() if "command" in service}


def test_the_services_are_those_of_the_documentation() -> None:
    assert set(SERVICES) == {"postgres", "launch", "worker", "dashboard"}
    assert SERVICES["launch"]["profiles"] == ["launch"]  # `up` alone does not start another search


def test_postgres_keeps_its_data_and_the_others_wait_for_its_health() -> None:
    server = SERVICES["postgres"]
    assert server["image"] == "postgres:17"
    assert "pg_isready" in server["healthcheck"]["test"]
    volume, folder = server["volumes"][0].split(":")
    assert (volume in COMPOSE["volumes"], folder) == (True, "/var/lib/postgresql/data")
    for name in COMMANDS:
        assert SERVICES[name]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_only_the_dashboard_is_published_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"dashboard": ["127.0.0.1:8080:8080"]}


def test_the_dashboard_requires_a_password_and_is_read_only() -> None:
    service = SERVICES["dashboard"]
    assert service["environment"]["HPO_DASHBOARD_PASSWORD"] == "${HPO_DASHBOARD_PASSWORD:?set it in .env}"
    assert service["command"] == ["hpo", "dashboard", "--host", "0.0.0.0", "--port", "8080"]


def test_no_password_is_in_the_file() -> None:
    secrets = [service["environment"].get("POSTGRES_PASSWORD") for service in SERVICES.values()]
    urls = [service["environment"].get("HPO_STORAGE", "") for service in SERVICES.values()]
    variable = "${POSTGRES_PASSWORD:?set it in .env}"
    assert [secret for secret in secrets if secret] == [variable]
    assert {url for url in urls if url} == {f"postgresql://hpo:{variable}@postgres:5432/hpo"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_with_its_options(name: str) -> None:
    program, subcommand, *arguments = COMMANDS[name]
    assert program == "hpo"
    if not importlib.util.find_spec("hpo.__main__"):
        pytest.skip("hpo has no command line yet")
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "hpo", subcommand, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert shown.returncode == 0, shown.stderr
    options = {argument for argument in arguments if argument.startswith("--")}
    assert options <= set(re.findall(r"--[a-z][a-z-]*", shown.stdout))
