"""Probes of frozen features: logistic regression, its penalty's choice, k-NN, few shots."""
