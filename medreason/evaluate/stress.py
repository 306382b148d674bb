"""Multiple-choice questions made harder in ways that knowledge survives and habits do not.

none_of_above   the right option's text becomes "None of the above": recognising a familiar option helps no more.
                Bedi et al. 2025, JAMA Network Open 8:e2526021
prefill         the model's answer begins with a wrong one: does it reason its way out?
"""

from dataclasses import replace

from medreason.config import Format
from medreason.data.benchmarks import Question, Task
from medreason.models.prompts import Example, completion_text

NONE_OF_ABOVE = "None of the above"


def none_of_above(task: Task) -> Task:
    """The task with the right option of each question replaced; its letter stays the right one."""
    questions = tuple(
        replace(question, options=question.options | {question.answer: NONE_OF_ABOVE}) for question in task.questions
    )
    return replace(task, questions=questions, fingerprint=f"{task.fingerprint}-none-of-above")


def wrong_letter(question: Question) -> str:
    """The option after the right one, from the last the first."""
    letters = list(question.options)
    return letters[(letters.index(question.answer) + 1) % len(letters)]


def wrong_beginning(question: Question, style: Format) -> str:
    """The beginning of an answer, in its format, that commits to a wrong option."""
    before = completion_text(Example("", "\0", "\1"), style).partition("\0")[0]
    return f"{before}The answer is {wrong_letter(question)}."
