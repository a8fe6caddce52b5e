"""An embedding model: a backbone, a head and perhaps the unit sphere; its folder is a backbone
folder with a head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from lookalike.errors import BackboneError, printable
from lookalike.folder import read_manifest
from lookalike.geometry import Distance
from lookalike.models import Architecture, Backbone, open_backbone
from lookalike.models.classifier import Classifier, classifier_from
from lookalike.models.stored import mapped, misfit
from lookalike.models.weights import open_folder

HEAD = "head.safetensors"


class Embedding(nn.Module):
    """Images (B, C, H, W), normalised, to vectors (B, dim): of length 1 where their `distance` is
    the cosine, else as the head gives them.

    The head is a linear layer, begun as an orthogonal map, so that fine-tuning starts from the
    backbone's own angles, or nothing where `dim` is None; then, with `batchnorm`, a BatchNorm,
    which a folder holds as part of the linear layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        dim: int | None,
        *,
        distance: Distance = "cosine",
        batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.dim, self.distance = backbone, dim or backbone.dim, distance
        self.head = None if dim is None else nn.Linear(backbone.dim, dim)
        if self.head is not None:
            nn.init.orthogonal_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.norm: nn.Module | None = nn.BatchNorm1d(self.dim) if batchnorm else None
        self.architecture = backbone.architecture

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        z_BD = self.raw(x_BCHW)
        return F.normalize(z_BD, dim=1) if self.distance == "cosine" else z_BD

    def raw(self, x_BCHW: Tensor) -> Tensor:
        """The same before it is brought to length 1, for objectives to which lengths say
        something.
        """
        h_BD: Tensor = self.backbone(x_BCHW)
        z_BD = (h_BD if self.head is None else self.head(h_BD)).float()
        return z_BD if self.norm is None else self.norm(z_BD)

    @property
    def trunk(self) -> Backbone:
        """The backbone below the head."""
        return self.backbone

    def files(self) -> dict[str, bytes]:
        """The files of the model's folder: the backbone's, and `head.safetensors` with weight and
        bias where there is a head, `unit` where vectors keep their lengths.
        """
        tensors: dict[str, Tensor] = {}
        if (linear := self.linear()) is not None:
            tensors = {
                n: t.detach().float().cpu().clone()
                for n, t in zip(("weight", "bias"), linear, strict=True)
            }
        if self.distance == "euclidean":
            tensors["unit"] = torch.tensor(False)
        return {**self.backbone.files(), HEAD: save(tensors)}

    @torch.no_grad()
    def linear(self) -> tuple[Tensor, Tensor] | None:
        """(W, b) of the head as it is in eval mode, BatchNorm inside, computed in fp64; None where
        there is no head.
        """
        found = None if self.head is None else (self.head.weight, self.head.bias)
        if self.norm is None:
            return found
        norm: Any = self.norm
        slope_D = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        return _after(
            found, slope_D.diag(), norm.bias.double() - slope_D * norm.running_mean.double()
        )

    @torch.no_grad()
    def fold(self, weight_KD: Tensor, bias_K: Tensor) -> None:
        """Appends x -> W x + b to the head, and makes one linear layer of all of it; `dim` becomes
        K.
        """
        weight_KH, bias_K = _after(self.linear(), weight_KD, bias_K)
        self.dim, self.norm = len(bias_K), None
        self.head = nn.Linear(self.backbone.dim, self.dim, device=weight_KH.device)
        self.head.weight.copy_(weight_KH)
        self.head.bias.copy_(bias_K)

    @torch.no_grad()
    def put(self, weight_KH: Tensor, bias_K: Tensor) -> None:
        """Makes x -> W x + b the head; `dim` becomes K. No random number is drawn."""
        self.dim = len(bias_K)
        self.head = nn.Linear(self.backbone.dim, self.dim, device="meta").to_empty(
            device=weight_KH.device
        )
        self.head.weight.copy_(weight_KH)
        self.head.bias.copy_(bias_K)


def _after(
    first: tuple[Tensor, Tensor] | None, weight_KD: Tensor, bias_K: Tensor
) -> tuple[Tensor, Tensor]:
    """W (A x + a) + b as one map."""
    if first is None:
        return weight_KD, bias_K
    return weight_KD.double() @ first[0].double(), weight_KD.double() @ first[
        1
    ].double() + bias_K.double()


def embedding_files(model: Embedding) -> dict[str, bytes]:
    """`model.files()`."""
    return model.files()


def open_model(what: nn.Module | str | Path, like: Architecture | None) -> Any:
    """A model in memory, an embedding or backbone folder, or a timm name, which gets size and
    channels of `like`, as a module of one's own does. A classifier's folder stands for the
    backbone below it.
    """
    if isinstance(what, nn.Module):
        return what if hasattr(what, "architecture") else open_backbone(what, like)
    if (Path(what) / "manifest.json").exists():
        model = load_model(what)
        return model.trunk if isinstance(model, Classifier) else model
    return open_backbone(what, like).eval()


def load_model(
    folder: str | Path, module: nn.Module | None = None
) -> Backbone | Embedding | Classifier:
    """The embedding model, classifier or plain backbone of a folder, in eval mode. `module` and
    errors are those of load_backbone.
    """
    folder = Path(folder)
    opened = open_folder(folder, module)
    if (classifier := classifier_from(opened)) is not None:
        return classifier
    backbone = opened.backbone
    if HEAD not in read_manifest(folder, BackboneError)["files"]:
        return backbone
    stored = mapped(folder / HEAD)
    if problem := misfit(stored, _wanted(stored, backbone.dim)):
        raise BackboneError(
            f"{printable(folder / HEAD)}: the head does not fit its backbone of {backbone.dim} "
            f"features: {problem}: "
            "export it again"
        )
    unit = bool(stored.pop("unit", True))
    model = Embedding(backbone, None, distance="cosine" if unit else "euclidean")
    if stored:
        model.put(stored["weight"], stored["bias"])
    return model.eval()


def _wanted(stored: Mapping[str, Tensor], features: int) -> dict[str, Tensor]:
    """What a head's file must hold, without memory: as many rows as its bias has numbers, and
    `unit` if it is there.
    """
    bias = stored.get("bias")
    dim = max(1, bias.numel()) if bias is not None else 1
    layer = {
        "weight": torch.empty(dim, features, device="meta"),
        "bias": torch.empty(dim, device="meta"),
    }
    unit = {"unit": torch.empty((), dtype=torch.bool, device="meta")} if "unit" in stored else {}
    return unit if stored.keys() <= {"unit"} else {**layer, **unit}
