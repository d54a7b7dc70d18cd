"""Motion adapters (AnimateDiff)."""
