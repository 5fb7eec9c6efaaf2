"""Trusted hardware at the edge: quote devices, GPUs, Intel's and NVIDIA's services, and a software stand-in."""
