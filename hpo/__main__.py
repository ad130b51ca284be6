"""python -m hpo is hpo."""

from hpo.cli import main

main()
