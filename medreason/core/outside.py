"""Text from outside (rows, answers, names, paths, reasons), made harmless for where it is shown.

a terminal   one_line, visible    control sequences are seen, not obeyed
Rich         literal              square brackets are text, not markup
Markdown     markdown             no HTML, image, link, heading, cell or line of its own
a picture    drawn                no mathematics; a name too long for an axis is cut
"""

import re
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Control characters (C0, C1), half surrogate pairs, marks that turn the direction of text, separators of lines, and
# tags, which nobody sees. Joiners stay: Persian and emoji are written with them.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
# what a renderer makes a link of by itself, escaped or not; in a code span it does not
ADDRESS = re.compile(r"\b(?:[a-zA-Z][a-zA-Z+.-]*://|www\.)[\w/.:?=%~+#-]*|[\w.+-]+@[\w.-]+")
LONGEST_LABEL = 60  # characters that a picture has room for
# fonts with Chinese, Japanese and Korean letters, as systems come with them; matplotlib's own has none
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB",
    "Arial Unicode MS",
)  # fmt: skip


def visible(text: str) -> str:
    r"""The text with what a terminal would obey written out, `\x1b` for an escape; lines and tabs stay."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The text as a single line of a terminal."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def literal(text: str, style: str = "") -> "Text":
    """The text for Rich, which reads markup in a mere string."""
    from rich.text import Text

    return Text(visible(text), style)


def markdown(text: str, longest: int = 2000) -> str:
    """The text as Markdown that renders as the text alone, on one line, also in a table's cell."""
    line = " ".join(visible(text).split())
    line = line if len(line) <= longest else line[:longest] + " ..."
    parts, start = [], 0
    for address in ADDRESS.finditer(line):
        parts += [escaped(line[start : address.start()]), f"`{address[0]}`"]
        start = address.end()
    return "".join([*parts, escaped(line[start:])])


def escaped(text: str) -> str:
    """Markdown's own characters escaped, but an underscore within a word, which means nothing."""
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, entity)
    return re.sub(r"([\\`*\[\]|~$]|^#|(?<!\w)_|_(?!\w))", r"\\\1", text)


def drawn(text: str) -> str:
    """The text for a picture: matplotlib reads what stands between two dollars as mathematics."""
    line = one_line(text)
    return (line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 3] + "...").replace("$", r"\$")


def prepare_pictures() -> None:
    """Has matplotlib draw into files, with letters of every font that is here, and without a word on missing ones."""
    import matplotlib
    from matplotlib import font_manager

    matplotlib.use("Agg")
    here = {font.name for font in font_manager.fontManager.ttflist}
    matplotlib.rcParams["font.family"] = ["sans-serif", *(font for font in CJK_FONTS if font in here)]
    warnings.filterwarnings("ignore", message="Glyph .* missing from")


def pyplot() -> Any:
    """matplotlib's pyplot, prepared."""
    prepare_pictures()
    import matplotlib.pyplot as plt

    return plt
