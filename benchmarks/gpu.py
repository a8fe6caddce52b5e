"""What a GPU says of lookalike: correctness first, then ratios with spread; one Markdown table.

    python benchmarks/gpu.py [--dry] [--budget SECONDS] [--only SECTION,SECTION] > OUT.md

(benchmarks/gpu.sh is the same with its environment.) Every section is a process of its own, forked
once everything is imported, with its own share of the time: one that fails, hangs or takes too long
is a line of the table, and the rest goes on. Nothing is installed; peers that are not there are
skipped with a word. `--dry` runs every path but CUDA on a CPU, with tiny sizes. Ends with 1 where a
check failed.

Times are of the device (CUDA events) and of the host's clock; sides alternate within one run, and
medians stand with the quartiles of the pairs.
"""

import argparse
import contextlib
import faulthandler
import importlib.util
import io
import itertools
import json
import os
import pickle
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import decode

from lookalike import views
from lookalike.errors import Error
from lookalike.experiment import Experiment, Pretrain
from lookalike.methods import METHODS
from lookalike.methods.barlow_twins import barlow_twins_loss
from lookalike.models import Architecture
from lookalike.nn.hooks import follow, start_step
from lookalike.nn.precision import autocast
from lookalike.optim import Progress, parameter_groups
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.recipe import from_text
from lookalike.stages.pretrain import make_method, pretrain

ROOT = Path(__file__).parents[1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEP = 1 / 255
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


class Row(NamedTuple):
    """A line of the table: what, the result, its spread or the bound, a remark."""

    what: str
    result: str
    spread: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Setting:
    """What a section is run with: `dry`, tiny and on a CPU; `folder`, its own; `until`, when by the
    clock of `time.monotonic` it should have ended.
    """

    dry: bool
    folder: Path
    until: float

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()


Section = Callable[[Setting], Iterator[Row]]


# ---- time


def synchronize(device: torch.device) -> None:
    """Waits for all that the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Times calls: seconds of the host until it is free again, and until the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.host, self.done = device, 0.0, 0.0

    def __call__(self, work: Callable[[], Any], times: int = 1) -> float:
        """Seconds of the device a call, by events; on a CPU of the clock."""
        synchronize(self.device)
        began = time.perf_counter()
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
        for _ in range(times):
            work()
        self.host = (time.perf_counter() - began) / times
        if self.device.type == "cuda":
            last.record()
            synchronize(self.device)
            self.done = first.elapsed_time(last) / 1000 / times
        else:
            self.done = self.host
        return self.done


def in_turn(
    setting: Setting, sides: Sequence[Callable[[], Any]], rounds: int, share: float = 1.0
) -> list[list[float]]:
    """Seconds of each side in each round, after one that is not counted; fewer rounds where this
    share of the time left is gone, but two at least.
    """
    clock, end = Clock(setting.device), time.monotonic() + share * setting.left()
    for side in sides:
        clock(side)
    found: list[list[float]] = [[] for _ in sides]
    for k in range(rounds):
        for times, side in zip(found, sides, strict=True):
            times.append(clock(side))
        if k and time.monotonic() > end:
            break
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[str, str]:
    """Median of the pairs' ratios, and their quartiles."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    return f"{middle:.3f}", f"{low:.3f} to {high:.3f} of {len(pairs)} pairs"


def ms(seconds: Sequence[float]) -> str:
    """Their median."""
    return f"{1e3 * statistics.median(seconds):.2f} ms"


def judged(what: str, good: bool, found: str, remark: str = "") -> Row:
    """A check's line."""
    return Row(what, PASSED if good else FAILED, found, remark)


def peak(device: torch.device, reset: bool = False) -> int:
    """MiB of the device at most since the last reset; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device) // 2**20


# ---- correctness: methods

HEADS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projector": (32, 64), "off_diagonal": 0.02},
    "byol": {"projector": (32, 16), "predictor": (32, 16)},
    "dcl": {"projector": (32, 16), "sigma": 0.5},
    "dino": {"hidden": 32, "bottleneck": 16, "prototypes": 24, "frozen_epochs": 0},
    "moco_v2": {"projector": (32, 16), "queue": 48, "momentum": 0.9},
    "moco_v3": {"projector": (32, 16), "predictor": (32, 16)},
    "nnclr": {"projector": (32, 16), "predictor": (32, 16), "queue": 48},
    "simclr": {"projector": (32, 16)},
    "simsiam": {"projector": (32, 16), "predictor": 8},
    "supcon": {"projector": (32, 16)},
    "swav": {"projector": (32, 16), "prototypes": 24, "frozen_epochs": 0},
    "tico": {"projector": (32, 16), "beta": 0.1},
    "vicreg": {"projector": (32, 64)},
    "w_mse": {"projector": (32, 4), "slice_size": 6},
}
# How far a loss may be from the CPU's in fp32, of 1 + its size; how far weights, of the largest.
NEAR = {"fp32": (1e-3, 1e-3), "bf16": (0.05, 0.0), "fp16": (0.02, 0.0)}

ON_A_CPU = ("barlow_twins",)


def given(name: str, step: int, batch: int = 24, size: int = 32) -> tuple[Any, ...]:
    """What a method takes, a pure function of the step: views, small ones too, labels."""
    generator = torch.Generator().manual_seed(step)
    common = torch.randn(batch, 3, size, size, generator=generator)
    made = [common + 0.3 * torch.randn(common.shape, generator=generator) for _ in range(2)]
    if METHODS[name].more_views:
        made += [view[..., 8:24, 8:24].contiguous() for view in made]
    return (made, torch.arange(batch) % 3) if METHODS[name].needs_labels else (made,)


def moved(value: Any, device: torch.device) -> Any:
    """The same on the device, in lists and tuples too."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(part, device) for part in value)


def two_steps(
    name: str, device: torch.device, precision: Any
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of two steps down the gradient, each a thousandth of the weights' length; and what is
    then trained.
    """
    torch.manual_seed(0)
    layers = {"channels": (16, 16, 32, 32), "layers": (1, 1, 1, 1)}
    backbone = Architecture("resnet18", size=32, channels=3, args=layers).build()
    module: nn.Module = METHODS[name](backbone, **HEADS[name]).train().to(device)
    losses, trained = [], {n: p for n, p in module.named_parameters() if p.requires_grad}
    for step in range(2):
        start_step(module, Progress(step, 10, step / 2))
        with autocast(device, precision):
            loss = module(*moved(given(name, step), device)).value
        # A fixed scale in the place of a scaler's: fp16 has no gradients below 6e-8.
        scale = 256.0 if precision == "fp16" else 1.0
        (loss * scale).backward()
        moving = [p for p in trained.values() if p.grad is not None]
        with torch.no_grad():
            along, of = (
                torch.stack([each.norm() for each in many]).norm()
                for many in ([p.grad for p in moving], moving)
            )
            for parameter in moving:
                parameter -= 1e-3 * of / along * parameter.grad
                parameter.grad = None
        follow(module)
        losses.append(float(loss.detach()))
    return losses, {n: p.detach().cpu() for n, p in trained.items()}


def methods(setting: Setting) -> Iterator[Row]:
    """Every method: two steps on the device in each precision beside the CPU's in fp32."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    worst = dict.fromkeys(NEAR, (0.0, ""))
    apart, far = (0.0, ""), []
    for name in METHODS:
        losses, weights = two_steps(name, torch.device("cpu"), "fp32")
        for precision, (allowed, of_weights) in NEAR.items():
            if setting.dry and precision == "fp16" and name not in ON_A_CPU:
                continue  # which a CPU computes twenty times slower
            found, tensors = two_steps(name, setting.device, precision)
            off = max(abs(a - b) / (1 + abs(b)) for a, b in zip(found, losses, strict=True))
            worst[precision] = max(worst[precision], (off, name))
            if not off <= allowed:  # NaN too
                far.append(f"{name} in {precision}: losses {found} beside {losses}")
            if of_weights:
                most = max(float((tensors[n] - w).abs().max()) for n, w in weights.items())
                size = max(float(w.abs().max()) for w in weights.values())
                apart = max(apart, (most / size, name))
                if not most / size <= of_weights:
                    far.append(f"{name}: weights {most / size:.1e} of the largest apart")
    for precision, (off, name) in worst.items():
        good = not any(f" in {precision}" in text for text in far)
        allowed = NEAR[precision][0]
        what = f"{len(METHODS)} methods, two steps, {precision} beside the CPU's fp32"
        yield judged(what, good, f"loss off by {off:.1e} of {allowed:g} at most ({name})")
    good = not any("weights" in text for text in far)
    what = f"{len(METHODS)} methods, weights after two steps in fp32"
    yield judged(what, good, f"{apart[0]:.1e} of the largest ({apart[1]})", "; ".join(far)[:300])


# ---- correctness: a training

TOY = """
seed: 3
data: {name: digits}
backbone: {name: resnet18, size: 16, channels: 1, pool: avg, args: {channels: [8, 8, 16, 16], \
layers: [1, 1, 1, 1]}}
pretrain:
  method: {name: barlow_twins, projector: [16, 32], off_diagonal: 0.02}
  views: {name: asymmetric, crop: [0.4, 1.0], blur: [0.5, 0.1], blur_sigma: [0.1, 1.0]}
  optimizer: {name: adamw, lr: 2e-3}
  epochs: 2
  batch: 144
  warmup_epochs: 0.5
  log_every: 1
  workers: 0
"""


def toy(*words: str) -> Experiment:
    """Digits through a tiny network: 18 steps."""
    return from_text(TOY, "gpu.yaml", list(words), Experiment)


def saved(run: Path) -> dict[str, Tensor]:
    """The tensors of the last checkpoint."""
    folder = sorted((run / "checkpoints").glob("step_*"))[-1]
    return {
        f"{part}:{name}": tensor
        for part in ("model", "optim")
        for name, tensor in load_file(folder / f"{part}.safetensors").items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def training(setting: Setting) -> Iterator[Row]:
    """Resumed and rolled back is uninterrupted, bit for bit, in fp32 and then in 16 bits."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    for precision in ("fp32",) if setting.dry else ("fp32", "bf16", "fp16"):
        words, place = (f"pretrain.precision={precision}",), setting.folder / precision
        place.mkdir()
        with warnings.catch_warnings(action="ignore"):
            pretrain(toy(*words), place / "whole")
            pretrain(toy(*words), place / "again")
            whole = saved(place / "whole")
            twice = same(saved(place / "again"), whole)
            with (
                fault.plan("term:rank=0,step=7"),
                contextlib.suppress(Stopped),
            ):
                pretrain(toy(*words), place / "cut")
            pretrain(toy(*words), place / "cut")
            nan = f"nan:rank=0,step=12,steps=3,once={place / 'nan'}"
            with fault.plan(nan):
                pretrain(toy(*words), place / "nan_run")
        remark = "" if twice else "two uninterrupted runs differ too"
        what = f"stopped at step 7 and resumed, {precision}"
        yield judged(what, same(saved(place / "cut"), whole), "bit-equal after 18 steps", remark)
        lines = (place / "nan_run" / "metrics.jsonl").read_text().splitlines()
        skipped = json.loads(lines[-1])["skipped"]
        good = same(saved(place / "nan_run"), whole) and skipped == 3
        what = f"three NaN steps skipped and rolled back, {precision}"
        yield judged(what, good, f"bit-equal after 18 steps, {skipped:g} skipped", remark)


# ---- correctness: views


def canvas(batch: int, size: int) -> Tensor:
    """Smooth uint8 images (B, 3, H, W) 8/7 as large as their views."""
    side, generator = round(size * 8 / 7), torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, max(2, side // 8), max(2, side // 8), generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bilinear")
    noise = 20 * torch.rand(batch, 3, side, side, generator=generator)
    return (smooth * 235 + noise).to(torch.uint8)


POLICIES: dict[str, Callable[[], Any]] = {
    "symmetric": lambda: views.Symmetric(solarize=0.2),
    "asymmetric": views.Asymmetric,
    "multi_crop": lambda: views.MultiCrop(small=2, small_size=32),
    "classification": views.Classification,
}


def made(policy: Any, pixels: Tensor, epoch: int, size: int, **more: Any) -> list[Tensor]:
    """The policy's views, by numbers that the epoch decides."""
    ids_B = torch.arange(len(pixels))
    how = {"seed": 0, "epoch": epoch, "size": size, "mean": MEAN, "std": STD}
    found: list[Tensor] = policy(pixels, ids_B, **how, **more)
    return found


def same_views(setting: Setting) -> Iterator[Row]:
    """Views on the device beside the CPU's, in units of a step of 8 bits."""
    size, batch = (32, 8) if setting.dry else (224, 32)
    pixels = canvas(batch, size)
    std_C11 = torch.tensor(STD)[:, None, None]
    for name, make in POLICIES.items():
        beyond, most = 0.0, 0.0
        for epoch in range(2):
            pairs = zip(
                made(make(), pixels, epoch, size),
                made(make(), pixels.to(setting.device), epoch, size),
                strict=True,
            )
            for here, there in pairs:
                apart = (there.cpu() - here).abs() * std_C11 / STEP
                most = max(most, float(apart.max()))
                beyond = max(beyond, float((apart > 2).float().mean()))
        # Within rounding of its threshold a pixel falls on either side of solarize.
        found = f"{beyond:.1e} of the pixels beyond 2/255, {most:.2f}/255 at most"
        yield judged(f"views `{name}` beside the CPU's, {size} px", beyond < 2e-3, found)


# ---- waits


class Waits:
    """Counts, between two steps, what makes the host wait for the device, by place."""

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self.first, self.last, self.cuda = first, last, device.type == "cuda"
        self.found: list[Any] = []
        self.kept: list[Any] = []

    def __call__(self, step: int) -> None:
        if step == self.first:
            del self.found[:]
            self._mode("warn")
        if step == self.last:
            self._mode("default")
            self.kept = list(self.found)

    def _mode(self, mode: str) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode(mode)

    @property
    def places(self) -> Counter[str]:
        return Counter(
            f"{Path(one.filename).name}:{one.lineno}"
            for one in self.kept
            if "synchronizing" in str(one.message)
        )


def waits(setting: Setting) -> Iterator[Row]:
    """A step that does not log makes the host wait for nothing, whatever the method."""
    steps, bad, total = 6, Counter[str](), 0
    names = list(METHODS)[:3] if setting.dry else list(METHODS)
    jobs = [(name, "fp32") for name in names]
    jobs += [] if setting.dry else [("simclr", "bf16"), ("simclr", "fp16")]
    for k, (name, precision) in enumerate(jobs):
        words = [f"pretrain.method={{name: {name}, {yaml(HEADS[name])}}}", "pretrain.epochs=1"]
        words += ["pretrain.log_every=1000", "pretrain.health_every=0"]
        words += [f"pretrain.precision={precision}", "pretrain.warmup_epochs=0"]
        if METHODS[name].more_views:
            words += ["pretrain.views={name: multi_crop, small: 2, small_size: 8}"]
        watch = Waits(setting.device, 3, 3 + steps)
        with warnings.catch_warnings(record=True) as watch.found, fault.plan(watch):
            warnings.simplefilter("always")
            try:
                pretrain(toy(*words), setting.folder / str(k))
            except Error as error:
                yield Row(f"waits of {name}, {precision}", FAILED, "", str(error)[:200])
        bad += Counter({f"{name}: {place}": n for place, n in watch.places.items()})
        total += sum(watch.places.values())
    what = f"waits a step without a log, {len(names)} methods, and bf16, fp16"
    first = ", ".join(f"{place} ({n})" for place, n in bad.most_common(5))
    yield judged(what, total == 0, f"{total / steps / len(jobs):.2f} a step", first)


def yaml(arguments: dict[str, Any]) -> str:
    """In flow style."""
    return ", ".join(f"{k}: {list(v) if isinstance(v, tuple) else v}" for k, v in arguments.items())


# ---- launches of views


def launches(setting: Setting) -> Iterator[Row]:
    """Kernels that views of one batch launch, and the host's time for them."""
    size, batch = (32, 8) if setting.dry else (224, 128)
    pixels, device = canvas(batch, size).to(setting.device), setting.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name, make in POLICIES.items():
        policy, clock = make(), Clock(device)
        for epoch in range(2):
            made(policy, pixels, epoch, size)
        with torch.profiler.profile(activities=activities) as profile:
            made(policy, pixels, 2, size)
            synchronize(device)
        events = profile.events()
        kernels = [e for e in events if str(e.device_type).endswith("CUDA") and "Mem" not in e.name]
        copies = [e for e in events if "Memcpy HtoD" in e.name or "Memcpy DtoH" in e.name]
        host = []
        for epoch in range(3, 8):
            clock(partial(made, policy, pixels, epoch, size))
            host.append(clock.host)
        if device.type == "cuda":
            good = len(kernels) <= 60
            result = f"{len(kernels)} kernels, {len(copies)} copies"
        else:
            good = True
            result = f"{sum(e.name.startswith('aten::') for e in events)} operators (CPU)"
        remark = "" if good else "more than the 60 wanted"
        yield Row(f"launches of `{name}`, batch {batch}", result, f"host {ms(host)}", remark)


# ---- whole steps

STEPS = """
seed: 1
data: {{name: folder, path: '{images}', test_fraction: 0}}
backbone: {{name: {name}, size: {size}{more}}}
pretrain:
  method: {method}
  optimizer: {{name: adamw, lr: 1e-4, weight_decay: 0.05}}
  epochs: 1000
  warmup_epochs: 0
  batch: {batch}
  log_every: 100000
  health_every: 0
  save_every_epochs: 100000
  precision: {precision}
"""
TINY = ", args: {channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}"
TINY_VIT = ", args: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}"
NETWORKS = {
    "ResNet-50": (
        "resnet50",
        "{name: barlow_twins, projector: [2048, 2048, 2048]}",
        ("resnet18", TINY),
    ),
    "ViT-S": (
        "vit_small_patch16_224",
        "{name: moco_v3, projector: [4096, 256], predictor: [4096, 256]}",
        ("vit_tiny_patch16_224", TINY_VIT),
    ),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "channels-last": ("pretrain.channels_last=true",),
    "not channels-last": ("pretrain.channels_last=false",),
    "compiled": ("pretrain.compile=true",),
    "compiled, CUDA graphs": ("pretrain.compile=reduce-overhead",),
    "tf32": ("pretrain.precision=tf32",),
    "decoded by nvJPEG": ("pretrain.decode=device",),
}
ON_A_GPU = ("compiled", "compiled, CUDA graphs", "decoded by nvJPEG")


class Enough(Exception):
    """Enough was measured."""


class Whole:
    """Called as each step begins: times blocks of whole steps, and between two of them a block of
    bare ones, of a copy of the network on ready views.
    """

    def __init__(self, setting: Setting, recipe: Experiment, block: int, blocks: int) -> None:
        self.device, self.until, self.block, self.blocks = (
            setting.device,
            setting.until,
            block,
            blocks,
        )
        self.recipe, self.bare_step = recipe, None
        self.whole: list[float] = []
        self.bare: list[float] = []
        self.memory, self.left = 0, 0.0

    def __call__(self, step: int) -> None:
        if (step - 1) % self.block:
            return
        synchronize(self.device)
        now = time.perf_counter()
        if step > 2 * self.block:  # the first two blocks warm up
            self.whole.append((now - self.left) / self.block)
            self.memory = self.memory or peak(self.device)
            self.bare_step = self.bare_step or self._bare()
            self.bare.append(Clock(self.device)(self.bare_step, self.block))
        if len(self.whole) > self.blocks or (len(self.whole) > 3 and time.monotonic() > self.until):
            raise Enough
        synchronize(self.device)
        self.left = time.perf_counter()

    def _bare(self) -> Callable[[], None]:
        """Forward, backward and the optimizer's step."""
        settings = self.recipe.section(Pretrain)
        module: Any = make_method(self.recipe)
        optimizer: Any = settings.optimizer.build(parameter_groups(module))
        size, batch = self.recipe.backbone.size, settings.batch
        ready = [torch.randn(batch, 3, size, size, device=self.device) for _ in range(2)]
        ready = [view.contiguous(memory_format=torch.channels_last) for view in ready]
        start_step(module, Progress(0, 10, 0.0))

        def step() -> None:
            with autocast(self.device, settings.precision):
                loss = module(ready).value
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(3):
            step()
        return step


def photographs(folder: Path, count: int) -> Path:
    """JPEGs of 500 × 375; of many, links to few."""
    place = folder / "images"
    place.mkdir()
    names = decode.write(place, min(count, 64))
    for k in range(len(names), count):
        os.link(place / names[k % len(names)], place / f"{k:05d}.jpg")
    return place


def steps_recipe(setting: Setting, name: str, images: Path, words: Sequence[str]) -> Experiment:
    """The recipe of whole steps of this network; tiny in a dry run."""
    network, method, (tiny, more) = NETWORKS[name]
    batch = 8 if setting.dry else 256
    text = STEPS.format(
        images=images,
        name=tiny if setting.dry else network,
        more=more if setting.dry else "",
        size=32 if setting.dry else 224,
        method=method.replace("2048", "64").replace("4096", "64") if setting.dry else method,
        batch=batch,
        precision="bf16",
    )
    return from_text(text, "gpu.yaml", list(words), Experiment)


def whole_steps(name: str, options: Sequence[str]) -> Section:
    """Whole training steps beside bare ones, with these options."""

    def section(setting: Setting) -> Iterator[Row]:
        torch.backends.cudnn.benchmark = True
        images = photographs(setting.folder, 32 if setting.dry else 2048)
        block, blocks = (2, 4) if setting.dry else (8, 9)
        for k, option in enumerate(options):
            what = f"{name}, whole step / bare step, {option}"
            if setting.dry and option in ON_A_GPU:
                yield Row(what, SKIPPED, "", "not in a dry run")
                continue
            try:
                recipe = steps_recipe(setting, name, images, OPTIONS[option])
            except Error as error:
                yield Row(what, SKIPPED, "", f"no such option here: {str(error)[:120]}")
                continue
            peak(setting.device, reset=True)
            share = setting.left() / (len(options) - k)
            until = time.monotonic() + share
            found = Whole(Setting(setting.dry, setting.folder, until), recipe, block, blocks)
            with fault.plan(found), contextlib.suppress(Enough), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pretrain(recipe, setting.folder / f"run{k}")
            if len(found.whole) < 2:
                yield Row(what, FAILED, "", "no two blocks were measured in time")
                continue
            value, spread = ratio(found.whole, found.bare)
            batch = recipe.section(Pretrain).batch
            rate = batch / statistics.median(found.whole)
            remark = f"whole {ms(found.whole)}, bare {ms(found.bare)}, batch {batch}"
            remark += f", {rate:.0f} images/s, peak {found.memory} MiB"
            yield Row(what, value, spread, remark)
            if setting.device.type == "cuda":
                del found
                torch.cuda.empty_cache()

    return section


# ---- views beside kornia


def kornia_views(size: int) -> list[nn.Module]:
    """The two views of Barlow Twins by its own sequential."""
    import kornia.augmentation as K

    return [
        K.AugmentationSequential(
            K.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample="bicubic"),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=blur),
            K.RandomSolarize(thresholds=0.0, additions=0.0, p=solarize),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
            data_keys=["input"],
        )
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
    ]


def kornia_batch(policies: Sequence[Callable[[Tensor], Tensor]], pixels: Tensor) -> list[Tensor]:
    """The views of a batch of bytes."""
    x_BCHW = pixels.float() / 255
    return [policy(x_BCHW) for policy in policies]


def our_batch(policy: Any, pixels: Tensor, epochs: Iterator[int], size: int) -> list[Tensor]:
    """Ours, each time drawn anew."""
    return made(policy, pixels, next(epochs), size)


def views_beside(setting: Setting) -> Iterator[Row]:
    """kornia's time / ours for two views of a batch; also compiled, where that ends in time."""
    if not importlib.util.find_spec("kornia"):
        yield Row("views, kornia / ours", SKIPPED, "", "kornia is not installed")
        return
    for size, batch in ((32, 8),) if setting.dry else ((224, 128), (64, 512)):
        pixels, policies = canvas(batch, size).to(setting.device), kornia_views(size)
        theirs = partial(kornia_batch, policies, pixels)
        ours = partial(our_batch, views.Asymmetric(), pixels, itertools.count(), size)
        with warnings.catch_warnings(action="ignore"):
            its, mine = in_turn(setting, [theirs, ours], 3 if setting.dry else 15, 0.3)
        value, spread = ratio(its, mine)
        what = f"views at {size} px, batch {batch}, kornia / ours"
        yield Row(what, value, spread, f"kornia {ms(its)}, ours {ms(mine)} a batch")
    what, limit = f"views at {size} px, kornia compiled / ours", int(0.5 * setting.left())
    if setting.dry or limit < 20:
        yield Row(what, SKIPPED, "", "a dry run compiles nothing" if setting.dry else "no time")
        return
    compiled = [torch.compile(one) for one in policies]
    with warnings.catch_warnings(action="ignore"), alarm(limit):
        its, mine = in_turn(setting, [partial(kornia_batch, compiled, pixels), ours], 9, 0.9)
        value, spread = ratio(its, mine)
        yield Row(what, value, spread, f"kornia {ms(its)}, ours {ms(mine)} a batch")
        return
    yield Row(what, SKIPPED, "", f"not compiled in {limit} s")


class Late(Exception):
    """The alarm has gone."""


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Leaves its block after so many seconds, silently."""

    def ring(*_: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(max(1, seconds))
    try:
        yield
    except Late:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- losses


def dense(za_ND: Tensor, zb_ND: Tensor) -> Tensor:
    """Barlow Twins' loss by its D × D matrix, as the paper's algorithm 1 has it (arXiv
    2103.03230).
    """
    sa, sb = (F.batch_norm(z, None, None, training=True) for z in (za_ND, zb_ND))
    c_DD = sa.T @ sb / len(sa)
    on = (c_DD.diagonal() - 1).square().sum()
    d = len(c_DD)
    off = c_DD.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().square().sum()
    return on + 0.0051 * off


def loss_beside(setting: Setting) -> Iterator[Row]:
    """Barlow Twins' loss and gradient: the dense form's time and memory / ours."""
    n, d = (32, 64) if setting.dry else (2048, 8192)
    torch.manual_seed(0)
    common = torch.randn(n, d, device=setting.device)
    pair = [
        (common + 0.5 * torch.randn(n, d, device=setting.device)).requires_grad_() for _ in range(2)
    ]
    forms: list[Callable[[Tensor, Tensor], Tensor]] = [
        dense,
        lambda a, b: barlow_twins_loss(a, b, 0.0051).value,
    ]
    values = [float(form(*pair).detach()) for form in forms]
    off = abs(values[1] / values[0] - 1)
    yield judged("Barlow Twins' loss beside the dense form", off < 1e-3, f"off by {off:.1e}")
    memory = []
    for form in forms:
        before = peak(setting.device, reset=True)
        torch.autograd.grad(form(*pair), pair)
        memory.append(peak(setting.device) - before)
    sides = [lambda form=form: torch.autograd.grad(form(*pair), pair) for form in forms]
    its, mine = in_turn(setting, sides, 3 if setting.dry else 15, 0.6)
    value, spread = ratio(its, mine)
    remark = f"dense {ms(its)}, ours {ms(mine)}; above the inputs {memory[0]} and {memory[1]} MiB"
    yield Row(f"Barlow Twins' loss, {n} × {d}, dense / ours", value, spread, remark)


# ---- optimizers


def optimizers(setting: Setting) -> Iterator[Row]:
    """A step of AdamW on a ResNet-50's tensors, foreach beside fused, and of our LARS."""
    import timm

    torch.manual_seed(0)
    name = "resnet18" if setting.dry else "resnet50"
    model = timm.create_model(name).to(setting.device)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    made_by = {
        "foreach": torch.optim.AdamW(model.parameters(), lr=1e-9, foreach=True),
        "fused": torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True),
    }
    rounds = 3 if setting.dry else 30
    foreach, fused = in_turn(setting, [one.step for one in made_by.values()], rounds, 0.5)
    value, spread = ratio(foreach, fused)
    remark = f"foreach {ms(foreach)}, fused {ms(fused)}"
    yield Row(f"AdamW on a {name}, foreach / fused", value, spread, remark)
    recipe = toy("pretrain.optimizer={name: lars, lr: 1e-9}")
    lars = recipe.section(Pretrain).optimizer.build(parameter_groups(model))
    its, mine = in_turn(setting, [made_by["foreach"].step, lars.step], rounds, 0.5)
    value, spread = ratio(mine, its)
    yield Row(f"LARS / AdamW foreach on a {name}", value, spread, f"LARS {ms(mine)}")


# ---- decoding


def nvjpeg(setting: Setting) -> Iterator[Row]:
    """Images a second by nvJPEG, through torchvision, beside one core's libjpeg-turbo."""
    from torchvision.io import decode_jpeg

    images = photographs(setting.folder, 8 if setting.dry else 64)
    files = [
        torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        for path in sorted(images.iterdir())
    ]
    torch.set_num_threads(1)
    where = "cpu" if setting.dry else "cuda"
    sides = [
        lambda: [decode_jpeg(file) for file in files],
        lambda: decode_jpeg(files, device=where),
    ]
    host, there = in_turn(setting, sides, 3 if setting.dry else 15, 0.8)
    value, spread = ratio(host, there)
    rates = [len(files) / statistics.median(times) for times in (host, there)]
    remark = f"a core {rates[0]:.0f} images/s, torchvision on {where} {rates[1]:.0f}"
    yield Row("JPEGs of 500 × 375, a core / nvJPEG", value, spread, remark)


# ---- peers


def ours_at(setting: Setting, images: Path, size: int, batch: int, steps: int) -> float:
    """Images a second of our SimCLR of a ResNet-18, after a third of the steps."""
    text = STEPS.format(
        images=images,
        name="resnet18",
        more=TINY if setting.dry else "",
        size=size,
        method="{name: simclr, projector: [512, 128], temperature: 0.2}",
        batch=batch,
        precision="fp32" if setting.dry else "bf16",
    )
    recipe, marks = from_text(text, "gpu.yaml", [], Experiment), []

    def hook(step: int) -> None:
        if step in (1 + steps // 3, 1 + steps):
            synchronize(setting.device)
            marks.append(time.perf_counter())
        if step > steps:
            raise Enough

    with fault.plan(hook), contextlib.suppress(Enough), warnings.catch_warnings(action="ignore"):
        pretrain(recipe, setting.folder / "ours")
    return batch * (steps - steps // 3) / (marks[1] - marks[0])


def lightly_at(setting: Setting, images: Path, size: int, batch: int, steps: int) -> float:
    """Images a second of lightly's loop as its documentation has it, the same network and heads."""
    import timm
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    workers = 0 if setting.dry else os.cpu_count() or 1
    data = LightlyDataset(str(images), transform=SimCLRTransform(input_size=size))
    loader = torch.utils.data.DataLoader(
        data,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=not setting.dry,
        persistent_workers=workers > 0,
    )
    backbone = timm.create_model("resnet18", num_classes=0)
    head = SimCLRProjectionHead(backbone.num_features, 512, 128)
    module = nn.Sequential(backbone, head).to(setting.device)
    optimizer, criterion = torch.optim.AdamW(module.parameters(), lr=1e-4), NTXentLoss(0.2)
    marks, step = [], 0
    while True:
        for views_of, *_ in loader:
            step += 1
            if step in (1 + steps // 3, 1 + steps):
                synchronize(setting.device)
                marks.append(time.perf_counter())
            if step > steps:
                return batch * (steps - steps // 3) / (marks[1] - marks[0])
            with autocast(setting.device, "fp32" if setting.dry else "bf16"):
                a, b = (module(view.to(setting.device)) for view in views_of)
                loss = criterion(a, b)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def lightly_train_at(setting: Setting, images: Path, size: int, batch: int, steps: int) -> float:
    """Images a second of `lightly_train.train`, a whole run with its start."""
    import lightly_train

    began, count = time.perf_counter(), sum(1 for _ in images.iterdir())
    epochs = max(1, steps * batch // count)
    lightly_train.train(
        out=str(setting.folder / "lightly_train"),
        data=str(images),
        model="torchvision/resnet18",
        method="simclr",
        epochs=epochs,
        batch_size=batch,
        transform_args={"image_size": (size, size)},
        precision="bf16-mixed",
    )
    return epochs * count / (time.perf_counter() - began)


def stable_at(setting: Setting, images: Path, size: int, batch: int, steps: int) -> float:
    """Images a second of stable-pretraining's Module under Lightning, a whole fit."""
    import lightning
    import stable_pretraining as spt
    import timm
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    one = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.GaussianBlur(13, (0.1, 2.0)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    class Pairs(ImageFolder):
        def __getitem__(self, index: int) -> dict[str, Any]:
            image, label = super().__getitem__(index)
            return {"views": [{"image": one(image), "label": label} for _ in range(2)]}

    loader = torch.utils.data.DataLoader(
        Pairs(str(images.parent)), batch, True, num_workers=os.cpu_count() or 1, drop_last=True
    )
    module = spt.Module(
        backbone=timm.create_model("resnet18", num_classes=0),
        projector=nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128)),
        forward=spt.forward.simclr_forward,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.2),
        optim={"optimizer": {"type": "AdamW", "lr": 1e-4}},
    )
    trainer = lightning.Trainer(
        max_steps=steps, precision="bf16-mixed", logger=False, enable_checkpointing=False
    )
    began = time.perf_counter()
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()
    return batch * steps / (time.perf_counter() - began)


PEERS: dict[str, tuple[str, Callable[..., float], str]] = {
    "lightly": ("lightly", lightly_at, "its loop"),
    "lightly-train": ("lightly_train", lightly_train_at, "a whole run"),
    "stable-pretraining": ("stable_pretraining", stable_at, "a whole fit"),
}


def peers(setting: Setting) -> Iterator[Row]:
    """Images a second of SimCLR of a ResNet-18 on the same JPEGs, ours / theirs."""
    size, batch, steps = (32, 8, 6) if setting.dry else (224, 256, 24)
    images = photographs(setting.folder, 16 if setting.dry else 1024)
    (setting.folder / "data").mkdir()
    images = images.rename(setting.folder / "data" / "images")
    ours = ours_at(setting, images, size, batch, steps)
    what = f"SimCLR, ResNet-18, {size} px, batch {batch}"
    yield Row(f"{what}, lookalike", f"{ours:.0f} images/s")
    for k, (name, (package, run, kind)) in enumerate(PEERS.items()):
        if not importlib.util.find_spec(package):
            yield Row(f"{what}, ours / {name}", SKIPPED, "", f"{package} is not installed")
            continue
        try:
            with alarm(round(setting.left() / (len(PEERS) - k))):
                theirs = run(setting, images, size, batch, steps)
                remark = f"{name} {theirs:.0f} images/s, {kind}"
                yield Row(f"{what}, ours / {name}", f"{ours / theirs:.2f}", "one run", remark)
                continue
            yield Row(f"{what}, ours / {name}", SKIPPED, "", "not done in its time")
        except Exception as error:  # another's program, in any release
            yield Row(f"{what}, ours / {name}", SKIPPED, "", f"{type(error).__name__}: {error}")


# ---- all of it

# Seconds of each; what one does not need goes to those that come.
SECTIONS: dict[str, tuple[int, Section]] = {
    "methods": (45, methods),
    "training": (40, training),
    "same_views": (15, same_views),
    "waits": (45, waits),
    "launches": (15, launches),
    "resnet50": (60, whole_steps("ResNet-50", ["as it is", "channels-last", "not channels-last"])),
    "vit_s": (45, whole_steps("ViT-S", ["as it is", "tf32"])),
    "resnet50_compiled": (55, whole_steps("ResNet-50", ["compiled"])),
    "vit_s_compiled": (45, whole_steps("ViT-S", ["compiled"])),
    "kornia": (45, views_beside),
    "loss": (15, loss_beside),
    "optimizers": (10, optimizers),
    "nvjpeg": (10, nvjpeg),
    "resnet50_nvjpeg": (25, whole_steps("ResNet-50", ["decoded by nvJPEG"])),
    "peers": (40, peers),
}
# Seconds of all; imports and the last section's delay still end within nine minutes.
BUDGET = 515


def work(name: str, setting: Setting, answer: int) -> None:
    """In a child: writes each row as it comes, pickled, and ends the process."""
    os.setpgrp()
    os.dup2(2, 1)  # what anybody prints is no part of the table
    with os.fdopen(answer, "wb") as out:
        try:
            os.environ["XDG_CACHE_HOME"] = str(setting.folder / "cache")
            for row in SECTIONS[name][1](setting):
                out.write(pickle.dumps(row))
                out.flush()
        except BaseException as error:
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            said = f"{type(error).__name__}: {error} at {place}".replace("\n", " ")
            out.write(pickle.dumps(Row(name, FAILED, "", said[:300])))
        out.write(pickle.dumps(None))  # all was said
    sys.stderr.flush()
    os._exit(0)


def section(name: str, dry: bool, seconds: float) -> list[Row]:
    """The rows of a section, from a child that is ended when its time and a quarter are over."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        back, there = os.pipe()
        child = os.fork()
        if not child:
            os.close(back)
            faulthandler.enable()
            work(name, Setting(dry, Path(folder), time.monotonic() + seconds), there)
        os.close(there)
        said, late = b"", False
        end = time.monotonic() + 1.25 * seconds
        while not late:
            late = not select.select([back], [], [], max(0.0, end - time.monotonic()))[0]
            part = b"" if late else os.read(back, 1 << 16)
            if not part:
                break
            said += part
        os.close(back)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with what it started
        os.waitpid(child, 0)
    rows = [*unpacked(said)]
    if rows and rows[-1] is None:
        return rows[:-1]
    why = f"ended after {1.25 * seconds:.0f} s" if late else "the process died"
    return [*rows, Row(name, FAILED, "", why)]


def unpacked(said: bytes) -> Iterator[Any]:
    """The rows that are whole; None at the end of all."""
    stream = io.BytesIO(said)
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stream)


def asked(*words: str) -> str:
    """The first line that a program prints, or nothing."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else ""


def machine(dry: bool) -> str:
    """GPU, driver, libraries and commit."""
    what = "--query-gpu=name,driver_version,memory.total"
    gpu = "a CPU (dry run)" if dry else asked("nvidia-smi", what, "--format=csv,noheader")
    commit = asked("git", "describe", "--always", "--dirty") or "no commit"
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    return f"{gpu or 'no GPU that nvidia-smi knows'}; {versions}; commit {commit}"


def table(rows: Sequence[tuple[str, Row]]) -> str:
    """Markdown."""
    lines = ["| section | what | result | spread or bound | remark |", "|---|---|---|---|---|"]
    for name, row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in (name, *row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Runs the sections, prints the table; 1 where a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, tiny")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    parser.add_argument("--only", default="", help=f"of {','.join(SECTIONS)}")
    words = parser.parse_args()
    chosen = words.only.split(",") if words.only else list(SECTIONS)
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        parser.error(f"no section {unknown[0]}: {', '.join(SECTIONS)}")
    if words.dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
    began, rows = time.monotonic(), []
    wanted = sum(SECTIONS[name][0] for name in chosen)
    for k, name in enumerate(chosen):
        left = words.budget - (time.monotonic() - began)
        rest = sum(SECTIONS[other][0] for other in chosen[k:])
        most = (6 if words.dry else 2) * SECTIONS[name][0]
        seconds = min(most, 0.95 * left * SECTIONS[name][0] / rest)
        if seconds < 2:
            rows.append((name, Row(name, SKIPPED, "", "no time was left")))
            continue
        print(f"gpu: {name}, {seconds:.0f} s", file=sys.stderr, flush=True)
        rows += [(name, row) for row in section(name, words.dry, seconds)]
    took = time.monotonic() - began
    failed = sum(row.result == FAILED for _, row in rows)
    print(f"{machine(words.dry)}; {took:.0f} s of {min(words.budget, wanted):.0f}\n")
    print(table(rows))
    print(f"\n{failed} failed." if failed else "\nAll checks passed.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
