"""From an architecture to a binary: fused workloads, kernels, schedules, bundles, runners."""
