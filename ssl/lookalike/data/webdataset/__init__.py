"""Tar shards in the WebDataset layout: which there are, and which samples lie where in them."""
