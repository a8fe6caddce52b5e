"""A recipe: YAML to checked values, each problem with line and column; signatures are the schema.

Nothing in a recipe names an import path or runs code: a `Choice` picks from a table the program
passes in. Imports go down this list:

    meaning      what changes nothing left out; digests
    recipes      Recipe; load and from_text
    overrides    key.path=value
    markdown     the same signatures for readers, in Markdown
    json_schema  and for editors
    words        types, bounds and values as the page says them
    docstrings   what they say of a constructor and of each key
    check        Choice; nodes held against annotations
    signatures   constructors to keys
    values       Positive, Count and the like; FREE; Spec; all of them as JSON data
    messages     problems and pydantic's errors in our words
    yaml12       YAML 1.2 to nodes and back
    nodes        Node and Position, a value and its place
"""

from lookalike.recipe.check import Choice
from lookalike.recipe.json_schema import schema
from lookalike.recipe.markdown import page
from lookalike.recipe.meaning import digest, digests, is_one_of, meaning
from lookalike.recipe.nodes import Node, Position
from lookalike.recipe.recipes import Recipe, from_text, load
from lookalike.recipe.values import (
    FIXED,
    FREE,
    MOVED_0_2,
    SINCE_0_2,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Resume,
    Share,
    Since,
    Size,
    Spec,
    Width,
    Widths,
    recorded,
)
from lookalike.recipe.yaml12 import read

__all__ = [
    "FIXED",
    "FREE",
    "MOVED_0_2",
    "SINCE_0_2",
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
    "Since",
    "Size",
    "Spec",
    "Width",
    "Widths",
    "digest",
    "digests",
    "from_text",
    "is_one_of",
    "load",
    "meaning",
    "page",
    "read",
    "recorded",
    "schema",
]
