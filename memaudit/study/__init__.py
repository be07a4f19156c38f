"""Studies: real distillations over corpora and recipes, and the classifiers fitted on them."""
