"""Triton kernels; import this package only where Triton is installed (its backend looks first)."""
