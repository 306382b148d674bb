import json

import pytest

from conftest import SHARED
from medreason.answers import huatuo_choice, huatuo_choices, strict_choice

DRUGS = {"A": "Insulin", "B": "Metformin", "C": "Glipizide", "D": "None of the above"}
YES = {"A": "yes", "B": "no", "C": "maybe"}
NESTED = {
    "A": "paralysis of the facial muscles.",
    "B": "paralysis of the facial muscles and loss of taste.",
    "C": "paralysis of the facial muscles, loss of taste and lacrimation.",
    "D": "loss of taste",
}
TEN = dict(zip("ABCDEFGHIJ", ["Lupus", "Gout", "Asthma", "Sepsis", "Anaemia", "Stroke", "Rickets", "Scurvy", "Mumps",
                              "Tetanus"], strict=True))  # fmt: skip
GERMS = {"A": "S. aureus", "B": "E. coli", "C": "H. pylori", "D": "C. difficile", "E": "Virus"}
BLOOD = {"A": "O", "B": "AB", "C": "Hepatitis B", "D": "Vitamin A"}
PAIRS = {"A": "Fever", "B": "Cough", "C": "Both A and B", "D": "Neither"}
ZH = {"A": "胰岛素", "B": "二甲双胍", "C": "格列吡嗪", "D": "以上都不是"}
CELLS = {"A": "T cells", "B": "Macrophages", "C": "B cells", "D": "A beta blocker"}
TWINS = {"A": "Iron", "B": "Zinc", "C": "Iron", "D": "Copper"}

CASES = [
    # plain letters
    ("B", DRUGS, "B"),
    ("b", DRUGS, "B"),
    ("(b)", DRUGS, "B"),
    ("B.", DRUGS, "B"),
    ("**B**", DRUGS, "B"),
    (" [B] \n", DRUGS, "B"),
    ("\uff22", DRUGS, "B"),
    ("I", TEN, "I"),
    ("J.", TEN, "J"),
    ("E", DRUGS, None),
    ("", DRUGS, None),
    (" \n\n", DRUGS, None),
    # statements
    ("The answer is B.", DRUGS, "B"),
    ("The answer is B because metformin is first line, unlike A or C.", DRUGS, "B"),
    ("the correct answer is: **(B)** Metformin", DRUGS, "B"),
    ("Answer: b", DRUGS, "B"),
    ("answer: (b)", DRUGS, "B"),
    ("**Final Answer:** B", DRUGS, "B"),
    ("### Final answer\n\nThe answer is option B: Metformin.", DRUGS, "B"),
    ("Answer:\nB", DRUGS, "B"),
    ("Answer B", DRUGS, "B"),
    ("The answer to this question is most likely B.", DRUGS, "B"),
    ("Therefore $\\boxed{B}$", DRUGS, "B"),
    ("\\[\\boxed{\\text{(B)}}\\]", DRUGS, "B"),
    ("<answer>B</answer>", DRUGS, "B"),
    ("I would go with B here.", DRUGS, None),  # "B here" might be a name; strict
    ("I would go with B, as it is first line.", DRUGS, "B"),
    ("I choose option B.", DRUGS, "B"),
    ("Option B is correct.", DRUGS, "B"),
    ("B is the correct answer. A is used in type 1.", DRUGS, "B"),
    ("Metformin lowers hepatic glucose output, so B is correct.", DRUGS, "B"),
    ("Option B (Metformin) is the best choice; A and C are wrong.", DRUGS, "B"),
    ("The best option is metformin.", DRUGS, "B"),
    ("Answer: Metformin 500 mg", DRUGS, "B"),
    ("The answer is the drug metformin, not insulin.", DRUGS, "B"),
    ("The answer is B, not C.", DRUGS, "B"),
    ("The answer is B, C is wrong.", DRUGS, "B"),
    ("It is not A. The answer is B.", DRUGS, "B"),
    ("A is incorrect. C is incorrect. B is correct.", DRUGS, "B"),
    ("The answer is B. Wrong options: A, C and D.", DRUGS, "B"),
    ('End with "The answer is X."\nThe answer is B.', DRUGS, "B"),
    ("The answer is J.", TEN, "J"),
    ("The answer is I.", TEN, "I"),
    ("The answer is I think unclear", TEN, None),
    ("The answer is F.", DRUGS, None),
    ("The answer is F. B is similar.", DRUGS, None),
    # several answers, revisions
    ("A or B", DRUGS, None),
    ("The answer is A or B.", DRUGS, None),
    ("Answer: A, B", DRUGS, None),
    ("The answer is A and C.", DRUGS, None),
    ("A and C are correct.", DRUGS, None),
    ("The answer is either B or C", DRUGS, None),
    ("The answer is metformin and insulin.", DRUGS, None),
    ("The answer is A. The answer is B.", DRUGS, None),
    ("The answer is A.\nFinal answer: B", DRUGS, None),
    ("The answer is A. Actually, the answer is B.", DRUGS, "B"),
    ("Answer: A\n\nWait, insulin comes later. The answer is B.", DRUGS, "B"),
    ("The answer is A. Actually, it is A or B: the answer is A or B.", DRUGS, None),
    ("Initially the answer is A, but the correct answer is B.", DRUGS, "B"),
    ("The answer is B. To repeat, the answer is B.", DRUGS, "B"),
    # denials, suppositions, questions
    ("not B", DRUGS, None),
    ("The answer is not B.", DRUGS, None),
    ("The answer isn't B.", DRUGS, None),
    ("I don't think the answer is B.", DRUGS, None),
    ("B is incorrect.", DRUGS, None),
    ("Option B is not correct.", DRUGS, None),
    ("The wrong answer is B.", DRUGS, None),
    ("If the answer is B, then glucose falls.", DRUGS, None),
    ("Is the answer B?", DRUGS, None),
    ("I would not choose B.", DRUGS, None),
    ("The answer cannot be determined.", DRUGS, None),
    ("Metformin is contraindicated.", DRUGS, None),
    ("Glipizide rather than metformin.", DRUGS, "C"),
    # labels and bold letters
    ("B) Metformin", DRUGS, "B"),
    ("B. Metformin lowers glucose output.", DRUGS, "B"),
    ("(B) Metformin, because it is first line. Insulin comes later.", DRUGS, "B"),
    ("b) metformin", DRUGS, "B"),
    ("Option B: Metformin", DRUGS, "B"),
    ("Based on this, **B** fits best.", DRUGS, "B"),
    ("Between **A** and **B**", DRUGS, None),
    ("**B. Metformin** is given first; insulin later.", DRUGS, "B"),
    ("Start metformin (B), then insulin.", DRUGS, "B"),
    ("Start metformin (C).", DRUGS, None),
    ("The answer is C. Metformin", DRUGS, None),
    ("A. Insulin\nB. Metformin\nC. Glipizide\nD. None of the above", DRUGS, None),
    ("A. Insulin\nB. Metformin\nC. Glipizide\n\nB", DRUGS, "B"),
    ("B. Metformin\n\nExplanation:\nA. Insulin is second line.\nB. Metformin is first line.", DRUGS, "B"),
    ("Answer:\nA. Insulin\nB. Metformin\nC. Glipizide", DRUGS, None),
    ("A: It is a hard question.", DRUGS, None),
    ("| Option | Verdict |\n|---|---|\n| A | wrong |\n| B | correct |\n| C | wrong |", DRUGS, "B"),
    ("| Answer | B |", DRUGS, "B"),
    ("| Answer | A | B | C |", DRUGS, None),
    ("| A | Insulin |\n| B | Metformin |", DRUGS, None),
    ("A. Insulin B. Metformin C. Glipizide D. None of the above", DRUGS, None),
    ("The answer is:\n\n**B. Metformin**", DRUGS, "B"),
    ("It is **B. Metformin**.\n\n- **A. Insulin**: second line", DRUGS, None),
    ("A. Insulin B. Metformin C. Glipizide\n\nIt depends.", DRUGS, None),
    ("A. Insulin B. Metformin C. Glipizide\n\nB", DRUGS, "B"),
    ("The nerve gives B) paralysis of the facial muscles and loss of taste.", NESTED, "B"),
    # letters that are no letters
    ("A patient like this needs rest.", DRUGS, None),
    ("The answer is a matter of taste.", DRUGS, None),
    ("The answer is A matter of taste.", DRUGS, None),
    ("This is type A behaviour.", DRUGS, None),
    ("Vitamin A is best.", DRUGS, None),
    ("Hepatitis B is the most likely diagnosis.", DRUGS, None),
    ("The answer is vitamin A.", DRUGS, None),
    ("The answer is B-cell lymphoma.", DRUGS, None),
    ("The answer is D-dimer.", DRUGS, None),
    ("The answer is C. difficile colitis.", DRUGS, None),
    ("The answer is Bupropion.", DRUGS, None),
    ("The answer is E. coli.", GERMS, "B"),
    ("E. coli", GERMS, "B"),
    ("C. difficile", GERMS, "D"),
    ("The answer is C. H. pylori", GERMS, "C"),
    ("The cause is H. pylori.", GERMS, "C"),
    ("The answer is B cells.", CELLS, "C"),
    ("B cells", CELLS, "C"),
    ("The answer is C: B cells.", CELLS, "C"),
    ("The answer is a beta blocker.", CELLS, "D"),
    ("The answer is A beta blocker.", CELLS, "D"),
    ("The answer is hepatitis B.", BLOOD, "C"),
    ("Hepatitis B is the most likely diagnosis.", BLOOD, "C"),
    ("The answer is O.", BLOOD, "A"),
    ("The answer is AB.", BLOOD, "B"),
    ("The answer is B.", BLOOD, "B"),
    ("vitamin A", BLOOD, "D"),
    # texts
    ("Metformin", DRUGS, "B"),
    ("metformin.", DRUGS, "B"),
    ("The most appropriate drug is metformin, which lowers glucose.", DRUGS, "B"),
    ("Insulin and metformin are both used.", DRUGS, None),
    ("Sulfonylureas.", DRUGS, None),
    ("None of the above", DRUGS, "D"),
    ("The answer is none of the above.", DRUGS, "D"),
    ("D. None of the above", DRUGS, "D"),
    ("Both A and B", PAIRS, "C"),
    ("The answer is both A and B.", PAIRS, "C"),
    ("The answer is C (both A and B).", PAIRS, "C"),
    ("Paralysis of the facial muscles and loss of taste", NESTED, "B"),
    ("This causes paralysis of the facial muscles and loss of taste.", NESTED, "B"),
    ("The answer is paralysis of the facial muscles.", NESTED, "A"),
    ("It causes loss of taste.", NESTED, "D"),
    ("Iron", TWINS, None),
    ("A. Iron", TWINS, "A"),
    ("The answer is C. Iron.", TWINS, "C"),
    # yes, no, maybe
    ("Yes", YES, "A"),
    ("No.", YES, "B"),
    ("maybe", YES, "C"),
    ("No, there was no difference between the groups.", YES, "B"),
    ("Yes, no doubt about it.", YES, "A"),
    ("There is no evidence of benefit.", YES, None),
    ("The answer is yes.", YES, "A"),
    ("The answer is no longer clear.", YES, None),
    ("The answer is not known.", YES, None),
    ("Answer: maybe", YES, "C"),
    ("The answer is B (no).", YES, "B"),
    ("The answer is A. No.", YES, None),
    ("A (yes)", YES, "A"),
    ("no (B)", YES, "B"),
    # Chinese
    ("答案是B", ZH, "B"),
    ("答案\uff1aB", ZH, "B"),
    ("正确答案是 B。", ZH, "B"),
    ("综上所述\uff0c故选B。", ZH, "B"),
    ("因此选择\uff08\uff22\uff09二甲双胍。", ZH, "B"),
    ("选项B正确\uff0c选项A错误。", ZH, "B"),
    ("B选项正确", ZH, "B"),
    ("选A是错误的。答案是B", ZH, "B"),
    ("答案不是B", ZH, None),
    ("不选B", ZH, None),
    ("答案是A或B", ZH, None),
    ("答案是二甲双胍。", ZH, "B"),
    ("首选二甲双胍治疗。", ZH, "B"),
    ("以上都不是", ZH, "D"),
]


@pytest.mark.parametrize(("text", "options", "letter"), CASES, ids=[repr(text) for text, _, _ in CASES])
def test_an_answer_commits_to(text: str, options: dict[str, str], letter: str | None) -> None:
    assert strict_choice(text, options) == letter


def test_every_real_question_is_answered_by_its_letter_or_its_text() -> None:
    path = SHARED / "mcq_mmlu_medical_test.jsonl"
    files = sorted(SHARED.glob("mcq_*.jsonl"))
    if not path.exists():
        pytest.skip(f"no {path}")
    asked = 0
    for file in files:
        for line in file.open(encoding="utf-8"):
            row = json.loads(line)
            options = row["options"]
            for letter, option in options.items():
                asked += 1
                labelled = f"{letter}. {option}"
                for written in (letter, f"The answer is {letter}.", f"**Answer:** {labelled}", f"{letter}) {option}",
                                f"答案是{letter}", f"{labelled}\n\nThis fits the findings best."):  # fmt: skip
                    assert strict_choice(written, options) == letter, (written, options)
    assert asked > 9000


def test_the_options_repeated_alone_are_no_answer_to_any_real_question() -> None:
    files = sorted(SHARED.glob("mcq_*.jsonl"))
    if not files:
        pytest.skip(f"no questions in {SHARED}")
    for file in files:
        for line in file.open(encoding="utf-8"):
            options = json.loads(line)["options"]
            listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
            assert strict_choice(listed, options) is None, listed
            assert strict_choice(f"Answer:\n{listed}", options) is None, listed


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("The answer is A. No, the answer is B.", ("A", "B")),
        ("## Thinking\n\nThe answer is A\n\n## Final Response\n\nThe answer is C", ("C", "C")),
        ("The answer is Bupropion", ("B", "B")),  # generous
        ("Vitamin A, vitamin C", ("A", "C")),
        ("A patient takes (C)", ("C", "C")),  # but the article is seen
        ("答案是B", ("B", "B")),
        ("insulin, then glipizide", ("A", "C")),
        ("metformine", ("B", "B")),
        ("glipzide", ("C", "C")),
        ("", ("D", "D")),
    ],
)
def test_the_generous_rule_always_finds_a_letter(text: str, choices: tuple[str, str]) -> None:
    assert huatuo_choices(text, DRUGS) == choices
    assert huatuo_choice(text, DRUGS) == choices[1]
