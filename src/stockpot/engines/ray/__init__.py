"""Learners, samplers, reward workers and the history as processes that Ray places and restarts; see docs/ray.md."""
