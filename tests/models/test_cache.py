import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tamperdose.models.cache import BLOCK, GrowingLayer, growing_cache, has_only_full_attention
from tiny import make_model


@pytest.mark.parametrize("seed", range(8))
def test_growing_layer_is_dynamic_layer(seed: int) -> None:
    """Any run of appends, selections and repeats leaves the same keys and values, bit for bit."""
    rng = np.random.default_rng(seed)
    ours, theirs, rows = GrowingLayer(), DynamicLayer(), 3
    for step in range(30):
        choice = rng.integers(4)
        if choice == 0 and step and rows > 1:
            kept = torch.from_numpy(np.sort(rng.permutation(rows)[: rng.integers(1, rows)]))
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
            rows = len(kept)
        elif choice == 1 and step and rows < 6:
            ours.batch_repeat_interleave(2)
            theirs.batch_repeat_interleave(2)
            rows *= 2
        else:
            columns = int(rng.choice([1, 1, 2, BLOCK - 1, BLOCK + 3]))
            new = torch.from_numpy(rng.normal(size=(2, rows, 2, columns, 4))).float()
            for ours_part, theirs_part in zip(ours.update(new[0], new[1]), theirs.update(new[0], new[1]), strict=True):
                assert torch.equal(ours_part, theirs_part)
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_token_does_not_copy_the_buffer() -> None:
    layer = GrowingLayer()
    layer.update(torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 5, 4))
    place = layer.keys.data_ptr()
    for _ in range(BLOCK - 6):
        layer.update(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4))
    assert layer.keys.data_ptr() == place


def test_an_unused_layer_cannot_be_selected_from() -> None:
    with pytest.raises((RuntimeError, AttributeError)):
        GrowingLayer().batch_select_indices(torch.tensor([0]))


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    full, sliding = make_model("llama").config, make_model("phi3", sliding_window=8).config
    assert has_only_full_attention(full)
    assert not has_only_full_attention(sliding)
    assert all(type(layer) is GrowingLayer for layer in growing_cache(full).layers)
    own = [type(layer) for layer in DynamicCache(config=sliding).layers]
    assert [type(layer) for layer in growing_cache(sliding).layers] == own
