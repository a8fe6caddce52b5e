"""Frozen features to numbers: votes, probes, ranked lists, re-identification; one file an idea."""
