"""The accelerator side: device memory, weights, KV, steps, turns. The only home of torch."""
