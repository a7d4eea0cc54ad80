"""A key-value cache that writes in place and whose rows can be taken out while decoding goes on.

transformers' own DynamicLayer copies the whole cache at every token (`torch.cat`). Here each layer keeps a buffer
with room to grow, so a token costs one column, and rows that have finished are dropped.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 64
"""Columns by which a full buffer grows."""


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, columns, head_dim), as views into larger buffers."""

    _key_buffer: torch.Tensor
    _value_buffer: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start with buffers of no columns."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_buffer, self._value_buffer = key_states[:, :, :0], value_states[:, :, :0]
        self.keys, self.values = self._key_buffer, self._value_buffer
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self._views()[0].shape[2]
        after = before + key_states.shape[2]
        if after > self._key_buffer.shape[2]:
            self._key_buffer = _grown(self._views()[0], after)
            self._value_buffer = _grown(self._views()[1], after)
        self._key_buffer[:, :, before:after] = key_states
        self._value_buffer[:, :, before:after] = value_states
        self._show(after)
        return self._views()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows, in this order."""
        columns = self._views()[0].shape[2]
        self._key_buffer = _grown(self._views()[0].index_select(0, indices), columns)
        self._value_buffer = _grown(self._views()[1].index_select(0, indices), columns)
        self._show(columns)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, with new buffers."""
        columns = self._views()[0].shape[2]
        self._key_buffer = _grown(self._views()[0].repeat_interleave(repeats, dim=0), columns)
        self._value_buffer = _grown(self._views()[1].repeat_interleave(repeats, dim=0), columns)
        self._show(columns)

    def _views(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is None or self.values is None:
            raise RuntimeError("the cache layer is used before it is initialised")
        return self.keys, self.values

    def _show(self, columns: int) -> None:
        self.keys = self._key_buffer[:, :, :columns]
        self.values = self._value_buffer[:, :, :columns]


def growing_cache(config: Any) -> DynamicCache:
    """Make an empty cache for a model; layers of other kinds (sliding windows, say) keep transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def has_only_full_attention(config: Any) -> bool:
    """Whether every layer attends to all earlier columns, so that a gap between columns changes nothing."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def _grown(columns: torch.Tensor, at_least: int) -> torch.Tensor:
    """Copy (rows, heads, columns, head_dim) into a buffer with room for more columns."""
    rows, heads, filled, dim = columns.shape
    buffer = columns.new_empty((rows, heads, (at_least // BLOCK + 1) * BLOCK, dim))
    buffer[:, :, :filled] = columns
    return buffer
