"""Clinical cases made by rule, to train and check a small model without any download.

Each kind applies one published definition. It draws the answer class first, so that classes are balanced,
then plausible values within it, all whole numbers (BMI and HbA1c in tenths). Every answer follows from its
question. Every kind holds over 10,000 distinct questions; if one runs dry, the others fill up.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from medreason.models.prompts import Example

REDRAWS = 200  # so many repeated questions in a row, and a kind counts as exhausted


class Band(NamedTuple):
    """A class of a measurement.

    The start of the lowest band and the end of the highest are no thresholds: they keep values plausible.
    """

    name: str
    lowest: int
    highest: int


Bands = tuple[Band, ...]  # ascending, without gaps

# fmt: off
KIDNEY_STAGES: Bands = (
    Band("G5", 5, 14), Band("G4", 15, 29), Band("G3b", 30, 44), Band("G3a", 45, 59), Band("G2", 60, 89),
    Band("G1", 90, 120),
)
HEAD_INJURY: Bands = (Band("Severe", 3, 8), Band("Moderate", 9, 12), Band("Mild", 13, 15))
ANION_GAP: Bands = (Band("Low", 3, 7), Band("Normal", 8, 12), Band("High", 13, 26))
MCV: Bands = (Band("Microcytic", 60, 79), Band("Normocytic", 80, 100), Band("Macrocytic", 101, 125))
GLUCOSE: Bands = (Band("Normal glucose", 72, 99), Band("Prediabetes", 100, 125), Band("Diabetes", 126, 190))
HBA1C: Bands = (Band("Normal glucose", 45, 56), Band("Prediabetes", 57, 64), Band("Diabetes", 65, 89))
BMI: Bands = (
    Band("Underweight", 150, 184), Band("Normal weight", 185, 249), Band("Overweight", 250, 299),
    Band("Obesity class I", 300, 349), Band("Obesity class II", 350, 399),
    Band("Obesity class III", 400, 519),
)
CURB65: Bands = (Band("Low", 0, 1), Band("Intermediate", 2, 2), Band("High", 3, 5))
QSOFA: Bands = (Band("negative", 0, 1), Band("positive", 2, 3))
ANAEMIA_BELOW = {"man": 130, "woman": 120}  # haemoglobin in g/L

# Ranges to draw from, systolic then diastolic: either pressure, or both, may put a patient in a category.
PRESSURES = {
    "Normal": ((105, 119, 60, 79),),
    "Elevated": ((120, 129, 60, 79),),
    "Stage 1 hypertension": ((130, 139, 66, 79), (130, 139, 80, 89), (118, 129, 80, 89)),
    "Stage 2 hypertension": ((140, 178, 70, 89), (140, 178, 90, 108), (130, 139, 90, 99)),
}
# fmt: on


def band_of(bands: Bands, value: int) -> Band:
    return next((band for band in reversed(bands) if value >= band.lowest), bands[0])


def limits(bands: Bands, band: Band, show: Callable[[int], str] = str) -> str:
    """The limits of a band as a sentence of reasoning quotes them."""
    if band == bands[0]:
        return f"below {show(bands[1].lowest)}"
    if band == bands[-1]:
        return f"{show(band.lowest)} or more"
    return f"in {show(band.lowest)}-{show(band.highest)}" if band.lowest < band.highest else show(band.lowest)


def tenths(value: int) -> str:
    return f"{value // 10}.{value % 10}"


def draw(rng: random.Random, bands: Bands) -> tuple[Band, int]:
    band = rng.choice(bands)
    return band, rng.randint(band.lowest, band.highest)


def patient(rng: random.Random, youngest: int = 18, oldest: int = 90, sex: str = "") -> str:
    age, sex = rng.randint(youngest, oldest), sex or rng.choice(("man", "woman"))
    return f"{'An' if age == 18 or 80 <= age <= 89 else 'A'} {age}-year-old {sex}"


def ask(rng: random.Random, who: str, findings: str, question: str) -> str:
    return f"{who} {rng.choice(('has', 'presents with', 'is found to have'))} {findings}. {question}"


def choose_criteria(rng: random.Random, criteria: int, met: int) -> list[bool]:
    chosen = [True] * met + [False] * (criteria - met)
    rng.shuffle(chosen)
    return chosen


def one_of(rng: random.Random, met: bool, meeting: tuple[int, int], other: tuple[int, int]) -> int:
    """A value from the range that meets a criterion, or from the one that does not."""
    return rng.randint(*(meeting if met else other))


def scored(findings: Sequence[str], met: Sequence[bool]) -> str:
    """Findings with a point each where the criterion is met, and their sum."""
    points = ", ".join(f"{finding}: {int(point)}" for finding, point in zip(findings, met, strict=True))
    return f"{points}. Sum {sum(met)}"


def kidney_stage(rng: random.Random) -> Example:
    """GFR category from eGFR. KDIGO guideline on chronic kidney disease 2012, unchanged in 2024."""
    band, egfr = draw(rng, KIDNEY_STAGES)
    who = patient(rng, oldest=60 if band.name == "G1" else 90)  # so high a filtration is rare in old age
    question = ask(rng, who, f"a stable eGFR of {egfr} mL/min/1.73m2", "KDIGO stage, G1 to G5?")
    reasoning = f"eGFR {egfr} is {limits(KIDNEY_STAGES, band)}, which is {band.name}."
    return Example(question, reasoning, f"Stage {band.name}")


def pressure_category(systolic: int, diastolic: int) -> str:
    if systolic >= 140 or diastolic >= 90:
        return "Stage 2 hypertension"
    if systolic >= 130 or diastolic >= 80:
        return "Stage 1 hypertension"
    return "Elevated" if systolic >= 120 else "Normal"


def blood_pressure(rng: random.Random) -> Example:
    """The higher category of two mean pressures. ACC/AHA guideline on high blood pressure, Whelton 2017."""
    lowest_sys, highest_sys, lowest_dia, highest_dia = rng.choice(PRESSURES[rng.choice(tuple(PRESSURES))])
    systolic, diastolic = rng.randint(lowest_sys, highest_sys), rng.randint(lowest_dia, highest_dia)
    findings = f"a mean office blood pressure of {systolic}/{diastolic} mmHg"
    category = pressure_category(systolic, diastolic)
    reasoning = (
        f"Systolic {systolic} is {pressure_category(systolic, 0).lower()}. Diastolic {diastolic} is "
        f"{pressure_category(0, diastolic).lower()}. The higher counts: {category.lower()}."
    )
    return Example(ask(rng, patient(rng), findings, "ACC/AHA 2017 category?"), reasoning, category)


def coherent(eyes: int, verbal: int, motor: int) -> bool:
    """Whether responses fit together: who talks is awake, who obeys is not mute; the limp are neither."""
    if verbal >= 4:
        return eyes >= 3 and motor >= 5
    if verbal == 3 or motor == 6:
        return eyes >= 2 and motor >= 4 and verbal >= 2
    return motor >= 4 or (eyes <= 2 and verbal <= motor)


# fmt: off
COMA_SCALES = [
    (eyes, verbal, motor) for eyes in range(1, 5) for verbal in range(1, 6) for motor in range(1, 7)
    if coherent(eyes, verbal, motor)
]
# fmt: on


def coma_scale(rng: random.Random) -> Example:
    """Glasgow Coma Scale. Teasdale & Jennett 1974 (with 15 points 1976), severity as in Rimel 1982."""
    band = rng.choice(HEAD_INJURY)
    possible = [parts for parts in COMA_SCALES if band_of(HEAD_INJURY, sum(parts)) == band]
    eyes, verbal, motor = rng.choice(possible)
    findings = f"GCS E{eyes} V{verbal} M{motor} after a blow to the head"
    total = eyes + verbal + motor
    question = ask(rng, patient(rng), findings, "Mild, moderate or severe head injury?")
    span = f"{band.lowest}-{band.highest}"
    reasoning = f"GCS is {eyes} + {verbal} + {motor} = {total}. {total} is in {span}: {band.name.lower()}."
    return Example(question, reasoning, f"{band.name} head injury")


def anion_gap(rng: random.Random) -> Example:
    """Na - (Cl + HCO3), normal 8-12 mmol/L, high above 12. Emmett & Narins 1977."""
    band, gap = draw(rng, ANION_GAP)
    if band.name == "High":  # unmeasured acid uses up about as much bicarbonate as it adds to the gap
        sodium, bicarbonate = rng.randint(133, 145), 36 - gap + rng.randint(-1, 1)
    else:
        sodium, bicarbonate = rng.randint(133, 139), rng.randint(22, 26)
    chloride = sodium - bicarbonate - gap
    findings = f"Na {sodium}, Cl {chloride}, HCO3 {bicarbonate} mmol/L"
    question = ask(rng, patient(rng), findings, "Anion gap low, normal (8-12) or high?")
    anions = chloride + bicarbonate
    reasoning = (
        f"Cl + HCO3 = {chloride} + {bicarbonate} = {anions}. {sodium} - {anions} = {gap}. "
        f"{gap} is {limits(ANION_GAP, band)}: {band.name.lower()}."
    )
    return Example(question, reasoning, f"{band.name} anion gap")


def compensated_gases(rng: random.Random, disorder: str) -> tuple[int, int]:
    """pCO2 in mmHg and HCO3 in mmol/L, with the compensation that Berend 2014 expects of the disorder."""
    spread = rng.randint(0, 1)
    if disorder == "Metabolic acidosis":  # pCO2 = 1.5 HCO3 + 8
        bicarbonate = rng.randint(8, 17)
        return (3 * bicarbonate + 16) // 2 + spread, bicarbonate
    if disorder == "Metabolic alkalosis":  # pCO2 = 40 + 0.7 (HCO3 - 24)
        bicarbonate = rng.randint(32, 42)
        return 40 + 7 * (bicarbonate - 24) // 10 + spread, bicarbonate
    if disorder == "Respiratory acidosis":  # acute: HCO3 up by 1 for each 10 mmHg
        pco2 = rng.randint(50, 80)
        return pco2, 24 + (pco2 - 40) // 10 + spread
    pco2 = rng.randint(20, 32)  # acute respiratory alkalosis: HCO3 down by 2 for each 10 mmHg
    return pco2, 24 - (40 - pco2) // 5 - spread


def primary_disorder(ph_hundredths: int, pco2: int, bicarbonate: int) -> str:
    """The one disorder that explains the pH. ValueError if the pH is normal, or both do, or neither."""
    acid = ph_hundredths < 735
    metabolic = bicarbonate < 22 if acid else bicarbonate > 26
    respiratory = pco2 > 45 if acid else pco2 < 35
    if 735 <= ph_hundredths <= 745 or metabolic == respiratory:
        raise ValueError("no single primary disorder explains these values")
    return f"{'Metabolic' if metabolic else 'Respiratory'} {'acidosis' if acid else 'alkalosis'}"


def acid_base(rng: random.Random) -> Example:
    """Primary disorder from pH (by Henderson-Hasselbalch), pCO2, HCO3. Berend, de Vries & Gans 2014."""
    origin, direction = rng.choice(("Metabolic", "Respiratory")), rng.choice(("acidosis", "alkalosis"))
    pco2, bicarbonate = compensated_gases(rng, f"{origin} {direction}")
    ph_hundredths = round(100 * (6.1 + math.log10(bicarbonate / (0.03 * pco2))))
    ph = f"{ph_hundredths // 100}.{ph_hundredths % 100:02d}"
    findings = f"pH {ph}, pCO2 {pco2} mmHg, HCO3 {bicarbonate} mmol/L"
    side, metabolic_cause, respiratory_cause = {
        "acidosis": ("below 7.35", f"HCO3 {bicarbonate} is below 22", f"pCO2 {pco2} is above 45"),
        "alkalosis": ("above 7.45", f"HCO3 {bicarbonate} is above 26", f"pCO2 {pco2} is below 35"),
    }[direction]
    cause = metabolic_cause if origin == "Metabolic" else respiratory_cause
    reasoning = f"pH {ph} is {side}: {direction}. {cause}, which explains it: {origin.lower()}."
    question = ask(rng, patient(rng), findings, "Primary acid-base disorder?")
    return Example(question, reasoning, primary_disorder(ph_hundredths, pco2, bicarbonate))


def anaemia_type(sex: str, haemoglobin: int, mcv: int) -> str:
    return f"{band_of(MCV, mcv).name} anaemia" if haemoglobin < ANAEMIA_BELOW[sex] else "No anaemia"


def anaemia(rng: random.Random) -> Example:
    """Anaemia by haemoglobin, WHO 2011 and 2024 (the same for adults to 65); its type by MCV 80-100 fL."""
    sex, band = rng.choice(("man", "woman")), rng.choice((*MCV, None))
    limit = ANAEMIA_BELOW[sex]
    who = patient(rng, oldest=65, sex=sex if sex == "man" else "woman, not pregnant,")
    if band is None:  # cells of normal size, so that nothing is left to explain
        haemoglobin, mcv = rng.randint(limit, limit + 35), rng.randint(82, 98)
        verdict = "not below: no anaemia."
    else:
        haemoglobin, mcv = rng.randint(70, limit - 1), rng.randint(band.lowest, band.highest)
        verdict = f"below: anaemia. MCV {mcv} is {limits(MCV, band)}: {band.name.lower()}."
    findings = f"haemoglobin {haemoglobin} g/L and MCV {mcv} fL"
    question = ask(rng, who, findings, "Which anaemia by MCV, if any by WHO?")
    reasoning = f"For a {sex} the limit is {limit}. {haemoglobin} is {verdict}"
    return Example(question, reasoning, anaemia_type(sex, haemoglobin, mcv))


def diabetes(rng: random.Random) -> Example:
    """Fasting glucose and HbA1c that agree, as a diagnosis asks. ADA Standards of Care in Diabetes 2024."""
    glucose_band, hba1c_band = rng.choice(tuple(zip(GLUCOSE, HBA1C, strict=True)))
    glucose = rng.randint(glucose_band.lowest, glucose_band.highest)
    hba1c = rng.randint(hba1c_band.lowest, hba1c_band.highest)
    findings = f"fasting glucose {glucose} mg/dL and HbA1c {tenths(hba1c)}%"
    reasoning = (
        f"Glucose {glucose} is {limits(GLUCOSE, glucose_band)}. HbA1c {tenths(hba1c)} is "
        f"{limits(HBA1C, hba1c_band, tenths)}. Both mean {glucose_band.name.lower()}."
    )
    question = ask(rng, patient(rng), findings, "Normal glucose, prediabetes or diabetes by ADA?")
    return Example(question, reasoning, glucose_band.name)


def body_mass(rng: random.Random) -> Example:
    """Class of the body mass index in adults. WHO Technical Report Series 894, 2000."""
    band, bmi = draw(rng, BMI)
    question = ask(rng, patient(rng), f"a BMI of {tenths(bmi)} kg/m2", "WHO weight class?")
    return Example(question, f"BMI {tenths(bmi)} is {limits(BMI, band, tenths)}: {band.name}.", band.name)


def curb65_points(confused: bool, urea: int, rate: int, pressure: tuple[int, int], age: int) -> list[bool]:
    systolic, diastolic = pressure
    return [confused, urea > 7, rate >= 30, systolic < 90 or diastolic <= 60, age >= 65]


def pneumonia_risk(rng: random.Random) -> Example:
    """CURB-65 in pneumonia from outside hospital: 0-1 low, 2 intermediate, 3-5 high risk. Lim 2003."""
    band, points = draw(rng, CURB65)
    confused, uraemic, fast, hypotensive, old = choose_criteria(rng, 5, points)
    urea, rate = one_of(rng, uraemic, (8, 20), (3, 7)), one_of(rng, fast, (30, 40), (14, 29))
    systolic = one_of(rng, hypotensive, (80, 112), (110, 150))
    diastolic = one_of(rng, hypotensive, (46, 60), (61, 85))
    age, state = one_of(rng, old, (65, 92), (18, 64)), "confused" if confused else "alert"
    values = f"urea {urea} mmol/L, breaths {rate}/min, blood pressure {systolic}/{diastolic}"
    who = f"{patient(rng, age, age)}, {state}, with pneumonia"
    pressure = f"pressure {systolic}/{diastolic}"
    findings = (state.capitalize(), f"urea {urea}", f"breaths {rate}", pressure, f"age {age}")
    total = scored(findings, curb65_points(confused, urea, rate, (systolic, diastolic), age))
    reasoning = f"{total}, and {limits(CURB65, band)} is {band.name.lower()} risk."
    question = ask(rng, who, values, "CURB-65 risk low, intermediate or high?")
    return Example(question, reasoning, f"{band.name} risk")


def qsofa_points(rate: int, systolic: int, gcs: int) -> list[bool]:
    return [rate >= 22, systolic <= 100, gcs < 15]


def sepsis_score(rng: random.Random) -> Example:
    """qSOFA in suspected infection, positive from 2 points. Sepsis-3, Singer 2016."""
    band, points = draw(rng, QSOFA)
    fast, hypotensive, drowsy = choose_criteria(rng, 3, points)
    rate, gcs = one_of(rng, fast, (22, 34), (12, 21)), one_of(rng, drowsy, (10, 14), (15, 15))
    systolic = one_of(rng, hypotensive, (76, 100), (101, 145))
    values = f"breaths {rate}/min, systolic {systolic} mmHg, GCS {gcs}"
    findings = (f"Breaths {rate}", f"systolic {systolic}", f"GCS {gcs}")
    total = scored(findings, qsofa_points(rate, systolic, gcs))
    reasoning = f"{total}, and {limits(QSOFA, band)} is {band.name}."
    question = ask(rng, f"{patient(rng)} with an infection", values, "qSOFA score, positive or negative?")
    return Example(question, reasoning, f"qSOFA {points}, {band.name}")


# fmt: off
KINDS: dict[str, Callable[[random.Random], Example]] = {
    make.__name__: make for make in (
        kidney_stage, blood_pressure, coma_scale, anion_gap, acid_base,
        anaemia, diabetes, body_mass, pneumonia_risk, sepsis_score,
    )
}
# fmt: on


def generate_cases(count: int, seed: int, kinds: Sequence[str] | None = None) -> list[Example]:
    """`count` cases with distinct questions, kinds taking turns in shuffled rounds. Same seed, same list."""
    names = list(KINDS) if kinds is None else list(dict.fromkeys(kinds))
    unknown = ", ".join(name for name in names if name not in KINDS)
    if unknown or not names:
        raise ValueError(f"unknown kinds of case: {unknown or 'none given'}. Known are {', '.join(KINDS)}")
    if count < 1:
        raise ValueError(f"the number of cases must be at least 1, not {count}")
    rng = random.Random(seed)
    cases: dict[str, Example] = {}  # by question
    while names and len(cases) < count:
        rng.shuffle(names)
        for name in names[: count - len(cases)]:
            drawn = (KINDS[name](rng) for _ in range(REDRAWS))
            fresh = next((case for case in drawn if case.question not in cases), None)
            if fresh is None:
                names = [other for other in names if other != name]
            else:
                cases[fresh.question] = fresh
    if len(cases) < count:
        raise ValueError(f"only {len(cases)} distinct cases could be made, not {count}")
    return list(cases.values())


def normalised(answer: str) -> str:
    # asterisks go twice: the full stop may stand inside or behind them
    return " ".join(answer.casefold().split()).strip("* ").removesuffix(".").strip("* ")


def answers_match(predicted: str, expected: str) -> bool:
    """Equal but for case, white space, asterisks around and one full stop at the end. Empty never matches."""
    return normalised(predicted) != "" and normalised(predicted) == normalised(expected)
