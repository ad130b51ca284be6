"""The reference describes every command, so that the documentation can be generated from it."""

import shlex
from typing import Any

import pytest

from hpo.cli.panels import CONTROL, EVIDENCE, INSPECT, RUN, SETUP
from hpo.cli.reference import Command, Parameter, commands
from tests.support.command import COMMANDS


def leaves(command: Any = COMMANDS, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the commands of typer by their words."""
    children = getattr(command, "commands", None)
    if children is None:
        return {" ".join(path): command}
    return {name: leaf for word, child in children.items() for name, leaf in leaves(child, (*path, word)).items()}


def test_reference_covers_every_command_and_every_option_that_is_shown() -> None:
    reference = {command.name: command for command in commands()}
    assert list(reference) == list(leaves())
    for name, leaf in leaves().items():
        described = {spelling for option in reference[name].options for spelling in option.names}
        shown = [p for p in leaf.params if p.param_type_name == "option" and not p.hidden]
        assert described == {spelling for p in shown for spelling in (*p.opts, *p.secondary_opts)}
        assert len(reference[name].arguments) == sum(p.param_type_name == "argument" for p in leaf.params)
    assert "--weighed" not in {name for option in reference["claims"].options for name in option.names}


def test_reference_has_the_order_of_the_help_and_is_stable() -> None:
    assert commands() == commands()
    panels = list(dict.fromkeys(command.panel for command in commands()))
    assert panels == [RUN, INSPECT, CONTROL, EVIDENCE, SETUP]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_command_has_help_and_an_example_that_typer_accepts(command: Command) -> None:
    assert command.help.split("\n\n")[0].endswith(".")
    assert "\b" not in command.help
    words = shlex.split(command.example)
    path = command.name.split()
    assert words[: 1 + len(path)] == ["hpo", *path]
    leaf = leaves()[command.name]
    context = leaf.make_context(command.name, words[1 + len(path) :])
    assert not context.args
    for parameter in (*command.arguments, *command.options):
        assert parameter.type
        assert parameter.help.endswith("."), (parameter.names, parameter.help)


def test_types_and_defaults_are_those_that_a_user_types() -> None:
    launch = next(command for command in commands() if command.name == "launch")
    options = {option.names[0]: option for option in launch.options}
    assert options["--study"].required
    assert options["--study"].default is None
    assert (options["--workers"].type, options["--workers"].default) == ("int, at least 0, at most 1024", "0")
    assert (options["--on"].type, options["--on"].default) == ("local|ray|slurm", "local")
    assert (options["--dry-run"].type, options["--dry-run"].default) == ("flag", None)
    assert options["--set"].type == "PATH=VALUE"
    report = next(command for command in commands() if command.name == "report")
    publish = Parameter(("--publish", "--no-publish"), "flag", False, "--publish", report.options[-1].help)
    assert report.options[-1] == publish
