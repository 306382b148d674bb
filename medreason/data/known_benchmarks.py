"""Benchmarks by name: where on the hub they lie, and how their rows become questions; or files of their form."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from medreason.config import ConfigError
from medreason.core.progress import some_of
from medreason.data.benchmarks import (
    MOST_OPTIONS,
    SETTING,
    BadQuestion,
    Layout,
    Question,
    Task,
    by_letter,
    checked_own,
    from_medmcqa,
    from_row,
    kind_of,
    letter_of,
    lettered,
    make_task,
    needed,
    placed,
    text,
)
from medreason.data.folders import list_tables, table_kind, table_name, to_ask
from medreason.data.sources import read_file, read_hub


def read_task(name_or_path: str, say: Callable[[str], None] = lambda line: None) -> Task:
    """The benchmark of this name (see HUB), or of a local file or folder.

    Raises ConfigError, one line, for an unknown name, what cannot be read, and a row that cannot be asked or scored.
    """
    if name_or_path in HUB:
        return make_task(name_or_path, hub_questions(name_or_path))
    path = Path(name_or_path)
    if not name_or_path or not (path.exists() or table_kind(path) is not None):
        near = difflib.get_close_matches(name_or_path.lower(), HUB, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(HUB)}"
        raise ConfigError(f"{SETTING}={name_or_path}: no such benchmark or file ({hint})")
    listing = list_tables(name_or_path, SETTING, to_ask)
    if skipped := [f"{name} ({reason})" for name, reason in listing.skipped.items()]:
        say(f"{SETTING}={name_or_path}: not read: {some_of(skipped)}")
    rows = ((str(file), row) for file in listing.read for row in read_file(file, SETTING))
    found = [each for place, row in rows if (each := placed(place, row, from_row, checked_own))]
    return make_task(table_name(path), found, kind_of(found))


def hub_questions(name: str) -> Iterable[tuple[str, Question]]:
    path, configurations, split, layout = HUB[name]
    for configuration in configurations:
        place = path if configuration is None else f"{path}:{configuration}"
        for row in read_hub(path, configuration, None, (split,), SETTING):
            if found := placed(place, row, layout):
                yield found


def from_medqa(number: int, cells: Mapping[str, Any]) -> Question:
    """GBaker/MedQA-USMLE-4-options; the subject is the USMLE step."""
    options, subject = by_letter(needed(cells, "options")), str(cells.get("meta_info") or "")
    return Question(f"medqa-{number}", text(cells, "question"), options, text(cells, "answer_idx"), subject, "")


def from_pubmedqa(number: int, cells: Mapping[str, Any]) -> Question:
    """qiaojin/PubMedQA, pqa_labeled: yes, no or maybe, by an abstract without its conclusion.

    All 1,000 expert-labelled questions. Published scores are of 500 of them, whose ids stand in the authors' repository
    (test_ground_truth.json) and nowhere in these rows: to compare with them, name a file of those questions.
    """
    options = {"A": "yes", "B": "no", "C": "maybe"}
    answers = {option: letter for letter, option in options.items()}
    decision = text(cells, "final_decision").lower()
    context = needed(cells, "context")
    parts, labels = context["contexts"], context.get("labels") or []
    if len(labels) == len(parts):
        parts = [f"{label}: {part}" for label, part in zip(labels, parts, strict=True)]
    identity = f"pubmedqa-{cells.get('pubid') or number}"
    return Question(identity, text(cells, "question"), options, answers.get(decision, decision), "", "\n".join(parts))


def from_mmlu(number: int, cells: Mapping[str, Any]) -> Question:
    """cais/mmlu, one subject a configuration."""
    subject = text(cells, "subject")
    options = lettered(needed(cells, "choices"))
    return Question(
        f"mmlu-{subject}-{number}", text(cells, "question"), options, letter_of(cells, "answer"), subject, ""
    )


def from_mmlu_pro_health(number: int, cells: Mapping[str, Any]) -> Question | None:
    """TIGER-Lab/MMLU-Pro, three to ten options; None for categories other than health."""
    if cells.get("category") != "health":
        return None
    identity = f"mmlu-pro-{cells.get('question_id') or number}"
    return Question(
        identity, text(cells, "question"), lettered(needed(cells, "options")), text(cells, "answer"), "", ""
    )


def from_medxpertqa(number: int, cells: Mapping[str, Any]) -> Question:
    """TsinghuaC3I/MedXpertQA, Text: ten options, which the question repeats at its end."""
    asked = text(cells, "question").partition("\nAnswer Choices:")[0].strip()
    identity = f"medxpertqa-{cells.get('id') or number}"
    subject = str(cells.get("body_system") or "")
    return Question(identity, asked, by_letter(needed(cells, "options")), text(cells, "label"), subject, "")


def from_medbullets(number: int, cells: Mapping[str, Any]) -> Question:
    """mkieffer/Medbullets: four options, or the same question with a fifth; the answer by letter or by its text."""
    options, answer = by_letter(needed(cells, "options")), text(cells, "answer")
    letter = next((letter for letter, option in options.items() if option == answer), answer)
    return Question(f"medbullets-{cells.get('idx') or number}", text(cells, "question"), options, letter, "", "")


def from_careqa(number: int, cells: Mapping[str, Any]) -> Question:
    """HPAI-BSC/CareQA, in English; `cop` counts from 1."""
    options = lettered([needed(cells, f"op{place}") for place in range(1, 5)])
    subject = str(cells.get("category") or "")
    identity = f"careqa-{cells.get('unique_id') or number}"
    return Question(identity, text(cells, "question"), options, letter_from_one(cells, "cop"), subject, "")


def from_headqa(number: int, cells: Mapping[str, Any]) -> Question | None:
    """alesi12/head_qa_v2, in English; `ra` counts from 1, and is 0 for a question that the exam took back: None."""
    if cells.get("ra") == 0:
        return None
    options = lettered([answer["atext"] for answer in sorted(needed(cells, "answers"), key=lambda one: one["aid"])])
    identity = f"headqa-{cells.get('name') or ''}-{number}"  # its qid counts anew in each exam
    subject = str(cells.get("category") or "")
    return Question(identity, text(cells, "qtext"), options, letter_from_one(cells, "ra"), subject, "")


def from_supergpqa_medicine(number: int, cells: Mapping[str, Any]) -> Question | None:
    """m-a-p/SuperGPQA, up to ten options; None for disciplines other than medicine."""
    if cells.get("discipline") != "Medicine":
        return None
    options, subject = lettered(needed(cells, "options")), str(cells.get("field") or "")
    identity = f"supergpqa-{cells.get('uuid') or number}"
    return Question(identity, text(cells, "question"), options, text(cells, "answer_letter"), subject, "")


def from_metamedqa(number: int, cells: Mapping[str, Any]) -> Question:
    """maximegmd/MetaMedQA: MedQA with "none of the above" and "I don't know" among the options."""
    options, subject = by_letter(needed(cells, "options")), str(cells.get("meta_info") or "")
    return Question(f"metamedqa-{number}", text(cells, "question"), options, text(cells, "answer_idx"), subject, "")


def from_gpqa_biology(number: int, cells: Mapping[str, Any]) -> Question | None:
    """Idavidrein/gpqa, its biology; None for other domains. Its options have no order: a digest of each gives one."""
    if cells.get("High-level domain") != "Biology":
        return None
    asked, right = text(cells, "Question"), text(cells, "Correct Answer")
    texts = [right, *(text(cells, f"Incorrect Answer {place}") for place in range(1, 4))]
    texts.sort(key=lambda option: hashlib.sha256(f"{asked}\0{option}".encode()).digest())
    options = lettered(texts)
    answer = next(letter for letter, option in options.items() if option == right)
    identity = f"gpqa-{cells.get('Record ID') or number}"
    return Question(identity, asked, options, answer, str(cells.get("Subdomain") or ""), "")


def letter_from_one(cells: Mapping[str, Any], column: str) -> str:
    """The letter of an option's index, from 1. Raises BadQuestion for anything else."""
    index = needed(cells, column)
    if not isinstance(index, int) or isinstance(index, bool) or not 1 <= index <= MOST_OPTIONS:
        raise BadQuestion(f"`{column}` is {index!r}, not an option's number")
    return ascii_uppercase[index - 1]


MMLU_SUBJECTS = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics",
                 "professional_medicine")  # fmt: skip
# name -> the hub's data set, its configurations, the split that scores are reported of, how its rows are read
HUB: dict[str, tuple[str, tuple[str | None, ...], str, Layout]] = {
    "medqa": ("GBaker/MedQA-USMLE-4-options", (None,), "test", from_medqa),
    "medmcqa": ("openlifescienceai/medmcqa", (None,), "validation", from_medmcqa),
    "pubmedqa": ("qiaojin/PubMedQA", ("pqa_labeled",), "train", from_pubmedqa),
    "mmlu_medical": ("cais/mmlu", MMLU_SUBJECTS, "test", from_mmlu),
    "mmlu_pro_health": ("TIGER-Lab/MMLU-Pro", (None,), "test", from_mmlu_pro_health),
    "medxpertqa": ("TsinghuaC3I/MedXpertQA", ("Text",), "test", from_medxpertqa),
    "medbullets4": ("mkieffer/Medbullets", (None,), "op4_test", from_medbullets),
    "medbullets5": ("mkieffer/Medbullets", (None,), "op5_test", from_medbullets),
    "careqa": ("HPAI-BSC/CareQA", ("CareQA_en",), "test", from_careqa),
    "headqa": ("alesi12/head_qa_v2", ("en",), "train", from_headqa),  # the only split of version 2
    "supergpqa_medicine": ("m-a-p/SuperGPQA", (None,), "train", from_supergpqa_medicine),  # the only split
    "metamedqa": ("maximegmd/MetaMedQA", (None,), "test", from_metamedqa),
    "gpqa_biology": ("Idavidrein/gpqa", ("gpqa_main",), "train", from_gpqa_biology),  # gated: hf auth login
}
