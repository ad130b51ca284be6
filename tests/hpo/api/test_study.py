"""hpo.Study: what it returns is what the commands print, and its errors are one message in the words of Python."""

import inspect
import io
import json
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import hpo as package
from hpo.analysis.snapshot import read_snapshot
from hpo.api.errors import in_python
from hpo.api.options import ARGUMENTS, launch_options
from hpo.cli.groups import Display, Placement, RunOptions
from hpo.cli.reference import commands
from hpo.config import permission
from hpo.launcher.options import LaunchOptions
from hpo.runs.resources import AUTO_PACK
from hpo.storage.attributes import STARTED
from hpo.storage.engine import open_readonly
from hpo.storage.store import open_store
from tests.support.command import MODULE, ROOT, STUDY, hpo, run_in_process, trivial

Problem, Study = package.Problem, package.Study
NAMED = {"train": "trivial:train", "config": "trivial:Config", "objective": "loss", "rungs": 3}
SPACE = {"lr": {"low": 0.0, "high": 1.0}}
TREE = {**NAMED, "space": SPACE, "budget": {"trials": 4}}
SEEDED = MODULE.replace("lr: float = 0.1", "lr: float = 0.1\n    seed: int = 0").replace(
    "(config.lr - 0.3) ** 2", "(config.lr - 0.3) ** 2 + config.seed % 7 / 100"
)


@pytest.fixture
def study(here: Path) -> Any:
    """The trivial study, run to its end."""
    trivial(here)
    return Study.create("trivial.yaml").launch(workers=1, quiet=True)


def text_of(snapshot_of: str, folder: Path, *words: str) -> str:
    return run_in_process(snapshot_of, "--study", "trivial", *words, cwd=folder)


def test_budget_in_hours_counts_from_the_first_launch_not_from_the_creation(here: Path) -> None:
    trivial(here)
    study = Study.create("trivial.yaml", hours=1.0)
    with open_store("sqlite:///runs/hpo.db") as store:
        study_id = store.optuna.get_study_id_from_name("trivial")
        started = store.optuna.get_study_user_attrs(study_id)[STARTED]
        store.optuna.set_study_user_attr(study_id, STARTED, started - 7200)
    study.launch(workers=1, quiet=True)
    assert study.status()["trials"]["complete"] + study.status()["trials"]["pruned"] == 4
    with open_store("sqlite:///runs/hpo.db") as store:
        assert store.optuna.get_study_user_attrs(study_id)[STARTED] >= started


def test_everything_that_python_returns_is_what_the_commands_print(
    study: Any, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dict(study.status()) == json.loads(text_of("status", here, "--format", "json"))
    lines = text_of("status", here).splitlines()
    assert str(study.status()).splitlines()[1:] == lines[1:]  # the first line has the age of the study
    capsys.readouterr()
    study.watch()  # it has ended
    assert capsys.readouterr().out.splitlines()[1:] == lines[1:]
    assert study.status()["trials"]["complete"] + study.status()["trials"]["pruned"] == 4

    printed = pd.read_csv(io.StringIO(text_of("trials", here, "--format", "csv")))
    pd.testing.assert_frame_equal(study.trials()[list(printed.columns)], printed, check_dtype=False)
    hpo("report", "--study", "trivial", "--csv", "all.csv", "--no-publish", cwd=here)
    curves = pd.read_csv(here / "all-curves.csv")
    pd.testing.assert_frame_equal(study.curves(), curves)
    assert list(curves.columns) == ["number", "rung", "loss"]

    best = json.loads(text_of("best", here, "--format", "json"))
    assert json.loads(json.dumps(study.best.record)) == best
    assert (study.best.number, study.best.value, study.best.params) == (best["number"], best["loss"], best["params"])
    assert study.best.curve == {int(rung): value for rung, value in best["curve"].items()}
    assert str(study.trial(2)) == run_in_process("show", "2", cwd=here).rstrip("\n")
    assert study.export("python.yaml") == text_of("export", here) == Path("python.yaml").read_text()
    (row,) = json.loads(run_in_process("studies", "--format", "json", cwd=here))
    assert package.list_studies().to_dict("records") == [row]

    report = study.report(publish=False)
    assert report.paths == [Path("runs/trivial/report.html")]
    assert report.headline in Path("runs/trivial/report.html").read_text()


def test_study_is_created_once_and_continues_where_it_was(here: Path) -> None:
    trivial(here)
    created = Study.create("trivial.yaml", trials=3)
    assert created.status()["trials"]["waiting"] == 3
    assert "created" in str(created.status())
    assert list(created.trials()["loss"]) == []
    created.pause("lunch")
    again = Study.create(TREE, name="trivial", trials=5)  # the same definition, with a larger budget
    with open_readonly(again.storage) as store:
        assert read_snapshot(store, "trivial").state == "paused"  # only `launch` and `resume` make it active
    assert again.status()["budget"]["trials"] == 5
    with pytest.raises(Problem, match="trivial"):
        Study.create({**TREE, "space": {"lr": {"low": 0.0, "high": 0.5}}}, name="trivial")
    assert Study.load("trivial", storage=Path("runs/hpo.db")).status()["study"] == "trivial"
    assert repr(Study.load()) == "Study('trivial', storage='sqlite:///runs/hpo.db')"
    assert Study.load("trivial.yaml").launch(quiet=True, trials=6).status()["trials"]["waiting"] == 0
    assert len(created.trials()) == 6
    assert Path("runs/trivial/best.yaml").read_text() == created.export()  # as after `hpo launch`


def test_study_in_the_words_of_python_names_a_function_and_a_class_of_a_module(here: Path) -> None:
    trivial(here)
    sys.path.insert(0, str(here))
    try:
        import trivial as module  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(here))
    study = Study.create({**TREE, "train": module.train, "config": module.Config}, name="trivial", trials=1)
    with open_readonly(study.storage) as store:
        spec = read_snapshot(store, "trivial").spec
    assert (spec["train"], spec["config"]) == ("trivial:train", "trivial:Config")

    def train(config: Any) -> None: ...

    with pytest.raises(Problem, match=r"^train: must be in a module, because every worker imports it"):
        Study.create({**TREE, "train": train}, name="other")


def test_confirmation_is_that_of_the_command_and_continues(here: Path) -> None:
    trivial(here)
    (here / "trivial.py").write_text(SEEDED)
    study = Study.create("trivial.yaml").launch(quiet=True)
    result = study.confirm(seeds=3, top=1, quiet=True)
    printed = hpo("confirm", "--study", "trivial", "--format", "json", "--quiet", cwd=here)  # its runs have ended
    assert json.loads(printed.stdout) == json.loads(json.dumps(result.records))
    assert all(line in printed.stderr for line in result.verdicts)
    assert (result.study.name, list(result.table["runs"])) == ("trivial-confirm", [3, 3])
    assert result.verdicts[0] in str(result)
    with pytest.raises(Problem, match=r"^seeds: must be 3, with which study trivial-confirm was started, got 4; `name"):
        study.confirm(seeds=4)


# what is called with wrong arguments -> the message
MISTAKES = {
    "workers": (lambda s: s.launch(workers=-1), "workers: must be a whole number from 0 to 1024, got -1"),
    "text": (lambda s: s.launch("4"), "workers: must be a whole number from 0 to 1024, got '4'"),
    "pack": (lambda s: s.launch(pack=0), "pack: must be 'auto' or a whole number of at least 1, got 0"),
    "track": (
        lambda s: s.launch(track="wandbb"),
        "track: must be one of mlflow, wandb, tensorboard, none, got 'wandbb'",
    ),
    "notify": (lambda s: s.launch(notify=3), "notify: must be text, got 3"),
    "on": (lambda s: s.launch(on="moon"), "on: must be "),
    "slurm": (
        lambda s: s.launch(on="slurm", slurm={"array": "0-9"}),
        "slurm array: must be left out, because workers sets it, got '0-9'",
    ),
    "trials": (lambda s: s.launch(trials=0), "trials: must be a whole number of at least 1, got 0"),
    "unknown": (lambda s: s.launch(worker=2), "worker: no such argument; did you mean workers?"),
    "seeds": (lambda s: s.confirm(seeds=0), "seeds: must be a whole number of at least 1, got 0"),
    "test": (lambda s: s.confirm(test="z"), "test: must be t or wilcoxon, got 'z'"),
    "rule": (lambda s: s.export(rule="magic"), "rule: must be copy, nanochat, horizon, fitted, got 'magic'"),
    "confirm": (lambda s: s.launch(confirm=True), "confirm: must be omitted, because the config of trivial has no "),
    "output": (lambda s: s.export("trivial.yaml"), "output: must be a new file or the result of an earlier export, "),
    "database": (lambda s: s.report("runs/hpo.db"), "html: must not replace the database 'runs/hpo.db'; use another"),
    "trial": (lambda s: s.trial(9), "trial: study trivial has no trial 9; it has trials 0 to 3"),
    "by": (lambda s: s.best_by("size"), "best_by: must be an objective of study trivial, loss, got 'size'"),
    "retry": (lambda s: s.retry(0), "trial 0: must have failed to be retried; "),
    "kill": (lambda s: s.kill(0), "trial 0: must be running, interrupted or paused to be killed; "),
    "enqueue": (lambda s: s.enqueue({"lrr": 1}), "overrides lrr: no such field; did you mean lr?"),
    "values": (lambda s: s.enqueue({"lr": object}), "values: must have values of YAML: "),
    "words": (lambda s: s.enqueue("lr=1"), "values: must be a mapping of fields to values, such as {'lr': 0.01}, got"),
    "number": (lambda s: Study.load(3), "name: must be the name of a study, got 3"),
    "storage": (lambda s: Study.load(storage=3), "storage: must be a URL or the path of a file, got 3"),
    "none": (lambda s: Study.create(None), "definition: must be the path of a study file or a mapping, got None"),
    "reason": (lambda s: s.pause("\ud800"), "because: must be text in UTF-8, got '\\ud800'"),
    "load": (lambda s: Study.load("b"), "study: no study 'b' in the storage; there are trivial"),
    "file": (lambda s: Study.create("gone.yaml"), "study: no such file: gone.yaml"),
    "name": (lambda s: Study.create(TREE), "name: required for a study that is given as a mapping"),
    "letters": (lambda s: Study.create(TREE, name="a b"), "name: must be a name of letters, digits, "),
    "extra": (lambda s: Study.create("trivial.yaml", name="t"), "name: must be omitted with a study file, whose name"),
    "key": (lambda s: Study.create({**TREE, "rung": 3}, name="n"), "study n: rung: no such "),
}


def test_every_mistake_is_one_message_about_the_argument(study: Any) -> None:
    for call, message in MISTAKES.values():
        with pytest.raises(Problem) as raised:
            call(study)
        assert str(raised.value).startswith(message), (str(raised.value), message)
        assert "--" not in str(raised.value)
    with pytest.raises(package.StorageError, match=r"no storage at other.db"):
        Study.load("trivial", storage="other.db")


def test_messages_keep_commands_and_hide_passwords() -> None:
    assert in_python("--gpus-per-worker: 1; `--as NAME` or `hpo retry --failed` helps; a--b") == (
        "gpus_per_worker: 1; `name NAME` or `hpo retry --failed` helps; a--b"
    )
    assert "secret" not in repr(Study("s", "postgresql://me:secret@host/db", Path("runs")))
    assert "secret" not in in_python("cannot open postgresql://me:secret@host/db")


def test_code_that_only_the_storage_names_needs_permission(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trivial.yaml").unlink()
    monkeypatch.setattr(permission, "_permitted", set())  # another session
    with pytest.raises(Problem, match="allow_train trivial:train"):
        Study.load("trivial").launch(trials=5)
    assert len(Study.load("trivial", allow_train=["trivial:train"]).launch(trials=5, quiet=True).trials()) == 5


def test_launch_runs_in_another_thread_too(here: Path) -> None:
    trivial(here)
    study = Study.create("trivial.yaml")
    thread = threading.Thread(target=study.launch, kwargs={"quiet": True})
    thread.start()
    thread.join()
    assert study.status()["trials"]["waiting"] == 0


def test_requests_reach_the_storage(study: Any, here: Path) -> None:
    assert study.enqueue({"lr": 0.25}).startswith("trivial: enqueued lr=0.25")
    assert study.stop("enough").startswith("trivial: stopped")
    assert study.resume().startswith("trivial: active")
    assert study.launch(quiet=True).trial(4).params == {"lr": 0.25}
    assert study.retry() == "trivial: no failed trial is left to retry"


def test_study_shows_itself_and_never_fails_to(study: Any, here: Path) -> None:
    bundle = study._repr_mimebundle_()
    assert bundle["text/plain"].splitlines()[1:] == text_of("status", here).splitlines()[1:]
    assert f'<td class="n">{study.best.number}</td>' in bundle["text/html"]
    assert bundle["text/html"].count("<polyline") >= 1
    assert "<script" not in bundle["text/html"]
    assert "text/html" in study.best._repr_mimebundle_()
    Path("runs/hpo.db").unlink()
    assert "no storage at runs/hpo.db" in study._repr_mimebundle_()["text/html"]


def test_what_the_storage_names_is_escaped(here: Path) -> None:
    (here / "trivial.py").write_text(MODULE)
    (here / "trivial.yaml").write_text(STUDY.replace("objective: loss", "objective: '<b>&loss'"))
    study = Study.create("trivial.yaml").launch(quiet=True)
    page = study._repr_mimebundle_()["text/html"]
    assert "&lt;b&gt;&amp;loss" in page
    assert "<b>&loss" not in page


def test_larger_values_are_drawn_higher_in_both_directions(here: Path) -> None:
    from hpo.api.html import curves_svg

    heights = {}
    for direction in "minimize", "maximize":
        folder = here / direction
        folder.mkdir()
        (folder / "trivial.py").write_text(MODULE)
        (folder / "t.yaml").write_text(STUDY + f"direction: {direction}\nbaseline_seeds: 1\n")
        hpo("launch", "--study", "t.yaml", "--quiet", cwd=folder)
        with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
            snapshot = read_snapshot(store, "t")
            svg = curves_svg(snapshot)
            points = [line.partition('"')[0].split() for line in svg.split('points="')[1:]]
            heights[direction] = [float(p.partition(",")[2]) for p in max(points, key=len)]
    assert all(curve == sorted(curve) for curve in heights.values())  # the values fall, so y grows downwards


def test_options_of_a_launch_have_the_defaults_of_the_command() -> None:
    command = {field.name: field.default for group in (RunOptions, Placement, Display) for field in fields(group)}
    ours = {field.name: field.default for field in fields(LaunchOptions)}
    assert set(ARGUMENTS) <= command.keys()
    for name in ARGUMENTS:
        assert (ours[name] or None) == (command[name] or None), name  # an empty list is () in Python


# command -> the methods that do the same; the options that a method has in another form
METHODS: dict[str, tuple[list[Any], set[str]]] = {
    "launch": ([Study.create, Study.launch], set()),
    "confirm": ([Study.confirm], set()),
    "export": ([Study.export], set()),
    "report": ([Study.report], set()),
    "best": ([Study.best_by], {"by"}),  # its only argument
    "status": ([Study.status, Study.watch], {"watch"}),
    "trials": ([Study.trials], set()),
    "show": ([Study.trial], set()),
    "studies": ([package.list_studies], set()),
    "pause": ([Study.pause], set()),
    "resume": ([Study.resume], set()),
    "stop": ([Study.stop], set()),
    "kill": ([Study.kill], set()),
    "retry": ([Study.retry], {"failed"}),  # without a number, all failed trials
    "enqueue": ([Study.enqueue], {"overrides"}),
}
# Options of the study itself, and of what a command prints
OF_THE_STUDY = {"study", "storage", "storage_file", "out", "allow_train", "format", "dry_run"}


def test_every_option_of_these_commands_is_an_argument() -> None:
    options = {c.name: [p.names[0] for p in c.options if p.names[0] != "--help"] for c in commands()}
    for command, (methods, elsewhere) in METHODS.items():
        arguments = {name for method in methods for name in inspect.signature(method).parameters}
        arguments |= set(ARGUMENTS) if "options" in arguments else set()
        ours = {in_python(name) for name in options[command]}
        assert ours - arguments - OF_THE_STUDY == elsewhere, command


def test_options_may_have_the_types_of_python() -> None:
    given = {"gpus": [0, 1], "pack": "auto", "slurm": {"partition": "gpu", "mem": "8G"}}
    options = launch_options("s", "sqlite:///a.db", Path("runs"), given)
    assert (options.gpus, options.pack, options.slurm) == (["0", "1"], AUTO_PACK, ["partition=gpu", "mem=8G"])
    assert launch_options("s", "sqlite:///a.db", Path("runs"), {"slurm": "mem=8G"}).slurm == ["mem=8G"]
    for gpus in ("0, 1", ("0", 1)):
        assert launch_options("s", "sqlite:///a.db", Path("runs"), {"gpus": gpus}).gpus == ["0", "1"]


def test_names_of_the_package_load_neither_torch_nor_optuna() -> None:
    program = """
import sys
import hpo
assert {"Study", "Problem", "StorageError", "current_trial", "list_studies"} <= set(dir(hpo))
hpo.Study, hpo.Problem, hpo.StorageError, hpo.list_studies
assert not {"torch", "optuna", "pandas", "plotly", "scipy", "IPython"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
