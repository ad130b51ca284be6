"""Thousands of made-up study files: valid, or refused by file and key, with the right exit status and no traceback."""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config.discovery import list_studies, shipped_folder
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.study.load import load_study
from hpo.study.spec import StudyFile
from tests.support.command_lines import CommandResult, Workspace, examples, prepare_workspace, run_command
from tests.support.schemas import assert_schema_agrees

SHIPPED = {path.stem: parse_yaml(path.read_text("utf-8")) for path in list_studies(shipped_folder())}
KEYS = sorted(StudyFile.model_fields)
ODD_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([0.0, 0.5, 1e-9, 1e308, float("inf"), float("nan"), -1.5, 2**70, 10**300, 1e-320]),
    st.sampled_from(
        ["", "adamw", "names", "bytes", "gpt", "1e-4", "off", "2001-12-14", "math:sin", "x:y", ":", "\x85", "[/INST]"]
    ),
    st.sampled_from(
        [
            "yes",
            "no",
            "loguniform",
            "q_uniform",
            "int_uniform",
            "categorical",
            "maximize",
            "val_acc",
            "bayes",
            "a\x1b[2Jb",
        ]
    ),
    st.text(max_size=3),
)
PARTS = (
    "name low high log step choices min q distribution points trials hours from optimizer optimizer.lr run.tokens "
    "run.seed max value values type scale lower upper parameters method metric early_terminate learning_rate max_iters "
    "n_layer"
)
WORDS = st.sampled_from([*KEYS, *PARTS.split(), "optimizer.name", "run.batch_size", "x.name", ".name", "", "."])
TREES = st.recursive(
    ODD_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)


def checked(tree: Any, place: Workspace, text: str | bytes | None = None) -> CommandResult:
    """Write a study file, as notation writes the tree, and check it."""
    text = dump_yaml(tree) if text is None else text
    path = place.folder / "made.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    ended = run_command(place.folder, "check", "made.yaml")
    path.unlink()
    return ended


def assert_named(ended: CommandResult, keys: Iterable[str]) -> None:
    """Assert that a refusal names the file in each line, and with it a key or a place in the file."""
    assert ended.out == ""
    place = rf"line \d+, column \d+|not YAML|must be (a mapping|text in UTF-8)|{'|'.join(map(re.escape, keys))}|''"
    for line in ended.err.removeprefix("hpo: ").splitlines():
        assert re.match(rf"made\.yaml: ({place})", line) or line.startswith(" "), line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return prepare_workspace(tmp_path_factory.mktemp("place"))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Return a shipped study with up to three of its values replaced, removed, or joined by another."""
    tree = json.loads(json.dumps(SHIPPED[draw(st.sampled_from(sorted(SHIPPED)))]))
    for _ in range(draw(st.integers(1, 3))):
        found: Any = tree
        while isinstance(found, dict | list) and found:
            key = draw(st.sampled_from(sorted(found) if isinstance(found, dict) else range(len(found))))
            if not isinstance(found[key], dict | list) or draw(st.booleans()):
                break
            found = found[key]
        if not isinstance(found, dict | list) or not found:
            continue
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "remove":
                del found[key]
            case "add" if isinstance(found, dict):
                found[draw(WORDS)] = draw(TREES)
            case _:
                found[key] = draw(TREES)
    return tree


@examples(0.2)
@given(tree=mutated())
def test_whatever_is_in_a_study_file_it_is_fine_or_refused_by_key(tree: Any, place: Workspace) -> None:
    ended = checked(tree, place)
    assert ended.status in (0, 2)
    assert_schema_agrees(tree, accepted=ended.status == 0)
    if ended.status == 2:
        assert_named(ended, [*KEYS, *tree])
        return
    assert ended.out.startswith("made.yaml: ok; ")
    (place.folder / "made.yaml").write_text(dump_yaml(tree))
    with contextlib.chdir(place.folder):
        study = load_study("made.yaml")
    assert study.spec()["name"] == "made"
    assert study.slots() is not None


Change = Callable[[dict[str, Any]], object]


def at(*path: str, value: Any) -> Change:
    """Return a change of the value under a path of keys."""

    def change(tree: dict[str, Any]) -> None:
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = value

    return change


LR = ("space", "optimizer.lr")
WRONG: dict[str, list[Change]] = {  # key that the refusal names -> changes that are wrong in every study
    "space": [lambda tree: tree.pop("space"), at("space", value={}), at("space", value=[]), at("space", value=None)],
    "space.optimizer.lr": [
        at(*LR, value={"low": 1e-2, "high": 1e-3}),
        at(*LR, value={"low": 1e-3, "high": 1e-2, "step": 0}),
        at(*LR, value={"low": 1e-3, "high": 1e-2, "step": 1e-30}),
        at(*LR, value={"low": 0.0, "high": 1e-2, "log": True}),
        at(*LR, value={"min": 1e-3, "low": 1e-3, "high": 1e-2}),
        at(*LR, value={"min": 1e-3, "max": 1e-2, "distribution": []}),
        at(*LR, value=3),
        *(at(*LR, value=[*choices]) for choices in ([1e-3, 1e-2], [[1, 2], [3, 4]], ["[/INST]"])),
        *(at(*LR, value={key: [[1, 2], [3, 4]]}) for key in ("choices", "values")),
        *(
            at(*LR, value={"min": 1e-4, "max": 1e-2, "distribution": word})
            for word in ("loguniform", "log_uniform", "q_uniform", "int_uniform", "categorical", "normal", "x\x1b[2J")
        ),
        *(at(*LR, value={"low": 1e-4, "high": 1e-2, key: "log"}) for key in ("type", "scale", "prior")),
        at(*LR, value="loguniform(1e-5, 1e-1)"),
        at(*LR, value={"lower": 1e-4, "upper": 1e-2}),
    ],
    "direction": [at("direction", value=value) for value in ("maximize", "max", "", None, True)],
    **{
        key: [at(key, value=value) for value in (3, "x", {}, {"name": "acc"})]
        for key in ("method", "metric", "parameters", "early_terminate", "learning_rate", "max_iters", "n_trials")
    },
    "space.run.seed": [
        lambda tree: tree.update(space={"run.seed": {"choices": [1, 2]}}, baseline_seeds=1, sampler={"name": "random"})
    ],
    "space.learning_rate": [at("space", "learning_rate", value={"low": 1e-4, "high": 1e-2})],
    "base.learning_rate": [at("base", "learning_rate", value=1e-3)],
    "space.optimizer.lr.low": [at(*LR, value={"low": "1.e-4x", "high": 1}), at(*LR, value={"low": -1.0, "high": 1.0})],
    "space.optimizer.lr.choices": [at(*LR, value={"choices": []}), at(*LR, value={"choices": [0.1, 0.1]})],
    "space.optimizer.lrr": [at("space", "optimizer.lrr", value={"low": 1e-3, "high": 1e-2})],
    "space.optimiser.name": [at("space", "optimiser.name", value={"choices": ["adamw"]})],
    "baseline.0.optimiser": [at("baseline", value=[{"optimiser.name": "adamw"}])],
    "baseline.0.''": [at("baseline", value=[{"": 1}])],
    "budget.trials": [at("budget", value={"trials": n}) for n in (0, -1, 1.5, "x", 10**9, 10**300)],
    "budget.hours": [at("budget", value={"hours": x}) for x in (0, -1.0, float("inf"), float("nan"))],
    "budget": [at("budget", value={}), at("budget", value=3)],
    "sampler.name": [at("sampler", value={"name": "tp"}), at("sampler", value={"name": [1]}), at("sampler", value={})],
    "sampler.points": [at("sampler", value={"name": "grid", "points": n}) for n in (1, 10**12)],
    "pruner": [at("pruner", value=None), at("pruner", value=3)],
    "objective": [at("objective", value="x" * 10_000), at("objective", value="val_los")],
    "seed": [at("seed", value=0.5), at("seed", value="2001-12-14")],
    "train": [at("train", value=text) for text in ("x", ":", "math:pi", "no.such.module:x", ".:x")],
    "config": [at("config", value=text) for text in ("x", "math:pi", "pydantic:BaseModel", "no.such.module:x")],
    "base.from": [at("base", value={"from": name}) for name in ("nope", [], "x" * 300, "../x")],
    "base.x": [at("base", value={"x": [[]]})],
    "bass": [at("bass", value={})],
    "''": [at("", value=3)],
    "rungs": [at("rungs", value=0), at("rungs", value=7**9)],
}


@examples(0.1)
@given(data=st.data())
def test_every_mistake_in_a_study_file_is_refused_by_its_key(data: st.DataObject, place: Workspace) -> None:
    tree = json.loads(json.dumps(SHIPPED[data.draw(st.sampled_from(sorted(SHIPPED)))]))
    key = data.draw(st.sampled_from(sorted(WRONG)))
    data.draw(st.sampled_from(WRONG[key]))(tree)
    ended = checked(tree, place)
    assert ended.status == 2
    assert_schema_agrees(tree, accepted=False)
    assert re.search(rf"^(hpo: )?made\.yaml: {re.escape(key)}[.:]", ended.err, re.M), ended.err
    assert max(map(len, ended.err.splitlines())) < 1000


SPELLINGS: list[Callable[[str, Any], str]] = [
    lambda text, tree: text,
    lambda text, tree: "\ufeff" + text,
    lambda text, tree: text.replace("\n", "\r\n"),
    lambda text, tree: "# why\n---\n" + text + "...\n",
    lambda text, tree: json.dumps(tree),
    lambda text, tree: json.dumps(tree, indent=1, ensure_ascii=False),
    lambda text, tree: json.dumps(dict(reversed(tree.items()))),
]


@examples(0.05)
@given(
    name=st.sampled_from(sorted(SHIPPED)),
    spelt=st.sampled_from(SPELLINGS),
    seed=st.integers(-(2**63), 2**63),
    trials=st.integers(50, 10**6),
    hours=st.none() | st.floats(1e-3, 1e300),
)
def test_a_study_file_is_fine_however_it_is_spelt(
    name: str, spelt: Callable[[str, Any], str], seed: int, trials: int, hours: float | None, place: Workspace
) -> None:
    tree = SHIPPED[name] | {"seed": seed, "budget": {"trials": trials, "hours": hours}}
    ended = checked(tree, place, spelt(dump_yaml(tree), tree))
    assert (ended.status, ended.err) == (0, ""), ended
    assert_schema_agrees(tree, accepted=True)


def doubled(line: str, n: int) -> str:
    """Return n lines of aliases, each of which stands for several of the one before."""
    names = itertools.pairwise("abcdefghijklm"[: n + 1])
    return "".join(f"{new}: &{new} " + line.replace("OLD", f"*{old}") + "\n" for old, new in names)


LAUGHS = "a: &a [x, x]\n" + doubled(f"[{', '.join(['OLD'] * 9)}]", 9)  # j stands for 2 * 9**9 values
MERGES = "a: &a {x: 1}\n" + doubled("{<<: [OLD, OLD, OLD, OLD]}", 12)
NINES, FS = "9" * 5000, "f" * 64
TEXTS: list[str | bytes] = [
    *("", " ", "\ufeff", "---", "a: 1\n---\na: 2", "a: 1\na: 2", "\tspace: {}", "space:\n\tx: 1", "a: [", "*a"),
    *("&a [*a]", "? [a]\n: b", "1: 2", "null: 1", "true: 1", "2001-12-14: 1", "!!set {a}", "a\0b", "\x01"),
    *("!!python/object/apply:os.system [id]", 'a: "\\ud800"', f"seed: {NINES}", f"seed: 0x{FS}", "<<: 3", "<<: [1]"),
    *("[" * 5000, "{a: " * 500 + "}" * 500, "- " * 3000, "seed: " + "[" * 90 + "]" * 90, "x" * 100_000),
    *(LAUGHS, LAUGHS + "seed: *j", LAUGHS + "space: {optimizer.lr: {choices: *j}}", MERGES),
    *(b"\xff\xfe", b"\xef\xbb\xbf\xff", "space: {" + "x" * 2000 + ": 1}", "claims: 1\nspace: 2"),
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_study_is_refused_at_once(text: str | bytes, place: Workspace) -> None:
    ended = checked(None, place, text)
    assert ended.status == 2
    assert ended.err.startswith("hpo: made.yaml: ")
    assert len(ended.err) < 2000


PIECES = st.sampled_from(
    ["a", "space", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "!!int ", "|", ">", "'"]
)


@examples(0.05)
@given(text=st.text(max_size=40) | st.binary(max_size=40) | st.lists(PIECES, max_size=25).map("".join))
def test_whatever_a_study_file_is_it_is_refused_by_line_or_key(text: str | bytes, place: Workspace) -> None:
    ended = checked(None, place, text)
    assert ended.status == 2
    for line in ended.err.removeprefix("hpo: ").splitlines():
        assert re.match(r"made\.yaml: (\S.*: .|must be|not YAML)", line), line


# --- what was found, each by itself

TOO_MUCH = "must stand for at most 100,000 values, with every alias written out"
RANGE = "space: {run.batch_size: {low: 1, high: %s}}"
GRID = "space: {run.seed: {low: 1, high: %s}, run.batch_size: {low: 1, high: 60}}\nsampler: {name: brute-force}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS + "seed: *j", f"line 6, column 4: {TOO_MUCH}"),
        (MERGES, f"line 9, column 12: {TOO_MUCH}"),
        (RANGE % ("1" + "0" * 400), "line 1, column 40: must be at most 1.8e+308, got a number of 401 digits"),
        (RANGE % ("1" + "0" * 300), "space.run.batch_size.high: "),
        (RANGE % "8, step: 0.5", "space.run.batch_size.step: must be a whole number, got 0.5"),
        (GRID % (2**63 - 2), "space: must have fewer combinations"),
        ('objective: "\\ud800"', "line 1, column 12: must not contain half of a surrogate pair"),
        ("objective: " + "x" * 9999, "space: must have at least one field"),
    ],
)
def test_what_no_memory_or_float_holds_is_refused_by_its_place(text: str, said: str, place: Workspace) -> None:
    ended = checked(None, place, text)
    assert (ended.status, ended.err[:16]) == (2, "hpo: made.yaml: ")
    assert f"made.yaml: {said}" in ended.err
