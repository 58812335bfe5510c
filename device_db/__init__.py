"""Devices, targets, workloads and measurements, and the SQL store that keeps them."""
