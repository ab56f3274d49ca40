"""What counts where PSA stands aside, by hand; and that a preset is measured as its section describes it."""

from dataclasses import replace

import break_even


def test_what_runs_dense_does_not_count():
    slow, fair, fast = ({"speedup": s, "dense_because": None} for s in (0.9, 1.1, 3.0))
    assert break_even.least_in_auto([slow | {"dense_because": "few tokens"}, fast, fair]) == 1.1
    assert break_even.least_in_auto([slow, fast]) == 0.9
    assert break_even.least_in_auto([slow | {"dense_because": "few tokens"}]) is None


def test_a_preset_is_measured_with_its_models_heads_and_text():
    presets = {name: (config, shape) for name, config, shape in break_even.shipped_presets()}
    assert "Qwen2.5-VL/psa_balanced" not in presets
    config, shape = presets["CogVideo_5b/psa_4steps"]
    case = break_even.measure("x", config, replace(shape.with_heads(1), grid=(2, 4, 4)), "float32")
    assert (case["dim"], case["prefix_tokens"], case["visual_tokens"]) == (64, 226, 32)
    assert 0 < case["density"] <= 1 and case["dense_seconds"] > 0 and case["sparse_seconds"] > 0
