"""The page around the sections: one file, no script, nothing fetched from anywhere, legible on paper and on a telephone."""

import html
from collections.abc import Sequence

from fedsam_pipeline.report.markup import Section

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #56606c; --line: #d5dce4; --tint: #f4f6f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.5rem 4rem; color: var(--ink); background: #fff; overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
header p, .note, figcaption, caption { color: var(--muted); font-size: .875rem; }
.warning { padding: .6rem .9rem; border-left: 4px solid #b45309; background: #fff7ed; max-width: none; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.2rem 0 0; padding: 0; list-style: none; font-size: .93rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.3rem 0 0; padding: 0; list-style: none; }
.facts li { flex: 1 1 9rem; padding: .7rem .9rem; background: var(--tint); border-left: 4px solid var(--accent); overflow-wrap: anywhere; }
.facts b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.facts span { color: var(--muted); font-size: .875rem; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0 1.2rem; font-size: .9rem; }
caption { text-align: left; padding-bottom: .3rem; }
th { text-align: left; font-weight: 600; }
thead th { color: var(--muted); vertical-align: bottom; }
th, td { padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody th, .words td { overflow-wrap: anywhere; } tbody th { min-width: 6rem; } .numbers td { white-space: nowrap; }
.numbers td, .numbers th + th { text-align: right; padding-right: 0; padding-left: .6rem; font-variant-numeric: tabular-nums; }
.keys tbody th { font: .875rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; min-width: 8rem; }
.words.of2 tr > :first-child { width: 30%; } .words.of3 tr > :first-child { width: 27%; } .words.of3 td:nth-of-type(1) { width: 23%; }
tr.total th, tr.total td { font-weight: 600; border-top: 2px solid var(--ink); }
figure { margin: .8rem 0; }
img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .3rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem 1.5rem; margin: .8rem 0; }
.figures figure { margin: 0; } .figures img { width: 100%; }
footer { margin-top: 3rem; color: var(--muted); font-size: .875rem; }
@media screen and (max-width: 45rem) {
  body { padding: 1.2rem 1rem 3rem; } h1 { font-size: 1.4rem; }
  .facts li { flex-basis: 100%; padding: .5rem .8rem; }
  table, caption, tbody, tr, tbody th, td { display: block; width: auto !important; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tbody tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  tbody th, td, tr.total th, tr.total td { border: 0; padding: .1rem 0; } tr.total { border-top: 2px solid var(--ink); }
  .numbers td { display: flex; justify-content: space-between; gap: 1rem; padding-left: 0; }
  td::before { content: attr(data-label); color: var(--muted); }
  .words td::before { display: block; font-size: .8rem; } .of2 td::before { content: none; }
  td:empty { display: none !important; }
}
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact; }
  nav { display: none; }
  .facts li { background: none; border: 1px solid var(--line); border-left: 4px solid var(--ink); }
  h2, h3, caption, h2 + .note { break-after: avoid; } h2 { margin-top: 1.6rem; }
  tr, figure, .facts li, .warning { break-inside: avoid; } thead { display: table-header-group; }
  .numbers { break-inside: avoid; } footer { break-before: avoid; margin-top: 1.5rem; } .keys tbody th { font-size: 8.5pt; }
  tbody tr:first-child { break-before: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } figure img { max-height: 240mm; }
}
"""


def render_page(title: str, subtitle: str, lead: str, sections: Sequence[Section], *, made_with: str) -> str:
    """The whole page.

    Args:
        title: the heading.
        subtitle: a line below it; both together are the title of the browser's window.
        lead: HTML before the table of contents.
        sections: in their order; a title stands once.
        made_with: version of this package.
    """
    contents = "".join(f"<li><a href='#{each.anchor}'>{html.escape(each.title)}</a></li>" for each in sections)
    parts = "\n".join(f"<section id='{each.anchor}'><h2>{html.escape(each.title)}</h2>\n{each.body}</section>" for each in sections)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(f'{title}: {subtitle}')}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>\n<main>\n{lead}\n"
        f"<nav aria-label='Contents'><ul>{contents}</ul></nav>\n{parts}\n</main>\n"
        f"<footer>Made by fedsam-pipeline {html.escape(made_with)}. Research software, not a medical device.</footer>\n</body></html>\n"
    )
