import random

import pytest

from medreason.packing import fill, pack


def test_every_document_stands_in_exactly_one_row_and_no_row_overflows() -> None:
    rng = random.Random(0)
    for _ in range(200):
        row = rng.randint(1, 60)
        lengths = [rng.randint(1, row) for _ in range(rng.randint(1, 80))]
        rows = pack(lengths, row)
        assert sorted(index for members in rows for index in members) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in members) <= row for members in rows)


def test_a_document_goes_into_the_fullest_row_that_has_room() -> None:
    # 7 and 6 open rows with 3 and 4 left; 3 closes the first exactly, 4 the second: worst fit would need a third row
    assert pack([7, 6, 4, 3], 10) == [[0, 3], [1, 2]]


def test_rows_are_nearly_full_at_real_lengths() -> None:
    rng = random.Random(1)
    lengths = [min(1303, max(200, int(rng.gauss(776, 160)))) for _ in range(5000)]
    assert fill(lengths, pack(lengths, 8192), 8192) > 0.985
    assert fill(lengths, pack(lengths, 2048), 2048) > 0.9


def test_the_result_depends_on_lengths_alone() -> None:
    assert pack([3, 2, 4, 1, 3], 6) == pack([3, 2, 4, 1, 3], 6) == [[2, 1], [0, 4], [3]]


def test_a_document_longer_than_a_row_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match="document 1 has 7 tokens, a row 6"):
        pack([6, 7], 6)
