"""The network: the mixer undoes itself, an untrained network persists, sizes do not matter, shapes are checked."""

import pytest
import torch

from fengwu_ghr.nowcast.model import NowcastArchitecture, NowcastNet, SpatialMixer, build_network

TRANSLATORS = ("impa", "gsta", "tau")


def tiny(**changes: object) -> NowcastArchitecture:
    small = {"stem": 4, "hidden": 8, "width": 16, "depth": 2, "leads": 6}
    return NowcastArchitecture(name="tiny", **{**small, **changes})  # type: ignore[arg-type]


def awake(architecture: NowcastArchitecture) -> NowcastNet:
    """A network whose last layer is not zero."""
    network = build_network(architecture, seed=1)
    torch.nn.init.normal_(network.decoder.read.weight, generator=torch.Generator().manual_seed(2))
    return network.eval()


def fields(batch: int = 2, rows: int = 32, columns: int = 40) -> torch.Tensor:
    return torch.rand(batch, 4, 4, rows, columns, generator=torch.Generator().manual_seed(0))


def test_the_mixer_is_its_own_inverse() -> None:
    x, mixer = fields()[0], SpatialMixer()
    mixed = mixer(x)
    assert torch.equal(mixer(mixed), x)
    assert not torch.equal(mixed, x)
    assert not list(mixer.parameters())


def test_the_mixer_exchanges_fields_and_places_of_each_block() -> None:
    """Channel k at position j of a block is field j at position k; each block keeps its numbers."""
    x = torch.arange(4 * 4 * 6, dtype=torch.float32).reshape(1, 4, 4, 6)
    mixed = SpatialMixer()(x)
    for k in range(4):
        for j in range(4):
            got, came = mixed[0, k, j // 2 :: 2, j % 2 :: 2], x[0, j, k // 2 :: 2, k % 2 :: 2]
            assert torch.equal(got, came)
    sums = [torch.nn.functional.avg_pool2d(v, 2).sum(dim=1) for v in (x, mixed)]
    torch.testing.assert_close(*sums)


@pytest.mark.parametrize("translator", TRANSLATORS)
def test_before_training_it_persists(translator: str) -> None:
    x = fields()
    made = build_network(tiny(translator=translator), seed=0)(x, torch.tensor([5.0, 10.0]))
    assert made.shape == (2, 6, 32, 40)
    torch.testing.assert_close(made, x[:, -1:, 0].expand_as(made))


@pytest.mark.parametrize("translator", TRANSLATORS)
def test_every_part_learns(translator: str) -> None:
    network = awake(tiny(translator=translator))
    network(fields(), torch.tensor([5.0, 10.0])).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_it_hears_the_step_and_every_frame() -> None:
    network, x = awake(tiny()), fields(1)
    plain = network(x, torch.tensor([5.0]))
    assert not torch.allclose(plain, network(x, torch.tensor([10.0])))
    for frame in range(4):
        other = x.clone()
        other[:, frame, 0] += 0.3
        assert not torch.allclose(plain, network(other, torch.tensor([5.0])))


def test_chosen_leads_are_those_of_all() -> None:
    network, x, minutes = awake(tiny()), fields(), torch.tensor([5.0, 5.0])
    every = network(x, minutes)
    chosen = network(x, minutes, torch.tensor([[0, 5], [3, 1]]))
    torch.testing.assert_close(chosen, torch.stack([every[0, [0, 5]], every[1, [3, 1]]]))


def test_what_lies_far_away_changes_nothing() -> None:
    """A forecast over a part of a domain is that over all of it: nothing is averaged over the whole."""
    network, x = awake(tiny(depth=1)), fields(1, 32, 800)
    far = x.clone()
    far[..., 700:] = 0
    one, other = (network(v, torch.tensor([5.0])) for v in (x, far))
    torch.testing.assert_close(one[..., :200], other[..., :200])
    assert not torch.allclose(one[..., 690:], other[..., 690:])


def test_the_default_is_small_enough_for_few_events() -> None:
    counts = {
        kind: sum(p.numel() for p in NowcastNet(NowcastArchitecture("x", translator=kind)).parameters())
        for kind in TRANSLATORS
    }
    assert max(counts.values()) <= 1_500_000


def test_seeds_make_weights() -> None:
    one, same, other = (build_network(tiny(), seed=seed) for seed in (1, 1, 2))
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters()))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leads": 0}, "positive leads"),
        ({"fields": 2}, "4 fields where they are mixed"),
        ({"mixer": False, "fields": 5}, "1 to 4 fields"),
        ({"inputs": 2}, "3 or more input frames"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(**changes)
