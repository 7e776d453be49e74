"""The CGD network: backbones, global descriptors, weights and checkpoints."""
