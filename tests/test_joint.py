"""Global attention of the nine together, against dense attention over the folded tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.backbone import Architecture, architecture
from fengwu_ghr.catalogue import create_model
from fengwu_ghr.engine.torch_engine import Compute, check_joint
from fengwu_ghr.errors import UsageError
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.joint import joint_attention
from fengwu_ghr.transfer import TransferModel

HEADS, PLACES = 2, (12, 24)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nine(spread: float, seed: int = 0) -> Tensor:
    """Queries, keys and values of two states, the nine of a place alike but for the spread."""
    common = random(2, 1, 288, 3 * 16, seed=seed).expand(-1, 9, -1, -1)
    return (common + spread * random(2, 9, 288, 3 * 16, seed=seed + 1)).flatten(0, 1)


def dense(qkv: Tensor) -> Tensor:
    """Every fine token against every fine token of its state."""
    tokens = qkv.unflatten(0, (2, 9)).flatten(1, 2)  # (state, nine * place, 3 * width)
    q, k, v = tokens.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return out.unflatten(1, (9, 288)).flatten(0, 1)


def joint(qkv: Tensor, kind: str, retrieval: float = 0.05) -> Tensor:
    return joint_attention(qkv, kind=kind, heads=HEADS, places=PLACES, retrieval=retrieval)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "retrieval"), [("dense", 0.05), ("wave", 1.0)])
def test_exact_kinds_are_dense_attention_over_the_whole_state(kind: str, retrieval: float) -> None:
    qkv = nine(spread=1.0)
    torch.testing.assert_close(joint(qkv, kind, retrieval), dense(qkv), atol=1e-5, rtol=1e-4)


def test_alike_keys_need_no_retrieval() -> None:
    """Where the nine of a place are the same, means say all: uniform replication cancels."""
    qkv = nine(spread=0.0)
    for kind in ("means", "wave"):
        torch.testing.assert_close(joint(qkv, kind, 0.0), dense(qkv), atol=1e-5, rtol=1e-4)


def test_wave_is_closer_than_means() -> None:
    qkv = nine(spread=0.3)
    exact = dense(qkv)
    means, estimated, retrieved = (
        float((joint(qkv, *how) - exact).norm() / exact.norm())
        for how in (("means",), ("wave", 0.0), ("wave", 0.3))
    )
    assert retrieved < 0.6 * means
    assert retrieved < estimated < means < 0.06


def test_gradients_are_those_of_dense_attention() -> None:
    gradients = []
    for kind, retrieval in (("dense", 0.0), ("wave", 1.0)):
        qkv = nine(spread=0.5).requires_grad_()
        (joint(qkv, kind, retrieval) ** 2).sum().backward()
        gradients.append(qkv.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_gradients_reach_what_is_estimated() -> None:
    qkv = nine(spread=0.5).requires_grad_()
    joint(qkv, "wave", 0.0).square().sum().backward()
    assert qkv.grad is not None
    assert (qkv.grad != 0).any(-1).all()


def test_bfloat16_agrees() -> None:
    qkv = nine(spread=0.2)
    exact = dense(qkv)
    assert float((joint(qkv.bfloat16(), "wave").float() - exact).norm() / exact.norm()) < 0.05


def small(**changes: object) -> Architecture:
    return architecture("ghr-tiny", scale=20, channels=5, lora_steps=0, phase_embedding=False, **changes)


def awake(shape: Architecture) -> TransferModel:
    model = build(shape, seed=3)
    wake(model, seed=3, tendency=0.1)
    return model.eval()


def test_a_step_with_a_full_budget_is_that_with_dense_attention() -> None:
    states = random(1, 5, 111, 216)
    with torch.inference_mode():
        wave, exact, none = (
            awake(small(**kind))(states, 0)
            for kind in ({"joint": "wave", "joint_retrieval": 1.0}, {"joint": "dense"}, {})
        )
    torch.testing.assert_close(wave, exact, atol=1e-4, rtol=1e-4)
    assert (exact - none).abs().max() > 1e-4


def test_the_whole_and_the_stages_agree() -> None:
    model, states = awake(small(joint="wave", joint_phase=True)), random(1, 5, 111, 216)
    with torch.inference_mode():
        whole = model(states, 0)
        for batch in (9, 3, 1):
            tokens = model.advance(model.tokens_of([states[0]], batch=batch), step=0, batch=batch)
            target = torch.empty_like(states[0])
            model.write_next(target, states[0], tokens=tokens, batch=batch)
            torch.testing.assert_close(target, whole[0], atol=1e-4, rtol=1e-4)


def test_a_phase_tells_the_nine_apart() -> None:
    """It starts at zero and changes nothing; once learned it does."""
    states = random(1, 5, 111, 216)
    plain, told = awake(small(joint="dense")), awake(small(joint="dense", joint_phase=True))
    with torch.inference_mode():
        assert torch.equal(plain(states, 0), told(states, 0))
        for part in told.joint.values():
            part.phase.copy_(random(*part.phase.shape))
        assert (plain(states, 0) - told(states, 0)).abs().max() > 1e-4


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="joint global attention for joint_phase"):
        small(joint_phase=True)
    with pytest.raises(ValueError, match="a share from 0 to 1 in joint_retrieval"):
        small(joint="wave", joint_retrieval=2.0)


def test_what_takes_blocks_apart_is_refused(tmp_path: Path) -> None:
    plain = create_model("ghr-tiny-1p8", output=tmp_path / "model", init="zero")
    card = plain.card.model_copy(update={"architecture": replace(plain.architecture, joint="wave")})
    with pytest.raises(UsageError, match="got paging: leave it out"):
        check_joint(replace(plain, card=card), Compute(paging=True))
    check_joint(plain, Compute(paging=True))
