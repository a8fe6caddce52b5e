"""timm, before anything else of this room asks for it: without torch's compiler."""

from lookalike.lean import without_compiler

with without_compiler():
    import timm

__all__ = ["timm"]
