"""The methods of `hpo.Study` that read the storage."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.analysis.status import status_text
from hpo.api.errors import python_errors
from hpo.api.handle import StudyHandle
from hpo.api.options import check_count, rule_of
from hpo.api.results import Report, Status, Trial, read_trial
from hpo.config.outputs import output_problem
from hpo.console import printable
from hpo.errors import Problem, StorageError
from hpo.storage.engine import open_readonly

if TYPE_CHECKING:
    import pandas as pd


class InspectedStudy(StudyHandle):
    """A study as its storage holds it now."""

    def status(self) -> Status:
        """Return the progress of the study: the fields of `hpo status --format json`, and its text."""
        from hpo.commands.show import status_of

        with self._read() as (store, snapshot):
            return Status(*status_of(store, snapshot))

    def watch(self) -> None:
        """Show the progress of a study that another process runs, until it ends."""
        from hpo.commands.show import show_status
        from hpo.console import Format

        with python_errors(), open_readonly(self.storage) as store:
            show_status(store, self.name, Format.table, watch=True)

    def trials(self) -> "pd.DataFrame":
        """Return one row per trial: state, value, parameters, last metrics and times."""
        from hpo.report.tables import trials_frame

        with self._read() as (_, snapshot):
            return trials_frame(snapshot)

    def curves(self) -> "pd.DataFrame":
        """Return one row per trial and rung with the value there.

        `curves().pivot(index="rung", columns="number", values=...)` has one column per trial.
        """
        from hpo.report.tables import curves_frame

        with self._read() as (_, snapshot):
            return curves_frame(snapshot)

    def trial(self, number: int) -> Trial:
        """Return one trial."""
        with self._read() as (_, snapshot):
            return read_trial(snapshot, number)

    @property
    def best(self) -> Trial:
        """The best trial. Of a study with several objectives, `best_by` returns the best trial by one of them."""
        return self.best_by(None)

    def best_by(self, objective: str | None) -> Trial:
        """Return the best trial by one of the objectives; None: by the only one."""
        from hpo.commands.best import best_record

        with self._read() as (_, snapshot):
            record = best_record(snapshot, objective, "best_by")
            return read_trial(snapshot, record["number"], record)

    def export(
        self,
        output: str | Path | None = None,
        *,
        trial: int | None = None,
        by: str | None = None,
        tokens: int | None = None,
        rule: str | None = None,
        cool_down: int | None = None,
    ) -> str:
        """Return the complete configuration of the best trial as YAML, and write it to a file if `output` is given.

        A trial that `confirm` found to be better than the baseline is preferred to the best trial of the search. trial:
        another trial. by: the objective that decides. tokens: for a run of another length, to which the rule carries
        the configuration over. cool_down: the rung of a wsd run whose branch is exported.
        """
        from hpo.commands.export import AtLength, export_trial
        from hpo.runs.run_dir import write_file

        with self._read() as (store, _):
            path = _output("output", output)
            check_count("tokens", tokens)
            at_length = AtLength(tokens, rule_of(rule), cool_down)
            text, _origin = export_trial(store, self.name, trial, by, at_length)
            if path is not None:
                write_file(path, text)
        return text

    def report(
        self,
        html: str | Path | None = None,
        *,
        pdf: str | Path | None = None,
        csv: str | Path | None = None,
        json: str | Path | None = None,
        publish: bool = True,
    ) -> Report:
        """Write a report of the study, and return its verdict and the paths of its files.

        html, pdf, csv, json: files to write; without any, the HTML page is runs/STUDY/report.html. publish: whether the
        dashboard shows the report.
        """
        from hpo.report.build import ReportFiles, write_report

        with python_errors():
            given = {"html": html, "pdf": pdf, "csv": csv, "json": json}
            files = ReportFiles(**{kind: _output(kind, path) for kind, path in given.items()})
            written = write_report(self.storage, self.name, self.out, files, publish)
        verdict = written.verdict
        return Report(verdict.headline, verdict.grounds, [*verdict.warnings, *written.notes], written.paths)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        from hpo.api.html import study_html

        try:
            with self._read() as (_, snapshot):
                return {"text/plain": status_text(snapshot), "text/html": study_html(snapshot)}
        except (Problem, StorageError) as error:  # a cell that shows a study must not fail because of it
            text = f"{self!r}: {error}"
            return {"text/plain": text, "text/html": f"<pre>{escape(printable(text))}</pre>"}


def _output(name: str, path: str | Path | None) -> Path | None:
    """Return the path of a file to write.

    Raises:
        Problem: it cannot be written, or it is a file that nothing should replace.
    """
    if path is None:
        return None
    if problem := output_problem(Path(path)):
        raise Problem(f"{name}: {problem}")
    return Path(path)
