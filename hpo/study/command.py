"""`command` of a study file: any program that trains one configuration, and how it receives values and reports metrics.

This module holds the keys of the study file. `command_config` builds the class of the configuration, and
`hpo.runs.command` runs the program.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from hpo.config.permission import command_text
from model.section import Count, Positive, Section

# A word of a command may contain these beside the names of the parameters.
FLAGS, CONFIG, JSON, DIR, SEED = "flags", "config", "config.json", "dir", "seed"
PLACEHOLDERS = (FLAGS, CONFIG, JSON, DIR, SEED, "study", "trial", "attempt")
DEFAULT_RUNGS = 8

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^\W\d][\w-]*(?:\.[\w-]+)*)\}")
_SHELL_OPTION = re.compile("-[A-Za-z]*c")  # before a program for a shell, as in `bash -lc`


def split_words(given: Any) -> Any:
    """Return the words of a command that is given as text.

    Raises:
        ValueError: a quotation has no end.
    """
    try:
        return tuple(shlex.split(given)) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"must be words, got {given!r}: {error}") from None


_Word = Annotated[str, Field(min_length=1)]
_Words = Annotated[list[_Word], Field(min_length=1)]
CommandWords = Annotated[
    tuple[_Word, ...], Field(min_length=1), BeforeValidator(split_words, json_schema_input_type=_Word | _Words)
]


class Metric(Section):
    """Where hpo reads the metrics of a command: in its output, or in a file that it writes. Without this key, the
    script reports them with `hpo.current_trial().report`, which it may always do."""

    pattern: tuple[str, ...] = ()
    """Regular expression, or a list of them, that each line of the output is searched for. The names of its groups are
    the names of the metrics, and `step` is the step: 'step (?P<step>\\d+): .*val loss (?P<val_loss>\\S+)'."""
    file: str | None = None
    """File to which the script appends one JSON object per line, relative to the folder {dir}: metrics.jsonl."""
    step: str = "step"
    """Key of the step in the lines of `file`. Lines without this key have the steps 1, 2, ..."""

    @field_validator("pattern", mode="before", json_schema_input_type=_Word | list[_Word])
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"must be a regular expression, got {pattern!r}: {error}") from None
        return patterns

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str | None) -> str | None:
        if file is not None and (not file or file.startswith("/") or ".." in file.split("/") or "\0" in file):
            raise ValueError(f"must be a path inside the folder {{dir}}, such as metrics.jsonl, got {file!r}")
        return file

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.pattern) == (self.file is not None):
            raise ValueError("must have either pattern or file; omit metric if the script uses hpo.current_trial()")
        return self

    def groups(self) -> set[str]:
        """Return the names of the groups of all patterns."""
        return {name for pattern in self.pattern for name in re.compile(pattern).groupindex}


class Steps(Section):
    """The steps at which the runs of a command are compared. Rung r is reached at step last * r / rungs, and its value
    is the first that the script reports at or after this step."""

    last: Positive
    """The last step that the script reports. The run is complete at this step."""
    rungs: Count | None = None
    """Number of rungs, at which the pruner may stop a run. Default: 8, or `last` if that is less."""

    @model_validator(mode="after")
    def _check_rungs(self) -> Self:
        if self.rungs is not None and self.rungs > self.last:
            raise ValueError(f"rungs must be at most last, {self.last:g}, got {self.rungs}")
        return self

    @property
    def n_rungs(self) -> int:
        """Number of rungs."""
        return self.rungs if self.rungs is not None else max(1, min(DEFAULT_RUNGS, int(self.last)))

    def mark(self, rung: int) -> float:
        """Return the step from which on a report is the value of a rung."""
        return self.last * rung / self.n_rungs


@dataclass(frozen=True)
class CommandPlan:
    """What it takes to run a command and to read its metrics.

    command: its words. env: additional variables. Both contain placeholders.
    objective: the metric that each report must have. memory_gb: limit of all its processes together, in GB.
    """

    command: Sequence[str]
    env: Mapping[str, str]
    metric: Metric | None
    steps: Steps | None
    objective: str
    memory_gb: float | None = None

    @property
    def flags_have_seed(self) -> bool:
        """Whether {flags} includes the seed, which a command otherwise receives where it mentions {seed}."""
        return SEED not in placeholders([*self.command, *self.env.values()])

    @property
    def rungs(self) -> int:
        """Number of rungs. Without `steps`, a run has one: its last value."""
        return self.steps.n_rungs if self.steps else 1

    @property
    def text(self) -> str:
        """The command as a user writes it in a shell."""
        return command_text(self.command, self.env)


def plan_from_json(tree: Mapping[str, Any], objective: str) -> CommandPlan:
    """Return a plan from its JSON values, as `plan_as_json` gives them.

    Raises:
        pydantic.ValidationError, TypeError, KeyError: the values are not those of a plan.
    """
    metric, steps = tree.get("metric"), tree.get("steps")
    return CommandPlan(
        tuple(map(str, tree["command"])),
        {str(key): str(value) for key, value in dict(tree.get("env") or {}).items()},
        None if metric is None else Metric.model_validate(metric),
        None if steps is None else Steps.model_validate(steps),
        objective,
    )


def plan_as_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stored definition says about its command, without what it omits."""
    keys = ("command", "env", "metric", "steps")
    return {key: spec[key] for key in keys if spec.get(key) not in (None, {})}


def placeholders(texts: Sequence[str]) -> list[str]:
    """Return the names in braces in these texts. Two braces stand for one brace."""
    return [name for text in texts for match in _PLACEHOLDER.finditer(text) if (name := match[1])]


def filled(text: str, values: Mapping[str, str], quote: bool = False) -> str:
    """Return a text with the value of each name in braces.

    quote: whether a shell reads the text, so that values must be quoted.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return shlex.quote(values[match[1]]) if quote and match[1] != FLAGS else values[match[1]]

    return _PLACEHOLDER.sub(value, text)


def filled_words(words: Sequence[str], values: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """Return the words of a command with the value of each name in braces.

    The word {flags} alone becomes one word for each flag. A word after -c, or after -lc and its kind, is a program for
    a shell, in which values are quoted.
    """
    result: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word == f"{{{FLAGS}}}":
            result += flags
        else:
            result.append(
                filled(word, {**values, FLAGS: shlex.join(flags)}, quote=bool(_SHELL_OPTION.fullmatch(before)))
            )
    return result


def value_text(value: Any) -> str:
    """Return a value as a word: whole numbers as such, and True, False and None as Python writes them."""
    return value if isinstance(value, str) else repr(value)
