"""python -m medreason.data: what training will see, before any model is loaded.

Takes every setting of `python -m medreason.train`. Prints what was read, rejected, repeated and contaminated, how long
documents are, how rows are packed, and rows as a model reads them; hydra.run.dir=DIR has data.json, data.png and
rows.html in DIR.
"""

import html
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from medreason.config import Format, TrainConfig
from medreason.core.cli import command
from medreason.core.disk import whole_file
from medreason.core.outside import literal, pyplot, visible
from medreason.core.progress import describe_not_read, describe_rows, named, say
from medreason.core.run_directory import write_json
from medreason.data.corpus import Split, read_split
from medreason.data.sources import needs_hub
from medreason.models.checks import check_hub_model, check_model_path, settle_hub
from medreason.models.prompts import marks

if TYPE_CHECKING:  # torch and Lightning, imported once the rows are known to be good
    from medreason.data.datamodule import MedicalReasoningData
    from medreason.data.tokenization import Document

MATCHES_SHOWN = 10
ROWS_SHOWN, ROWS_WRITTEN, ROWS_DRAWN = 2, 5, 16
SHOWN_CHARACTERS = 400  # of each part of a document, in the terminal; rows.html holds them whole


# Colours that people tell apart whatever their eyes (Okabe and Ito 2008), dark enough for text on white; weight and a
# line beneath say the same without any.
COLOURS = TerminalTheme(
    (255, 255, 255),
    (30, 30, 30),
    [(0, 0, 0), (213, 94, 0), (178, 72, 0), (122, 92, 0), (0, 82, 136), (150, 60, 120), (0, 82, 136), (110, 110, 110)],
)
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light">
<title>Training rows</title><style>
{stylesheet}
body {{ color: {foreground}; background: {background}; font-family: system-ui, sans-serif; margin: 2em; }}
pre {{ font-family: ui-monospace, monospace; line-height: 1.4; white-space: pre-wrap; }}
</style></head><body>HEADING<pre><code>{code}</code></pre></body></html>
"""


def show(config: TrainConfig) -> None:
    """Reads, checks, tokenizes and packs as training would, and shows it."""
    asked = Path(HydraConfig.get().runtime.output_dir)
    folder = None if asked == Path.cwd() else asked  # hydra.run.dir=DIR
    check_model_path(config.model)
    settle_hub(config.model, needs_hub(config.data))
    check_hub_model(config.model)
    split = read_split(config.data, say)

    say(f"{len(split.corpus):,} examples; loading the tokenizer of {config.model.path}")
    from medreason.data.datamodule import prepare
    from medreason.models.load import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    data = prepare(config, split, tokenizer, say)
    counts = data.report() | {"steps_per_epoch": data.total_steps(1, -1)}
    if folder is not None:
        write_json(folder / "data.json", data.corpus_report() | {"left_out": split.left_out, "packing": counts})
        draw(data, folder / "data.png")
        write_rows(data, config.data.format, folder / "rows.html")

    console = Console(highlight=False)
    print_rows_read(console, data.corpus_report(), split.left_out)
    print_matches(console, split)
    print_packing(console, counts)
    print_lengths(console, data.loaders["train"].lengths)
    print_rows(console, data, config.data.format, ROWS_SHOWN, SHOWN_CHARACTERS)
    written = "hydra.run.dir=DIR keeps this: a picture, rows in full, every number"
    if folder is not None:
        written = f"picture: {folder}/data.png; rows in full: {folder}/rows.html; everything: {folder}/data.json"
    console.print(literal(written), soft_wrap=True)


def shown(text: str) -> str:
    """Text from outside within Rich's markup."""
    return escape(visible(text))


def print_rows_read(console: Console, report: Mapping[str, Any], left_out: Mapping[str, int]) -> None:
    """Rows of each file, what was not read, what was wrong with some rows, what repeats."""
    table = Table("read from", "rows", title="Rows", title_justify="left")
    for name, rows in report["rows"].items():
        table.add_row(literal(name), f"{rows:,}")
    console.print(table)
    for line in describe_not_read(report):
        console.print(f"  [yellow]not read[/]  {shown(line)}")
    for reason, found in report["rejects"].items():
        places = named(found["places"], found["count"])
        console.print(f"  [red]rejected[/]  {found['count']:,} {shown(reason)}  [dim]{shown(places)}[/]")
    if not report["rejects"]:
        console.print("  rejected  none")
    repeats = report.get("duplicates")
    if repeats is None:
        console.print("  duplicates  not looked for (data.deduplicate=off)")
    else:
        for kind, what in (("exact", "the same question and answer"), ("near", "nearly the same question")):
            pairs = "; ".join(" = ".join(pair) for pair in repeats[f"{kind}_places"])
            console.print(f"  duplicates  {repeats[kind]:,} with {what} as an earlier one  [dim]{shown(pairs)}[/]")
    for reason, count in left_out.items():
        console.print(f"  [yellow]left out[/]  {count:,} for: {shown(reason)}")


def print_matches(console: Console, split: Split) -> None:
    """Examples that share text with benchmark questions: the telling matches one by one, boilerplate counted."""
    found = split.corpus.report.get("contamination")
    if found is None:
        console.print("  contamination  not looked for; name test sets with data.benchmarks=\\[FILE,...]\n")
        return
    benchmarks = ", ".join(f"{name} ({count:,})" for name, count in found["benchmarks"].items())
    telling = [match for match in found["matches"] if not match["boilerplate"]]
    stock = [match for match in found["matches"] if match["boilerplate"]]
    examples = len({match["example"] for match in telling})
    console.print(f"  contamination  [bold]{examples:,}[/] examples share text with a question of {shown(benchmarks)}")
    for match in telling[:MATCHES_SHOWN]:
        console.print(f"    {shown(match['example'])} [dim]and[/] {shown(match['id'])} [dim]by {match['rule']}:[/]")
        console.print(literal(f"        {textwrap.shorten(match['shared'], 100, placeholder=' ...')}", "red"))
    if len(telling) > MATCHES_SHOWN:
        console.print(f"  and {len(telling) - MATCHES_SHOWN:,} more in data.json")
    if stock:
        phrase, times = Counter(match["shared"] for match in stock).most_common(1)[0]
        console.print(
            f"  [dim]{len({match['example'] for match in stock}):,} examples share boilerplate that four or more "
            f"benchmark questions hold, such as {shown(repr(phrase))} ({times} times)[/]"
        )
    console.print()


def print_packing(console: Console, counts: dict[str, int | float]) -> None:
    """What a training run will be made of."""
    table = Table(show_header=False, title="Training", title_justify="left")
    learned = counts["train_targets"] / counts["train_tokens"]
    table.add_row("documents", f"{counts['train_documents']:,} to learn, {counts['validation_documents']:,} held out")
    table.add_row("dropped, truncated", f"{counts['dropped_documents']:,}, {counts['truncated_documents']:,}")
    table.add_row("tokens", f"{counts['train_tokens']:,}, of which {learned:.1%} are learned (completions)")
    table.add_row("packing", describe_rows(counts))
    table.add_row("steps per epoch", f"{counts['steps_per_epoch']:,}")
    console.print(table)


def print_lengths(console: Console, lengths: NDArray[np.int32], bins: int = 16, width: int = 50) -> None:
    """A histogram of document lengths, and where their percentiles lie."""
    counts, edges = np.histogram(lengths, bins=bins)
    console.print("\n[italic]Tokens of a document[/]")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(width * count / counts.max()) or ("▏" if count else "")
        console.print(f"  {low:6,.0f} - {high:6,.0f}  [cyan]{bar}[/] {count:,}")
    shares = np.percentile(lengths, [5, 50, 95])
    console.print(
        f"  mean {np.mean(lengths):,.0f}; 5% below {shares[0]:,.0f}, half below {shares[1]:,.0f}, "
        f"95% below {shares[2]:,.0f}; longest {lengths.max():,}\n"
    )


def print_rows(
    console: Console, data: "MedicalReasoningData", style: Format, rows: int, characters: int | None
) -> None:
    """The first rows of the first epoch, decoded from their tokens: prompt dimmed (no loss), reasoning, answer."""
    loader = data.loaders["train"]
    console.print(
        "[dim]prompt: read, not learned[/]   [cyan]reasoning: learned[/]   [bold green]answer: learned[/]   "
        "[underline magenta]control tokens[/]"
    )
    for number, row in enumerate(loader.order(0)[:rows], 1):
        members = [loader.documents[member] for member in loader.rows[row]]
        total = sum(map(len, members))
        padding = (loader.row_tokens or total) - total
        console.rule(f"[bold]row {number}[/]: {len(members)} documents, {total:,} tokens, {padding:,} padding")
        for document in members:
            tokens = f"{len(document):,} tokens, {document.targets:,} learned"
            console.print(f"[yellow]┌── {tokens} ──[/]")
            console.print(document_text(document, data.tokenizer, style, characters))
    console.rule()


def document_text(document: "Document", tokenizer: Any, style: Format, characters: int | None) -> Text:
    """A document in colours, each of its parts cut in the middle to `characters`."""
    prompt, completion = (
        visible(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for part in (document.tokens[: document.prompt_tokens], document.tokens[document.prompt_tokens :])
    )
    closing = marks(style)[1]
    reasoning, closed, answer = completion.rpartition(closing)
    text = Text()
    text.append(shorten(prompt, characters), "dim")
    text.append(shorten(reasoning + closed, characters), "cyan")
    text.append(shorten(answer, characters), "bold green")
    text.highlight_words(
        [token for token in tokenizer.all_special_tokens if token in prompt + completion], "underline magenta"
    )
    return text


def shorten(text: str, characters: int | None) -> str:
    if characters is None or len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def write_rows(data: "MedicalReasoningData", style: Format, path: Path) -> None:
    """The first rows, whole, as a page."""
    import io

    console = Console(record=True, file=io.StringIO(), width=120, highlight=False, color_system="truecolor")
    print_rows(console, data, style, ROWS_WRITTEN, None)
    rows = len(data.loaders["train"].rows)
    title = f"{min(ROWS_WRITTEN, rows)} of {rows:,} training rows, as the model reads them"
    about = f"{data.split.corpus.source}; tokenizer of {data.tokenizer.name_or_path}; format {style.value}"
    heading = "".join(f"<{tag}>{html.escape(visible(text))}</{tag}>" for tag, text in (("h1", title), ("p", about)))
    page = PAGE.replace("HEADING", heading.replace("{", "{{").replace("}", "}}"))
    with whole_file(path) as draft:
        draft.write_text(console.export_html(theme=COLOURS, code_format=page), encoding="utf-8")


def draw(data: "MedicalReasoningData", path: Path) -> None:
    """A picture: how long documents are, and how the first rows are packed."""
    plt = pyplot()
    loader = data.loaders["train"]
    lengths, prompts = loader.lengths, loader.lengths - loader.targets
    figure, (histogram, packed) = plt.subplots(2, 1, figsize=(9, 7), height_ratios=(2, 3), layout="constrained")
    edges = np.linspace(0, lengths.max(), 60)
    histogram.hist(lengths, bins=edges, color="#4c78a8", label="document")
    histogram.hist(prompts, bins=edges, color="#b0b7c3", alpha=0.8, label="its prompt, not learned")
    for share in (5, 50, 95):
        at = np.percentile(lengths, share)
        histogram.axvline(at, color="#c0392b", linewidth=1)
        histogram.text(at, histogram.get_ylim()[1] * 0.97, f" {share}%: {at:,.0f}", va="top", fontsize=8)
    histogram.set(title=f"{len(lengths):,} documents, {lengths.sum():,} tokens", xlabel="tokens", ylabel="documents")
    histogram.legend(frameon=False, loc="center right")

    order = loader.order(0)[:ROWS_DRAWN]
    for place, row in enumerate(order):
        start = 0
        for number, member in enumerate(loader.rows[row]):
            document = loader.documents[member]
            shade = ("#4c78a8", "#72a0cf")[number % 2]
            packed.barh(place, document.prompt_tokens, left=start, color="#b0b7c3", height=0.8)
            packed.barh(place, document.targets, left=start + document.prompt_tokens, color=shade, height=0.8)
            start += len(document)
        if loader.row_tokens:
            packed.barh(place, loader.row_tokens - start, left=start, color="#f2d7d5", height=0.8)
    packed.invert_yaxis()
    packed.set(
        title=f"the first {len(order)} of {len(loader.rows):,} rows: prompts grey, learned tokens blue, padding red",
        xlabel="tokens",
        ylabel="row",
    )
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=120)
    plt.close(figure)


def main() -> None:
    command(show, "data", TrainConfig)
