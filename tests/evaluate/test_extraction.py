# ruff: noqa: RUF001  # Chinese has punctuation of its own, in full width
import json

import pytest

from medreason.evaluate.extraction import huatuo_choice, huatuo_choices, strict_choice
from support import SHARED

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


# a shape of an answer that commits to B, in English and in Chinese, each in the ways that it is written
SHAPES = {
    "the letter alone": (
        ["B", "b", "(B)", "[B]", "B.", "B)", "B!", "\"B\"", "Option B", "option (B)", "Choice B"],
        ["Ｂ", "（B）", "【B】", "「B」", "B。", "B、", "“B”", "选项B", "选项（B）", "B选项", "B项", "選項B"],
    ),
    "marked": (
        ["**B**", "**(B)**", "**Option B**", "\\boxed{B}", "$\\boxed{\\text{(B)}}$", "\\boxed{Option B}", "`B`",
         "<answer>B</answer>"],
        ["**Ｂ**", "**（B）**", "**选项B**", "**B选项**", "**【B】**", "\\boxed{Ｂ}", "\\boxed{选项B}",
         "\\boxed{\\text{选项B}}", "<answer>选项B</answer>"],
    ),
    "JSON": (
        ["{\"answer\": \"B\"}", "{\"answer\":\"B\"}", "{'answer': 'B'}", "{\"final_answer\": \"B\"}",
         "{\"answer_letter\": \"(B)\"}", "```json\n{\"reasoning\": \"A is old.\", \"answer\": \"B\"}\n```",
         "{\"answer\": [\"B\"]}", "{\"choice\": \"b\"}", "{\"answer\": \"B\", \"A\": \"wrong\"}",
         "{\"answer\": \"Metformin\"}", "{\"answer\": \"B. Metformin\"}"],
        ["{\"答案\": \"B\"}", "{\"答案\":\"B\"}", "{\"answer\": \"选项B\"}", "{\"最终答案\": \"B\"}",
         "{\"正确答案\": \"B\"}", "{\"正确选项\": \"Ｂ\"}", "{\"推理\": \"A 过时。\", \"答案\": \"B\"}",
         "{\"答案\": [\"B\"]}", "{\"答案\": \"二甲双胍\"}", "{\"答案\": \"B. 二甲双胍\"}"],
    ),
    "answer, and a mark": (
        ["Answer: B", "answer: (b)", "Answer = B", "Answer - B", "Answer – B", "Answer — B", "Answer—B",
         "Answer -> B", "Answer => B", "Answer → B", "ANSWER: [B]", "[Answer] B", "(Answer): B", "Answer B",
         "| Answer | B |", "Answer:\n\nB"],
        ["答案：B", "答案: B", "答案=B", "答案 - B", "答案—B", "答案——B", "答案→B", "答案 -> B", "【答案】B",
         "【答案】：B", "[答案] B", "答案 B", "答案B", "答案：选项B", "答案：（B）", "答案：【B】", "答案：“B”",
         "| 答案 | B |", "答案：\n\nB", "答：B", "答：选项B。"],
    ),
    "answer, shortened": (
        ["Ans: B", "Ans. B", "ANS: (B)", "Ans - B", "ans = b", "Ans B"],
        ["答: B", "答：（B）", "答:B。", "答：B选项"],
    ),
    "the answer is": (
        ["The answer is B.", "The answer is (B)", "The answer is option B", "My answer is B.", "The answer's B.",
         "The answer would be B.", "The answer must be B", "The answer should be B.", "the answer is: B",
         "The answer is therefore B.", "The answer is most likely B.", "The answer to this question is B."],
        ["答案是B。", "答案是（B）", "答案是选项B", "答案为B", "答案为选项B", "答案即B", "答案就是B", "答案应为B。",
         "答案应该是B", "答案应是B", "答案选B", "答案应选B", "答案会是B", "我的答案是B。", "答案是：B",
         "答案很可能是B", "答案最有可能是B。", "本题答案为B", "本题的答案是B", "这道题的答案是B。", "答案是B选项",
         "答案是B项。", "答案是 B", "答案是Ｂ", "答案是“B”。", "答案是選項B"],
    ),
    "the correct answer": (
        ["The correct answer is B.", "Correct answer: B", "Correct answer B", "The right answer is (B)",
         "The best answer is B."],
        ["正确答案是B。", "正确答案：B", "正确答案B", "正确的答案是（B）", "最佳答案是B。", "正确答案为选项B",
         "正确答案应为B", "標準答案：B", "参考答案：B", "正確答案是B"],
    ),
    "the correct choice": (
        ["The correct option is B", "the correct choice would be (B)", "Correct option: B", "The best choice is B.",
         "The best option is option B", "The right choice is B", "The correct one is B."],
        ["正确的选项是B", "正确选项是B", "正确选项为B。", "正确选项：B", "正确的选择是（B）", "最佳选项是B",
         "最佳选择是选项B", "正确的是B", "正确的是选项B", "正确的一项是B", "最合适的选项是B", "正確的選項是B"],
    ),
    "the final answer": (
        ["Final answer: B", "**Final Answer:** B", "The final answer is B", "### Final answer\n\nB", "Final: B",
         "Conclusion: B", "The final answer is $\\boxed{B}$"],
        ["最终答案：B", "**最终答案：** B", "最终答案是B", "### 最终答案\n\nB", "最后答案是B", "最终答案为选项B",
         "结论：B", "结论是B。", "最终答案是 $\\boxed{B}$", "最終答案：B"],
    ),
    "I choose": (
        ["I choose B.", "I choose option B", "I would choose (B).", "I select B", "I pick B.", "I'll go with B.",
         "I opt for B.", "So I choose B.", "Choose B.", "Select (B)", "I'd say B.", "I would say B."],
        ["我选B。", "我选择B", "我选择选项B", "我会选B", "我会选择（B）。", "我选择的是B", "我选的是B", "所以我选B。",
         "选B", "选择B", "选：B", "选（B）", "选【B】", "选项B", "应选B", "应该选B。", "应选择B", "故选B", "故选：B",
         "因此选B", "所以选择B", "本题选B", "此题选B", "该题应选B", "这题选B。", "本题应选B。", "最终选择B", "首选B",
         "选B项", "选B选项。", "选定B", "我選擇B", "應選B", "綜上，選B。"],
    ),
    "it is": (
        ["It's B.", "It is B.", "It’s (B).", "It's option B.", "It is B, because A is old.", "It must be B.",
         "That's B.", "I think it's B.", "It is definitely insulin's rival. It's B."],
        ["是B。", "就是B。", "应该是B。", "应为B", "应是选项B。", "是（B）。", "是B，因为A过时。", "我认为是B。",
         "我觉得应该是B。", "所以是B。"],
    ),
    "therefore": (
        ["Therefore, B.", "So B.", "Hence, option B.", "Thus (B).", "Therefore B is correct."],
        ["因此，B。", "所以B。", "综上，选项B。", "因此（B）。", "因此B正确。", "故B正确", "故答案为B。", "故答案选B",
         "故正确答案为B", "所以答案是B", "综上所述，答案是B", "因此，答案选B。"],
    ),
    "B is right": (
        ["B is correct.", "Option B is correct", "option (B) is right", "B is the answer.", "B is the correct answer.",
         "(B) is the best answer.", "B is the best choice.", "I think that B is correct.", "B is most likely."],
        ["B正确。", "选项B正确", "选项（B）正确", "B是答案。", "B是正确答案。", "B为正确答案", "（B）是最佳答案。",
         "B选项正确", "B项正确", "B是正确的。", "选项B是正确的", "选项B为正确答案", "B对。", "B是对的", "B最合适。",
         "B最佳", "我认为B正确。", "综上B正确", "B符合题意", "B选项符合题意。", "只有B正确", "B是本题答案",
         "B最可能。", "B才是正确答案"],
    ),
    "letter and text": (
        ["B. Metformin", "B) Metformin", "(B) Metformin", "B: Metformin", "Option B: Metformin", "Metformin (B)",
         "Metformin (option B)", "The answer is B. Metformin", "The answer is metformin (B).", "Answer: B) metformin"],
        ["B. 二甲双胍", "B．二甲双胍", "B、二甲双胍", "（B）二甲双胍", "B：二甲双胍", "选项B：二甲双胍",
         "二甲双胍（B）", "二甲双胍（选项B）", "B 二甲双胍", "B二甲双胍", "答案是B. 二甲双胍", "答案是B、二甲双胍",
         "答案是二甲双胍（B）。", "答案：B 二甲双胍", "选B二甲双胍", "选B、二甲双胍", "B。二甲双胍"],
    ),
    "the text": (
        ["Metformin", "The answer is metformin.", "The best option is metformin.", "It is metformin.",
         "Start metformin."],
        ["二甲双胍", "答案是二甲双胍。", "最佳选择是二甲双胍", "应该是二甲双胍。", "首选二甲双胍治疗。",
         "正确的选项是二甲双胍"],
    ),
    "not the others": (
        ["The answer is B, not A.", "A is incorrect. B is correct.", "The answer is not A but B.",
         "A, C and D are wrong; B is correct.", "The answer is B because A is wrong."],
        ["答案是B，不是A。", "答案是B而不是A", "选项A错误。选项B正确。", "答案不是A而是B", "A、C、D均错误，B正确。",
         "不选A，选B", "不选A而选B", "排除A、C、D，选B。", "排除A后选B", "选B，因为A错误", "答案是B而非A。"],
    ),
    "revised": (
        ["The answer is A. Actually, the answer is B.", "Answer: A\n\nWait, the answer is B."],
        ["答案是A。其实答案是B。", "答案：A\n\n等等，答案是B。", "答案是A。更正：答案是B。", "选A。不对，选B。",
         "答案是A。重新考虑，答案是B。", "先选A，后来改选B。"],
    ),
    "other wordings": (
        ["Answer is B", "The answer: B", "Option B.", "The correct answer is option (B).", "Correct: B",
         "My final answer is option B", "I believe it's B", "I'm going with B", "The answer is **B**.", "answer=B",
         "Response: B", "Selected answer: B", "B - Metformin", "B -- Metformin", "{\"Answer\": \"B\"}",
         "{\"correct\": \"B\"}", "{\"option\": \"B\"}", "Answer : B", "Ans = B", "ANSWER B", "The answer is \"B\".",
         "the answer is 'B'", "The answer is B)", "Final Answer - B", "the best answer would be B",
         "I think the answer is B", "My answer - B", "Ans.: B", "The answer is B!", "Choice: B", "Answer:B",
         "answer: B.", "Therefore the answer is B", "it's option (B)",
         "The correct choice is option B because A is old.", "It would be B.", "This is B.", "Pick (B).",
         "I'd choose B", "I would pick option B.", "**Answer**: B", "**Answer: B**", "**Ans:** B",
         "Answer: **B. Metformin**", "The correct answer is B: Metformin", "The answer is:\nB",
         "The answer is:\n\n**B**", "\\boxed{\\textbf{B}}", "\\boxed{\\text{B. Metformin}}", "\\(\\boxed{B}\\)",
         "Correct answer is B", "So the answer is (B).", "B is the correct option.", "B is right",
         "B would be correct.", "B would be the best choice.", "B is indeed correct", "B must be correct.",
         "{'answer': 'B', 'why': 'A is old'}", "<answer>(B)</answer>", "answer: option B", "Final answer\nB",
         "Answer\n\nB", "The answer is likely B", "Ans:B", "Answer– B"],
        ["答案是：选项B", "答案：选B", "答案选择B", "选项B是正确答案", "正确的是：B", "所以正确答案是B。",
         "我认为正确答案是B", "应该选择B选项", "应选择选项B", "选择答案B", "选B正确", "本题的正确答案为B",
         "B是最佳选择", "B是最合适的选项", "B为最佳答案", "正确答案应该是选项B", "答案：B选项", "答案是b", "答案B正确",
         "故本题选B。", "故应选B", "综上所述，正确答案是B", "答案就是选项B", "因此正确的选项是B", "答案是 **B**",
         "答案是：**B. 二甲双胍**", "【正确答案】B", "【答案】 B", "〔答案〕B", "正解：B", "回答：B", "解答：B",
         "我的选择是B", "我的选择：B", "选择：B", "最终选择：B", "最终选择是B", "我倾向于选B", "答案是B，理由是A过时",
         "答案是B: 二甲双胍", "选 B", "选「B」", "B是正确选项", "B是正确的选项", "正确选项应是B", "选项B最合适",
         "选项B符合题意", "是选项B", "是B选项。", "（B）选项正确", "應選擇B", "答案為B", "選項B正確", "B為正確答案",
         "答案是B!", "答案是B！", "答案是B；", "选B！", "**答案**：B", "**答案：B**", "**答案：** 选项B", "答案：\nB",
         "答案是：\n\n**B**", "\\boxed{\\text{B. 二甲双胍}}", "\\boxed{B选项}", "<answer>Ｂ</answer>",
         "所以，答案为（B）。", "因此，正确选项为 B。", "综上分析，B选项正确。", "故选：（B）", "故选B选项", "故选择B",
         "因此，应选B。", "所以本题应选B", "本题答案选B", "正确答案选B", "正确答案：选项B",
         "正确答案是选项B：二甲双胍", "选项B（二甲双胍）是正确的。", "选项B：二甲双胍是正确答案", "B（二甲双胍）正确",
         "答案：B（二甲双胍）", "答案是（B）二甲双胍", "我选择B，因为A过时。", "我选择B选项", "我的答案：B",
         "最佳答案：B", "最佳答案为B", "最佳选项：B", "正确选项：选项B", "答案，B", "答案: **选项B**",
         "最终答案是选项B。", "最终答案：选项B", "最终答案：**B**", "最终答案：\\boxed{B}", "最终的答案是B",
         "最后的答案是B", "正确的答案应该是B", "正确的答案为选项B", "这题答案是B", "此题答案为B", "答案应为选项B",
         "答案应选择B", "答案就选B", "答案为：B", "答案为:选项B", "应选：B", "本题选：B", "本题选择B", "本题选择选项B",
         "答案是B。A、C、D错误。", "选B。A项错误，C项错误。", "B项。", "答案B项", "答：选B", "答：答案是B"],
    ),
}  # fmt: skip
# and shapes that commit to nothing
NO_SHAPES = {
    "denied": (
        ["not B", "The answer is not B.", "The answer isn't B.", "It's not B.", "It isn't B.", "I would not choose B.",
         "B is incorrect.", "Option B is wrong", "Option B is not correct.", "B is not the answer.", "Answer: not B",
         "The wrong answer is B.", "I don't think it's B.", "B is ruled out.", "Ruled out B.", "Anything but B",
         "It is not **B**."],
        ["不是B", "答案不是B。", "答案不为B", "答案并非B", "答案不可能是B", "答案不应该是B", "不选B", "不应选B",
         "不应该选B。", "不能选B", "我不会选B。", "B错误。", "选项B错误", "选项B不正确", "B选项不正确。",
         "B不是正确答案。", "答案：不是B", "错误答案是B。", "错误的答案是B", "我不认为是B。", "我不认为答案是B",
         "排除B", "排除选项B", "可排除B。", "B可以排除", "B被排除", "除B外", "B是错的", "B是错误的。", "B不对",
         "B有误", "B不符合题意", "选B不正确", "选B是错误的。", "不正确的是B", "不正确的选项是B", "非B", "選項B錯誤",
         "答案不是選項B", "**B** 错误", "B：错误", "而不是B", "而非B", "不是**B**"],
    ),
    "supposed or asked": (
        ["If the answer is B, glucose falls.", "Is the answer B?", "Is it B?", "Whether it is B is unclear.",
         "The answer is B?", "Unless it's B."],
        ["如果答案是B，血糖下降。", "答案是B吗？", "是B吗？", "是否选B尚不清楚。", "答案是B？", "若选B则血糖下降。",
         "若答案为B，", "假如选B", "B正确吗？", "答案会是B吗"],
    ),
    "several": (
        ["A or B", "The answer is A or B.", "Answer: A, B", "It's A or B.", "A and B are correct.",
         "{\"answer\": [\"A\", \"B\"]}", "The answer is A. The answer is B.", "It's A. It's B.", "**A** **B**",
         "Ans: A/B", "I choose A and B."],
        ["A或B", "答案是A或B。", "答案：A、B", "应该是A或B。", "A和B正确", "A、B均正确。",
         "{\"答案\": [\"A\", \"B\"]}", "答案是A。答案是B。", "是A。是B。", "**Ａ** **Ｂ**", "答：A/B", "选A和B",
         "选A还是选B", "选A或选B。", "选AB", "A、B均可", "A和B都对", "答案是A以及B"],
    ),
    "not a letter": (
        ["A patient like this needs rest.", "It's a patient.", "It is a matter of taste.",
         "The answer is a matter of taste.", "Vitamin A is best.", "It's hepatitis B.", "It's B-cell lymphoma.",
         "It is C. difficile.", "It is A patient.", "I choose a B-cell drug.", "So a patient rests.",
         "Therefore A patient rests.", "The answer is type A blood."],
        ["A型血的患者需要休息。", "是A型血。", "选择B超检查。", "答案是B超检查", "维生素A最佳。", "是乙型肝炎B型。",
         "应为B细胞淋巴瘤。", "C反应蛋白升高。", "选B细胞药物", "因此A群链球菌", "答案是D二聚体。", "B族维生素最合适"],
    ),
    "options repeated": (
        ["A. Insulin\nB. Metformin\nC. Glipizide\nD. None of the above",
         "Answer:\nA. Insulin\nB. Metformin\nC. Glipizide", "A is for type 1; B is oral."],
        ["A. 胰岛素\nB. 二甲双胍\nC. 格列吡嗪\nD. 以上都不是", "A、胰岛素\nB、二甲双胍\nC、格列吡嗪",
         "答案：\nA. 胰岛素\nB. 二甲双胍\nC. 格列吡嗪", "选项：A. 胰岛素 B. 二甲双胍 C. 格列吡嗪",
         "选项A是注射药；选项B是口服药。"],
    ),
    "no option": (
        ["The answer is F.", "Ans: F", "It's F.", "{\"answer\": \"F\"}", "The answer cannot be determined.", ""],
        ["答案是F。", "答：F", "应该是F。", "{\"答案\": \"F\"}", "答案无法确定。", "选F"],
    ),
    "other wordings": (
        ["The answer is never B", "B is not right", "It cannot be B.", "It can't be B", "B isn't correct",
         "B can be excluded", "Not option B", "The answer is definitely not B.", "Answer: not (B)",
         "Many would choose A or B", "So A and B are possible.", "It is either A or B.", "Options A, B, C, D",
         "I'm not sure it's B.", "Could it be B?", "Would it be B?", "It is not the case that B is correct.",
         "I doubt it's B.", "Excluding B.", "{\"answer\": \"A or B\"}", "{\"answer\": null}",
         "The answer is A, or maybe B.", "It's a B cell.", "It is a.", "That's a big question.", "A says B.",
         "Either B or C.", "It is A and B.", "So I think A patient", "It's a good drug."],
        ["答案非B", "答案绝不是B", "选项B可以排除", "B选项是错的", "B选项有误", "B是不对的", "B是不正确的",
         "B并不正确", "B并非正确答案", "B不是最佳选择", "不宜选B", "不可选B", "不要选B", "不建议选B", "没有选B",
         "选B不对", "易误选B", "B的可能性不大", "不考虑B", "首先排除B", "B错", "B ×", "不认为B正确", "并非B正确",
         "B未必正确", "B不一定正确", "B不完全正确", "答案不一定是B", "答案未必是B", "答案可能不是B", "难道是B？",
         "A还是B？", "是A还是B", "是A或B", "在A和B之间", "从A、B、C中选择", "A、B、C、D四个选项", "选项A、B、C、D",
         "两个选项A和B", "答案在A和B中", "选项B错", "选项B不对", "选项B不符合题意", "B项错误", "B项不正确", "错选B",
         "不应该是B", "不会是B", "不可能是B", "答案应该不是B", "答案肯定不是B", "B应排除", "应排除B", "可以排除选项B",
         "除了B", "除选项B外", "答案不包括B", "如果选择B，则错误", "假设答案为B", "若B正确", "如果B正确，那么",
         "B是否正确？", "B正确么？", "是不是B", "是不是选B？", "该不该选B", "为什么不选B", "为何选B？", "为什么选B？",
         "B是二甲双胍，A是胰岛素", "答案是A、B、C", "答案：AB", "答案是A，B", "选A、B", "选A,B", "答案是A/B",
         "最终答案：A或B", "A或者B", "选项A或选项B", "A正确，B正确", "A对B错C对", "是A型", "为A型行为", "选A型血",
         "答案是A群链球菌", "为B族维生素", "因此B超检查正常。", "B超最合适", "C反应蛋白最合适", "A级证据", "选择A药",
         "B淋巴细胞", "所以B细胞受损。", "D-二聚体是最佳选择", "B选项错误，答案不确定", "B细胞正确"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("language", ["English", "Chinese"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_that_commits_in_one_language_commits_in_the_other(shape: str, language: str) -> None:
    texts, options = (SHAPES[shape][0], DRUGS) if language == "English" else (SHAPES[shape][1], ZH)
    found = {text: strict_choice(text, options) for text in texts}
    assert found == dict.fromkeys(texts, "B")


@pytest.mark.parametrize("language", ["English", "Chinese"])
@pytest.mark.parametrize("shape", NO_SHAPES)
def test_a_shape_that_commits_to_nothing_does_so_in_both_languages(shape: str, language: str) -> None:
    texts, options = (NO_SHAPES[shape][0], DRUGS) if language == "English" else (NO_SHAPES[shape][1], ZH)
    found = {text: strict_choice(text, options) for text in texts}
    assert found == dict.fromkeys(texts)


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
