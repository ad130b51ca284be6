"""`hpo.Study`: create, run, inspect and test a study from Python, by the functions behind the command line."""

import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.api.control import ControlledStudy
from hpo.api.errors import python_errors
from hpo.api.inspect import InspectedStudy
from hpo.api.options import check_count, launch_options, override_words, paired_test, rule_of, url_of
from hpo.api.results import Shown
from hpo.config.permission import permit_options
from hpo.errors import Problem, WorkFailed
from hpo.launcher.options import LaunchOptions
from hpo.storage.attributes import LADDER_OF
from hpo.storage.engine import open_readonly
from hpo.view.notebook import in_notebook

if TYPE_CHECKING:
    import pandas as pd

# Optuna imports tqdm, which asks the users of notebooks to install ipywidgets. hpo needs neither.
warnings.filterwarnings("ignore", "IProgress not found")


class Study(InspectedStudy, ControlledStudy):
    """A study in a storage. `Study.create` and `Study.load` return one.

    Each method does what the command of the same name does, and reads the storage anew, so that it sees what other
    processes have done. In a notebook, a study shows its status, its best trials and its learning curves.

    name: of the study. storage: URL of the storage. out: folder of the runs.

    Raises:
        hpo.Problem: in each method, an argument or the study is not valid.
        hpo.StorageError: in each method, the storage is unreachable.
    """

    @classmethod
    def create(
        cls,
        definition: str | Path | Mapping[str, Any],
        *,
        name: str | None = None,
        storage: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        trials: int | None = None,
        hours: float | None = None,
        seed: int | None = None,
        out: str | Path = "runs",
    ) -> "Study":
        """Create a study in a storage, or return it if the storage holds the same one. `launch` runs it.

        definition: path of a study file, name of a shipped study, or the content of a study file as a mapping. In a
        mapping, `train` and `config` may be a function and a class of a module. name: required for a mapping.
        storage: as in `load`. overrides: fields of the base, such as {"run.tokens": 8192}. trials, hours: limits; a
        larger number extends an existing study. The hours count from the first launch. seed: of the sampler. out:
        folder of the runs.
        """
        from hpo.api.definition import read_definition  # imports Optuna
        from hpo.commands.create import create_study
        from hpo.console import say
        from hpo.launcher.existing import check_new
        from hpo.storage.store import open_store

        with python_errors(), _messages():
            url, budget = url_of(storage), {"trials": trials, "hours": hours}
            LaunchOptions("", url, budget=budget)  # checks the limits
            study = read_definition(definition, name, override_words(overrides), budget, seed)
            check_new(url, study)
            with open_store(url, create=True) as store:
                for note in create_study(store, study, budget).notes:
                    say(f"note: {note}")
        return cls(study.name, url, Path(out))

    @classmethod
    def load(
        cls,
        name: str | None = None,
        *,
        storage: str | Path | None = None,
        out: str | Path = "runs",
        allow_train: Sequence[str] = (),
    ) -> "Study":
        """Return a study of a storage.

        name: None for the only study of the storage. storage: URL or file; None: $HPO_STORAGE, otherwise
        sqlite:///runs/hpo.db. out: folder of the runs. allow_train: commands and training functions (module:name) that
        may run although only the storage names them, as with --allow-train.
        """
        with python_errors():
            url = url_of(storage)
            if name is not None and not isinstance(name, str):
                raise Problem(f"name: must be the name of a study, got {name!r:.60}")
            permit_options([allow_train] if isinstance(allow_train, str) else allow_train)
            with open_readonly(url) as store:
                return cls(read_snapshot(store, name).name, url, Path(out))

    def launch(
        self,
        workers: int = 0,
        *,
        trials: int | None = None,
        hours: float | None = None,
        confirm: bool = False,
        overrides: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Study":
        """Run the study to the end of its budget, and return it. A notebook and a terminal show the progress.

        An interrupt (Ctrl-C, or the stop button of a notebook) lets each worker finish its rung, and then raises
        KeyboardInterrupt. A second one stops the workers immediately. The next launch continues the study.

        workers: number of worker processes; 0: one. trials, hours: other limits. confirm: whether to confirm the best
        trial afterwards. overrides: the place of the data on this machine, such as {"data.path": "/data/text"}.
        options: the other options of `hpo launch` with underscores, such as gpus=[0, 1], pack="auto", on="slurm",
        slurm={"partition": "gpu"}, track="mlflow", quiet=True or notify="https://...".

        Raises:
            hpo.Problem: the search has no complete trial, a worker has failed, or an argument is not valid.
        """
        from hpo.commands.launch import launch, stored_study

        def run() -> int:
            more = {"budget": {"trials": trials, "hours": hours}, "workers": workers, "confirm": confirm}
            more["overrides"] = override_words(overrides)
            launched = launch_options(self.name, self.storage, self.out, options, **more)
            study = stored_study(launched)
            if study is None:
                with self._read():  # raises an error that says what is missing
                    raise AssertionError(self.name)
            return launch(launched, study, _keep_result)

        self._run(run)
        return self

    def confirm(
        self,
        workers: int = 0,
        *,
        top: int | None = None,
        seeds: int | None = None,
        sequential: bool = False,
        tokens: int | None = None,
        rule: str | None = None,
        test: str | None = None,
        name: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Confirmation":
        """Re-run the best trials and the baseline on new seeds, in pairs, and test the differences.

        A second call continues the confirmation, or returns its result. top: number of trials, from the best down.
        seeds: runs of each configuration. sequential: whether to add pairs only until the result is clear. tokens:
        length of a run. rule: that carries the configurations over to it. test: t or wilcoxon. name: of the study of
        the new runs. workers, overrides, options: as in `launch`.
        """
        from hpo.evidence.confirm import ConfirmRequest, run_confirmation
        from hpo.evidence.confirm_verdicts import confirmation_of

        def run() -> int:
            for argument, number in {"top": top, "seeds": seeds, "tokens": tokens}.items():
                check_count(argument, number)
            request = ConfirmRequest(self.name, top, seeds, tokens, name, paired_test(test), sequential, rule_of(rule))
            more = {"workers": workers, "overrides": override_words(overrides)}
            launched = launch_options("", self.storage, self.out, options, **more)
            return run_confirmation(request, launched, _keep_result)

        self._run(run)
        with self._read() as (store, snapshot):
            found, records, lines = confirmation_of(store, snapshot, name)
        return Confirmation(Study(found, self.storage, self.out), records, lines)

    def _run(self, run: Callable[[], int]) -> None:
        """Run workers, and raise what has stopped them."""
        with python_errors(), _messages():
            status = run()
        if status > 128:
            signal.raise_signal(status - 128)  # as if the signal arrived now, after the workers have stopped
            raise KeyboardInterrupt
        if status:
            raise WorkFailed(f"study {self.name}: some trials were given up; the messages above say why")


@dataclass(frozen=True)
class Confirmation(Shown):
    """The result of `Study.confirm`.

    study: the study of the new runs. records, table: one row for each configuration. verdicts: one sentence for each
    configuration that was compared with the baseline, and what the verdicts cover. Before all runs have ended, the
    table is empty, and a sentence says how many are complete.
    """

    study: Study
    records: Sequence[Mapping[str, Any]] = field(repr=False)
    verdicts: Sequence[str]

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row for each configuration."""
        import pandas as pd

        return pd.DataFrame(self.records)

    @property
    def text(self) -> str:  # type: ignore[override]
        return "\n".join([*([self.table.to_string(index=False)] if self.records else []), *self.verdicts])

    def to_html(self) -> str:
        from hpo.report.html import bullets, html_table

        return html_table(self.records) + bullets(self.verdicts)


def _messages() -> AbstractContextManager[Any]:
    """Return a context in which a notebook shows messages as output of the cell. Errors are exceptions."""
    return redirect_stderr(sys.stdout) if in_notebook() else nullcontext()


def _keep_result(snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float) -> int:
    """Save the best configuration of a search, as `hpo launch` does, and print nothing."""
    from hpo.commands.launch import save_best

    if not snapshot.spec.get("arms") and LADDER_OF not in snapshot.spec.get("about", {}):
        save_best(snapshot, folder)
    return 0


def list_studies(storage: str | Path | None = None) -> "pd.DataFrame":
    """Return one row per study of a storage: its name, its trials by state, and its best value.

    storage: as in `Study.load`.
    """
    import pandas as pd

    from hpo.commands.show import study_records

    with python_errors(), open_readonly(url_of(storage)) as store:
        return pd.DataFrame(study_records(store))
