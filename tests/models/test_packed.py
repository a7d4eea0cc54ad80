"""Packed products: the same answers, and nothing left behind."""

import pytest
import torch
from torch import nn

from tamperdose.models.packed import MIN_WEIGHTS, _is_supported, packed


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(320, 512), nn.ReLU(), nn.Linear(512, 300, bias=False), nn.Linear(300, 4))
    return model.requires_grad_(False)


def test_this_build_of_torch_can_pack() -> None:
    assert _is_supported()


@pytest.mark.parametrize("shape", [(1, 320), (64, 320), (3, 7, 320), (0, 320)], ids=str)
def test_packed_products_agree_to_rounding(shape: tuple[int, ...]) -> None:
    model = layers()
    x = torch.randn(shape)
    with torch.inference_mode():
        plain = model(x)
        with packed(model):
            assert [("forward" in vars(part)) for part in model] == [True, False, True, False]
            found = model(x)
            wide = torch.randn(5, 640)[:, ::2]
            torch.testing.assert_close(model(wide), _plain(model, wide), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert all("forward" not in vars(part) for part in model)


def _plain(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for part in model:
        x = nn.functional.linear(x, part.weight, part.bias) if isinstance(part, nn.Linear) else part(x)
    return x


def test_weights_that_learn_are_small_or_of_another_dtype_stay_as_they_are() -> None:
    learning, half = layers().requires_grad_(True), layers().to(torch.bfloat16)
    small = nn.Linear(255, MIN_WEIGHTS // 256).requires_grad_(False)
    for model in (learning, half, small):
        with packed(model):
            assert all("forward" not in vars(part) for part in model.modules())


def test_an_error_within_leaves_nothing_behind() -> None:
    model = layers()
    with pytest.raises(RuntimeError, match="stop"), packed(model):
        raise RuntimeError("stop")
    assert all("forward" not in vars(part) for part in model)
