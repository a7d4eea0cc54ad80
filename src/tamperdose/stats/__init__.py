"""Rates, intervals and drift. numpy, scipy and statsmodels only; no files, no models."""
