"""Transfer: exactly the split at the start, exchange and adaptation after it; whole and in stages alike."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fengwu_ghr.backbone import Architecture, Backbone, architecture
from fengwu_ghr.grid import NetworkGrid, backbone_grid
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.res import RES, fold, unfold
from fengwu_ghr.transfer import AdaptedLinear, TransferModel, recombine, split

GRID = NetworkGrid(20)
CHANNELS = 3
TOLERANCE = {"atol": 3e-6, "rtol": 0}


def small(**changes: object) -> Architecture:
    sizes = {
        "channels": CHANNELS,
        "width": 24,
        "heads": 3,
        "decoder_width": 16,
        "lora_steps": 3,
        "lora_rank": 2,
    }
    return architecture("ghr-tiny", **({"scale": 20} | sizes | changes))


def awake(**changes: object) -> TransferModel:
    model = build(small(**changes))
    wake(model, seed=0, tendency=0.1)
    return model.eval()


def analytic(latitude: np.ndarray, longitude: np.ndarray) -> Tensor:
    """Three smooth fields on the sphere."""
    y, x = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
    waves = (np.sin(2 * y) + 0 * x, np.cos(y) * np.sin(2 * x + y), np.cos(y) ** 2 * np.cos(3 * x))
    return torch.from_numpy(np.stack(waves).astype(np.float32))


def state() -> Tensor:
    """On the network grid, rows beyond the poles included."""
    whole = torch.zeros(CHANNELS, *GRID.shape)
    whole[:, 1:-1] = analytic(GRID.inner.latitude, GRID.inner.longitude)
    one, zero = np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)
    GRID.refill_beyond_poles(whole.numpy(), sign=one, offset=zero)
    return whole


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def staged(
    model: TransferModel, states: Sequence[Tensor], step: int, batch: int, *, into: Tensor | None = None
) -> Tensor:
    target = torch.full_like(states[-1], torch.nan) if into is None else into
    with torch.inference_mode():
        tokens = model.advance(model.tokens_of(states, batch=batch), step=step, batch=batch)
        model.write_next(target, states[-1], tokens=tokens, batch=batch)
    return target


def forward(model: TransferModel, states: Sequence[Tensor], step: int) -> Tensor:
    with torch.no_grad():
        return model(torch.cat(list(states))[None], step)[0]


# The split


def test_split_takes_every_third_point_in_the_order_of_the_grid() -> None:
    fine = noise(2, CHANNELS, *GRID.shape)
    nine = split(fine)
    for field in range(2):
        for k, expected in enumerate(GRID.subfields(fine[field].numpy())):
            np.testing.assert_array_equal(nine[9 * field + k].numpy(), expected)
    assert torch.equal(recombine(nine), fine)


def test_fold_puts_each_token_where_it_lies_on_the_fine_grid() -> None:
    nine = noise(18, 12, 24, 4)
    folded = fold(nine)
    assert folded.shape == (2, 36, 72, 4)
    for a, b in ((0, 0), (1, 2), (2, 1)):
        assert torch.equal(folded[1, 3 * 5 + a, 3 * 20 + b], nine[9 + 3 * a + b, 5, 20])
    assert torch.equal(unfold(folded), nine)


def test_at_the_start_of_transfer_it_is_nine_backbones_interleaved() -> None:
    model, fine = build(small()), state()
    result = forward(model, [fine], 0)
    with torch.no_grad():
        for a in range(3):
            for b in range(3):
                alone = model.backbone(fine[None, :, a::3, b::3], 0)[0]
                torch.testing.assert_close(result[:, a::3, b::3], alone, **TOLERANCE)
    assert (result - fine).abs().max() > 0.01


def test_the_middle_subfield_is_the_backbones_own_forecast() -> None:
    """The backbone knows nothing of transfer here: a plain one, on the state sampled on its own grid."""
    model, grid = build(small()), backbone_grid(20)
    plain = Backbone(small())
    weights = model.backbone.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    with torch.no_grad():
        own = plain(analytic(grid.latitude, grid.longitude)[None])[0]
    torch.testing.assert_close(forward(model, [state()], 2)[:, 1::3, 1::3], own, atol=1e-5, rtol=0)


def test_shuffling_the_subfields_changes_nothing() -> None:
    model = build(small())
    with torch.inference_mode():
        tokens = model.tokens_of([state()])
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        shuffled = model.advance(tokens[order], step=0)
        torch.testing.assert_close(shuffled, model.advance(tokens, step=0)[order], **TOLERANCE)


@pytest.mark.parametrize("mlp", ["convolution", "plain"])
@pytest.mark.parametrize("phase", [True, False])
def test_zero_start_holds_for_every_kind_of_res(mlp: str, phase: bool) -> None:
    with_res, without = (
        build(small(res_mlp=mlp, phase_embedding=phase, **c)) for c in ({}, {"res_after": ()})
    )
    assert len(with_res.res) == 1
    assert len(without.res) == 0
    torch.testing.assert_close(
        forward(with_res, [state()], 0), forward(without, [state()], 0), atol=0, rtol=0
    )


# Stages


@pytest.mark.parametrize("options", [{}, {"split": "token"}, {"res_mlp": "plain"}, {"depth": 6}], ids=str)
@pytest.mark.parametrize("batch", [9, 3, 1, 4])
def test_stages_agree_with_the_whole_for_every_batch(options: dict[str, object], batch: int) -> None:
    model = awake(**options)
    expected = forward(model, [state()], 1)
    torch.testing.assert_close(staged(model, [state()], 1, batch), expected, **TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"split": "token"}], ids=str)
@pytest.mark.parametrize("predicts", ["tendency", "state"])
def test_the_state_may_be_overwritten_in_place(options: dict[str, object], predicts: str) -> None:
    model, here = awake(predicts=predicts, **options), state()
    staged(model, [here], 0, 1, into=here)
    torch.testing.assert_close(here, forward(model, [state()], 0), **TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"split": "token"}], ids=str)
def test_two_states_of_history_are_read_oldest_first(options: dict[str, object]) -> None:
    model, old, new = awake(history=2, **options), noise(CHANNELS, *GRID.shape), state()
    expected = forward(model, [old, new], 0)
    assert not torch.allclose(expected, forward(model, [new, new], 0), atol=1e-3)
    first = model.backbone.patch.weight.detach().clone()
    result = staged(model, [old, new], 0, 3, into=old)
    assert result is old
    torch.testing.assert_close(result, expected, **TOLERANCE)
    # The newest state meets the second half of the patch weights.
    assert first.shape[1] == 2 * CHANNELS
    with torch.no_grad():
        model.backbone.patch.weight[:, :CHANNELS] = 0
        torch.testing.assert_close(
            forward(model, [new, new], 0), forward(model, [noise(CHANNELS, *GRID.shape), new], 0), **TOLERANCE
        )


def test_a_missing_state_of_history_is_refused() -> None:
    with pytest.raises(ValueError, match="2 states are needed, oldest first; got 1"):
        awake(history=2).tokens_of([state()])


def test_a_batch_of_states_is_each_state_alone() -> None:
    for options in ({}, {"split": "token"}):
        model, other = awake(**options), noise(CHANNELS, *GRID.shape)
        with torch.no_grad():
            both = model(torch.stack([state(), other]), 0)
        torch.testing.assert_close(both[0], forward(model, [state()], 0), **TOLERANCE)
        torch.testing.assert_close(both[1], forward(model, [other], 0), **TOLERANCE)


def test_bfloat16_keeps_the_state_in_float32() -> None:
    model, fine = awake(), state()
    expected = staged(model, [fine], 0, 3) - fine
    tendency = staged(model.bfloat16(), [fine], 0, 3) - fine
    assert tendency.dtype == torch.float32
    assert (tendency - expected).abs().max() < 0.1 * expected.abs().max()


# Tokens split instead of pixels


def token_split_written_out(model: TransferModel, fine: Tensor, step: int) -> Tensor:
    """Patch by patch on the pole-to-pole rows, sub-field by sub-field, one deconvolution over the globe."""
    net, inner = model.backbone, fine[:, 1:-1]
    patches = torch.stack(
        [torch.stack([inner[:, 3 * i : 3 * i + 4, 3 * j : 3 * j + 3] for j in range(72)]) for i in range(36)]
    )
    tokens = torch.einsum("ijcrs,wcrs->ijw", patches, net.patch.weight) + net.patch.bias
    moved = torch.empty_like(tokens)
    for a in range(3):
        for b in range(3):
            alone = tokens[None, a::3, b::3] + net.position
            for block in net.blocks:
                alone = block(alone, step)
            moved[a::3, b::3] = alone[0]
    features = F.linear(net.decoder.norm(moved), net.decoder.narrow.weight)
    decoded = torch.zeros_like(inner)
    for r in range(4):
        for s in range(3):
            rows = slice(r, r + 3 * 36 if r < 3 else None, 3)
            decoded[:, rows, s::3] += torch.einsum(
                "ijf,fc->cij", features, net.decoder.deconvolution.weight[..., r, s]
            )
    whole = fine.clone()
    whole[:, 1:-1] += decoded
    return whole


def test_the_token_split_is_its_formula_poles_included() -> None:
    model, fine = build(small(split="token")), state()
    with torch.no_grad():
        expected = token_split_written_out(model, fine, 1)
    torch.testing.assert_close(forward(model, [fine], 1), expected, atol=2e-5, rtol=0)


def test_the_token_split_predicts_every_row_and_leaves_those_beyond_the_poles() -> None:
    model, fine = awake(split="token"), state()
    result = staged(model, [fine], 0, 3)
    change = (result - fine).abs().amax(-1)
    assert (change[:, 1:-1] > 1e-3).all()
    assert not change[:, [0, -1]].any()
    one, zero = np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)
    GRID.refill_beyond_poles(result.numpy(), sign=one, offset=zero)
    assert torch.equal(result[:, 0], result[:, 2].roll(108, -1))
    assert torch.equal(result[:, -1], result[:, -3].roll(108, -1))


def test_the_token_split_does_not_read_beyond_the_poles() -> None:
    model, fine, other = awake(split="token"), state(), state()
    other[:, [0, -1]] += 100
    torch.testing.assert_close(
        forward(model, [other], 0)[:, 1:-1], forward(model, [fine], 0)[:, 1:-1], atol=0, rtol=0
    )


def test_the_two_splits_differ() -> None:
    """A token of the token-level split covers a third of the ground each way: other weights, other forecasts."""
    pixel, token = awake(), awake(split="token")
    assert (forward(pixel, [state()], 0) - forward(token, [state()], 0)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("level", "pinned"),
    [
        ("pixel", (0.051939, 0.077366, 0.045306, -0.038602)),
        ("token", (-0.036748, -0.027884, 0.051638, 0.165799)),
    ],
)
def test_golden_numbers(level: str, pinned: tuple[float, ...]) -> None:
    """The tendency at both poles, the dateline and midlatitudes: weights and order of operations stay as they are."""
    model, fine = awake(split=level), state()
    change = forward(model, [fine], 2) - fine
    points = ((0, 1, 5), (1, 109, 100), (2, 55, 0), (1, 30, 215))
    found = [change[point].item() for point in points]
    assert found == pytest.approx(pinned, abs=5e-6)


# RES


def permuted(res: RES, tokens: Tensor, order: Tensor) -> Tensor:
    with torch.no_grad():
        return res(tokens[order])[torch.argsort(order)] - res(tokens)


@pytest.mark.parametrize(
    ("mlp", "phase", "tells_apart"),
    [("plain", False, False), ("plain", True, True), ("convolution", False, True)],
)
def test_only_phase_or_convolutions_tell_the_nine_apart(mlp: str, phase: bool, tells_apart: bool) -> None:
    (res,) = awake(res_mlp=mlp, phase_embedding=phase).res
    if phase:
        torch.nn.init.normal_(res.phase, generator=torch.Generator().manual_seed(1))
    tokens = noise(9, 12, 24, 24)
    difference = permuted(res, tokens, torch.tensor([4, 0, 8, 2, 1, 3, 7, 5, 6])).abs().max()
    assert (difference > 1e-2) == tells_apart
    assert tells_apart or difference < 1e-5


def test_res_exchanges_between_subfields_within_its_window() -> None:
    (res,) = awake(res_mlp="plain").res.double()  # one token of 288 moves the others very little
    tokens = noise(9, 12, 24, 24).double()
    changed = tokens.clone()
    changed[4, 5, 10, :6] += 1  # fine token (16, 31): the middle window of 3 x 3
    with torch.no_grad():
        moved = (fold(res(changed)) != fold(res(tokens))).any(-1)[0]
    window = torch.zeros(36, 72, dtype=torch.bool)
    window[12:24, 24:48] = True
    assert torch.equal(moved, window)


def test_the_phase_of_a_token_is_its_subfield() -> None:
    """With attention off, a plain RES adds mlp(norm(token + phase_k)) to every token of sub-field k."""
    (res,) = awake(res_mlp="plain").res
    torch.nn.init.normal_(res.phase, generator=torch.Generator().manual_seed(1))
    torch.nn.init.zeros_(res.proj.weight)
    tokens = noise(9, 12, 24, 24)
    with torch.no_grad():
        result = res(tokens)
        for k in range(9):
            inner = res.norm2(tokens[k] + res.phase[k])
            expected = tokens[k] + res.mlp.fc2(F.gelu(res.mlp.fc1(inner)))
            torch.testing.assert_close(result[k], expected, **TOLERANCE)


# Adapters


@pytest.mark.parametrize(
    ("group", "step", "used"),
    [(1, 0, 0), (1, 1, 1), (1, 2, 2), (1, 3, 2), (1, 59, 2), (4, 3, 0), (4, 4, 1), (4, 11, 2), (4, 12, 2)],
)
def test_adapters_of_a_step_are_merged_weights(group: int, step: int, used: int) -> None:
    """W_s = W0 + (alpha / r) B_s A_s on qkv, proj, fc1, fc2; steps beyond the last set use the last."""
    model = awake(lora_alpha=3.0, lora_group=group)
    merged = TransferModel(small(lora_steps=0, lora_alpha=3.0))
    weights = model.state_dict()
    adapted = [name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")]
    assert {name.split(".")[-1] for name in adapted} == {"qkv", "proj", "fc1", "fc2"}
    assert len(adapted) == 4 * 4
    for name in adapted:
        a, b = weights.pop(f"{name}.lora_a"), weights.pop(f"{name}.lora_b")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + 3.0 / 2 * b[used] @ a[used]
    merged.load_state_dict(weights)
    torch.testing.assert_close(
        forward(model, [state()], step), forward(merged, [state()], 0), atol=1e-5, rtol=0
    )


def test_adapters_start_at_zero_and_differ_when_awake() -> None:
    fresh, model = build(small()), awake()
    first = forward(fresh, [state()], 0)
    for step in (1, 2):
        assert torch.equal(forward(fresh, [state()], step), first)
    results = [forward(model, [state()], step) - state() for step in range(4)]
    scale = results[0].std()
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (results[one] - results[other]).std() > 0.01 * scale
    assert torch.equal(results[2], results[3])


def test_without_a_step_the_base_stands_alone() -> None:
    model = awake()
    layer = model.backbone.blocks[0].qkv
    assert isinstance(layer, AdaptedLinear)
    tokens = noise(5, 24)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias))
        with pytest.raises(ValueError, match="lead steps count from 0; got -1"):
            layer(tokens, -1)


# Training


@pytest.mark.parametrize("options", [{}, {"split": "token"}, {"res_mlp": "plain"}], ids=str)
def test_gradients_reach_res_and_the_adapters_of_the_step(options: dict[str, object]) -> None:
    model = build(small(**options))
    (model(state()[None], 1) - state()).square().mean().backward()
    (res,) = model.res
    for layer in res.last_layers.values():
        assert layer.weight.grad.abs().max() > 0
    for block in model.backbone.blocks:
        gradient = block.fc1.lora_b.grad.abs().amax((1, 2))
        assert gradient[1] > 0
        assert not gradient[[0, 2]].any()

    model = awake(**options)
    (model(state()[None], 1) - state()).square().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_step_of_training_leaves_the_start() -> None:
    model = build(small())
    only = [p for n, p in model.named_parameters() if n.startswith("res.") or ".lora_" in n]
    optimiser, target = torch.optim.AdamW(only, lr=1e-3), noise(1, CHANNELS, *GRID.shape)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = (model(state()[None], 0) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


# An untrained model that is awake


@pytest.mark.parametrize("name", ["ghr-tiny", "ghr-small"])
def test_an_awake_models_tendency_is_small_and_bounded(name: str) -> None:
    model = build(architecture(name, scale=20, channels=CHANNELS))
    wake(model, seed=0, tendency=0.02)
    fine = noise(CHANNELS, *GRID.shape)
    tendency = forward(model, [fine], 0) - fine
    assert 0.01 < tendency.std() < 0.05
    wild = 1e4 * fine
    with torch.inference_mode():
        tokens = model.advance(model.tokens_of([wild]), step=0)
        assert model.backbone.decoder(tokens).abs().max() < 0.4
