"""Train microgpt with correct gradients, as its report did without: 1,000 updates of 4 names (report S001).

    HPO_DATA=folder python -m bench.reports.microgpt [--seeds 3]

The folder holds names.txt. Prints the held-out loss of each seed, with their spread, beside the corpus' anchors.
"""

import argparse

from bench.reports.seeds import base, last, spread
from model.data.ngrams import anchors
from model.data.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    config = base("microgpt", {"run.device": "cpu"})
    found = last(config, parser.parse_args().seeds)
    tables = anchors(prepare(config.data, config.tokenizer))
    for name in ("unigram", "bigram"):
        print(f"{name:<26}{tables[name]:.4f}")
    print(f"{f'held-out, {found[0].updates:,} updates':<26}{spread([m.val_loss for m in found])}")
    print(f"{'training, last rung':<26}{spread([m.train_loss for m in found])}")


if __name__ == "__main__":
    main()
