"""A classifier: a backbone with a linear layer over its features, and the names of its classes.

Its folder is timm's own wherever timm's model of that architecture is the same network with such a
layer on top: `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the same logits,
bit for bit, and has the names in `pretrained_cfg`. Elsewhere (pooling by GeM, a module of one's
own, timm's models of two or of convolutional classifiers) the layer lies in a file of its own,
`classifier.safetensors`, beside a backbone folder, and lookalike puts the two together.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from lookalike.errors import BackboneError, printable
from lookalike.geometry import Distance, sides
from lookalike.models import card
from lookalike.models.backbone import Backbone, Own
from lookalike.models.cifar import register_cifar_stems
from lookalike.models.limits import LARGEST_CONFIG
from lookalike.models.weights import CLASSIFIER, Opened, open_folder

# What config.json says beside the names of the classes.
_ROOM = 2**16


class Classifier(nn.Module):
    """Images (B, C, H, W), normalised, to logits (B, K), one a class of `classes`.

    `multi_label`: each class for itself, by a sigmoid, instead of one of all by a softmax;
    `temperature`: what logits are divided by before that (Guo et al., ICML 2017, arXiv
    1706.04599), which changes no logit; `dropout`: of the features, in training. The layer begins
    with small weights (standard deviation 0.01, as MoCo's linear classifier) and no bias.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: Sequence[str],
        *,
        multi_label: bool = False,
        temperature: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone, self.classes, self.dim = backbone, tuple(classes), len(classes)
        self.multi_label, self.temperature, self.dropout = multi_label, temperature, dropout
        self.head = nn.Linear(backbone.dim, self.dim)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.architecture = backbone.architecture

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        h_BD: Tensor = self.backbone(x_BCHW)
        logits_BK: Tensor = self.head(F.dropout(h_BD, self.dropout, self.training))
        return logits_BK

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """Logits (B, K) -> numbers in 0 … 1: of one class the sum is 1, of several each is its
        own.
        """
        scaled_BK = logits_BK / self.temperature
        return scaled_BK.sigmoid() if self.multi_label else scaled_BK.softmax(dim=1)

    @property
    def distance(self) -> Distance:
        """How its outputs are compared: as a backbone's."""
        return "cosine"

    @property
    def trunk(self) -> Backbone:
        """The backbone below the layer."""
        return self.backbone

    def files(self) -> dict[str, bytes]:
        """The files of its folder: `config.json`, `model.safetensors`, and where timm has no place
        for the layer `classifier.safetensors`.
        """
        layer = timm_layer(self)
        files = self.backbone.files()
        config = json.loads(files["config.json"])
        config["label_names"] = list(self.classes)
        config[CLASSIFIER] = {
            "multi_label": self.multi_label,
            "temperature": self.temperature,
            "layer": layer,
        }
        weights = {n: t.detach().cpu().contiguous() for n, t in self.head.state_dict().items()}
        if layer is None:
            files[f"{CLASSIFIER}.safetensors"] = save(weights)
        else:
            config["num_classes"] = config["pretrained_cfg"]["num_classes"] = self.dim
            files["model.safetensors"] = save(_joined(self, layer), {"format": "pt"})
        files["config.json"] = json.dumps(config, indent=2).encode()
        return files


def refuse_names(classes: Sequence[str]) -> None:
    """Raises BackboneError where the names of the classes are more than a config.json may hold."""
    if len(json.dumps(list(classes), indent=2)) > LARGEST_CONFIG - _ROOM:
        raise BackboneError(
            f"data: the names of {len(classes)} classes take more than the {LARGEST_CONFIG} bytes "
            "that a model's config.json may have: shorten them"
        )


@torch.no_grad()
def timm_layer(model: Classifier) -> str | None:
    """Under which name timm's model of that architecture has the layer; None where it is not the
    same network with one linear layer on top.

    Found by making timm's model with so many classes, tried on images of noise.
    """
    architecture = model.architecture
    if isinstance(architecture, Own) or model.backbone.gem is not None:
        return None
    register_cifar_stems()
    args = {**architecture.timm_args(), "num_classes": model.dim}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: nn.Module = timm.create_model(architecture.timm_name, **args).eval()
    except Exception:  # timm raises whatever its constructors meet
        return None
    own = model.backbone.model.state_dict()
    more = made.state_dict().keys() - own.keys()
    layer = min(more, default="").rpartition(".")[0]
    if not layer or more != {f"{layer}.weight", f"{layer}.bias"}:
        return None
    if made.state_dict()[f"{layer}.weight"].shape != model.head.weight.shape:
        return None
    made.load_state_dict(_joined(model, layer))
    return layer if _same(model, made) else None


def _same(model: Classifier, made: nn.Module) -> bool:
    """Whether timm's model gives the same bits."""
    a, was, device = model.architecture, model.training, model.head.weight.device
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(2, a.channels, *sides(a.size), generator=noise).to(device)
    found: Tensor = made.to(device)(images)
    same = torch.equal(found, model.eval()(images))
    model.train(was)
    return same


def _joined(model: Classifier, layer: str) -> dict[str, Tensor]:
    """The weights of backbone and layer under timm's names, on the host."""
    named = {f"{layer}.{n}": t for n, t in model.head.state_dict().items()}
    both = {**model.backbone.model.state_dict(), **named}
    return {n: t.detach().cpu().contiguous().clone() for n, t in both.items()}


def write_classifier(
    target: Path,
    backbone: Backbone,
    weight_CD: Tensor,
    bias_C: Tensor,
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """The folder of backbone and layer, as timm loads it with `num_classes`.

    Raises BackboneError where the layer does not fit the backbone or the classes.
    """
    if weight_CD.shape != (len(classes), backbone.dim) or bias_C.shape != (len(classes),):
        raise BackboneError(
            f"{printable(target)}: a layer of {tuple(weight_CD.shape)} for {len(classes)} classes "
            f"and {backbone.dim} features"
        )
    with torch.random.fork_rng(devices=[]):
        model = Classifier(backbone, classes).eval()
    with torch.no_grad():
        model.head.weight.copy_(weight_CD)
        model.head.bias.copy_(bias_C)
    save_classifier(target, model.to(next(backbone.parameters()).device), facts)


def save_classifier(target: Path, model: Classifier, facts: Mapping[str, Any]) -> None:
    """The folder of a classifier: files, card, manifest, whole or not at all."""
    refuse_names(model.classes)
    told = card.facts(model.architecture, model.backbone.dim, {**facts, **described(model)})
    card.write_model(target, model.files(), told)


def described(model: Classifier) -> dict[str, Any]:
    """What a card says of the layer."""
    return {
        "classes": model.dim,
        "multi_label": model.multi_label,
        "temperature": model.temperature,
        "classifier": "timm" if timm_layer(model) else "lookalike",
    }


def load_classifier(folder: str | Path, module: nn.Module | None = None) -> Classifier:
    """The classifier of a folder, in eval mode; `module` and errors are those of load_backbone.

    Raises BackboneError for a folder without classes too.
    """
    found = classifier_from(open_folder(folder, module))
    if found is None:
        raise BackboneError(
            f"{printable(folder)}: a model without classes: name the folder that `lookalike "
            "classify` wrote, or make one of it by that"
        )
    return found


def classifier_from(opened: Opened) -> Classifier | None:
    """The classifier of what lies in a folder, in eval mode; None of a folder without classes."""
    told = opened.described
    if told is None or opened.layer is None:
        return None
    with torch.random.fork_rng(devices=[]):
        model = Classifier(
            opened.backbone,
            told.classes,
            multi_label=told.multi_label,
            temperature=told.temperature,
        )
    model.head.load_state_dict(opened.layer)
    return model.eval()
