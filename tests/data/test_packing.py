import random
import time

import numpy as np
import pytest

from medreason.core.json_lines import read_json_lines
from medreason.data.packing import best_fit, pack
from support import SHARED


def fill(lengths: list[int], rows: list[list[int]], row_tokens: int) -> float:
    """Share of the rows' tokens that are document, in (0, 1]."""
    return sum(lengths) / (len(rows) * row_tokens)


def real_lengths(count: int, seed: int = 1) -> list[int]:
    """Lengths like the English rows' with the Mistral v0.3 tokenizer: mean 776, 5% below 548, 5% above 1,041."""
    mixed = np.random.default_rng(seed).gamma(27, 776 / 27, count)
    return np.clip(mixed, 370, 1414).astype(int).tolist()


def test_every_document_stands_in_exactly_one_row_and_no_row_overflows() -> None:
    rng = random.Random(0)
    for _ in range(300):
        row = rng.randint(1, 60)
        lengths = [rng.randint(1, row) for _ in range(rng.randint(1, 80))]
        rows = pack(lengths, row)
        assert sorted(index for members in rows for index in members) == list(range(len(lengths)))
        assert all(0 < sum(lengths[index] for index in members) <= row for members in rows)
        assert len(rows) <= len(best_fit(lengths, row))


def test_a_document_goes_into_the_fullest_row_that_has_room() -> None:
    # 7 and 6 open rows with 3 and 4 left; 3 closes the first exactly, 4 the second: worst fit would need a third row
    assert best_fit([7, 6, 4, 3], 10) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(("row_tokens", "least"), [(2048, 0.92), (4096, 0.985), (8192, 0.995), (16384, 0.995)])
def test_rows_are_nearly_full_at_real_lengths(row_tokens: int, least: float) -> None:
    lengths = real_lengths(19_704)
    assert fill(lengths, pack(lengths, row_tokens), row_tokens) >= least


def test_rows_hold_documents_of_all_lengths_so_that_steps_are_alike() -> None:
    lengths = real_lengths(5000)
    by_chance = np.std(lengths) / np.sqrt(8192 / 776)

    def spread(rows: list[list[int]]) -> float:
        return float(np.std([np.mean([lengths[index] for index in members]) for members in rows]))

    assert spread(pack(lengths, 8192)) < 1.6 * by_chance
    assert spread(best_fit(lengths, 8192)) > 2.5 * by_chance, "best fit alone would fail this test"


def test_the_cost_grows_with_the_documents_and_not_with_their_square() -> None:
    def seconds(count: int) -> float:
        lengths = real_lengths(count)
        began = time.perf_counter()
        pack(lengths, 8192)
        return time.perf_counter() - began

    assert seconds(40_000) < 20 * max(seconds(5_000), 0.01)  # a square would be 64 times


def test_the_result_depends_on_lengths_alone() -> None:
    assert pack([3, 2, 4, 1, 3], 6) == pack([3, 2, 4, 1, 3], 6)


def test_a_document_longer_than_a_row_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match="document 1 has 7 tokens, a row 6"):
        pack([6, 7], 6)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared rows are not here")
@pytest.mark.parametrize(("row_tokens", "least"), [(2048, 0.93), (4096, 0.985), (8192, 0.995)])
def test_rows_are_as_full_as_promised_at_the_lengths_of_the_real_rows(row_tokens: int, least: float) -> None:
    """The 552 real rows' lengths in characters, scaled to 776 tokens, drawn 19,704 times with some noise."""
    rows = read_json_lines(SHARED / "medical_o1_en.jsonl")
    characters = np.array([sum(map(len, row.values())) for row in rows])
    rng = np.random.default_rng(0)
    drawn = rng.choice(characters, 19_704) * 776 / characters.mean() * rng.normal(1, 0.04, 19_704)
    lengths = np.clip(drawn.astype(int), 1, row_tokens).tolist()
    assert fill(lengths, pack(lengths, row_tokens), row_tokens) >= least
