"""The training loop, for pretraining and fine-tuning alike: what happens in a step, in order, on
one screen.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from lookalike import comm, rng
from lookalike.checkpoint import Checkpoints, Saver, differences, written
from lookalike.data import nvjpeg
from lookalike.data.images import Images
from lookalike.data.loader import Batch, batches, workers_for
from lookalike.data.order import BatchOrder, shares
from lookalike.data.prefetch import prefetch
from lookalike.data.reader import HostCrops
from lookalike.engine import Engine, State
from lookalike.errors import LostError, RecipeError, RunError
from lookalike.experiment import ENGINE, Training
from lookalike.log import Terminal, say
from lookalike.nn.loss import Loss
from lookalike.optim import Progress, parameter_groups, set_rates, set_weight_decay
from lookalike.process import fault
from lookalike.process.signals import Signals, Stopped
from lookalike.process.watchdog import Watchdog
from lookalike.training.bad_samples import BadSamples, keep_first
from lookalike.training.health import CollapseDetector, measure, queue_ages
from lookalike.training.inputs import made_by, tell_of_another
from lookalike.training.meter import Meter
from lookalike.training.metrics import Metrics
from lookalike.training.nonfinite import NonFinitePolicy
from lookalike.training.verdict import Met, Verdicts


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
    """What is trained on what: `inputs` makes the module's inputs of a batch; `must_match` must not
    change in a resume.

    `pieces`: how many parts of a batch the backbone sees one after another; `host_crops`: how the
    host crops, None where the device does; `monitor`: scores of the model as it stands, which every
    rank computes alike, asked every `monitor_every` steps; `accept_changes`: resume even so;
    `changed`: in what the recipe then is another than before; `on_resume`: called once the earlier
    state, if any, is in; `on_save`: called with each save; `label`: how progress calls it where a
    section has several trainings.
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
    on_save: Callable[[], None] = lambda: None
    label: str = ""


class Told(NamedTuple):
    """What the log will yet say of the steps since its last line, and what the alarms have counted;
    JSON data of a checkpoint.
    """

    meter: Mapping[str, Any]
    alarm: int
    trouble: Sequence[int]
    bad: int | None = None


@dataclass
class Standing:
    """Where a training stands, and what a rollback sets back: steps done of an order, batches to
    come, what the log and the alarms have gathered.
    """

    done: int
    told: Told
    order: Order
    stream: Generator[Batch, None, None]
    meter: Meter
    detector: CollapseDetector
    bad: BadSamples


def train(job: Job, settings: Training) -> None:
    """Trains from the newest checkpoint in the job's folder to the last step.

    Raises Stopped after a signal, all saved; RunError after NaN again and again, or failed saves.
    """
    order, per_epoch, first = job.order, job.order.steps_per_epoch, comm.rank() == 0
    steps = settings.epochs * per_epoch
    engine = make_engine(settings, job.module, order.accumulate)
    saver = Saver(Checkpoints(job.folder / "checkpoints", settings.keep))
    at = standing(job, settings, steps, *resume(engine, saver.checkpoints, job, steps))
    job.on_resume()
    metrics = Metrics(job.folder, at.done, active=first)
    terminal = Terminal(job.label or job.title, steps, per_epoch, at.done, active=first)
    watchdog = Watchdog(job.folder, comm.timeout(settings.timeout), at.done)
    nonfinite = NonFinitePolicy(job.folder, job.title, at.told.trouble)
    verdicts = Verdicts(engine.late, wary=nonfinite.in_trouble)
    with metrics, terminal, saver, Signals() as signals, watchdog:
        while at.done < steps:
            # forward and backward
            fault.inject(at.done + 1)
            progress = Progress(at.done, steps, at.done / per_epoch, order.seed)
            lr = set_step(engine, settings, settings.rate(at.done, per_epoch), progress)
            loss, new_bad = gradients(engine, job, at)
            at.done += 1

            # what one rank met, all do something about: step, or skip it
            here = (signals.caught > 0, new_bad, saver.failures)
            decision = verdicts.decide(at.done, engine.broken(loss.value), *here)
            engine.step(*decision)
            if decision.good is not False:
                engine.follow(decision.good)

            # of this step, or of the one before where the host does not wait for the device
            due = what_is_due(at.done, job, settings, steps)
            stop, good, again = look(verdicts.known(settle=any(due)), engine, saver, at, nonfinite)
            if again:
                at = roll_back(engine, saver, job, settings, steps, at, nonfinite)
                metrics.cut(at.done)
                continue

            # measure and log
            if due.health and good:
                check_health(engine, loss, at, settings, order.batch)
            if due.monitor:
                at.meter.record(job.monitor())
            if due.log:
                log_step(metrics, terminal, engine, at, lr, nonfinite.skipped)

            # save and stop
            if stop or due.save:
                save(engine, saver, job, at, nonfinite)
            if stop and at.done < steps:
                finish_saving(saver)
                raise Stopped(signals.caught, at.done, steps)
            watchdog.step(at.done)
    finish_saving(saver)
    report_bad(job, at.bad)
    engine.close()


class Due(NamedTuple):
    """What follows a step."""

    health: bool
    monitor: bool
    log: bool
    save: bool


def what_is_due(done: int, job: Job, settings: Training, steps: int) -> Due:
    """After `done` of `steps` steps."""
    per_epoch = job.order.steps_per_epoch
    return Due(
        every(done, settings.health_every),
        every(done, job.monitor_every),
        every(done, settings.log_every) or done in (1, steps),
        done == steps or every(done, settings.save_every_epochs * per_epoch),
    )


def look(
    known: Iterable[Met], engine: Engine, saver: Saver, at: Standing, nonfinite: NonFinitePolicy
) -> tuple[bool, bool, bool]:
    """Does what the verdicts ask for; whether to stop, whether the last step was good, whether to
    go back to the newest checkpoint.
    """
    stop, good, order = False, True, at.order
    for met in known:
        stop, good = stop or met.stop, not met.skip
        at.bad.check(met.bad)
        nonfinite.on_failed_save(saver, met.failures)
        if good:
            nonfinite.reset()
        elif not met.trouble:
            nonfinite.on_overflow()
        elif nonfinite.on_bad_step(engine, order, met.step):
            return stop, good, True
        else:
            at.meter.drop(order.accumulate, newer=(at.done - met.step) * order.accumulate)
    return stop, good, False


def gradients(engine: Engine, job: Job, at: Standing) -> tuple[Loss, int]:
    """Adds up the gradients of one step's micro-batches; returns the last one's loss and how many
    images were bad.
    """
    new_bad = 0
    for micro in range(job.order.accumulate):
        if micro:
            engine.step()
        with at.meter.timing_data():
            batch = next(at.stream)
        inputs = fault.spoiled(job.inputs(batch))
        with comm.rows_known(rows_of(job, micro, batch)):
            loss: Loss = engine(*inputs)
            engine.backward(loss.value)
        at.meter.add(loss.value, loss.terms)
        new_bad += at.bad.add(batch.bad)
    return loss, new_bad


def rows_of(job: Job, micro: int, batch: Batch) -> list[int]:
    """How many images of the micro-batch each rank holds. Raises RunError where this one holds
    others.
    """
    found = shares(job.order, micro, comm.world_size(), job.pieces)
    if found[comm.rank()] != len(batch.ids_B):
        raise RunError(
            f"{job.title}: {len(batch.ids_B)} images came where the order's batch gives this rank "
            f"{found[comm.rank()]}: let its micro_batches hold batch / accumulate"
        )
    return found


def set_step(engine: Engine, settings: Training, factor: float, progress: Progress) -> float:
    """Seeds the step; sets its rates and weight decay; tells every module that follows the schedule
    where the training stands.

    Returns the largest rate.
    """
    torch.manual_seed(rng.seed(progress.seed, "step", progress.step, comm.rank()))
    rates = set_rates(engine.optimizer, factor, progress.epoch)
    if settings.final_weight_decay is not None:
        set_weight_decay(engine.optimizer, settings.final_weight_decay, progress.progress)
    engine.start(progress)
    return max(rates.values())


def every(done: int, n: int) -> bool:
    """Whether something that happens every n steps, 0 for never, is due."""
    return n > 0 and done % n == 0


def make_engine(settings: Training, module: nn.Module, accumulate: int = 1) -> Engine:
    """The engine that the recipe names; without a name `zero` where several ranks train, else
    `plain`.
    """
    chosen = settings.engine or ENGINE.spec("zero" if comm.world_size() > 1 else "plain")
    optimizer = make_optimizer(settings, module)
    how = {"accumulate": accumulate, "precision": settings.precision, "clip": settings.clip}
    engine: Engine = chosen.build(module, optimizer, **how)
    return engine


def make_optimizer(settings: Training, module: nn.Module) -> Optimizer:
    """The recipe's optimizer of the module's trainable parameters.

    Raises RunError where it does not take them.
    """
    try:
        made: Optimizer = settings.optimizer.build(parameter_groups(module))
    except ValueError as error:
        raise RunError(
            f"optimizer: {settings.optimizer.name}: {error}: change it in the recipe"
        ) from error
    return made


def refuse_engine(name: str, section: str, settings: Training, ranks: int) -> None:
    """Raises RecipeError where the engine that the recipe names cannot train on so many ranks."""
    if settings.engine and settings.engine.name == "plain" and ranks > 1:
        raise RecipeError(
            f"{name}: {section}.engine: plain trains in one process, not on {ranks} ranks: remove "
            "it, or name: zero"
        )


def resume(engine: Engine, checkpoints: Checkpoints, job: Job, steps: int) -> tuple[int, Told]:
    """Loads the newest checkpoint, if there is one; returns how many steps are done, and what is
    still to be told.
    """
    found = checkpoints.newest(job.must_match, job.accept_changes)
    if found is None:
        return 0, Told({}, 0, (), 0)
    tell_of_another(found.about)
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


def standing(job: Job, settings: Training, steps: int, done: int, told: Told) -> Standing:
    """Where a training stands after `done` steps."""
    return Standing(
        done,
        told,
        job.order,
        batches_from(job, settings, done, steps),
        Meter(job.order.batch / job.order.accumulate, told.meter),
        CollapseDetector(told.alarm),
        known_bad(job, settings, told),
    )


def roll_back(
    engine: Engine,
    saver: Saver,
    job: Job,
    settings: Training,
    steps: int,
    at: Standing,
    nonfinite: NonFinitePolicy,
) -> Standing:
    """Goes back to the newest checkpoint, after steps that were NaN or Inf again and again.

    Raises RunError where that was done before, or there is none.
    """
    saver.wait()
    done, told = resume(engine, saver.checkpoints, job, steps)
    nonfinite.rollback(at.done, done)
    at.stream.close()
    return standing(job, settings, steps, done, told)


def known_bad(job: Job, settings: Training, told: Told) -> BadSamples:
    """The list of bad samples as it was when the state was saved that the training goes on from."""
    path = job.folder / "bad_samples.jsonl"
    if comm.rank() == 0 and told.bad is not None:
        keep_first(path, told.bad)
    comm.barrier()
    limit = max(100, round(settings.max_bad * len(job.images)))
    return BadSamples(path, limit, told.bad, f"{job.title}.max_bad")


def batches_from(
    job: Job, settings: Training, done: int, steps: int
) -> Generator[Batch, None, None]:
    """This rank's micro-batches from step `done` on, their pixels on its device."""
    world, device = comm.world_size(), comm.device()
    found = batches(
        job.images,
        job.order,
        first_step=done,
        last_step=steps,
        rank=comm.rank(),
        world=world,
        pieces=job.pieces,
        workers=workers_for(job.images, settings.workers, world),
        pin=device.type == "cuda",
        host_crops=job.host_crops,
        decode=(device, nvjpeg.on(device)) if settings.decode == "device" else None,
    )
    return prefetch(found, device)


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


def log_step(
    metrics: Metrics, terminal: Terminal, engine: Engine, at: Standing, lr: float, skipped: int
) -> None:
    """A line of the log, where there is anything to tell."""
    if at.meter.has_values:
        counts = {"lr": lr, "bad_samples": at.bad.count, "skipped": skipped}
        values = {**at.meter.values(), **counts, **engine.values()}
        metrics.write(at.done, values)
        terminal.show(at.done, values)


def check_health(engine: Engine, loss: Loss, at: Standing, settings: Training, batch: int) -> None:
    """Measures the embeddings' health for the log. Raises RunError on collapse, if the recipe asks
    for that.
    """
    if not loss.embeddings:
        return
    values = {**measure(loss.embeddings), **queue_ages(engine.module, batch)}
    at.meter.record(values)
    text = at.detector.update({**values, "loss": float(loss.value.detach())})
    if text and settings.on_collapse == "stop":
        raise RunError(f"step {at.done}: {text}; on_collapse: warn goes on all the same")
    if text and comm.rank() == 0:
        warnings.warn(f"step {at.done}: {text}", stacklevel=2)


def save(engine: Engine, saver: Saver, job: Job, at: Standing, nonfinite: NonFinitePolicy) -> None:
    """Every rank gives its share of the state; rank 0 writes it while the training goes on."""
    told = Told(at.meter.state(), at.detector.bad, nonfinite.state(), at.bad.count)
    state = engine.save()
    job.on_save()
    if comm.rank() == 0:
        about = {**written(job.must_match), "world": comm.world_size(), "views": made_by()}
        about["told"] = told._asdict()
        saver.save(at.done, state._asdict(), about)


def finish_saving(saver: Saver) -> None:
    """Waits until the last save has ended. Raises RunError on every rank when it failed."""
    saver.wait()
    reason = comm.broadcast_object(saver.reason if saver.failures else "")
    if reason:
        raise RunError(reason)


def report_bad(job: Job, bad: BadSamples) -> None:
    """Says, once, how many images could not be read."""
    if bad.count and comm.rank() == 0:
        say(
            f"{job.title}: {bad.count} of {len(job.images)} images could not be read, see "
            f"{bad.path}"
        )
