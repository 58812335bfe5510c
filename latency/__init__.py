"""Measuring kernels and networks on a device, and predicting the latency of other networks."""
