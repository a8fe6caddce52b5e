"""What trains by a recipe's objective over all ranks; which there are is said by choices.py."""

import contextlib
import copy
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lookalike import comm, rng
from lookalike.errors import RunError
from lookalike.metric import sizes
from lookalike.metric.choices import (
    GIVEN,
    MINER,
    OBJECTIVE,
    WIDTH,
    Part,
    WeightedSum,
    table,
)
from lookalike.metric.memory import Memory, MemorySettings
from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import refuse_unknown
from lookalike.nn.hooks import Scheduled, discard
from lookalike.nn.loss import Loss
from lookalike.nn.numerics import at_least_fp32, exact, l2_normalize
from lookalike.optim import Progress
from lookalike.recipe import Spec

__all__ = ["GIVEN", "MINER", "OBJECTIVE", "Objective", "Part", "WeightedSum"]

_TABLES = ("MINERS", "OBJECTIVES", "OWN", "SINGLE")


def __getattr__(name: str) -> Any:
    """The tables of losses.py, which is imported when one is asked for."""
    if name not in _TABLES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("lookalike.metric.losses"), name)


TRIED = 256
"""Images of a batch that is tried before training: triplets grow with their cube."""


class Term(nn.Module):
    """A loss, its miner and its weight. Rows come of any length; a loss that asks for unit rows
    gets these.

    A loss asks for rows as they are by `unnormalised`, or by a distance that does not normalise.
    Labels beyond the classes that one of the library's knows are refused (DataError): its proxies
    would make nothing of them, silently.
    """

    def __init__(self, part: Part, given: Mapping[str, Any]) -> None:
        super().__init__()
        wanted = GIVEN & required(part.objective.make)
        self.name, self.weight = part.objective.name, part.weight
        self.loss = part.objective.build(**{name: given[name] for name in wanted})
        self.miner = part.miner.build() if part.miner else None
        normalises = getattr(self.loss.distance, "normalize_embeddings", True)
        as_they_are = isinstance(self.loss, OwnLoss) and self.loss.unnormalised
        self.raw = as_they_are or not normalises
        self.classes = (
            given["num_classes"]
            if "num_classes" in wanted and self.name in table("LOSSES")
            else None
        )
        self.compares = True
        self.masks = self.name not in table("LOSSES") and self.miner is None

    def forward(
        self,
        z_ND: Tensor,
        labels_N: Tensor,
        ref_RD: Tensor | None = None,
        ref_R: Tensor | None = None,
    ) -> Tensor:
        """The loss of rows (N, D), against themselves or against references (R, D) that they are no
        part of.
        """
        if not self.raw:
            z_ND, ref_RD = l2_normalize(z_ND), None if ref_RD is None else l2_normalize(ref_RD)
        known = None if self.classes is None else refuse_unknown(labels_N, self.classes)
        chosen = self.miner(z_ND, labels_N, ref_RD, ref_R) if self.miner else None
        value: Tensor = self.loss(z_ND, labels_N, chosen, ref_RD, ref_R)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError("gives no single number: choose another reducer")
        value = value.reshape(())
        return value if known is None else torch.where(known, value, torch.nan)


class Objective(Scheduled, nn.Module):
    """What fine-tuning descends: losses with their miners over the batch of all ranks, perhaps with
    a memory.

    Rows are gathered in rank order, so every rank computes the same loss of the same rows, and
    draws alike by `seed` and step. Embeddings that are NaN or Inf, on any rank, make the loss NaN
    on all, whatever the loss would say. Raises RunError when parts do not fit one another.
    """

    def __init__(
        self,
        objective: Spec,
        miner: Spec | None,
        *,
        num_classes: int,
        embedding_size: int,
        seed: int = 0,
        memory: MemorySettings | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.step, self.about_memory = seed, 0, memory
        self.embedding_size = embedding_size
        given = {"num_classes": num_classes, "seed": seed, **dict.fromkeys(WIDTH, embedding_size)}
        parts = [Part(objective=objective, miner=miner)]
        if objective.name == "WeightedSum":
            parts = _parts(objective, miner)
        self.terms = nn.ModuleList()
        for part in parts:
            names = part.objective.name + (f" with {part.miner.name}" if part.miner else "")
            with _explained(names):
                term = Term(part, given)
                self._try(term, num_classes, embedding_size)
            self.terms.append(term)
        self.memory = Memory(memory.size, embedding_size, memory.warmup_steps) if memory else None
        if memory and not any(term.compares for term in self._terms()):
            raise RunError(
                f"finetune.memory: {self.name}: compares no embeddings with others: leave memory "
                "out"
            )
        if len([term for term in self._terms() if _affine(term) is not None]) > 1:
            raise RunError(
                "finetune.objective: two parts want to be folded into the head: leave one neck or "
                "A out"
            )

    def _try(self, term: Term, num_classes: int, embedding_size: int) -> None:
        """One random batch on this process alone, so that parts that do not fit are refused before
        training.
        """
        labels_N = torch.arange(24) % min(4, num_classes)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            z_ND = torch.nn.functional.normalize(torch.randn(24, embedding_size), dim=1)
            term(z_ND, labels_N)
            if self.about_memory:
                try:
                    term(
                        z_ND,
                        labels_N,
                        torch.randn(40, embedding_size),
                        torch.arange(40) % min(4, num_classes),
                    )
                except ValueError as error:
                    if "ref_emb is not supported" not in str(error):
                        raise
                    term.compares = False
        discard(term)

    def _terms(self) -> list[Any]:
        return list(self.terms)

    @property
    def name(self) -> str:
        """The names of its losses."""
        return ", ".join(term.name for term in self._terms())

    def learns(self, classes: int, per_class: int) -> bool:
        """Whether a batch of so many classes and images of each can move an embedding. Nothing of
        the objective changes.

        Raises RunError where one of its parts takes no such batch; above `TRIED` images it is
        believed to.
        """
        if classes * per_class > TRIED:
            return True
        tried = copy.deepcopy(self.terms)
        label_N = torch.arange(classes).repeat_interleave(per_class)
        with _explained(self.name), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            moved = [_moves(tried, label_N, self.embedding_size, far) for far in (1.0, 0.1)]
        remembers = self.memory is not None and any(term.compares for term in self._terms())
        return any(moved) or remembers or min(classes, per_class) > 1

    def on_step(self, progress: Progress) -> None:
        """Another step, other draws."""
        self.step = progress.step

    @exact
    def forward(self, z_BD: Tensor, labels_B: Tensor) -> Loss:
        """Embeddings (B, D) of any length and classes (B,) of this rank -> the loss over all ranks'
        rows, in fp32.

        Terms: each part's value where there are several, and how many rows the memory holds.
        """
        device = z_BD.device
        with torch.autocast(device.type, enabled=False), _same_draws(device, self.seed, self.step):
            z_ND, labels_N = comm.cat(at_least_fp32(z_BD)), comm.cat(labels_B)
            good = z_ND.detach().isfinite().all()
            rows_ND = torch.where(good, z_ND, 0.0)
            values = self._values(rows_ND, labels_N)
            total = torch.stack(
                [v * term.weight for v, term in zip(values, self._terms(), strict=True)]
            ).sum()
            value = torch.where(good, total, torch.nan)
            if self.memory:
                self.memory.put(rows_ND, labels_N)
        named = zip(values, self._terms(), strict=True)
        terms = (
            {f"loss/{i}_{term.name}": v.detach() for i, (v, term) in enumerate(named)}
            if len(values) > 1
            else {}
        )
        if self.memory:
            terms["memory"] = self.memory.written.clamp(max=len(self.memory.rows_QD)).to(
                value.dtype
            )
        return Loss(value, terms)

    def _values(self, rows_ND: Tensor, labels_N: Tensor) -> list[Tensor]:
        """Each part's loss within the batch, and against the memory once there is something in
        it.
        """
        values = [term(rows_ND, labels_N) for term in self._terms()]
        if not self.memory or not self.about_memory:
            return values
        for i, term in enumerate(self._terms()):
            if term.compares:
                ref_RD, ref_R = self._past(term)
                if len(ref_R):
                    values[i] = values[i] + self.about_memory.weight * term(
                        rows_ND, labels_N, ref_RD.to(rows_ND.dtype), ref_R
                    )
        return values

    def _past(self, term: Any) -> tuple[Tensor, Tensor]:
        """What a part is compared with: only what was written, or all of the memory for one that
        knows references without a class, where the host would wait to be told.
        """
        assert self.memory
        masked = term.masks and not sizes.seen(self.memory.written)
        return self.memory.held() if masked else self.memory.filled()

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(W, b) to be folded into the head, so that the embedding is what was compared; None if it
        is already.
        """
        return next((found for term in self._terms() if (found := _affine(term)) is not None), None)


def _moves(terms: nn.ModuleList, labels_N: Tensor, width: int, far: float) -> bool:
    """Whether some term has a gradient in random embeddings that lie so far from one another."""
    z_ND = (torch.randn(width) + far * torch.randn(len(labels_N), width)).requires_grad_()
    with torch.enable_grad():
        total = torch.stack([term(z_ND, labels_N) for term in terms]).sum()
        if not total.requires_grad:
            return False
        (slope_ND,) = torch.autograd.grad(total, z_ND, allow_unused=True)
    return slope_ND is not None and bool((slope_ND != 0).any())


def _parts(objective: Spec, miner: Spec | None) -> list[Part]:
    if miner:
        raise RunError("finetune.miner: a WeightedSum has none: give it to one of its parts")
    with _explained("WeightedSum"):
        found: list[Part] = objective.build().parts
    return found


def _affine(term: Any) -> tuple[Tensor, Tensor] | None:
    return term.loss.affine() if isinstance(term.loss, OwnLoss) else None


@contextlib.contextmanager
def _explained(names: str) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # a library of many authors raises whatever it meets: the recipe chose it
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"finetune.objective: {names}: {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _same_draws(device: torch.device, seed: int, step: int) -> Iterator[None]:
    """What the library draws from torch's generators is alike on all ranks; afterwards they are as
    they were.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(rng.seed(seed, "objective", step))
        yield


def required(kind: Any) -> set[str]:
    """The parameters that a constructor, or one that it hands its keywords to, asks for by name."""
    found: set[str] = set()
    for parent in inspect.getmro(kind):
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
            found |= set(parameters)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return found
