import pytest
import torch

from psa_triton.presets import load_preset
from psa_triton.tools.generation import DENSE, Attention
from psa_triton.tools.understanding import answer_prompt, find_checkpoint, make_prompt, read_media

TOKENS = 12


def shares(**mask_ratios):
    """The preset's blocks, with fixed shares of them at each level."""
    config = load_preset("Qwen2.5-VL")
    ratios = {int(level[1:]): share for level, share in mask_ratios.items()}
    return Attention(name="shares", config=config.replace(mask_mode="topk", use_sim_mask=False, mask_ratios=ratios))


FULL = {"l1": (0, 1)}
SPARSE = {"l8": (0, 0.5), "l0": (0.5, 1)}


@pytest.fixture(scope="module")
def checkpoint(qwen_folder):
    return find_checkpoint(str(qwen_folder))


@pytest.fixture(scope="module")
def model(checkpoint):
    return checkpoint.load_weights(device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def prompt(checkpoint, clips):
    """600 visual tokens: five query blocks."""
    media = read_media(clips / "carphone_pristine.mp4", "video", num_frames=40)
    return make_prompt(checkpoint, media, "What moves?", max_tokens=TOKENS)


def expected(model, checkpoint, prompt):
    tokens = model.generate(**prompt.inputs, max_new_tokens=TOKENS, do_sample=False)[0, prompt.tokens :]
    return checkpoint.tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_dense_answer_is_the_models_own(model, checkpoint, prompt):
    pieces = []
    answer = answer_prompt(model, checkpoint.tokenizer, prompt, DENSE, max_tokens=TOKENS, on_text=pieces.append)
    assert answer.text == "".join(pieces) == expected(model, checkpoint, prompt)
    assert answer.tokens <= TOKENS
    assert answer.attention is None
    assert answer.prefill_seconds > 0
    assert answer.tokens_per_second == pytest.approx((answer.tokens - 1) / answer.decode_seconds)


def test_with_every_level_1_the_answer_is_the_dense_one(model, checkpoint, prompt):
    answer = answer_prompt(model, checkpoint.tokenizer, prompt, shares(**FULL), max_tokens=TOKENS)
    assert answer.text == expected(model, checkpoint, prompt)
    assert answer.attention.summary.sparse_calls == 2
    assert answer.attention.summary.sparse_density == 1


def test_sparse_prefill_and_dense_decoding(model, checkpoint, prompt):
    dense = expected(model, checkpoint, prompt)
    answer = answer_prompt(model, checkpoint.tokenizer, prompt, shares(**SPARSE), max_tokens=TOKENS)
    summary = answer.attention.summary
    assert summary.sparse_calls == 2
    assert summary.dense_reasons == {"decode": 2 * (answer.tokens - 1)}
    assert 0.3 < summary.sparse_density < 0.8
    # PSA is gone from the model.
    assert expected(model, checkpoint, prompt) == dense


def test_the_answer_depends_on_what_is_seen(model, checkpoint, prompt, clips):
    other = read_media(clips / "bikes.mp4", "video", num_frames=40)
    about_other = make_prompt(checkpoint, other, "What moves?", max_tokens=TOKENS)
    assert expected(model, checkpoint, about_other) != expected(model, checkpoint, prompt)


def test_sampling_settings_of_the_checkpoint_are_put_aside(model, checkpoint, prompt, monkeypatch):
    """Qwen2.5-VL's `generation_config.json` asks for sampling; answers are the same on every run all the same."""
    greedy = answer_prompt(model, checkpoint.tokenizer, prompt, DENSE, max_tokens=TOKENS).text
    for name, value in {"do_sample": True, "temperature": 5.0, "top_k": 50, "top_p": 0.9}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert answer_prompt(model, checkpoint.tokenizer, prompt, DENSE, max_tokens=TOKENS).text == greedy


def test_qwen2_vl_is_asked_in_the_same_way(qwen_folder, clips, tmp_path):
    from small_qwen import save_small_qwen2_vl

    checkpoint = find_checkpoint(str(save_small_qwen2_vl(qwen_folder, tmp_path / "small-qwen2")))
    media = read_media(clips / "carphone_pristine.mp4", "video", num_frames=40)
    prompt = make_prompt(checkpoint, media, "What moves?", max_tokens=TOKENS)
    assert "second_per_grid_ts" not in prompt.inputs
    model = checkpoint.load_weights(device=torch.device("cpu"), dtype=torch.float32)
    answer = answer_prompt(model, checkpoint.tokenizer, prompt, shares(**FULL), max_tokens=TOKENS)
    assert answer.text == expected(model, checkpoint, prompt)
    assert answer.attention.summary.sparse_calls == 2
