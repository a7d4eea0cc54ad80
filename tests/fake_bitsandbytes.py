"""A stand-in for bitsandbytes' paged 8-bit AdamW, with what makes it differ from torch's when it is saved.

Its step count is a number, its tables are shared by all parameters, small parameters keep float32 moments, and large
ones eight bits in blocks: here rounded to the nearest of 255 levels of each block's largest.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

SMALL, BLOCK = 64, 16


class PagedAdamW8bit(torch.optim.Optimizer):
    """AdamW on moments that are stored in eight bits."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.table = torch.linspace(-1, 1, 255)

    def init_state(self, _group: Any, p: torch.Tensor, _gindex: int, _pindex: int) -> None:
        state, small = self.state[p], p.numel() < SMALL
        state["step"] = 0
        for k in (1, 2):
            state[f"state{k}"] = torch.zeros_like(p, dtype=torch.float32 if small else torch.uint8)
            if not small:
                state[f"qmap{k}"] = self.table
                state[f"absmax{k}"] = torch.zeros(-(-p.numel() // BLOCK))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        for place, p in enumerate(group["params"]):
            if not self.state[p]:
                self.init_state(group, p, 0, place)
            state = self.state[p]
            state["step"] += 1
            first, second = (self._read(state, k) for k in (1, 2))
            beta1, beta2 = group["betas"]
            first = beta1 * first + (1 - beta1) * p.grad
            second = beta2 * second + (1 - beta2) * p.grad**2
            unbiased = second / (1 - beta2 ** state["step"])
            p -= group["lr"] / (1 - beta1 ** state["step"]) * first / (unbiased.sqrt() + group["eps"])
            for k, moment in ((1, first), (2, second)):
                self._write(state, k, moment)

    def _read(self, state: dict[str, Any], k: int) -> torch.Tensor:
        stored = state[f"state{k}"]
        if stored.dtype == torch.float32:
            return stored
        scale = state[f"absmax{k}"].repeat_interleave(BLOCK)[: stored.numel()].view_as(stored)
        return state[f"qmap{k}"][stored.long()] * scale

    def _write(self, state: dict[str, Any], k: int, moment: torch.Tensor) -> None:
        if state[f"state{k}"].dtype == torch.float32:
            state[f"state{k}"].copy_(moment)
            return
        flat = torch.nn.functional.pad(moment.flatten(), (0, -moment.numel() % BLOCK)).view(-1, BLOCK)
        scale = flat.abs().amax(dim=1).clamp(min=1e-30)
        state[f"absmax{k}"].copy_(scale)
        levels = ((flat / scale[:, None] + 1) * 127).round().to(torch.uint8)
        state[f"state{k}"].copy_(levels.flatten()[: moment.numel()].view_as(moment))


def install(patch: pytest.MonkeyPatch) -> None:
    """Have `import bitsandbytes` find the stand-in while the patch holds."""
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        module: Any = ModuleType(name)
        module.__spec__, module.PagedAdamW8bit = ModuleSpec(name, None), PagedAdamW8bit
        patch.setitem(sys.modules, name, module)
