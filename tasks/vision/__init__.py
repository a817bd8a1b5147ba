"""Code that image tasks share: backbones, readers, shifts. Not a task itself."""
