"""Callables that degrade a clean image and say exactly how; they know neither folders nor batches."""
