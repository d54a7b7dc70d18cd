"""What is applied to a loaded pipeline: LoRAs, ControlNets and motion adapters."""
