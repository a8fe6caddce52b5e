"""An embedding model: a backbone, a linear head and the unit sphere; its folder is a backbone folder with a head."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lookalike.backbones import Backbone, folder_files, load_backbone
from lookalike.errors import BackboneError

HEAD = "head.safetensors"


class Embedding(nn.Module):
    """Pictures (B, C, H, W), normalised, to vectors (B, dim): of length 1, or as the head gives them without `unit`.

    Without, nearness is the Euclidean distance, not the cosine. The head begins as an orthogonal map, so that
    fine-tuning starts from the backbone's own angles.
    """

    def __init__(self, backbone: Backbone, dim: int, *, unit: bool = True) -> None:
        super().__init__()
        self.backbone, self.dim, self.unit = backbone, dim, unit
        self.head = nn.Linear(backbone.dim, dim)
        nn.init.orthogonal_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.architecture = backbone.architecture

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        return F.normalize(self.raw(x_BCHW), dim=1) if self.unit else self.raw(x_BCHW)

    def raw(self, x_BCHW: Tensor) -> Tensor:
        """The same before it is brought to length 1, for objectives to which lengths say something."""
        found: Tensor = self.head(self.backbone(x_BCHW)).float()
        return found

    @torch.no_grad()
    def fold(self, weight_KD: Tensor, bias_K: Tensor) -> None:
        """Appends x -> W x + b to the head; `dim` becomes K."""
        old, self.dim = self.head, len(bias_K)
        self.head = nn.Linear(self.backbone.dim, self.dim, device=old.weight.device)
        self.head.weight.copy_(weight_KD @ old.weight)
        self.head.bias.copy_(weight_KD @ old.bias + bias_K)


def embedding_files(model: Embedding) -> dict[str, bytes]:
    """The backbone's files and `head.safetensors`: weight, bias, and `unit` where it is false."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in model.head.state_dict().items()}
    if not model.unit:
        tensors["unit"] = torch.tensor(False)
    return {**folder_files(model.backbone), HEAD: save(tensors)}


def load_model(folder: str | Path) -> Backbone | Embedding:
    """The embedding model or plain backbone of a folder, in eval mode. Raises BackboneError as load_backbone does."""
    backbone = load_backbone(folder)
    path = Path(folder) / HEAD
    if HEAD not in json.loads((Path(folder) / "manifest.json").read_bytes())["files"]:
        return backbone
    try:
        tensors = load_file(path)
        unit = bool(tensors.pop("unit", True))
        model = Embedding(backbone, len(tensors["bias"]), unit=unit)
        model.head.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"{path}: the head does not fit its backbone of {backbone.dim} features: export it again"
        ) from error
    return model.eval()
