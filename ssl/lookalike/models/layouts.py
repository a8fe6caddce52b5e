"""Where in the checkpoint of somebody else the backbone lies, and what its tensors are called here.

A training's checkpoint holds the network below names of its own, `state_dict.module.encoder_q.…`
in MoCo, `teacher.backbone.…` in DINO, beside heads, a second network and an optimizer. The part is
taken whose names are the model's: prefixes are known words, so nothing else can be taken for one.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

State = Mapping[str, Tensor]

# Of two networks that fit alike: the averaged one where it is the teacher, or timm's EMA, which
# their authors publish; in MoCo, BYOL and their like the trained one, as theirs do.
_FIRST = ("teacher", "state_dict_ema", "model_ema")
_LAST = (
    *("student", "student_backbone", "encoder_k", "momentum_encoder", "momentum_backbone"),
    *("target_encoder", "target_network", "target"),
)
_PREFIXES = frozenset(
    (
        *("state_dict", "model_state_dict", "classy_state_dict", "model", "module", "_orig_mod"),
        *("backbone", "teacher_backbone", "encoder", "encoder_q", "base_encoder", "base_model"),
        *("online_encoder", "online_network", "online", "network", "net", "trunk", "resnet"),
        *("visual", "convnet", "vit", "feature_extractor", "_feature_blocks", *_FIRST, *_LAST),
    )
)
_HEAD = re.compile(
    r"(fc|heads?|head_dist|classifier|last_linear|linear|logits|proj(ect(or|ion))?(_head|_mlp)?"
    r"|prototypes|predict(or|ion)(_head)?|mlp(_head)?|contrastive_head|decoder\w*|mask_token"
    r"|queue(_ptr)?|bn)(\.|$)"
)
# Of so many prefixes the names are counted, and so many are held against the model.
_LIKELY, _TRIED = 100, 12
# What a model computes for itself when it is made.
_COMPUTED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask|bias_idxs)$")
_TORCHVISION = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.mlp\.(0|linear_1)\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.mlp\.(3|linear_2)\.", r"\1.mlp.fc2."),
)


class Part(NamedTuple):
    """The part of a checkpoint that is the backbone: `state` as the model calls it, all names below
    `prefix`; `beside`: how many tensors lie elsewhere, by the first word of their names.
    """

    prefix: str
    state: dict[str, Tensor]
    beside: dict[str, int]


def part_of(tensors: State, model: nn.Module) -> Part:
    """The part whose names are the model's, or the nearest to it."""
    wanted = needed(model)
    likely = [prefix for prefix, _ in _prefixes(tensors).most_common(_LIKELY)]
    prefixes = sorted(likely, key=lambda prefix: _rank(prefix, tensors, wanted))
    best = prefixes[0]
    found: dict[str, Tensor] = {}
    for prefix in prefixes[:_TRIED]:
        state = _converted(_below(tensors, prefix), model)
        if not found or len(wanted & state.keys()) > len(wanted & found.keys()):
            best, found = prefix, state
        if wanted <= found.keys():
            break
    return Part(best, found, _beside(tensors, best))


def needed(model: nn.Module) -> set[str]:
    """What of a model's state only a file can say."""
    return {name for name in model.state_dict() if not _COMPUTED.search(name)}


def is_head(name: str) -> bool:
    """Whether a tensor beside the backbone's is one of a head, by its name."""
    return _HEAD.match(name) is not None


def is_computed(name: str) -> bool:
    """Whether a model makes this tensor for itself."""
    return _COMPUTED.search(name) is not None


def _prefixes(tensors: State) -> Counter[str]:
    """Every row of known words with which names begin, the empty one too, and how many do."""
    found = Counter({"": len(tensors)})
    for name in tensors:
        prefix = ""
        for word in name.split(".")[:-1]:
            if word not in _PREFIXES:
                break
            prefix += f"{word}."
            found[prefix] += 1
    return found


def _rank(prefix: str, tensors: State, wanted: set[str]) -> tuple[int, int, int]:
    """How many of the model's names are not there; then which of several is preferred; then how
    many tensors there are.
    """
    words = set(prefix.split("."))
    preferred = len(words.intersection(_LAST)) - len(words.intersection(_FIRST))
    missing = sum(f"{prefix}{name}" not in tensors for name in wanted)
    return missing, preferred, -sum(name.startswith(prefix) for name in tensors)


def _below(tensors: State, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _beside(tensors: State, prefix: str) -> dict[str, int]:
    """How many tensors lie outside the prefix, by the words that set them apart."""
    counts: dict[str, int] = {}
    words = prefix.split(".")[:-1]
    for name in tensors:
        if not name.startswith(prefix):
            parts = name.split(".")
            same = next((i for i, word in enumerate(words) if parts[i : i + 1] != [word]), 0)
            key = ".".join(parts[: same + 1])
            counts[key] = counts.get(key, 0) + 1
    return counts


def _converted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state with the model's names and, where timm knows how, with its grids: first
    torchvision's ViT, then whatever timm makes of such a file.
    """
    state = _last_norm(_of_torchvision(state), model)
    convert = _timms(model)
    try:
        return _last_norm(dict(convert(dict(state))), model) if convert else state
    except Exception:  # a file of another model, which is told by its names and shapes
        return state


def _timms(model: nn.Module) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None:
    """timm's own conversion for models of this kind, by which it loads what their authors
    published.
    """
    module = sys.modules[type(model).__module__]
    names = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
    found: Any = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if found is None:
        return None
    takes = inspect.signature(found).parameters
    if len(takes) == 1:
        convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = found
        return convert
    how = {"adapt_layer_scale": True} if "adapt_layer_scale" in takes else {}
    return lambda state: found(state, model, **how)


def _of_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ViT by timm's names; anything else as it is."""
    if "conv_proj.weight" not in state:
        return state
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for pattern, new in _TORCHVISION:
        name = re.sub(f"^{pattern}", new, name)
    return name


def _last_norm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The last norm of a ViT under timm's name for it: `fc_norm` after the mean, else `norm`."""
    wanted = model.state_dict()
    moved = dict(state)
    for here, there in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        for end in ("weight", "bias"):
            old, new = f"{here}{end}", f"{there}{end}"
            if new in wanted and old not in wanted and old in moved and new not in moved:
                moved[new] = moved.pop(old)
    return moved


def foreign_blocks(names: Iterable[str], model: nn.Module) -> list[str]:
    """Of names that a model does not have, those that lie in its own blocks: of a deeper or another
    model.
    """
    own = {name.split(".")[0] for name in needed(model) if "." in name}
    return [name for name in names if name.split(".")[0] in own and "." in name]
