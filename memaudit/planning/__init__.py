"""Planning: what an audit would read, compute and need, told before it is begun.

Counts are exact: the corpus is read and cut as the audit will. The time on this machine comes from
a few windows that are really scored; that on named GPUs is derived from published peaks, and
memory from the shapes of the models.
"""

from memaudit.planning.making import plan_audit
from memaudit.planning.plan import AuditPlan

__all__ = ["AuditPlan", "plan_audit"]
