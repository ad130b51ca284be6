"""Objections: problems because of which a new study is refused, although a stored study with them continues.

A check that is added here does not stop the studies that users have already started.
"""

import re

from pydantic import BaseModel, ValidationError

from hpo.config.validation import shown_value
from hpo.search.ranges import Choices
from hpo.search.space import configs_with_field
from hpo.study.spec import DEFAULT_CONFIG, StudyFile
from model.section import flat, updated

# Words in the names of metrics. A word for a loss has precedence: accuracy_error is a loss.
_MAXIMIZED = re.compile(
    "acc|accuracy|ap|auc|auprc|auroc|bleu|bleurt|chrf|cider|comet|corr|correct|correlation|cosine|coverage|dice|elbo"
    "|elo|exact|f|fitness|fscore|gain|hits?|iou|jaccard|kappa|likelihood|logl|loglikelihood|logp|logprob|map|match"
    "|mcc|meteor|miou|mrr|ndcg|pass|passed|pearson|pr|precision|prob|probability|profit|psnr|quality|r2|rating|recall"
    "|returns?|rew|rewards?|roc|rouge[a-z]*|rsquared|sacrebleu|scores?|sensitivity|sharpe|sim|similarity|spearman"
    "|specificity|speed|spice|ssim|success|throughput|top|utility|win|winrate|wins"
)
_MINIMIZED = re.compile(
    "bp[bc]|brier|cer|cost|crps|distance|ece|err|errors?|fid|gap|latency|loss(es)?|mae|mse|neg|negative|nll|perplexity"
    "|ppl|regret|rmse|time|wer"
)
_PER_SECOND = re.compile(r"_per_s(ec|econd)?(?![a-z])")  # tokens_per_second
_SEED = re.compile(r"(^|[._])(seed|seed_value|random_state|rng)$")
RESERVED = ("rung", "seconds", "step")  # what hpo itself writes beside the metrics of a command


def find_objections(file: StudyFile, base: BaseModel) -> list[str]:
    """Return the objections to a study file that is valid otherwise."""
    objections = _words_for_booleans(file, base) if file.arms is None else []
    objections += [
        f"space.{path}: must not be searched, because the best seed is luck and not a better configuration; use "
        "baseline_seeds to measure the noise of the seed, or arms with seeds to compare configurations on equal seeds"
        for path in (file.space if file.arms is None else ())
        if _SEED.search(_separated(path))
    ]
    return objections + (_objective_objections(file) if file.config != DEFAULT_CONFIG else [])


def _objective_objections(file: StudyFile) -> list[str]:
    """Return the objections to objectives that a script or a function of the user reports."""
    first, *others = file.objectives or (file.objective,)
    objections = []
    if "direction" not in file.model_fields_set and is_maximized(first):
        objections.append(
            f"direction: required with objective {shown_value(first)}, of which by its name a larger value is "
            "better; add `direction: maximize`, or `direction: minimize` if a smaller value is better"
        )
    objections += [
        f"objective: after the first, must list metrics of which a smaller value is better, got {shown_value(name)}; "
        "report such a metric instead, for example the error rate instead of the accuracy"
        for name in others
        if is_maximized(name)
    ]
    if file.command is None:
        return objections
    groups = file.metric.groups() if file.metric is not None and file.metric.file is None else None
    for name in RESERVED:
        if name == first or (groups is not None and name != "step" and name in groups):
            key = "objective" if name == first else "metric.pattern"
            rule = f"must use another name than {', '.join(RESERVED)}, which hpo writes itself"
            objections.append(f"{key}: {rule}, got {name}; rename the metric")
    missing = [] if groups is None else [name for name in others if name not in (*groups, "seconds")]
    return objections + [
        f"metric.pattern: must have a group for each objective, (?P<{name}>\\S+) is missing; add it" for name in missing
    ]


def _words_for_booleans(file: StudyFile, base: BaseModel) -> list[str]:
    """Return the objections to choices such as yes, which stay words, but which a boolean field reads as true."""
    objections = []
    for path, entry in file.space.items():
        for choice in entry.choices if isinstance(entry, Choices) else ():
            for config in configs_with_field(base, file.space, path)[:1]:
                try:
                    value = flat(updated(config, {path: choice}))[path]
                except ValidationError:  # the choice fits only with other values of the space
                    continue
                if isinstance(value, bool) and not isinstance(choice, bool):
                    rule = f"must be true or false, got {choice!r}, which YAML 1.2 does not read as a boolean"
                    objections.append(f"space.{path}.choices: {rule}; write {str(value).lower()}")
    return objections


def is_maximized(objective: str) -> bool:
    """Return whether the name of a metric contains a word for a metric to maximize, such as acc in val_acc."""
    separated = _PER_SECOND.sub("_throughput", _separated(objective))
    words = {form for word in re.findall(r"[a-z0-9]+", separated) for form in (word, word.rstrip("0123456789"))}
    return any(map(_MAXIMIZED.fullmatch, words)) and not any(map(_MINIMIZED.fullmatch, words))


def _separated(name: str) -> str:
    """Return a name in lower case with underscores between its words, such as val_acc of valAcc."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
