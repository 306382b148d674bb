"""Examples -> documents of tokens, made once for each corpus, format and tokenizer."""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medreason.config import ConfigError, Format, TooLong
from medreason.core.cache import cache_key, cached_table, on_disk
from medreason.core.progress_line import ProgressLine
from medreason.data.corpus import Corpus
from medreason.data.texts import Examples, Lazy
from medreason.models import prompts as formats
from medreason.models.control_tokens import encode as quiet_encode
from medreason.models.control_tokens import hide
from medreason.models.prompts import Example, completion_text, prompt_text

AT_ONCE = 512  # examples
TRIAL = 128  # examples on which a faster tokenizer must agree with the real one
DOCUMENT = pa.schema({"tokens": pa.large_list(pa.int32()), "prompt_tokens": pa.int32(), "sound": pa.bool_()})
Tokens = NDArray[np.int32]
Encode = Callable[[Sequence[str]], list[Tokens]]


@dataclass(frozen=True)
class Document:
    """One example as tokens, (tokens,) int32: the first `prompt_tokens` of them are read, the rest is learned."""

    tokens: Tokens
    prompt_tokens: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> int:
        return len(self.tokens) - self.prompt_tokens


class Documents(Lazy[Document]):
    """Documents that lie on the disk: one is made when it is asked for, its tokens a view of the mapped file.

    Of each, memory holds where it lies (`rows`), how many of its tokens count (`lengths`) and how many of them are
    read, and whether its text was `sound`, free of control tokens: (documents,) integers.
    """

    def __init__(self, table: pa.Table) -> None:
        """A table as `build` makes it."""
        chunks = [chunk for chunk in table["tokens"].chunks if len(chunk)]
        self.tokens = [chunk.values.to_numpy() for chunk in chunks]
        self.starts = [chunk.offsets.to_numpy() for chunk in chunks]
        self.ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64).tolist()  # of chunks, in rows
        self.rows = np.arange(table.num_rows)
        lengths = [np.diff(starts).astype(np.int32) for starts in self.starts]
        self.lengths = np.concatenate([np.empty(0, np.int32), *lengths])
        self.prompt_tokens = np.asarray(table["prompt_tokens"])
        self.sound = np.asarray(table["sound"], bool)

    @classmethod
    def of(cls, documents: Sequence[Document]) -> "Documents":
        """Documents that are in memory."""
        return cls(pa.Table.from_batches([as_batch(documents, [True] * len(documents))]))

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, place: int) -> Document:
        row = int(self.rows[place])
        chunk = bisect_right(self.ends, row)
        start = int(self.starts[chunk][row - self.ends[chunk] - 1])  # from the last offset, the chunk's end
        return Document(self.tokens[chunk][start : start + int(self.lengths[place])], int(self.prompt_tokens[place]))

    @property
    def targets(self) -> NDArray[np.int32]:
        """Tokens of each document that are learned."""
        return np.asarray(self.lengths - self.prompt_tokens)

    def take(self, which: NDArray[Any]) -> "Documents":
        """Those of some indices, or those of which a mask says so."""
        taken = copy(self)
        taken.rows, taken.lengths = self.rows[which], self.lengths[which]
        taken.prompt_tokens, taken.sound = self.prompt_tokens[which], self.sound[which]
        return taken

    def cut(self, most: int) -> "Documents":
        """None longer than so many tokens."""
        shorter = copy(self)
        shorter.lengths = np.minimum(self.lengths, np.int32(min(most, np.iinfo(np.int32).max)))
        return shorter


def read_documents(corpus: Corpus, tokenizer: Any, style: Format) -> Documents:
    """A document for each example of a corpus, from the cache or made; not `sound` where it holds a control token."""
    content = {"corpus": corpus.key, "format": style.value, "tokenizer": tokenizer_digest(tokenizer)}
    key = cache_key(content, __file__, formats.__file__)
    return Documents(cached_table("documents", key, lambda: build(corpus, tokenizer, style)))


def build(corpus: Corpus, tokenizer: Any, style: Format) -> pa.Table:
    """Tokenizes a corpus: columns tokens, prompt_tokens, sound."""
    examples = Examples(corpus.table)
    encode = fast_encoder(tokenizer, [example.reasoning for example in examples[:TRIAL]])
    control = control_tokens(tokenizer, style)
    line = ProgressLine()

    def batches() -> Iterator[pa.RecordBatch]:
        left, done = iter(examples), 0
        while members := list(itertools.islice(left, AT_ONCE)):
            documents = tokenize(members, tokenizer, style, encode)
            yield as_batch(documents, [control(*pair) for pair in zip(documents, members, strict=True)])
            done += len(members)
            line.tell([f"tokenizing  {done:,}/{len(corpus):,} examples"])

    table = on_disk(DOCUMENT, batches())
    line.end(stands=False)
    return table


def as_batch(documents: Sequence[Document], sound: Sequence[bool]) -> pa.RecordBatch:
    """Documents as a record batch of the schema DOCUMENT."""
    flat = np.concatenate([np.empty(0, np.int32), *(document.tokens for document in documents)])
    starts = np.cumsum([0, *map(len, documents)])
    columns = {
        "tokens": pa.LargeListArray.from_arrays(starts, pa.array(flat)),
        "prompt_tokens": pa.array([document.prompt_tokens for document in documents], pa.int32()),
        "sound": pa.array(sound, pa.bool_()),
    }
    return pa.RecordBatch.from_pydict(columns, DOCUMENT)


def tokenize(
    examples: Sequence[Example], tokenizer: Any, style: Format, encode: Encode | None = None
) -> list[Document]:
    """One document per example, ending with the end-of-sequence token.

    Prompt and completion are tokenized as one text, so that no token differs from what a tokenizer makes of the whole.
    A token that reaches into the completion is a target. `encode` stands in for the tokenizer.
    """
    core = core_of(tokenizer)
    encode = encode or core_encoder(core)
    prompts = [prompt_text(tokenizer, example.question, style) for example in examples]
    texts = [
        prompt + completion_text(example, style) + tokenizer.eos_token
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    documents = []
    for text, prompt, whole, asked in zip(texts, prompts, encode(texts), encode(prompts), strict=True):
        parted = np.array_equal(whole[: len(asked)], asked)  # the prompt ends where a token does
        documents.append(Document(whole, len(asked) if parted else tokens_within(core, text, len(prompt))))
    return documents


def asked_documents(examples: Sequence[Example], tokenizer: Any, style: Format) -> list[Document]:
    """The documents of `tokenize`, but for control tokens that a text names, which training refuses: they stay text."""
    documents = tokenize(examples, tokenizer, style)
    for index, example in enumerate(examples):
        quiet = Example(*(hide(tokenizer, text) for text in (example.question, example.reasoning, example.answer)))
        if quiet != example:
            prompt = prompt_text(tokenizer, quiet.question, style)
            asked = quiet_encode(tokenizer, prompt)
            whole = quiet_encode(tokenizer, prompt + completion_text(quiet, style) + tokenizer.eos_token)
            same = (one == other for one, other in zip(asked, whole, strict=False))
            documents[index] = Document(np.array(whole, np.int32), sum(itertools.takewhile(bool, same)))
    return documents


def tokens_within(core: Any, text: str, characters: int) -> int:
    """Tokens of a text that end within its first `characters`: for a token that reaches over the end of the prompt."""
    return sum(end <= characters for _, end in core.encode(text, add_special_tokens=False).offsets)


def core_of(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` inside: its wrapper copies each batch into lists, which takes as long again."""
    core = tokenizer.backend_tokenizer
    core.no_padding()  # the wrapper's last call may have left it on
    core.no_truncation()
    return core


def core_encoder(core: Any) -> Encode:
    # the prompt holds BOS already; add_special_tokens would write it twice
    return lambda texts: [
        np.array(encoding.ids, np.int32) for encoding in core.encode_batch_fast(texts, add_special_tokens=False)
    ]


def fast_encoder(tokenizer: Any, trial: Sequence[str]) -> Encode:
    """gigatoken's encoder, many times faster, if it reads this tokenizer and gives the same tokens; else its own.

    Tried on `trial` and on what tokenizers differ over: runs of spaces, line ends, control tokens, rare characters.
    """
    own = core_encoder(core_of(tokenizer))
    try:
        import awkward
        import gigatoken

        fast = gigatoken.Tokenizer(tokenizer)
    except Exception:  # not installed here, or a tokenizer that it does not know; it raises errors of many kinds
        return own

    def encode(texts: Sequence[str]) -> list[Tokens]:
        rows = fast.encode_batch(list(texts))
        ends = np.cumsum(np.asarray(awkward.num(rows)))
        return np.split(np.asarray(awkward.flatten(rows)).astype(np.int32), ends[:-1])

    specials = [f" a{token}b\n{token} " for token in tokenizer.all_special_tokens[:8]]
    texts = [*trial, *specials, "  a\n\n b\t", "\u2581x y", "", "é ﬁ Ⅳ 中文。🙂\u200b", "1,000.5 mg/dL (≥ 2)"]
    try:
        same = all(map(np.array_equal, encode(texts), own(texts)))
    except Exception:
        return own
    return encode if same else own


def control_tokens(tokenizer: Any, style: Format) -> Callable[[Document, Example], bool]:
    """Whether a document holds the control tokens that its format writes and no others.

    Text such as `</s>` or `[INST]` inside a row would be read as the token itself: an end in the middle of an answer.
    """
    special = np.zeros(len(tokenizer), bool)
    added = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    special[[*added, *tokenizer.all_special_ids]] = True
    plain = [Example("q", "r", "a"), Example("q", "", "a")]
    usual = [int(special[document.tokens].sum()) for document in tokenize(plain, tokenizer, style)]
    return lambda document, example: int(special[document.tokens].sum()) == usual[not example.reasoning]


def tokenizer_digest(tokenizer: Any) -> str:
    """What changes when a tokenizer or its chat template does; padding and truncation, set in passing, do not count."""
    whole = [core_of(tokenizer).to_str(), str(tokenizer.chat_template), tokenizer.eos_token, str(tokenizer.bos_token)]
    return hashlib.sha256("\0".join(whole).encode()).hexdigest()


def fit(documents: Documents, row_tokens: int, positions: int, too_long: TooLong) -> Documents:
    """The documents that fit a row and the model, by the policy for those that do not; a bare prompt is dropped.

    A row may be longer than the `positions` that the model was made for, as they begin anew with each document; a
    document may not. Raises ConfigError under `error` for any too long, and where no document is left.
    """
    most = min(row_tokens, positions)
    long = documents.lengths > most
    limit = f"data.row_tokens={row_tokens}" if row_tokens <= positions else f"the model's {positions} positions"
    if long.any() and too_long is TooLong.error:
        raised = "raise it, or " if row_tokens < positions else ""
        raise ConfigError(
            f"{int(long.sum())} of {len(documents)} documents exceed {limit} "
            f"(the longest has {documents.lengths.max()} tokens); {raised}set data.too_long=drop or truncate"
        )
    if too_long is TooLong.drop:
        documents = documents.take(~long)
    cut = documents.cut(most)
    kept = cut.take(cut.targets > 0)
    if not len(kept):
        raise ConfigError(f"no document fits {limit}; {'raise it' if row_tokens < positions else 'shorten them'}")
    return kept
