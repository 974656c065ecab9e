"""What this process runs on: devices, ranks, matrix products, installed distributions."""
