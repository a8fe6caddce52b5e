"""Pretraining without labels: one file a method; a method is its loss, its heads and, perhaps, a teacher.

A method is an nn.Module with `backbone`, `n_views` and `forward(views) -> Loss`. METHODS is the whole list.
"""

from lookalike.methods.barlow_twins import BarlowTwins

METHODS = {"barlow_twins": BarlowTwins}
