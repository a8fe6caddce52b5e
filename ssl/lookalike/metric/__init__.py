"""Metric learning: objectives and miners by name, P × K batches, and the embedding that they
train.
"""
