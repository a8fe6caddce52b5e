"""Which queries or pairs people should look at: the worst, and some by chance, with what stands
nearest to them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import rng
from lookalike.data.images import Images, Pairs
from lookalike.errors import printable
from lookalike.evaluation.tasks import relevant
from lookalike.report.gallery import Card, Section, Strip
from lookalike.report.tiles import Mark
from lookalike.scoring.nearest import JUNK, RIGHT, Gallery, nearest
from lookalike.scoring.ranks import PerQuery

NEAREST = 10
_MARKS: dict[int, Mark] = {RIGHT: "right", JUNK: "junk"}


class Named(NamedTuple):
    """Images, and which of them each row of the embeddings is, int64 (N,)."""

    images: Images
    ids_N: Tensor

    def card(self, row: int, mark: Mark, place: str = "", value: str = "") -> Card:
        """What is known of the image of a row."""
        i = int(self.ids_N[row])
        labels = self.images.labels
        kind = "" if labels is None else class_name(self.images, int(labels[i]))
        return Card(i, mark, place, value, kind, self.images.name(i))


def class_name(images: Images, label: int) -> str:
    """The name of a class, its number where it has none."""
    return printable(images.classes[label]) if 0 <= label < len(images.classes) else str(label)


def precision(found: PerQuery) -> Tensor:
    """The average precision of each query, over its first R places where the list is not ranked to
    its end, float64 `(Q,)`.
    """
    return found.values["map" if "map" in found.values else "map@r"]


def chosen(found: PerQuery, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The half of `count` queries whose AP is lowest, and as many of the others by chance; places
    in `found`.
    """
    order_Q = precision(found).argsort(stable=True)
    worst, rest = order_Q[: (count + 1) // 2], order_Q[(count + 1) // 2 :]
    generator = torch.Generator().manual_seed(rng.seed(seed, "examples"))
    some = torch.randperm(len(rest), generator=generator)[: count // 2]
    return worst, rest[some].sort().values


def of_lists(
    named: Named,
    sets: Gallery,
    query_Q: Tensor,
    gallery_G: Tensor,
    found: PerQuery,
    count: int,
    seed: int,
) -> list[Section]:
    """The worst queries and some others, each before its ten nearest. `query_Q`, `gallery_G`: rows
    of the sets.
    """
    right_Q = relevant(sets)
    sections: list[Section] = []
    titles = ("The worst queries", "Queries by chance")
    for title, places in zip(titles, chosen(found, count, seed), strict=True):
        strips = []
        ask_B = found.row_Q[places]
        lists = nearest(sets, ask_B, NEAREST)
        for b, (place, ask) in enumerate(zip(places.tolist(), ask_B.tolist(), strict=True)):
            query = named.card(int(query_Q[ask]), "query", "query")
            cards, rank = [query], 0
            for row, near, kind in zip(*(part[b].tolist() for part in lists), strict=True):
                if row >= 0:
                    rank += kind != JUNK
                    mark = _MARKS.get(kind, "wrong")
                    where = "junk" if kind == JUNK else str(rank)
                    cards.append(named.card(int(gallery_G[row]), mark, where, f"{near:.3f}"))
            ap = 100 * float(precision(found)[place])
            strips.append(Strip(f"{query.kind}: AP {ap:.2f} %, {int(right_Q[ask])} to find", cards))
        note = (
            f"{len(strips)} of {len(found.row_Q)} queries, the lowest average precision first."
            if not sections
            else f"{len(strips)} of the others, drawn by the recipe's seed."
        )
        if strips:
            sections.append(Section(title, f"{note} {_legend(sets)}", strips))
    return sections


def _legend(sets: Gallery) -> str:
    what = (
        "cosine similarity"
        if sets.distance == "cosine"
        else "distance, in units of the embeddings' spread"
    )
    junk = (
        "; –, grey: junk, same class and camera, takes no place"
        if sets.cameras_Q is not None
        else ""
    )
    return f"✓ same class, ✗ another{junk}. At the right the {what}."


def of_pairs(
    named: Named, pairs: Pairs, near_P: Tensor, threshold_P: Tensor, count: int
) -> list[Section]:
    """The different pairs that are most alike beside their thresholds, and the same ones that are
    least.
    """
    sections = []
    for same, title in ((False, "Different, but most alike"), (True, "The same, but least alike")):
        place_P = (pairs.same_P == same).nonzero()[:, 0]
        sign = 1 if same else -1
        place_P = place_P[
            (near_P[place_P] * sign).argsort(stable=True)
        ]  # decides where a threshold is infinite
        margin_P = (near_P - threshold_P)[place_P] * sign
        wrong = int(((near_P >= threshold_P) != pairs.same_P)[place_P].sum())
        strips = []
        for p in place_P[margin_P.argsort(stable=True)[: (count + 1) // 2]].tolist():
            accepted = bool(near_P[p] >= threshold_P[p])
            mark: Mark = "right" if accepted == same else "wrong"
            words = "accepted: {} ≥ {}" if accepted else "rejected: {} < {}"
            about = words.format(
                f"{float(near_P[p]):.3f}", f"{float(threshold_P[p]):.3f}".replace("inf", "∞")
            )
            a, b = pairs.rows_P2[p].tolist()
            cards = [named.card(a, mark), named.card(b, mark, value=f"{float(near_P[p]):.3f}")]
            strips.append(Strip(f"{about}, fold {int(pairs.folds_P[p])}", cards))
        kind = "false rejects" if same else "false accepts"
        note = (
            f"{wrong} of {len(place_P)} pairs are {kind} (✗); similarity beside the threshold that "
            "judges the pair."
        )
        sections.append(Section(title, note, strips))
    return sections
