"""The names that other programs use for fields and keys, with their counterparts here.

Sources: nanoGPT's train.py, transformers.TrainingArguments, W&B sweep files, Optuna, Ray Tune. A message about an
unknown name gives the counterpart, because names such as `max_iters` look like no field of the configuration.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

_UPDATES = "in tokens: number of updates x run.batch_size x model.context x run.grad_accum"
_SHARE = "as a fraction of the run, in [0, 1]"

# Name elsewhere -> the field here and how its value differs. "" as the field: there is no such field, and why.
FIELDS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(["learning_rate", "max_lr", "peak_lr", "base_lr", "init_lr", "lr_max"], ("optimizer.lr", "")),
    **dict.fromkeys(
        ["max_iters", "max_steps", "num_iterations", "n_iters", "iterations", "steps", "total_steps", "train_steps"],
        ("run.tokens", _UPDATES),
    ),
    **dict.fromkeys(["epochs", "num_epochs", "n_epochs", "max_epochs", "num_train_epochs"], ("run.tokens", "")),
    **dict.fromkeys(["max_tokens", "train_tokens", "num_tokens", "n_tokens"], ("run.tokens", "")),
    **dict.fromkeys(
        [
            *("block_size", "context_length", "seq_len", "seq_length", "sequence_length", "max_seq_len"),
            *("max_seq_length", "max_length", "n_ctx", "n_positions", "max_position_embeddings"),
        ],
        ("model.context", ""),
    ),
    **dict.fromkeys(["n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth"], ("model.n_layer", "")),
    **dict.fromkeys(["n_head", "n_heads", "num_heads", "num_attention_heads"], ("model.n_head", "")),
    **dict.fromkeys(
        ["n_embd", "d_model", "hidden_size", "hidden_dim", "embed_dim", "n_embed", "emb_dim"], ("model.n_embd", "")
    ),
    "bias": ("model.bias", ""),
    "tie_word_embeddings": ("model.tied", ""),
    **dict.fromkeys(
        ["batch_size", "per_device_train_batch_size", "micro_batch_size", "device_batch_size", "train_batch_size"],
        ("run.batch_size", ""),
    ),
    "total_batch_size": (
        "run.grad_accum",
        "the tokens of an update are run.batch_size x model.context x run.grad_accum",
    ),
    **dict.fromkeys(
        ["gradient_accumulation_steps", "grad_accum_steps", "accumulate_grad_batches"], ("run.grad_accum", "")
    ),
    **dict.fromkeys(["weight_decay", "wd"], ("optimizer.weight_decay", "")),
    **dict.fromkeys(["beta1", "adam_beta1"], ("optimizer.beta1", "")),
    **dict.fromkeys(["beta2", "adam_beta2"], ("optimizer.beta2", "")),
    "betas": ("optimizer.beta1", "and optimizer.beta2"),
    **dict.fromkeys(["epsilon", "adam_epsilon"], ("optimizer.eps", "")),
    **dict.fromkeys(["optim", "optimizer_type", "optimizer_name"], ("optimizer.name", "")),
    **dict.fromkeys(["grad_clip", "max_grad_norm", "gradient_clip_val", "clip_grad_norm"], ("clip.max_norm", "")),
    **dict.fromkeys(["warmup_iters", "warmup_steps", "num_warmup_steps"], ("schedule.warmup", _SHARE)),
    **dict.fromkeys(["warmup_ratio", "warmup_fraction"], ("schedule.warmup", "")),
    "lr_decay_iters": ("schedule.decay", f"{_SHARE}, with schedule.name: wsd; the other schedules decay to the end"),
    "decay_lr": ("schedule.name", "constant, for a rate that does not decay"),
    **dict.fromkeys(["lr_scheduler_type", "lr_scheduler", "lr_schedule"], ("schedule.name", "")),
    **dict.fromkeys(["min_lr", "lr_min", "eta_min", "final_lr"], ("schedule.floor", "as a fraction of optimizer.lr")),
    **dict.fromkeys(
        ["eval_interval", "eval_steps", "eval_every", "evaluation_steps", "val_interval", "val_every"],
        ("run.rungs", "the number of evaluations in a run"),
    ),
    **dict.fromkeys(["dropout", "dropout_rate", "dropout_p", "drop_rate"], ("regularization.dropout", "")),
    **dict.fromkeys(["ema_decay"], ("regularization.ema", "")),
    **dict.fromkeys(["compile", "torch_compile"], ("run.compile", "auto, on or off")),
    **dict.fromkeys(["dtype", "torch_dtype", "mixed_precision"], ("run.precision", "auto, fp32, tf32, bf16 or fp16")),
    **dict.fromkeys(["bf16", "fp16"], ("run.precision", "bf16 or fp16")),
    "device": ("run.device", ""),
    **dict.fromkeys(["random_seed", "manual_seed"], ("run.seed", "")),
    **dict.fromkeys(
        ["dataset", "dataset_name", "data_dir", "data_path", "train_file"], ("data.path", "with data.name")
    ),
    "vocab_size": ("tokenizer.vocab_size", ""),
    **dict.fromkeys(["always_save_checkpoint", "save_steps", "save_strategy"], ("run.keep_checkpoints", "")),
    **dict.fromkeys(
        ["eval_iters", "eval_batches", "val_batches"], ("", "omit it, because the whole validation split is evaluated")
    ),
    **dict.fromkeys(
        ["log_interval", "logging_steps", "wandb_log", "wandb_project", "wandb_run_name", "report_to", "eval_only"],
        ("", "omit it, because hpo stores the metrics of every rung"),
    ),
    **dict.fromkeys(["out_dir", "output_dir"], ("", "omit it; the option --out names the folder of the runs")),
    "init_from": ("", "omit it, because every run starts from new weights"),
    **dict.fromkeys(["backend", "world_size"], ("", "omit it, because each run uses one device")),
}

# Key of a study file elsewhere -> what to write here.
STUDY_KEYS: dict[str, str] = {
    **dict.fromkeys(["method", "search_alg", "searcher", "algorithm", "algo"], "sampler: {name: tpe}"),
    **dict.fromkeys(
        ["parameters", "params", "hyperparameters", "search_space", "param_space", "distributions"],
        "space: {FIELD: RANGE}, such as space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}",
    ),
    **dict.fromkeys(["early_terminate", "scheduler", "early_stopping"], "pruner: {name: median}"),
    **dict.fromkeys(["goal", "mode", "directions"], "direction: minimize or maximize"),
    **dict.fromkeys(["run_cap", "n_trials", "num_samples", "num_trials", "max_trials"], "budget: {trials: N}"),
    **dict.fromkeys(["timeout", "time_budget_s"], "budget: {hours: H}"),
    "program": "command: [python, PROGRAM, {flags}]",
    "trainable": "train: module:function",
    **dict.fromkeys(["name", "study_name"], "the name of the file, which is the name of the study"),
    "storage": "the option --storage",
}
OMITTED_KEYS = ("project", "entity", "description", "controller", "settings", "preset")

# Field of a sampler, pruner or budget elsewhere -> the field here.
NESTED_KEYS = {
    "sampler.n_startup_trials": "startup_trials",
    "sampler.n_ei_candidates": "ei_candidates",
    "sampler.popsize": "population",
    "sampler.population_size": "population",
    "pruner.n_startup_trials": "startup_trials",
    "pruner.n_warmup_steps": "warmup_rungs",
    "pruner.n_startup_steps": "warmup_rungs",
    "pruner.n_min_trials": "min_trials",
    "pruner.interval_steps": "interval",
    "pruner.reduction_factor": "factor",
    "pruner.eta": "factor",
    "pruner.min_resource": "min_rungs",
    "pruner.min_iter": "min_rungs",
    "pruner.type": "name",
    "sampler.type": "name",
    "budget.n_trials": "trials",
    "budget.timeout": "hours",
}

# W&B's keys of `metric`, which here says where hpo reads the metrics of a command.
METRIC_KEYS = {"metric.name": "objective: NAME", "metric.goal": "direction: minimize or maximize"}

# Name of a sampler or pruner elsewhere, in lower case without separators -> its name here.
COMPONENTS = {
    **dict.fromkeys(["bayes", "bayesian", "tpesampler", "hyperopt", "optuna"], "tpe"),
    **dict.fromkeys(["randomsampler", "randomsearch"], "random"),
    **dict.fromkeys(["gridsampler", "gridsearch"], "grid"),
    "bruteforcesampler": "brute-force",
    "gpsampler": "gp",
    "cmaessampler": "cmaes",
    **dict.fromkeys(["qmcsampler", "sobol"], "qmc"),
    **dict.fromkeys(["nsgaiisampler", "nsgaii"], "nsga2"),
    "medianpruner": "median",
    "percentilepruner": "percentile",
    **dict.fromkeys(["ashascheduler", "asynchyperbandscheduler", "asynchyperband"], "asha"),
    **dict.fromkeys(["successivehalving", "successivehalvingpruner"], "halving"),
    "hyperbandpruner": "hyperband",
    "patientpruner": "patient",
    "thresholdpruner": "threshold",
    "wilcoxonpruner": "wilcoxon",
    **dict.fromkeys(["noppruner", "nop", "null", "off", "no"], "none"),
}


def field_remedy(path: str, known: Iterable[str], value: Any = None) -> str:
    """Return the remedy for a field or key that has another name here, "" if the name is not known.

    path: the unknown dotted field. known: the dotted fields of the configuration or of the study file. value: what was
    given for the field.
    """
    fields, word = list(known), _word(path)
    is_study = {"space", "base"} <= set(fields)
    if is_study and (remedy := _study_remedy(path, word, value)):
        return remedy
    if any(word == field.rpartition(".")[2] for field in fields):
        return ""  # a field of that name exists in another section
    field, note = FIELDS.get(word, ("", ""))
    if not field:
        return f"; {note}" if note and (is_study or "run.tokens" in fields) else ""
    explained = f" ({note})" if note else ""
    if is_study:
        return f"; use {field} in base or in space{explained}" if "." not in path else ""
    leaf = field.rpartition(".")[2]
    here = field if field in fields else leaf if leaf in fields else None
    return f"; use {here}{explained}" if here is not None else ""


def _study_remedy(path: str, word: str, value: Any) -> str:
    """Return the remedy for a key of a study file."""
    if path in METRIC_KEYS:
        key = METRIC_KEYS[path].partition(":")[0]
        return f"; use {key}: {_shown(value)}" if isinstance(value, str) else f"; use {METRIC_KEYS[path]}"
    if path in NESTED_KEYS:
        return f"; use {path.partition('.')[0]}.{NESTED_KEYS[path]}"
    if "." in path:
        return ""
    if word in OMITTED_KEYS:
        return "; omit it"
    instead = STUDY_KEYS.get(word)
    if word == "method" and isinstance(value, str):
        instead = f"sampler: {{name: {component_name(value)}}}"
    return f"; use {instead}" if instead else ""


def component_remedy(value: Any, known: str) -> str:
    """Return "; use X" for a sampler or pruner that has another name here, "" if the name is not known.

    known: the names of the samplers or pruners, each in quotes.
    """
    name = COMPONENTS.get(_plain(str(value).rpartition(".")[2]))
    return f"; use {name}" if name is not None and f"'{name}'" in known else ""


def component_name(value: str) -> str:
    """Return the name here of a sampler or pruner, or the name itself if no other is known."""
    return COMPONENTS.get(_plain(value.rpartition(".")[2]), _shown(value))


def _shown(value: Any) -> str:
    """Return a name as it is, and any other text in quotes with its control characters escaped."""
    text = str(value)[:60]
    return text if re.fullmatch(r"[A-Za-z0-9_./@-]+", text) else json.dumps(text)


def _plain(value: Any) -> str:
    return re.sub(r"[\W_]", "", str(value)[:60]).lower()


def _word(path: str) -> str:
    """Return the last part of a path in lower case with underscores: learning_rate for train.learningRate."""
    leaf = path.rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", leaf).lower().replace("-", "_").replace(" ", "_")
