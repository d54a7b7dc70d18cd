"""ControlNets: which one, its weights, and the pipeline that samples with it."""
