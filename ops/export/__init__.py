"""Taking a model elsewhere: ONNX, torch.export, safetensors, a model card. Reads finished runs, changes none."""
