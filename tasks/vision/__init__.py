"""What tasks on images share: backbones, readers, shifts. Is no task itself."""
