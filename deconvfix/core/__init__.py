"""What a layer is: its geometry, the steps that it is written in, and how weights are rearranged."""
