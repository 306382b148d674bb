"""Building blocks of a self-contained HTML page, and numbers as people read them."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medreason.core.disk import whole_file
from medreason.core.overrides import command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --text: #1d2127; --dim: #626a75; --line: #dfe3e8; --back: #fff; --soft: #f5f6f8;
  --accent: #b03426; --right: #00694a; --wrong: #a84300 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --dim: #9aa2ad; --line: #343940; --back: #121212;
  --soft: #1d2024; --accent: #f08a7c; --right: #3fc79d; --wrong: #f0924f }
  /* white becomes the page's own #121212, black text light, and hues stay as they were */
  img { filter: invert(.93) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 68rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p { max-width: 48rem; margin: .5rem 0 } .dim, figcaption, th { color: var(--dim) }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; list-style: none }
.tiles li { background: var(--soft); border-radius: 8px; padding: .55rem .95rem }
.tiles b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums } .tiles span { color: var(--dim);
  font-size: .85rem }
pre { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; margin: .6rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace } .command { user-select: all }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 500 } th, td { white-space: nowrap } .prose { display: block; white-space: normal;
  overflow-wrap: anywhere; min-width: 12rem; max-width: 34rem }
tr.best td { color: var(--accent); font-weight: 600 } a { color: inherit }
/* on a telephone a picture scrolls: shrunk to its width, nothing in it can be read */
figure { margin: .8rem 0; overflow-x: auto }
img { max-width: max(100%, 38rem); height: auto; display: block }
figcaption { font-size: .88rem;
  max-width: 48rem; margin-top: .3rem }
details { margin: .5rem 0 } summary { cursor: pointer; color: var(--dim) }
.mark { border: 1px solid currentColor; border-radius: 4px; padding: 0 .35em; font-size: .85rem; white-space: nowrap }
.right { color: var(--right) } .wrong { color: var(--wrong) } .cut { color: var(--dim); border-style: dashed }
.sample { border-left: 3px solid var(--line); padding-left: 1rem; margin: 1.2rem 0 } .text { white-space: pre-wrap;
  overflow-wrap: anywhere }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML page, self-contained."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it; nothing where that is empty."""
    inside = [part for part in parts if part]
    return "\n".join([f"<h2>{escape(title)}</h2>", *inside]) if inside else ""


def folded(title: str, *parts: str) -> str:
    """What one click unfolds; nothing where that is empty."""
    inside = [part for part in parts if part]
    return f"<details><summary>{escape(title)}</summary>{''.join(inside)}</details>" if inside else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def prose(text: str) -> str:
    """Text of a table's cell that may take several lines."""
    return f'<span class="prose">{escape(text)}</span>' if text else ""


def command_block(overrides: Sequence[str]) -> str:
    """The command that trains with these overrides; one click selects it whole."""
    return command(command_line("train", overrides))


def command(line: str) -> str:
    """A command to be pasted; one click selects it whole."""
    return f'<pre class="command">{escape(line)}</pre>'


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in facts)
    return f'<ul class="tiles">{cells}</ul>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """A table of cells that are HTML already; row `best` stands out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [
        f"<tr{' class=best' if place == best else ''}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for place, row in enumerate(rows)
    ]
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>' if lines else ""


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values, nothing for an empty value."""
    rows = [(escape(name), prose(told(value))) for name, value in facts.items() if value not in (None, "", {}, [])]
    return table(("", ""), rows).replace("<tr><th></th><th></th></tr>\n", "")


def told(value: Any) -> str:
    """A value of a JSON or YAML file as a reader wants it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else short(value)


def picture(figure: "Figure | None", folder: Path, name: str, caption: str) -> str:
    """The figure as part of the page, and as FOLDER/NAME.png; nothing for no figure."""
    if figure is None:
        return ""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    folder.mkdir(exist_ok=True)
    with whole_file(folder / f"{name}.png") as draft:
        draft.write_bytes(drawn.getvalue())
    source = f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"
    text, width = escape(caption), round(figure.get_figwidth() * 105)  # letters of one size in all pictures
    return f'<figure><img src="{source}" alt="{text}" width="{width}"><figcaption>{text}</figcaption></figure>'


def duration(seconds: float) -> str:
    """Short: 45 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def answer(label: str, reasoning: str, text: str, *marks: str) -> str:
    """What was answered, its reasoning folded below; marks, which are HTML already, behind the label."""
    told = " ".join([f'<span class="dim">{escape(label)}:</span>', *marks])
    said = f'<p class="text">{told} {escape(text or "(none)")}</p>'
    return said + folded("reasoning", f'<p class="text">{escape(reasoning)}</p>' if reasoning else "")


def mark(kind: str, text: str) -> str:
    """A verdict in a frame, of the class `kind`: its words and its sign tell it, colour only helps."""
    return f'<span class="mark {kind}">{escape(text)}</span>'


def short(value: float | str) -> str:
    """A number as people write it: 0.00012 as 1.2e-4. Text as it is, cut where it is long."""
    if isinstance(value, str):
        return value if len(value) <= 40 else value[:37] + "..."
    if isinstance(value, float) and 0 < abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.3g}"


def amount(count: float) -> str:
    """Tokens, short: 1.5M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
