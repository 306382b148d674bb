from medreason.data.deduplicate import exact_duplicates, near_duplicates
from medreason.data.normalize import normal

VIGNETTE = (
    "a 45-year-old homeless man presents to the emergency department unconscious, with a history of severe pain "
    "treated with hydromorphone and fluids on previous admissions; what condition explains his low reticulocytes?"
)


def test_exact_duplicates_have_the_same_question_and_answer_however_written() -> None:
    questions = ["Why?", "why ?", "WHY?", " why? ", "Why?"]
    answers = ["So.", "so.", "SO.", "so.", "Not so."]
    repeats = exact_duplicates([normal(q) for q in questions], [normal(a) for a in answers])
    assert repeats == {2: 0, 3: 0}


def test_near_duplicates_lead_to_the_first_of_their_kind() -> None:
    questions = [
        VIGNETTE,
        "what is the most common cause of urinary leakage in a 65-year-old woman?",
        VIGNETTE.replace("45-year-old", "46-year-old"),
        VIGNETTE.replace("unconscious", "awake").replace("severe", "mild"),
        VIGNETTE + " name it.",
        "why?",
    ]
    assert near_duplicates(questions, 0.8) == {2: 0, 4: 0}
    assert near_duplicates(questions, 0.5) == {2: 0, 3: 0, 4: 0}
    assert near_duplicates(questions, 1.0) == {}


def test_chains_and_short_questions_are_duplicates_too() -> None:
    words = [f"word{n}" for n in range(60)]
    chain = [
        " ".join(words[start : start + 40]) for start in (0, 3, 6)
    ]  # neighbours share 35 of 41 runs, ends 32 of 44
    assert near_duplicates(chain, 0.8) == {1: 0, 2: 0}
    assert near_duplicates([chain[0], chain[2]], 0.8) == {}
    assert near_duplicates(["why?", "why?", "how?"], 0.8) == {1: 0}
    assert near_duplicates([], 0.8) == {}
