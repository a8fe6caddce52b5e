"""Export: one folder a model that timm, lookalike and onnxruntime load, each checked against the
trained model.
"""

import importlib.util
import io
import json
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lookalike.errors import BackboneError, printable
from lookalike.experiment import Experiment, Export
from lookalike.folder import refuse_strangers, refuse_unwritable
from lookalike.geometry import sides
from lookalike.log import say
from lookalike.models import Architecture, Backbone, Own, card
from lookalike.models.classifier import Classifier, described, timm_layer
from lookalike.models.embedding import Embedding, load_model

Model = Backbone | Embedding | Classifier
BATCHES = (1, 2, 5)


def export(
    model: str | Path,
    recipe: Experiment,
    out: str | Path,
    scores: dict[str, Any] | None = None,
    module: nn.Module | None = None,
) -> Path:
    """Writes the folder `out` from a backbone, embedding or classifier folder; returns it.
    `module`: as for load_backbone.

    Raises BackboneError when what timm or onnxruntime computes is not what the model computes,
    RunError as write_folder does; what was there before then stays as it was.
    """
    return do(job(recipe), model, Path(out), scores, module)


def job(recipe: Experiment) -> Export:
    """Decides what an exported folder holds. Raises BackboneError where ONNX cannot be written."""
    settings = recipe.section(Export)
    if settings.onnx:
        refuse_no_onnx()
    return settings


def do(
    job: Export,
    model: str | Path,
    target: Path,
    scores: dict[str, Any] | None = None,
    module: nn.Module | None = None,
) -> Path:
    """Writes the folder, each form of the model checked against the model itself."""
    source = Path(model)
    refuse_strangers(target)
    refuse_unwritable(target.parent)
    opened = load_model(source, module).cpu()
    refuse_not_finite(opened)
    files = opened.files()
    carried = {**card.read_carried(source), "scores": scores or {}}
    if isinstance(opened, Classifier):
        carried |= described(opened)
    facts = card.facts(opened.architecture, width(opened), carried)
    if job.onnx:
        content = to_onnx(opened, job.opset, softmax=job.softmax)
        error = check_onnx(opened, content, job.tolerance, softmax=job.softmax)
        facts["onnx"] = {"worst_relative_error": error, "batches": list(BATCHES)}
        files["model.onnx"] = content
    card.write_model(target, files, facts, check=partial(check_timm, opened))
    say(f"export: {target}")
    return target


def width(model: Model) -> int:
    """How many features there are; of a classifier those under it."""
    return model.trunk.dim if isinstance(model, Classifier) else model.dim


class WithNormalisation(nn.Module):
    """The model with its mean and std inside: images (B, C, H, W) in 0 … 1 -> features, of a
    classifier logits or, with `softmax`, probabilities.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self, model: nn.Module, architecture: Architecture, *, softmax: bool = False
    ) -> None:
        super().__init__()
        self.model, self.softmax = model, softmax
        for name, values in zip(("mean_C11", "std_C11"), architecture.normalisation(), strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in 0 … 1 -> (B, D)."""
        h: Tensor = self.model((images - self.mean_C11) / self.std_C11)
        if self.softmax and isinstance(self.model, Classifier):
            return self.model.probabilities(h)
        return h

    @property
    def gives(self) -> str:
        """The name of its output."""
        if not isinstance(self.model, Classifier):
            return "features"
        return "probabilities" if self.softmax else "logits"


def example(architecture: Architecture, batch: int) -> Tensor:
    """Random images in 0 … 1, always the same."""
    shape = (batch, architecture.channels, *sides(architecture.size))
    return torch.rand(shape, generator=torch.Generator().manual_seed(batch))


def to_onnx(model: Model, opset: int, *, softmax: bool = False) -> bytes:
    """The model as ONNX, batch dynamic, input size, mean and std in its metadata, and of a
    classifier the names of its classes.
    """
    onnx = onnx_at_hand()
    wrapped = WithNormalisation(model, model.architecture, softmax=softmax).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            wrapped,
            (example(model.architecture, 2),),
            path,
            input_names=["images"],
            output_names=[wrapped.gives],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        proto = onnx.load(path)
    mean, std = model.architecture.normalisation()
    size, channels = model.architecture.size, model.architecture.channels
    about = {
        "input": "0..1",
        "size": size,
        "channels": channels,
        "mean": mean,
        "std": std,
        "crop": model.architecture.crop,
        **model.architecture.recorded(),
    }
    if isinstance(model, Classifier):
        about |= {"classes": model.classes, "multi_label": model.multi_label}
        about |= {"temperature": model.temperature}
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(proto)
    buffer = io.BytesIO()
    onnx.save(proto, buffer)
    return buffer.getvalue()


def refuse_no_onnx() -> None:
    """Raises BackboneError when onnx, onnxruntime or onnxscript is missing.

    Only looked for: to import onnxruntime is to start it, and what it writes.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise BackboneError(_missing(name))


def onnx_at_hand() -> Any:
    """The onnx package. Raises BackboneError when one of the three is missing."""
    refuse_no_onnx()
    try:
        import onnx
    except ImportError as error:
        raise BackboneError(_missing("onnx")) from error
    return onnx


def _missing(name: str) -> str:
    remedy = "pip install 'lookalike[onnx]' or set export.onnx=false"
    return f"export.onnx: {name} is not installed: {remedy}"


def _onnxruntime() -> Any:
    """The onnxruntime package, which unasked would tell its maker of its use, and keep a device's
    number at home.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


@torch.no_grad()
def refuse_not_finite(model: Model) -> None:
    """Raises BackboneError where the model has no finite features for an ordinary image: no check
    could tell then.
    """
    wrapped = WithNormalisation(model, model.architecture).eval()
    if not wrapped(example(model.architecture, 2)).isfinite().all():
        raise BackboneError(
            "export: the model's features of random images are NaN or infinite: its weights are "
            "too large, train anew"
        )


@torch.no_grad()
def check_onnx(model: Model, content: bytes, tolerance: float, *, softmax: bool = False) -> float:
    """The worst error of what onnxruntime computes, relative to the largest; raises BackboneError
    beyond `tolerance`.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wrapped = WithNormalisation(model, model.architecture, softmax=softmax).eval()
    worst = torch.zeros(())
    for batch in BATCHES:
        images = example(model.architecture, batch)
        wanted = wrapped(images)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        largest = (
            wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        )  # of zeros, zeros are right
        worst = torch.maximum(worst, (found - wanted).abs().max() / largest)  # keeps a NaN
    if not worst <= tolerance:
        raise BackboneError(
            f"export: onnxruntime's {wrapped.gives} are off by {float(worst):.1e} of the largest, "
            f"more than {tolerance:.0e}"
        )
    return float(worst)


@torch.no_grad()
def check_timm(model: Model, folder: Path) -> None:
    """Raises BackboneError unless timm, given the folder, computes the same bits: of a classifier
    that is timm's own the logits, else the features (before GeM, which is ours).
    """
    backbone, word = model.trunk, "features"
    if isinstance(backbone.architecture, Own):
        say(f"export: {backbone.architecture.name} is not timm's: timm is not asked to load it")
        return
    images = example(backbone.architecture, 2)
    same: nn.Module = backbone.model
    if isinstance(model, Classifier) and timm_layer(model):
        same, word = model, "logits"
    try:
        found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    except Exception as error:  # timm raises whatever its constructors and loaders meet
        reason = printable(" ".join(str(error).split())[:200])
        raise BackboneError(
            f"export: timm cannot load what was written ({reason}): a timm version too old?"
        ) from error
    if not torch.equal(found, same(images)):
        raise BackboneError(
            f"export: timm computes other {word} from what was written than the trained backbone: "
            "a timm version too old?"
        )
