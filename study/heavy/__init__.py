"""The heavy regime: few examples, many epochs. The classifiers in `models/` come from it."""
