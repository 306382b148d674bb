"""Clinical cases: the thresholds are typed here from the guidelines, never read from the module."""

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable

import pytest

from medreason.data import clinical_cases as cc
from medreason.data.clinical_cases import KINDS, answers_match, generate_cases
from medreason.models.prompts import Example


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+(?:\.\d+)?", text)]


def first_below(value: float, steps: list[tuple[float, str]], otherwise: str) -> str:
    return next((name for limit, name in steps if value < limit), otherwise)


def kidney(question: str) -> str:
    egfr = numbers(question)[1]
    steps = [(15.0, "G5"), (30.0, "G4"), (45.0, "G3b"), (60.0, "G3a"), (90.0, "G2")]
    return f"Stage {first_below(egfr, steps, 'G1')}"


def pressure(question: str) -> str:
    systolic, diastolic = numbers(question)[1:3]
    by_systolic = sum(systolic >= limit for limit in (120, 130, 140))
    by_diastolic = (0, 2, 3)[sum(diastolic >= limit for limit in (80, 90))]
    names = ("Normal", "Elevated", "Stage 1 hypertension", "Stage 2 hypertension")
    return names[max(by_systolic, by_diastolic)]


def coma(question: str) -> str:
    total = sum(int(part) for part in re.findall(r"\b[EVM](\d)", question))
    return first_below(total, [(9, "Severe"), (13, "Moderate")], "Mild") + " head injury"


def gap(question: str) -> str:
    sodium, chloride, bicarbonate = (int(part) for part in re.findall(r"(?:Na|Cl|HCO3) (\d+)", question))
    value = sodium - chloride - bicarbonate
    return ("High" if value > 12 else "Low" if value < 8 else "Normal") + " anion gap"


def gases(question: str) -> str:
    found = re.search(r"pH ([\d.]+), pCO2 (\d+) mmHg, HCO3 (\d+)", question)
    assert found
    ph, pco2, bicarbonate = (float(part) for part in found.groups())
    fits = {
        "Metabolic acidosis": ph < 7.35 and bicarbonate < 22,
        "Respiratory acidosis": ph < 7.35 and pco2 > 45,
        "Metabolic alkalosis": ph > 7.45 and bicarbonate > 26,
        "Respiratory alkalosis": ph > 7.45 and pco2 < 35,
    }
    (only,) = [name for name, fit in fits.items() if fit]  # fails on none and on more than one
    return only


def blood_count(question: str) -> str:
    _, haemoglobin, mcv = numbers(question)
    if haemoglobin >= (120 if "woman" in question else 130):
        return "No anaemia"
    return ("Microcytic" if mcv < 80 else "Macrocytic" if mcv > 100 else "Normocytic") + " anaemia"


def sugar(question: str) -> str:
    found = re.search(r"glucose (\d+) mg/dL and HbA1c ([\d.]+)%", question)
    assert found
    names = [(0.0, "Normal glucose"), (1.0, "Prediabetes"), (2.0, "Diabetes")]
    by_glucose = sum(float(found[1]) >= limit for limit in (100, 126))
    by_hba1c = sum(float(found[2]) >= limit for limit in (5.7, 6.5))
    assert by_glucose == by_hba1c, "the two tests contradict each other"
    return dict(names)[float(by_glucose)]


def mass(question: str) -> str:
    steps = [(18.5, "Underweight"), (25.0, "Normal weight"), (30.0, "Overweight")]
    steps += [(35.0, "Obesity class I"), (40.0, "Obesity class II")]
    return first_below(numbers(question)[1], steps, "Obesity class III")


def pneumonia(question: str) -> str:
    age, urea, rate, systolic, diastolic = numbers(question)[:5]
    points = ("confused" in question) + (urea > 7) + (rate >= 30) + (age >= 65)
    points += systolic < 90 or diastolic <= 60
    return ("Low", "Low", "Intermediate", "High", "High", "High")[points] + " risk"


def sepsis(question: str) -> str:
    rate, systolic, gcs = numbers(question)[1:4]
    points = (rate >= 22) + (systolic <= 100) + (gcs < 15)
    return f"qSOFA {points}, {'positive' if points >= 2 else 'negative'}"


RECOMPUTED: dict[str, Callable[[str], str]] = {
    "kidney_stage": kidney,
    "blood_pressure": pressure,
    "coma_scale": coma,
    "anion_gap": gap,
    "acid_base": gases,
    "anaemia": blood_count,
    "diabetes": sugar,
    "body_mass": mass,
    "pneumonia_risk": pneumonia,
    "sepsis_score": sepsis,
}


@pytest.fixture(scope="module")
def many() -> dict[str, list[Example]]:
    return {kind: generate_cases(600, seed=3, kinds=[kind]) for kind in KINDS}


def test_the_same_seed_gives_the_same_cases_and_another_seed_gives_others() -> None:
    assert generate_cases(60, seed=5) == generate_cases(60, seed=5)
    assert generate_cases(60, seed=5) != generate_cases(60, seed=6)


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    random.seed(1)
    before = random.getstate()
    first = generate_cases(30, seed=5)
    assert random.getstate() == before
    random.seed(2)
    assert generate_cases(30, seed=5) == first


def test_a_seed_means_the_same_case_on_every_python_version() -> None:
    case = generate_cases(1, seed=0, kinds=["anion_gap"])[0]
    assert case == Example(
        question="An 83-year-old woman presents with Na 133, Cl 98, HCO3 24 mmol/L. "
        "Anion gap low, normal (8-12) or high?",
        reasoning="Cl + HCO3 = 98 + 24 = 122. 133 - 122 = 11. 11 is in 8-12: normal.",
        answer="Normal anion gap",
    )


def test_a_longer_list_from_one_kind_begins_with_the_shorter_one() -> None:
    assert generate_cases(40, seed=8, kinds=["diabetes"])[:15] == generate_cases(15, seed=8, kinds=["diabetes"])


def test_five_thousand_cases_are_distinct_and_made_within_a_second() -> None:
    start = time.process_time()
    cases = generate_cases(5000, seed=0)
    assert time.process_time() - start < 1
    assert len({case.question for case in cases}) == len(cases) == 5000


def test_each_kind_alone_holds_thousands_of_cases() -> None:
    for kind in KINDS:
        assert len({case.question for case in generate_cases(2000, 1, [kind])}) == 2000, kind


def test_there_are_at_least_eight_kinds_and_each_is_recomputed_below() -> None:
    assert len(KINDS) >= 8
    assert set(RECOMPUTED) == set(KINDS)


def test_kinds_are_evenly_mixed_and_asked_kinds_only_are_given(many: dict[str, list[Example]]) -> None:
    kind_of = {answer: kind for kind, cases in many.items() for answer in {case.answer for case in cases}}
    kinds = Counter(kind_of[case.answer] for case in generate_cases(205, seed=2))
    assert set(kinds) == set(KINDS) and set(kinds.values()) == {20, 21}
    few = generate_cases(21, seed=2, kinds=["anaemia", "diabetes", "anaemia"])
    assert sorted(Counter(kind_of[case.answer] for case in few).values()) == [10, 11]


def test_kinds_do_not_come_in_a_fixed_order(many: dict[str, list[Example]]) -> None:
    kind_of = {answer: kind for kind, cases in many.items() for answer in {case.answer for case in cases}}
    order = [kind_of[case.answer] for case in generate_cases(100, seed=4)]
    assert len({tuple(order[i : i + 10]) for i in range(0, 100, 10)}) > 5


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_every_answer_follows_from_its_question(kind: str, many: dict[str, list[Example]]) -> None:
    for case in many[kind]:
        assert case.answer == RECOMPUTED[kind](case.question), case.question


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_the_reasoning_ends_with_the_answer_class(kind: str, many: dict[str, list[Example]]) -> None:
    generic = {"stage", "head", "injury", "anion", "gap", "anaemia", "qsofa", "risk", "acidosis", "alkalosis"}
    for case in many[kind]:
        last = re.split(r"(?<=\.) ", case.reasoning)[-1].lower()
        telling = [word.strip(",") for word in case.answer.lower().split() if word not in generic]
        assert telling and all(word in last for word in telling), case


@pytest.mark.parametrize("kind", ["anion_gap", "coma_scale"])
def test_every_sum_in_the_reasoning_is_right(kind: str, many: dict[str, list[Example]]) -> None:
    for case in many[kind]:
        sums = re.findall(r"(\d+(?: [+-] \d+)+) = (\d+)", case.reasoning)
        assert sums, case.reasoning
        for terms, result in sums:
            assert sum(int(term) for term in terms.replace("- ", "-").replace("+ ", "").split()) == int(result)


@pytest.mark.parametrize("kind", ["pneumonia_risk", "sepsis_score"])
def test_the_points_in_the_reasoning_add_up_to_the_sum(kind: str, many: dict[str, list[Example]]) -> None:
    for case in many[kind]:
        total = re.search(r"Sum (\d)", case.reasoning)
        assert total and re.findall(r": (\d)", case.reasoning).count("1") == int(total[1]), case.reasoning


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_no_answer_class_takes_more_than_half_of_its_kind(kind: str, many: dict[str, list[Example]]) -> None:
    classes = Counter(case.answer for case in many[kind])
    assert len(classes) >= 3
    assert max(classes.values()) <= 0.5 * len(many[kind]), classes
    assert min(classes.values()) >= 0.1 * len(many[kind]), classes


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_texts_are_short_and_well_formed(kind: str, many: dict[str, list[Example]]) -> None:
    for case in many[kind]:
        assert len(case.question.split()) <= 30 and case.question.endswith("?")
        assert len(case.reasoning.split()) <= 25 and case.reasoning.endswith(".")
        assert 1 <= len(case.reasoning.split(". ")) <= 3
        assert 1 <= len(case.answer.split()) <= 4 and case.answer == case.answer.strip(" .*")
        article, age = re.match(r"(An?) (\d+)-year-old", case.question).groups()  # type: ignore[union-attr]
        assert (article == "An") == (age == "18" or age.startswith("8"))
        assert 18 <= int(age) <= 92


@pytest.mark.parametrize(
    ("bands", "last_below", "first_in", "lower", "upper"),
    [
        (cc.KIDNEY_STAGES, 14, 15, "G5", "G4"),
        (cc.KIDNEY_STAGES, 29, 30, "G4", "G3b"),
        (cc.KIDNEY_STAGES, 44, 45, "G3b", "G3a"),
        (cc.KIDNEY_STAGES, 59, 60, "G3a", "G2"),
        (cc.KIDNEY_STAGES, 89, 90, "G2", "G1"),
        (cc.HEAD_INJURY, 8, 9, "Severe", "Moderate"),
        (cc.HEAD_INJURY, 12, 13, "Moderate", "Mild"),
        (cc.ANION_GAP, 7, 8, "Low", "Normal"),
        (cc.ANION_GAP, 12, 13, "Normal", "High"),
        (cc.MCV, 79, 80, "Microcytic", "Normocytic"),
        (cc.MCV, 100, 101, "Normocytic", "Macrocytic"),
        (cc.GLUCOSE, 99, 100, "Normal glucose", "Prediabetes"),
        (cc.GLUCOSE, 125, 126, "Prediabetes", "Diabetes"),
        (cc.HBA1C, 56, 57, "Normal glucose", "Prediabetes"),
        (cc.HBA1C, 64, 65, "Prediabetes", "Diabetes"),
        (cc.BMI, 184, 185, "Underweight", "Normal weight"),
        (cc.BMI, 249, 250, "Normal weight", "Overweight"),
        (cc.BMI, 299, 300, "Overweight", "Obesity class I"),
        (cc.BMI, 349, 350, "Obesity class I", "Obesity class II"),
        (cc.BMI, 399, 400, "Obesity class II", "Obesity class III"),
        (cc.CURB65, 1, 2, "Low", "Intermediate"),
        (cc.CURB65, 2, 3, "Intermediate", "High"),
        (cc.QSOFA, 1, 2, "negative", "positive"),
    ],
)
def test_a_band_begins_exactly_at_its_threshold(
    bands: cc.Bands, last_below: int, first_in: int, lower: str, upper: str
) -> None:
    assert (cc.band_of(bands, last_below).name, cc.band_of(bands, first_in).name) == (lower, upper)


def test_bands_leave_no_gap_and_values_beyond_the_plausible_still_get_a_class() -> None:
    tables = (cc.KIDNEY_STAGES, cc.HEAD_INJURY, cc.ANION_GAP, cc.MCV, cc.GLUCOSE, cc.HBA1C, cc.BMI, cc.CURB65)
    for bands in tables:
        for lower, upper in itertools.pairwise(bands):
            assert lower.highest + 1 == upper.lowest
        assert cc.band_of(bands, -5) == bands[0] and cc.band_of(bands, 9999) == bands[-1]


@pytest.mark.parametrize(
    ("systolic", "diastolic", "category"),
    [
        (119, 79, "Normal"),
        (120, 79, "Elevated"),
        (129, 79, "Elevated"),
        (130, 79, "Stage 1 hypertension"),
        (119, 80, "Stage 1 hypertension"),
        (139, 89, "Stage 1 hypertension"),
        (140, 79, "Stage 2 hypertension"),
        (119, 90, "Stage 2 hypertension"),
    ],
)
def test_the_higher_of_two_pressures_gives_the_category(systolic: int, diastolic: int, category: str) -> None:
    assert cc.pressure_category(systolic, diastolic) == category


@pytest.mark.parametrize(
    ("sex", "haemoglobin", "mcv", "kind"),
    [
        ("man", 130, 70, "No anaemia"),
        ("man", 129, 79, "Microcytic anaemia"),
        ("woman", 120, 110, "No anaemia"),
        ("woman", 119, 80, "Normocytic anaemia"),
        ("woman", 119, 100, "Normocytic anaemia"),
        ("woman", 119, 101, "Macrocytic anaemia"),
    ],
)
def test_anaemia_begins_below_the_limit_of_each_sex(sex: str, haemoglobin: int, mcv: int, kind: str) -> None:
    assert cc.anaemia_type(sex, haemoglobin, mcv) == kind


@pytest.mark.parametrize(
    ("ph_hundredths", "pco2", "bicarbonate", "disorder"),
    [
        (734, 35, 21, "Metabolic acidosis"),
        (734, 46, 24, "Respiratory acidosis"),
        (746, 45, 27, "Metabolic alkalosis"),
        (746, 34, 24, "Respiratory alkalosis"),
    ],
)
def test_the_disorder_that_explains_the_ph_is_primary(
    ph_hundredths: int, pco2: int, bicarbonate: int, disorder: str
) -> None:
    assert cc.primary_disorder(ph_hundredths, pco2, bicarbonate) == disorder


@pytest.mark.parametrize(
    ("ph_hundredths", "pco2", "bicarbonate"),
    [(735, 30, 18), (745, 30, 30), (734, 46, 21), (734, 45, 22), (746, 34, 27), (746, 35, 26)],
)
def test_normal_mixed_and_unexplained_ph_name_no_primary_disorder(
    ph_hundredths: int, pco2: int, bicarbonate: int
) -> None:
    with pytest.raises(ValueError, match="no single primary disorder"):
        cc.primary_disorder(ph_hundredths, pco2, bicarbonate)


@pytest.mark.parametrize(
    ("arguments", "points"),
    [
        ((False, 7, 29, (90, 61), 64), 0),
        ((True, 7, 29, (90, 61), 64), 1),
        ((False, 8, 29, (90, 61), 64), 1),
        ((False, 7, 30, (90, 61), 64), 1),
        ((False, 7, 29, (89, 61), 64), 1),
        ((False, 7, 29, (90, 60), 64), 1),
        ((False, 7, 29, (89, 60), 64), 1),
        ((False, 7, 29, (90, 61), 65), 1),
        ((True, 8, 30, (89, 60), 65), 5),
    ],
)
def test_curb65_gives_a_point_exactly_from_each_threshold(
    arguments: tuple[bool, int, int, tuple[int, int], int], points: int
) -> None:
    assert sum(cc.curb65_points(*arguments)) == points


@pytest.mark.parametrize(
    ("rate", "systolic", "gcs", "points"),
    [(21, 101, 15, 0), (22, 101, 15, 1), (21, 100, 15, 1), (21, 101, 14, 1), (22, 100, 14, 3)],
)
def test_qsofa_gives_a_point_exactly_from_each_threshold(rate: int, systolic: int, gcs: int, points: int) -> None:
    assert sum(cc.qsofa_points(rate, systolic, gcs)) == points


def test_coma_scales_that_contradict_themselves_are_left_out() -> None:
    assert not cc.coherent(1, 5, 6)  # oriented talk with closed eyes
    assert not cc.coherent(4, 5, 1)  # oriented talk without any movement
    assert cc.coherent(4, 5, 6) and cc.coherent(1, 1, 1)
    assert {sum(parts) for parts in cc.COMA_SCALES} == set(range(3, 16))


def test_gases_and_electrolytes_stay_physiological(many: dict[str, list[Example]]) -> None:
    for case in many["acid_base"]:
        found = re.search(r"pH ([\d.]+), pCO2 (\d+) mmHg, HCO3 (\d+)", case.question)
        assert found
        ph, pco2, bicarbonate = (float(part) for part in found.groups())
        hydrogen = 24 * pco2 / bicarbonate  # Henderson's equation in nmol/L
        assert hydrogen == pytest.approx(10 ** (9 - ph), rel=0.03) and 7.1 < ph < 7.7
    for case in many["anion_gap"]:
        sodium, chloride, _ = (int(part) for part in re.findall(r"(?:Na|Cl|HCO3) (\d+)", case.question))
        assert 133 <= sodium <= 145 and 92 <= chloride <= 115
    for case in many["blood_pressure"]:
        systolic, diastolic = numbers(case.question)[1:3]
        assert 20 <= systolic - diastolic <= 110


@pytest.mark.parametrize(
    ("predicted", "expected", "same"),
    [
        ("Stage G3b", "Stage G3b", True),
        ("  stage\n g3B ", "Stage G3b", True),
        ("**Stage G3b**", "Stage G3b", True),
        ("**Stage G3b.**", "Stage G3b", True),
        ("**Stage G3b**.", "Stage G3b", True),
        ("* Stage G3b *", "Stage G3b", True),
        ("QSOFA 2,  positive.", "qSOFA 2, positive", True),
        ("Stage G3a", "Stage G3b", False),
        ("Stage G3", "Stage G3b", False),
        ("Stage G3b or G4", "Stage G3b", False),
        ("The answer is Stage G3b", "Stage G3b", False),
        ("StageG3b", "Stage G3b", False),
        ("Stage G3b...", "Stage G3b", False),
        ("Obesity class I", "Obesity class II", False),
        ("", "Stage G3b", False),
        ("", "", False),
        (" \n", "", False),
        ("**", "", False),
        (".", ".", False),
    ],
)
def test_answers_match_apart_from_case_space_asterisks_and_full_stop(predicted: str, expected: str, same: bool) -> None:
    assert answers_match(predicted, expected) is same


def test_an_unknown_kind_is_refused_with_the_known_ones_in_one_line() -> None:
    with pytest.raises(ValueError, match="flu") as refusal:
        generate_cases(3, seed=0, kinds=["anaemia", "flu"])
    assert all(kind in str(refusal.value) for kind in KINDS) and "\n" not in str(refusal.value)


def test_no_kinds_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="none given"):
        generate_cases(3, seed=0, kinds=[])


@pytest.mark.parametrize("count", [0, -4])
def test_a_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {count}"):
        generate_cases(count, seed=0)


def coin(rng: random.Random) -> Example:
    return Example(rng.choice(("heads?", "tails?")), "", "coin")


def test_more_cases_than_exist_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "coin", coin)
    assert len(generate_cases(2, seed=0, kinds=["coin"])) == 2
    with pytest.raises(ValueError, match="only 2 distinct cases could be made, not 3"):
        generate_cases(3, seed=0, kinds=["coin"])


def test_other_kinds_fill_up_for_one_that_runs_dry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "coin", coin)
    answers = Counter(case.answer == "coin" for case in generate_cases(50, seed=0, kinds=["coin", "anaemia"]))
    assert answers == {True: 2, False: 48}
