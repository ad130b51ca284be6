"""Write the generated pages of the documentation, the tables of three pages, a notebook, and the JSON schemas.

The tables are those of docs/search.md, docs/transfer.md and docs/gpu.md.

python -m docs.generate            write the pages
python -m docs.generate --check    exit with 1 where a page is not what would be written
"""

import sys
from pathlib import Path

from docs.command_page import command_page
from docs.configuration_page import configuration_page
from docs.drawing import drawing, packages
from docs.gpu_tables import with_results
from docs.notebook_page import notebook
from docs.search_tables import with_tables
from docs.transfer_tables import with_transfer_tables
from hpo.config.yaml import parse_yaml
from hpo.study.schema import configuration_schema, schema_lines, study_schema

DOCS = Path(__file__).parent
SCHEMAS = DOCS.parent / "studies/schema"  # the shipped files name them in their editor lines


def pages() -> dict[Path, str]:
    """Return the text of every generated file."""
    table = parse_yaml((DOCS / "packages.yaml").read_text("utf-8"))
    return {
        DOCS / "cli.md": command_page(),
        DOCS / "configuration.md": configuration_page(),
        DOCS / "gpu.md": with_results((DOCS / "gpu.md").read_text("utf-8")),
        DOCS / "notebook.ipynb": notebook(),
        DOCS / "packages.md": packages(table),
        DOCS / "packages.svg": drawing(table),
        DOCS / "search.md": with_tables((DOCS / "search.md").read_text("utf-8")),
        DOCS / "transfer.md": with_transfer_tables((DOCS / "transfer.md").read_text("utf-8")),
        SCHEMAS / "config.json": schema_lines(configuration_schema()),
        SCHEMAS / "study.json": schema_lines(study_schema()),
    }


def main() -> int:
    written = pages()
    stale = [path for path, text in written.items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is not up to date; run `python -m docs.generate`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in written.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
