"""The training loop, for pretraining and fine-tuning alike: what happens in a step, in order, on one screen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from lookalike import comm, draw
from lookalike.backbones import Architecture
from lookalike.checkpoint import Checkpoints
from lookalike.data.loader import Batch, batches, workers_for
from lookalike.data.pictures import Pictures
from lookalike.engine import ENGINES, Engine, State
from lookalike.errors import RunError
from lookalike.log import BadSamples, Meter, Metrics, Terminal
from lookalike.optim import OPTIMIZERS, Moment, parameter_groups, set_rates, set_weight_decay, warmup_cosine
from lookalike.recipe import Choice, Count, Fraction, Index, NonNegative, Spec
from lookalike.signals import Signals, Stopped

ENGINE = Choice(ENGINES, given={"module", "optimizer", "accumulate"})
_OTHERWISE = ", lengthen the warm-up, or take precision: fp32; what was saved before is whole"
OPTIMIZER = Choice(OPTIMIZERS, given={"groups"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every training asks for. Learning rates are final; `final_lr` is a share of the base rate.

    `final_weight_decay`: what the weight decay goes to by a half cosine, by default it stays;
    `max_bad`: the share of pictures that may be unreadable (at least 100) before the run stops; `workers`:
    loader processes of each rank, by default none for pictures in memory; `keep`: how many checkpoints stay.
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

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is longer than epochs {self.epochs}: lower it")


class Order(Protocol):
    """Which samples make which global micro-batch; see data/loader.py and metric/sampler.py."""

    @property
    def seed(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    def micro_batches(self, first_step: int, last_step: int) -> Iterator[tuple[int, Tensor]]: ...


@dataclass(frozen=True)
class Job:
    """What is trained on what: `inputs` makes the module's inputs of a batch; `fixed` must not change in a resume.

    `pieces`: how many parts of a batch the backbone sees one after another.
    """

    title: str
    folder: Path
    module: nn.Module
    pictures: Pictures
    order: Order
    inputs: Callable[[Batch], tuple[Any, ...]]
    fixed: dict[str, Any]
    pieces: int = 1


def train(job: Job, settings: Settings) -> None:
    """Trains from the newest checkpoint in the job's folder to the last step.

    Raises Stopped after a signal, with everything saved; RunError when the loss is no longer a number.
    """
    order, steps = job.order, settings.epochs * job.order.steps_per_epoch
    warmup = round(settings.warmup_epochs * order.steps_per_epoch)
    factor = partial(warmup_cosine, steps=steps, warmup=warmup, final=settings.final_lr)
    engine = make_engine(settings, job.module, order.accumulate)
    checkpoints = Checkpoints(job.folder / "checkpoints", settings.keep)
    done = resume(engine, checkpoints, job.fixed)
    metrics = Metrics(job.folder, done, active=comm.rank() == 0)
    bad = BadSamples(job.folder / "bad_samples.jsonl", max(100, round(settings.max_bad * len(job.pictures))))
    stream, meter = read(job, settings, done, steps), Meter(order.batch / order.accumulate)
    terminal = Terminal(job.title, steps, order.steps_per_epoch, done, active=comm.rank() == 0)
    with metrics, terminal, Signals() as signals:
        while done < steps:
            torch.manual_seed(draw.seed(order.seed, "step", done, comm.rank()))
            rates, new_bad = set_rates(engine.optimizer, factor(done)), 0
            begin(engine, settings, Moment(done, steps, done / order.steps_per_epoch))
            for _ in range(order.accumulate):
                with meter.waiting():
                    batch = next(stream)
                loss = engine(*job.inputs(batch))
                engine.backward(loss.value)
                engine.step()
                meter.add(loss.value, loss.terms)
                new_bad += bad.add(batch.bad)
            engine.follow()
            done += 1
            stop, found = comm.together(torch.tensor([int(signals.caught > 0), new_bad])).tolist()
            bad.check(found)
            if every(done, settings.log_every) or stop or done in (1, steps):
                values = {**meter.values(), "lr": max(rates.values()), "bad_samples": bad.count}
                refuse_nonfinite(values["loss"], done, job)
                metrics.write(done, values)
                terminal.show(done, values)
            if every(done, settings.save_every_epochs * order.steps_per_epoch) or stop or done == steps:
                save(engine, checkpoints, done, job.fixed)
            if stop and done < steps:
                raise Stopped(signals.caught, done, steps)
    engine.close()


def make_views(views: Any, architecture: Architecture, seed: int, batch: Batch) -> list[Tensor]:
    """The views of a batch on this rank's device, by the law `views` of views/."""
    canvas_BCHW = batch.canvas_BCHW.to(comm.device(), non_blocking=True)
    mean, std = architecture.normalisation()
    size = architecture.size
    made: list[Tensor] = views(canvas_BCHW, batch.ids_B, seed=seed, epoch=batch.epoch, size=size, mean=mean, std=std)
    return made


def begin(engine: Engine, settings: Settings, moment: Moment) -> None:
    """Tells every module that wants to know where the training stands; sets the weight decay."""
    if settings.final_weight_decay is not None:
        set_weight_decay(engine.optimizer, settings.final_weight_decay, moment.progress)
    for part in engine.module.modules():
        told = getattr(part, "begin", None)
        if callable(told):
            told(moment)


def every(done: int, n: int) -> bool:
    """Whether something that happens every n steps is due."""
    return done % n == 0


def make_engine(settings: Settings, module: nn.Module, accumulate: int = 1) -> Engine:
    """The engine that the recipe names; without a name `zero` where several ranks train, else `plain`."""
    chosen = settings.engine or ENGINE.spec("zero" if comm.world_size() > 1 else "plain")
    optimizer = settings.optimizer.build(parameter_groups(module))
    engine: Engine = chosen.build(module, optimizer, accumulate=accumulate)
    return engine


def resume(engine: Engine, checkpoints: Checkpoints, fixed: dict[str, Any]) -> int:
    """Loads the newest checkpoint, if there is one; returns how many steps are done."""
    found = checkpoints.newest(fixed)
    if found is None:
        return 0
    try:
        engine.load(State(found.tensors["model"], found.tensors["optim"]))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{checkpoints.folder}: step {found.step} does not fit the recipe's model: {error}") from error
    return found.step


def save(engine: Engine, checkpoints: Checkpoints, done: int, fixed: dict[str, Any]) -> None:
    """Every rank gives its share of the state; rank 0 writes. Raises RunError rather than save what is no number."""
    state = engine.save()
    broken = [name for name, tensor in state.model.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise RunError(
            f"{checkpoints.folder.parent}: {broken[0]} is no longer a number after step {done}: lower the learning "
            f"rate{_OTHERWISE}"
        )
    if comm.rank() == 0:
        checkpoints.save(done, state._asdict(), {**fixed, "world": comm.world_size()})
    comm.barrier()


def read(job: Job, settings: Settings, done: int, steps: int) -> Iterator[Batch]:
    """This rank's micro-batches from step `done` on."""
    world = comm.world_size()
    workers = workers_for(job.pictures, settings.workers, world)
    span = {"first_step": done, "last_step": steps, "rank": comm.rank(), "world": world, "pieces": job.pieces}
    return batches(job.pictures, job.order, **span, workers=workers, pin=torch.cuda.is_available())


def refuse_nonfinite(loss: float, done: int, job: Job) -> None:
    """Raises RunError when the loss is NaN or infinite: nothing after this step could be trusted."""
    if loss != loss or abs(loss) == float("inf"):
        raise RunError(f"{job.folder}: the loss is {loss} at step {done}: lower {job.title}.optimizer.lr{_OTHERWISE}")
