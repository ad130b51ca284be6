"""Train mainrun-small with AdamW and with the SGD of its baseline, beside the unigram table (reports S002 and S004).

    HPO_DATA=folder python -m bench.reports.mainrun [--seeds 3]

The folder holds hacker-news.txt or hacker-news.txt.gz. Equal tokens, equal batches in equal order, paired by seed.
"""

import argparse

from bench.reports.seeds import base, last, spread
from model.data.ngrams import anchors
from model.data.prepare import prepare

# Plain descent at 6e-3, a cosine to zero without warmup, the norm cut at 1, dropout 0.1, nothing decayed.
SGD = {
    "regularization.dropout": 0.1,
    "optimizer.name": "sgd",
    "optimizer.lr": 6e-3,
    "optimizer.momentum": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.embedding_decay": None,
    "schedule.warmup": 0.0,
    "schedule.floor": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    config = base("mainrun-small", {"run.device": "cpu"})
    prepared = prepare(config.data, config.tokenizer)
    tables = anchors(prepared)
    for name in ("unigram", "bigram"):
        print(f"{name:<10}{tables[name]:.4f} nats/token, {tables[f'{name}_bpb']:.4f} bits/byte")
    for name, values in (("adamw", {}), ("sgd", SGD)):
        found = last(base("mainrun-small", {"run.device": "cpu"} | values), seeds)
        print(f"{name:<10}{spread([m.val_loss for m in found])} nats/token")
        print(f"{'':<10}{spread([m.val_bpb for m in found])} bits/byte, {found[0].updates:,} updates")


if __name__ == "__main__":
    main()
