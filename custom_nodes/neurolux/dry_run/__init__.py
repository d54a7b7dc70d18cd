"""Runs full-size models on a card that is not there: every memory plan executed, on a machine without a GPU.

torch's fake tensors carry shapes, types and devices, and no numbers; the pack's own code does with them what it does
with real ones. Counted is what is alive on the card and in RAM, and watched is whether copies and computing wait for
each other. Not simulated: the time that anything takes, the workspaces of kernels, and the allocator's fragmentation.
"""
