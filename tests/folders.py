"""In what two run folders differ, file by file and to the bit, but for what may differ."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

# A recipe's keys, as they were spelt, and how they are.
RENAMED_KEYS = {
    f"{stage}.engine.{name}": f"{stage}.{name}"
    for stage in ("pretrain", "finetune")
    for name in ("precision", "clip")
}
# Keys of JSON files, and inputs of ONNX graphs, as they were spelt, and how they are.
RENAMED_RESULTS = {"pictures": "images", "own picture": "own image"}
# What may differ, as patterns of `file: key`, and why.
ALLOWED = {
    "*metrics.jsonl: *images_per_s": "a time",
    "*metrics.jsonl: *waiting": "a time",
    "*card.json: versions.*": "versions of packages",
    "*.json: recipe": "a digest of the recipe's spelling",
    "*manifest.json: views": "what made them, where one side says it",
    "*manifest.json: files.*": "digests of files that are compared themselves",
}
# Files that are not compared, and why.
SKIPPED = {
    ".lock": "empty",
    "*tensorboard/*": "says what metrics.jsonl says",
    "features/*": "a cache; what follows from it is compared",
    "*.html": "for people; the scores are in evaluate.json",
    "*README.md": "for people; the facts are in card.json",
    "*latest.json": "a hint",
    "data.json": "for people; the images are known by their fingerprints",
}
ONE_SIDE = "a key of the recipe that one side does not know"
# So many differences of a file are told.
_TOLD = 3
# Which keys were met that may differ, by the reason.
Allowed = dict[str, set[str]]


def differences(base: Path, tree: Path, allowed: Allowed) -> list[str]:
    """A line for each difference; what may differ is noted in `allowed`."""
    one, other = files(base), files(tree)
    found = [f"{name}: only in BASE's run" for name in sorted(one.keys() - other.keys())]
    found += [f"{name}: only in the new run" for name in sorted(other.keys() - one.keys())]
    # Curves first: they show where it began.
    for name in sorted(one.keys() & other.keys(), key=lambda name: (".jsonl" not in name, name)):
        lines = list(_by_kind(name, one[name], other[name], allowed))
        found += lines[:_TOLD]
        if len(lines) > _TOLD:
            found.append(f"{name}: and {len(lines) - _TOLD} more")
    return found


def files(run: Path) -> dict[str, Path]:
    """What is compared of a run folder, by name; of each training's checkpoints the newest."""
    found: dict[str, Any] = {}
    newest = {each.parent: each for each in sorted(run.rglob("step_*"))}.values()
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or any(fnmatch.fnmatch(name, each) for each in SKIPPED):
            continue
        if "step_" in name and path.parent not in newest:
            continue
        found[name] = path
    return found


def _by_kind(name: str, base: Path, tree: Path, allowed: Allowed) -> Iterator[str]:
    match base.suffix:
        case ".safetensors":
            yield from of_tensors(name, load_file(base), load_file(tree))
        case ".json" | ".jsonl" | ".yaml":
            yield from of_values(name, read(base), read(tree), allowed)
        case ".onnx":
            yield from of_values(name, graph(base), graph(tree), allowed)
        case _:
            if base.read_bytes() != tree.read_bytes():
                yield f"{name}: other bytes"


def of_tensors(name: str, base: Mapping[str, Tensor], tree: Mapping[str, Tensor]) -> Iterator[str]:
    """Tensors of other names, kinds, shapes or bits."""
    for key in sorted(base.keys() | tree.keys()):
        if key not in base or key not in tree:
            yield f"{name}: {key}: only in {'BASE' if key in base else 'the new'}'s run"
            continue
        one, other = base[key], tree[key]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            kinds = [f"{each.dtype} {tuple(each.shape)}" for each in (one, other)]
            yield f"{name}: {key}: {kinds[0]} -> {kinds[1]}"
        elif not torch.equal(bits(one), bits(other)):
            other_N = (bits(one) != bits(other)).reshape(one.numel(), -1).any(dim=1)
            apart_N = (one.double() - other.double()).abs().flatten()[other_N]
            count = f"{len(apart_N)} of {one.numel()} numbers"
            yield f"{name}: {key}: {count}, at most {float(apart_N.max()):.1e} apart"


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes: a NaN equals itself, and -0 is not 0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def of_values(
    name: str, base: Mapping[str, Any], tree: Mapping[str, Any], allowed: Allowed
) -> Iterator[str]:
    """Values under a key that are not the same to the last digit; floats are written exactly."""
    for key in dict.fromkeys([*base, *tree]):
        told = [repr(each[key]) if key in each else "nothing" for each in (base, tree)]
        if told[0] == told[1]:
            continue
        reason = next((ALLOWED[p] for p in ALLOWED if fnmatch.fnmatch(f"{name}: {key}", p)), None)
        if name == "recipe.yaml" and "nothing" in told:
            reason = ONE_SIDE
        if reason:
            allowed.setdefault(reason, set()).add(key.rpartition(".")[2])
        else:
            yield f"{name}: {key}: {told[0][:80]} -> {told[1][:80]}"


def read(path: Path) -> dict[str, Any]:
    """JSON, JSON lines or a recipe as `key.key` -> value; old spellings are brought up to date."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        return flat({f"step {line['step']}": line for line in lines})
    if path.suffix == ".yaml":
        return {RENAMED_KEYS.get(k, k): v for k, v in flat(yaml.safe_load(text)).items()}
    return flat(json.loads(text))


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by their path."""
    if not isinstance(value, dict | list) or not value:
        return {at: value}
    members = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, each in members:
        word = RENAMED_RESULTS.get(str(key), str(key))
        found |= flat(each, f"{at}.{word}" if at else word)
    return found


def graph(path: Path) -> dict[str, Any]:
    """What an ONNX file computes, as text by place: its inputs, outputs, metadata, nodes in order.

    Values between nodes are numbered in order of use, and constants stand for themselves: names
    that come from the source do not count.
    """
    model = onnx.load(path)
    numbers: dict[str, str] = {"": ""}
    constants = {each.name: each for each in model.graph.initializer}
    found: dict[str, Any] = {"ir": model.ir_version}
    found |= {f"opset {each.domain}": each.version for each in model.opset_import}
    found |= {f"metadata {each.key}": each.value for each in model.metadata_props}
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for n, each in enumerate(values):
            name = RENAMED_RESULTS.get(each.name, each.name)
            found[f"{kind} {n}"] = f"{name} {each.type.SerializeToString(deterministic=True)!r}"
    for each in model.graph.input:
        numbers[each.name] = f"v{len(numbers)}"
    for n, node in enumerate(model.graph.node):
        inputs = [_value(name, numbers, constants) for name in node.input]
        kept = {each.name: each.SerializeToString(deterministic=True) for each in node.attribute}
        outputs = [numbers.setdefault(name, f"v{len(numbers)}") for name in node.output]
        found[f"node {n}"] = (node.domain, node.op_type, inputs, sorted(kept.items()), outputs)
    found["functions"] = len(model.functions)
    found["returned"] = [numbers[each.name] for each in model.graph.output]
    return found


def _value(name: str, numbers: Mapping[str, str], constants: Mapping[str, Any]) -> Any:
    if name in numbers:
        return numbers[name]
    held = constants[name]
    return (held.data_type, tuple(held.dims), onnx.numpy_helper.to_array(held).tobytes())
