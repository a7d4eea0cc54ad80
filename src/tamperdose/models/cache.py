"""A key-value cache that writes in place and whose rows can be taken out while decoding goes on.

transformers' own DynamicLayer copies the whole cache at every token (`torch.cat`). Here each layer keeps a buffer
with room to grow, so a token costs one column, and rows that have finished are dropped.
"""

from collections.abc import Sequence
from typing import Any, cast

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
        before = self.views()[0].shape[2]
        after = before + key_states.shape[2]
        if after > self._key_buffer.shape[2]:
            self._key_buffer = _grown(self.views()[0], after)
            self._value_buffer = _grown(self.views()[1], after)
        self._key_buffer[:, :, before:after] = key_states
        self._value_buffer[:, :, before:after] = value_states
        self._show(after)
        return self.views()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows, in this order."""
        columns = self.views()[0].shape[2]
        self._key_buffer = _grown(self.views()[0].index_select(0, indices), columns)
        self._value_buffer = _grown(self.views()[1].index_select(0, indices), columns)
        self._show(columns)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, with new buffers."""
        columns = self.views()[0].shape[2]
        self._key_buffer = _grown(self.views()[0].repeat_interleave(repeats, dim=0), columns)
        self._value_buffer = _grown(self.views()[1].repeat_interleave(repeats, dim=0), columns)
        self._show(columns)

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they are now."""
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


def select_rows(cache: DynamicCache, indices: torch.Tensor) -> None:
    """Keep only these rows of a cache, in this order; its layers may lie on several devices."""
    layers: list[Any] = cache.layers
    for layer in layers:
        keys = layer.keys
        layer.batch_select_indices(indices if keys is None else indices.to(keys.device))


def repeated(cache: DynamicCache, n_rows: int) -> DynamicCache:
    """A new cache in which the one row of a cache of growing layers stands `n_rows` times."""
    copy = DynamicCache()
    copy.layers = [  # pyright: ignore[reportAttributeAccessIssue] - a list of layers, typed by its default
        _filled(*(part.expand(n_rows, -1, -1, -1) for part in _views_of(layer))) for layer in cache.layers
    ]
    return copy


def joined(parts: Sequence[DynamicCache], shared: int) -> DynamicCache:
    """Put rows of several caches under one another, as wide as the widest.

    The first `shared` columns are common to all; narrower parts are filled up with zeros behind them.
    """
    if len(parts) == 1:
        return parts[0]
    whole = DynamicCache()
    whole.layers = [  # pyright: ignore[reportAttributeAccessIssue] - as in `repeated`
        _filled(*(_stacked(list(views), shared) for views in zip(*map(_views_of, layers), strict=True)))
        for layers in zip(*(part.layers for part in parts), strict=True)
    ]
    return whole


def _views_of(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return cast(GrowingLayer, layer).views()


def _filled(keys: torch.Tensor, values: torch.Tensor) -> GrowingLayer:
    layer = GrowingLayer()
    layer.update(keys, values)
    return layer


def _stacked(parts: Sequence[torch.Tensor], shared: int) -> torch.Tensor:
    """Stack (rows, heads, columns, head_dim) of several widths; zeros, for what is masked must still be a number."""
    width = max(part.shape[2] for part in parts)
    first = parts[0]
    whole = first.new_zeros((sum(len(part) for part in parts), first.shape[1], width, first.shape[3]))
    start = 0
    for part in parts:
        rows = whole[start : start + len(part)]
        rows[:, :, :shared] = part[:, :, :shared]
        rows[:, :, width - (part.shape[2] - shared) :] = part[:, :, shared:]
        start += len(part)
    return whole


def has_only_full_attention(config: Any) -> bool:
    """Whether every layer attends to all earlier columns, so that a gap between columns changes nothing."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def _grown(columns: torch.Tensor, at_least: int) -> torch.Tensor:
    """Copy (rows, heads, columns, head_dim) into a buffer with room for more columns."""
    rows, heads, filled, dim = columns.shape
    buffer = columns.new_empty((rows, heads, (at_least // BLOCK + 1) * BLOCK, dim))
    buffer[:, :, :filled] = columns
    return buffer
