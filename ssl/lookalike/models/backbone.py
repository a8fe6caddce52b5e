"""A backbone: any timm model, or a module of the caller's own, from normalised images to features,
described by its architecture.
"""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import timm
import torch
from pydantic import Field as Bounded
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lookalike.errors import BackboneError, printable
from lookalike.geometry import BYTES, MOST_CHANNELS, Alpha, Depth, Distance, PixelFormat, sides
from lookalike.models import hub
from lookalike.models.cifar import CIFAR_STEMS, register_cifar_stems
from lookalike.models.fitting import Taken, take_file
from lookalike.recipe import SINCE_0_2, Share, Size, recorded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What may stand in `args`, and so in an untrusted config.json, must not reach a file or the
# network.
_FORBIDDEN = (
    "pretrained",
    "checkpoint",
    "cache_dir",
    "features_only",
    "scriptable",
    "exportable",
    "num_classes",
    "in_chans",
    "img_size",
    "global_pool",
)

# Where weights came from is no part of what the model is.
_BEFORE = ("folder", "pretrained", "weights")

# `token` the class token, `avg` and `max` timm's over the places, `gem` GeM over them, `cls_gem`
# the class token beside GeM of the patches, twice as wide.
Pool = Literal["token", "avg", "max", "gem", "cls_gem"]
_OURS = ("gem", "cls_gem")
_RECORDED = ("depth", "range", "alpha")
# Images become canvases of 8/7 of this, and no canvas is larger than 4096.
LARGEST_SIDE = 3584
Channels = Annotated[int, Bounded(ge=1, le=MOST_CHANNELS)]


@dataclass(frozen=True)
class Architecture:
    """What a backbone is before it has weights: a timm name, input size, channels, stem and
    pooling; or a folder.

    `name`: timm's, or a repository of the Hugging Face Hub, hf-hub:user/model or timm/model, whose
    config.json says architecture, arguments, pooling and normalisation, and size and crop where the
    recipe leaves them at 224 and 1.0; `pretrained`: the weights that timm or the repository
    publishes, from the Hub's cache or downloaded when a run begins; `weights`: those of a file,
    .safetensors or of torch.save, of whatever training: its backbone is found, its heads are left
    out.

    `size`: the side of the square it sees, or height and width. `crop`: the share of an image's
    shorter side that the test-time view shows (timm's crop_pct); `mean` and `std`: of each channel,
    for images in [0, 1]; `args`: more keyword arguments of the timm model.

    Depth, range and alpha, which no recipe gives here, say how a raw file becomes its input; see
    PixelFormat.
    """

    name: str = ""
    size: Size = 224
    channels: Channels = 3
    stem: Literal["timm", "cifar"] = "timm"
    pool: Pool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: Share = 1.0
    pretrained: bool = False
    args: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    depth: Depth = recorded("uint8")
    range: tuple[float, float] | None = recorded(None)
    alpha: Alpha = recorded("white")
    # Not in `repr`, by which earlier releases named a model.
    weights: Annotated[str | None, SINCE_0_2] = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if bool(self.name) == bool(self.folder):
            raise ValueError("give either a timm `name` or a `folder` written by lookalike")
        if self.folder:
            self._check_alone()
        if self.weights is not None and (self.pretrained or not self.weights):
            raise ValueError("weights: name a file, or leave it out for pretrained: true")
        for label, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{label} has {len(values)} values for {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(f"range {list(self.range)}: two finite numbers, the smaller first")
        if max(sides(self.size)) > LARGEST_SIDE:
            raise ValueError(f"size {self.size}: at most {LARGEST_SIDE} pixels a side: lower it")
        self._check_args()
        if self.name:
            self._check_name()

    def _check_alone(self) -> None:
        for known in fields(self):
            if known.name != "folder" and getattr(self, known.name) != _default(known):
                raise ValueError(f"{known.name}: the folder says it: delete it")

    def _check_args(self) -> None:
        for key in self.args:
            known = printable(key[:60])
            if key.startswith(_FORBIDDEN):
                raise ValueError(
                    f"args.{known} is not allowed here: size, channels and pool have keys of their "
                    "own"
                )
            if self.args[key] is None:
                raise ValueError(f"args.{known} has no value: write `{known}: value`, with a space")

    def _check_name(self) -> None:
        name = printable(self.name[:60])
        if hub.is_hub(self.name):
            hub.repository(self.name)
            if self.stem != "timm":
                raise ValueError("stem: the repository says which stem there is: delete it")
            return
        if self.stem == "cifar" and self.name not in CIFAR_STEMS:
            raise ValueError(f"stem: cifar exists for {', '.join(CIFAR_STEMS)}, not for {name}")
        if not timm.is_model(self.name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f', did you mean "{near[0]}"?' if near else ": see timm.list_models()"
            raise ValueError(f'timm has no model "{name}"{hint}')

    def build(self) -> "Backbone":
        """The backbone, with fresh weights where neither `pretrained` nor `weights` names others.

        Raises BackboneError when it cannot be made.
        """
        return Backbone(self)

    @property
    def form(self) -> PixelFormat:
        """How a raw file becomes its input."""
        return PixelFormat(self.channels, self.depth, self.range, self.alpha)

    def reading(self, form: PixelFormat) -> Self:
        """The same, of files whose pixels are kept so; its channels are its own."""
        return replace(self, depth=form.depth, range=form.range, alpha=form.alpha)

    def recorded(self) -> dict[str, Any]:
        """Of depth, range and alpha those that are not as they were before there was a choice."""
        found = self.form._asdict()
        return {k: found[k] for k in _RECORDED if found[k] != getattr(BYTES, k)}

    @property
    def timm_name(self) -> str:
        """The name under which timm makes this architecture."""
        return f"{self.name}_cifar" if self.stem == "cifar" else self.name

    def timm_args(self) -> dict[str, Any]:
        """The keyword arguments with which timm makes this architecture."""
        args = {**self.args, "in_chans": self.channels, "num_classes": 0}
        if self.pool:
            args["global_pool"] = "" if self.pool in _OURS else self.pool
        if timm.get_pretrained_cfg(self.name).fixed_input_size:
            args["img_size"] = self.size
        return args

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for images in [0, 1]: ImageNet's of three,
        else .5.
        """
        half = (0.5,) * self.channels
        mean = self.mean or (IMAGENET_MEAN if self.channels == 3 else half)
        return mean, self.std or (IMAGENET_STD if self.channels == 3 else half)

    def config(self, dim: int) -> dict[str, Any]:
        """`config.json` of a folder with such a backbone of `dim` features: timm's, and ours."""
        args = {k: v for k, v in self.timm_args().items() if k != "num_classes"}
        mean, std = self.normalisation()
        data = {
            "input_size": [self.channels, *sides(self.size)],
            "interpolation": "bicubic",
            "crop_pct": self.crop,
            "crop_mode": "center",
        }
        published = timm.get_pretrained_cfg(self.name)
        weights = {
            "num_classes": 0,
            "first_conv": None,
            "classifier": published.classifier,  # so that timm may add a fresh one: num_classes=N
            "custom_load": False,
            "fixed_input_size": bool(published.fixed_input_size),
        }
        left = (*_BEFORE, *_RECORDED)
        ours = {k: v for k, v in asdict(self).items() if k not in left} | self.recorded()
        return {
            "architecture": self.timm_name,
            "num_classes": 0,
            "num_features": dim,
            "model_args": args,
            "pretrained_cfg": {**data, "mean": list(mean), "std": list(std), **weights},
            "lookalike": {**ours, "mean": list(mean), "std": list(std)},
        }


@dataclass(frozen=True)
class Own(Architecture):
    """What a module takes that is not timm's; `name` is its class's, and is never imported."""

    def _check_name(self) -> None:
        if len(self.name) > 200 or not self.name.isprintable():
            raise ValueError("name: not the name of a class")

    @property
    def timm_name(self) -> str:
        """The name of its class."""
        return self.name

    def config(self, dim: int) -> dict[str, Any]:
        """`config.json` of its folder."""
        mean, std = self.normalisation()
        ours = {"size": self.size, "channels": self.channels, "crop": self.crop} | self.recorded()
        return {
            "class": self.name,
            "num_features": dim,
            "lookalike": {**ours, "mean": list(mean), "std": list(std)},
        }


def _default(known: Field[Any]) -> Any:
    return known.default if known.default_factory is MISSING else known.default_factory()


class GeM(nn.Module):
    """Generalised-mean pooling with a learned power (Radenović, Tolias & Chum, TPAMI 2019, arXiv
    1711.02512).

    What is below `eps` counts as `eps`: nothing is lost of a map after ReLU, but the negative half
    of a row of tokens, or of a map that a norm or GELU made.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = (
            nn.Parameter(torch.tensor([p])),
            eps,
        )  # a shape: DeepSpeed sends no number without

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, D) over the N places."""
        return x_BND.clamp(min=self.eps).pow(self.p).mean(dim=1).pow(1.0 / self.p)


class Backbone(nn.Module):
    """Images (B, C, H, W), normalised, to features h_BD; `.dim` is D, `.architecture` says what it
    is.

    `pieces`: in training, how many parts of a batch go through the network one after another. Each
    keeps only its features, and goes through once more when their gradient is known (Gao, Zhang,
    Han & Callan, arXiv 2101.06983): the memory of one part, the gradient of the whole batch.
    BatchNorm then sees one part at a time. `dim`: the width of the features where it is known; else
    an image of zeros goes through the network to tell. `module`: the network, where it is not one
    that timm makes; see `of`.
    """

    def __init__(
        self, architecture: Architecture, dim: int | None = None, module: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.taken: Taken | None = None
        if module is None:
            module = _create(architecture)
            if architecture.weights:
                file = Path(architecture.weights)
                self.taken = take_file(module, file, architecture.channels)
        self.model = module
        self.gem = GeM() if architecture.pool in _OURS else None
        self.pieces = 1
        self.dim = self.dry_run() if dim is None else dim

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        size: Size,
        channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        crop: Share = 1.0,
        depth: Depth = "uint8",
        range: tuple[float, float] | None = None,
        alpha: Alpha = "white",
    ) -> "Backbone":
        """A network of one's own, from (B, `channels`, *`size`) to (B, D), as a backbone.

        `mean`, `std`: of each channel, by default ImageNet's of three, else .5. `depth`, `range`,
        `alpha`: how raw files become its input, see PixelFormat; a training records those of its
        images. A method `group_matcher` as timm's models have one says which layers there are;
        without it all of it is one block. Raises BackboneError where it cannot take such images or
        gives no (B, D), or not `module.dim` of them.
        """
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        try:
            raw: dict[str, Any] = {"depth": depth, "range": range, "alpha": alpha}
            architecture = Own(name, size, channels, mean=mean, std=std, crop=crop, **raw)
        except ValueError as error:
            raise BackboneError(f"backbone: {printable(name[:200])}: {error}") from error
        was = module.training
        backbone = cls(architecture, module=module).train(was)
        told = getattr(module, "dim", backbone.dim)
        if told != backbone.dim:
            raise BackboneError(
                f"backbone: {name} says dim {told}, but gives {backbone.dim} features: correct it"
            )
        return backbone

    def fresh(self) -> "Backbone | None":
        """The same with new weights; None where only its owner can make it."""
        if isinstance(self.architecture, Own):
            return None
        return Backbone(replace(self.architecture, pretrained=False, weights=None))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        if self.pieces == 1 or not self.training:
            return self._features(x_BCHW)
        if not torch.is_grad_enabled():
            return torch.cat([self._features(part) for part in x_BCHW.tensor_split(self.pieces)])
        parts = x_BCHW.tensor_split(self.pieces)
        return torch.cat([checkpoint(self._features, part, use_reentrant=False) for part in parts])

    @property
    def distance(self) -> Distance:
        """How its features are compared: by cosine."""
        return "cosine"

    @property
    def trunk(self) -> "Backbone":
        """Itself: an embedding without a head."""
        return self

    def files(self) -> dict[str, bytes]:
        """The files of the backbone's folder: `config.json`, `model.safetensors`, GeM's power in
        `pool.safetensors`.
        """
        files = {
            "config.json": json.dumps(self.architecture.config(self.dim), indent=2).encode(),
            "model.safetensors": save(_on_host(self.model), {"format": "pt"}),
        }
        if self.gem is not None:
            files["pool.safetensors"] = save(_on_host(self.gem))
        return files

    def _features(self, x_BCHW: Tensor) -> Tensor:
        h: Tensor = self.model(x_BCHW)
        return self._gem(h)

    def pooled(self, tokens: Tensor) -> Tensor:
        """What timm's `forward_features` gives, or a block's tokens of the same shape, as features
        (B, D): pooled as this backbone pools.
        """
        model: Any = self.model
        return self._gem(model.forward_head(tokens))

    def _gem(self, h: Tensor) -> Tensor:
        if self.gem is None:
            return h
        pooled_BD: Tensor = self.gem(self._places(h))
        return (
            torch.cat([h[:, 0], pooled_BD], dim=1)
            if self.architecture.pool == "cls_gem"
            else pooled_BD
        )

    def _places(self, h: Tensor) -> Tensor:
        """A feature map or a row of tokens as (B, N, D), prefix tokens left out."""
        if h.dim() == 3:
            return h[:, getattr(self.model, "num_prefix_tokens", 0) :]
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return h.flatten(1, 2) if channels_last else h.flatten(2).transpose(1, 2)

    def dry_run(self, size: Size | None = None) -> int:
        """The width of the features of an image of zeros, of `size`, by default the architecture's.

        Raises BackboneError when there are none, or no (B, D).
        """
        if size and not isinstance(self.architecture, Own):
            _check_patch(self.architecture.name, self.model, size)
        size = size or self.architecture.size
        shape = (1, self.architecture.channels, *sides(size))
        device = next((p.device for p in self.parameters()), None)
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                h = self(torch.zeros(shape, device=device))
        except (
            Exception
        ) as error:  # whatever timm's forward meets at this size is the recipe's doing
            raise BackboneError(_cannot(self.architecture, error, size)) from error
        finally:
            self.train(was)
        if not isinstance(h, Tensor) or h.dim() != 2:
            found = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise BackboneError(
                f"backbone: {self.architecture.name} gives features of shape {found}, not "
                "(B, D): set pool"
            )
        return int(h.shape[1])


def _on_host(module: nn.Module) -> dict[str, Tensor]:
    """A copy of its weights, each contiguous and by itself."""
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise BackboneError(f"backbone: {name} of its state is no tensor: make it a buffer")
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _cannot(architecture: Architecture, error: Exception, size: Size) -> str:
    reason = printable((str(error).splitlines() or [type(error).__name__])[0][:300])
    args = printable(str(architecture.args))
    args = args if len(args) <= 300 else f"{args[:299]}…"
    return f"backbone: {architecture.name} at size {size}, args {args}: {reason}"


def _cannot_pool(architecture: Architecture) -> str:
    """What poolings timm has for a model that it does not make with the recipe's; nothing where it
    is not for the pooling.
    """
    if architecture.pool is None or not _is_made(architecture, None):
        return ""
    works = [pool for pool in get_args(Pool) if _is_made(architecture, pool)]
    return (
        f"backbone.pool: {architecture.pool}: timm does not pool {architecture.name} so: take "
        f"{' or '.join(works)}, or leave pool out"
    )


def _is_made(architecture: Architecture, pool: Pool | None) -> bool:
    """Whether timm makes the model with this pooling; without memory."""
    bare = replace(architecture, pool=pool, pretrained=False, weights=None)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            _check_pool(bare, timm.create_model(bare.timm_name, **bare.timm_args()))
    except Exception:
        return False
    return True


def _create(architecture: Architecture) -> nn.Module:
    if isinstance(architecture, Own):
        raise BackboneError(f"backbone: {architecture.name} is not timm's: pass the module itself")
    if hub.is_hub(architecture.name):
        raise BackboneError(f"backbone: {architecture.name}: ask make_backbone for it")
    register_cifar_stems()
    ours = architecture.pretrained and architecture.stem == "timm"
    overlay = hub.published(architecture.name) if ours else {}
    try:
        model: nn.Module = timm.create_model(
            architecture.timm_name,
            pretrained=architecture.pretrained,
            pretrained_cfg_overlay=overlay or None,
            **architecture.timm_args(),
        )
    except (
        Exception
    ) as error:  # timm raises whatever its constructors meet: all of it is the recipe's doing
        text = _cannot_pool(architecture) or _cannot(architecture, error, architecture.size)
        raise BackboneError(text) from error
    _check_patch(architecture.name, model, architecture.size)
    _check_pool(architecture, model)
    return model


def _check_patch(name: str, model: nn.Module, size: Size) -> None:
    """A patch that does not divide the image would silently leave its edge unseen, but where the
    model pads it or its patches overlap.
    """
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not isinstance(patch, Sequence) or getattr(embed, "dynamic_img_pad", False):
        return
    if tuple(getattr(getattr(embed, "proj", None), "stride", patch)) != tuple(patch):
        return
    for p in patch:
        for side in sides(size):
            if rest := side % p:
                below, above = side - rest, side - rest + p
                raise BackboneError(
                    f"backbone: {name} cuts patches of {p} pixels, which do not "
                    "divide "
                    f"size {side}: take size {f'{below} or ' if below else ''}{above}, or "
                    "args.patch_size"
                )


def _check_pool(architecture: Architecture, model: nn.Module) -> None:
    classified = (
        getattr(model, "cls_token", None) is not None and getattr(model, "num_prefix_tokens", 0) > 0
    )
    if architecture.pool == "cls_gem" and not classified:
        raise BackboneError(
            f"backbone.pool: cls_gem: {architecture.name} has no class token: take gem"
        )
