"""The training loop, for pretraining and fine-tuning alike: what happens in a step, in order, on
one screen.
"""

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lookalike import comm, rng
from lookalike.checkpoint import Checkpoints, Saver, differences
from lookalike.data.images import Images
from lookalike.data.loader import Batch, batches, workers_for
from lookalike.data.order import BatchOrder
from lookalike.data.prefetch import prefetch
from lookalike.data.reader import HostCrops
from lookalike.engine import ENGINES, Engine, State
from lookalike.errors import LostError, RunError
from lookalike.log import Terminal, say
from lookalike.models import Architecture
from lookalike.nn.loss import Loss
from lookalike.optim import (
    OPTIMIZERS,
    Progress,
    parameter_groups,
    set_rates,
    set_weight_decay,
    warmup_cosine,
)
from lookalike.process import fault
from lookalike.process.signals import Signals, Stopped
from lookalike.process.watchdog import Watchdog
from lookalike.recipe import Choice, Count, Fraction, Index, NonNegative, Positive, Size, Spec
from lookalike.training.bad_samples import BadSamples, keep_first
from lookalike.training.health import CollapseDetector, measure, queue_ages
from lookalike.training.meter import Meter
from lookalike.training.metrics import Metrics
from lookalike.training.nonfinite import NonFinitePolicy

ENGINE = Choice(ENGINES, supplied={"module", "optimizer", "accumulate"})
OPTIMIZER = Choice(OPTIMIZERS, supplied={"groups"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every training asks for. Learning rates are final; `final_lr` is a share of the base
    rate.

    `final_weight_decay`: what the weight decay goes to by a half cosine, by default it stays;
    `max_bad`: the share of images that may be unreadable (at least 100) before the run stops;
    `workers`: loader processes of each rank, by default none for images in memory; `keep`: how many
    checkpoints stay; `health_every`: steps between measurements of the embeddings, 0 for none;
    `on_collapse`: what an alarm does; `crop_on`: where views are cut, on the `device` from a canvas
    decoded once, or on the `host` from the full-size image, as the papers do: sharper small crops
    for more work of the processor (benchmarks/crop.py); `timeout`: seconds without a finished step
    after which the job ends (LOOKALIKE_TIMEOUT in the environment wins).
    """

    optimizer: Annotated[Spec, OPTIMIZER]
    epochs: Count
    warmup_epochs: NonNegative = 10.0
    final_lr: Fraction = 0.001
    final_weight_decay: NonNegative | None = None
    engine: Annotated[Spec, ENGINE] | None = None
    workers: Index | None = None
    log_every: Count = 10
    save_every_epochs: Count = 1
    keep: Count = 2
    max_bad: Fraction = 0.001
    health_every: Index = 25
    on_collapse: Literal["warn", "stop"] = "warn"
    timeout: Positive = 1800.0
    crop_on: Literal["device", "host"] = "device"

    @property
    def dtype(self) -> torch.dtype:
        """What the network reads: bfloat16 where its engine computes so, which would round them to
        that anyway.
        """
        precision = self.engine.args.get("precision", "fp32") if self.engine else "fp32"
        return torch.bfloat16 if precision == "bf16" else torch.float32

    def host_crops(self, views: Any, size: Size) -> HostCrops | None:
        """How the host crops views of `size`, or None where the device does."""
        return HostCrops(views, size) if self.crop_on == "host" else None

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than epochs {self.epochs}: lower "
                "it"
            )


class Order(BatchOrder, Protocol):
    """Which samples make which global micro-batch, and how many steps that is; here and in
    metric/sampler.py.
    """

    @property
    def batch(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...


@dataclass(frozen=True)
class Job:
    """What is trained on what: `inputs` makes the module's inputs of a batch; `fixed` must not
    change in a resume.

    `pieces`: how many parts of a batch the backbone sees one after another; `cuts`: how the host
    crops, None where the device does; `judge`: scores of the model as it stands, which every rank
    computes alike, asked every `judge_every` steps; `accept_changes`: resume even so; `changed`: in
    what the recipe then is another than before; `resumed`: called once the earlier state, if any,
    is in; `kept`: called with each save.
    """

    title: str
    folder: Path
    module: nn.Module
    images: Images
    order: Order
    inputs: Callable[[Batch], tuple[Any, ...]]
    must_match: dict[str, Any]
    pieces: int = 1
    host_crops: HostCrops | None = None
    monitor: Callable[[], dict[str, float]] = dict
    monitor_every: int = 0
    accept_changes: bool = False
    changed: Sequence[str] = ()
    on_resume: Callable[[], None] = lambda: None
    kept: Callable[[], None] = lambda: None


def train(job: Job, settings: Settings) -> None:
    """Trains from the newest checkpoint in the job's folder to the last step.

    Raises Stopped after a signal, with everything saved; RunError after NaN again and again, or
    unsaved states.
    """
    order, steps = job.order, settings.epochs * job.order.steps_per_epoch
    warmup = round(settings.warmup_epochs * order.steps_per_epoch)
    factor = partial(warmup_cosine, steps=steps, warmup=warmup, final=settings.final_lr)
    engine = make_engine(settings, job.module, order.accumulate)
    saver = Saver(Checkpoints(job.folder / "checkpoints", settings.keep))
    done, told = resume(engine, saver.checkpoints, job, steps)
    job.on_resume()
    metrics = Metrics(job.folder, done, active=comm.rank() == 0)
    bad = known_bad(job, settings, told)
    stream, meter = (
        read(job, settings, done, steps),
        Meter(order.batch / order.accumulate, told.meter),
    )
    terminal = Terminal(job.title, steps, order.steps_per_epoch, done, active=comm.rank() == 0)
    watchdog = Watchdog(job.folder, comm.timeout(settings.timeout), done)
    alarm, trouble = (
        CollapseDetector(told.alarm),
        NonFinitePolicy(job.folder, job.title, told.trouble),
    )
    with metrics, terminal, saver, Signals() as signals, watchdog:
        while done < steps:
            fault.inject(done + 1)
            moment = Progress(done, steps, done / order.steps_per_epoch)
            rate = begin(engine, settings, factor(done), moment, order.seed)
            loss, new_bad = gradients(engine, job, stream, meter, bad)
            broken = not bool(engine.finite() & loss.value.isfinite())
            stop, found, skip, failures = agree(signals.caught > 0, new_bad, broken, saver.failures)
            engine.step(skip=skip > 0)
            done += 1
            bad.check(found)
            trouble.on_failed_save(saver, failures)
            if not skip:
                engine.follow()
                trouble.reset()
            elif trouble.on_bad_step(engine, order, done):
                saver.wait()
                step, told = resume(engine, saver.checkpoints, job, steps)
                done, alarm, bad = (
                    trouble.rollback(done, step),
                    CollapseDetector(told.alarm),
                    known_bad(job, settings, told),
                )
                stream.close()
                stream, meter = read(job, settings, done, steps), Meter(meter.images, told.meter)
                metrics.cut(done)
                continue
            else:
                meter.drop(order.accumulate)
            if every(done, settings.health_every) and not skip:
                watch(engine, loss, alarm, meter, settings, order.batch, done)
            if every(done, job.monitor_every):
                meter.record(job.monitor())
            if meter.has_values and (every(done, settings.log_every) or done in (1, steps)):
                values = {
                    **meter.values(),
                    "lr": rate,
                    "bad_samples": bad.count,
                    "skipped": trouble.skipped,
                }
                metrics.write(done, values)
                terminal.show(done, values)
            if (
                every(done, settings.save_every_epochs * order.steps_per_epoch)
                or stop
                or done == steps
            ):
                save(
                    engine,
                    saver,
                    done,
                    job,
                    Told(meter.state(), alarm.bad, trouble.state(), bad.count),
                )
            if stop and done < steps:
                settle(saver)
                raise Stopped(signals.caught, done, steps)
            watchdog.step(done)
    settle(saver)
    tell(job, bad)
    engine.close()


def gradients(
    engine: Engine, job: Job, stream: Iterator[Batch], meter: Meter, bad: BadSamples
) -> tuple[Loss, int]:
    """Adds up the gradients of one step's micro-batches; returns the last one's loss and how many
    images were bad.
    """
    new_bad = 0
    for micro in range(job.order.accumulate):
        if micro:
            engine.step()
        with meter.timing_data():
            batch = next(stream)
        loss: Loss = engine(*job.inputs(batch))
        engine.backward(loss.value)
        meter.add(loss.value, loss.terms)
        new_bad += bad.add(batch.bad)
    return loss, new_bad


def make_views(views: Any, architecture: Architecture, seed: int, batch: Batch) -> list[Tensor]:
    """The views of a batch on this rank's device, by the law `views` of views/."""
    device = comm.device()
    pixels: Any = (
        [p.to(device) for p in batch.pixels]
        if isinstance(batch.pixels, list)
        else batch.pixels.to(device)
    )
    mean, std = architecture.normalisation()
    size = architecture.size
    made: list[Tensor] = views(
        pixels, batch.ids_B, seed=seed, epoch=batch.epoch, size=size, mean=mean, std=std
    )
    return made


def begin(engine: Engine, settings: Settings, factor: float, moment: Progress, seed: int) -> float:
    """Seeds the step; sets its rates and weight decay; tells every module that asks where the
    training stands.

    Returns the largest rate.
    """
    torch.manual_seed(rng.seed(seed, "step", moment.step, comm.rank()))
    rates = set_rates(engine.optimizer, factor, moment.epoch)
    if settings.final_weight_decay is not None:
        set_weight_decay(engine.optimizer, settings.final_weight_decay, moment.progress)
    for part in engine.module.modules():
        told = getattr(part, "begin", None)
        if callable(told):
            told(moment)
    return max(rates.values())


def agree(*counts: int) -> list[int]:
    """The sum of each over ranks: what one rank met, all do something about."""
    return [int(n) for n in comm.all_sum(torch.tensor(counts, dtype=torch.int64)).tolist()]


def every(done: int, n: int) -> bool:
    """Whether something that happens every n steps, 0 for never, is due."""
    return n > 0 and done % n == 0


def make_engine(settings: Settings, module: nn.Module, accumulate: int = 1) -> Engine:
    """The engine that the recipe names; without a name `zero` where several ranks train, else
    `plain`.
    """
    chosen = settings.engine or ENGINE.spec("zero" if comm.world_size() > 1 else "plain")
    try:
        optimizer = settings.optimizer.build(parameter_groups(module))
    except ValueError as error:
        raise RunError(
            f"optimizer: {settings.optimizer.name}: {error}: change it in the recipe"
        ) from error
    engine: Engine = chosen.build(module, optimizer, accumulate=accumulate)
    return engine


class Told(NamedTuple):
    """What the log will yet say of the steps since its last line, and what the alarms have counted;
    JSON data.
    """

    meter: Mapping[str, Any]
    alarm: int
    trouble: Sequence[int]
    bad: int | None = None


def resume(engine: Engine, checkpoints: Checkpoints, job: Job, steps: int) -> tuple[int, Told]:
    """Loads the newest checkpoint, if there is one; returns how many steps are done, and what is
    still to be told.
    """
    found = checkpoints.newest(job.must_match, job.accept_changes)
    if found is None:
        return 0, Told({}, 0, (), 0)
    changed = [*job.changed, *differences(found.about, job.must_match)]
    refuse_nothing(job.folder, job.title, found.step, steps, changed)
    try:
        engine.load(State(found.tensors["model"], found.tensors["optim"]))
    except (RuntimeError, ValueError, RunError) as error:
        if isinstance(error, LostError) or comm.is_peer_failure(error):
            raise
        raise RunError(
            f"{checkpoints.folder}: step {found.step} does not fit the recipe's model: {error}"
        ) from error
    # A checkpoint of an earlier release tells nothing.
    return found.step, Told(**found.about.get("told", {"meter": {}, "alarm": 0, "trouble": ()}))


def known_bad(job: Job, settings: Settings, told: Told) -> BadSamples:
    """The list of bad samples as it was when the state was saved that the training goes on from."""
    path = job.folder / "bad_samples.jsonl"
    if comm.rank() == 0 and told.bad is not None:
        keep_first(path, told.bad)
    comm.barrier()
    return BadSamples(path, max(100, round(settings.max_bad * len(job.images))), told.bad)


def refuse_nothing(folder: Path, title: str, done: int, steps: int, changed: Sequence[str]) -> None:
    """Raises RunError where more steps are done than are asked for, or a change comes after the
    last of them.
    """
    remedy = f"choose another --out, or raise {title}.epochs"
    if done > steps:
        raise RunError(f"{folder}: {done} steps are done, the recipe asks for {steps}: {remedy}")
    if done == steps and changed:
        what = "; ".join(changed[:4])
        raise RunError(
            f"{folder}: all {steps} steps are done, no step would train on the change ({what}): "
            f"{remedy}"
        )


def save(engine: Engine, saver: Saver, done: int, job: Job, told: Told) -> None:
    """Every rank gives its share of the state; rank 0 writes it while the training goes on."""
    state = engine.save()
    job.kept()
    if comm.rank() == 0:
        saver.save(
            done,
            state._asdict(),
            {**job.must_match, "world": comm.world_size(), "told": told._asdict()},
        )


def settle(saver: Saver) -> None:
    """Waits until the last save has ended. Raises RunError on every rank when it failed."""
    saver.wait()
    reason = comm.broadcast_object(saver.reason if saver.failures else "")
    if reason:
        raise RunError(reason)


def tell(job: Job, bad: BadSamples) -> None:
    """Says, once, how many images could not be read."""
    if bad.count and comm.rank() == 0:
        say(
            f"{job.title}: {bad.count} of {len(job.images)} images could not be read, see "
            f"{bad.path}"
        )


def watch(
    engine: Engine,
    loss: Loss,
    alarm: CollapseDetector,
    meter: Meter,
    settings: Settings,
    batch: int,
    done: int,
) -> None:
    """Measures the embeddings' health for the log. Raises RunError on collapse, if the recipe asks
    for that.
    """
    if not loss.embeddings:
        return
    values = {**measure(loss.embeddings), **queue_ages(engine.module, batch)}
    meter.record(values)
    text = alarm.update({**values, "loss": float(loss.value.detach())})
    if text and settings.on_collapse == "stop":
        raise RunError(f"step {done}: {text}; on_collapse: warn goes on all the same")
    if text and comm.rank() == 0:
        warnings.warn(f"step {done}: {text}", stacklevel=2)


def read(job: Job, settings: Settings, done: int, steps: int) -> Generator[Batch, None, None]:
    """This rank's micro-batches from step `done` on, their pixels on its device."""
    world = comm.world_size()
    workers = workers_for(job.images, settings.workers, world)
    span = {
        "first_step": done,
        "last_step": steps,
        "rank": comm.rank(),
        "world": world,
        "pieces": job.pieces,
    }
    device = comm.device()
    found = batches(
        job.images,
        job.order,
        **span,
        workers=workers,
        pin=device.type == "cuda",
        host_crops=job.host_crops,
    )
    return prefetch(found, device)
