"""`key.path=value` laid over the nodes of a recipe."""

from collections.abc import Sequence

from lookalike.recipe.messages import quoted
from lookalike.recipe.nodes import Node, Position, Refusal
from lookalike.recipe.yaml12 import MAX_DEPTH, read


def override_name(override: str) -> str:
    """What stands for the file in the position of a problem."""
    return f"<override {quoted(override)}>"


def overridden(root: Node, override: str) -> Node:
    """`root` with one override laid over it. Raises RecipeError."""
    path, equals, value = override.partition("=")
    parts = path.split(".")
    at = Position(override_name(override), 1, 1)
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise Refusal(at, "not an override, write key.path=value")
    node = read(" " * (len(path) + 1) + value, at.name)
    return _placed(
        root, parts, node if value else Node(None, at._replace(column=len(override) + 1)), at
    )


def _placed(node: Node, parts: Sequence[str], value: Node, at: Position) -> Node:
    """`node` with `value` at the path `parts`; `at` is where the path's first part stands."""
    head, *rest = parts
    members = _members(node, at)
    place, child = members.get(head, (at, Node(None, at)))
    if rest:
        members[head] = (
            place,
            _placed(child, rest, value, at._replace(column=at.column + len(head) + 1)),
        )
    else:
        members[head] = (at, value)
    return Node(members, node.at)


def _members(node: Node, at: Position) -> dict[str, tuple[Position, Node]]:
    if isinstance(node.value, dict):
        return dict(node.value)
    if isinstance(node.value, str):
        return {"name": (node.at, node)}
    if node.value is None:
        return {}
    raise Refusal(at, f"{quoted(node.plain())} at {node.at} is no section, override it as a whole")
