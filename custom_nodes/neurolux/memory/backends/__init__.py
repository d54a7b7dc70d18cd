"""The devices that the pack computes on. Nothing outside this package calls torch.cuda, psutil or the CUDA runtime."""
