"""The fast engine: decoder layers with LoRA over packed rows in, loss and gradients out; plain and for a GPU."""
