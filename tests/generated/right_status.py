"""The exit status of a command line, as the manual has it."""

from tests.generated.made_lines import FILES, STORAGES, WRITTEN, Line
from tests.support.command_lines import STUDIES


def due(line: Line) -> set[int]:
    """Return the exit statuses that are right, as the manual has them: one, but for what only a trial can tell."""
    if line.unread:
        return {2}
    if "help" in line.values:
        return {0}
    if line.misfit:
        return {2}
    name, of = " ".join(line.path), line.values
    if of.get("allow_train", "trivial:train") != "trivial:train":  # none of the others has the form module:name
        return {2, 4} if "storage_file" in of else {2}
    if "allow_train" in of:  # an earlier one may not have the form
        return {0, 1, 2, 3, 4}
    if "storage_file" in of:  # none of the paths is a file that holds a URL, and --storage excludes it
        return {2, 4}
    match name:
        case "worker":
            return _of_worker(of)
        case "limits" | "sample" | "data prepare" | "data show":
            return {2}
        case "claims":  # odd names, ledgers and files of data are most of what is typed
            return {0, 2} | ({4} if of.get("storage") in STORAGES else set()) | ({1} if "write" in of else set())
        case "confirm" | "ablate":  # what they make of a study is what only its trials can tell
            return {4} if of.get("storage") in STORAGES else {0, 2, 3}
        case "dashboard":
            return {2, 4}  # the address may be refused before the storage
        case "data list":
            return {0}
        case "check" | "launch":
            return _of_file(name, line)
        case "train":
            plain = of["config"] == "best.yaml" and not of.keys() & {"out", "resume", "overrides"}
            odd = {4} if of.get("storage") in STORAGES else set()  # as for a launch
            return odd | ({2} if of["config"] != "best.yaml" else {0} if plain else {0, 1, 2})
    if of.get("storage", "runs/hpo.db") in STORAGES:
        return {4} | ({2} if of.keys() & WRITTEN else set())
    return _of_study(name, of)


def _of_file(name: str, line: Line) -> set[int]:
    free = {"study", "storage", "out", "seed", "pack", "dry_run", "quiet", "plain"}
    found = FILES.get(line.values["study"], 2)
    if name == "launch" and line.values["study"] == "claims":
        found = 2
    # A storage is opened by a real launch only, but what cannot be the name of one is seen before.
    odd = {4} if name == "launch" and line.values.get("storage") in STORAGES else set()
    return odd | {found} | ({2} if line.values.keys() - free else set())


def _of_worker(of: dict[str, str]) -> set[int]:
    if of.get("storage") in STORAGES:
        return {2, 4}
    if of.get("study") not in STUDIES:  # of three, one must be named
        return {2}
    return {0, 2} if of["study"] == "trivial" else {0, 1, 2, 3}  # the others have trials to run, perhaps in odd places


def _of_study(name: str, of: dict[str, str]) -> set[int]:
    study = of.get("study", "").removesuffix(".yaml")
    match name:
        case "studies":
            return {0}
        case "doctor":
            return {0, 1} if "study" not in of or study in STUDIES else {0, 1, 2}
        case "fork":
            return {0, 2} if FILES.get(of["file"], 2) == 0 and of["origin"] in STUDIES else {2}
    if study not in STUDIES:  # of three, one must be named
        return {2}
    number = int(of.get("number", of.get("trial", 0)))
    there = 0 <= number < STUDIES[study]
    match name:
        case "show" | "why" | "logs":
            return {0} if there else {2}
        case "kill":
            return {0} if there and study == "held" else {2}
        case "best" | "export" if "trial" not in of and of.get("by", "loss") != "loss":  # the only objective
            return {2}
        case "best" | "export" if "trial" not in of and study != "trivial":
            return {3}
        case "report":
            refused = {2} if of.keys() & WRITTEN else set()
            return refused | ({0, 1} if study == "trivial" else {0, 1, 3})
        case "export":
            return {0, 1, 2} if there or "trial" not in of else {2}
        case "retry" | "enqueue":
            return {0, 2}
    return {0}
