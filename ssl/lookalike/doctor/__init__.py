"""What would spoil a training on several machines, found before step 0: a table, and a line for
every problem.
"""

from lookalike.doctor.agreement import agree
from lookalike.doctor.checks import problems, table, tell
from lookalike.doctor.machine import Report, here, report
from lookalike.doctor.remote import Remote, everywhere, ssh

__all__ = [
    "Remote",
    "Report",
    "agree",
    "everywhere",
    "here",
    "problems",
    "report",
    "ssh",
    "table",
    "tell",
]
