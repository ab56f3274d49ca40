"""Train the built-in text-to-video model from nothing: `python training/train_tiny_wan.py`.

Flow matching (v = noise - data) on procedural clips, small grid first, then larger. Runs on a CPU or a GPU, is
seeded, writes a checkpoint every few minutes and goes on from it when started again with the same --work folder.
`training/export_tiny_wan.py` turns the averaged weights into the pipeline folder that the package ships.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from clips import TEMPLATES, TRAINED, make_clips
from recipe import fit_codec, make_text_encoder, make_tokenizer, make_transformer

TEXT_SLOTS = 8  # tokens of the longest caption, its end token, and one slot that stands for all the padding
PIPELINE_TEXT_LENGTH = 512


class CountedPadding:
    """Cross-attention over a prompt whose identical padding tokens are one key with weight ln(count).

    The pipeline pads text to 512 zero vectors and does not mask them. They are equal, so one key with their log count
    as bias gives the same attention at 1/64 of the cost.
    """

    def __init__(self) -> None:
        self.bias: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        k = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        v = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.to(q.dtype))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def parse_stages(text: str) -> list[tuple[tuple[int, int, int], int, int]]:
    """`"4x8x8:16:4000"`: tokens (t x h x w) : batch : steps, several joined by commas."""
    stages = []
    for stage in text.split(","):
        grid, batch, steps = stage.split(":")
        t, h, w = map(int, grid.split("x"))
        stages.append(((t, h, w), int(batch), int(steps)))
    return stages


def noise_shift(tokens: int) -> float:
    """More tokens carry more redundant signal, so noise must grow with their number (Esser et al. 2024, eq. 23)."""
    return 3.0 * math.sqrt(tokens / 256)


def sample_sigma(batch: int, tokens: int, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(batch, generator=generator)
    logit_normal = torch.randn(batch, generator=generator).sigmoid()
    sigma = torch.where(torch.rand(batch, generator=generator) < 0.5, uniform, logit_normal)
    shift = noise_shift(tokens)
    return (shift * sigma / (1 + (shift - 1) * sigma)).clamp(1e-3, 1.0)


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.codec = fit_codec().to(self.device)
        self.tokenizer = make_tokenizer()
        self.text_encoder = make_text_encoder(len(self.tokenizer)).to(self.device)
        self.transformer = make_transformer().to(self.device)
        self.padding = CountedPadding()
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.padding)
        self.model = torch.nn.ModuleDict({"transformer": self.transformer, "text_encoder": self.text_encoder})
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        named = list(self.model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and ".blocks." in n and "table" not in n]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.forward = torch.compile(self.transformer) if args.compile else self.transformer
        self.std = torch.tensor(self.codec.config.latents_std, device=self.device).view(1, -1, 1, 1, 1)
        self.step = 0
        self.seconds = 0.0
        self.samples = 0

    def checkpoint(self) -> Path:
        return Path(self.args.work) / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "samples": self.samples,
        }
        part = self.checkpoint().with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint())

    def resume(self) -> None:
        if not self.checkpoint().exists():
            return
        state = torch.load(self.checkpoint(), map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.samples = state["step"], state["seconds"], state["samples"]

    def batch(self, grid: tuple[int, int, int], size: int, generator: torch.Generator, rng: random.Random):
        t, h, w = grid
        subjects = [rng.choice(TRAINED) for _ in range(size)]
        clips = make_clips(subjects, (t - 1) * 4 + 1, h * 8, w * 8, generator).to(self.device)
        captions = [rng.choice(TEMPLATES).format(s.colour, s.shape, s.direction) for s in subjects]
        captions = ["" if rng.random() < 0.1 else c for c in captions]
        tokens = self.tokenizer(captions, padding="max_length", max_length=TEXT_SLOTS - 1, return_tensors="pt")
        length = tokens.attention_mask.sum(1)
        total = torch.tensor([max(n + 1, int(PIPELINE_TEXT_LENGTH ** rng.random())) for n in length.tolist()])
        total[rng.randrange(size)] = PIPELINE_TEXT_LENGTH
        bias = torch.zeros(size, 1, 1, TEXT_SLOTS)
        bias[:, 0, 0, :-1].masked_fill_(tokens.attention_mask == 0, float("-inf"))
        bias[:, 0, 0, -1] = (total - length).float().log()
        return (self.codec.encode(clips) / self.std), tokens.to(self.device), bias.to(self.device)

    def loss(self, grid: tuple[int, int, int], size: int) -> torch.Tensor:
        # A step's data depends on seed and step alone, so that a resumed run sees what an unbroken one would.
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.step)
        rng = random.Random(f"{self.args.seed}/{self.step}")
        data, tokens, self.padding.bias = self.batch(grid, size, generator, rng)
        sigma = sample_sigma(size, math.prod(grid), generator).to(self.device)
        noise = torch.randn(data.shape, generator=generator).to(self.device)
        s = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            text = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
            text = F.pad(text * tokens.attention_mask[..., None], (0, 0, 0, 1))
            velocity = self.forward(torch.lerp(data, noise, s), 1000 * sigma, text, return_dict=False)[0]
        return F.mse_loss(velocity.float(), noise - data)

    def learning_rate(self, total: int) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        tail = max(0.0, (self.step / total - 0.75) / 0.25)
        return self.args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, tail))))

    def update(self, total: int) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(total)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(0.998, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def run(self) -> None:
        stages = parse_stages(self.args.stages)
        total = sum(s for _, _, s in stages)
        self.resume()
        saved = logged = time.monotonic()
        running: list[float] = []
        end = 0
        for grid, size, steps in stages:
            end += steps
            while self.step < end:
                began = time.monotonic()
                loss = self.loss(grid, size)
                loss.backward()
                self.update(total)
                self.step += 1
                self.samples += size
                now = time.monotonic()
                self.seconds += now - began
                running.append(loss.item())
                if now - logged > 20:
                    line = dict(step=self.step, of=total, grid=grid, loss=round(sum(running) / len(running), 4))
                    line |= dict(
                        samples=self.samples,
                        minutes=round(self.seconds / 60, 1),
                        rate=round(size * len(running) / (now - logged), 1),
                    )
                    print(json.dumps(line), flush=True)
                    running, logged = [], now
                if now - saved > self.args.save_every:
                    self.save()
                    saved = time.monotonic()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="training/work", help="folder of the checkpoint")
    parser.add_argument("--stages", default="4x8x8:16:3900,8x12x12:8:4100", help="tokens:batch:steps, ...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
