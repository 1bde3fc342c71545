"""Bytes to arrays and back: datasets, video, the feature store, progress files. Knows no model and no ray."""
