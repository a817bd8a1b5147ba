"""Taking a model elsewhere: ONNX, torch.export, safetensors, and a model card. Reads finished runs, changes none."""
