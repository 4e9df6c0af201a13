"""HTML pieces of a self-contained page: everything inline, every text escaped, no request leaves the page."""

import base64
import html
import math

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #667085; --line: #e4e7ec; --card: #ffffff; --page: #f7f8fa;
  --accent: #2563eb; --good: #067647; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --faint: #98a2b3; --line: #2c333f; --card: #181c23;
  --page: #101318; --accent: #7aa7ff; --good: #4ade80; --bad: #f97066; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main, header, nav { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 6px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 22px 0 8px; } h4 { font-size: 14px; margin: 14px 0 4px; }
p { margin: 6px 0 10px; max-width: 78ch; }
.faint, figcaption { color: var(--faint); font-size: 13px; }
.bad { color: var(--bad); }
nav { position: sticky; top: 0; z-index: 1; background: var(--page); padding-block: 10px; font-size: 14px; }
nav a { color: var(--accent); text-decoration: none; white-space: nowrap; margin-right: 18px; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 14px 0 6px; }
.facts div { min-width: 90px; } .facts b { display: block; font-size: 20px; font-weight: 650; }
.facts span { color: var(--faint); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); font-size: 14px; margin: 6px 0 12px; min-width: 40%;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--faint); font-size: 13px; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td small { color: var(--faint); }
td { overflow-wrap: anywhere; } td:first-child { min-width: 18ch; } td.number { overflow-wrap: normal; }
tr.group td { font-weight: 600; padding-top: 14px; background: var(--page); }
.stack { display: grid; gap: 14px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px; align-items: start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  break-inside: avoid; overflow: hidden; }
figcaption b { color: var(--ink); overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; } svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure.wide { max-width: 720px; }
video { width: 100%; display: block; border-radius: 4px; background: #000; }
.videos { grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); }
details { margin: 6px 0; } summary { cursor: pointer; color: var(--accent); overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; overflow-x: auto;
  font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; margin: 6px 0; }
footer { max-width: 1120px; margin: 40px auto 0; padding: 14px 24px 40px; border-top: 1px solid var(--line); }
@media (max-width: 500px) { .grid, .videos { grid-template-columns: 1fr; } }
@media print { nav { display: none; } body { background: #fff; font-size: 11pt; } h2 { break-after: avoid; }
  table { break-inside: auto; } tr { break-inside: avoid; } pre { white-space: pre-wrap; } }
"""


def text(value):
    """Any value as HTML text: escaped, control characters out."""
    readable = (c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return html.escape("".join(readable))


def number(value, digits=3):
    """A number as a person writes it (`digits` significant ones); other values as text; missing ones as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if math.isinf(value) or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def table(header, rows, numeric=()):
    """Rows of cells (already HTML). A row of one cell is a group heading. `numeric`: columns aligned to the right."""
    cls = [' class="number"' if i in numeric else "" for i in range(len(header))]
    head = "".join(f"<th{c}>{text(h)}</th>" for h, c in zip(header, cls, strict=True))
    body = []
    for row in rows:
        if len(row) == 1:
            body.append(f'<tr class="group"><td colspan="{len(header)}">{row[0]}</td></tr>')
        else:
            body.append("<tr>" + "".join(f"<td{c}>{x}</td>" for x, c in zip(row, cls, strict=True)) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def figure(content, caption, note="", wide=False):
    """Content (HTML or SVG) with a caption; `caption` and `note` are plain text."""
    below = f"<figcaption><b>{text(caption)}</b>{' · ' + text(note) if note else ''}</figcaption>"
    return f"<figure{' class=wide' if wide else ''}>{below}{content}</figure>"


def grid(figures, kind="grid"):
    return f'<div class="{kind}">{"".join(figures)}</div>'


def video(data):
    """MP4 bytes as an inline player."""
    source = "data:video/mp4;base64," + base64.b64encode(data).decode()
    return f'<video controls muted loop playsinline preload="metadata" src="{source}"></video>'


def facts(pairs):
    """Large figures of the header: [(value, label)] in plain text."""
    cells = (f"<div><b>{text(value)}</b><span>{text(label)}</span></div>" for value, label in pairs)
    return f'<div class="facts">{"".join(cells)}</div>'


def fold(title, body, opened=False):
    return f"<details{' open' if opened else ''}><summary>{text(title)}</summary>{body}</details>"


def page(title, header, sections):
    """A whole document. sections: [(anchor, heading, HTML)]; those with empty HTML are left out."""
    present = [(a, h, body) for a, h, body in sections if body]
    links = "".join(f'<a href="#{a}">{text(h)}</a>' for a, h, _ in present)
    main = "".join(f'<section id="{a}"><h2>{text(h)}</h2>{body}</section>' for a, h, body in present)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{text(title)}</h1>{header}</header><nav>{links}</nav>\n<main>{main}</main>\n"
        '<footer class="faint">Written by <code>python -m foundation.report</code>;'
        " this file is complete and asks the network for nothing.</footer></body></html>\n"
    )
