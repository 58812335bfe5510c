"""Strategies over architectures under a latency budget, Pareto fronts and the report of a run."""
