"""Filter: a corpus without what a student would memorize of it."""

from memaudit.filtering.options import FilterOptions, Strategy
from memaudit.filtering.publishing import push_to_hub
from memaudit.filtering.result import FilterResult
from memaudit.filtering.workflow import filter_corpus

__all__ = ["FilterOptions", "FilterResult", "Strategy", "filter_corpus", "push_to_hub"]
