"""Frozen features to numbers: `knn` (weighted vote), `linear` (probe), `retrieval` (ranked lists)."""
