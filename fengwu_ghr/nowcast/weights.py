"""Checkpoints of nowcasts: a folder of `model.toml` and one safetensors file, hashed, loaded strictly or not at all."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import save_file

from fengwu_ghr.checkpoint import check_files, check_same_tensors, hash_of, headers, put_folder, tensors_in
from fengwu_ghr.errors import UsageError
from fengwu_ghr.model_card import CARD, Strict, read_card_of, write_card
from fengwu_ghr.nowcast.model import NowcastArchitecture, NowcastNet

PACKAGED = Path(__file__).parents[1] / "embedded" / "nowcast"
WEIGHTS = "weights.safetensors"


class NowcastCard(Strict):
    """What `model.toml` of a nowcast says. `files` maps the weight file to its sha256."""

    format: Literal[1] = 1
    kind: Literal["nowcast"] = "nowcast"
    name: str = Field(min_length=1)
    description: str
    trained: bool
    licence: str
    shortest_step_minutes: int = Field(gt=0)
    longest_step_minutes: int = Field(gt=0)
    """Steps between frames that it was trained on, from and to."""
    architecture: NowcastArchitecture
    provenance: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class NowcastModel:
    """A folder whose card is valid and whose weights are those the card lists, bit for bit."""

    folder: Path
    card: NowcastCard

    @classmethod
    def open(cls, folder: Path) -> "NowcastModel":
        """Raises UsageError on the first defect."""
        card = read_card_of(NowcastCard, folder)
        check_files(folder, card.files)
        return cls(folder, card)

    @cached_property
    def digest(self) -> str:
        """sha256 of the card, which holds the sum of the weights."""
        return hash_of(self.folder / CARD)

    def network(self) -> NowcastNet:
        """The network with these weights. Raises UsageError naming tensors that are missing, extra or misshapen."""
        with torch.device("meta"):
            outline = NowcastNet(self.card.architecture)
        wanted = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
        files = [self.folder / name for name in self.card.files]
        check_same_tensors(self.folder, self.card.architecture.name, wanted, headers(files))
        outline.load_state_dict(dict(tensors_in(files)), strict=True, assign=True)
        return outline.float().eval()

    def check_step(self, minutes: int) -> None:
        """Raises UsageError for frames at a step that it was not trained on."""
        card = self.card
        if not card.shortest_step_minutes <= minutes <= card.longest_step_minutes:
            raise UsageError(
                f"{card.name} was trained on steps of {card.shortest_step_minutes} to {card.longest_step_minutes} "
                f"minutes; these frames are {minutes} minutes apart: leave frames out with --every, or train for it"
            )


def save_nowcast(folder: Path, network: NowcastNet, card: NowcastCard) -> NowcastModel:
    """The network in a new folder, whole or not at all. Raises OutputError where it exists or cannot be written."""
    if card.architecture != network.architecture:
        raise ValueError(f"the card is of {card.architecture}, the network of {network.architecture}")

    def write(made: Path) -> None:
        tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, made / WEIGHTS)
        (made / WEIGHTS).chmod(0o644)
        write_card(made, card.model_copy(update={"files": {WEIGHTS: hash_of(made / WEIGHTS)}}))

    put_folder(folder, write)
    return NowcastModel.open(folder)


def resolve_nowcast(name: str) -> NowcastModel:
    """The model of a folder, or one that the package brings. Raises UsageError listing those."""
    if Path(name).is_dir():
        return NowcastModel.open(Path(name))
    there = sorted(path.parent.name for path in PACKAGED.glob(f"*/{CARD}"))
    if name in there:
        return NowcastModel.open(PACKAGED / name)
    raise UsageError(
        f"no nowcast model is named {name!r}; there are {', '.join(there) or 'none'}; or give the folder of one, which "
        f"`fengwu-ghr nowcast train` made"
    )
