"""Data sets, annotation files, preprocessing, samplers and data loading; the demo data set."""
