"""Backbones: any timm model, or a backbone folder, as a module from pictures to features; the one room for timm.

A backbone folder is timm's own layout (`config.json`, `model.safetensors`), so that
`timm.create_model("local-dir:FOLDER", pretrained=True)` needs nothing of ours; a `lookalike` key in the config
holds what timm has no word for. Loading reads JSON and safetensors and checks every file's sha256: never a pickle.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lookalike.errors import BackboneError
from lookalike.folder import verify
from lookalike.recipe import Count, Share

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_STEMS = ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
# What may stand in `args`, and so in an untrusted config.json, must not reach a file or the network.
_FORBIDDEN = (
    "pretrained",
    "checkpoint",
    "cache_dir",
    "features_only",
    "scriptable",
    "exportable",
    "num_classes",
)

Pool = Literal["token", "avg", "max", "gem"]


@dataclass(frozen=True)
class Architecture:
    """What a backbone is before it has weights: a timm name, input size, channels, stem and pooling; or a folder.

    `crop`: the share of a picture's shorter side that the test-time view shows (timm's crop_pct); `mean` and
    `std`: of each channel, for pictures in [0, 1]; `args`: more keyword arguments of the timm model.
    """

    name: str = ""
    size: Count = 224
    channels: Literal[1, 3] = 3
    stem: Literal["timm", "cifar"] = "timm"
    pool: Pool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: Share = 1.0
    pretrained: bool = False
    args: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None

    def __post_init__(self) -> None:
        if bool(self.name) == bool(self.folder):
            raise ValueError("give either a timm `name` or a `folder` written by lookalike")
        for label, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{label} has {len(values)} values for {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        for key in self.args:
            if key.startswith(_FORBIDDEN):
                raise ValueError(f"args.{key} is not allowed here")
        if self.name:
            self._check_name()

    def _check_name(self) -> None:
        if self.stem == "cifar" and self.name not in CIFAR_STEMS:
            raise ValueError(f"stem: cifar exists for {', '.join(CIFAR_STEMS)}, not for {self.name}")
        if not timm.is_model(self.name):
            near = difflib.get_close_matches(self.name, timm.list_models(), n=1)
            hint = f', did you mean "{near[0]}"?' if near else ": see timm.list_models()"
            raise ValueError(f'timm has no model "{self.name}"{hint}')

    def build(self) -> "Backbone":
        """The backbone, with fresh weights (or those of the folder). Raises BackboneError when it cannot be made."""
        if self.folder:
            return load_backbone(self.folder)
        return Backbone(self)

    @property
    def timm_name(self) -> str:
        """The name under which timm makes this architecture."""
        return f"{self.name}_cifar" if self.stem == "cifar" else self.name

    def timm_args(self) -> dict[str, Any]:
        """The keyword arguments with which timm makes this architecture."""
        args = {**self.args, "in_chans": self.channels, "num_classes": 0}
        if self.pool:
            args["global_pool"] = "" if self.pool == "gem" else self.pool
        if timm.get_pretrained_cfg(self.name).fixed_input_size:
            args["img_size"] = self.size
        return args

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for pictures in [0, 1]: ImageNet's, or .5 for grey."""
        mean = self.mean or (IMAGENET_MEAN if self.channels == 3 else (0.5,))
        return mean, self.std or (IMAGENET_STD if self.channels == 3 else (0.5,))


class GeM(nn.Module):
    """Generalised-mean pooling with a learned power (Radenović, Tolias & Chum, TPAMI 2019, arXiv 1711.02512)."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor(p)), eps

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, D) over the N places."""
        return x_BND.clamp(min=self.eps).pow(self.p).mean(dim=1).pow(1.0 / self.p)


class Backbone(nn.Module):
    """Pictures (B, C, H, W), normalised, to features h_BD; `.dim` is D, `.architecture` says what it is."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.model = _create(architecture)
        self.gem = GeM() if architecture.pool == "gem" else None
        self.dim = self._dry_run()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        h: Tensor = self.model(x_BCHW)
        return h if self.gem is None else self.gem(self._places(h))

    def _places(self, h: Tensor) -> Tensor:
        """A feature map or a row of tokens as (B, N, D), prefix tokens left out."""
        if h.dim() == 3:
            return h[:, getattr(self.model, "num_prefix_tokens", 0) :]
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return h.flatten(1, 2) if channels_last else h.flatten(2).transpose(1, 2)

    def _dry_run(self) -> int:
        size, channels = self.architecture.size, self.architecture.channels
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                h = self(torch.zeros(1, channels, size, size))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise BackboneError(_cannot(self.architecture, error)) from error
        self.train(was)
        if h.dim() != 2:
            raise BackboneError(
                f"backbone: {self.architecture.name} gives features of shape {tuple(h.shape)}, not (B, D): set pool"
            )
        return int(h.shape[1])


def _cannot(architecture: Architecture, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"backbone: {architecture.name} at size {architecture.size}, args {architecture.args or '{}'}: {reason}"


def _create(architecture: Architecture) -> nn.Module:
    register_cifar_stems()
    try:
        model: nn.Module = timm.create_model(
            architecture.timm_name, pretrained=architecture.pretrained, **architecture.timm_args()
        )
    except Exception as error:  # timm raises whatever its constructors meet: all of it is the recipe's doing
        raise BackboneError(_cannot(architecture, error)) from error
    _check_patch(architecture, model)
    return model


def _check_patch(architecture: Architecture, model: nn.Module) -> None:
    """A patch that does not divide the picture would silently leave its edge unseen."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    for p in patch if isinstance(patch, Sequence) else ():
        rest = architecture.size % p
        if rest:
            below, above = architecture.size - rest, architecture.size - rest + p
            raise BackboneError(
                f"backbone: {architecture.name} cuts patches of {p} pixels, which do not divide "
                f"size {architecture.size}: take size {below or above} or {above}, or args.patch_size"
            )


def register_cifar_stems() -> None:
    """Adds `resnet18_cifar` and its sisters to timm's registry: 3 × 3 first convolution of stride 1, no max-pool.

    The stem of SimCLR's CIFAR experiments (arXiv 2002.05709, B.9). timm has no word for it, so a folder of such
    a backbone loads through timm only after this call.
    """
    for name in CIFAR_STEMS:
        if not timm.is_model(f"{name}_cifar"):
            timm.models.register_model(_cifar_entry(name))


def _cifar_entry(name: str) -> Any:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        cfg = kwargs.pop("pretrained_cfg", None)
        if pretrained:
            kwargs.setdefault("num_classes", 0)  # as the folder was saved
        model: nn.Module = timm.create_model(
            name,
            pretrained=False,
            **{k: v for k, v in kwargs.items() if k not in ("pretrained_cfg_overlay", "cache_dir")},
        )
        stem: Any = model.conv1
        model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        if pretrained:
            head = {k: v for k, v in model.state_dict().items() if k.startswith("fc.")}
            model.load_state_dict({**head, **load_file(Path(_local(cfg)) / "model.safetensors")})
        return model

    entry.__name__ = entry.__qualname__ = f"{name}_cifar"
    return entry


def _local(cfg: Any) -> str:
    where = cfg.get("file") if isinstance(cfg, Mapping) else getattr(cfg, "file", None)
    if not where:
        raise BackboneError("backbone: no published weights exist for a CIFAR stem: set pretrained: false")
    return str(where)


def folder_files(backbone: Backbone) -> dict[str, bytes]:
    """The files of the backbone's folder: `config.json`, `model.safetensors`, and `pool.safetensors` for GeM."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in backbone.model.state_dict().items()}
    files = {
        "config.json": json.dumps(_config(backbone), indent=2).encode(),
        "model.safetensors": save(tensors, {"format": "pt"}),
    }
    if backbone.gem is not None:
        files["pool.safetensors"] = save({"p": backbone.gem.p.detach().cpu().clone()})
    return files


def _config(backbone: Backbone) -> dict[str, Any]:
    a = backbone.architecture
    args = {k: v for k, v in a.timm_args().items() if k != "num_classes"}
    mean, std = a.normalisation()
    data = {
        "input_size": [a.channels, a.size, a.size],
        "interpolation": "bicubic",
        "crop_pct": a.crop,
        "crop_mode": "center",
    }
    published = timm.get_pretrained_cfg(a.name)
    weights = {
        "num_classes": 0,
        "first_conv": None,
        "classifier": published.classifier,  # so that timm may add a fresh one: num_classes=N
        "custom_load": False,
        "fixed_input_size": bool(published.fixed_input_size),
    }
    ours = {k: v for k, v in asdict(a).items() if k not in ("folder", "pretrained")}
    return {
        "architecture": a.timm_name,
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": args,
        "pretrained_cfg": {**data, "mean": list(mean), "std": list(std), **weights},
        "lookalike": {**ours, "mean": list(mean), "std": list(std)},
    }


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone of a folder, in eval mode, bit for bit as it was saved.

    Raises BackboneError when a file is missing, was changed since it was written, or does not fit the others.
    """
    folder = Path(folder)
    checked = verify(folder, BackboneError)["files"]
    backbone = Backbone(_read_architecture(_among(checked, folder / "config.json")))
    _load_weights(backbone.model, _among(checked, folder / "model.safetensors"))
    if backbone.gem is not None:
        _load_weights(backbone.gem, _among(checked, folder / "pool.safetensors"))
    return backbone.eval()


def _among(checked: Mapping[str, Any], path: Path) -> Path:
    """A file that no sha256 vouches for is not read."""
    if path.name not in checked:
        raise BackboneError(f"{path}: the manifest does not name it: export it again")
    return path


def open_backbone(what: "Backbone | str | Path", like: Architecture) -> Backbone:
    """A backbone as every stage takes it: one in memory, a folder, or a timm name with published weights.

    A timm name gets size, channels and normalisation of `like`, the recipe's architecture.
    """
    if isinstance(what, Backbone):
        return what
    if not Path(what).exists() and timm.is_model(str(what)):
        return Backbone(replace(like, name=str(what), folder=None, stem="timm", args={}, pretrained=True)).eval()
    return load_backbone(what)


def _read_architecture(path: Path) -> Architecture:
    try:
        ours = json.loads(path.read_bytes())["lookalike"]
        ours = {**ours, **{k: tuple(ours[k]) for k in ("mean", "std")}}
        return Architecture(**{**ours, "pretrained": False, "folder": None})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackboneError(
            f"{path}: not a backbone of lookalike ({type(error).__name__}: {error}): export it again"
        ) from error


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{path}: the weights do not fit config.json: {reason}") from error
