"""The study: distillations from which the shipped classifiers are fitted, and what they show."""
