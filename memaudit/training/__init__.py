"""Training: choose features, fit a logistic regression and calibrate it, from labelled runs."""
