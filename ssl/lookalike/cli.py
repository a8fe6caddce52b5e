"""The shell's verbs: parse, call, report; no logic. Nothing heavy is imported before a verb is
known.
"""

import gc
import json
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

import lookalike
from lookalike.errors import LOST, Error, LostError, printable
from lookalike.folder import at_home
from lookalike.process import streams
from lookalike.process.ranks import follow_launcher
from lookalike.process.signals import Signals, Stopped

# How torch's allocators, which raise a plain RuntimeError, and the system say that there is no
# memory left.
_NO_MEMORY = re.compile(
    "DefaultCPUAllocator|out of memory|Cannot allocate memory|unable to allocate shared memory"
)

app = typer.Typer(
    help="Pretrain vision backbones without labels, "
    "then probe, fine-tune, evaluate and export them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML recipe; see recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Values in place of the recipe's."),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The run folder; one of an earlier run is resumed.",
        parser=at_home,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER|NAME|FILE",
        help="A folder, a timm or Hub name, or weights; default: the run's own.",
    ),
]
Accept = Annotated[
    bool,
    typer.Option("--accept-changes", help="Resume though the recipe or the images have changed."),
]
HostFile = Annotated[
    Path | None,
    typer.Option("--hostfile", metavar="FILE", help="Machines, a line `name slots=N` each."),
]


@app.command()
def run(
    recipe: RecipeFile, overrides: Overrides = None, *, out: Out, accept_changes: Accept = False
) -> None:
    """Every stage that the recipe names, in order."""
    lookalike.run(
        lookalike.load_recipe(recipe, overrides or ()), out, accept_changes=accept_changes
    )


@app.command()
def pretrain(
    recipe: RecipeFile, overrides: Overrides = None, *, out: Out, accept_changes: Accept = False
) -> None:
    """Images without labels -> DIR/backbone."""
    lookalike.pretrain(
        lookalike.load_recipe(recipe, overrides or ()), out, accept_changes=accept_changes
    )


@app.command()
def probe(
    recipe: RecipeFile, overrides: Overrides = None, *, out: Out, model: Model = None
) -> None:
    """Linear probe and kNN of a backbone -> DIR/probe.json."""
    loaded = lookalike.load_recipe(recipe, overrides or ())
    lookalike.probe(model or _backbone(loaded, out), loaded, out, name=model)


@app.command()
def segment(
    recipe: RecipeFile, overrides: Overrides = None, *, out: Out, model: Model = None
) -> None:
    """Linear segmentation on a backbone's patches -> DIR/segment.json."""
    loaded = lookalike.load_recipe(recipe, overrides or ())
    lookalike.segment(model or _backbone(loaded, out), loaded, out, name=model)


@app.command()
def classify(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    out: Out,
    model: Model = None,
    accept_changes: Accept = False,
) -> None:
    """A classifier from a backbone and labels -> DIR/classify/classifier, DIR/classify.json."""
    loaded = lookalike.load_recipe(recipe, overrides or ())
    lookalike.classify(model or _backbone(loaded, out), loaded, out, accept_changes=accept_changes)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A classifier's folder.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, or folders; -: paths on stdin."),
    ],
    *,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="So many classes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each image.")] = False,
) -> None:
    """The classes of images, by a classifier."""
    from lookalike.stages.predict import predict as stage

    for line in stage(model, images, top=top, as_json=as_json):
        print(line)


@app.command()
def embed(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a timm or Hub name.")],
    source: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder of images; or a recipe, for its data.")
    ],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .parquet, .npz or .csv.")],
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images at once, a rank.")] = 256,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Loader processes of each rank.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16|fp16", help="What the network computes in.")
    ] = "fp32",
    dtype: Annotated[
        str, typer.Option(metavar="float32|float16", help="What is written.")
    ] = "float32",
) -> None:
    """Features of images, a row each with name and label, by all ranks; a killed one goes on."""
    how: dict[str, Any] = {"batch": batch, "workers": workers, "precision": precision}
    lookalike.embed(model, source, out, overrides or (), store=dtype, **how)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Scores of several runs and their checkpoints in one table, and what differs between their
    recipes.
    """
    from lookalike.stages.compare import compare as stage

    print(stage(runs, as_json=as_json))


@app.command()
def finetune(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    out: Out,
    model: Model = None,
    accept_changes: Accept = False,
) -> None:
    """Metric learning on a backbone -> DIR/finetune/embedding."""
    loaded = lookalike.load_recipe(recipe, overrides or ())
    lookalike.finetune(model or _backbone(loaded, out), loaded, out, accept_changes=accept_changes)


def _backbone(recipe: Any, out: Path) -> str:
    """The folder that the recipe works on, the run's own where it names none."""
    return recipe.backbone.folder or str(out / "backbone")


@app.command()
def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    out: Out,
    model: Model = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            "--gallery", metavar="FILE", help="The examples as a .html or .png of this name."
        ),
    ] = None,
) -> None:
    """Retrieval, re-identification or verification of a model -> DIR/evaluate.json,
    DIR/evaluate.html.
    """
    from lookalike.stages.evaluate import own, table

    loaded = lookalike.load_recipe(recipe, overrides or ())
    name, folder = (model, model) if model else own(out, loaded)
    found = lookalike.evaluate(folder, loaded, out, name=name, gallery=gallery)
    if not int(os.environ.get("RANK") or 0):
        print(table({name: found}))


@app.command()
def export(
    recipe: RecipeFile, overrides: Overrides = None, *, out: Out, model: Model = None
) -> None:
    """A model -> DIR/export/…: timm layout, model card and ONNX, checked."""
    loaded = lookalike.load_recipe(recipe, overrides or ())
    source = Path(model or _backbone(loaded, out))
    lookalike.export(source, loaded, out / "export" / source.name)


@app.command()
def show(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """The resolved recipe, shapes, parameters, steps, optimizer groups, memory."""
    from lookalike.show import show

    print(show(lookalike.load_recipe(recipe, overrides or ())))


@app.command()
def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .html or .png.")] = Path(
        "preview.html"
    ),
    images: Annotated[int, typer.Option("--images", min=1, max=256, help="How many images.")] = 8,
    epoch: Annotated[int, typer.Option("--epoch", min=0, help="Of which epoch.")] = 0,
) -> None:
    """Some images with the views that the run's first training would see, and what was drawn for
    them; `pretrain=null` shows the next one's.
    """
    from lookalike import pipeline

    loaded = lookalike.load_recipe(recipe, overrides or ())
    lines = pipeline.draw(loaded, out, images=images, epoch=epoch)
    print("\n".join([*lines, f"written to {out}"]))


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="As for run; nothing is written.", parser=at_home
        ),
    ] = None,
    accept_changes: Accept = False,
    hostfile: HostFile = None,
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="N", min=0, help="So many will be started.")
    ] = 0,
) -> None:
    """Refuses what `run` with the same words would refuse before its first step; says what images
    it finds and what it leaves out, and does nothing else.
    """
    from lookalike.process.hostfile import read_hosts

    ranks = sum(host.slots for host in read_hosts(hostfile)) if hostfile else ranks
    if out is None:
        raise Error("--out DIR is missing: name the run folder, one of an earlier run is resumed")
    from lookalike import pipeline
    from lookalike.runs import Run

    loaded = lookalike.load_recipe(recipe, overrides or ())
    checked = Run(loaded, out, accept_changes=accept_changes, ranks=ranks)
    pipeline.check(checked)
    print("\n".join(checked.told()))


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Its data set is compared too.")
    ] = None,
    overrides: Overrides = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where disk space is looked for.")
    ] = Path(),
    hostfile: HostFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The reports as one line of JSON.")
    ] = False,
) -> None:
    """What would spoil a training on these machines: ssh, versions, GPUs, bandwidth, data, disk,
    clocks.
    """
    from lookalike import doctor
    from lookalike.process.hostfile import read_hosts

    words = [recipe, *(overrides or ()), "--out", str(out)] if recipe else ["--out", str(out)]
    loaded = lookalike.load_recipe(recipe, overrides or ()) if recipe else None
    find = partial(loaded.data.build().split, "train") if loaded else None
    reports = doctor.everywhere(read_hosts(hostfile), words) if hostfile else doctor.here(find, out)
    doctor.tell(reports, as_json)


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|RECIPE", help="Images; or a recipe, for its data.")
    ],
    shards: Annotated[
        Path,
        typer.Argument(metavar="SHARDS", help="The folder of shards; an unfinished one goes on."),
    ],
    overrides: Overrides = None,
    *,
    shard_size: Annotated[
        float, typer.Option(metavar="MB", help="A shard is closed at so many 10^6 bytes,")
    ] = 512.0,
    shard_count: Annotated[
        int | None, typer.Option(metavar="N", help="or at so many images.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Bring the shorter side down to this.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="keep|jpeg|webp", help="Default: keep; where resized, jpeg."
        ),
    ] = None,
    quality: Annotated[int, typer.Option(metavar="1-100", help="Of jpeg and webp.")] = 90,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes; default: one a core.")
    ] = None,
) -> None:
    """Images -> tar shards (WebDataset layout) with an index, for the `shards` source."""
    from lookalike.stages import pack as stage

    how: dict[str, Any] = {
        "shard_mb": shard_size,
        "shard_samples": shard_count,
        "resize": resize,
        "form": form,
    }
    stage.pack(source, shards, overrides or (), workers=workers, quality=quality, **how)


@app.command()
def search(
    index: Annotated[
        Path,
        typer.Argument(metavar="INDEX", help="A folder that this verb writes: images, embedded."),
    ],
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUERY]...", help="Image files; -: paths on stdin, one a line."),
    ] = None,
    *,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FOLDER|RECIPE", help="Make INDEX of these, or bring it up to date."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FOLDER|NAME", help="Which embeds; default: INDEX's own."),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many of the nearest.")] = 10,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate", help="Look at one image in 16, the likely ones; needs faiss once."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--show", metavar="FILE.html|.png", help="The images themselves, too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each query.")] = False,
) -> None:
    """The nearest images of a folder, by a model's embedding."""
    from lookalike.search import results as said

    said.refuse(k, out, bool(queries))
    if source is None:  # stages would import what only training needs
        from lookalike.search.opened import opened as asked

        opened = asked(index, model, approximate=approximate)
    else:
        from lookalike.stages.search import open_search

        opened = open_search(index, source, model, approximate=approximate)
    if queries == ["-"]:
        answers = said.query_lines(opened, sys.stdin.buffer, k, approximate=approximate)
    else:
        answers = said.query(opened, queries or (), k, approximate=approximate)
    said.report(opened, answers, as_json, out)


@app.command()
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As a page for readers: docs/recipes.md.")
    ] = False,
) -> None:
    """The JSON schema of recipes, for editors."""
    from lookalike.experiment import recipe_page, recipe_schema

    print(recipe_page() if markdown else json.dumps(recipe_schema(), indent=2))


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options of all verbs."""
    os.environ["LOOKALIKE_DEBUG"] = "1" if debug else ""


def main() -> None:
    """Runs the shell's words; exits 2 with one line a problem, 128 + signal after a stop, LOST
    without a peer.
    """
    warnings.showwarning = _one_line
    # A start makes a million objects that stay: looking for garbage there is a tenth of it.
    gc.set_threshold(50_000, 20, 20)
    # A rank that finds no other says so itself; torch would add the stacks of its C++, once a try.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    streams.prepare()
    _on_signals(_interrupt)
    follow_launcher()
    try:
        code = guarded(app)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    code = streams.delivered(code)
    _on_signals(lambda number, frame: os._exit(code))  # too late to change what the verb came to
    if code == LOST:
        # What still runs on a device or in a thread waits for the lost rank: leave without asking
        # it.
        os._exit(code)
    sys.exit(code)


def _on_signals(handler: Callable[[int, FrameType | None], Any]) -> None:
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & set(dir(signal)):
        signal.signal(getattr(signal, name), handler)


class Interrupted(BaseException):
    """A signal. No KeyboardInterrupt, which typer would make an exit of its own without a word."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def guarded(verb: Callable[[], Any]) -> int:
    """Calls `verb`; the exit code that says how it ended."""
    try:
        verb()
    except Stopped as stop:
        streams.tell(fit(str(stop)))
        return 128 + stop.number
    except Interrupted as stop:
        streams.tell(f"stopped by {signal.Signals(stop.number).name}: the same command goes on")
        return 128 + stop.number
    except KeyboardInterrupt:
        streams.tell("stopped by SIGINT: the same command goes on")
        return 130
    except LostError as error:
        return _refused(error, str(error), LOST)
    except Error as error:
        return _refused(error, str(error))
    except (SystemExit, GeneratorExit):
        raise
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        return _refused(
            error,
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}: --debug shows where",
        )
    except RuntimeError as error:
        if _lost(error):
            reason = str(error).split("]", 1)[-1].split(". ")[0].strip() or type(error).__name__
            return _refused(
                error,
                f"another rank has ended or hangs ({reason[:160]}): see the first error above or "
                "in its log; the same "
                "command goes on from the last checkpoint",
                LOST,
            )
        if _NO_MEMORY.search(str(error)):
            reason = " ".join(str(error).split())[-200:]
            return _refused(
                error,
                f"not enough memory ({reason}): lower the batch of this stage, its workers, heads "
                "or queue",
            )
        return _defect(error)
    except BaseException as error:
        return _defect(error)
    finally:
        _leave()
    return 0


def _refused(error: BaseException, text: str, code: int = 2) -> int:
    if os.environ.get("LOOKALIKE_DEBUG"):
        traceback.print_exception(error)
    streams.tell(fit(text))
    return code


def _defect(error: BaseException) -> int:
    """What no user did: one line too, exit code 1."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in where)
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return _refused(
        error,
        f"{what}{place}: a defect of lookalike, please report it: --debug shows the traceback",
        1,
    )


def fit(text: str) -> str:
    """The lines of a message, whatever went into it: nothing in it moves the cursor or turns the
    writing.
    """
    return "\n".join(map(printable, text.split("\n")))


def _lost(error: RuntimeError) -> bool:
    """Whether torch says that another rank is gone."""
    if "torch" not in sys.modules:
        return False
    from lookalike import comm

    return comm.is_peer_failure(error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Outside training a signal ends the work at once; the training loop has handlers of its own.

    After a training that a signal has stopped only Ctrl-C still does.
    """
    if not Signals.heard:
        raise Interrupted(number)
    if number == signal.SIGINT:
        os._exit(128 + number)


def _leave() -> None:
    """Leaves the process group, where this process joined one."""
    if "torch" in sys.modules:
        from lookalike import comm

        comm.stop()


_told: set[str] = set()


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Each warning once, whichever stages meet it again."""
    if (text := str(message)) not in _told:
        _told.add(text)
        streams.tell(f"warning: {fit(text)}")
