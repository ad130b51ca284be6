"""A training loop in the style of nanoGPT: a GPT of torch modules, AdamW(fused=True), random windows of the text."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TrainConfig
from model.data.prepared import PreparedData


class Block(nn.Module):
    """Attention and MLP with layer norms before them."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.fc, self.out = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after the block. x: (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(C, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.out(F.gelu(self.fc(self.norm2(x))))


class GPT(nn.Module):
    """The network: learned positions, tied embedding."""

    def __init__(self, config: TrainConfig, vocab_size: int) -> None:
        super().__init__()
        shape = config.model
        self.wte = nn.Embedding(vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.context, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape.n_embd, shape.n_head, shape.bias) for _ in range(shape.n_layer))
        self.norm = nn.LayerNorm(shape.n_embd, bias=shape.bias)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy. x, y: (B, T)."""
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.norm(h), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def training_loop(
    config: TrainConfig, prepared: PreparedData, device: torch.device, compiled: bool
) -> Callable[[int], Any]:
    """Return a function that trains for some updates."""
    model: Any = GPT(config, prepared.vocab_size).to(device)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if compiled else model
    text, B, T = prepared.splits["train"].tokens, config.run.batch_size, config.model.context
    rng = np.random.default_rng(0)

    def batch() -> tuple[Tensor, Tensor]:
        at = rng.integers(0, len(text) - T - 1, B)
        x, y = (torch.from_numpy(np.stack([text[i + s : i + s + T] for i in at]).astype(np.int64)) for s in (0, 1))
        if device.type == "cuda":
            return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
        return x, y

    def run(updates: int) -> None:
        x, y = batch()
        for _ in range(updates):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
                loss = forward(x, y)
            x, y = batch()  # while the device computes
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run
