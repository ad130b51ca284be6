"""Run the command line with `python -m hpo`."""

from hpo.cli.main import main

main()
