"""Layers that tokenizers and generators share: causal convolution, transformer blocks, positions, per-sample noise."""
