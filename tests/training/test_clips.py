import random
from dataclasses import replace

import torch
from clips import HELD_OUT, SUBJECTS, Subject, draw_caption, draw_subject, make_clips
from recipe import make_tokenizer
from score import read_clip, saturation_mask

RED, BLUE = Subject("red", "square", "left"), Subject("blue", "ring", "down")


def clip_of(subject, seed=0):
    """`[F, H, W, 3]` in [0, 1]."""
    return (make_clips([subject], 9, 96, 96, torch.Generator().manual_seed(seed))[0] / 2 + 0.5).permute(1, 2, 3, 0)


def test_prompts_say_what_is_shown():
    assert RED.prompt == "a red square moving left"
    assert replace(RED, size="small", stripes=True).prompt == "a small red square moving left over stripes"
    assert replace(BLUE, companion=("red", "cross")).prompt == "a blue ring and a red cross moving down"


def test_size_changes_the_object_alone():
    plain, small, large = (float(saturation_mask(clip_of(replace(RED, size=s))).mean()) for s in ("", "small", "large"))
    assert small < 0.5 * plain < 0.4 * large


def test_a_companion_moves_alongside_in_its_own_half():
    clip = clip_of(replace(BLUE, companion=("red", "square")))
    left, right = clip[:, :, :48], clip[:, :, 48:]
    for half, colour in ((left, "blue"), (right, "red")):
        reading = read_clip(half)
        assert (reading.colour, reading.direction) == (colour, "down")


def test_stripes_drift_and_leave_the_object_readable():
    plain, striped = clip_of(RED, 3), clip_of(replace(RED, stripes=True), 3)
    assert float(plain[:, 0, 0].std(0).max()) < 1e-3 < float(striped[:, 0, 0].std(0).min())
    assert read_clip(striped) == read_clip(plain)


def test_subjects_drawn_leave_out_what_is_held_out_and_every_caption_has_known_words():
    rng, tokenizer = random.Random(0), make_tokenizer()
    subjects = [draw_subject(rng, harder=0.5) for _ in range(400)]
    assert not {replace(s, size="", companion=None, stripes=False) for s in subjects} & set(HELD_OUT)
    plain = sum(s in SUBJECTS for s in subjects)
    assert 150 < plain < 250
    captions = [draw_caption(s, rng) for s in subjects]
    assert 15 < captions.count("") < 80
    assert not any(tokenizer.unk_token_id in tokenizer(caption).input_ids for caption in captions)
