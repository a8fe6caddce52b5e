"""A recipe: YAML to checked values, each problem with line and column; signatures are the schema.

Nothing in a recipe names an import path or runs code: a `Choice` picks from a table the program
passes in. Imports go down this list:

    recipes      Recipe; load and from_text
    overrides    key.path=value
    json_schema  the same signatures for editors
    check        Choice; nodes held against annotations
    signatures   constructors to keys
    values       Positive, Count and the like; FREE; Spec; all of them as JSON data
    messages     problems and pydantic's errors in our words
    yaml12       YAML 1.2 to nodes and back
    nodes        Node and Position, a value and its place
"""

from lookalike.recipe.check import Choice
from lookalike.recipe.json_schema import schema
from lookalike.recipe.nodes import Node, Position
from lookalike.recipe.recipes import Recipe, from_text, load
from lookalike.recipe.values import (
    FIXED,
    FREE,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Resume,
    Share,
    Size,
    Spec,
    Width,
    Widths,
    sides,
)
from lookalike.recipe.yaml12 import read

__all__ = [
    "FIXED",
    "FREE",
    "Choice",
    "Count",
    "Fraction",
    "Index",
    "Node",
    "NonNegative",
    "Position",
    "Positive",
    "Recipe",
    "Resume",
    "Share",
    "Size",
    "Spec",
    "Width",
    "Widths",
    "from_text",
    "load",
    "read",
    "schema",
    "sides",
]
