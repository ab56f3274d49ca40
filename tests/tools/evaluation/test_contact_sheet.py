from __future__ import annotations

import numpy as np

from psa_triton.tools.evaluation.frames import DIFFERENCE_GAIN, contact_sheet


def test_rows_are_dense_psa_and_their_amplified_difference() -> None:
    dense = np.full((9, 16, 16, 3), 100, np.uint8)
    sheet = contact_sheet(dense, {"psa": dense + 10}, columns=3, min_height=16)
    rows = np.split(sheet, 3)
    for row, value in zip(rows, (100, 110, 10 * DIFFERENCE_GAIN), strict=True):
        pictures = row[-20:-4]  # 16 pixels high, above a gap of 4
        assert [(pictures[:, x : x + 16] == value).all() for x in (0, 20, 40)] == [True] * 3


def test_columns_are_spread_over_the_video_first_and_last_included() -> None:
    video = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 16, 16, 3))
    dense_row = np.split(contact_sheet(video, {"psa": video}, columns=3, min_height=16), 3)[0]
    assert [int(dense_row[-10, x, 0]) for x in (8, 28, 48)] == [0, 4, 8]


def test_a_short_video_has_no_frame_twice() -> None:
    video = np.zeros((2, 16, 16, 3), np.uint8)
    assert contact_sheet(video, {"psa": video}, columns=6, min_height=16).shape[1] == 2 * (16 + 4)
