"""`hpo import`: find out what a source is, and import it."""

from collections.abc import Sequence
from pathlib import Path

from hpo.errors import Problem


def import_source(
    source: str, output: Path | None, study: str | None, from_study: str | None, renames: Sequence[str], storage: str
) -> list[str]:
    """Import a W&B sweep, a CSV file or an Optuna study; return lines to print.

    source: path or URL. output: study file to write. study: study that receives trials. from_study: name of the Optuna
    study. storage: URL of the storage of `study`.

    Raises:
        Problem: the source cannot be imported, or an option does not fit it.
    """
    path = Path(source)
    kind = path.suffix.lower()
    is_file = "://" not in source
    if is_file and not path.is_file():
        raise Problem(f"no such file: {source}; give the path of a W&B sweep or of a CSV file, or a storage URL")
    if is_file and kind in (".yaml", ".yml", ".json"):
        _check_omitted(f"a sweep, {source}", study=study, from_study=from_study, rename=next(iter(renames), None))
        from hpo.commands.import_sweep import import_sweep

        import_sweep(path, output)
        return []
    is_csv = is_file and kind == ".csv"
    if study is None:
        if is_csv:
            raise Problem("--study: required with a CSV file; give the study that receives its rows as prior trials")
        return _write_study(source, from_study, renames, output)
    _check_omitted("--study", output=None if output is None else str(output))
    from hpo.commands.import_trials import import_csv, import_optuna, parse_renames
    from hpo.storage.store import open_store

    renamed = parse_renames(renames)
    if is_csv:
        _check_omitted(f"a CSV file, {source}", from_study=from_study)
    with open_store(storage, create=True) as store:
        if is_csv:
            return import_csv(store, path, study, renamed)
        return import_optuna(store, source, from_study, study, renamed)


def _write_study(source: str, from_study: str | None, renames: Sequence[str], output: Path | None) -> list[str]:
    _check_omitted("an Optuna storage and no --study", rename=next(iter(renames), None))
    from hpo.commands.import_sweep import write_study
    from hpo.commands.import_trials import study_of_optuna

    text, name = study_of_optuna(source, from_study)
    write_study(text, output)
    return [] if output is None else [f"{output}: written from study {name}; next: `hpo check {output}`"]


def _check_omitted(reason: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise Problem(f"--{name.replace('_', '-')}: must be omitted with {reason}, got {value}")
