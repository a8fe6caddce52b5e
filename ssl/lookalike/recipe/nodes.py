"""Values with their line and column, and a problem at one of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lookalike.errors import RecipeError


class Position(NamedTuple):
    """A place in a recipe; line and column count from 1."""

    name: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}"


class Refusal(RecipeError):
    """One problem and its place."""

    def __init__(self, at: Position, text: str) -> None:
        super().__init__(f"{at}: {text}")
        self.at = at
        self.text = text


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands; a mapping holds for each key the key's own position and its
    node.
    """

    value: "str | int | float | bool | list[Node] | dict[str, tuple[Position, Node]] | None"
    at: Position

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, (_, node) in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def node_of(value: Any, at: Position) -> Node:
    """A node for plain data, every part of it at one position."""
    if isinstance(value, dict):
        return Node({key: (at, node_of(part, at)) for key, part in value.items()}, at)
    if isinstance(value, list):
        return Node([node_of(part, at) for part in value], at)
    return Node(value, at)
