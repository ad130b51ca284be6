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
    "acc|accuracy|ap|auc|auprc|auroc|bleu|chrf|cider|corr|correct|correlation|dice|elo|exact|f|fitness|fscore|gain|hits"
    "|iou|kappa|likelihood|loglikelihood|map|match|mcc|meteor|miou|mrr|ndcg|pass|passed|pearson|pr|precision|profit"
    "|psnr|r2|recall|returns?|rewards?|roc|rouge[a-z]*|sacrebleu|scores?|sharpe|spearman|spice|ssim|success|throughput"
    "|utility|win|winrate|wins"
)
_MINIMIZED = re.compile(
    "bp[bc]|brier|cer|cost|crps|distance|ece|err|errors?|fid|gap|latency|loss(es)?|mae|mse|neg|negative|nll|perplexity"
    "|ppl|regret|rmse|time|wer"
)
_SEED = re.compile(r"(^|[._])(seed|random_state)$")


def find_objections(file: StudyFile, base: BaseModel) -> list[str]:
    """Return the objections to a study file that is valid otherwise."""
    objections = _words_for_booleans(file, base) if file.arms is None else []
    objections += [
        f"space.{path}: must not be searched, because the best seed is luck and not a better configuration; use "
        "baseline_seeds to measure the noise of the seed, or arms with seeds to compare configurations on equal seeds"
        for path in (file.space if file.arms is None else ())
        if _SEED.search(path)
    ]
    if "direction" not in file.model_fields_set and file.config != DEFAULT_CONFIG and is_maximized(file.objective):
        objections.append(
            f"direction: required with objective {shown_value(file.objective)}, of which by its name a larger value is "
            "better; add `direction: maximize`, or `direction: minimize` if a smaller value is better"
        )
    return objections


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
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", objective).lower()  # valAcc
    words = {form for word in re.findall(r"[a-z0-9]+", separated) for form in (word, word.rstrip("0123456789"))}
    return any(map(_MAXIMIZED.fullmatch, words)) and not any(map(_MINIMIZED.fullmatch, words))
