"""What a run tells: metrics.jsonl (the truth), TensorBoard, the terminal, and the list of bad pictures."""

from lookalike.log.bad_samples import BadSamples, keep_first
from lookalike.log.meter import Meter
from lookalike.log.metrics import Metrics
from lookalike.log.terminal import Terminal, note, progress, say

__all__ = ["BadSamples", "Meter", "Metrics", "Terminal", "keep_first", "note", "progress", "say"]
