"""Train one run: python -m model optimizer.lr=3e-4"""

import sys

from pydantic import ValidationError

from model.config import TrainConfig
from model.errors import ConfigError
from model.section import updated


def main(arguments: list[str]) -> int:
    """Train a run and print one line per rung. Return the exit status."""
    try:
        if malformed := [argument for argument in arguments if "=" not in argument]:
            raise ConfigError(f"must be path=value, such as optimizer.lr=3e-4, got {malformed[0]}")
        config = updated(TrainConfig(), dict(argument.split("=", 1) for argument in arguments))
        from model.train.trainer import Trainer

        for rung, metrics in Trainer([config]):
            m = metrics[0]
            print(f"rung {rung:3d}  tokens {m.tokens:9,d}  val_loss {m.val_loss:.4f}  val_bpb {m.val_bpb:.4f}")
    except (ConfigError, ValidationError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
