"""Weights before training: where transfer starts, and an untrained network that is awake.

Every parameter is filled from a random stream of its own, fixed by the seed and the parameter's name: numbers do not
depend on what was drawn before, and adding a part to a network leaves the others as they were.
"""

import hashlib
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fengwu_ghr.backbone import Architecture, Backbone, Block
from fengwu_ghr.diffusion import Diffusion
from fengwu_ghr.joint import Joint
from fengwu_ghr.res import RES
from fengwu_ghr.sharing import Sharing
from fengwu_ghr.transfer import AdaptedLinear, TransferModel


def build(architecture: Architecture, *, seed: int = 0) -> TransferModel:
    """A transferred model at the start of transfer: RES blocks and adapters change nothing yet."""
    with torch.device("meta"):
        model = TransferModel(architecture)
    model = model.to_empty(device="cpu")
    initialise(model, seed=seed)
    return model


@torch.no_grad()
def initialise(network: nn.Module, *, seed: int) -> None:
    """Fills every parameter of a backbone or a transferred model.

    Linear weights are normal with std 0.02, those that close the branches of block n divided by √(2n);
    convolutions are uniform and keep the variance; biases 0, norms 1, positions sin-cos. RES blocks end in zeros.
    Adapters: A uniform (Kaiming's for a = √5), B zero.
    """
    for path, part in network.named_modules():
        if isinstance(part, nn.Linear):
            _fill_normal(part.weight, std=0.02, stream=_stream(seed, path))
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            _fill_uniform(part.weight, bound=sqrt(3 / _fan_in(part)), stream=_stream(seed, path))
        elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, AdaptedLinear):
            bound = 1 / sqrt(part.in_features)
            _fill_uniform(part.lora_a, bound=bound, stream=_stream(seed, f"{path}.lora_a"))
            nn.init.zeros_(part.lora_b)
        if isinstance(getattr(part, "bias", None), nn.Parameter):
            nn.init.zeros_(part.bias)
    for part in network.modules():
        if isinstance(part, Backbone):
            _finish_backbone(part)
        elif isinstance(part, RES):
            _start_at_the_split(part)
        elif isinstance(part, Joint) and part.phase is not None:
            nn.init.zeros_(part.phase)
        elif isinstance(part, Sharing | Diffusion):
            part.start()


@torch.no_grad()
def wake(model: TransferModel, *, seed: int, tendency: float) -> None:
    """Gives an untrained model RES blocks that act, adapters that differ at every step, and this rms of its output.

    A norm stands before the decoder, so that what the decoder adds in a step is bounded whatever the state.
    """
    decoder = model.backbone.decoder
    _fill_normal(
        decoder.narrow.weight, std=decoder.narrow.in_features**-0.5, stream=_stream(seed, "narrow.awake")
    )
    deconvolution = decoder.deconvolution
    bound = tendency * sqrt(3 / _fan_in(deconvolution))
    _fill_uniform(deconvolution.weight, bound=bound, stream=_stream(seed, "deconvolution.awake"))
    for path, part in model.named_modules():
        if isinstance(part, RES):
            for name, layer in part.last_layers.items():
                _fill_normal(layer.weight, std=0.02, stream=_stream(seed, f"{path}.{name}.awake"))
        elif isinstance(part, AdaptedLinear):
            # About a quarter of the base weights' effect, whatever the rank.
            std = 0.2 * sqrt(model.architecture.lora_rank)
            _fill_normal(part.lora_b, std=std, stream=_stream(seed, f"{path}.lora_b.awake"))


def _finish_backbone(backbone: Backbone) -> None:
    rows, columns, width = backbone.position.shape
    along_rows = _waves(rows, width // 2)[:, None].expand(rows, columns, -1)
    along_columns = _waves(columns, width // 2)[None].expand(rows, columns, -1)
    backbone.position.copy_(torch.cat([along_rows, along_columns], dim=-1))
    for layer, block in enumerate(backbone.blocks, start=1):
        assert isinstance(block, Block)
        block.proj.weight.div_(sqrt(2 * layer))
        block.fc2.weight.div_(sqrt(2 * layer))


def _start_at_the_split(res: RES) -> None:
    for layer in res.last_layers.values():
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    if res.phase is not None:
        nn.init.zeros_(res.phase)


def _waves(positions: int, width: int) -> Float[Tensor, "position width"]:
    """Sines, then cosines, of position / 10000^(2 i / width)."""
    frequency = 10000 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    phase = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


def _fan_in(convolution: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """How many products are summed into one output number."""
    if isinstance(convolution, nn.ConvTranspose2d):
        return convolution.in_channels  # its stride is its kernel, but for one shared row: one tap per output
    return convolution.in_channels * convolution.kernel_size[0] * convolution.kernel_size[1]


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _fill_normal(parameter: Tensor, *, std: float, stream: torch.Generator) -> None:
    """Normal numbers cut at ±2, drawn in float32 whatever the parameter's precision."""
    parameter.copy_(nn.init.trunc_normal_(torch.empty(parameter.shape), std=std, generator=stream))


def _fill_uniform(parameter: Tensor, *, bound: float, stream: torch.Generator) -> None:
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=stream))
