"""The front end for programs of torch.export."""
