"""Questions -> records, one after the other, by probabilities or by written answers; report/scores.py says what
stands in a record.

A question may be asked in several orders of its options, and answered several times in each:

    orders=3     A. iron  B. zinc  C. tin  ->  A. zinc  B. tin  C. iron  ->  A. tin  B. iron  C. zinc
    samples=2         A, A                          C, B                          B, B     as the model wrote them
                      A, A                          A, C                          A, A     by the question's own letters
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medreason.config import Format
from medreason.data.benchmarks import (
    Kind,
    Question,
    cyclic_orders,
    likelihood_prompt,
    permuted,
    presented,
    reasoning_prompt,
)
from medreason.data.clinical_cases import answers_match
from medreason.data.tokenization import asked_documents
from medreason.evaluate.extraction import huatuo_choice, strict_choice
from medreason.inference.batched import Written, well_formed
from medreason.inference.likelihood import completion_losses, option_logprobs, rows_of
from medreason.models.control_tokens import encode, show
from medreason.models.prompts import ANY_QUESTION, Example, asked_text, conversation_text, parse_answer
from medreason.report.statistics import majority

INSTRUCTION_BYTES = 256  # more than what is asked for after a question takes, or what parts two turns
Record = dict[str, Any]
Chat = list[dict[str, str]]  # turns in OpenAI's form: role, content
Write = Callable[[Sequence[Any]], Iterator[tuple[int, Written]]]  # prompts -> index of one, what was written to it


def by_likelihood(
    model: Any, tokenizer: Any, questions: Sequence[Question], style: Format, *, orders: int, batch_size: int
) -> Iterator[Record]:
    """Records with the probability of each letter right after the prompt, its mean over the orders of the options."""
    for start in range(0, len(questions), batch_size):
        members = questions[start : start + batch_size]
        asked = [
            (number, order)
            for number, question in enumerate(members)
            for order in cyclic_orders(len(question.options), orders)
        ]
        prompts = [
            asked_text(tokenizer, likelihood_prompt(permuted(members[number], order)), style) for number, order in asked
        ]
        letters = [list(members[number].options) for number, _ in asked]
        found: list[list[dict[str, float]]] = [[] for _ in members]  # of each question, in each order
        first: dict[int, str] = {}
        logprobs = option_logprobs(model, tokenizer, prompts, letters, batch_size=batch_size)
        for (number, order), prompt, values in zip(asked, prompts, logprobs, strict=True):
            found[number].append(own_letters(members[number], order, shares(values)))
            first.setdefault(number, prompt)
        for number, question in enumerate(members):
            each = found[number]
            mean = {letter: math.fsum(one[letter] for one in each) / len(each) for letter in question.options}
            choices = [most(one) for one in each]
            yield record(question, first[number], most(mean), choices) | {"probabilities": mean}


def shares(logprobs: Sequence[float]) -> list[float]:
    """Probabilities of the options alone, which sum to 1."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


def own_letters(question: Question, order: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Values of the options as they were asked, by the question's own letters."""
    letters = list(question.options)
    return {letters[option]: value for option, value in zip(order, values, strict=True)}


def most(values: Mapping[str, float]) -> str:
    return max(sorted(values), key=values.__getitem__)


def by_loss(
    model: Any, tokenizer: Any, questions: Sequence[Question], style: Format, *, batch_size: int
) -> Iterator[Record]:
    """Records with the loss of each expected reasoning and answer, summed over its tokens; in nats."""
    for start in range(0, len(questions), batch_size):
        members = questions[start : start + batch_size]
        examples = [Example(question.question, question.reasoning, question.answer) for question in members]
        documents = asked_documents(examples, tokenizer, style)
        losses = completion_losses(model, tokenizer, documents, batch_size=batch_size)
        for question, document, loss in zip(members, documents, losses, strict=True):
            prompt = asked_text(tokenizer, question.question, style)
            yield record(question, prompt, None, []) | {"gold": None, "loss": loss, "tokens": document.targets}


def by_writing(
    write: Write,
    prompted: Callable[[Question], str | Chat],
    questions: Sequence[Question],
    kind: Kind,
    style: Format,
    *,
    orders: int,
    samples: int,
    begun: Callable[[Question], str] = lambda question: "",
) -> Iterator[Record]:
    """Records with what the model wrote, and what it commits to; a record comes once its question is answered whole.

    `prompted` makes of a question the prompt that `write` takes; `begun` is the answer's beginning in it.
    """
    asked = [
        (number, order)
        for number, question in enumerate(questions)
        for order in cyclic_orders(len(question.options), orders)
        for _ in range(samples)
    ]
    turned = [in_order(questions[number], order) for number, order in asked]
    beginnings = [begun(question) for question in turned]
    prompts = [prompted(question) for question in turned]
    left = [0] * len(questions)
    for number, _ in asked:
        left[number] += 1
    found: list[dict[int, Written]] = [{} for _ in questions]  # of each question, by the place of its prompt
    for place, written in write(prompts):
        number = asked[place][0]
        found[number][place] = replace(written, text=beginnings[place] + written.text)
        if len(found[number]) == left[number] and any(written.too_long for written in found[number].values()):
            yield too_long(questions[number], kind)
        elif len(found[number]) == left[number]:
            places = sorted(found[number])
            texts = [(asked[each][1], found[number][each]) for each in places]
            yield written_record(questions[number], prompts[places[0]], texts, kind, style)


def question_text(tokenizer: Any, question: Question, style: Format) -> str:
    """The prompt of a question that is answered in writing, turns before it included."""
    return conversation_text(tokenizer, question.earlier, reasoning_prompt(question), style)


def question_turns(question: Question) -> str | Chat:
    """The same for a server: the user's turn, or where others come before it the whole chat."""
    if not question.earlier:
        return reasoning_prompt(question)
    before = [
        {"role": role, "content": said}
        for pair in question.earlier
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*before, {"role": "user", "content": reasoning_prompt(question)}]


def in_order(question: Question, order: Sequence[int]) -> Question:
    return permuted(question, order) if question.options else question


def written_record(
    question: Question, prompt: str | Chat, texts: Sequence[tuple[Sequence[int], Written]], kind: Kind, style: Format
) -> Record:
    """The record of one question's texts, each with the order of options that it answers."""
    read = [choice_of(question, order, written.text, kind, style) for order, written in texts]
    choice, share = majority([strict for strict, _ in read])
    shown = next((place for place, (strict, _) in enumerate(read) if strict == choice), 0)
    found = record(question, prompt, choice, [strict for strict, _ in read]) | {
        "text": texts[shown][1].text,
        "cut": any(written.cut for _, written in texts),
        "formed": all(well_formed(written, style) for _, written in texts),
    }
    if tokens := sum(written.tokens for _, written in texts):
        found["written_tokens"] = tokens
    if kind is Kind.choice:
        found["huatuo"] = majority([huatuo for _, huatuo in read])[0]
    if kind is Kind.open:
        found["gold"] = None
    if len(texts) > 1:
        found |= {"texts": [written.text for _, written in texts], "cuts": [written.cut for _, written in texts]}
        found["confidence"] = share
    return found


def choice_of(
    question: Question, order: Sequence[int], text: str, kind: Kind, style: Format
) -> tuple[str | None, str | None]:
    """What a text commits to, by the strict rule and by HuatuoGPT-o1's: the question's own letter, or its answer."""
    answer = parse_answer(text, style).answer
    if kind is not Kind.choice:
        match = kind is Kind.exact and answers_match(answer, question.answer)
        return (question.answer if match else answer or None), None
    asked = permuted(question, order)
    letters = list(question.options)
    own = {letter: letters[option] for letter, option in zip(letters, order, strict=True)}
    strict, huatuo = strict_choice(answer, asked.options), huatuo_choice(text, asked.options)
    return (own[strict] if strict else None), own.get(huatuo, huatuo)  # its rule may name a letter that is no option


def tokens_needed(
    tokenizer: Any, question: Question, kind: Kind, style: Format, *, orders: int, max_new_tokens: int | None
) -> int:
    """The longest text, in tokens, that a question has a model read and write; `max_new_tokens=None` writes nothing.

    Raises ConfigError for a letter that has no token of its own after its prompt.
    """
    asked = [in_order(question, order) for order in cyclic_orders(len(question.options), orders)]
    if max_new_tokens is not None:
        prompts = [encode(tokenizer, question_text(tokenizer, one, style)) for one in asked]
        return max(map(len, prompts)) + max_new_tokens
    if kind is Kind.open:
        return len(
            asked_documents([Example(question.question, question.reasoning, question.answer)], tokenizer, style)[0]
        )
    rows = [
        row
        for one in asked
        for row in rows_of(0, tokenizer, asked_text(tokenizer, likelihood_prompt(one), style), list(one.options))
    ]
    return max(len(row.tokens) for row in rows)


def beyond(
    room: int,
    tokenizer: Any,
    questions: Sequence[Question],
    kind: Kind,
    style: Format,
    *,
    orders: int,
    max_new_tokens: int | None,
) -> list[str]:
    """Ids of the questions that need more than `room` tokens. Raises ConfigError as `tokens_needed` does."""
    found = []
    around = len(asked_text(tokenizer, ANY_QUESTION, style).encode()) + INSTRUCTION_BYTES + (max_new_tokens or 0)
    for number, question in enumerate(questions):
        parts = [presented(question), question.reasoning, question.answer]
        parts += [said for pair in question.earlier for said in pair]
        most = around * (1 + len(question.earlier)) + len("".join(parts).encode())
        # no token is less than a byte: few questions have to be tokenized; one is, to see that it can be scored
        if number == 0 or most > room:
            needed = tokens_needed(tokenizer, question, kind, style, orders=orders, max_new_tokens=max_new_tokens)
            found += [question.id] if needed > room else []
    return found


def too_long(question: Question, kind: Kind) -> Record:
    """The record of a question that is not asked, since the model cannot read it whole: it counts as not answered."""
    found = record(question, "", None, []) | {"too_long": True}
    return found | {"gold": None} if kind is Kind.open else found


def record(question: Question, prompt: str | Chat, choice: str | None, choices: Sequence[str | None]) -> Record:
    shown = prompt if isinstance(prompt, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    return {
        "id": question.id,
        "subject": question.subject,
        "gold": question.answer,
        "prompt": show(shown),
        "text": "",
        "choice": choice,
        "choices": list(choices),
        "cut": False,
    }
