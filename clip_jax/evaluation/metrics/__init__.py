"""Metrics, their intervals and paired tests: pure functions of arrays, float64, on no device.

A metric comes as *contributions*: one number per sample, whose mean is the metric. For accuracies
and recalls these are the hits; for what is no mean (macro-F1, average precision, ROC AUC, accuracy
per class) they are the value plus the sample's influence on it, the first-order term of the
weighted bootstrap (the infinitesimal jackknife; Efron 1982, chapter 6). So one function gives the
interval of any of them, by samples or by whole groups, and one compares two models on it.

Shape letters: N samples, C classes, G groups, Q queries, R resamples.
"""
