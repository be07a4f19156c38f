"""Filter: a corpus without what a student would memorize of it."""

from memaudit.filtering.outputs import push_to_hub
from memaudit.filtering.selection import FilterOptions, Strategy
from memaudit.filtering.workflow import FilterResult, filter_corpus

__all__ = ["FilterOptions", "FilterResult", "Strategy", "filter_corpus", "push_to_hub"]
