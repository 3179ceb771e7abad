"""Cutting rows into batches: every row once, within the limits, with little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trunkline.engine.shapes import ROWS, cut, rows_for, tokens_for

lengths_of = st.lists(st.integers(1, 512), min_size=1, max_size=80)


@given(lengths_of, st.sampled_from([64, 1024, 4096]), st.sampled_from([1, 5, 256]))
def test_every_row_stands_in_one_batch_that_holds_it(lengths: list[int], max_tokens: int, max_rows: int) -> None:
    cuts = cut(lengths, max_tokens=max_tokens, max_rows=max_rows)
    members = np.concatenate([batch.members for batch in cuts])
    assert sorted(members) == list(range(len(lengths)))
    for batch in cuts:
        longest = max(lengths[i] for i in batch.members)
        assert longest <= batch.tokens == tokens_for(longest)
        assert len(batch.members) <= batch.rows
        assert batch.rows in ROWS
        assert batch.rows <= max_rows
        assert batch.rows == 1 or batch.rows * batch.tokens <= max_tokens


@given(lengths_of)
def test_no_batch_has_tokens_beyond_the_longest_that_an_encoder_takes(lengths: list[int]) -> None:
    assert max(batch.tokens for batch in cut(lengths, max_tokens=4096, longest=512)) <= 512


@given(st.integers(0, 99))
def test_a_thousand_texts_of_mixed_length_are_padded_by_less_than_a_tenth(seed: int) -> None:
    lengths = np.random.default_rng(seed).geometric(1 / 20, size=1000).clip(3, 128).tolist()
    cuts = cut(lengths, max_tokens=4096)
    assert sum(batch.rows * batch.tokens for batch in cuts) < 1.1 * sum(lengths)


def test_rows_and_tokens_are_rounded_up_to_few_sizes() -> None:
    assert [rows_for(count) for count in (1, 5, 33, 9999)] == [1, 6, 48, ROWS[-1]]
    assert [tokens_for(length) for length in (1, 9, 64, 65, 300)] == [4, 10, 64, 72, 320]
    assert tokens_for(50, longest=50) == 50
