"""The training loop and what belongs to it: metrics, health, the policy for non-finite steps."""
