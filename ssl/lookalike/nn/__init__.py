"""Parts that several methods share: heads, teacher, queue, contrast, correlation, BatchNorm over
ranks.
"""
