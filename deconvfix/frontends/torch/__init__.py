"""The front ends for torch.nn.Module and torch.fx graphs."""
