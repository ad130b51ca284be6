"""hpo confirm: the best of a search and its baseline, run again at full length on fresh seeds, in pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.arms import Compared, study_of
from hpo.compare import columns, compare
from hpo.engine import look
from hpo.live import clock
from hpo.output import Format, number, rows, say
from hpo.problems import NothingFeasible, Problem
from hpo.reading import SPEC, Opened, State, Trial, study_attrs, study_ids
from hpo.running import Options, run
from hpo.statistics import Test, fewest
from hpo.status import SET, Snapshot, counts, ended, snapshot
from hpo.study import DEFAULT_CONFIG, NAME, Study, from_spec, seed_path
from model.section import flat, updated

BASELINE = "baseline"
FRESH = 1_000  # seeds from here on: searches begin at 0, and their noise floors go on from there
TOP, SEEDS = 3, 8  # what is usual: eight pairs show a gain of two sigma nine times in ten


@dataclass(frozen=True)
class Asked:
    """What the command line of `hpo confirm` says; None: what is usual, or what a study that is begun has."""

    study: str | None
    top: int | None
    seeds: int | None
    tokens: int | None
    name: str | None
    test: Test | None


def confirm(asked: Asked, options: Options, format: Format) -> int:
    """Run the best configurations of a study and its baseline again; return the exit status."""
    with look(options.storage) as at:
        of = snapshot(at, asked.study)
        name = asked.name or f"{of.name}-confirm"
        study = begun(at, name, "confirms", of.name)
        if study is not None:
            _check_asked(study, asked)
        else:
            study = design(of, name, asked, first_fresh(at, of))
    return run(replace(options, study=name), study, partial(conclude, format=format))


def conclude(found: Snapshot, folder: Path, options: Options, seconds: float, format: Format = Format.table) -> int:
    """Say what was confirmed.

    Raises:
        NothingFeasible: no configuration has a run to compare.
    """
    if not told_of_end(found, seconds):
        return 0
    rows(table(found), format)
    say("\n".join(["", *verdicts(found)]))
    if all(row.difference is None for row in compare(found)[1:]):
        raise NothingFeasible(f"study {found.name}: no two runs of one seed are complete; `hpo trials` says why")
    return 0


def told_of_end(found: Snapshot, seconds: float) -> bool:
    """Say that a comparison has ended, or that it has not: then there is no verdict, since a result chooses no n."""
    n, total = counts(found)["complete"], sum(found.slots.values())
    if ended(found):
        say(f"{found.name}: ended after {clock(seconds)}")
        return True
    say(f"{found.name}: {n} of {total} runs complete; there is a verdict when all have ended")
    return False


def design(of: Snapshot, name: str, asked: Asked, first: int) -> Study:
    """Return the study that confirms the best of another one, on seeds from `first` on.

    Raises:
        NothingFeasible: no trial is complete. Problem: it has arms itself, or too few seeds are asked for.
    """
    if of.spec.get("arms"):
        raise Problem(f"--study: must be a search; {of.name} has arms, which are compared already")
    searched, test = from_spec(of.spec), asked.test or "t"
    best = ranked(of, searched)[: asked.top or TOP]
    if not best:
        raise NothingFeasible(
            f"study {of.name}: no trial but its baseline is complete yet, so there is nothing to confirm; "
            "`hpo status` says how far it is"
        )
    n, least = asked.seeds or SEEDS, fewest(test, len(best))
    if n < least:
        raise Problem(
            f"--seeds: must be at least {least}, or no difference between {len(best)} configurations and the "
            f"baseline, however large, is significant in a {test} test; got {n}"
        )
    names = {f"trial {t.number}": t for t in best}
    baseline: Mapping[str, Any] = next(iter(searched.file.baseline), {})
    wanted = {BASELINE: baseline} | {arm: t.user_attrs.get(SET, t.params) for arm, t in names.items()}
    about = {
        "confirms": of.name,
        "trials": {arm: t.number for arm, t in names.items()},
        "found": {arm: t.values[0] for arm, t in names.items()} | {BASELINE: _baseline(of)},
        "among": len(of.feasible),
        "test": test,
        "searched_tokens": flat(searched.base).get("run.tokens"),
    }
    made = Compared(f"`hpo confirm` of {of.name}", wanted, range(first, first + n), about)
    return study_of(searched, name, full(searched, asked.tokens), made)


def full(study: Study, tokens: int | None) -> BaseModel:
    """Return the base of a study at the length asked for, its test split scored.

    Raises:
        Problem: it has no length that could be set.
    """
    values: dict[str, Any] = {}
    if tokens is not None:
        if "run.tokens" not in flat(study.base):
            raise Problem("--tokens: needs a config with a field run.tokens; leave it out")
        values["run.tokens"] = tokens
    if study.file.config == DEFAULT_CONFIG:
        values["run.test"] = True
    return updated(study.base, {**values, **({"run.align": 1} if values else {})})


def ranked(of: Snapshot, study: Study) -> list[Trial]:
    """Return the finished trials, the best first, one of each configuration; the baseline is none of them."""
    seed = seed_path(study.base)
    seen = [_seedless(study, next(iter(study.file.baseline), {}), seed)]
    found = []
    for trial in sorted(of.feasible, key=lambda t: t.values[0]):
        config = _seedless(study, trial.user_attrs.get(SET, trial.params), seed)
        if config not in seen:
            seen.append(config)
            found.append(trial)
    return found


def _seedless(study: Study, values: Mapping[str, Any], seed: str | None) -> BaseModel:
    return study.configured({key: value for key, value in values.items() if key != seed})


def _baseline(of: Snapshot) -> float | None:
    found = of.baseline()
    return found.values[0] if found is not None and found.state == State.COMPLETE else None


def begun(at: Opened, name: str, key: str, source: str) -> Study | None:
    """Return the study of that name that was made for `source`, to be gone on with; None where there is none.

    Raises:
        Problem: it is no name, or a study of that name was made for something else.
    """
    if not NAME.fullmatch(name) or name.endswith((".yaml", ".yml")):
        raise Problem(
            f"--as: must be a name of letters, digits, '-', '_' and '.', such as {source}-2, got {name!r:.60}"
        )
    study_id = study_ids(at).get(name)
    attrs = {} if study_id is None else study_attrs(at, study_id)
    if study_id is None:
        return None
    if attrs.get(SPEC, {}).get("about", {}).get(key) != source:
        raise Problem(f"--as: the storage holds another study {name!r}; give this one a name of its own")
    return from_spec(attrs[SPEC])


def first_fresh(at: Opened, of: Snapshot) -> int:
    """Return a seed from which on none was used by a search, or by a study that was made for it."""
    study = from_spec(of.spec)
    seed = seed_path(study.base)
    used = [FRESH - 1, *study.noise_seeds()]
    if seed is not None:
        used += [flat(study.configured(values)).get(seed, 0) for values in ({}, *study.file.baseline)]
        used += [t.user_attrs.get(SET, t.params).get(seed, 0) for t in of.trials]
    for study_id in study_ids(at).values():
        spec = study_attrs(at, study_id).get(SPEC, {})
        if of.name in spec.get("about", {}).values():
            used += spec["seeds"]
    return max(number for number in used if isinstance(number, int)) + 1


def _check_asked(study: Study, asked: Asked) -> None:
    """Refuse to go on with a study under other options than it was begun with: a result must not choose its n."""
    file = study.file
    has = {
        "--top": (asked.top, len(file.arms or {}) - 1),
        "--seeds": (asked.seeds, len(file.seeds)),
        "--tokens": (asked.tokens, flat(study.base).get("run.tokens")),
        "--test": (asked.test, file.about["test"]),
    }
    problems = [
        f"{key}: study {study.name} was begun with {held}, got {wanted}; `--as NAME` begins another on fresh seeds"
        for key, (wanted, held) in has.items()
        if wanted not in (None, held)
    ]
    if problems:
        raise Problem(*problems)


def tested(of: Snapshot) -> str:
    """Return the metric of the test split that goes with the objective."""
    return of.objective.replace("val_", "test_")


def table(of: Snapshot) -> list[dict[str, Any]]:
    """Return a record an arm: the search's value beside what the fresh seeds say, on both splits."""
    found, on_test = of.spec["about"]["found"], {row.arm: row for row in compare(of, tested(of))}
    records = []
    for row in compare(of):
        record, test = columns(row), on_test[row.arm]
        records.append(
            {"arm": row.arm, "search": found.get(row.arm)}
            | {key: value for key, value in record.items() if key != "arm"}
            | ({tested(of): test.mean, f"{tested(of)} difference": columns(test)["difference"]} if test.n else {})
        )
    return records


def verdicts(of: Snapshot) -> list[str]:
    """Return a sentence an arm."""
    found, rows_of, on_test = of.spec["about"]["found"], compare(of), {r.arm: r for r in compare(of, tested(of))}
    told = []
    for row in rows_of[1:]:
        if row.difference is None or row.p is None:
            told.append(f"{row.arm}: {row.verdict} ({row.n} runs have a value)")
            continue
        d, test = row.difference, on_test[row.arm].difference
        corrected = f", corrected for {len(rows_of) - 1}" if len(rows_of) > 2 else ""
        said = f"{row.arm}: {row.verdict}: {number(d.mean)} against the baseline ({number(d.low)} to {number(d.high)}, "
        said += f"p {row.p:.2g} of {d.n} pairs{corrected})" + (
            f"; {number(test.mean)} on the test split" if test else ""
        )
        told.append(said + _shrunk(of, found.get(row.arm), found.get(BASELINE), d.mean))
    return told


def _shrunk(of: Snapshot, value: float | None, baseline: float | None, confirmed: float) -> str:
    """Return what is left of the gain that the search had seen."""
    if value is None or baseline is None or value >= baseline:
        return ""
    gain = value - baseline
    about = of.spec["about"]
    length = flat(from_spec(of.spec).base).get("run.tokens")
    at = "" if length == about["searched_tokens"] else f" at {about['searched_tokens']:,} tokens"
    return f"; the search saw {number(gain)}{at}, of which {max(0.0, confirmed / gain):.0%} is left"
