"""The stages, each usable alone; none imports another. pipeline.py runs them in order."""
