"""The backbone against published counts and against its formulas written out."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fengwu_ghr.backbone import ARCHITECTURES, Architecture, Backbone, Block, Linear, architecture
from fengwu_ghr.initialise import initialise
from fengwu_ghr.res import RES
from fengwu_ghr.transfer import TransferModel


def small(**changes: object) -> Architecture:
    sizes = {"channels": 3, "width": 24, "heads": 3, "decoder_width": 16, "lora_steps": 3, "lora_rank": 2}
    return architecture("ghr-tiny", **({"scale": 20} | sizes | changes))


def backbone(arch: Architecture, seed: int = 0) -> Backbone:
    network = Backbone(arch)
    initialise(network, seed=seed)
    return network.eval()


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from its neutral start, so that no term of a formula can hide."""
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream))
    return network


def fields(arch: Architecture, *, batch: int = 2, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(batch, arch.history * arch.channels, *arch.grid_shape, generator=stream)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_parameter_counts() -> None:
    """113.29 M a block; 3.40 B in the 24 blocks of the trunk and the 6 RES blocks; patch and position 58 M."""
    arch = architecture("ghr-4b", channels=74)
    with torch.device("meta"):
        model = TransferModel(arch)
        block = Block(3072, 16, window=None, mlp_ratio=4, linear=Linear)
    assert count(block) == 113_286_144
    assert [count(res) for res in model.res] == 6 * [113_286_144]
    trunk = sum(p.numel() for n, p in model.backbone.blocks.named_parameters() if ".lora_" not in n)
    assert trunk == 24 * 113_286_144
    assert trunk + count(model.res) == 3_398_584_320
    ends = count(model.backbone.patch) + model.backbone.position.numel()
    assert round(ends / 1e6) == 58
    adapters = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    assert adapters == 24 * 40 * 16 * (3072 + 9216 + 3072 + 3072 + 2 * (3072 + 12288))


def test_the_true_shapes() -> None:
    arch = architecture("ghr-4b", channels=74)
    assert (arch.grid_shape, arch.token_shape, arch.patch, arch.doublings) == (
        (721, 1440),
        (60, 120),
        (13, 12),
        2,
    )
    assert arch.windows == ((10, 10), (5, 20), (20, 5))
    assert (arch.res_after, arch.res_window) == ((3, 7, 11, 15, 19, 23), (60, 120))
    demo = architecture("ghr-tiny", scale=20)
    assert (demo.grid_shape, demo.token_shape, demo.patch, demo.doublings) == ((37, 72), (12, 24), (4, 3), 0)
    assert demo.res_window == (12, 24)


@pytest.mark.parametrize("scale", [1, 2, 10, 20])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_maps_fields_to_fields_of_its_grid(name: str, scale: int) -> None:
    arch = architecture(name, scale=scale, channels=5)
    with torch.device("meta"):
        network = Backbone(arch)
        out = network(torch.empty(1, 5, *arch.grid_shape))
    assert out.shape == (1, 5, *arch.grid_shape)


def test_a_stride_of_six_doubles_once() -> None:
    arch = small(scale=10, stride=6, up_blocks=(16, 8))
    assert (arch.doublings, arch.token_shape) == (1, (12, 24))
    assert backbone(arch)(fields(arch)).shape == (2, 3, 73, 144)


def test_windows_take_turns_and_every_fourth_block_is_global() -> None:
    arch = small(depth=9)
    cycle = [block.window for block in backbone(arch).blocks]
    assert cycle == [*arch.windows, None, *arch.windows, None, arch.windows[0]]
    assert arch.res_after == (3, 7)


def written_out(block: Block, tokens: Tensor, window: tuple[int, int]) -> Tensor:
    """One pre-norm block of one field, window by window, head by head."""
    rows, columns, width = tokens.shape
    depth = width // block.heads
    normed = F.layer_norm(tokens, (width,), block.norm1.weight, block.norm1.bias, eps=1e-6)
    whole = torch.zeros(-(-rows // window[0]) * window[0], -(-columns // window[1]) * window[1], width)
    whole[:rows, :columns] = normed  # what is filled up is zero before the bias, not after
    q, k, v = F.linear(whole, block.qkv.weight, block.qkv.bias).split(width, dim=-1)
    mixed = torch.empty_like(whole)
    for top in range(0, whole.shape[0], window[0]):
        for left in range(0, whole.shape[1], window[1]):
            here = slice(top, top + window[0]), slice(left, left + window[1])
            for head in range(block.heads):
                part = slice(head * depth, (head + 1) * depth)
                one, other, what = (x[here][..., part].reshape(-1, depth) for x in (q, k, v))
                weights = (one @ other.T / sqrt(depth)).softmax(-1)
                mixed[(*here, part)] = (weights @ what).view(*window, depth)
    tokens = tokens + F.linear(mixed, block.proj.weight, block.proj.bias)[:rows, :columns]
    normed = F.layer_norm(tokens, (width,), block.norm2.weight, block.norm2.bias, eps=1e-6)
    hidden = F.linear(normed, block.fc1.weight, block.fc1.bias)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / sqrt(2)))
    return tokens + F.linear(hidden, block.fc2.weight, block.fc2.bias)


@pytest.mark.parametrize("window", [(6, 6), (5, 7), None])
def test_a_block_is_its_formula(window: tuple[int, int] | None) -> None:
    block = Block(12, 2, window=window, mlp_ratio=4, linear=Linear)
    initialise(block, seed=1)
    randomised(block)
    tokens = torch.randn(2, 12, 24, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        result = block(tokens)
        for field, expected in zip(tokens, result):
            torch.testing.assert_close(
                written_out(block, field, window or (12, 24)), expected, atol=2e-5, rtol=0
            )


def test_a_token_sees_its_patch_and_the_last_row_is_seen() -> None:
    arch = small()
    network, values = backbone(arch), fields(arch, batch=1)
    changed = values.clone()
    changed[0, :, -1, 30] += 1
    with torch.no_grad():
        moved = (network.embed(values) != network.embed(changed)).any(-1)[0]
    assert moved.nonzero().tolist() == [[11, 10]]


def test_embedding_is_the_patch_product_plus_the_position() -> None:
    arch = small()
    network, values = randomised(backbone(arch)), fields(arch, batch=1)
    patch = values[0, :, 3 * 4 : 3 * 4 + 4, 3 * 7 : 3 * 7 + 3]
    with torch.no_grad():
        token = (network.patch.weight * patch).sum((1, 2, 3)) + network.patch.bias + network.position[4, 7]
        torch.testing.assert_close(network.embed(values)[0, 4, 7], token, atol=1e-4, rtol=1e-5)


def test_the_decoder_without_up_blocks_is_a_linear_map_of_each_normed_token() -> None:
    """Kernel 4, stride 3: grid row 3 i belongs to token rows i - 1 and i, all others to one; the last row too."""
    arch = small()
    decoder = randomised(backbone(arch).decoder)
    tokens = torch.randn(1, 12, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        out = decoder(tokens)[0]
        features = F.linear(decoder.norm(tokens), decoder.narrow.weight)[0]
        weight = decoder.deconvolution.weight  # (feature, channel, row, column)
        inside = torch.einsum("f,fc->c", features[5, 9], weight[:, :, 1, 2])
        shared = torch.einsum("f,fc->c", features[4, 9], weight[:, :, 3, 0])
        shared += torch.einsum("f,fc->c", features[5, 9], weight[:, :, 0, 0])
        last = torch.einsum("f,fc->c", features[11, 9], weight[:, :, 3, 0])
    assert out.shape == (3, 37, 72)
    torch.testing.assert_close(out[:, 16, 29], inside, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:, 15, 27], shared, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:, 36, 27], last, atol=1e-4, rtol=1e-4)


def test_an_up_block_is_its_formula() -> None:
    arch = small(scale=10, stride=6, up_blocks=(32, 8))
    first, second = (randomised(block) for block in backbone(arch).decoder.up_blocks)
    x = torch.randn(1, 16, 5, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        h = F.conv2d(F.silu(F.group_norm(x, 4, first.norm1.weight, first.norm1.bias, eps=1e-6)),
                     first.conv1.weight, first.conv1.bias, padding=1)  # fmt: skip
        h = F.conv2d(F.silu(F.group_norm(h, 8, first.norm2.weight, first.norm2.bias, eps=1e-6)),
                     first.conv2.weight, first.conv2.bias, padding=1)  # fmt: skip
        joined = h + F.conv2d(x, first.shortcut.weight, first.shortcut.bias)
        doubled = joined.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = F.conv2d(doubled, first.upsample.weight, first.upsample.bias, padding=1)
        torch.testing.assert_close(first(x), expected, atol=1e-3, rtol=1e-4)
        assert second(expected).shape == (1, 8, 10, 12)
    assert second.upsample is None


@pytest.mark.parametrize("history", [1, 2])
def test_a_tendency_is_added_to_the_newest_state_and_a_state_stands_alone(history: int) -> None:
    tendency, state = (backbone(small(history=history, predicts=p)) for p in ("tendency", "state"))
    values = fields(tendency.architecture)
    with torch.no_grad():
        difference = tendency(values) - state(values)
    torch.testing.assert_close(difference, values[:, -3:], atol=1e-5, rtol=0)


def test_positions_start_as_sines_and_cosines_of_row_and_column() -> None:
    position = backbone(small()).position.detach()
    assert position.shape == (12, 24, 24)
    for wave in range(6):
        frequency = torch.tensor(10000.0 ** (-wave / 6))
        angles = torch.tensor(7.0) * frequency, torch.tensor(19.0) * frequency
        expected = [angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()]
        found = [position[7, 19, wave + 6 * part] for part in range(4)]
        torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-5, rtol=0)


def test_initialisation_is_of_the_stated_size() -> None:
    network = backbone(small(width=96, decoder_width=32))
    for layer, block in enumerate(network.blocks, start=1):
        assert block.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for closing in (block.proj, block.fc2):
            assert closing.weight.std().item() == pytest.approx(0.02 / sqrt(2 * layer), rel=0.05)
        assert not block.qkv.bias.any()
    tokens = network.to_tokens(fields(network.architecture))
    assert tokens.std().item() == pytest.approx(1, rel=0.1)


def test_initialisation_depends_on_seed_and_name_only() -> None:
    torch.manual_seed(1)
    first = backbone(small(), seed=3).state_dict()
    torch.manual_seed(2)
    deeper = backbone(small(depth=5), seed=3).state_dict()
    assert all(torch.equal(tensor, deeper[name]) for name, tensor in first.items())
    other = backbone(small(), seed=4).state_dict()
    assert not torch.equal(first["patch.weight"], other["patch.weight"])
    half = Backbone(small()).bfloat16()
    initialise(half, seed=3)
    for name, tensor in half.state_dict().items():
        torch.testing.assert_close(tensor.float(), first[name], atol=0, rtol=0.01)


def test_the_forward_pass_is_deterministic() -> None:
    network, values = randomised(backbone(small())), fields(small())
    torch.use_deterministic_algorithms(True)
    try:
        loss = network(values).square().mean()
        loss.backward()
        with torch.no_grad():
            assert torch.equal(network(values), network(values))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_res_block_counts_as_a_block() -> None:
    with torch.device("meta"):
        plain = RES(small(res_mlp="plain", phase_embedding=False))
        block = Block(24, 3, window=None, mlp_ratio=4, linear=Linear)
        phased = RES(small(res_mlp="plain", phase_embedding=True))
    assert count(plain) == count(block)
    assert count(phased) - count(plain) == 9 * 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 5}, "a stride of 3, 6 or 12 that divides 36 rows and 72 columns"),
        ({"stride": 12}, "2 or more up_blocks"),
        ({"heads": 5}, "a width that 5 heads and 4 divide"),
        ({"width": 0}, "positive counts and widths"),
        ({"windows": ((6, 0),)}, "positive windows"),
        ({"res_after": (3, 4)}, "rising block numbers in res_after"),
        ({"res_after": (2, 1)}, "rising block numbers in res_after"),
        ({"lora_rank": 0}, "a positive lora_rank where there are lora_steps"),
        ({"lora_group": 0}, "one or more lead steps per set of adapters"),
        ({"history": 3}, "a history of 1 or 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_an_unknown_architecture_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no architecture is named 'ghr-huge'; there are ghr-4b, ghr-large"):
        architecture("ghr-huge")
