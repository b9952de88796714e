"""Images to degraded pairs to shards to batches; the only place that knows workers and ranks."""
