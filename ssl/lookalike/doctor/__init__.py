"""What would spoil a training on several machines, found before step 0: a table, and a line for every problem."""

from lookalike.doctor.agreement import agree
from lookalike.doctor.asked import Remote, everywhere, ssh
from lookalike.doctor.machine import Report, here, report
from lookalike.doctor.verdict import problems, table, tell

__all__ = ["Remote", "Report", "agree", "everywhere", "here", "problems", "report", "ssh", "table", "tell"]
