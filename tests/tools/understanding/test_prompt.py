from dataclasses import replace

import numpy as np
import pytest
import torch
from small_qwen import CONTEXT

from psa_triton.tools.understanding import Media, find_checkpoint, make_prompt, read_media


@pytest.fixture(scope="module")
def checkpoint(qwen_folder):
    return find_checkpoint(str(qwen_folder))


def image(height=56, width=84):
    return Media("image", np.zeros((1, height, width, 3), dtype=np.uint8), fps=0.0, total_frames=1)


def test_the_conversation_about_an_image(checkpoint):
    prompt = make_prompt(checkpoint, image(), "What is it?", max_tokens=8)
    text = checkpoint.tokenizer.decode(prompt.inputs["input_ids"][0])
    assert text == (
        "<|im_start|>user\n<|vision_start|>" + 6 * "<|image_pad|>" + "<|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (prompt.visual_tokens, prompt.grid) == (6, (1, 4, 6))
    assert prompt.tokens == prompt.inputs["input_ids"].shape[1]
    kinds = prompt.inputs["mm_token_type_ids"][0]
    assert (kinds == 1).equal(prompt.inputs["input_ids"][0] == checkpoint.config.image_token_id)
    assert kinds.sum() == 6
    assert prompt.inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert prompt.inputs["pixel_values"].shape == (24, 3 * 2 * 14 * 14)


def test_the_conversation_about_a_video_keeps_its_time(checkpoint, clips):
    media = read_media(clips / "bikes.mp4", "video", num_frames=10)
    prompt = make_prompt(checkpoint, media, "What moves?", max_tokens=8)
    kinds = prompt.inputs["mm_token_type_ids"]
    assert int((kinds == 2).sum()) == prompt.visual_tokens == 5 * prompt.grid[1] * prompt.grid[2] // 4
    # 250 frames of 25 a second, in five patches: two seconds each.
    assert prompt.inputs["second_per_grid_ts"].tolist() == [2.0]
    positions, _ = _positions(checkpoint, prompt.inputs)
    seen = positions[0, 0][kinds[0] == 2].unique()
    # Two ticks a second.
    assert (seen - seen[0]).tolist() == [0, 4, 8, 12, 16]


def _positions(checkpoint, inputs):
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(checkpoint.config).model
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    return model.get_rope_index(**{name: inputs[name] for name in names})


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (" \n", "prompt: expected a question"),
        ("What is <|image_pad|>?", r"prompt: expected one <\|image_pad\|> in the conversation, got 2"),
    ],
)
def test_no_question(checkpoint, question, message):
    with pytest.raises(ValueError, match=message):
        make_prompt(checkpoint, image(), question, max_tokens=8)


def test_a_chat_template_without_a_place_for_images(checkpoint):
    tokenizer = type(checkpoint.tokenizer).from_pretrained(checkpoint.folder)
    tokenizer.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(ValueError, match="got 0: .* chat template has to put it"):
        make_prompt(replace(checkpoint, tokenizer=tokenizer), image(), "What is it?", max_tokens=8)


def test_question_and_answer_have_to_fit_into_the_context(checkpoint):
    tokens = make_prompt(checkpoint, image(), "What?", max_tokens=1).tokens
    room = CONTEXT - tokens
    assert make_prompt(checkpoint, image(), "What?", max_tokens=room).tokens == tokens
    message = (
        rf"prompt: {tokens} tokens \(6 of them visual\) and an answer of up to {room + 1} do not fit .* {CONTEXT};"
    )
    with pytest.raises(ValueError, match=message):
        make_prompt(checkpoint, image(), "What?", max_tokens=room + 1)
