import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from psa_triton.pyramid import pyramid_layout, row_tables
from psa_triton.schedule import make_schedule


def rows_of(layout, level, block):
    count = layout.block_n // level
    first = layout.first_row(level) + block * count
    return list(range(first, first + count))


def test_lists_computed_by_hand():
    # Blocks of 16: a unit is 2 rows; 3 blocks at level 1 are rows 0-47 (units 0-23), level 2 starts at unit 24,
    # level 4 at unit 36, level 8 at unit 42, and level 16 at row 90.
    layout = pyramid_layout(48, 16, 16)
    levels = torch.tensor([[1, 0, 8], [16, 2, 0]], dtype=torch.int8)
    schedule = make_schedule(levels, layout)
    assert schedule.unit_start == [0, 9, 13]
    assert schedule.units[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 44]
    assert schedule.units[9:].tolist() == [28, 29, 30, 31]
    assert schedule.row_start == [0, 0, 1]
    assert schedule.rows.tolist() == [90]


@given(st.data())
def test_every_row_with_tokens_of_every_chosen_block_is_listed_once(data):
    block_n = data.draw(st.sampled_from([8, 32, 64]))
    blocks, queries = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    allowed = [0] + [level for level in (1, 2, 4, 8, 16, 32, 64) if level <= block_n]
    chosen = data.draw(
        st.lists(
            st.lists(st.sampled_from(allowed), min_size=blocks, max_size=blocks), min_size=queries, max_size=queries
        )
    )
    levels = torch.tensor(chosen, dtype=torch.int8)
    layout = pyramid_layout(blocks * block_n - data.draw(st.integers(0, block_n - 1)), block_n, int(levels.max()))
    schedule = make_schedule(levels, layout)
    has_token = row_tables(layout, levels.device).log_count > -math.inf
    for i, row in enumerate(chosen):
        units = schedule.units[schedule.unit_start[i] : schedule.unit_start[i + 1]].tolist()
        listed = [u * layout.unit + r for u in units for r in range(layout.unit)]
        listed += schedule.rows[schedule.row_start[i] : schedule.row_start[i + 1]].tolist()
        expected = [r for block, level in enumerate(row) if level for r in rows_of(layout, level, block)]
        assert set(listed) <= set(expected) and len(listed) == len(set(listed))
        assert {r for r in expected if has_token[r]} <= set(listed)
        assert all(has_token[u * layout.unit : (u + 1) * layout.unit].any() for u in units)
