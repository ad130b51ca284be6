"""Write text, tables and figures as one HTML page that needs no network and prints on A4."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from hpo.console import format_value, printable

# The browser refuses to load anything that is not in the file itself.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

LONG_CELL = 30  # characters; a longer cell may break anywhere
UNBROKEN_ROWS = 20  # a table with at most this many rows is printed on one page
WIDE_COLUMNS = 8  # a table of more columns has a smaller font, because one wide table shrinks all pages in print

_CSS = """
@page { size: A4; margin: 15mm 15mm 17mm; }
* { box-sizing: border-box; }
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #1f2933; background: #fff; max-width: 680px;
  margin: 32px auto 64px; padding: 0; overflow-wrap: break-word; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 34px 0 6px; padding-top: 8px; border-top: 1px solid #d5dadf; break-after: avoid; }
p, ul { margin: 6px 0 10px; }
ul { padding-left: 20px; }
li { margin: 3px 0; }
.lead { font-size: 18px; line-height: 1.4; margin: 12px 0; }
.small, figcaption { font-size: 12.5px; line-height: 1.45; color: #52606d; }
.lead-in { break-after: avoid; }
table + .small { break-before: avoid; }
.note { border-left: 3px solid #c2410c; padding: 2px 0 2px 12px; margin: 12px 0; }
figure { margin: 10px 0 16px; break-inside: avoid; }
figure > div { width: 680px; }
body { counter-reset: figure; }
figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; font-weight: 600; }
table { border-collapse: collapse; font-size: 12.5px; margin: 8px 0 14px; width: 100%; }
th, td { padding: 3px 8px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e8ebee; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid #9aa5b1; }
tbody th { width: 150px; }
figcaption { padding-top: 4px; }
td.long { overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr, table.whole { break-inside: avoid; }
thead { display: table-header-group; }
table.wide { font-size: 10.5px; }
.wide th, .wide td { padding-right: 5px; }
code, pre { font: 12.5px/1.5 Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: #f4f6f8; padding: 8px 12px; white-space: pre-wrap; break-inside: avoid; }
pre.long { font-size: 10px; line-height: 1.3; columns: 3; break-inside: auto; }
@media print { body { margin: 0; font-size: 10.5pt; } h2 { margin-top: 20px; } a { color: inherit; }
  .page { break-after: page; } .page li, .page p:not(.lead) { font-size: 9.5pt; line-height: 1.35; margin: 3px 0; } }
"""


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph; text between back ticks is code. kind: a class of the style sheet."""
    return f"<p{_class(kind)}>{inline(words)}</p>\n"


def inline(words: str) -> str:
    parts = _escaped(words).split("`")
    if len(parts) % 2 == 0:  # a single back tick in the user's text
        return _escaped(words)
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _escaped(words: str) -> str:
    return html.escape(printable(words))


def page(body: str) -> str:
    """Return a part that is followed by a new page in print."""
    return f'<section class="page">\n{body}</section>\n'


def bullets(lines: Iterable[str], kind: str = "") -> str:
    """Return a bullet list, "" without lines."""
    items = "".join(f"<li>{inline(line)}</li>\n" for line in lines)
    return f"<ul{_class(kind)}>\n{items}</ul>\n" if items else ""


def heading(words: str) -> str:
    return f"<h2>{_escaped(words)}</h2>\n"


def code_block(words: str, kind: str = "") -> str:
    return f"<pre{_class(kind)}>{_escaped(words)}</pre>\n"


def html_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with one row per record, columns of numbers aligned right; "" without records."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    if not columns:
        return ""
    right = {c for c in columns if all(_is_number(record.get(c)) for record in records)}
    head = "".join(f"<th{_class('n' if c in right else '')}>{_breakable(c)}</th>" for c in columns)
    rows = "".join(f"<tr>{_row(record, columns, right)}</tr>\n" for record in records)
    kinds = (("whole", len(records) <= UNBROKEN_ROWS), ("wide", len(columns) > WIDE_COLUMNS))
    kind = _class(" ".join(name for name, applies in kinds if applies))
    return f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n"


def _row(record: Mapping[str, Any], columns: Sequence[str], right: set[str]) -> str:
    kinds = {c: "n" if c in right else "long" if len(str(record.get(c))) > LONG_CELL else "" for c in columns}
    return "".join(f"<td{_class(kinds[c])}>{_cell(record.get(c))}</td>" for c in columns)


def definition_table(facts: Mapping[str, Any]) -> str:
    """Return a table of two columns, names and values."""
    row = "<tr><th>{}</th><td class='long'>{}</td></tr>\n"
    rows = "".join(row.format(_breakable(key), _cell(value)) for key, value in facts.items())
    return f"<table><tbody>\n{rows}</tbody></table>\n"


def figure_element(figure: go.Figure, name: str, caption: str) -> str:
    """Return a figure with its caption; name: id of the element, unique in the page."""
    drawing = plotly.io.to_html(
        figure, config={"displayModeBar": False}, full_html=False, include_plotlyjs=False, include_mathjax=False,
        div_id=name, default_width=f"{figure.layout.width}px", default_height=f"{figure.layout.height}px",
    )  # fmt: skip
    return f"<figure>\n{drawing}\n<figcaption>{inline(caption)}</figcaption>\n</figure>\n"


def html_page(title: str, body: str) -> str:
    """Return the HTML file; body: the HTML inside its body element."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_escaped(title)}</title>
<style>{_CSS}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<noscript><p class="note">The figures of this page need JavaScript, which is disabled here. Save the page and open
the file.</p></noscript>
{body}
</body>
</html>
"""


def _breakable(path: str) -> str:
    """Return the name of a column, which may break after a dot or an underscore."""
    return _escaped(path).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _cell(value: Any) -> str:
    return _escaped("–" if value is None else format_value(value))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
