"""Train the built-in text-to-video model: `python training/train_tiny_wan.py --start PIPELINE`.

Flow matching (v = noise - data) on procedural clips, small grid first, then larger, with self-attention by
`psa_attention` where a stage asks for it. Runs on a CPU or a GPU, is seeded, writes a checkpoint every few minutes and
goes on from it when started again with the same --work folder. `training/export_tiny_wan.py` turns the averaged weights
into the pipeline folder that the package ships.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from clips import draw_caption, draw_subject, make_clips
from recipe import fit_codec, make_text_encoder, make_tokenizer, make_transformer
from safetensors.torch import load_file

from psa_triton import PSAConfig, psa_attention
from psa_triton.tools.builtin import LinearVideoCodec

TEXT_SLOTS = 16  # tokens of the longest caption, its end token, and one slot that stands for all the padding
PIPELINE_TEXT_LENGTH = 512


def normalise(norm: torch.nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """`norm(x)` with the weight in x's dtype: autocast leaves it in float32, of which torch warns."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def split_heads(attn: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`[B, N, heads * D]` as `[B, heads, N, D]`."""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


class CountedPadding:
    """Cross-attention over a prompt whose identical padding tokens are one key with weight ln(count).

    The pipeline pads text to 512 zero vectors and does not mask them. They are equal, so one key with their log count
    as bias gives the same attention at a fraction of the cost.
    """

    def __init__(self) -> None:
        self.bias: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        q = split_heads(attn, normalise(attn.norm_q, attn.to_q(hidden_states)))
        k = split_heads(attn, normalise(attn.norm_k, attn.to_k(encoder_hidden_states)))
        v = split_heads(attn, attn.to_v(encoder_hidden_states))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.to(q.dtype))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class SparseSelfAttention:
    """Self-attention of one grid of tokens, by `psa_attention` below density 1."""

    def __init__(self) -> None:
        self.size: Size | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        turns = torch.complex(*(x[..., ::2].float().transpose(1, 2) for x in rotary_emb))

        def rotate(x):
            pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)

        q = rotate(split_heads(attn, normalise(attn.norm_q, attn.to_q(hidden_states))))
        k = rotate(split_heads(attn, normalise(attn.norm_k, attn.to_k(hidden_states))))
        v = split_heads(attn, attn.to_v(hidden_states))
        if self.size.density < 1:
            config = PSAConfig(mask_mode="budget", budget=self.size.density)
            out = psa_attention(q, k, v, config, grid=self.size.grid)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Size:
    grid: tuple[int, int, int]
    """Tokens: frames, height, width."""
    batch: int
    density: float
    """Of self-attention; 1 is dense."""


def schedule(text: str) -> list[Size]:
    """The size of every step. `"2x24x24:8+8x24x24:2:900:1"`: sizes taken in turn, each tokens (t x h x w) : batch; then
    steps : density. Several such stages are joined by commas."""
    steps = []
    for stage in text.split(","):
        sizes, count, density = stage.rsplit(":", 2)
        turn = []
        for size in sizes.split("+"):
            grid, batch = size.split(":")
            t, h, w = map(int, grid.split("x"))
            turn.append(Size((t, h, w), int(batch), float(density)))
        steps += [turn[i % len(turn)] for i in range(int(count))]
    return steps


def sample_sigma(batch: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Noise levels `[batch]`, half uniform, half logit-normal, moved towards noise as a scheduler's flow shift does."""
    uniform = torch.rand(batch, generator=generator)
    logit_normal = torch.randn(batch, generator=generator).sigmoid()
    sigma = torch.where(torch.rand(batch, generator=generator) < 0.5, uniform, logit_normal)
    return (shift * sigma / (1 + (shift - 1) * sigma)).clamp(1e-3, 1.0)


def load_weights(model: torch.nn.ModuleDict, pipeline: Path) -> None:
    """Take the weights of a saved pipeline; words that it does not know keep their fresh rows of the embedding."""
    model.transformer.load_state_dict(load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors"))
    encoder = load_file(pipeline / "text_encoder" / "model.safetensors")
    table = model.text_encoder.shared.weight.detach()
    known = encoder["shared.weight"]
    table.normal_(std=float(known.std()))
    table[: len(known)] = known
    model.text_encoder.load_state_dict(encoder | {"shared.weight": table}, strict=False)


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        codec = LinearVideoCodec.from_pretrained(args.start / "vae") if args.start else fit_codec()
        self.codec = codec.to(self.device)
        self.tokenizer = make_tokenizer()
        self.text_encoder = make_text_encoder(len(self.tokenizer)).to(self.device)
        self.transformer = make_transformer().to(self.device)
        self.padding, self.sparse = CountedPadding(), SparseSelfAttention()
        for block in self.transformer.blocks:
            block.attn1.set_processor(self.sparse)
            block.attn2.set_processor(self.padding)
        self.model = torch.nn.ModuleDict({"transformer": self.transformer, "text_encoder": self.text_encoder})
        if args.start:
            load_weights(self.model, args.start)
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
        self.samples = 0

    def checkpoint(self) -> Path:
        return Path(self.args.work) / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "samples": self.samples,
        }
        self.checkpoint().parent.mkdir(parents=True, exist_ok=True)
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
        self.step, self.samples = state["step"], state["samples"]

    def batch(self, size: Size, generator: torch.Generator, rng: random.Random):
        t, h, w = size.grid
        subjects = [draw_subject(rng, self.args.harder) for _ in range(size.batch)]
        clips = make_clips(subjects, (t - 1) * 4 + 1, h * 8, w * 8, generator).to(self.device)
        captions = [draw_caption(s, rng) for s in subjects]
        tokens = self.tokenizer(captions, padding="max_length", max_length=TEXT_SLOTS - 1, return_tensors="pt")
        length = tokens.attention_mask.sum(1)
        total = torch.tensor([max(n + 1, int(PIPELINE_TEXT_LENGTH ** rng.random())) for n in length.tolist()])
        total[rng.randrange(size.batch)] = PIPELINE_TEXT_LENGTH
        bias = torch.zeros(size.batch, 1, 1, TEXT_SLOTS)
        bias[:, 0, 0, :-1].masked_fill_(tokens.attention_mask == 0, float("-inf"))
        bias[:, 0, 0, -1] = (total - length).float().log()
        return (self.codec.encode(clips) / self.std), tokens.to(self.device), bias.to(self.device)

    def loss(self, size: Size) -> torch.Tensor:
        # A step's data depends on seed and step alone, so that a resumed run sees what an unbroken one would.
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.step)
        rng = random.Random(f"{self.args.seed}/{self.step}")
        self.sparse.size = size
        data, tokens, self.padding.bias = self.batch(size, generator, rng)
        sigma = sample_sigma(size.batch, self.args.shift, generator).to(self.device)
        noise = torch.randn(data.shape, generator=generator).to(self.device)
        s = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            text = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
            text = F.pad(text * tokens.attention_mask[..., None], (0, 0, 0, 1))
            velocity = self.forward(torch.lerp(data, noise, s), 1000 * sigma, text, return_dict=False)[0]
        return F.mse_loss(velocity.float(), noise - data)

    def learning_rate(self, total: int) -> float:
        warm = min(1.0, (self.step + 1) / self.args.warmup)
        tail = max(0.0, (self.step / total - 0.75) / 0.25)
        return self.args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, tail))))

    def advance(self, size: Size, steps: int) -> float:
        """One step of `steps` in all; its loss."""
        loss = self.loss(size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.args.decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        self.samples += size.batch
        return loss.item()

    def run(self) -> None:
        sizes = schedule(self.args.stages)
        self.resume()
        saved = logged = time.monotonic()
        losses: list[float] = []
        seen = self.samples
        for size in sizes[self.step :]:
            losses.append(self.advance(size, len(sizes)))
            now = time.monotonic()
            if now - logged > self.args.log_every:
                line = dict(step=self.step, of=len(sizes), grid=size.grid, loss=round(sum(losses) / len(losses), 4))
                rate = (self.samples - seen) / (now - logged)
                print(json.dumps(line | dict(samples=self.samples, samples_per_second=round(rate, 2))), flush=True)
                losses, logged, seen = [], now, self.samples
            if now - saved > self.args.save_every:
                self.save()
                saved = now
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="training/work", help="folder of the checkpoint")
    parser.add_argument("--start", type=Path, help="folder of a pipeline to go on from; from nothing if left out")
    parser.add_argument(
        "--stages",
        default="4x8x8:16:3900:1,8x12x12:8+8x12x12:8+8x12x12:8+4x8x8:16:8200:1",
        help="tokens:batch+tokens:batch...:steps:density, ...",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--shift", type=float, default=6.36, help="of noise levels towards noise")
    parser.add_argument("--harder", type=float, default=0.0, help="share of clips with a size, two objects or stripes")
    parser.add_argument("--decay", type=float, default=0.998, help="of the weights' moving average")
    parser.add_argument("--warmup", type=int, default=100, help="steps of rising learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=float, default=60.0, help="seconds between lines of the log")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    Trainer(args).run()


if __name__ == "__main__":
    main()
