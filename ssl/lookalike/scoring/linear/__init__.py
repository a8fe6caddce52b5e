"""Linear probe: multinomial logistic regression on frozen features, full batch L-BFGS, L2 chosen on
train.

Every rank of the process group calls these functions with the same tensors; they share the rows and
return the same, to the bit, on any number of ranks of one kind of processor.
"""

from lookalike.scoring.linear.problem import Linear
from lookalike.scoring.linear.sweep import GRID, Probe, chosen, fit, probe, split

__all__ = ["GRID", "Linear", "Probe", "chosen", "fit", "probe", "split"]
