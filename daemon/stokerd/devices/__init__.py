"""The inventory of GPUs, read through NVML, and who holds them."""
