"""The native CUDA C++ attention kernel: sources, run-time compilation, launch. Nothing here is needed for import."""
