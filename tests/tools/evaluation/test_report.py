"""The report as a file: complete, self-contained, and its data what the run recorded."""

import base64
import html
import json
import re
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from psa_triton.tools.evaluation.case import case_data, write_case
from psa_triton.tools.evaluation.frames import DIFFERENCE_GAIN, contact_sheet, web_frames
from psa_triton.tools.evaluation.levels_record import CallSite
from psa_triton.tools.evaluation.report import case_report, case_view
from psa_triton.tools.video import to_uint8


def data_of(page):
    """The data that a page holds."""
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block.group(1))


def image(uri):
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_one_file_holds_everything(case, comparison, described):
    write_case(case, comparison, described)
    page = (case.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<!--[A-Z]+-->", page), "all parts are filled in"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "default-src 'none'" in page
    data = data_of(page)
    assert data["title"] == comparison.request.prompt
    verdicts = re.search(r"<h1>(.*?)</h1>", page).group(1)
    assert verdicts == html.escape(data["verdicts"][0]["answer"]), "read without scripts"
    assert data["command"] == "psa compare"
    assert data["table"]["header"] == [
        *(verdict["label"] for verdict in data["verdicts"]),
        "dense",
        "ceiling (dense in bfloat16)",
    ]


def test_text_cannot_end_the_block_of_data(case, comparison, described):
    prompt = "</script><script>alert(1)</script> <!--DATA--> & é"
    evil = replace(case, settings={**case.settings, "prompt": prompt})
    page = case_report(case_data(evil, comparison, described), comparison).decode()
    assert "<script>alert" not in page
    assert data_of(page)["title"] == prompt


def test_small_frames_are_kept_exactly(comparison):
    view = case_view(comparison)["video"]
    assert view["exact"]
    assert (view["width"], view["height"], view["count"]) == (64, 64, 17)
    for label, frames in (("dense", comparison.dense.frames), ("half", comparison.candidates[0].video.frames)):
        assert np.array_equal(image(view["frames"][label][5]), to_uint8(frames)[5])


def test_a_sheet_has_rows_of_dense_psa_and_their_amplified_difference_spread_over_the_video():
    dense = np.broadcast_to(10 * np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 16, 16, 3))
    rows = np.split(contact_sheet(dense, {"psa": dense + 10}, columns=3, min_height=16), 3)
    # Pictures of 16 pixels, with a gap of 4 after each; first, middle and last frame.
    found = [[int(row[-10, x, 0]) for x in (8, 28, 48)] for row in rows]
    assert found == [[0, 40, 80], [10, 50, 90], [10 * DIFFERENCE_GAIN] * 3]
    assert contact_sheet(dense[:2], {"psa": dense[:2]}, columns=6, min_height=16).shape[1] == 2 * (16 + 4)


def test_frames_that_do_not_fit_are_compressed():
    noise = np.random.default_rng(0).random((3, 64, 64, 3), dtype=np.float32)
    assert web_frames({"a": noise})[1]
    images, exact = web_frames({"a": noise}, max_bytes=3000)
    assert not exact
    assert image(images["a"][2]).shape == (64, 64, 3)


def test_densities_of_all_layers_heads_and_steps(comparison):
    half, full = (case_view(comparison)["reads"][label] for label in ("half", "full"))
    assert half["layers"] == [{"transformer": "transformer", "layer": layer} for layer in (0, 1)]
    assert half["density"] == [["warm-up", [0.35, 0.35]], ["warm-up", [0.35, 0.35]]]
    assert full["density"] == [[[1.0, 1.0], [1.0, 1.0]]] * 2


def test_level_maps_are_those_of_the_run(comparison):
    read = case_view(comparison)["reads"]["half"]
    assert [(entry["layer"], entry["step"], entry["heads"]) for entry in read["maps"]["index"]] == [
        (0, 1, [0, 1]),
        (1, 1, [0, 1]),
    ]
    codes = np.frombuffer(zlib.decompress(base64.b64decode(read["maps"]["codes"])), np.uint8)
    packed = comparison.candidates[0].recording.maps[CallSite("transformer", 1, 1)].packed
    start = read["maps"]["index"][1]["offset"]
    assert packed.shape == (2, 5, 5), "rows of whole bytes"
    assert codes[start : start + packed.numel()].tolist() == packed.flatten().tolist()


def test_the_token_order_is_the_runs(comparison):
    layout = case_view(comparison)["reads"]["half"]["layout"]
    order = np.frombuffer(zlib.decompress(base64.b64decode(layout["order"])), np.int32)
    assert order.tolist() == comparison.candidates[0].recording.layout["order"].permutation.tolist()


def test_costs_add_up(comparison):
    dense, half, _ = case_view(comparison)["costs"]
    cost = comparison.candidates[0].video.cost
    assert sum(half["seconds"].values()) == pytest.approx(cost.total_seconds, abs=1e-3)
    assert half["seconds"]["sparse attention"] > 0
    assert dense["work"] == {"choosing levels": 0, "sparse attention": 0, "dense attention": pytest.approx(1)}
    assert half["work"]["dense attention"] == pytest.approx(0.5), "warm-up is one of two steps"
    assert half["work"]["sparse attention"] == pytest.approx(0.35 / 2)
    assert sum(half["work"].values()) == pytest.approx(cost.run_density_with_estimation, abs=1e-5)


def test_a_case_without_a_sparse_video_has_a_report(case, comparison, described):
    write_case(case, replace(comparison, candidates=(), ceiling=None), described)
    data = data_of((case.folder / "report.html").read_text(encoding="utf-8"))
    assert list(data["case"]["video"]["frames"]) == ["dense"]
