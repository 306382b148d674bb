import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from medreason.config import ConfigError, Format, TooLong
from medreason.core.json_lines import read_json_lines
from medreason.data.corpus import read_corpus
from medreason.data.tokenization import (
    Document,
    Documents,
    core_encoder,
    fast_encoder,
    fit,
    read_documents,
    tokenize,
    tokenizer_digest,
)
from medreason.models.prompts import Example
from support import SHARED, data_config


def document(length: int, prompt_tokens: int) -> Document:
    return Document(np.arange(length, dtype=np.int32), prompt_tokens)


def parts(documents: Sequence[Document]) -> list[tuple[list[int], int]]:
    return [(one.tokens.tolist(), one.prompt_tokens) for one in documents]


def test_documents_are_the_same_from_the_cache_and_made_anew(
    tokenizer: Any, rows_file: Path, cases: list[Example], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path))
    corpus = read_corpus(data_config(rows_file))
    made = tokenize(cases, tokenizer, Format.think)
    for _ in range(2):
        read = read_documents(corpus, tokenizer, Format.think)
        assert len(read) == len(made)
        for one, other in zip(read, made, strict=True):
            assert one is not None
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.prompt_tokens == other.prompt_tokens
    assert len(list((tmp_path / "documents").glob("*.arrow"))) == 1
    read_documents(corpus, tokenizer, Format.huatuo)
    assert len(list((tmp_path / "documents").glob("*.arrow"))) == 2


def test_a_token_that_reaches_over_the_end_of_the_prompt_is_learned() -> None:
    """A tokenizer that has a token for the prompt's last character and the completion's first."""
    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3, "<s>": 4}, merges=[("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["</s>", "<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    crossing, parted = tokenize([Example("aba", "", "b"), Example("ab", "", "a")], tokenizer, Format.think)
    assert (crossing.tokens.tolist(), crossing.prompt_tokens) == ([4, 2, 2, 3], 2)  # <s> ab | ab </s>
    assert (parted.tokens.tolist(), parted.prompt_tokens) == ([4, 2, 0, 3], 2)


def test_padding_and_truncation_left_on_by_a_call_change_nothing(tokenizer: Any, cases: list[Example]) -> None:
    before = [d.tokens.tolist() for d in tokenize(cases, tokenizer, Format.think)]
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a", "a long text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == digest
    assert [d.tokens.tolist() for d in tokenize(cases, tokenizer, Format.think)] == before


def test_another_chat_template_is_another_tokenizer(tokenizer: Any) -> None:
    digest = tokenizer_digest(tokenizer)
    template, tokenizer.chat_template = tokenizer.chat_template, "{{ messages[0]['content'] }}"
    try:
        assert tokenizer_digest(tokenizer) != digest
    finally:
        tokenizer.chat_template = template


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared rows are not here")
@pytest.mark.parametrize("rows", ["medical_o1_en", "medical_o1_zh"])
def test_the_fast_encoder_gives_the_tokenizers_own_tokens_on_the_real_rows(tmp_path: Path, rows: str) -> None:
    """With a SentencePiece tokenizer like Mistral's, trained here on other text."""
    import sentencepiece

    corpus = tmp_path / "text"
    words = ("the patient has a fever of", "pain in the chest and", "which of these is most likely", "blood pressure")
    corpus.write_text("\n".join(f"{words[number % 4]} {number}, so {words[number % 3]}" for number in range(5000)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=420,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, minloglevel=2,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for row in read_json_lines(SHARED / f"{rows}.jsonl") for text in row.values()]
    own = core_encoder(tokenizer.backend_tokenizer)
    fast = fast_encoder(tokenizer, texts[:50])
    assert fast.__qualname__.startswith("fast_encoder"), "the fast encoder was not taken"
    assert all(map(np.array_equal, fast(texts), own(texts)))


def test_a_fast_encoder_that_differs_is_not_taken(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gigatoken

    class Wrong(gigatoken.Tokenizer):  # type: ignore[misc]
        def encode_batch(self, texts: list[str]) -> Any:
            return super().encode_batch([text.lower() for text in texts])

    monkeypatch.setattr(gigatoken, "Tokenizer", Wrong)
    assert (
        fast_encoder(tokenizer, ["Upper Case"])(["Upper Case"])[0].tolist()
        == core_encoder(tokenizer.backend_tokenizer)(["Upper Case"])[0].tolist()
    )


def test_a_document_longer_than_a_row_is_treated_as_the_policy_says() -> None:
    documents = Documents.of([document(5, 2), document(9, 2), document(9, 8)])
    with pytest.raises(ConfigError, match=r"2 of 3 documents exceed data.row_tokens=6 \(the longest has 9 tokens\)"):
        fit(documents, 6, 100, TooLong.error)
    assert parts(fit(documents, 6, 100, TooLong.drop)) == parts(documents[:1])
    assert [len(kept) for kept in fit(documents, 6, 100, TooLong.truncate)] == [
        5,
        6,
    ]  # the third has nothing left to learn


def test_no_document_left_is_refused() -> None:
    for policy in (TooLong.drop, TooLong.truncate):
        with pytest.raises(ConfigError, match="no document fits"):
            fit(Documents.of([document(9, 8)]), 6, 100, policy)


def test_a_document_longer_than_the_model_was_made_for_is_too_long_for_any_row() -> None:
    documents = Documents.of([document(5, 2), document(9, 2), document(9, 8)])
    with pytest.raises(ConfigError, match=r"2 of 3 documents exceed the model's 6 positions \(.*9 tokens\); set data"):
        fit(documents, 100, 6, TooLong.error)
    assert parts(fit(documents, 100, 6, TooLong.drop)) == parts(documents[:1])
    assert [len(kept) for kept in fit(documents, 100, 6, TooLong.truncate)] == [5, 6]
    assert parts(fit(documents, 100, 9, TooLong.error)) == parts(documents)
