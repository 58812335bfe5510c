"""Devices, targets, workloads and measurements: the records of the house and the SQL store that keeps them."""
