"""Check that a stored study is one that this program may continue, with this definition and these data."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import optuna

from hpo.errors import Problem
from hpo.storage.attributes import DATA_HASH, PROTOCOL, SEED, SPEC, UID
from hpo.study.earlier import complete_spec
from hpo.study.engines import engine_text, engines_of
from hpo.study.fingerprint import CHANGEABLE, spec_fingerprint, with_places
from hpo.study.spec import Study, StudyFile
from model.config import ENGINE
from model.section import flatten

# Version of what the workers of a study share: tables, attributes, the meaning of a slot, checkpoints.
# 1: hpo 0.1.0. 2: `train` holds the address model.train.trainer:Trainer, and checkpoints name optimizer state as
# PyTorch does; version 0.1.0 can read neither. A program reads every protocol up to its own.
PROTOCOL_VERSION = 2


def protocol(study: optuna.Study) -> int:
    return int(study.user_attrs.get(PROTOCOL, 1))


def check_version(study: optuna.Study) -> None:
    """Check that this program knows the protocol of a study.

    Raises:
        Problem: A newer version of hpo created or continued the study.
    """
    if (stored := protocol(study)) > PROTOCOL_VERSION:
        raise Problem(
            f"study {study.study_name}: a newer version of hpo uses it with protocol {stored}, and this version "
            f"knows protocols up to {PROTOCOL_VERSION}; "
            "install the newer version on all machines, or use another study name"
        )


def check_created_by_hpo(study: optuna.Study) -> None:
    """Check that hpo created a study: it has a uid, or in version 0.1 a definition or a protocol.

    Raises:
        Problem: Optuna, its dashboard or another program created the study.
    """
    if study.user_attrs.keys() & {UID, SPEC, PROTOCOL}:
        return
    directions = ", ".join(direction.name.lower() for direction in study.directions)
    n = len(study.get_trials(deepcopy=False))
    raise Problem(
        f"study {study.study_name}: the storage holds a study of this name that another program created, with "
        f"directions {directions} and {n} trials; give the study file another name, or use another --storage"
    )


def check_directions(stored: optuna.Study, study: Study) -> None:
    """Check that Optuna improves the objective of a study in the direction of its definition.

    Raises:
        Problem: The directions differ, for example because version 0.1 continued a study of another program.
    """
    directions = [direction.name.lower() for direction in stored.directions]
    if directions != [study.file.direction]:
        raise Problem(
            f"study {study.name}: must {study.file.direction} {study.file.objective}, and the storage holds a study "
            f"of this name with directions {', '.join(directions)}; give the study file another name, or use another "
            "--storage"
        )


def check_data_hash(study: optuna.Study, data_hash: str | None) -> None:
    """Check that prepared data are those of a study.

    Raises:
        Problem: The hashes differ.
    """
    stored = study.user_attrs.get(DATA_HASH)
    if stored != data_hash:
        raise Problem(
            f"study {study.study_name}: its data has the hash {_short(stored)}, here it has {_short(data_hash)}; "
            "losses on different data cannot be compared: use the same text, or another study name"
        )


class _Trial(Protocol):
    """A trial of Optuna, or of `hpo.storage.trials`."""

    @property
    def user_attrs(self) -> Mapping[str, Any]: ...

    @property
    def state(self) -> Any: ...


def check_engine_of_pairs(name: str, file: StudyFile, trials: Iterable[_Trial]) -> None:
    """Check that a confirmation need not complete a pair of runs that another engine has started.

    Raises:
        Problem: It would; a pair of runs of different engines does not have the same noise.
    """
    if not file.arms:
        return
    ended: Counter[int] = Counter()
    engines: dict[int, set[int]] = {}
    for trial in trials:
        seed = trial.user_attrs.get(SEED)
        if seed is not None:
            ended[seed] += trial.state.name in ("COMPLETE", "PRUNED", "FAIL")
            engines.setdefault(seed, set()).update(engines_of(trial.user_attrs))
    mixed = {seed: found for seed, found in engines.items() if found != {ENGINE} and ended[seed] < len(file.arms)}
    if mixed:
        others = sorted(set().union(*mixed.values()) - {ENGINE})
        raise Problem(
            f"study {name}: the pairs of seeds {', '.join(map(str, sorted(mixed)))} were started with "
            f"{engine_text(others)}, and this version trains with engine {ENGINE}: runs of different engines are not "
            "comparable to the last bit, so they must not form a pair; complete the study with the version of hpo that "
            "started it, or start another one on new seeds, with `--as NAME` or a file of another name"
        )


_DERIVED = ("base.run.align", "rung_tokens")


def check_same(study: Study, stored: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Check that a study has the definition of the study in the storage, except its budget, name and places.

    Raises:
        Problem: The definitions differ; the message names each difference.
    """
    if spec_fingerprint(stored) == spec_fingerprint(spec):
        return
    same = dict.fromkeys(CHANGEABLE)
    before, after = flatten({**with_places(complete_spec(stored), spec), **same}), flatten({**spec, **same})
    lines = {
        key: f"{study.source}: {key}: the study in the storage has {old}, here it is {new}"
        for key in sorted(before.keys() | after.keys())
        if (old := _as_json(before, key)) != (new := _as_json(after, key)) and {old, new} != {"nothing", "null"}
    }
    # Fields that follow from others, such as a batch size, are named only if nothing else differs.
    changed = [line for key, line in lines.items() if key not in _DERIVED and not key.startswith("closed")]
    fork = shlex.join(["hpo", "fork", study.source, "--from", study.name, "--as", f"{study.name}-2"])
    worker = shlex.join(["hpo", "worker", "--study", study.name])
    remedy = (
        f"the definition of a study cannot change: `{fork}` "
        f"creates another study with the trials that fit its definition; `{worker}` continues the study in the "
        "storage; or give the file another name"
    )
    raise Problem(*(changed or lines.values()), remedy)


def _as_json(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "nothing"


def _short(data_hash: str | None) -> str:
    return data_hash[:12] if data_hash else "none"
