"""Concrete DropBlock: block masks by hand, scale, reversed gradients, drop rate, identity at test."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.core.training.adversary import Adversary
from stages.wsod.model.dropblock import ConcreteDropBlock, block_mask, rescale, reverse_gradient


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 5]))
def test_block_mask__every_cell_near_a_centre_is_dropped(seed: int, block: int) -> None:
    centres = (torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(seed)) < 0.05).float()
    mask = block_mask(centres, block)
    for n in range(2):
        for y in range(7):
            for x in range(7):
                near = [
                    centres[n, 0, v, u]
                    for v in range(7)
                    for u in range(7)
                    if abs(v - y) <= block // 2 and abs(u - x) <= block // 2
                ]
                assert mask[n, 0, y, x] == (0 if any(near) else 1)


def test_rescale__keeps_the_sum_of_equal_features() -> None:
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    scaled = rescale(torch.ones(1, 2, 2, 3), mask)
    assert scaled.sum().item() == pytest.approx(12.0)
    assert scaled[0, 1].abs().sum() == 0


def test_reverse_gradient__identity_forward_negative_backward() -> None:
    values = torch.tensor([2.0, -1.0], requires_grad=True)
    out = reverse_gradient(values, 0.5)
    (slope,) = torch.autograd.grad((out * torch.tensor([3.0, 4.0])).sum(), values)
    assert torch.equal(out, values)
    assert slope.tolist() == [-1.5, -2.0]


def test_concrete_dropblock__the_dropper_learns_to_raise_the_loss() -> None:
    # Only the left column matters to the loss -sum; a dropper that raises it must drop there more often.
    torch.manual_seed(0)
    layer = ConcreteDropBlock(2, drop=0.9, block=1, temperature=0.5, weight=1.0).train()
    feats = torch.zeros(64, 4, 4, 2)
    feats[:, :, 0, 0] = 1.0
    feats[:, :, 1:, 1] = 1.0
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        out, _ = layer(feats)
        optimizer.zero_grad()
        torch.autograd.backward(-out[..., 0].mean())
        optimizer.step()
    out, dropped = layer(feats)
    left = (out[:, :, 0, 0] == 0).float().mean()
    right = (out[:, :, 1:, 1] == 0).float().mean()
    assert left > right + 0.3
    assert 0 < dropped < 1


def test_concrete_dropblock__detector_gets_the_plain_gradient_and_test_time_is_identity() -> None:
    torch.manual_seed(0)
    layer = ConcreteDropBlock(3).train()
    feats = torch.randn(8, 7, 7, 3, requires_grad=True)
    out, dropped = layer(feats)
    (slope,) = torch.autograd.grad(out.sum(), feats)
    factor = 1 / (1 - dropped)
    kept = slope > 0
    assert torch.allclose(slope[kept], factor.expand_as(slope[kept]))
    assert torch.equal(kept, out != 0)
    assert layer.eval()(feats)[0] is feats


def test_concrete_dropblock__mixed_precision_draws_and_scales_in_float32() -> None:
    # Eight bits hold no sum of tens of thousands, and no probability near 1.
    torch.manual_seed(0)
    layer = ConcreteDropBlock(2).train()
    feats = torch.randn(300, 7, 7, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, dropped = layer(feats)
    assert out.dtype == torch.bfloat16
    assert dropped.dtype == torch.float32
    kept = out[..., 0] != 0
    assert dropped.item() == pytest.approx(1 - kept.float().mean().item(), abs=1e-3)


def test_concrete_dropblock__a_sure_network_drops_the_share_it_may() -> None:
    # Where the network is sure, a cell is a centre with probability drop / block^2, as published: .3 / 9.
    torch.manual_seed(0)
    layer = ConcreteDropBlock(1).train()
    nn.init.constant_(layer.shortcut.weight, 100.0)
    layer.residual = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False).requires_grad_(False))
    nn.init.zeros_(layer.residual[0].weight)  # type: ignore[arg-type]
    _, dropped = layer(torch.ones(4000, 7, 7, 1))
    gamma, side = 0.3 / 9, 7
    reach = [
        min(side, i + 2) - max(0, i - 1) for i in range(side)
    ]  # cells of an axis whose block covers cell i
    expected = sum(1 - (1 - gamma) ** (a * b) for a in reach for b in reach) / side**2
    assert dropped.item() == pytest.approx(expected, rel=0.02)


def test_concrete_dropblock__its_choices_are_nearly_discrete() -> None:
    # At the published temperature of .01 only choices on the brink pass a gradient on.
    torch.manual_seed(0)
    layer = ConcreteDropBlock(2, drop=0.9, block=1).train()
    slopes: list[torch.Tensor] = []
    layer.shortcut.register_forward_hook(lambda module, into, out: out.register_hook(slopes.append) and None)
    out, _ = layer(torch.randn(200, 7, 7, 2, requires_grad=True))
    torch.autograd.backward(out.square().sum())
    slope = slopes[0][:, 0]
    assert 0 < (slope.abs() > 1e-3 * slope.abs().max()).float().mean() < 0.2


def telling_feats() -> torch.Tensor:
    """Only the left column matters to a loss over channel 0."""
    feats = torch.zeros(64, 4, 4, 2)
    feats[:, :, 0, 0] = 1.0
    feats[:, :, 1:, 1] = 1.0
    return feats


def drop_rates(form: str, steps: int = 80) -> tuple[float, list[float], float]:
    """Drop rate at the start, over the last steps, and that of the left column at the end."""
    torch.manual_seed(0)
    layer = ConcreteDropBlock(2, drop=0.9, block=1, temperature=0.5, weight=1.0, form=form).train()  # type: ignore[arg-type]
    feats, rates = telling_feats(), []
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    adversary = Adversary(list(layer.parameters()), optimizer, 1.0, layer.own_turn)
    for step in range(steps):
        torch.manual_seed(step)  # the same noise in both forms
        out, dropped = layer(feats)
        rates.append(dropped.item())
        if form == "reversal":
            optimizer.zero_grad()
            torch.autograd.backward(-out[..., 0].mean())
            optimizer.step()
        else:
            assert not out.requires_grad, "the detector's pass does not reach the dropper"
            torch.manual_seed(step)
            adversary.step(lambda: [-layer(feats)[0][..., 0].mean()], factor=1.0)
    out, _ = layer(feats)
    return rates[0], rates[-20:], (out[:, :, 0, 0] == 0).float().mean().item()


def test_concrete_dropblock__both_forms_drop_alike() -> None:
    first, last, left = drop_rates("reversal")
    first_two, last_two, left_two = drop_rates("two_step")
    assert first == first_two, "the same network drops the same cells"
    # With the same noise both forms take the same steps: the reversed gradient is that of the negated loss.
    assert last_two == pytest.approx(last, abs=0.02)
    assert left_two == pytest.approx(left, abs=0.05)
    assert left > sum(last) / len(last) + 0.2, "and both learn where it hurts"


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_adversary__is_not_moved_by_the_scale_of_losses_nor_by_slopes_that_are_not_finite(
    scale: float,
) -> None:
    value = torch.nn.Parameter(torch.ones(2))
    adversary = Adversary([value], torch.optim.SGD([value], lr=0.1), 0.5, contextlib.nullcontext)
    adversary.step(lambda: [value.sum() * 3], factor=1.0, scale=scale)
    assert value.tolist() == pytest.approx([1.15, 1.15])
    adversary.step(lambda: [value.sum() * math.nan], factor=1.0, scale=scale)
    assert value.tolist() == pytest.approx([1.15, 1.15])


def test_adversary__weights_the_slope_and_sums_the_passes() -> None:
    value = torch.tensor([1.0], requires_grad=True)
    adversary = Adversary([value], torch.optim.SGD([value], lr=0.1), 0.5, contextlib.nullcontext)
    adversary.step(lambda: [value.sum() * 3, value.sum() * 1], factor=0.5)
    # Up the slope of 4 by 0.1 (rate) x 0.5 (factor) x 0.5 (weight).
    assert value.item() == pytest.approx(1.0 + 0.1 * 0.5 * 0.5 * 4)
    assert value.grad is None
