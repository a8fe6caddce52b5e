"""Does the working tree train what another commit trained? The same short runs by the code of both,
compared bit for bit.

    make same BASE=<commit> [WITH="--fast --only 'methods/*' --keep FOLDER"]

BASE is checked out into a temporary git worktree, removed afterwards. Each side is used by its
command line alone, in processes of its own: on the CPU, one torch thread, the same environment, a
cache of its own. A line an item; the exit code is 1 where one differs. Minutes on two cores: 12.
"""

import argparse
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image

from folders import RENAMED_KEYS, Allowed, differences

ROOT = Path(__file__).resolve().parents[1]
RESNET = (
    "{name: resnet18, size: 16, channels: 1, pool: avg, "
    "args: {channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}}"
)
VIT = (
    "{name: vit_tiny_patch16_224, size: 16, channels: 1, pool: avg, "
    "args: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2, dynamic_img_size: true}}"
)
# 10 steps an epoch, 2 epochs.
TOY = f"""
seed: 3
data: {{name: digits}}
backbone: {RESNET}
pretrain:
  method: {{name: barlow_twins, projector: [16, 32], off_diagonal: 0.02}}
  views: {{name: asymmetric, crop: [0.4, 1.0], blur: [0.5, 0.1], blur_sigma: [0.1, 1.0]}}
  optimizer: {{name: adamw, lr: 2e-3}}
  epochs: 2
  batch: 143
  warmup_epochs: 0.5
  log_every: 1
  health_every: 5
finetune:
  optimizer: {{name: adamw, lr: 1e-3}}
  epochs: 1
  warmup_epochs: 0.5
  classes_per_batch: 4
  per_class: 8
  dim: 16
  log_every: 1
"""
# Small heads for a small backbone; a method that is not named here runs with its own.
HEADS = {
    "barlow_twins": "projector: [16, 32], off_diagonal: 0.02",
    "byol": "projector: [16, 8], predictor: [16, 8]",
    "dcl": "projector: [16, 8], sigma: 0.5",
    "dino": "hidden: 16, bottleneck: 8, prototypes: 12, frozen_epochs: 1",
    "moco_v2": "projector: [16, 8], queue: 400, momentum: 0.9",
    "moco_v3": "projector: [16, 8], predictor: [16, 8]",
    "nnclr": "projector: [16, 8], predictor: [16, 8], queue: 400",
    "simclr": "projector: [16, 8]",
    "simsiam": "projector: [16, 8], predictor: 4",
    "supcon": "projector: [16, 8]",
    "swav": "projector: [16, 8], prototypes: 12, frozen_epochs: 1",
    "tico": "projector: [16, 8], beta: 0.1",
    "vicreg": "projector: [16, 32]",
    "w_mse": "projector: [16, 4], slice_size: 6",
}
SMALL_CROPS = "{name: multi_crop, small: 3, small_size: 8}"
BESIDE = {
    "dino": {"backbone": VIT, "pretrain.views": SMALL_CROPS, "pretrain.final_weight_decay": "0.4"},
    "moco_v3": {"pretrain.optimizer": "{name: lars, lr: 0.3}"},
    "simsiam": {"pretrain.optimizer": "{name: sgd, lr: 0.05, momentum: 0.9}"},
    "swav": {"pretrain.views": SMALL_CROPS},
}
QUICKSTART = {
    "pretrain.epochs": "2",
    "pretrain.warmup_epochs": "1",
    "pretrain.log_every": "1",
    "finetune.epochs": "2",
    "finetune.warmup_epochs": "1",
    "finetune.log_every": "1",
}
METRIC = QUICKSTART | {
    "pretrain.epochs": "1",
    "finetune.epochs": "3",
    "evaluate.examples": "0",
}
# Whose schedule has steps later than so few epochs.
STEPPED = {"reidentification": {"finetune.schedule": "cosine"}}
ESTIMATOR = {"pretrain.epochs": "1", "pretrain.log_every": "1", "evaluate.examples": "0"}
# What the loop and the engines have beside stages: losses, chunks, kNN, clipping, autocast.
OPTIONS = {
    "pretrain.engine": "{name: plain, checkpoint_activations: true}",
    "pretrain.engine.clip": "0.5",
    "pretrain.batch": "120",
    "pretrain.accumulate": "2",
    "pretrain.micro_batch": "30",
    "pretrain.knn_every_epochs": "1",
    "pretrain.views": "symmetric",
}
# Of a ViT: gradients of convolutions in bf16 are not the same twice on every CPU.
BF16 = {
    "backbone": VIT,
    "pretrain.engine": "{name: plain}",
    "pretrain.engine.precision": "bf16",
    "pretrain.engine.clip": "0.5",
}
# What fine-tuning has beside its objectives, which the recipes try.
REFINED = {
    "finetune.objective": "ProxyAnchorLoss",
    "finetune.views": "{name: symmetric, views: 1}",
    "finetune.epochs": "2",
    "finetune.layer_decay": "0.5",
    "finetune.head_epochs": "0.5",
    "finetune.proxy_lr_factor": "10.0",
    "finetune.train_blocks": "2",
    "finetune.freeze_batchnorm": "true",
    "finetune.batchnorm": "true",
    "finetune.pool": "gem",
}
# The spelling of release 0.1.0; a resumed run of BASE must be understood in it.
EARLIER = {
    "pretrain.engine": "{name: plain}",
    "pretrain.engine.precision": "fp32",
    "pretrain.engine.clip": "3.0",
}
FAST = {
    "quickstart",
    "methods/barlow_twins",
    "methods/dino",
    "methods/moco_v2",
    "methods/simsiam",
    "metric/reidentification",
    "finetune",
    "resume",
    "engines/options",
    "engines/zero-2",
    "files/host",
}
_LONGEST = 900.0
Words = Mapping[str, str]


class Failed(Exception):
    """A command of a side did not end as it should."""


@dataclass(frozen=True)
class Run:
    """A command: `out` its run folder; `stop`: the step after which SIGTERM stops it, 0 for none.

    A relative `recipe` is the side's own.
    """

    out: str
    recipe: str | Path
    words: Words
    verb: str = "run"
    ranks: int = 1
    stop: int = 0


class Side:
    """The code of one commit: `root` its checkout, `work` the folder of its runs."""

    def __init__(self, name: str, root: Path, work: Path) -> None:
        self.name, self.root, self.work = name, root, work
        self._children: list[subprocess.Popen[bytes]] = []
        work.mkdir(parents=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOOKALIKE_", "PYTHON"))}
        self.environment = kept | {
            "PYTHONPATH": str(root / "ssl"),
            "XDG_CACHE_HOME": str(work / "cache"),
            "OMP_NUM_THREADS": "1",
            "LOOKALIKE_NATIVE": "0",  # one form of the views on both sides
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        found = self._said("-c", "import lookalike; print(lookalike.__file__)").strip()
        if not Path(found).is_relative_to(root):
            raise Failed(f"{name}: Python imports {found}, which does not lie below {root}")
        self.schema = json.loads(self._said("-m", "lookalike", "schema"))

    def _said(self, *words: str) -> str:
        how: dict[str, Any] = {"env": self.environment, "cwd": self.work, "text": True}
        done = subprocess.run([sys.executable, *words], capture_output=True, **how)
        if done.returncode:
            raise Failed(f"{self.name}: {' '.join(words)}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def methods(self) -> list[str]:
        """The names that `pretrain.method` may have."""
        found = shapes(self.schema, "pretrain.method")
        return [each["properties"]["name"]["const"] for each in found if "properties" in each]

    def overrides(self, words: Words) -> list[str]:
        """`key=value` as this side spells the keys."""
        found = []
        for key, value in words.items():
            new = RENAMED_KEYS.get(key, key)
            found.append(f"{new if shapes(self.schema, new) else key}={value}")
        return found

    def start(self, run: Run) -> subprocess.Popen[bytes]:
        """Starts the command, in a session of its own; what it prints goes to a file."""
        words = ["-m", "lookalike", run.verb, str(self.root / run.recipe)]
        words += [*self.overrides(run.words), "--out", str(self.work / run.out)]
        if run.ranks > 1:
            moved = (self.root / "ssl" / "lookalike" / "process").exists()
            launcher = "lookalike.process.ranks" if moved else "lookalike.ranks"
            words = ["-m", launcher, str(run.ranks), *words]
        how: dict[str, Any] = {"cwd": self.work, "env": dict(self.environment)}
        if run.stop:
            how["env"]["LOOKALIKE_FAULT"] = f"stop:rank=0,step={run.stop}"
        log = self._log(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            how |= {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            child = subprocess.Popen([sys.executable, *words], start_new_session=True, **how)
        self._children.append(child)
        return child

    def finish(self, run: Run, child: subprocess.Popen[bytes]) -> None:
        """Waits for the command. Raises Failed unless it ended well or, as asked, was stopped.

        A run to be stopped freezes when its last step begins, and gets the signal there.
        """
        if run.stop:
            state = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if state is not None and state.si_code == os.CLD_STOPPED:
                child.send_signal(signal.SIGTERM)
                child.send_signal(signal.SIGCONT)
        code = child.wait(_LONGEST)
        if code != (128 + signal.SIGTERM if run.stop else 0):
            said = self._log(run).read_text(errors="replace").strip().splitlines()
            raise Failed(f"{self.name}: {run.verb} ended with {code}: {said[-1] if said else ''}")

    def _log(self, run: Run) -> Path:
        return self.work / f"{run.out}.log"

    def close(self) -> None:
        """Ends what still runs."""
        for child in self._children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


class Both:
    """BASE and the working tree, and what was met that may differ."""

    def __init__(self, base: Side, tree: Side) -> None:
        self.base, self.tree = base, tree
        self.allowed: Allowed = {}

    def run(self, run: Run) -> None:
        """The command on both sides, two processes at a time."""
        self.pair((self.base, run), (self.tree, run))

    def pair(self, *each: tuple[Side, Run]) -> None:
        """Two commands at once, those of several ranks one after another."""
        at_once = [[one] for one in each] if each[0][1].ranks > 1 else [each]
        problems = []
        for some in at_once:
            for side, run, child in [(side, run, side.start(run)) for side, run in some]:
                try:
                    side.finish(run, child)
                except Failed as problem:
                    problems.append(str(problem))
        if problems:
            raise Failed("; ".join(problems))

    def compare(self, out: str) -> list[str]:
        """In what the run folders of both sides differ."""
        return differences(self.base.work / out, self.tree.work / out, self.allowed)

    def resumed(self, run: Run, whole: str, stopped: str) -> list[str]:
        """Stops a run in `stopped`, then goes on: the tree with its own, and with that of BASE.

        In what both differ from the runs without a break in `whole`. Where a run needs something
        to begin with, it lies in `stopped` already.
        """
        self.run(replace(run, out=stopped))
        taken = f"{stopped}-of-base"
        shutil.copytree(self.base.work / stopped, self.tree.work / taken, symlinks=True)
        on = replace(run, stop=0)
        self.pair((self.tree, replace(on, out=stopped)), (self.tree, replace(on, out=taken)))
        whole_tree, whole_base = self.tree.work / whole, self.base.work / whole
        own = differences(whole_tree, self.tree.work / stopped, self.allowed)
        other = differences(whole_base, self.tree.work / taken, self.allowed)
        return [*(f"resumed: {line}" for line in own), *(f"BASE's: {line}" for line in other)]


@dataclass(frozen=True)
class Item:
    """What is compared under a name; `work` returns the differences."""

    name: str
    work: Callable[[Both], list[str]]


def shapes(schema: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    """What a schema says of a key: one object for each shape that its value may have."""
    found = [schema]
    for name in path.split("."):
        members = [each["properties"][name] for each in found if name in each.get("properties", {})]
        found = [one for each in members for one in each.get("anyOf", [each])]
    return found


def alike(run: Run, both: Both) -> list[str]:
    """One command on both sides."""
    both.run(run)
    return both.compare(run.out)


def resume(toy: Path, both: Both) -> list[str]:
    """Pretraining in one go, and stopped within its second epoch."""
    run = Run("resume/whole", toy, EARLIER, "pretrain")
    found = alike(run, both)
    return found + both.resumed(replace(run, stop=13), "resume/whole", "resume/stopped")


def resume_finetune(toy: Path, both: Both) -> list[str]:
    """The same of fine-tuning, on a backbone that each side has pretrained."""
    words = {"finetune.epochs": "2"}
    both.run(Run("refine/whole", toy, words, "pretrain"))
    for side in (both.base, both.tree):
        folder = side.work / "refine"
        shutil.copytree(folder / "whole", folder / "stopped", symlinks=True)
    run = Run("refine/whole", toy, words, "finetune")
    found = alike(run, both)
    return found + both.resumed(replace(run, stop=30), "refine/whole", "refine/stopped")


def items(base: Side, tree: Side, work: Path) -> Iterator[Item]:
    """Everything there is to compare; says what only one side has."""
    toy = work / "toy.yaml"
    toy.write_text(TOY)
    yield command("quickstart", "recipes/quickstart.yaml", QUICKSTART)
    for name in common("methods", base.methods(), tree.methods()):
        method = f"{{name: {name}, {HEADS[name]}}}" if name in HEADS else f"{{name: {name}}}"
        words = {"pretrain.method": method, **BESIDE.get(name, {})}
        yield command(f"methods/{name}", toy, words, "pretrain")
    recipes = []
    for side in (base, tree):
        recipes.append([each.stem for each in sorted(side.root.glob("recipes/metric/*.yaml"))])
    for name in common("metric", *recipes):
        words = {**METRIC, **STEPPED.get(name, {})}
        yield command(f"metric/{name}", f"recipes/metric/{name}.yaml", words)
    for name in ("mahalanobis", "csml"):
        yield command(f"estimators/{name}", f"recipes/digits_{name}.yaml", ESTIMATOR)
    yield command("finetune", toy, REFINED)
    yield Item("resume", partial(resume, toy))
    yield Item("resume/finetune", partial(resume_finetune, toy))
    yield from engines(toy)
    images = f"{{name: folder, path: {draw_digits(work / 'images')}, canvas: 20, channels: 1}}"
    for where in ("device", "host"):
        words = {"data": images, "pretrain.batch": "40", "pretrain.workers": "1"}
        words |= {"pretrain.crop_on": where}
        yield command(f"files/{where}", toy, words, "pretrain")


def command(name: str, recipe: str | Path, words: Words, verb: str = "run", ranks: int = 1) -> Item:
    """An item that is one command on each side."""
    return Item(name, partial(alike, Run(name, recipe, words, verb, ranks)))


def engines(toy: Path) -> Iterator[Item]:
    """The engines: plain, zero at every stage, zero on two ranks."""
    yield command("engines/options", toy, OPTIONS, "pretrain")
    yield command("engines/bf16", toy, BF16, "pretrain")
    kinds = [("plain", "{name: plain}", 1)]
    kinds += [(f"zero-{n}", f"{{name: zero, stage: {n}}}", 1) for n in range(4)]
    kinds += [(f"zero-{n}-2-ranks", f"{{name: zero, stage: {n}}}", 2) for n in (0, 2)]
    for name, engine, ranks in kinds:
        words = {"pretrain.engine": engine, "pretrain.engine.clip": "1.0", "pretrain.batch": "144"}
        yield command(f"engines/{name}", toy, words, "pretrain", ranks)


def common(kind: str, base: Sequence[str], tree: Sequence[str]) -> list[str]:
    """The names on both sides; a line for each other one."""
    for name in sorted({*base} ^ {*tree}):
        where = "only BASE has it" if name in base else "new"
        print(f"-       {kind}/{name}: {where}, not compared", flush=True)
    return [name for name in base if name in tree]


def draw_digits(folder: Path) -> Path:
    """Image files: 40 of each of 5 digits to train on, 4 to test, JPEG and PNG of several sizes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(5):
        chosen = digits.images[digits.target == label][:44]
        for n, values in enumerate(chosen):
            image = Image.fromarray((values * 15).astype("uint8")).resize((24 + n, 32))
            path = folder / ("test" if n >= 40 else "train") / str(label) / f"{n}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path.with_suffix(".jpg" if n % 2 else ".png"))
    return folder


@contextmanager
def checkout(commit: str, at: Path) -> Iterator[str]:
    """A temporary worktree of the commit at `at`; gives the commit's short name."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"git {words[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    name = git("rev-parse", "--short", f"{commit}^{{commit}}")
    try:
        git("worktree", "add", "--detach", str(at), name)
        yield name
    finally:
        if at.exists():
            git("worktree", "remove", "--force", str(at))


def judge(item: Item, both: Both) -> bool:
    """Does the work of an item and says what came of it; whether it is equal."""
    began = time.monotonic()
    try:
        found = item.work(both)
    except (Failed, OSError, ValueError, subprocess.TimeoutExpired) as error:
        found = [f"{type(error).__name__}: {error}"]
    seconds = f"{time.monotonic() - began:3.0f} s"
    print(f"{'DIFFERS' if found else 'equal  '} {seconds}  {item.name}", flush=True)
    for line in found[:12]:
        print(f"          {line}", flush=True)
    if len(found) > 12:
        print(f"          and {len(found) - 12} more", flush=True)
    return not found


def compare(base: Side, tree: Side, work: Path, wanted: Callable[[str], bool]) -> int:
    """Every item that is wanted; how many differ, 1 where none is."""
    both = Both(base, tree)
    judged = [judge(item, both) for item in items(base, tree, work) if wanted(item.name)]
    for reason, names in sorted(both.allowed.items()):
        print(f"allowed: {', '.join(sorted(names))}: {reason}")
    print(f"{sum(judged)} of {len(judged)} items are equal")
    return len(judged) - sum(judged) if judged else 1


def main() -> int:
    """The command line; the exit code."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    asked.add_argument("base", metavar="BASE", help="The commit to compare with.")
    asked.add_argument("--only", metavar="PATTERN", default="*", help="Items, as methods/*.")
    asked.add_argument("--fast", action="store_true", help="Three minutes' worth of them.")
    asked.add_argument("--keep", metavar="FOLDER", type=Path, help="Where the runs stay.")
    given = asked.parse_args()
    if given.keep and given.keep.exists():
        asked.error(f"--keep {given.keep}: exists, name another")
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)
    began = time.monotonic()

    def wanted(name: str) -> bool:
        return fnmatch.fnmatch(name, given.only) and (not given.fast or name in FAST)

    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        work, code = (given.keep or Path(folder)).resolve(), Path(folder) / "code"
        try:
            with (
                checkout(given.base, code) as commit,
                closing(Side(f"BASE ({commit})", code, work / "base")) as base,
                closing(Side("tree", ROOT, work / "tree")) as tree,
            ):
                differing = compare(base, tree, work, wanted)
        except Failed as error:
            print(f"same: {error}", file=sys.stderr)
            return 2
    print(f"{commit} and the working tree, {(time.monotonic() - began) / 60:.1f} min")
    return min(differing, 1)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
