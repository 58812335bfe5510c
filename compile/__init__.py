"""From an architecture to a binary: fused workloads, kernel schedules, bundles, runners and parity checks."""
